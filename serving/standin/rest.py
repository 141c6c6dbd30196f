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
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import tensorflow as tf
import waitress
import waitress.channel
import waitress.task
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2
from waitress import wasyncore
from waitress.server import TcpWSGIServer

from .. import rest_json
from ..conventions import HTTP_STATUS
from ..protocol import STATUS_CODES, invalid_argument, unimplemented
from .models import ServedModels

MAX_BODY_BYTES = 256 * 2**20
"""Largest body of a request: a batch of about a hundred images of 224 × 224 as JSON."""

GRACE_SECONDS = 5.0
"""How long running requests may take to finish when the server stops."""

_THREADS = 8
_MAX_CONNECTIONS = 1000  # further ones wait until the server accepts them
_IDLE_SECONDS = 60  # after which a client that sends nothing is dropped
_POLL_SECONDS = 0.02

_VERSION = r"/versions/(?P<version>\d{1,18})|/labels/(?P<label>[^/:]+)"
_MODEL = rf"(?i)/v1/models(?:/(?P<name>[^/:]+))?(?:{_VERSION})?"
_GET = re.compile(_MODEL + r"(?P<metadata>/metadata)?")
_POST = re.compile(_MODEL + r":(?P<method>predict|classify|regress)")

# Waitress logs every request that waits for a thread. Without this a program that has not set up
# logging would print it; one that has still decides for itself.
logging.getLogger("waitress").addHandler(logging.NullHandler())


@contextlib.contextmanager
def serve_rest(models: ServedModels, host: str, port: int) -> Iterator[int]:
    """Answer REST requests while the context lasts, and let running ones finish when it ends.

    Args:
        models: Models to serve.
        host: Address to listen on.
        port: Port, or 0 for any free one.

    Yields:
        The port.

    Raises:
        OSError: If the port is taken or not allowed.
        OverflowError: If the port is greater than 65535.
    """
    server = waitress.create_server(
        Application(models),
        sockets=[socket.create_server((host, port))],
        threads=_THREADS,
        connection_limit=_MAX_CONNECTIONS,
        channel_timeout=_IDLE_SECONDS,
        max_request_body_size=MAX_BODY_BYTES,
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
    """

    def __init__(self, models: ServedModels):
        self._models = models

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answer one request, as WSGI (PEP 3333) prescribes."""
        status, text = self._answer(environ)
        body = text.encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        start_response(f"{status} {_reason(status)}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    def _answer(self, environ: dict[str, Any]) -> tuple[int, str]:
        respond = {"GET": self._get, "POST": self._post}.get(environ["REQUEST_METHOD"], _refuse)
        try:
            return 200, respond(environ)
        except tf.errors.OpError as error:
            status = HTTP_STATUS[STATUS_CODES[error.error_code].name]
            return status, _error_json(error.message)
        except Exception as error:  # a defect of the stand-in
            return 500, _error_json(f"{type(error).__name__}: {error}")

    def _get(self, environ: dict[str, Any]) -> str:
        spec, match = _parse_path(_GET, environ)
        if not spec.name:
            raise invalid_argument("Missing model name in request.")
        if match["metadata"]:
            return _metadata_json(self._models.metadata(spec))
        return json_format.MessageToJson(self._models.status(spec), **_PROTO_OPTIONS)

    def _post(self, environ: dict[str, Any]) -> str:
        spec, match = _parse_path(_POST, environ)
        if match["method"].lower() != "predict":
            raise unimplemented(f"The stand-in does not serve the method: {match['method']}")
        document = rest_json.parse_object(environ["wsgi.input"].read())
        spec.signature_name = rest_json.read_signature_name(document)
        inputs = rest_json.read_tensors(document, self._models.signature_inputs(spec))
        _, outputs = self._models.predict(spec, inputs)
        return rest_json.write_tensors(outputs, row_format=rest_json.is_row_format(document))


class _ErrorTask(waitress.task.ErrorTask):
    """Answers what waitress itself refuses in the form of every other error."""

    def execute(self) -> None:
        error = self.request.error
        body = _error_json(f"{error.reason}: {error.body}").encode()
        self.status = f"{error.code} {error.reason}"
        self.response_headers = [
            ("Content-Type", "application/json"),
            ("Connection", "close"),
        ]
        self.content_length = len(body)
        self.close_on_finish = True
        self.write(body)


class _Channel(waitress.channel.HTTPChannel):
    error_task_class = _ErrorTask

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


def _parse_path(
    pattern: re.Pattern[str], environ: dict[str, Any]
) -> tuple[model_pb2.ModelSpec, re.Match[str]]:
    """Match the path of a request; return the `ModelSpec` it names and the match."""
    # WSGI's PATH_INFO is decoded already: a "/" in the name of a model could not be told apart.
    match = pattern.fullmatch(urllib.parse.urlsplit(environ["REQUEST_URI"]).path)
    if match is None:
        _refuse(environ)
    spec = model_pb2.ModelSpec(name=urllib.parse.unquote(match["name"] or ""))
    if match["version"]:
        spec.version.value = int(match["version"])
    if match["label"]:
        spec.version_label = urllib.parse.unquote(match["label"])
    return spec, match


def _refuse(environ: dict[str, Any]) -> NoReturn:
    raise invalid_argument(
        f"Malformed request: {environ['REQUEST_METHOD']} {environ['REQUEST_URI']}"
    )


def _metadata_json(response: get_model_metadata_pb2.GetModelMetadataResponse) -> str:
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    spec = json_format.MessageToDict(response.model_spec, **_PROTO_OPTIONS)
    definitions = json_format.MessageToDict(signatures, **_PROTO_OPTIONS)
    # The doubled "signature_def" is TensorFlow Serving's: a field of a map of the same name.
    return json.dumps({"model_spec": spec, "metadata": {"signature_def": definitions}})


def _error_json(message: str) -> str:
    return json.dumps({"error": message})


def _reason(status: int) -> str:
    return _REASONS.get(status, "Error")


_REASONS = {status.value: status.phrase for status in http.HTTPStatus}
