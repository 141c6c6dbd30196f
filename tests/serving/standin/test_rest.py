"""The HTTP of the stand-in: unusual, malformed, slow and simultaneous requests.

Requests that `requests` cannot send are written to a socket.

Every answer to a request that is wrong is one JSON object `{"error": …}`, and the server goes on.
"""

import concurrent.futures
import contextlib
import gc
import gzip
import http.client
import json
import re
import socket
import threading

import psutil
import pytest
import requests

from keras_mas.serving.standin import StandIn, config_of, rest
from keras_mas.serving.standin.models import THREADS, ServedModels

HALF = "half_plus_two"
PREDICT = f"/v1/models/{HALF}:predict"


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.rest_port}/v1/models"


@pytest.fixture
def send(server):
    """A function that sends bytes over a new connection and parses the response."""

    def send(request, method="POST"):
        with socket.create_connection(("127.0.0.1", server.rest_port), timeout=10) as connection:
            connection.sendall(request)
            response = http.client.HTTPResponse(connection, method=method)
            response.begin()
            return response.status, response.read()

    return send


@pytest.fixture(autouse=True)
def goes_on_without_a_traceback(server, capfd):
    """After every test the server still answers, and has printed no traceback."""
    yield
    url = f"http://127.0.0.1:{server.rest_port}{PREDICT}"
    answer = requests.post(url, data='{"instances": [2.0]}', timeout=10)
    assert answer.json() == {"predictions": [3.0]}
    assert "Traceback" not in capfd.readouterr().err


def head(*lines):
    return "\r\n".join([*lines, "", ""]).encode()


# Bodies.


def test_a_chunked_body_is_read(url):
    chunks = iter([b'{"instances"', b": [1.0, ", b"2.0]}"])
    answer = requests.post(f"{url}/{HALF}:predict", data=chunks, timeout=10)
    assert (answer.status_code, answer.json()) == (200, {"predictions": [2.5, 3.0]})


@pytest.mark.parametrize("chunk", [b"zz\r\n{}\r\n0\r\n\r\n", b"-2\r\n{}\r\n0\r\n\r\n"])
def test_a_malformed_chunk_is_refused(send, chunk):
    request = head(f"POST {PREDICT} HTTP/1.1", "Host: a", "Transfer-Encoding: chunked") + chunk
    status, body = send(request)
    assert status == 400 and list(json.loads(body)) == ["error"]


@pytest.fixture
def small_limit(server, models):
    """The port of a server that accepts bodies of at most 1,000 bytes."""
    with (
        contextlib.closing(ServedModels(config_of({HALF: models / HALF}))) as served,
        rest.serve_rest(served, "127.0.0.1", 0, 1000) as port,
    ):
        yield port


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_above_the_limit_is_refused(small_limit, chunked):
    body = b'{"instances": [' + b" " * 1001 + b"2.0]}"
    url = f"http://127.0.0.1:{small_limit}{PREDICT}"
    answer = requests.post(url, data=iter([body]) if chunked else body, timeout=10)
    assert answer.status_code == 413 and "1000" in answer.json()["error"]
    below = requests.post(url, data='{"instances": [2.0]}', timeout=10)
    assert below.json() == {"predictions": [3.0]}


GZIP = {"Content-Encoding": "gzip"}


def test_a_compressed_body_is_read(url):
    body = gzip.compress(b'{"instances": [1.0, 2.0]}')
    for data, status in ((body, 200), (body[:-9], 400), (b"no gzip", 400)):
        answer = requests.post(f"{url}/{HALF}:predict", data=data, headers=GZIP, timeout=10)
        assert answer.status_code == status, answer.text
        assert answer.json() == {"predictions": [2.5, 3.0]} or list(answer.json()) == ["error"]


def test_a_compressed_body_is_bounded_by_its_full_size(small_limit):
    url = f"http://127.0.0.1:{small_limit}{PREDICT}"
    for spaces, status in ((900, 200), (10**5, 413)):
        body = gzip.compress(b'{"instances": [' + b" " * spaces + b"2.0]}")
        assert len(body) < 1000
        assert requests.post(url, data=body, headers=GZIP, timeout=10).status_code == status


def test_a_huge_body_is_refused_before_it_is_sent(send):
    status, body = send(head(f"POST {PREDICT} HTTP/1.1", "Host: a", f"Content-Length: {10**12}"))
    assert status == 413 and list(json.loads(body)) == ["error"]


