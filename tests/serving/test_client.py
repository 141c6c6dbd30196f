import contextlib
import http.server
import json
import socket
import threading
import time
import types

import numpy as np
import pytest

from keras_mas.errors import UsageError
from keras_mas.serving.client import (
    GrpcClient,
    Readiness,
    RestClient,
    ServingError,
    Tls,
    VersionStatus,
    base,
    readiness,
)
from keras_mas.serving.standin import StandIn


@pytest.fixture(params=["rest", "grpc"])
def client(request, server):
    if request.param == "rest":
        with RestClient(f"127.0.0.1:{server.rest_port}") as client:
            yield client
    else:
        with GrpcClient(f"127.0.0.1:{server.grpc_port}") as client:
            yield client


def test_rest_and_grpc_answer_as_the_keras_model(client, make_heads, inputs):
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    logits = make_heads()["pets"].predict(x, verbose=0)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    answer = client.predict("shop", {"inputs": x}, signature="pets", version=1)

    np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-6)
    assert answer["probabilities"].dtype == np.float32
    assert answer["class"].tolist() == logits.argmax(axis=1).tolist()
    assert answer["class"].dtype == np.int64
    assert answer["label"].tolist() == [["cat", "dog"][i] for i in logits.argmax(axis=1)]


def test_by_default_the_latest_version_returns_every_task_and_says_its_number(client, inputs):
    answer = client.predict("shop", {"inputs": inputs})
    assert answer.version == 2
    assert client.predict("shop", {"inputs": inputs}, version=1).version == 1
    assert answer["pets/label"].tolist() == ["cat", "dog"]  # version 2 turns the pets around
    assert answer["fruit/class"].tolist() == [2, 2]


def test_the_only_output_has_its_name_and_lists_of_floats_are_float32(client):
    answer = client.predict("half_plus_two", {"x": [1.0, 2.0, float("nan")]})
    np.testing.assert_array_equal(answer["y"], np.array([2.5, 3.0, np.nan], np.float32))


def test_signatures_are_those_that_can_be_called(client):
    # The server lists the operation that initializes the version too.
    assert sorted(client.signatures("half_plus_two")) == ["serve", "serving_default"]


def test_status_lists_the_versions(client):
    assert client.status("shop") == [(1, "AVAILABLE", ""), (2, "AVAILABLE", "")]
    first, second = client.status("half_broken")
    assert first == VersionStatus(1, "AVAILABLE", "")
    assert second.state == "END" and "Expected a complete SavedModel" in second.error


def test_errors_hold_the_message_of_the_server_and_advice(client):
    with pytest.raises(ServingError) as caught:
        client.predict("nobody", {"x": [1.0]})
    assert str(caught.value) == (
        f"Expected an answer about model 'nobody' from {client.host_port}. "
        "Received: NOT_FOUND: Servable not found for request: Latest(nobody). "
        "Check the name and the version against the status of the model."
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"name": "shop", "inputs": {"inputs": [[1.0, 2.0]]}, "version": 9},
            r"Specific\(shop, 9\). `keras-mas status shop` shows .* without labels only the newest",
        ),
        (
            {"name": "shop", "inputs": {"inputs": [[1.0, 2.0]]}, "label": "canary"},
            "label: canary. `keras-mas status shop` shows which versions have labels",
        ),
        ({"name": "shop", "inputs": {"inputs": [[1.0]]}}, r"\[1,1\] is not compatible with"),
        ({"name": "shop", "inputs": {"inputs": [["a", "b"]]}}, "float"),
        ({"name": "shop", "inputs": {"x": [[1.0, 2.0]]}}, "inputs"),
        ({"name": "half_plus_two", "inputs": {"x": [1.0]}, "signature": "z"}, '"z" not found'),
    ],
)
def test_refusals_are_reported_with_the_message_of_the_server(client, arguments, words):
    with pytest.raises(ServingError, match=words):
        client.predict(**arguments)


def test_float64_is_refused_over_grpc_with_what_to_do(server):
    refused = pytest.raises(ServingError, match=r"Convert the input with `astype\('float32'\)`")
    with GrpcClient(f"localhost:{server.grpc_port}") as client, refused:
        client.predict("shop", {"inputs": np.zeros([1, 2])})


@pytest.mark.parametrize("make", [RestClient, GrpcClient])
def test_no_server_is_an_error(make):
    with make("127.0.0.1:1") as client, pytest.raises(ServingError) as caught:
        client.status("shop")
    assert "about model 'shop' from 127.0.0.1:1. Received: UNAVAILABLE: " in str(caught.value)
    assert "Start the server, or check its host, its port, which is another one for" in str(
        caught.value
    )


