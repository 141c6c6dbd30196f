"""Clients of a model server, TensorFlow Serving or the stand-in: one over REST, one over gRPC.

Both have the same methods and give the same answers, so one can be held against the other.
"""

import abc
import base64
import enum
import json
import time
import urllib.parse
from typing import NamedTuple

import grpc
import numpy as np
import requests
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from .codes import HTTP_STATUS, MESSAGE_LIMITS
from .runtime import DEFAULT_SIGNATURE

_POLL_SECONDS = 0.2
_ADVICE = {
    "INVALID_ARGUMENT": "Compare the request with the signatures in the model's metadata.",
    "FAILED_PRECONDITION": "Compare the request with the signatures in the model's metadata.",
    "NOT_FOUND": "Check the name and the version against the status of the model.",
    "RESOURCE_EXHAUSTED": "Send fewer inputs at once, or try again later.",
    "UNAVAILABLE": "Start the server, or correct its host and port.",
    "DEADLINE_EXCEEDED": "Allow more time, or send fewer inputs at once.",
}
_OTHER_ADVICE = "The log of the server may say more."


class ServingError(RuntimeError):
    """A model server refused, failed or could not be reached; the message keeps its words."""


class VersionStatus(NamedTuple):
    """State of one version of a served model."""

    version: int
    state: str
    """START, LOADING, AVAILABLE, UNLOADING, END or UNKNOWN."""
    error: str
    """Why the version is not available, in the server's words; "" if nothing went wrong."""


class Readiness(enum.Enum):
    """What a client that waits can learn from the states of the versions."""

    AVAILABLE = "available"
    WAITING = "waiting"
    FAILED = "failed"


def readiness(statuses):
    """Tell whether the newest of some versions can be asked, may become so, or never will.

    Args:
        statuses: List of `VersionStatus`; may be empty.

    Returns:
        A `Readiness`. The state END is final: the version failed to load or was unloaded.
    """
    if not statuses:
        return Readiness.WAITING
    finals = {"AVAILABLE": Readiness.AVAILABLE, "END": Readiness.FAILED}
    return finals.get(max(statuses).state, Readiness.WAITING)


class _Client(abc.ABC):
    """What can be asked of a model server, whatever carries it.

    Args:
        host_port: Where the server listens, as `localhost:8500`.
        timeout: Seconds that one request may take.
    """

    def __init__(self, host_port, *, timeout=10.0):
        self.host_port = host_port
        self.timeout = timeout

    def predict(self, name, inputs, *, signature=DEFAULT_SIGNATURE, version=None):
        """Ask a model for an answer.

        Args:
            name: Name of the model.
            inputs: Mapping from input name to array, of the signature's dtypes and shapes. Lists of
                Python floats are taken for float32.
            signature: Name of the signature; each task has its own.
            version: Version to ask. Default: the one the server thinks latest.

        Returns:
            Dict from output name to array of the signature's dtype; strings are object arrays of
            `str`.

        Raises:
            ServingError: If the server refuses the request, fails or does not answer.
        """
        return self._predict(name, inputs, signature, version)

    def signatures(self, name, *, version=None):
        """Ask for the signatures of a model.

        Args:
            name: Name of the model.
            version: Version to ask about. Default: the one the server thinks latest.

        Returns:
            Mapping from signature name to `SignatureDef`.

        Raises:
            ServingError: If the server does not know the model or does not answer.
        """
        return self._signatures(name, version)

    def status(self, name):
        """Ask for the state of every version of a model.

        Args:
            name: Name of the model.

        Returns:
            List of `VersionStatus` by ascending version.

        Raises:
            ServingError: If the server does not know the model or does not answer.
        """
        return self._status(name, self.timeout)

    def wait_until_available(self, name, timeout):
        """Wait until the newest version of a model can be asked.

        That the server cannot be reached or does not know the model yet counts as waiting.

        Args:
            name: Name of the model.
            timeout: Seconds to wait at most.

        Returns:
            The version, an integer.

        Raises:
            ServingError: If `timeout` has passed, or at once if the newest version failed to load.
        """
        deadline = time.monotonic() + timeout
        while True:
            statuses, received = self._try_status(name, max(deadline - time.monotonic(), 0.01))
            ready = readiness(statuses)
            if ready is Readiness.AVAILABLE:
                return max(statuses).version
            if ready is Readiness.FAILED or time.monotonic() + _POLL_SECONDS > deadline:
                raise ServingError(
                    f"Expected model '{name}' to be available at {self.host_port} within "
                    f"{timeout} s. Received: {received} {_OTHER_ADVICE}"
                )
            time.sleep(_POLL_SECONDS)

    @abc.abstractmethod
    def close(self):
        """Close the connection."""

    @abc.abstractmethod
    def _predict(self, name, inputs, signature, version): ...

    @abc.abstractmethod
    def _signatures(self, name, version): ...

    @abc.abstractmethod
    def _status(self, name, seconds): ...

    def _try_status(self, name, seconds):
        """Return the statuses, perhaps none, and a sentence that says what was received."""
        try:
            statuses = self._status(name, min(seconds, self.timeout))
        except ServingError as error:
            return [], str(error)
        if not statuses:
            return [], "no version."
        version, state, error = max(statuses)
        return statuses, f"version {version} in state {state}. {error}".strip()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


