"""The REST front of the stand-in, on the standard library's HTTP server."""

import contextlib
import json
import re
import socketserver
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2

from .. import rest_json
from ..protocol import HTTP_STATUS, STATUS_CODES, invalid_argument

_VERSION = r"/versions/(?P<version>\d{1,18})|/labels/(?P<label>[^/:]+)"
_MODEL = rf"(?i)/v1/models(?:/(?P<name>[^/:]+))?(?:{_VERSION})?"
_GET = re.compile(_MODEL + r"(?P<metadata>/metadata)?")
_POST = re.compile(_MODEL + r":(?P<method>predict|classify|regress)")
_IDLE_SECONDS = 60  # after which a client that sends nothing is dropped
_POLL_SECONDS = 0.05  # the longest that closing waits for the listening thread


@contextlib.contextmanager
def serve_rest(models, host, port):
    """Answer REST requests while the context lasts.

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
    with _Server((host, port), _Handler) as server:
        server.models = models
        thread = threading.Thread(target=server.serve_forever, args=[_POLL_SECONDS], daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True  # a client that keeps its connection open does not keep us alive

    def server_bind(self):
        # HTTPServer would look its own name up, which can take seconds where there is no DNS.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address

    def handle_error(self, request, client_address):
        """Let a client hang up without a traceback; defects of ours were answered before."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS
    disable_nagle_algorithm = True  # it would hold each body back until the client has its headers

    def do_GET(self):
        self._answer(self._get)

    def do_POST(self):
        body = self._read_body()
        if body is not None:
            self._answer(lambda: self._post(body))

    def log_message(self, format, *args):
        """Write no line per request to stderr."""

    def send_error(self, code, message=None, explain=None):
        """Answer what is not a request in the form of every other error, and hang up."""
        self.close_connection = True
        self._send(code, _error(message or self.responses[code][0]))

    def _answer(self, respond):
        try:
            status, text = 200, respond()
        except tf.errors.OpError as error:
            status = HTTP_STATUS[STATUS_CODES[error.error_code].name]
            text = _error(error.message)
        except Exception as error:  # a defect of ours: the client still gets an answer
            status, text = 500, _error(f"{type(error).__name__}: {error}")
        self._send(status, text)

    def _get(self):
        spec, asked = self._parse_path(_GET)
        if not spec.name:
            raise invalid_argument("Missing model name in request.")
        models = self.server.models
        if asked["metadata"]:
            return _metadata_json(models.metadata(spec))
        return json_format.MessageToJson(models.status(spec), **_PROTO_OPTIONS)

    def _post(self, body):
        spec, asked = self._parse_path(_POST)
        if asked["method"].lower() != "predict":
            message = f"The stand-in does not serve the method: {asked['method']}"
            raise tf.errors.UnimplementedError(None, None, message)
        document = rest_json.parse_object(body)
        spec.signature_name = rest_json.read_signature_name(document)
        models = self.server.models
        inputs = rest_json.read_tensors(document, models.signature_inputs(spec))
        _, outputs = models.predict(spec, inputs)
        return rest_json.write_tensors(outputs, row_format=rest_json.is_row_format(document))

    def _parse_path(self, pattern):
        """Match the path; return the `ModelSpec` it names and the groups of the pattern."""
        match = pattern.fullmatch(urllib.parse.urlsplit(self.path).path)
        if match is None:
            raise invalid_argument(f"Malformed request: {self.command} {self.path}")
        spec = model_pb2.ModelSpec(name=urllib.parse.unquote(match["name"] or ""))
        if match["version"]:
            spec.version.value = int(match["version"])
        if match["label"]:
            spec.version_label = urllib.parse.unquote(match["label"])
        return spec, match

    def _read_body(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.send_error(411, "Expected a Content-Length. Received: none. Send the body whole.")
            return None
        return self.rfile.read(int(length))

    def _send(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


_PROTO_OPTIONS = {
    "preserving_proto_field_name": True,
    "always_print_fields_with_no_presence": True,
}


def _metadata_json(response):
    signatures = get_model_metadata_pb2.SignatureDefMap()
    response.metadata["signature_def"].Unpack(signatures)
    spec = json_format.MessageToDict(response.model_spec, **_PROTO_OPTIONS)
    definitions = json_format.MessageToDict(signatures, **_PROTO_OPTIONS)
    # The doubled "signature_def" is TensorFlow Serving's: a field of a map of the same name.
    return json.dumps({"model_spec": spec, "metadata": {"signature_def": definitions}})


def _error(message):
    return json.dumps({"error": message})