@pytest.mark.parametrize("make", [RestClient, GrpcClient])
def test_a_silent_server_is_an_error_after_the_timeout(make, silent_port):
    client = make(f"127.0.0.1:{silent_port}", timeout=0.2)
    with client, pytest.raises(ServingError, match="Received: DEADLINE_EXCEEDED: "):
        client.status("shop")


def test_a_handshake_that_is_never_answered_is_no_slow_answer(silent_port):
    client = RestClient(f"127.0.0.1:{silent_port}", tls=Tls(), timeout=0.2)
    with client, pytest.raises(ServingError) as caught:
        client.status("m")
    assert "no answer to the TLS handshake within 0.2 s. Connect without TLS" in str(caught.value)


@pytest.fixture
def silent_port():
    """A port that takes connections and never says anything."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_server_of_another_kind_is_an_error(website_port):
    client = RestClient(f"127.0.0.1:{website_port}")
    with pytest.raises(
        ServingError, match="Received: NOT_FOUND: HTTP status 404 with the body '<!DOCTYPE"
    ):
        client.status("shop")


@pytest.fixture
def website_port(tmp_path):
    class Website(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Website) as website:
        threading.Thread(target=website.serve_forever, args=[0.05], daemon=True).start()
        yield website.server_port
        website.shutdown()


@pytest.fixture
def broken_server():
    """A function that makes a client of a server which sends the given bytes for each path.

    The path "*" stands for all others.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        responses = {}

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # the listener is shut down
                    return
                with connection:
                    path = connection.recv(100_000).split()[1].decode()
                    connection.sendall(responses.get(path, responses["*"]))

        def connect(new_responses):
            responses.update(new_responses)
            return RestClient(f"127.0.0.1:{listener.getsockname()[1]}", retries=0)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield connect
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def http_response(body, status="200 OK", length=None):
    length = len(body.encode()) if length is None else length
    return (
        f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}".encode()
    )


@pytest.mark.parametrize(
    ("response", "words"),
    [
        (http_response("{}", "503 x"), "UNAVAILABLE: HTTP status 503 with the body '{}'."),
        (
            http_response('{"error": "Request Entity Too Large"}', "413 x"),
            "RESOURCE_EXHAUSTED: Request Entity Too Large. Send fewer inputs at once, as with `b",
        ),
        (http_response("[1]", "500 x"), "INTERNAL: HTTP status 500 with the body '[1]'."),
        (http_response("3", "404 x"), "NOT_FOUND: HTTP status 404 with the body '3'."),
        (http_response('"no"', "400 x"), "HTTP status 400 with the body '\"no\"'."),
        (http_response('{"error": 3}', "400 x"), "status 400 with the body '{\"error\": 3}'."),
        (http_response("<html>", "502 x"), "HTTP status 502 with the body '<html>'."),
        (http_response("", "500 x"), "INTERNAL: HTTP status 500 with an empty body."),
        (http_response("x" * 10_000, "500 x"), "x" * 100 + "…'."),
        (http_response("[1]"), "HTTP status 200 with the body '[1]', which is no answer"),
        (http_response("[" * 100_000), "HTTP status 200 with the body '[[["),
        (http_response("{}"), "'{}', which is no answer to the request."),
        (http_response('{"model_version_status": 3}'), "which is no answer to the request."),
        (http_response("{}", length=100), "UNAVAILABLE: the connection broke off"),
        (b"", "UNAVAILABLE: the connection broke off"),
        (b"\xff\xfe\r\n", "UNAVAILABLE: the connection broke off"),
    ],
)
def test_a_broken_answer_is_one_sentence_with_status_and_body(broken_server, response, words):
    with broken_server({"*": response}) as client, pytest.raises(ServingError) as caught:
        client.status("shop")
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("Expected an answer about model 'shop' from 127.0.0.1:")


METADATA = json.dumps(
    {
        "model_spec": {"name": "m", "version": "3"},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {
                        "inputs": {"x": {"dtype": "DT_FLOAT"}},
                        "outputs": {"i": {"dtype": "DT_INT64"}, "p": {"dtype": "DT_FLOAT"}},
                    }
                }
            }
        },
    }
)