class GrpcClient(_Client):
    """Client of a model server's gRPC port, by default 8500."""

    def __init__(self, host_port, *, timeout=10.0):
        super().__init__(host_port, timeout=timeout)
        # Left alone a channel waits longer after each failure, up to two minutes, while the server
        # may be up again.
        options = [*MESSAGE_LIMITS, ("grpc.max_reconnect_backoff_ms", 1000)]
        self._channel = grpc.insecure_channel(host_port, options=options)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def _predict(self, name, inputs, signature, version):
        spec = model_pb2.ModelSpec(name=name, signature_name=signature)
        if version is not None:
            spec.version.value = version
        request = predict_pb2.PredictRequest(model_spec=spec)
        for key, value in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
        response = self._call(self._predictions.Predict, request, self.timeout)
        return {key: _as_text(tf.make_ndarray(proto)) for key, proto in response.outputs.items()}

    def _signatures(self, name, version):
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=model_pb2.ModelSpec(name=name), metadata_field=["signature_def"]
        )
        if version is not None:
            request.model_spec.version.value = version
        response = self._call(self._predictions.GetModelMetadata, request, self.timeout)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return signatures.signature_def

    def close(self):
        """Close the channel."""
        self._channel.close()

    def _status(self, name, seconds):
        request = get_model_status_pb2.GetModelStatusRequest(
            model_spec=model_pb2.ModelSpec(name=name)
        )
        return _version_statuses(self._call(self._models.GetModelStatus, request, seconds))

    def _call(self, method, request, seconds):
        try:
            return method(request, timeout=seconds)
        except grpc.RpcError as error:
            name = request.model_spec.name
            raise _error(name, self.host_port, error.code().name, error.details()) from error


class RestClient(_Client):
    """Client of a model server's REST port, by default 8501."""

    def __init__(self, host_port, *, timeout=10.0):
        super().__init__(host_port, timeout=timeout)
        self._session = requests.Session()

    def _predict(self, name, inputs, signature, version):
        signatures, version = self._metadata(name, version)
        columns = {key: np.asarray(value).tolist() for key, value in inputs.items()}
        body = json.dumps({"signature_name": signature, "inputs": columns}, default=_base64)
        path = f"{_path(name, version)}:predict"
        answer = self._call("POST", name, path, self.timeout, data=body)["outputs"]
        return _read_columns(answer, signatures[signature].outputs)

    def _signatures(self, name, version):
        return self._metadata(name, version)[0]

    def close(self):
        """Close the connections."""
        self._session.close()

    def _status(self, name, seconds):
        document = self._call("GET", name, _path(name), seconds)
        response = get_model_status_pb2.GetModelStatusResponse()
        return _version_statuses(_parse(document, response))

    def _metadata(self, name, version):
        """Return the signatures of a version, and the number of the version if it was None.

        JSON has neither float32 nor, with a single output, its name; the signature knows both.
        """
        document = self._call("GET", name, f"{_path(name, version)}/metadata", self.timeout)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        _parse(document["metadata"]["signature_def"], signatures)
        return signatures.signature_def, int(document["model_spec"]["version"])

    def _call(self, method, name, path, seconds, **arguments):
        """Send a request; return the JSON object of the answer."""
        url = f"http://{self.host_port}{path}"
        try:
            response = self._session.request(method, url, timeout=seconds, **arguments)
            document = response.json()
        except requests.Timeout as error:
            words = f"no answer within {seconds} s"
            raise _error(name, self.host_port, "DEADLINE_EXCEEDED", words) from error
        except requests.JSONDecodeError as error:
            words = f"HTTP status {response.status_code}, and no JSON"
            raise _error(name, self.host_port, "UNKNOWN", words) from error
        except requests.RequestException as error:
            raise _error(name, self.host_port, "UNAVAILABLE", "no connection") from error
        if response.status_code != requests.codes.ok:
            code = _code_of(response.status_code)
            raise _error(name, self.host_port, code, document.get("error", document))
        return document


def _parse(document, message):
    """Read JSON into a message; a newer server may know fields that we do not."""
    return json_format.ParseDict(document, message, ignore_unknown_fields=True)


def _path(name, version=None):
    path = f"/v1/models/{urllib.parse.quote(name, safe='')}"
    return path if version is None else f"{path}/versions/{version}"


def _base64(value):
    """Write `bytes`, the only thing in an array that JSON does not know."""
    return {"b64": base64.b64encode(value).decode()}


def _read_columns(answer, outputs):
    if len(outputs) == 1:
        answer = dict.fromkeys(outputs, answer)
    return {
        name: np.array(answer[name], tf.as_dtype(info.dtype).as_numpy_dtype)
        for name, info in outputs.items()
    }


def _as_text(array):
    if array.dtype != object:
        return array
    text = [value.decode(errors="replace") for value in array.flat]
    return np.array(text, object).reshape(array.shape)


def _version_statuses(response):
    return sorted(
        VersionStatus(
            item.version,
            get_model_status_pb2.ModelVersionStatus.State.Name(item.state),
            item.status.error_message,
        )
        for item in response.model_version_status
    )


def _code_of(http_status):
    """Return the likeliest code: the first of those that share an HTTP status."""
    return next((code for code, status in HTTP_STATUS.items() if status == http_status), "UNKNOWN")


def _error(name, host_port, code, words):
    advice = _ADVICE.get(code, _OTHER_ADVICE)
    # Behind the first line stand nodes of the graph, which tell a user nothing.
    said = words.strip().splitlines()[0].rstrip(".") if words.strip() else "no reason"
    return ServingError(
        f"Expected an answer about model '{name}' from {host_port}. "
        f"Received: {code}: {said}. {advice}"
    )
