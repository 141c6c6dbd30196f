"""Clients of a model server, TensorFlow Serving or the stand-in: one over REST, one over gRPC.

Both have the same methods and return the same values, and both keep their connections and may be
used by several threads at once. Neither imports Keras or TensorFlow.
"""

import abc
import base64
import enum
import json
import random
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from google.protobuf import json_format
from numpy.typing import ArrayLike

from keras_mas.errors import UsageError

from . import messages
from .conventions import DEFAULT_SIGNATURE, HTTP_STATUS, LONGEST_SECONDS

_Result = TypeVar("_Result")
_Arrays = dict[str, np.ndarray]

_POLL_SECONDS = 0.2
_EXCERPT_CHARACTERS = 200
_READ_BYTES = 2**20
_ADVICE = {
    "INVALID_ARGUMENT": "Compare the request with the signatures in the model's metadata.",
    "FAILED_PRECONDITION": "Compare the request with the signatures in the model's metadata.",
    "NOT_FOUND": "Check the name and the version against the status of the model.",
    "RESOURCE_EXHAUSTED": "Send fewer inputs at once, or try again later.",
    "UNAVAILABLE": "Start the server, or correct its host and port, and whether it speaks TLS.",
    "DEADLINE_EXCEEDED": "Allow more time, or send fewer inputs at once.",
}
_OTHER_ADVICE = "The log of the server may say more."

# What both libraries say of an answer to their TLS handshake that is none.
_NO_TLS = "WRONG_VERSION_NUMBER"

# Before the first retry the client waits so long, and twice as long before each further one.
_FIRST_WAIT_SECONDS = 0.1