@pytest.mark.parametrize(
    "body",
    [
        "{}",
        '{"outputs": 3}',
        '{"outputs": {"i": [1]}}',
        '{"outputs": {"i": [1.5], "p": [1]}}',
        '{"outputs": {"i": [NaN], "p": [1]}}',
        '{"outputs": {"i": [1], "p": [null]}}',
        '{"outputs": {"i": [1], "p": [[1], [2, 3]]}}',
        '{"outputs": {"i": [99999999999999999999], "p": [1]}}',
    ],
)
def test_predictions_that_do_not_fit_the_signature_are_refused(broken_server, body):
    client = broken_server(
        {"*": http_response(body), "/v1/models/m/metadata": http_response(METADATA)}
    )
    with client, pytest.raises(ServingError, match="which is no answer to the request"):
        client.predict("m", {"x": [1.0]})


def test_numbers_that_are_not_finite_are_returned_unchanged(broken_server):
    body = '{"outputs": {"i": [1, 2, 3], "p": [NaN, Infinity, -Infinity]}}'
    client = broken_server(
        {"*": http_response(body), "/v1/models/m/metadata": http_response(METADATA)}
    )
    with client:
        answer = client.predict("m", {"x": [1.0]})
    np.testing.assert_array_equal(answer["p"], np.array([np.nan, np.inf, -np.inf], np.float32))


@pytest.mark.parametrize(
    "metadata", ["{}", '{"metadata": 1}', '{"metadata": {}, "model_spec": {}}']
)
def test_metadata_without_its_parts_is_refused(broken_server, metadata):
    with (
        broken_server({"*": http_response(metadata)}) as client,
        pytest.raises(ServingError, match="which is no answer to the request"),
    ):
        client.predict("m", {"x": [1.0]})


def test_an_unknown_signature_of_another_server_is_refused(broken_server):
    with (
        broken_server({"*": http_response(METADATA)}) as client,
        pytest.raises(ServingError, match='"pets" not found among serving_default'),
    ):
        client.predict("m", {"x": [1.0]}, signature="pets")


@pytest.mark.parametrize("value", [[[1.0], [2.0, 3.0]], [object()], [None], np.ones(2, "M8[s]")])
def test_an_input_that_is_no_tensor_is_a_usage_error(client, value):
    with pytest.raises(
        UsageError, match="input 'x' to be an array of numbers, booleans or strings"
    ):
        client.predict("half_plus_two", {"x": value})


@pytest.mark.parametrize("shape", [(0, 2), (3, 0, 2)])
def test_inputs_whose_shape_nested_lists_do_not_have_are_not_sent_over_rest(shape):
    said = rf"one row in input 'x', .* Received: shape \[{shape[0]}, .*`GrpcClient`"
    with RestClient("127.0.0.1:1") as client, pytest.raises(UsageError, match=said):
        client.predict("shop", {"x": np.zeros(shape)})


@pytest.mark.parametrize("make", [RestClient, GrpcClient])
@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf"), 1e300, "10"])
def test_a_timeout_is_a_positive_number_of_seconds(make, timeout):
    with pytest.raises(UsageError, match="`timeout` to be a positive number of seconds"):
        make("127.0.0.1:1", timeout=timeout)
    client = make("127.0.0.1:1")
    with client, pytest.raises(UsageError, match="`timeout` to be a positive number of seconds"):
        client.predict("shop", {"x": [1.0]}, timeout=timeout)


@pytest.mark.parametrize("make", [RestClient, GrpcClient])
def test_a_request_may_have_a_timeout_of_its_own(make, silent_port):
    with make(f"127.0.0.1:{silent_port}", timeout=60.0, retries=0) as client:
        beginning = time.monotonic()
        with pytest.raises(ServingError, match="DEADLINE_EXCEEDED"):
            client.predict("shop", {"x": [1.0]}, timeout=0.2)
    assert time.monotonic() - beginning < 30.0


@pytest.mark.parametrize("make", [RestClient, GrpcClient])
@pytest.mark.parametrize("address", ["host:99999", "127.0.0.1:-1", "[::1]:0"])
def test_a_port_is_a_number_of_sixteen_bits(make, address):
    with pytest.raises(UsageError, match="a port from 1 to 65535. Received: '.*:.*'"):
        make(address)


@pytest.mark.parametrize("make", [RestClient, GrpcClient])
@pytest.mark.parametrize(
    "address", ["http://shop:8501", "https://shop", "shop:8501/", "shop:8501#", "me@shop:80"]
)
def test_the_address_of_a_page_is_none_of_a_server(make, address):
    with pytest.raises(UsageError, match=f"as HOST:PORT.* Received: '{address}'. Leave out 'http:"):
        make(address)


