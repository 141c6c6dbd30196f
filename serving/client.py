"""Clients of a model server, TensorFlow Serving or the stand-in: one over REST, one over gRPC.

Both have the same methods and return the same values.
"""

import abc
import base64
import enum
import json
import math
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import grpc
import numpy as np
import requests
import tensorflow as tf
import urllib3
from google.protobuf import json_format
from numpy.typing import ArrayLike
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_mas.errors import UsageError

from . import rest_json
from .protocol import HTTP_STATUS, MESSAGE_LIMITS
from .runtime import DEFAULT_SIGNATURE

_Result = TypeVar("_Result")

_POLL_SECONDS = 0.2
_EXCERPT_CHARACTERS = 200
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
    """A model server refused a request, failed or could not be reached; the message says why."""


class VersionStatus(NamedTuple):
    """State of one version of a served model."""

    version: int
    state: str
    """START, LOADING, AVAILABLE, UNLOADING, END or UNKNOWN."""
    error: str
    """Why the version is not available, as the server puts it; "" if nothing went wrong."""


class Readiness(enum.Enum):
    """What the states of a model's versions mean to a client that waits for the newest."""

    AVAILABLE = "available"
    WAITING = "waiting"
    FAILED = "failed"


def readiness(statuses: Sequence[VersionStatus]) -> Readiness:
    """Tell whether the newest version answers requests, may do so later, or never will.

    Args:
        statuses: States of all versions; may be empty.

    Returns:
        A `Readiness`. The state END is final: the version failed to load or was unloaded.
    """
    if not statuses:
        return Readiness.WAITING
    finals = {"AVAILABLE": Readiness.AVAILABLE, "END": Readiness.FAILED}
    return finals.get(max(statuses).state, Readiness.WAITING)


class _Client(abc.ABC):
    """The methods of both clients.

    Args:
        host_port: Where the server listens, as `localhost:8500`.
        timeout: Seconds to wait for an answer, over REST for each next part of it.

    Raises:
        UsageError: If `timeout` is not a positive finite number.
    """

    def __init__(self, host_port: str, *, timeout: float = 10.0):
        if not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
            raise UsageError(
                f"Expected `timeout` to be a positive number of seconds. Received: {timeout!r}."
            )
        self.host_port = host_port
        self.timeout = timeout

    def predict(
        self,
        name: str,
        inputs: Mapping[str, ArrayLike],
        *,
        signature: str = DEFAULT_SIGNATURE,
        version: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Run a signature of a model on one batch of inputs.

        Args:
            name: Name of the model.
            inputs: Mapping from input name to array, of the signature's dtypes and shapes. Lists of
                Python floats are taken for float32.
            signature: Name of the signature; each task has its own.
            version: Version to use. Default: the latest that the server has loaded.

        Returns:
            Dict from output name to array of the signature's dtype; strings are object arrays of
            `str`.

        Raises:
            UsageError: If an input cannot be written as a tensor.
            ServingError: If the server refuses the request, fails, does not answer, or answers
                with something other than the outputs of the signature.
        """
        tensors = {key: _tensor_proto(key, value) for key, value in inputs.items()}
        return self._predict(name, tensors, signature, version)

    def signatures(self, name: str, *, version: int | None = None) -> Mapping[str, Any]:
        """Return the signatures of a model.

        Args:
            name: Name of the model.
            version: Version to ask about. Default: the latest that the server has loaded.

        Returns:
            Mapping from signature name to `SignatureDef`.

        Raises:
            ServingError: If the server does not know the model, does not answer, or answers with
                something else.
        """
        return self._metadata(name, version)[0]

    def status(self, name: str) -> list[VersionStatus]:
        """Return the state of every version of a model.

        Args:
            name: Name of the model.

        Returns:
            List of `VersionStatus` by ascending version.

        Raises:
            ServingError: If the server does not know the model or does not answer.
        """
        return self._status(name, self.timeout)

    def wait_until_available(self, name: str, timeout: float) -> int:
        """Wait until the newest version of a model answers requests.

        The server need not be up yet, nor know the model yet.

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
    def close(self) -> None:
        """Close the connection."""

    @abc.abstractmethod
    def _predict(
        self, name: str, tensors: Mapping[str, Any], signature: str, version: int | None
    ) -> dict[str, np.ndarray]: ...

    @abc.abstractmethod
    def _metadata(self, name: str, version: int | None) -> tuple[Mapping[str, Any], int]:
        """Return the signatures of a version, and the number of the version if it was None."""

    @abc.abstractmethod
    def _status(self, name: str, seconds: float) -> list[VersionStatus]: ...

    def _try_status(self, name: str, seconds: float) -> tuple[list[VersionStatus], str]:
        """Return the states, perhaps none, and a sentence that describes the newest."""
        try:
            statuses = self._status(name, min(seconds, self.timeout))
        except ServingError as error:
            return [], str(error)
        if not statuses:
            return [], "no version."
        version, state, reason = max(statuses)
        return statuses, f"version {version} in state {state}. {reason}".strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class GrpcClient(_Client):
    """Client of a model server's gRPC port, by default 8500."""

    def __init__(self, host_port: str, *, timeout: float = 10.0):
        super().__init__(host_port, timeout=timeout)
        # By default a channel waits longer after each failure, up to two minutes, even if the
        # server is up again.
        options = [*MESSAGE_LIMITS, ("grpc.max_reconnect_backoff_ms", 1000)]
        self._channel = grpc.insecure_channel(host_port, options=options)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _predict(
        self, name: str, tensors: Mapping[str, Any], signature: str, version: int | None
    ) -> dict[str, np.ndarray]:
        spec = model_pb2.ModelSpec(name=name, signature_name=signature)
        if version is not None:
            spec.version.value = version
        request = predict_pb2.PredictRequest(model_spec=spec, inputs=tensors)
        response = self._call(self._predictions.Predict, request, self.timeout)
        try:
            return {
                key: _as_text(tf.make_ndarray(proto)) for key, proto in response.outputs.items()
            }
        except (TypeError, ValueError) as error:
            message = f"an output that is no tensor ({error})"
            raise _error(name, self.host_port, "UNKNOWN", message) from error

    def _metadata(self, name: str, version: int | None) -> tuple[Mapping[str, Any], int]:
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=model_pb2.ModelSpec(name=name), metadata_field=["signature_def"]
        )
        if version is not None:
            request.model_spec.version.value = version
        response = self._call(self._predictions.GetModelMetadata, request, self.timeout)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return signatures.signature_def, response.model_spec.version.value

    def _status(self, name: str, seconds: float) -> list[VersionStatus]:
        request = get_model_status_pb2.GetModelStatusRequest(
            model_spec=model_pb2.ModelSpec(name=name)
        )
        return _version_statuses(self._call(self._models.GetModelStatus, request, seconds))

    def _call(self, method: Callable[..., Any], request: Any, seconds: float) -> Any:
        try:
            return method(request, timeout=seconds)
        except grpc.RpcError as error:
            name = request.model_spec.name
            raise _error(name, self.host_port, error.code().name, error.details()) from error


