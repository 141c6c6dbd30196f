"""How the hosts of a run find each other, before TensorFlow connects them.

TensorFlow would wait for them too, but with Python's lock held, so that neither Ctrl-C nor a time
limit could end it. So the chief listens first, at the port where TensorFlow will. Every worker
connects and sends a line of JSON, `{"hosts": [HOST:PORT, …], "worker": NUMBER}`. When all have done
so, or one is wrong, or the time is up, the chief answers all who wait with the same line:

- `{"complete": true}`: all are there;
- `{"wrong": TEXT}`: two were told different things;
- `{"missing": [HOST:PORT, …]}`: these have not come.
"""

import contextlib
import dataclasses
import json
import os
import selectors
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_mas.errors import UsageError

# A line may have so many bytes.
_MAX_BYTES = 2**16

# Whoever connects has so many seconds to send a line, or to take one.
_LINE_SECONDS = 5.0

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
    end = time.monotonic() + seconds
    with _server(addresses[number]) as server:
        if number == 0:
            with _Chief(list(addresses), server) as chief:
                chief.gather(end)
            return
    _report(list(addresses), number, end)


def _server(address: str) -> socket.socket:
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


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


@dataclasses.dataclass(eq=False)
class _Peer:
    """Whoever has connected to the chief.

    Attributes:
        connection: The connection, which does not block.
        until: When it is closed if no line has come.
        received: What has come.
        number: The number of the worker that it has said to be; None before.
    """

    connection: socket.socket
    until: float
    received: bytes = b""
    number: int | None = None


class _Chief:
    """The chief's side: workers that wait for the others, and strangers, who are ignored."""

    def __init__(self, addresses: list[str], server: socket.socket):
        self.addresses, self.server = addresses, server
        self.waiting: dict[int, _Peer] = {}
        self.selector = selectors.DefaultSelector()

    def __enter__(self) -> "_Chief":
        self.selector.register(self.server, selectors.EVENT_READ)
        return self

    def __exit__(self, *exception: object) -> None:
        for peer in self._peers():
            self._drop(peer)
        self.selector.close()

    def gather(self, end: float) -> None:
        """Wait until every worker is there, and let all go on."""
        while len(self.waiting) < len(self.addresses) - 1:
            now = time.monotonic()
            if now >= end:
                numbers = range(1, len(self.addresses))
                missing = [self.addresses[k] for k in numbers if k not in self.waiting]
                self._answer({"missing": missing})
                raise _missing(missing)
            for key, _ in self.selector.select(min(end - now, _LINE_SECONDS)):
                if key.data is None:
                    self._accept()
                else:
                    self._read(key.data)
            self._drop_silent()
        self.server.close()  # TensorFlow is next
        self._answer({"complete": True})

    def _accept(self) -> None:
        connection, _ = self.server.accept()
        connection.setblocking(False)
        peer = _Peer(connection, time.monotonic() + _LINE_SECONDS)
        self.selector.register(connection, selectors.EVENT_READ, peer)

    def _read(self, peer: _Peer) -> None:
        """Take what has come from a peer; nothing comes from a worker that waits but its end."""
        try:
            piece = peer.connection.recv(4096)
        except OSError:
            piece = b""
        peer.received += piece
        if not piece or peer.number is not None or len(peer.received) > _MAX_BYTES:
            self._drop(peer)
        elif peer.received.endswith(b"\n"):
            self._greet(peer)

    def _greet(self, peer: _Peer) -> None:
        """Have a worker wait, or refuse all if it was told anything else than the chief."""
        said = _parsed(peer.received)
        number, hosts = said.get("worker"), said.get("hosts")
        if type(number) is not int or number < 1 or not isinstance(hosts, list):
            self._drop(peer)
            return
        wrong = self._difference(number, [str(host) for host in hosts])
        if wrong:
            self._answer({"wrong": wrong}, peer)
            raise UsageError(wrong)
        peer.number = number
        self.waiting[number] = peer

    def _difference(self, number: int, hosts: list[str]) -> str | None:
        """Return what is wrong with what a worker says; None if nothing is."""
        if hosts != self.addresses or number >= len(hosts):
            return (
                "Expected the same hosts in the TF_CONFIG of all, as the chief has them: "
                f"{', '.join(self.addresses)}. Received: {', '.join(hosts)} on worker {number}. "
                "Correct one of them, and start all again."
            )
        if number in self.waiting:
            return (
                "Expected an index of its own in the TF_CONFIG of every host. Received: index "
                f"{number} from two of them. Correct one, and start all again."
            )
        return None

    def _peers(self) -> list[_Peer]:
        return [key.data for key in self.selector.get_map().values() if key.data is not None]

    def _drop_silent(self) -> None:
        now = time.monotonic()
        for peer in self._peers():
            if peer.number is None and now >= peer.until:
                self._drop(peer)

    def _drop(self, peer: _Peer) -> None:
        self.selector.unregister(peer.connection)
        peer.connection.close()
        if peer.number is not None:
            del self.waiting[peer.number]

    def _answer(self, content: Mapping[str, Any], *others: _Peer) -> None:
        for peer in (*self.waiting.values(), *others):
            with contextlib.suppress(OSError):  # of one that has gone, which TensorFlow will notice
                peer.connection.settimeout(_LINE_SECONDS)
                peer.connection.sendall(_line(content))


def _report(addresses: list[str], number: int, end: float) -> None:
    """Tell the chief, as a worker, that this one is there, and wait until all are."""
    while (now := time.monotonic()) < end:
        answer: dict[str, Any] = {}
        with contextlib.suppress(OSError):
            answer = _answered(addresses, number, end - now)
        if "complete" in answer:
            return
        if "wrong" in answer:
            raise UsageError(str(answer["wrong"]))
        if "missing" in answer:
            raise _missing(map(str, answer["missing"]))
        time.sleep(_PAUSE)
    raise _missing(addresses[:1])


def _answered(addresses: list[str], number: int, seconds: float) -> dict[str, Any]:
    """Return the chief's answer; empty if something else is at its address."""
    timeout = min(seconds, _LINE_SECONDS)
    with socket.create_connection(_parts(addresses[0]), timeout=timeout) as connection:
        connection.sendall(_line({"hosts": addresses, "worker": number}))
        connection.settimeout(seconds)
        with connection.makefile("rb") as file:
            return _parsed(file.readline(_MAX_BYTES))


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any]:
    """Return the object of a line; empty if it holds anything else."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _missing(addresses: Iterable[str]) -> MissingHostError:
    return MissingHostError(
        f"Not all hosts have come in time: nothing from {', '.join(addresses)}. Start the same "
        "command on every host, with its own index in TF_CONFIG, and see that the ports can be "
        "reached."
    )
