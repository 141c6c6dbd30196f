"""How clients hold a connection: retries, deadlines, labels, batches, TLS, and what they import."""

import http.server
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
import trustme
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from keras_mas.errors import UsageError
from keras_mas.serving.client import GrpcClient, RestClient, ServingError, Tls, retries
from keras_mas.serving.control import ControlError, ModelControl
from keras_mas.serving.conventions import HTTP_STATUS

SIGNATURES = {
    "serving_default": {
        "inputs": {"x": {"dtype": "DT_FLOAT"}},
        "outputs": {"y": {"dtype": "DT_FLOAT"}},
    }
}


class Half:
    """What both servers of this module do: y = x/2 by version 7, after a number of failures.

    Attributes:
        answer: From x to y.
        failures: Codes that the next requests are answered with, in order.
        asked: What came: the version or the label of each request, and its number of inputs.
        peers: The connections that requests came over.
        says_version: Whether a response over gRPC names the version.
    """

    def __init__(self):
        self.failures, self.asked, self.peers = [], [], set()
        self.answer = lambda x: x / 2
        self.says_version = True


class GrpcHalf(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, half):
        self.half = half

    def Predict(self, request, context):
        x = tf.make_ndarray(request.inputs["x"])
        spec = request.model_spec
        self.half.asked.append((spec.version_label or spec.version.value, len(x)))
        self.half.peers.add(context.peer())
        if self.half.failures:
            context.abort(getattr(grpc.StatusCode, self.half.failures.pop(0)), "not now")
        response = predict_pb2.PredictResponse(
            outputs={"y": tf.make_tensor_proto(self.half.answer(x))}
        )
        if self.half.says_version:
            response.model_spec.version.value = 7
        return response


