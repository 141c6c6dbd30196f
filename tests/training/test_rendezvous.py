"""Hosts that find each other before TensorFlow connects them: here threads, on loopback."""

import concurrent.futures
import contextlib
import json
import signal
import socket
import threading
import time

import pytest

from keras_mas.errors import UsageError
from keras_mas.training.rendezvous import MissingHostError, meet


@pytest.fixture
def addresses():
    """Addresses of three hosts, whose ports are free."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    found = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return found


def outcomes(*calls):
    """Return for each call of `meet`, all at a time, what it raised, or None."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        futures = [pool.submit(meet, *call) for call in calls]
        return [future.exception(timeout=30) for future in futures]


def connected(address):
    host, _, port = address.rpartition(":")
    end = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection((host, int(port)))
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_all_go_on_when_all_are_there(addresses):
    assert outcomes(*((addresses, number, 30.0) for number in (2, 0, 1))) == [None] * 3
    # The ports are free again, for the servers of TensorFlow.
    assert outcomes(*((addresses, number, 30.0) for number in (0, 1, 2))) == [None] * 3


def test_who_has_not_come_in_time_is_named_by_all_the_others(addresses):
    for error in outcomes((addresses, 0, 2.0), (addresses, 2, 30.0)):
        assert isinstance(error, MissingHostError)
        assert f"nothing from {addresses[1]}. Start" in str(error)
    [lonely] = outcomes((addresses, 1, 0.1))
    assert f"nothing from {addresses[0]}. Start" in str(lonely)


def test_strangers_do_not_hold_up_the_chief_nor_keep_their_connections(addresses, monkeypatch):
    monkeypatch.setattr("keras_mas.training.rendezvous._LINE_SECONDS", 0.2)
    pair = addresses[:2]
    with concurrent.futures.ThreadPoolExecutor() as pool, contextlib.ExitStack() as stack:
        began = time.monotonic()
        chief = pool.submit(meet, pair, 0, 2.0)
        silent = [stack.enter_context(connected(pair[0])) for _ in range(20)]
        for each in silent:
            each.settimeout(10)
            assert each.recv(1) == b""  # the chief has closed it
        assert time.monotonic() - began < 2.0
        assert isinstance(chief.exception(timeout=30), MissingHostError)


def test_hosts_that_were_told_of_others_are_refused_everywhere(addresses):
    others = [addresses[0], addresses[2], addresses[1]]
    errors = outcomes((addresses, 0, 30.0), (others, 1, 30.0))
    assert [type(error) for error in errors] == [UsageError] * 2
    for error in errors:
        assert f"as the chief has them: {', '.join(addresses)}." in str(error)
        assert f"Received: {', '.join(others)} on worker 1." in str(error)


def test_two_of_one_index_are_refused_everywhere(addresses):
    errors = outcomes((addresses, 0, 30.0), (addresses, 1, 30.0), (addresses, 1, 30.0))
    assert [type(error) for error in errors] == [UsageError] * 3
    assert "an index of its own in the TF_CONFIG of every host. Received: index 1 from two" in str(
        errors[0]
    )


def test_a_port_that_is_in_use_is_refused(addresses):
    host, _, port = addresses[0].rpartition(":")
    with (
        socket.create_server((host, int(port))),
        pytest.raises(UsageError, match="a free port for .*Received: address already in use. Wait"),
    ):
        meet(addresses, 0, 30.0)


def test_a_host_that_went_and_came_again_counts_once(addresses):
    chief = threading.Thread(target=meet, args=(addresses, 0, 30.0))
    chief.start()
    with connected(addresses[0]) as gone:
        gone.sendall(json.dumps({"hosts": addresses, "worker": 1}).encode() + b"\n")
        time.sleep(0.2)
    assert outcomes((addresses, 1, 30.0), (addresses, 2, 30.0)) == [None] * 2
    chief.join(30)
    assert not chief.is_alive()


@pytest.mark.parametrize(
    "said",
    [b"", b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"worker": "1"}\n', b"\xff\n", b"1" * 70000]
    + [b"[" * 60000 + b"\n", b'{"worker": 1, "hosts": 5}\n', b'{"worker": 0, "hosts": []}\n'],
)
def test_somebody_else_at_the_port_is_ignored(addresses, said):
    pair = addresses[:2]
    chief = threading.Thread(target=meet, args=(pair, 0, 30.0))
    chief.start()
    with connected(pair[0]) as stranger:
        with contextlib.suppress(OSError):  # of too much the chief has closed the connection
            stranger.sendall(said)
            stranger.shutdown(socket.SHUT_WR)
        assert outcomes((pair, 1, 30.0)) == [None]
    chief.join(30)
    assert not chief.is_alive()


def test_another_server_at_the_address_of_the_chief_is_not_taken_for_it(addresses):
    host, _, port = addresses[0].rpartition(":")
    with socket.create_server((host, int(port))) as server:

        def answer():
            for _ in range(2):  # as a server of gRPC does, and one that says nothing
                connection, _ = server.accept()
                with connection:
                    connection.sendall(b"\x00\x00\x12\x04\n")

        other = threading.Thread(target=answer)
        other.start()
        [error] = outcomes((addresses, 1, 0.6))
        other.join(10)
    assert isinstance(error, MissingHostError)


@pytest.mark.parametrize("number", [0, 1])
def test_a_signal_ends_the_wait(addresses, number):
    class Told(BaseException):
        pass

    def handler(*_):
        raise Told

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        wake = threading.Timer(
            0.3, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1)
        )
        wake.start()
        began = time.monotonic()
        with pytest.raises(Told):
            meet(addresses, number, 30.0)
        assert time.monotonic() - began < 10
    finally:
        wake.join()
        signal.signal(signal.SIGUSR1, before)
