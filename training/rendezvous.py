"""How the hosts of a run find each other, before TensorFlow connects them.

TensorFlow would wait for them too, but with Python's lock held, so that neither Ctrl-C nor a time
limit could end it. So the chief listens first where it will serve, and lets all go on when every
worker has told it which one it is, and of which hosts.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from keras_mas.errors import UsageError

# Bytes that the others are read up to, and seconds that whoever connects has to say who it is.
_MOST, _SECONDS = 2**16, 5.0

# Seconds between two attempts to reach the chief.
_PAUSE = 0.2


class MissingHostError(RuntimeError):
    """Not all hosts have come in time."""


def meet(addresses: Sequence[str], number: int, seconds: float) -> None:
    """Return when all hosts of a run are there.

    Args:
        addresses: HOST:PORT of each, the chief's first.
        number: That of this process among them.
        seconds: How long it waits for the others.

    Raises:
        UsageError: If the port of this process is in use, or two were told different things.
        MissingHostError: If not all have come in time.
    """
    with _server(addresses[number]) as server:
        if number == 0:
            _gather(list(addresses), server, time.monotonic() + seconds)
            return
    _report(list(addresses), number, time.monotonic() + seconds)


def _server(address):
    """Return a server at the port of an address, where TensorFlow will have its own."""
    _, port = _parts(address)
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except OSError as error:
        raise UsageError(
            f"Expected a free port for this host, '{address}' in TF_CONFIG. Received: "
            f"{os.strerror(error.errno or 0).lower()}. Wait until an earlier run has ended, give "
            "every process its own index, or choose another port."
        ) from error


def _parts(address):
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _gather(addresses, server, end):
    """Wait, as the chief, until every worker is there, and let all go on."""
    there: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as open_ones:
        while len(there := _still_open(there)) < len(addresses) - 1:
            connection = _accepted(server, end)
            if connection is None:
                missing = [each for k, each in enumerate(addresses) if k and k not in there]
                raise _missing(missing)
            open_ones.enter_context(connection)
            said = _received(connection, _SECONDS)
            number = said.get("worker")
            if not isinstance(number, int):
                continue  # somebody else
            wrong = _difference(said, addresses, _still_open(there))
            if wrong:
                _tell([*there.values(), connection], wrong)
                raise UsageError(wrong)
            there[number] = connection
        server.close()  # TensorFlow is next
        _tell(there.values(), None)


def _accepted(server, end):
    server.settimeout(max(0.01, end - time.monotonic()))
    try:
        return server.accept()[0]
    except TimeoutError:
        return None


def _difference(said, addresses, there):
    """Return what is wrong with what a worker says; None if nothing is."""
    number, others = said["worker"], said.get("hosts")
    if others != addresses:
        return (
            f"Expected the same hosts in the TF_CONFIG of all, as the chief has them: "
            f"{', '.join(addresses)}. Received: {', '.join(map(str, others or ()))} on worker "
            f"{number}. Correct one of them, and start all again."
        )
    if number in there:
        return (
            f"Expected an index of its own in the TF_CONFIG of every host. Received: {number} of "
            "two. Correct one of them, and start all again."
        )
    return None


def _still_open(there):
    """Return the workers that have not gone while they waited."""
    return {number: each for number, each in there.items() if _is_open(each)}


def _is_open(connection):
    """Return whether the other end is still there, which says nothing more while it waits."""
    connection.settimeout(0.0)
    try:
        return connection.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def _tell(connections, wrong):
    for connection in connections:
        with contextlib.suppress(OSError):  # of one that has gone, which TensorFlow will notice
            connection.settimeout(_SECONDS)
            connection.sendall(_line({"wrong": wrong}))


def _report(addresses, number, end):
    """Tell the chief, as a worker, that this one is there, and wait until all are."""
    answer: dict[str, Any] = {}
    while "wrong" not in answer:
        with contextlib.suppress(OSError):
            answer = _answer(addresses, number, end)
        if time.monotonic() >= end:
            raise _missing(addresses[:1])
        time.sleep(_PAUSE)
    if answer["wrong"] is not None:
        raise UsageError(str(answer["wrong"]))


def _answer(addresses, number, end):
    rest = max(0.01, end - time.monotonic())
    with socket.create_connection(_parts(addresses[0]), timeout=min(rest, _SECONDS)) as connection:
        connection.sendall(_line({"hosts": addresses, "worker": number}))
        return _received(connection, rest)


def _line(content):
    return json.dumps(content).encode() + b"\n"


def _received(connection, seconds):
    """Return the object that the other end sends in a line; empty if it sends anything else."""
    end, content = time.monotonic() + seconds, b""
    try:
        while not content.endswith(b"\n") and len(content) < _MOST:
            connection.settimeout(max(0.01, end - time.monotonic()))
            piece = connection.recv(4096)
            if not piece:
                return {}
            content += piece
        said = json.loads(content)
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _missing(addresses):
    return MissingHostError(
        f"Not all hosts have come in time: nothing from {', '.join(addresses)}. Start the same "
        "command on every host, with its own index in TF_CONFIG, and see that the ports can be "
        "reached."
    )
