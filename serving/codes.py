"""What the two interfaces of a server share: names for failures, and the size of a message."""

import grpc
import tensorflow as tf

STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
"""`tf.errors.OpError.error_code`, an integer, to gRPC status code."""

HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "INTERNAL": 500,
    "UNKNOWN": 500,
    "DATA_LOSS": 500,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
"""Name of a gRPC status code to the HTTP status that TensorFlow Serving gives it."""

MESSAGE_LIMITS = [
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.max_send_message_length", 64 * 2**20),
]
"""gRPC options. Python's own limit, 4 MB, is less than a batch of seven images of 224 × 224."""


def invalid_argument(message):
    """Return the error of a request that no server in any state could answer."""
    return tf.errors.InvalidArgumentError(None, None, message)


def not_found(message):
    """Return the error of a request for a model or version that is not served."""
    return tf.errors.NotFoundError(None, None, message)