class RestClient(_Client):
    """Client of a model server's REST port, by default 8501."""

    def __init__(self, host_port: str, *, timeout: float = 10.0):
        super().__init__(host_port, timeout=timeout)
        self._session = requests.Session()

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _predict(
        self, name: str, tensors: Mapping[str, Any], signature: str, version: int | None
    ) -> dict[str, np.ndarray]:
        signatures, version = self._metadata(name, version)
        if signature not in signatures:
            message = f'signature "{signature}" not found among {", ".join(sorted(signatures))}'
            raise _error(name, self.host_port, "INVALID_ARGUMENT", message)
        columns = {key: tf.make_ndarray(proto).tolist() for key, proto in tensors.items()}
        body = json.dumps({"signature_name": signature, "inputs": columns}, default=_base64)

        def read(document: dict[str, Any]) -> dict[str, np.ndarray]:
            outputs = rest_json.read_outputs(document, signatures[signature].outputs)
            return {key: _as_text(array) for key, array in outputs.items()}

        path = f"{_path(name, version)}:predict"
        return self._call("POST", name, path, self.timeout, read, data=body)

    def _status(self, name: str, seconds: float) -> list[VersionStatus]:
        def read(document: dict[str, Any]) -> list[VersionStatus]:
            if "model_version_status" not in document:
                raise KeyError("model_version_status")
            response = get_model_status_pb2.GetModelStatusResponse()
            return _version_statuses(_parse(document, response))

        return self._call("GET", name, _path(name), seconds, read)

    def _metadata(self, name: str, version: int | None) -> tuple[Mapping[str, Any], int]:
        """Return the signatures of a version, and the number of the version if it was None.

        JSON carries neither dtypes nor, with a single output, its name; the signature has both.
        """

        def read(document: dict[str, Any]) -> tuple[Mapping[str, Any], int]:
            signatures = get_model_metadata_pb2.SignatureDefMap()
            _parse(document["metadata"]["signature_def"], signatures)
            return signatures.signature_def, int(document["model_spec"]["version"])

        return self._call("GET", name, f"{_path(name, version)}/metadata", self.timeout, read)

    def _call(
        self,
        method: str,
        name: str,
        path: str,
        seconds: float,
        read: Callable[[dict[str, Any]], _Result],
        **arguments: Any,
    ) -> _Result:
        """Send a request; return what `read` makes of the JSON object in the response."""
        url = f"http://{self.host_port}{path}"
        try:
            response = self._session.request(method, url, timeout=seconds, **arguments)
        except requests.Timeout as error:
            message = f"no answer within {seconds} s"
            raise _error(name, self.host_port, "DEADLINE_EXCEEDED", message) from error
        except (requests.RequestException, ValueError) as error:
            message = _connection_failure(error)
            raise _error(name, self.host_port, "UNAVAILABLE", message) from error
        document = _json_object(response)
        if response.status_code != requests.codes.ok:
            code = _code_of(response.status_code)
            reason = document.get("error")
            message = reason if isinstance(reason, str) else _describe(response)
            raise _error(name, self.host_port, code, message)
        try:
            return read(document)
        except _UNREADABLE as error:
            message = f"{_describe(response)}, which is no answer to the request"
            raise _error(name, self.host_port, "UNKNOWN", message) from error


