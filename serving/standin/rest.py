"""The stand-in's REST interface: a WSGI application on waitress.

Waitress reads requests and writes responses in one thread and runs the application in a few others,
so that slow and idle clients hold none of them up.
"""

import contextlib
import http
import json
import logging
import re
import socket
import threading
import time
import urllib.parse
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import waitress
import waitress.channel
import waitress.parser
import waitress.task
import waitress.utilities
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2
from waitress import wasyncore
from waitress.server import TcpWSGIServer

from ..conventions import HTTP_STATUS
from . import json_text, rest_json
from .models import GRACE_SECONDS, THREADS, ServedModels
from .protocol import (
    MAX_REQUEST_BYTES,
    RequestError,
    invalid_argument,
    unimplemented,
)
from .request_log import PredictLog
from .tensors import write_tensor

_Arrays = Mapping[str, np.ndarray]

_MAX_CONNECTIONS = 1000  # further ones wait until the server accepts them
_IDLE_SECONDS = 60  # after which a client that sends nothing is dropped
_POLL_SECONDS = 0.02

# As in `model_servers/http_rest_api_util.cc`.
_API = re.compile(r"(?i)/v1/.*")
_VERSION = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_GET = re.compile(rf"(?i)/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?P<metadata>/metadata)?")
_POST = re.compile(
    rf"(?i)/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)"
)

# What libevent's `evhttp_uri_parse` takes for the target of a request (RFC 3986).
_CHARACTERS = r"(?:[-\w.~!$&'()*+,;=:@/]|%[0-9a-fA-F]{2})*"
_AFTER_PATH = _CHARACTERS.replace("[-", "[-?")
_TARGET = re.compile(
    rf"(?:[a-zA-Z][-a-zA-Z0-9+.]*:)?(?://[^/?#]*)?"
    rf"(?P<path>{_CHARACTERS}(?:\?{_AFTER_PATH})?(?:#{_AFTER_PATH})?)",
    re.ASCII,
)

# The methods that the HTTP server of TensorFlow Serving hands on to the interface.
_PARSED = {"GET", "POST"}
_METHODS = _PARSED | {"HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"}
_HTTP_ORIGIN = re.compile("https?://")
_INT64_MAX = 2**63 - 1

# Waitress logs every request that waits for a thread. Without this a program that has not set up
# logging would print it; one that has still decides for itself.
logging.getLogger("waitress").addHandler(logging.NullHandler())


@contextlib.contextmanager
def serve_rest(
    models: ServedModels, host: str, port: int, max_request_bytes: int = MAX_REQUEST_BYTES
) -> Iterator[int]:
    """Answer REST requests while the context lasts, and let running ones finish when it ends.

    Args:
        models: Models to serve.
        host: Address to listen on.
        port: Port, or 0 for any free one.
        max_request_bytes: Largest body of a request; larger ones are refused with status 413.

    Yields:
        The port.

    Raises:
        OSError: If the port is taken or not allowed.
        OverflowError: If the port is greater than 65535.
    """
    server = waitress.create_server(
        Application(models, max_request_bytes),
        sockets=[socket.create_server((host, port))],
        threads=THREADS,
        connection_limit=_MAX_CONNECTIONS,
        channel_timeout=_IDLE_SECONDS,
        max_request_body_size=max_request_bytes,
        asyncore_use_poll=True,
    )
    server.channel_class = _Channel
    stopping = threading.Event()
    thread = threading.Thread(target=_run, args=[server, stopping], daemon=True)
    thread.start()
    try:
        yield int(server.effective_port)
    finally:
        stopping.set()
        with contextlib.suppress(OSError):  # the thread may have seen it, and closed the trigger
            server.pull_trigger()
        thread.join()