class ServingError(RuntimeError):
    """A model server refused a request, failed or could not be reached; the message says why.

    Attributes:
        code: Name of the gRPC status code that says what kind of error it was, also over REST.
    """

    def __init__(self, message: str, code: str = "UNKNOWN"):
        super().__init__(message)
        self.code = code


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
        statuses: States of all versions, in any order; may be empty.

    Returns:
        A `Readiness`. The state END is final: the version failed to load, or was unloaded.
    """
    if not statuses:
        return Readiness.WAITING
    finals = {"AVAILABLE": Readiness.AVAILABLE, "END": Readiness.FAILED}
    return finals.get(newest(statuses).state, Readiness.WAITING)


def newest(statuses: Sequence[VersionStatus]) -> VersionStatus:
    """Return the newest version of those that have not been unloaded, as after a rollback.

    A server goes on to list versions that it has unloaded, with the state END and no error.

    Args:
        statuses: States of all versions, in any order; one or more.
    """
    leaving = {"UNLOADING", "END"}
    staying = [each for each in statuses if each.error or each.state not in leaving]
    return max(staying or statuses)


@dataclass(frozen=True)
class Tls:
    """How a connection is encrypted, and who proves to be whom; all files are in PEM.

    Attributes:
        roots: Certificates of the authorities that the server's certificate is checked against;
            None for those that the machine trusts.
        certificate: The client's own certificate, for a server that asks for one; or None.
        key: Its private key; given if and only if `certificate` is.

    Raises:
        UsageError: If there is a certificate without a key or the reverse, or no such file.
    """

    roots: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self):
        if (self.certificate is None) != (self.key is None):
            raise UsageError(
                "Expected a client's certificate and its key, or neither. Received: "
                f"certificate {self.certificate}, key {self.key}. Name both files."
            )
        for file in filter(None, (self.roots, self.certificate, self.key)):
            if "-----BEGIN " not in _text(file):
                raise UsageError(
                    f"Expected certificates or a key in PEM in '{file}'. Received: a file without "
                    "'-----BEGIN'. Convert it, for example with `openssl x509 -inform der`."
                )


def _text(file: Path) -> str:
    try:
        return Path(file).read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise UsageError(
            f"Expected certificates or a key in PEM in '{file}'. Received: "
            f"{(error.strerror or str(error)).lower()}. Correct the path."
        ) from error


class _Client(abc.ABC):
    """The methods of both clients.

    A request that the server could not take, because it cannot be reached, is just starting or
    closes the connection (UNAVAILABLE), is sent again after 0.1 s, 0.2 s and so on, each shortened
    by up to a half at random, as long as `timeout` allows. That is safe because every request of
    this client only asks. What was answered, or ran out of time, is not sent again.

    Args:
        host_port: Where the server listens, as `localhost:8500`.
        timeout: Seconds that a request may take, with its retries.
        retries: How often a request is sent again at most, ≥ 0.
        tls: How the connection is encrypted; None for a connection that is not.

    Raises:
        UsageError: If `timeout` is no positive number up to `LONGEST_SECONDS`, or `retries` no
            integer ≥ 0.
    """

    def __init__(
        self,
        host_port: str,
        *,
        timeout: float = 10.0,
        retries: int = 2,
        tls: Tls | None = None,
    ):
        if not isinstance(timeout, int | float) or not 0 < timeout <= LONGEST_SECONDS:
            raise UsageError(
                "Expected `timeout` to be a positive number of seconds, "
                f"{LONGEST_SECONDS:,} at most. Received: {timeout!r}."
            )
        if type(retries) is not int or retries < 0:
            raise UsageError(f"Expected `retries` to be an integer ≥ 0. Received: {retries!r}.")
        self.host_port = host_port
        self.timeout = timeout
        self.retries = retries
        self.tls = tls

    def predict(
        self,
        name: str,
        inputs: Mapping[str, ArrayLike],
        *,
        signature: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        label: str | None = None,
        batch_size: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Run a signature of a model on one batch of inputs.

        Args:
            name: Name of the model.
            inputs: Mapping from input name to array, of the signature's dtypes and shapes. Lists of
                Python floats are taken for float32.
            signature: Name of the signature; each task has its own.
            version: Version to use. Default: the latest that the server has loaded.
            label: Label of the version to use instead, such as "canary".
            batch_size: Inputs per request, ≥ 1. More are sent in several requests, one after the
                other, which the same version answers. Default: all in one.

        Returns:
            Dict from output name to array of the signature's dtype; strings are object arrays of
            `str`.

        Raises:
            UsageError: If an input cannot be written as a tensor, both a version and a label are
                given, or inputs cannot be divided.
            ServingError: If the server refuses the request, fails, does not answer, or answers
                with something other than the outputs of the signature.
        """
        if version is not None and label is not None:
            raise UsageError(
                f"Expected a version or a label of '{name}', which names one. Received: version "
                f"{version} and label '{label}'."
            )
        arrays = {key: _as_array(key, value) for key, value in inputs.items()}
        answers = []
        for batch in _batches(arrays, batch_size):
            which = _Which(name, version, label)
            answer, version = self._retried(partial(self._predict, which, batch, signature))
            label = None  # it may move to another version meanwhile
            answers.append(answer)
        return _joined(answers)

    def signatures(
        self, name: str, *, version: int | None = None, label: str | None = None
    ) -> Mapping[str, Any]:
        """Return the signatures of a model.

        Args:
            name: Name of the model.
            version: Version to ask about. Default: the latest that the server has loaded.
            label: Label of the version to ask about instead.

        Returns:
            Mapping from signature name to a message with the fields of TensorFlow's `SignatureDef`.

        Raises:
            ServingError: If the server does not know the model, does not answer, or answers with
                something else.
        """
        which = _Which(name, version, label)
        return self._retried(lambda seconds: self._metadata(which, seconds))[0]

    def status(self, name: str) -> list[VersionStatus]:
        """Return the state of every version of a model.

        Args:
            name: Name of the model.

        Returns:
            List of `VersionStatus` by ascending version.

        Raises:
            ServingError: If the server does not know the model or does not answer.
        """
        return self._retried(lambda seconds: self._status(name, seconds))

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
                return newest(statuses).version
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
        self, which: "_Which", arrays: _Arrays, signature: str, seconds: float
    ) -> tuple[_Arrays, int | None]:
        """Return the outputs, and the version that answered, if the server says so."""

    @abc.abstractmethod
    def _metadata(self, which: "_Which", seconds: float) -> tuple[Mapping[str, Any], int]:
        """Return the signatures of a version, and its number."""

    @abc.abstractmethod
    def _status(self, name: str, seconds: float) -> list[VersionStatus]: ...

    def _retried(self, call: Callable[[float], _Result]) -> _Result:
        """Call a function with the seconds that it may take, again while there is no server."""
        deadline = time.monotonic() + self.timeout
        seconds, wait = self.timeout, _FIRST_WAIT_SECONDS
        for left in range(self.retries, -1, -1):
            try:
                return call(seconds)
            except ServingError as error:
                pause = wait * random.uniform(0.5, 1.0)
                seconds = deadline - time.monotonic() - pause
                if error.code != "UNAVAILABLE" or not left or seconds <= 0:
                    raise
            time.sleep(pause)
            wait *= 2
        raise AssertionError  # the last attempt returns or raises

    def _try_status(self, name: str, seconds: float) -> tuple[list[VersionStatus], str]:
        """Return the states, perhaps none, and a sentence that describes the newest."""
        try:
            statuses = self._status(name, min(seconds, self.timeout))
        except ServingError as error:
            return [], str(error)
        if not statuses:
            return [], "no version."
        version, state, reason = newest(statuses)
        return statuses, f"version {version} in state {state}. {reason}".strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Which(NamedTuple):
    """What a request is about: a model, and if given, its version by number or label."""

    name: str
    version: int | None = None
    label: str | None = None