def test_a_huge_chunk_is_refused_before_it_is_sent(send):
    request = head(f"POST {PREDICT} HTTP/1.1", "Host: a", "Transfer-Encoding: chunked")
    status, body = send(request + b"FFFFFFFFFFFFFFFFF\r\n")
    assert status == 413 and list(json.loads(body)) == ["error"]


@pytest.mark.slow
def test_malformed_and_oversized_requests_leave_no_memory_behind(send):
    post = [f"POST {PREDICT} HTTP/1.1", "Host: a"]
    bad = [
        b"hello\r\n\r\n",
        head(*post, "Content-Length: 1000000000") + bytes(10_000),
        head(*post, "Transfer-Encoding: chunked") + b"FFFFFFFFFF\r\n",
        head(*post, "Content-Length: 20000") + b"[" * 20_000,
        head(*post, "Content-Length: 200000") + b"]" * 200_000,
    ]

    def memory_after(rounds):
        for request in bad * rounds:
            assert send(request)[0] in (400, 413)
        gc.collect()
        return psutil.Process().memory_info().rss

    before = memory_after(50)
    # The bodies alone are 57 MB; what is freed is not given back to the system at once.
    assert memory_after(250) - before < 16 * 2**20


@pytest.mark.parametrize("length", ["-1", "two", "1e3", "²"])
def test_a_length_that_is_no_number_is_refused(send, length):
    status, body = send(head(f"POST {PREDICT} HTTP/1.1", "Host: a", f"Content-Length: {length}"))
    assert status == 400 and list(json.loads(body)) == ["error"]


def test_a_body_without_length_or_chunks_is_empty(send):
    status, body = send(head(f"POST {PREDICT} HTTP/1.1", "Host: a"))
    assert status == 400 and "JSON Parse error" in json.loads(body)["error"]


def test_a_length_too_small_cuts_the_body(send):
    request = head(f"POST {PREDICT} HTTP/1.1", "Host: a", "Content-Length: 5", "Connection: close")
    status, body = send(request + b'{"instances": [2.0]}')
    assert status == 400 and "JSON Parse error" in json.loads(body)["error"]


def test_clients_that_hang_up_in_the_middle_of_their_body_keep_no_thread(server, url):
    # More of them than the server has threads.
    for _ in range(2 * THREADS):
        with socket.create_connection(("127.0.0.1", server.rest_port)) as connection:
            request = head(f"POST {PREDICT} HTTP/1.1", "Host: a", "Content-Length: 9")
            connection.sendall(request + b"{")
    answer = requests.post(f"{url}/{HALF}:predict", json={"instances": [2.0]}, timeout=10)
    assert answer.json() == {"predictions": [3.0]}


@pytest.mark.parametrize("depth", [64, 65, 400, 970, 990, 100_000])
@pytest.mark.parametrize("form", ['{"instances": %s}', '{"inputs": %s}', "%s"])
def test_lists_nested_too_deep_are_a_wrong_request(url, form, depth):
    body = form % ("[" * depth + "1" + "]" * depth)
    answer = requests.post(f"{url}/{HALF}:predict", data=body, timeout=10)
    assert answer.status_code in (200, 400), answer.text
    if depth > 64:
        assert answer.status_code == 400 and list(answer.json()) == ["error"]


@pytest.mark.parametrize(
    "body",
    ['{"signature_name": "\\ud800", "inputs": [1]}', '{"inputs": {"\\ud800": [1]}}', "\ufeff{}"],
)
def test_text_that_is_not_utf_8_is_a_wrong_request(url, body):
    answer = requests.post(f"{url}/{HALF}:predict", data=body.encode(), timeout=10)
    assert answer.status_code == 400 and list(answer.json()) == ["error"]


# Requests.


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
def test_other_methods_are_malformed_requests_as_in_tensorflow_serving(url, method):
    answer = requests.request(method, f"{url}/shop", timeout=10)
    assert answer.status_code == 400
    assert answer.json() == {"error": f"Malformed request: {method} /v1/models/shop"}


def test_head_has_no_body(send):
    status, body = send(head("HEAD /v1/models/shop HTTP/1.1", "Host: a"), method="HEAD")
    assert (status, body) == (400, b"")


def test_http_1_0(send):
    body = b'{"instances": [2.0]}'
    status, answer = send(head(f"POST {PREDICT} HTTP/1.0", f"Content-Length: {len(body)}") + body)
    assert (status, json.loads(answer)) == (200, {"predictions": [3.0]})