class Application:
    """The WSGI application: one request in, one JSON document out.

    Args:
        models: Models to ask.
        max_request_bytes: As for `serve_rest`; also of a body that was compressed.
    """

    def __init__(self, models: ServedModels, max_request_bytes: int):
        self._models, self._max_request_bytes = models, max_request_bytes

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer one request, as WSGI (PEP 3333) prescribes."""
        answer = self._answer(environ)
        body = json_text.encoded(answer.text)
        headers = [("Content-Length", str(len(body)))]
        if answer.type:
            headers.append(("Content-Type", answer.type))
        start_response(f"{answer.status} {_reason(answer.status)}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _answer(self, environ: dict[str, Any]) -> "_Answer":
        method, path = environ["REQUEST_METHOD"], _path_and_query(environ)
        if method not in _METHODS:
            return _page(501)
        if path is None:
            return _page(400)
        if not _API.fullmatch(path):
            return _page(404)
        if method == "OPTIONS":
            # The preflight request of a browser; without an origin it fails, and nothing is said.
            known = _HTTP_ORIGIN.search(environ.get("HTTP_ORIGIN", ""))
            return _Answer(200 if known else 400, "", type="")
        try:
            return _Answer(200, self._respond(method, path, environ))
        except _Unanswerable:
            return _Answer(400, "")
        except _TooLarge as error:
            return _Answer(413, _error_json(str(error)))
        except RequestError as error:
            return _Answer(HTTP_STATUS[error.code.name], _error_json(error.message))
        except Exception as error:  # a defect of the stand-in
            return _Answer(500, _error_json(f"{type(error).__name__}: {error}"))

    def _respond(self, method: str, path: str, environ: dict[str, Any]) -> str:
        match = {"GET": _GET, "POST": _POST}[method].fullmatch(path) if method in _PARSED else None
        # The path may be written in capitals, but not the method in it.
        if match is None or (method == "POST" and not match["method"].islower()):
            raise invalid_argument(f"Malformed request: {method} {path}")
        spec = _spec_of(match)
        if method == "POST":
            return self._post(spec, match["method"], self._body(environ))
        if not spec.name:
            raise invalid_argument("Missing model name in request.")
        # In capitals the word is let through, and means nothing.
        if match["metadata"] == "/metadata":
            return _metadata_json(self._models.metadata(spec))
        return json_format.MessageToJson(self._models.status(spec), **_PROTO_OPTIONS)

    def _body(self, environ: dict[str, Any]) -> bytes:
        """Return the body of a request; what is no gzip and said to be is empty, as in the server.

        TensorFlow Serving decides in `EvHTTPRequest::NeedUncompressGzipContent`. Nothing may follow
        the end of the gzip, nor a second one (`ZLib::UncompressGzipAndAllocate`).
        """
        body: bytes = environ["wsgi.input"].read()
        if "gzip" not in environ.get("HTTP_CONTENT_ENCODING", ""):
            return body
        stream, limit = zlib.decompressobj(wbits=zlib.MAX_WBITS + 16), self._max_request_bytes
        try:
            body = stream.decompress(body, limit + 1)
        except zlib.error:
            return b""
        if len(body) > limit:
            raise _TooLarge(f"Request Entity Too Large: exceeds max_body of {limit}")
        return body if stream.eof and not stream.unused_data else b""

    def _post(self, spec: model_pb2.ModelSpec, method: str, body: bytes) -> str:
        if method != "predict":
            raise unimplemented(f"The stand-in does not serve the method: {method}")
        document = rest_json.parse_object(body)
        name = rest_json.read_signature_name(document)
        with self._models.using(spec) as version:
            # No signature has a name that is not UTF-8, which a message cannot hold.
            inputs = rest_json.read_tensors(document, version.inputs(name))
            spec.signature_name = name
            outputs = version.predict(spec.signature_name, inputs)
            answered = version.spec(spec.signature_name)
        text = rest_json.write_tensors(outputs, row_format=rest_json.is_row_format(document))
        self._models.log(spec.name, lambda: _log_of(spec, inputs, answered, outputs))
        return text


class _Answer(NamedTuple):
    """A response."""

    status: int
    text: str
    type: str = "application/json"


class _Unanswerable(Exception):
    """A request whose version is no number, to which TensorFlow Serving answers 400 and no word."""


class _TooLarge(Exception):
    """A request whose body is above the limit when it is no longer compressed."""


def _page(status: int) -> _Answer:
    """Return what libevent, the HTTP server of TensorFlow Serving, answers by itself."""
    reason = _reason(status)
    return _Answer(
        status,
        f"<HTML><HEAD>\n<TITLE>{status} {reason}</TITLE>\n</HEAD><BODY>\n<H1>{reason}</H1>\n"
        "</BODY></HTML>\n",
        "text/html",
    )


def _log_of(
    spec: model_pb2.ModelSpec, inputs: _Arrays, answered: model_pb2.ModelSpec, outputs: _Arrays
) -> PredictLog:
    log = PredictLog()
    log.request.model_spec.CopyFrom(spec)
    log.response.model_spec.CopyFrom(answered)
    for message, arrays in ((log.request.inputs, inputs), (log.response.outputs, outputs)):
        for name, array in arrays.items():
            write_tensor(message[name], array)
    return log


class _ErrorTask(waitress.task.ErrorTask):
    """Answers what waitress itself refuses in the form of every other error."""

    def execute(self) -> None:
        error = self.request.error
        body = json_text.encoded(_error_json(f"{error.reason}: {error.body}"))
        self.status = f"{error.code} {error.reason}"
        self.response_headers = [
            ("Content-Type", "application/json"),
            ("Connection", "close"),
        ]
        self.content_length = len(body)
        self.close_on_finish = True
        self.write(body)


class _Parser(waitress.parser.HTTPRequestParser):
    error: Any

    def parse_header(self, header_plus: bytes) -> None:
        """Refuse an address that Python cannot read, which waitress takes for a defect."""
        try:
            super().parse_header(header_plus)
        except ValueError as error:
            raise waitress.parser.ParsingError(str(error)) from error

    def received(self, data: bytes) -> int:
        """Refuse a chunk above the limit by its size, as waitress does with a body."""
        consumed: int = super().received(data)
        limit = self.adj.max_request_body_size
        if not self.error and getattr(self.body_rcv, "chunk_remainder", 0) >= limit:
            self.error = waitress.utilities.RequestEntityTooLarge(f"exceeds max_body of {limit}")
            self.completed = True
        return consumed


class _Channel(waitress.channel.HTTPChannel):
    error_task_class = _ErrorTask
    parser_class = _Parser

    @property
    def busy(self) -> bool:
        """Whether a request is running, or its response not sent completely."""
        return bool(self.requests or self.total_outbufs_len)


def _run(server: TcpWSGIServer, stopping: threading.Event) -> None:
    """Serve until the event is set, then finish what is running and close everything."""
    while not stopping.is_set():
        _handle_events(server, timeout=1.0)
    wasyncore.dispatcher.close(server)  # accepts nothing more
    deadline = time.monotonic() + GRACE_SECONDS
    while _is_busy(server) and time.monotonic() < deadline:
        _handle_events(server, timeout=_POLL_SECONDS)
    server.task_dispatcher.shutdown(timeout=max(deadline - time.monotonic(), 0.0))
    wasyncore.close_all(server._map)


def _is_busy(server: TcpWSGIServer) -> bool:
    return any(channel.busy for channel in server.active_channels.values())


def _handle_events(server: TcpWSGIServer, timeout: float) -> None:
    wasyncore.loop(timeout=timeout, use_poll=True, map=server._map, count=1)


_PROTO_OPTIONS: dict[str, Any] = {
    "preserving_proto_field_name": True,
    "always_print_fields_with_no_presence": True,
}


def _path_and_query(environ: dict[str, Any]) -> str | None:
    """Return the path of a request with all that follows; None if a character is not allowed."""
    # WSGI's PATH_INFO is decoded already: a "/" in the name of a model could not be told apart.
    match = _TARGET.fullmatch(environ["REQUEST_URI"])
    return match["path"] if match else None


def _spec_of(match: re.Match[str]) -> model_pb2.ModelSpec:
    """Return the `ModelSpec` that a path names."""
    spec = model_pb2.ModelSpec(name=urllib.parse.unquote(match["name"] or ""))
    if match["version"]:
        digits = match["version"].lstrip("0")
        if len(digits) > 19 or int(digits or "0") > _INT64_MAX:
            raise _Unanswerable
        spec.version.value = int(digits or "0")
    if match["label"]:
        spec.version_label = urllib.parse.unquote(match["label"])
    return spec


def _metadata_json(response: get_model_metadata_pb2.GetModelMetadataResponse) -> str:
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    spec = json_format.MessageToDict(response.model_spec, **_PROTO_OPTIONS)
    definitions = json_format.MessageToDict(signatures, **_PROTO_OPTIONS)
    # The doubled "signature_def" is TensorFlow Serving's: a field of a map of the same name.
    return json.dumps({"model_spec": spec, "metadata": {"signature_def": definitions}})


def _error_json(message: str) -> str:
    return json.dumps({"error": message}, ensure_ascii=False)


def _reason(status: int) -> str:
    return _REASONS.get(status, "Error")


_REASONS = {status.value: status.phrase for status in http.HTTPStatus}