class GrpcClient(_Client):
    """Client of a model server's gRPC port, by default 8500."""

    def __init__(self, host_port: str, **options: Any):
        import grpc  # which a client over REST need not wait for

        super().__init__(host_port, **options)
        settings = [
            # How large a message may be is the server's to say. gRPC's own limit, 4 MB, holds only
            # six float32 images of 224 × 224.
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            # By default a channel waits longer after each failure, up to two minutes, even if the
            # server is up again.
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self._rpc_error = grpc.RpcError
        if self.tls is None:
            self._channel = grpc.insecure_channel(host_port, options=settings)
        else:
            files = (self.tls.roots, self.tls.key, self.tls.certificate)
            pems = [None if file is None else Path(file).read_bytes() for file in files]
            credentials = grpc.ssl_channel_credentials(*pems)
            self._channel = grpc.secure_channel(host_port, credentials, options=settings)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _predict(
        self, which: _Which, arrays: _Arrays, signature: str, seconds: float
    ) -> tuple[_Arrays, int | None]:
        tensors = {key: messages.tensor_of(array) for key, array in arrays.items()}
        spec = _spec(which, signature_name=signature)
        request = messages.PredictRequest(model_spec=spec, inputs=tensors)
        response = self._call(
            "PredictionService/Predict", request, messages.PredictResponse, seconds
        )
        try:
            outputs = {key: messages.array_of(proto) for key, proto in response.outputs.items()}
        except (TypeError, ValueError) as error:
            message = f"an output that is no tensor ({error})"
            raise _error(which.name, self.host_port, "UNKNOWN", message) from error
        answered = response.model_spec.version.value
        return {key: _as_text(array) for key, array in outputs.items()}, answered or which.version

    def _metadata(self, which: _Which, seconds: float) -> tuple[Mapping[str, Any], int]:
        request = messages.GetModelMetadataRequest(
            model_spec=_spec(which), metadata_field=["signature_def"]
        )
        response = self._call(
            "PredictionService/GetModelMetadata",
            request,
            messages.GetModelMetadataResponse,
            seconds,
        )
        signatures = messages.SignatureDefMap.FromString(response.metadata["signature_def"].value)
        return signatures.signature_def, response.model_spec.version.value

    def _status(self, name: str, seconds: float) -> list[VersionStatus]:
        request = messages.GetModelStatusRequest(model_spec=_spec(_Which(name)))
        response = self._call(
            "ModelService/GetModelStatus", request, messages.GetModelStatusResponse, seconds
        )
        return _version_statuses(response)

    def _call(self, method: str, request: Any, response: Any, seconds: float) -> Any:
        call = self._channel.unary_unary(
            f"/tensorflow.serving.{method}",
            request_serializer=_serialized,
            response_deserializer=response.FromString,
        )
        try:
            return call(request, timeout=seconds)
        except self._rpc_error as error:
            name = request.model_spec.name
            raise _error(name, self.host_port, error.code().name, error.details()) from error


class RestClient(_Client):
    """Client of a model server's REST port, by default 8501."""

    def __init__(self, host_port: str, **options: Any):
        import urllib3  # which a client over gRPC need not wait for

        super().__init__(host_port, **options)
        files: dict[str, Any] = {}
        if self.tls is not None:
            names = ("ca_certs", "cert_file", "key_file")
            paths = (self.tls.roots, self.tls.certificate, self.tls.key)
            files = {name: str(path) for name, path in zip(names, paths, strict=True) if path}
        self._scheme = "http" if self.tls is None else "https"
        self._pool = urllib3.PoolManager(maxsize=32, retries=False, **files)
        self._signatures: dict[_Which, Mapping[str, Any]] = {}

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _predict(
        self, which: _Which, arrays: _Arrays, signature: str, seconds: float
    ) -> tuple[_Arrays, int | None]:
        deadline = time.monotonic() + seconds
        signatures, version = self._metadata(which, seconds)
        if signature not in signatures:
            message = f'signature "{signature}" not found among {", ".join(sorted(signatures))}'
            raise _error(which.name, self.host_port, "INVALID_ARGUMENT", message)
        columns = {key: array.tolist() for key, array in arrays.items()}
        body = json.dumps({"signature_name": signature, "inputs": columns}, default=_base64)

        def read(document: dict[str, Any]) -> _Arrays:
            return _outputs(document["outputs"], signatures[signature].outputs)

        path = f"{_path(_Which(which.name, version))}:predict"
        seconds = max(deadline - time.monotonic(), 0.001)
        return self._call("POST", which.name, path, seconds, read, body=body.encode()), version

    def _status(self, name: str, seconds: float) -> list[VersionStatus]:
        def read(document: dict[str, Any]) -> list[VersionStatus]:
            if "model_version_status" not in document:
                raise KeyError("model_version_status")
            return _version_statuses(_parse(document, messages.GetModelStatusResponse()))

        return self._call("GET", name, _path(_Which(name)), seconds, read)

    def _metadata(self, which: _Which, seconds: float) -> tuple[Mapping[str, Any], int]:
        """Return the signatures of a version, and its number.

        JSON carries neither dtypes nor, with a single output, its name; the signature has both.
        Those of a version never change, so they are asked for once.
        """

        def read(document: dict[str, Any]) -> tuple[Mapping[str, Any], int]:
            signatures = messages.SignatureDefMap()
            _parse(document["metadata"]["signature_def"], signatures)
            return signatures.signature_def, int(document["model_spec"]["version"])

        known = self._signatures.get(which)
        if known is not None and which.version is not None:
            return known, which.version
        path = f"{_path(which)}/metadata"
        signatures, version = self._call("GET", which.name, path, seconds, read)
        self._signatures[_Which(which.name, version)] = signatures
        return signatures, version

    def _call(
        self,
        method: str,
        name: str,
        path: str,
        seconds: float,
        read: Callable[[dict[str, Any]], _Result],
        body: bytes | None = None,
    ) -> _Result:
        """Send a request; return what `read` makes of the JSON object in the response."""
        status, content = self._exchange(method, name, path, seconds, body)
        document = _json_object(content)
        if status != 200:
            reason = document.get("error")
            message = reason if isinstance(reason, str) else _describe(status, content)
            raise _error(name, self.host_port, _code_of(status), message)
        try:
            return read(document)
        except _UNREADABLE as error:
            message = f"{_describe(status, content)}, which is no answer to the request"
            raise _error(name, self.host_port, "UNKNOWN", message) from error

    def _exchange(
        self, method: str, name: str, path: str, seconds: float, body: bytes | None
    ) -> tuple[int, bytes]:
        """Send a request; return the status and the body of the response."""
        from urllib3 import exceptions

        url = f"{self._scheme}://{self.host_port}{path}"
        deadline = time.monotonic() + seconds
        late = _error(
            name, self.host_port, "DEADLINE_EXCEEDED", f"no answer within {seconds:.3g} s"
        )
        try:
            response = self._pool.request(
                method, url, body=body, timeout=seconds, preload_content=False
            )
            # A timeout of urllib3 is for each part of the answer; the deadline is for all of it.
            parts = []
            while part := response.read1(_READ_BYTES):
                parts.append(part)
                if time.monotonic() > deadline:
                    response.close()
                    raise late
            response.release_conn()
        except exceptions.NewConnectionError as error:  # a kind of timeout to urllib3
            raise _unavailable(name, self.host_port, error) from error
        except exceptions.TimeoutError as error:
            raise late from error
        except (exceptions.HTTPError, OSError, ValueError) as error:
            raise _unavailable(name, self.host_port, error) from error
        return response.status, b"".join(parts)


# What reading a document of another form raises.
_UNREADABLE = (LookupError, TypeError, ValueError, OverflowError, json_format.Error)


def _as_array(name: str, value: ArrayLike) -> np.ndarray:
    try:
        return messages.as_array(value)
    except (TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UsageError(
            f"Expected input '{name}' to be an array of numbers, booleans or strings. "
            f"Received: {type(value).__name__} ({reason})."
        ) from error


def _batches(arrays: _Arrays, batch_size: int | None) -> Iterator[_Arrays]:
    """Yield the inputs in parts of at most so many."""
    if batch_size is None:
        yield arrays
        return
    if type(batch_size) is not int or batch_size < 1:
        raise UsageError(f"Expected `batch_size` to be an integer ≥ 1. Received: {batch_size!r}.")
    counts = {name: array.shape[:1] for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or () in counts.values():
        shapes = ", ".join(f"'{name}' {list(array.shape)}" for name, array in arrays.items())
        raise UsageError(
            "Expected inputs [N, …] of one N, to divide them into batches. Received: "
            f"{shapes or 'none'}. Leave `batch_size` out."
        )
    [count] = next(iter(counts.values()))
    for start in range(0, max(count, 1), batch_size):
        yield {name: array[start : start + batch_size] for name, array in arrays.items()}


def _joined(answers: list[_Arrays]) -> _Arrays:
    """Return the outputs of all inputs."""
    if len(answers) == 1:
        return answers[0]
    if whole := sorted(name for name, array in answers[0].items() if not array.ndim):
        raise UsageError(
            "Expected outputs [N, …], to join those of several requests. Received: no row per "
            f"input in {', '.join(whole)}. Leave `batch_size` out."
        )
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def _spec(which: _Which, **more: str) -> Any:
    spec = messages.ModelSpec(name=which.name, **more)
    if which.version is not None:
        spec.version.value = which.version
    if which.label is not None:
        spec.version_label = which.label
    return spec


def _serialized(request: Any) -> bytes:
    try:
        return request.SerializeToString()
    except Exception as error:  # the class differs between implementations of protobuf
        raise UsageError(
            "Expected a request below 2 GiB, the most that a message may have. Received: "
            f"{error}. Divide it with `batch_size`."
        ) from error


def _outputs(value: Any, infos: Mapping[str, Any]) -> _Arrays:
    """Read the tensors of a response, or the bare value of the only one."""
    if len(infos) == 1 and not isinstance(value, dict):
        value = dict.fromkeys(infos, value)
    if not isinstance(value, dict) or value.keys() != infos.keys():
        raise ValueError("other outputs than the signature's")
    return {
        name: _output(value[name], messages.dtype_of(info.dtype)) for name, info in infos.items()
    }


def _output(value: Any, dtype: np.dtype) -> np.ndarray:
    """Read nested lists as an array of a type; ValueError if they are ragged or of another."""
    array = np.array(value)
    if not array.size:
        return np.empty(array.shape, dtype)
    if dtype.kind == "O":
        items = np.array(value, object)
        return np.array([_string(item) for item in items.flat], object).reshape(items.shape)
    kinds = {"f": "fiu", "b": "b"}.get(dtype.kind, "iu")
    if array.dtype.kind not in kinds:
        raise ValueError(f"{array.dtype} instead of {dtype}")
    return np.array(value, dtype)


def _string(item: Any) -> str:
    if isinstance(item, dict):
        return base64.b64decode(item["b64"], validate=True).decode(errors="replace")
    if not isinstance(item, str):
        raise ValueError(f"{type(item).__name__} instead of a string")
    return item


def _json_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object in a response, or an empty one if there is none."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _describe(status: int, content: bytes) -> str:
    text = " ".join(content.decode(errors="replace").split())
    if len(text) > _EXCERPT_CHARACTERS:
        text = text[:_EXCERPT_CHARACTERS] + "…"
    body = f"the body '{text}'" if text else "an empty body"
    return f"HTTP status {status} with {body}"


def _unavailable(name: str, host_port: str, error: Exception) -> ServingError:
    return _error(name, host_port, "UNAVAILABLE", _connection_failure(error))


def _connection_failure(error: Exception) -> str:
    from urllib3 import exceptions

    if isinstance(error, exceptions.SSLError):
        return f"no encrypted connection ({_reason(error)})"
    if isinstance(error, exceptions.LocationValueError | UnicodeError):
        return f"no valid address ({error})"
    unreachable = isinstance(error, exceptions.NewConnectionError)
    reason = _reason(error)
    failure = "no connection" if unreachable else "the connection broke off"
    return f"{failure} ({reason})" if reason else failure


def _reason(error: Exception) -> str:
    return next((c.strerror for c in _causes(error) if isinstance(c, OSError) and c.strerror), "")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _parse(document: Any, message: Any) -> Any:
    """Read JSON into a message; a newer server may send fields that are unknown here."""
    return json_format.ParseDict(document, message, ignore_unknown_fields=True)


def _path(which: _Which) -> str:
    path = f"/v1/models/{urllib.parse.quote(which.name, safe='')}"
    if which.label is not None:
        return f"{path}/labels/{urllib.parse.quote(which.label, safe='')}"
    return path if which.version is None else f"{path}/versions/{which.version}"


def _base64(value: bytes) -> dict[str, str]:
    """Write `bytes`, the only thing in an array that JSON does not know."""
    return {"b64": base64.b64encode(value).decode()}


def _as_text(array: np.ndarray) -> np.ndarray:
    if array.dtype != object:
        return array
    text = [value.decode(errors="replace") for value in array.flat]
    return np.array(text, object).reshape(array.shape)


def _version_statuses(response: Any) -> list[VersionStatus]:
    return sorted(
        VersionStatus(
            item.version, messages.STATES.get(item.state, "UNKNOWN"), item.status.error_message
        )
        for item in response.model_version_status
    )


def _code_of(http_status: int) -> str:
    """Return the likeliest code: the first of those that share an HTTP status."""
    return next((code for code, status in HTTP_STATUS.items() if status == http_status), "UNKNOWN")


def _error(name: str, host_port: str, code: str, message: str | None) -> ServingError:
    advice = _ADVICE.get(code, _OTHER_ADVICE)
    if "servable version label" in (message or ""):
        advice = f"`keras-mas status {name}` shows which versions have labels."
    elif "request: Specific(" in (message or ""):
        advice = (
            f"`keras-mas status {name}` shows which versions are loaded: without labels only the "
            "newest one, and with labels those that have one."
        )
    if _NO_TLS in (message or ""):
        message = "no encrypted connection, for what answers does not speak TLS"
        advice = "Connect without TLS, or correct the port."
    # The lines from the first with brackets list nodes of the graph.
    lines = [" ".join((message or "no reason").partition("\n\t [[")[0].split())]
    return ServingError(
        f"Expected an answer about model '{name}' from {host_port}. "
        f"Received: {code}: {lines[0].rstrip('.')}. {advice}",
        code,
    )