# What reading a document of another form raises.
_UNREADABLE = (LookupError, TypeError, ValueError, json_format.Error, tf.errors.OpError)


def _json_object(response: requests.Response) -> dict[str, Any]:
    """Return the JSON object in a response, or an empty one if there is none."""
    try:
        document = json.loads(response.content)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _describe(response: requests.Response) -> str:
    text = " ".join(response.text.split())
    if len(text) > _EXCERPT_CHARACTERS:
        text = text[:_EXCERPT_CHARACTERS] + "…"
    body = f"the body '{text}'" if text else "an empty body"
    return f"HTTP status {response.status_code} with {body}"


def _connection_failure(error: Exception) -> str:
    causes = list(_causes(error))
    if not isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError):
        return f"no valid address ({error})"
    reason = next((c.strerror for c in causes if isinstance(c, OSError) and c.strerror), None)
    unreachable = any(isinstance(c, urllib3.exceptions.NewConnectionError) for c in causes)
    failure = "no connection" if unreachable else "the connection broke off"
    return f"{failure} ({reason})" if reason else failure


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _parse(document: Any, message: Any) -> Any:
    """Read JSON into a message; a newer server may send fields that are unknown here."""
    return json_format.ParseDict(document, message, ignore_unknown_fields=True)


def _path(name: str, version: int | None = None) -> str:
    path = f"/v1/models/{urllib.parse.quote(name, safe='')}"
    return path if version is None else f"{path}/versions/{version}"


def _base64(value: bytes) -> dict[str, str]:
    """Write `bytes`, the only thing in an array that JSON does not know."""
    return {"b64": base64.b64encode(value).decode()}


def _tensor_proto(name: str, value: ArrayLike) -> Any:
    try:
        return tf.make_tensor_proto(value)
    except (TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UsageError(
            f"Expected input '{name}' to be an array of numbers, booleans or strings. "
            f"Received: {type(value).__name__} ({reason})."
        ) from error


def _as_text(array: np.ndarray) -> np.ndarray:
    if array.dtype != object:
        return array
    text = [value.decode(errors="replace") for value in array.flat]
    return np.array(text, object).reshape(array.shape)


def _version_statuses(response: Any) -> list[VersionStatus]:
    states = get_model_status_pb2.ModelVersionStatus.State
    return sorted(
        VersionStatus(
            item.version,
            states.Name(item.state) if item.state in states.values() else "UNKNOWN",
            item.status.error_message,
        )
        for item in response.model_version_status
    )


def _code_of(http_status: int) -> str:
    """Return the likeliest code: the first of those that share an HTTP status."""
    return next((code for code, status in HTTP_STATUS.items() if status == http_status), "UNKNOWN")


def _error(name: str, host_port: str, code: str, message: str | None) -> ServingError:
    advice = _ADVICE.get(code, _OTHER_ADVICE)
    # The lines from the first with brackets list nodes of the graph.
    lines = [" ".join((message or "no reason").partition("\n\t [[")[0].split())]
    return ServingError(
        f"Expected an answer about model '{name}' from {host_port}. "
        f"Received: {code}: {lines[0].rstrip('.')}. {advice}"
    )