def test_a_percent_encoded_name_is_decoded(models):
    names = {"cats & dogs/2 %": models / HALF}
    with (
        contextlib.closing(ServedModels(config_of(names))) as served,
        rest.serve_rest(served, "127.0.0.1", 0) as port,
    ):
        url = f"http://127.0.0.1:{port}/v1/models/cats%20%26%20dogs%2F2%20%25"
        assert requests.get(url, timeout=10).status_code == 200
        answer = requests.post(f"{url}:predict", data='{"instances": [2.0]}', timeout=10)
        assert answer.json() == {"predictions": [3.0]}


@pytest.mark.parametrize("path", ["/v1/", "/v1/models/shop/x"])
def test_unknown_paths_are_malformed_requests(send, path):
    status, body = send(head(f"GET {path} HTTP/1.1", "Host: a"), method="GET")
    assert (status, json.loads(body)) == (400, {"error": f"Malformed request: GET {path}"})


@pytest.mark.parametrize(
    "request_",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",  # TLS
        head("GET http://[bad/v1/models HTTP/1.1", "Host: a"),
        head("GET /v1/models/shop HTTP/1.1", "no colon here"),
        head("GET /v1/models/shop HTTP/1.1", "A: " + "x" * 300_000),
        head("POST /v1/models/shop:predict HTTP/1.1", "Transfer-Encoding: gzip"),
    ],
)
def test_malformed_http_is_refused_in_json(send, request_):
    status, body = send(request_)
    assert status in (400, 431, 501) and list(json.loads(body)) == ["error"]


# Many at once, and stopping.


def test_two_hundred_connections_at_once_are_all_answered(server):
    # `socketserver` lets only 5 connections wait, and the others are reset.
    body = b'{"instances": [2.0]}'
    request = head(f"POST {PREDICT} HTTP/1.0", f"Content-Length: {len(body)}") + body
    everyone = threading.Barrier(200)

    def ask(_):
        everyone.wait(timeout=30)
        with socket.create_connection(("127.0.0.1", server.rest_port), timeout=30) as connection:
            connection.sendall(request)
            response = http.client.HTTPResponse(connection)
            response.begin()
            return json.loads(response.read())

    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(ask, range(200)))
    assert answers == [{"predictions": [3.0]}] * 200


def test_threads_are_bounded(server):
    """Idle connections hold no thread."""
    before = threading.active_count()
    address = ("127.0.0.1", server.rest_port)
    connections = [socket.create_connection(address) for _ in range(30)]
    try:
        for connection in connections:
            connection.sendall(head("GET /v1/models/shop HTTP/1.1", "Host: a"))
            assert connection.recv(20).startswith(b"HTTP/1.1 200")
        assert threading.active_count() < before + 10
    finally:
        for connection in connections:
            connection.close()


def test_stopping_lets_a_running_request_finish(models, held_request):
    running, finish = held_request
    server = StandIn({HALF: models / HALF}, grpc_port=0, rest_port=0).start()
    url = f"http://127.0.0.1:{server.rest_port}{PREDICT}"
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        answer = pool.submit(requests.post, url, data='{"instances": [2.0]}', timeout=30)
        assert running.wait(30)
        stopping = pool.submit(server.stop)
        # A server that does not wait is stopped by now, and its model unloaded.
        concurrent.futures.wait([stopping], timeout=0.3)
        finish.set()
        assert answer.result().json() == {"predictions": [3.0]}
        stopping.result()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.rest_port))


def test_a_request_that_does_not_end_is_dropped_after_the_grace_period(
    models, monkeypatch, held_request
):
    monkeypatch.setattr(rest, "GRACE_SECONDS", 0.1)
    running, finish = held_request
    with (
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        contextlib.closing(ServedModels(config_of({HALF: models / HALF}))) as served,
    ):
        with rest.serve_rest(served, "127.0.0.1", 0) as port:
            url = f"http://127.0.0.1:{port}{PREDICT}"
            answer = pool.submit(requests.post, url, data='{"instances": [2.0]}', timeout=30)
            assert running.wait(30)
        finish.set()
        with pytest.raises(requests.ConnectionError):
            answer.result()


def test_an_idle_connection_does_not_delay_stopping(models):
    server = StandIn({HALF: models / HALF}, grpc_port=0, rest_port=0).start()
    with socket.create_connection(("127.0.0.1", server.rest_port)) as connection:
        connection.sendall(head(f"GET /v1/models/{HALF} HTTP/1.1", "Host: a"))
        assert re.match(rb"HTTP/1.1 200", connection.recv(20))
        server.stop()
        while connection.recv(1000):
            pass  # the rest of the answer, and then the end of the connection