class RestHalf(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    half: Half

    def do_GET(self):
        metadata = {
            "model_spec": {"version": "7"},
            "metadata": {"signature_def": {"signature_def": SIGNATURES}},
        }
        self.answer(metadata)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        x = np.array(body["inputs"]["x"])
        self.half.asked.append((self.path, len(x)))
        self.half.peers.add(self.client_address)
        if self.half.failures:
            self.answer({"error": "not now"}, HTTP_STATUS[self.half.failures.pop(0)])
        else:
            self.answer({"outputs": self.half.answer(x).tolist()})

    def answer(self, document, status=200):
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class Http(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Say nothing of a handshake that a client broke off."""


@pytest.fixture
def half():
    return Half()


@pytest.fixture
def start(half):
    """A function that starts a server of a kind of client, with TLS perhaps, and gives its port."""
    stop = []

    def start(kind, authority=None):
        if kind is GrpcClient:
            server = grpc.server(futures.ThreadPoolExecutor(4))
            prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
                GrpcHalf(half), server
            )
            if authority is None:
                port = server.add_insecure_port("127.0.0.1:0")
            else:
                own = authority.issue_cert("127.0.0.1")
                pair = (own.private_key_pem.bytes(), own.cert_chain_pems[0].bytes())
                credentials = grpc.ssl_server_credentials(
                    [pair], authority.cert_pem.bytes(), require_client_auth=True
                )
                port = server.add_secure_port("127.0.0.1:0", credentials)
            server.start()
            stop.append(lambda: server.stop(None))
            return port
        server = Http(("127.0.0.1", 0), type("Handler", (RestHalf,), {"half": half}))
        if authority is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            authority.issue_cert("127.0.0.1").configure_cert(context)
            authority.configure_trust(context)
            context.verify_mode = ssl.CERT_REQUIRED
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=[0.02], daemon=True)
        thread.start()
        stop.extend([server.shutdown, server.server_close])
        return server.server_port

    yield start
    for each in stop:
        each()


@pytest.fixture(params=[RestClient, GrpcClient])
def kind(request):
    return request.param


@pytest.fixture
def connect(start, kind):
    """A function that makes a client of a server of `half`."""
    clients = []

    def connect(**options):
        clients.append(kind(f"127.0.0.1:{start(kind)}", **options))
        return clients[-1]

    yield connect
    for each in clients:
        each.close()


X = np.arange(5, dtype=np.float32)


def test_a_server_that_is_unavailable_is_asked_again(connect, half):
    half.failures = ["UNAVAILABLE", "CANCELLED"]
    np.testing.assert_array_equal(connect().predict("m", {"x": X})["y"], X / 2)
    assert len(half.asked) == 3


@pytest.mark.parametrize(
    ("failures", "attempts"),
    [
        (["UNAVAILABLE"] * 9, 3),
        (["DEADLINE_EXCEEDED"], 1),  # the time is used up, and the server has too much to do
        (["RESOURCE_EXHAUSTED"], 1),
        (["UNAVAILABLE", "DEADLINE_EXCEEDED"], 2),
    ],
)
def test_nothing_else_is_asked_again_and_not_for_ever(connect, half, failures, attempts):
    half.failures = list(failures)
    with pytest.raises(ServingError) as caught:
        connect().predict("m", {"x": X})
    assert caught.value.code == failures[-1]
    assert len(half.asked) == attempts


@pytest.mark.parametrize(
    ("which", "attempts"), [({}, 2), ({"label": "stable"}, 2), ({"version": 7}, 1)]
)
def test_a_version_that_is_unloaded_before_it_answers_is_looked_up_again(
    start, half, which, attempts
):
    half.failures = ["NOT_FOUND"] * attempts
    with RestClient(f"127.0.0.1:{start(RestClient)}") as client:
        with pytest.raises(ServingError, match="NOT_FOUND"):
            client.predict("m", {"x": X}, **which)
        assert len(half.asked) == attempts
        if attempts == 2:
            half.failures = ["NOT_FOUND"]
            np.testing.assert_array_equal(client.predict("m", {"x": X}, **which)["y"], X / 2)


def test_no_proxy_is_asked(connect, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "grpc_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    np.testing.assert_array_equal(connect().predict("m", {"x": X})["y"], X / 2)


def test_retries_end_with_the_timeout(connect, half, monkeypatch):
    monkeypatch.setattr(retries, "_FIRST_WAIT_SECONDS", 60.0)
    half.failures = ["UNAVAILABLE"]
    with pytest.raises(ServingError, match="UNAVAILABLE: not now"):
        connect().predict("m", {"x": X})
    assert len(half.asked) == 1


@pytest.mark.parametrize("retries", [-1, 1.0, True, None])
def test_retries_are_a_number(kind, retries):
    with pytest.raises(UsageError, match="`retries` to be an integer ≥ 0"):
        kind("127.0.0.1:1", retries=retries)


def test_a_large_batch_is_divided_and_one_version_answers_all_of_it(connect, half):
    answer = connect().predict("m", {"x": X}, batch_size=2)
    np.testing.assert_array_equal(answer["y"], X / 2)
    assert [count for _, count in half.asked] == [2, 2, 1]
    # The first request asked for the latest version; the others for the one that answered.
    named = [which for which, _ in half.asked]
    assert named[1:] in ([7, 7], ["/v1/models/m/versions/7:predict"] * 2)
    assert answer.version == 7


@pytest.mark.parametrize(
    ("answer", "shape"),
    [
        (lambda x: x[:1], "[1]"),
        (lambda x: np.append(x, x), "[4]"),
        (lambda x: x[0], "[]"),
    ],
    ids=["fewer", "more", "scalar"],
)
def test_a_divided_batch_has_one_row_per_input(connect, half, answer, shape):
    half.answer = answer
    client = connect()
    with pytest.raises(ServingError) as caught:
        client.predict("m", {"x": X}, batch_size=2)
    assert f"outputs without one row for each of 2 inputs, 'y' {shape}." in str(caught.value)
    # Not every signature answers row by row.
    np.testing.assert_array_equal(client.predict("m", {"x": X})["y"], answer(X))


def test_a_server_that_does_not_say_its_version_is_asked_for_the_label_throughout(start, half):
    half.says_version = False
    with GrpcClient(f"127.0.0.1:{start(GrpcClient)}") as client:
        answer = client.predict("m", {"x": X}, batch_size=4, label="canary")
    assert half.asked == [("canary", 4), ("canary", 1)] and answer.version is None


@pytest.mark.parametrize(
    ("inputs", "batch_size", "words"),
    [
        ({"x": X}, 0, "`batch_size` to be an integer ≥ 1. Received: 0"),
        ({"x": X, "z": X[:3]}, 2, r"'x' \[5\], 'z' \[3\]"),
        ({"x": np.float32(1)}, 2, r"'x' \[\]"),
    ],
)
def test_what_cannot_be_divided_is_refused(connect, inputs, batch_size, words):
    with pytest.raises(UsageError, match=words):
        connect().predict("m", inputs, batch_size=batch_size)


def test_a_label_names_the_version(start, half):
    with GrpcClient(f"127.0.0.1:{start(GrpcClient)}") as client:
        client.predict("m", {"x": X}, label="canary", batch_size=3)
    # The label may move between two requests, so the second names the version that had it.
    assert half.asked == [("canary", 3), (7, 2)]


def test_over_rest_a_label_is_part_of_the_path(start, half, monkeypatch):
    paths = []
    answer = RestHalf.answer
    monkeypatch.setattr(
        RestHalf, "answer", lambda self, *a: (paths.append(self.path), answer(self, *a))
    )
    with RestClient(f"127.0.0.1:{start(RestClient)}") as client:
        client.predict("m", {"x": X}, label="canary")
    assert paths == ["/v1/models/m/labels/canary/metadata", "/v1/models/m/versions/7:predict"]


def test_a_version_and_a_label_are_refused(kind):
    with kind("127.0.0.1:1") as client, pytest.raises(UsageError, match="a version or a label"):
        client.predict("m", {"x": X}, version=1, label="stable")


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ({"label": ""}, "a text that is not empty. Received: ''. Leave it out for the latest"),
        ({"label": 2}, "a text that is not empty. Received: 2"),
        ({"version": "2"}, "an integer from 0 to 2⁶³ − 1. Received: '2'"),
        ({"version": 2**70}, "an integer from 0 to 2⁶³ − 1. Received: 1180591620717411303424"),
        ({"version": -1}, "Received: -1"),
    ],
)
def test_what_names_no_version_is_refused(kind, which, message):
    with kind("127.0.0.1:1") as client:
        with pytest.raises(UsageError, match=message):
            client.predict("m", {"x": X}, **which)
        with pytest.raises(UsageError, match=message):
            client.signatures("m", **which)


def test_connections_are_kept(connect, half):
    client = connect()
    for _ in range(3):
        client.predict("m", {"x": X})
    assert len(half.peers) == 1


def test_a_closed_client_says_so(connect, half):
    client = connect()
    client.close()
    for ask in (
        lambda: client.predict("half", {"x": X}),
        lambda: client.signatures("half"),
        lambda: client.status("half"),
        lambda: client.wait_until_available("half", 1),
    ):
        with pytest.raises(UsageError, match="Received: one that has been closed"):
            ask()
    assert not half.asked


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 ", b"O"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["body", "head", "nothing but 100"],
)
def test_the_timeout_is_for_the_whole_answer(head, part):
    """A server that sends a byte now and then would hold a client for ever otherwise."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def drip():
            connection, _ = listener.accept()
            with connection:
                connection.recv(10_000)
                connection.sendall(head)
                for _ in range(40):
                    time.sleep(0.05)
                    try:
                        connection.sendall(part)
                    except OSError:  # the client has gone
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        client = RestClient(f"127.0.0.1:{listener.getsockname()[1]}", timeout=0.3)
        began = time.monotonic()
        with client, pytest.raises(ServingError, match="DEADLINE_EXCEEDED: no answer within 0.3 s"):
            client.status("m")
        assert time.monotonic() - began < 1.5
        thread.join()


def test_the_timeout_is_for_writing_a_request_too(start, half):
    client = RestClient(f"127.0.0.1:{start(RestClient)}", timeout=0.3)
    with client, pytest.raises(ServingError, match="DEADLINE_EXCEEDED: writing .* than 0.3 s"):
        client.predict("m", {"x": np.full(2_000_000, 0.1)})  # a second
    assert not half.asked


def test_the_timeout_is_for_sending_a_request_too(start, monkeypatch):
    monkeypatch.setattr(RestHalf, "do_POST", lambda _: time.sleep(1.0))  # reads nothing
    client = RestClient(f"127.0.0.1:{start(RestClient)}", timeout=0.5)
    with client, pytest.raises(ServingError, match="DEADLINE_EXCEEDED: no answer within"):
        client.predict("m", {"x": np.array([bytes(8_000_000)], object)})


# TLS.


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    """The options of a client that the servers trust."""
    folder = tmp_path_factory.mktemp("tls")
    own = authority.issue_cert("client@example.com")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    own.cert_chain_pems[0].write_to_path(folder / "client.pem")
    own.private_key_pem.write_to_path(folder / "client.key")
    return {
        "roots": folder / "ca.pem",
        "certificate": folder / "client.pem",
        "key": folder / "client.key",
    }


def test_both_sides_prove_who_they_are(start, kind, authority, files):
    with kind(f"127.0.0.1:{start(kind, authority)}", tls=Tls(**files)) as client:
        np.testing.assert_array_equal(client.predict("m", {"x": X})["y"], X / 2)


def test_labels_are_moved_over_tls_too(start, authority, files):
    address = f"127.0.0.1:{start(GrpcClient, authority)}"
    with ModelControl(address, timeout=5.0, tls=Tls(**files)) as control:
        assert control.labels("m", ["stable"]) == {}  # says the server, which has no label
    advice = "correct --server, give --tls if it speaks TLS"
    with ModelControl(address) as control, pytest.raises(ControlError, match=advice):
        control.labels("m", ["stable"])


def test_of_addresses_that_were_tried_the_last_reason_is_said(kind):
    client = kind("127.0.0.1:1", retries=0)
    with client, pytest.raises(ServingError, match=r"UNAVAILABLE: no connection \(Connection ref"):
        client.status("m")


@pytest.mark.parametrize("missing", ["roots", "certificate"])
def test_a_connection_that_one_side_does_not_trust_is_refused(
    start, kind, authority, files, missing
):
    kept = ("certificate", "key") if missing == "roots" else ("roots",)
    tls = Tls(**{name: files[name] for name in kept})
    client = kind(f"127.0.0.1:{start(kind, authority)}", tls=tls, retries=0)
    with client, pytest.raises(ServingError, match="UNAVAILABLE: .* whether it speaks TLS"):
        client.predict("m", {"x": X})


def test_a_server_of_another_name_is_refused(start, kind, authority, files):
    # The certificate is for 127.0.0.1, and not for this name of the same machine.
    client = kind(f"localhost:{start(kind, authority)}", tls=Tls(**files), retries=0)
    with client, pytest.raises(ServingError, match="UNAVAILABLE: "):
        client.predict("m", {"x": X})


def test_why_a_certificate_is_refused_is_said(start, kind, authority, tmp_path):
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    client = kind(f"127.0.0.1:{start(kind, authority)}", tls=Tls(tmp_path / "other.pem"), retries=0)
    message = r"no encrypted connection \(.*(issuer certificate|self-signed certificate)"
    with client, pytest.raises(ServingError, match=message):
        client.status("m")


def test_a_server_without_tls_is_said_to_have_none(start, kind, files):
    client = kind(f"127.0.0.1:{start(kind)}", tls=Tls(files["roots"]), retries=0)
    with client, pytest.raises(ServingError, match="does not speak TLS. Connect without TLS, or"):
        client.status("m")


def test_damaged_files_of_tls_are_said_to_be(files, authority, tmp_path):
    def damaged(name):
        text = files[name].read_text()
        path = tmp_path / name
        path.write_text(text[: len(text) // 2])
        return path

    pair = {name: files[name] for name in ("certificate", "key")}
    with pytest.raises(UsageError, match="certificates in PEM in '.*roots'. Received: a damaged"):
        Tls(damaged("roots"))
    for name in pair:
        with pytest.raises(UsageError, match="and its key, .* Received: a damaged file, or anothe"):
            Tls(**pair | {name: damaged(name)})
    other = authority.issue_cert("other@example.com").private_key_pem
    other.write_to_path(tmp_path / "other.key")
    with pytest.raises(UsageError, match=r"another key \(key values mismatch\)"):
        Tls(**pair | {"key": tmp_path / "other.key"})
    encrypted = files["key"].read_text().replace("\n", "\nProc-Type: 4,ENCRYPTED\n\n", 1)
    (tmp_path / "encrypted.key").write_text(encrypted)
    with pytest.raises(UsageError, match="not encrypted"):
        Tls(**pair | {"key": tmp_path / "encrypted.key"})


def test_files_of_tls_are_looked_at_first(files, tmp_path):
    with pytest.raises(UsageError, match="a client's certificate and its key, or neither"):
        Tls(certificate=files["certificate"])
    with pytest.raises(UsageError, match="'.*gone.pem'. Received: no such file or directory"):
        Tls(roots=tmp_path / "gone.pem")
    (tmp_path / "der").write_bytes(b"\x30\x82")
    with pytest.raises(UsageError, match="in PEM in '.*der'"):
        Tls(roots=tmp_path / "der")


# What is imported.


@pytest.mark.parametrize("kind", ["GrpcClient", "RestClient"])
def test_a_request_needs_neither_tensorflow_nor_keras(server, kind):
    port = server.grpc_port if kind == "GrpcClient" else server.rest_port
    code = f"""
import sys
from keras_mas.serving.client import {kind}
with {kind}("127.0.0.1:{port}") as client:
    assert client.predict("half_plus_two", {{"x": [1.0]}})["y"].tolist() == [2.5]
    assert client.status("half_plus_two") and client.signatures("half_plus_two")
print({{"tensorflow", "keras", "tensorflow_serving", "wrapt"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