def test_grpc_takes_the_addresses_that_it_resolves():
    for address in ("unix:///run/serving", "dns:///shop:8500"):
        GrpcClient(address).close()


@pytest.mark.parametrize("address", ["no such host:1", "", "[::1"])
def test_an_invalid_address_is_an_error(address):
    with RestClient(address) as client, pytest.raises(ServingError, match="UNAVAILABLE: "):
        client.status("shop")


def test_messages_may_be_larger_than_four_megabytes(server):
    with GrpcClient(f"127.0.0.1:{server.grpc_port}") as client:
        answer = client.predict("half_plus_two", {"x": np.ones(2 * 2**20, np.float32)})
    assert answer["y"].shape == (2 * 2**20,)


# Waiting.


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ([], Readiness.WAITING),
        (["START"], Readiness.WAITING),
        (["AVAILABLE", "LOADING"], Readiness.WAITING),
        (["AVAILABLE", "AVAILABLE"], Readiness.AVAILABLE),
        (["END", "AVAILABLE"], Readiness.AVAILABLE),
        (["AVAILABLE", "FAILED"], Readiness.FAILED),
        (["AVAILABLE", "FAILED", "AVAILABLE"], Readiness.AVAILABLE),
        # After a rollback what was unloaded stays in the list.
        (["AVAILABLE", "END"], Readiness.AVAILABLE),
        (["AVAILABLE", "UNLOADING"], Readiness.AVAILABLE),
        (["LOADING", "END"], Readiness.WAITING),
        (["END", "END"], Readiness.FAILED),
        (["FAILED", "END"], Readiness.FAILED),
    ],
)
def test_the_newest_version_decides(states, expected):
    """FAILED stands for the state END with an error."""
    statuses = [
        VersionStatus(version, "END", "no such file")
        if state == "FAILED"
        else VersionStatus(version, state, "")
        for version, state in enumerate(states)
    ]
    assert readiness(statuses) is expected
    assert readiness(statuses[::-1]) is expected  # a server lists the highest first


def test_waiting_after_a_rollback_returns_the_version_that_is_served(client, monkeypatch):
    rolled_back = [VersionStatus(3, "END", ""), VersionStatus(2, "AVAILABLE", "")]
    monkeypatch.setattr(client, "_status", lambda *_: rolled_back)
    assert client.wait_until_available("shop", timeout=0.0) == 2


def test_waiting_ends_when_the_newest_version_is_available(client):
    assert client.wait_until_available("shop", timeout=5) == 2


class Clock:
    """Stands in for the module `time` in the client: it goes on only while the client sleeps."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(base, "time", clock)
    return clock


def test_waiting_for_a_version_that_failed_ends_at_once(client, clock):
    with pytest.raises(
        ServingError, match="version 2 in state END. Expected a complete SavedModel"
    ):
        client.wait_until_available("half_broken", timeout=60)
    assert clock.now == 0.0


@pytest.mark.parametrize("make", [RestClient, GrpcClient])
def test_waiting_has_a_deadline(make, clock):
    with make("127.0.0.1:1") as client, pytest.raises(ServingError) as caught:
        client.wait_until_available("shop", timeout=0.5)
    assert "Expected model 'shop' to be available at 127.0.0.1:1 within 0.5 s." in str(caught.value)
    assert "UNAVAILABLE" in str(caught.value)
    assert 0.0 < clock.now <= 0.5


def test_waiting_for_a_server_that_starts_later(models, monkeypatch):
    served = {"half_plus_two": models / "half_plus_two"}
    with StandIn(served, grpc_port=0, rest_port=0) as server:
        ports = {"grpc_port": server.grpc_port, "rest_port": server.rest_port}
    later = contextlib.ExitStack()

    def start_and_sleep(seconds):
        """Start the server while the client waits for its next attempt."""
        monkeypatch.setattr(clock, "sleep", time.sleep)
        later.enter_context(StandIn(served, **ports))

    clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=start_and_sleep)
    monkeypatch.setattr(base, "time", clock)
    with later, GrpcClient(f"127.0.0.1:{ports['grpc_port']}") as grpc_client:
        assert grpc_client.wait_until_available("half_plus_two", timeout=60) == 123
        with RestClient(f"127.0.0.1:{ports['rest_port']}") as rest_client:
            assert rest_client.wait_until_available("half_plus_two", timeout=60) == 123
