"""Connections of HTTP whose timeout is for a whole answer.

A timeout of a socket is for each part that arrives: of a server that sends a byte now and then, or
one `100 Continue` after the other, http.client would read the head of an answer for ever.
"""

import http.client
import io
import socket
import time
from typing import Any

import urllib3
from urllib3 import connection, connectionpool


class _UntilLate(io.RawIOBase):
    """What a socket receives until its timeout, as it was in the beginning, has passed."""

    def __init__(self, received: io.RawIOBase, sock: socket.socket):
        self._received, self._sock = received, sock
        timeout = sock.gettimeout()
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._deadline is not None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._sock.settimeout(left)
        return self._received.readinto(buffer)

    def fileno(self) -> int:
        return self._received.fileno()

    def close(self) -> None:
        self._received.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: Any, *args: Any, **options: Any):
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_UntilLate(self.fp.detach(), sock))


class _Http(connection.HTTPConnection):
    response_class = _Response


class _Https(connection.HTTPSConnection):
    response_class = _Response


class _HttpPool(connectionpool.HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(connectionpool.HTTPSConnectionPool):
    ConnectionCls = _Https


def connection_pool(**options: Any) -> urllib3.PoolManager:
    """Return a pool of connections over which nothing is asked twice.

    Args:
        **options: Further arguments of `urllib3.PoolManager`.
    """
    pool = urllib3.PoolManager(retries=False, **options)
    pool.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
    return pool
