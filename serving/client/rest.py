"""The client of a server's REST port."""

import base64
import json
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
from google.protobuf import json_format

from keras_mas.errors import UsageError

from .. import messages
from ..conventions import HTTP_STATUS
from .base import Client, Which
from .batches import Arrays
from .errors import NO_HANDSHAKE, ServingError, error_of
from .versions import VersionStatus, statuses_of

_Result = TypeVar("_Result")

# An HTTP server refuses a request above its limit before it is parsed; over gRPC it is this code.
_TOO_LARGE = {413: "RESOURCE_EXHAUSTED"}

_EXCERPT_CHARACTERS = 200
_READ_BYTES = 2**20

# What reading a document of another form raises.
_UNREADABLE = (LookupError, TypeError, ValueError, OverflowError, json_format.Error)


class RestClient(Client):
    """Client of a model server's REST port, by default 8501."""

    def __init__(self, host_port: str, **options: Any):
        from .pool import connection_pool  # which a client over gRPC need not wait for

        super().__init__(host_port, **options)
        files: dict[str, Any] = {}
        if self.tls is not None:
            names = ("ca_certs", "cert_file", "key_file")
            paths = (self.tls.roots, self.tls.certificate, self.tls.key)
            files = {name: str(path) for name, path in zip(names, paths, strict=True) if path}
        self._scheme = "http" if self.tls is None else "https"
        self._pool = connection_pool(maxsize=32, **files)
        self._signatures: dict[Which, Mapping[str, Any]] = {}

    def _close(self) -> None:
        self._pool.clear()

    def _predict(
        self, which: Which, arrays: Arrays, signature: str, seconds: float
    ) -> tuple[Arrays, int | None]:
        _check_shapes(arrays)
        deadline = time.monotonic() + seconds
        try:
            return self._predict_once(which, arrays, signature, seconds)
        except ServingError as error:
            # The version that was the newest, or had the label, has been unloaded meanwhile.
            left = deadline - time.monotonic()
            if error.code != "NOT_FOUND" or which.version is not None or left <= 0:
                raise
        return self._predict_once(which, arrays, signature, left)

    def _predict_once(
        self, which: Which, arrays: Arrays, signature: str, seconds: float
    ) -> tuple[Arrays, int]:
        deadline = time.monotonic() + seconds
        signatures, version = self._metadata(which, seconds)
        if signature not in signatures:
            message = f'signature "{signature}" not found among {", ".join(sorted(signatures))}'
            raise error_of(which.name, self.host_port, "INVALID_ARGUMENT", message)
        columns = {key: array.tolist() for key, array in arrays.items()}
        body = json.dumps({"signature_name": signature, "inputs": columns}, default=_base64)

        def read(document: dict[str, Any]) -> Arrays:
            return _outputs(document["outputs"], signatures[signature].outputs)

        path = f"{_path(Which(which.name, version))}:predict"
        left = deadline - time.monotonic()
        if left <= 0:
            message = f"writing the request as JSON took longer than {seconds:.3g} s"
            raise error_of(which.name, self.host_port, "DEADLINE_EXCEEDED", message)
        return self._call("POST", which.name, path, left, read, body=body.encode()), version

    def _status(self, name: str, seconds: float) -> list[VersionStatus]:
        def read(document: dict[str, Any]) -> list[VersionStatus]:
            if "model_version_status" not in document:
                raise KeyError("model_version_status")
            return statuses_of(_parse(document, messages.GetModelStatusResponse()))

        return self._call("GET", name, _path(Which(name)), seconds, read)

    def _metadata(self, which: Which, seconds: float) -> tuple[Mapping[str, Any], int]:
        """Return the signatures of a version, and its number.

        JSON carries neither dtypes nor, with a single output, its name; the signature has both.
        Those of a version never change, so they are asked for once.
        """

        def read(document: dict[str, Any]) -> tuple[Mapping[str, Any], int]:
            signatures = messages.SignatureDefMap()
            _parse(document["metadata"]["signature_def"], signatures)
            return messages.functions_of(signatures.signature_def), int(
                document["model_spec"]["version"]
            )

        known = self._signatures.get(which)
        if known is not None and which.version is not None:
            return known, which.version
        path = f"{_path(which)}/metadata"
        signatures, version = self._call("GET", which.name, path, seconds, read)
        self._signatures[Which(which.name, version)] = signatures
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
            raise error_of(name, self.host_port, _code_of(status), message)
        try:
            return read(document)
        except _UNREADABLE as error:
            message = f"{_describe(status, content)}, which is no answer to the request"
            raise error_of(name, self.host_port, "UNKNOWN", message) from error

    def _exchange(
        self, method: str, name: str, path: str, seconds: float, body: bytes | None
    ) -> tuple[int, bytes]:
        """Send a request; return the status and the body of the response."""
        from urllib3 import Timeout, exceptions

        url = f"{self._scheme}://{self.host_port}{path}"
        late = error_of(
            name, self.host_port, "DEADLINE_EXCEEDED", f"no answer within {seconds:.3g} s"
        )
        try:
            response = self._pool.request(
                method, url, body=body, timeout=Timeout(total=seconds), preload_content=False
            )
            content = b"".join(iter(lambda: response.read1(_READ_BYTES), b""))
            response.release_conn()
        except exceptions.NewConnectionError as error:  # a kind of timeout to urllib3
            raise _unavailable(name, self.host_port, error) from error
        except exceptions.TimeoutError as error:
            if any("handshake" in str(cause) for cause in _causes(error)):
                message = f"{NO_HANDSHAKE} within {seconds:.3g} s"
                late = error_of(name, self.host_port, "DEADLINE_EXCEEDED", message)
            raise late from error
        except (exceptions.HTTPError, OSError, ValueError) as error:
            if any(isinstance(cause, TimeoutError) for cause in _causes(error)):  # while sending
                raise late from error
            raise _unavailable(name, self.host_port, error) from error
        return response.status, content


def _check_shapes(arrays: Arrays) -> None:
    """Refuse inputs without values whose shape nested lists do not have: [] may be [0, 2]."""
    lost = [name for name, array in arrays.items() if 0 in array.shape[:-1]]
    if lost:
        raise UsageError(
            f"Expected at least one row in input '{lost[0]}', since REST writes shapes as nested "
            f"lists. Received: shape {list(arrays[lost[0]].shape)}. Leave the request out, or ask "
            "with `GrpcClient`."
        )


def _outputs(value: Any, infos: Mapping[str, Any]) -> Arrays:
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
    return error_of(name, host_port, "UNAVAILABLE", _connection_failure(error))


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


def _path(which: Which) -> str:
    path = f"/v1/models/{urllib.parse.quote(which.name, safe='')}"
    if which.label is not None:
        return f"{path}/labels/{urllib.parse.quote(which.label, safe='')}"
    return path if which.version is None else f"{path}/versions/{which.version}"


def _base64(value: bytes) -> dict[str, str]:
    """Write `bytes`, the only thing in an array that JSON does not know."""
    return {"b64": base64.b64encode(value).decode()}


def _code_of(http_status: int) -> str:
    """Return the likeliest code: the first of those that share an HTTP status."""
    codes = (code for code, status in HTTP_STATUS.items() if status == http_status)
    return next(codes, _TOO_LARGE.get(http_status, "UNKNOWN"))
