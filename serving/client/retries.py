"""Sending a request again while there is no server to take it."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from .errors import ServingError

_Result = TypeVar("_Result")

# Before the first retry the client waits so long, and twice as long before each further one.
_FIRST_WAIT_SECONDS = 0.1

# A server that stops over gRPC drops what it has received and not begun as CANCELLED; no request of
# these clients is cancelled by anything else.
_NOT_TAKEN = ("UNAVAILABLE", "CANCELLED")


def retried(call: Callable[[float], _Result], timeout: float, retries: int) -> _Result:
    """Call a function, and again while what it raises says that no server took the request.

    Args:
        call: What is called with the seconds that it may take.
        timeout: Seconds that all calls together may take.
        retries: How often it is called again at most.

    Returns:
        What the call returns.

    Raises:
        ServingError: What the last call raises.
    """
    deadline = time.monotonic() + timeout
    seconds, wait = timeout, _FIRST_WAIT_SECONDS
    for left in range(retries, -1, -1):
        try:
            return call(seconds)
        except ServingError as error:
            pause = wait * random.uniform(0.5, 1.0)
            seconds = deadline - time.monotonic() - pause
            if error.code not in _NOT_TAKEN or not left or seconds <= 0:
                raise
        time.sleep(pause)
        wait *= 2
    raise AssertionError  # the last attempt returns or raises
