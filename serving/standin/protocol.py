"""Status codes, errors and the largest request, which the gRPC and REST interfaces share.

This module imports neither TensorFlow nor gRPC.
"""

import enum


class Code(enum.IntEnum):
    """The status codes of gRPC, which are also those of TensorFlow's errors."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


MAX_REQUEST_BYTES = 64 * 2**20
"""Largest request that the stand-in accepts by default: 111 images of 224 × 224 over gRPC."""


class RequestError(ValueError):
    """A request that is refused, or a response that cannot be read.

    Args:
        code: The status code.
        message: The message, in the words of TensorFlow Serving.

    Attributes:
        code: As given.
        message: As given.
    """

    def __init__(self, code: Code, message: str):
        super().__init__(message)
        self.code = code
        self.message = message


def invalid_argument(message: str) -> RequestError:
    """Return the error of a request that is wrong whatever the state of the server."""
    return RequestError(Code.INVALID_ARGUMENT, message)


def not_found(message: str) -> RequestError:
    """Return the error of a request for a model or version that is not served."""
    return RequestError(Code.NOT_FOUND, message)


def failed_precondition(message: str) -> RequestError:
    """Return the error of a request that the state of the server does not allow."""
    return RequestError(Code.FAILED_PRECONDITION, message)


def unavailable(message: str) -> RequestError:
    """Return the error of a request that may succeed later."""
    return RequestError(Code.UNAVAILABLE, message)


def unimplemented(message: str) -> RequestError:
    """Return the error of a request for a method that the server does not have."""
    return RequestError(Code.UNIMPLEMENTED, message)
