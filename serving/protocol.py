"""Status codes and limits that TensorFlow Serving's gRPC and REST interfaces share."""

import grpc
import tensorflow as tf

STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
"""`tf.errors.OpError.error_code`, an integer, to gRPC status code."""

MESSAGE_LIMITS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", 64 * 2**20),
    ("grpc.max_send_message_length", 64 * 2**20),
]
"""gRPC options, in bytes. The default, 4 MB, holds only six float32 images of 224 × 224."""


def invalid_argument(message: str) -> tf.errors.OpError:
    """Return the error of a request that is wrong whatever the state of the server."""
    return tf.errors.InvalidArgumentError(None, None, message)


def not_found(message: str) -> tf.errors.OpError:
    """Return the error of a request for a model or version that is not served."""
    return tf.errors.NotFoundError(None, None, message)


def unimplemented(message: str) -> tf.errors.OpError:
    """Return the error of a request for a method that the server does not have."""
    return tf.errors.UnimplementedError(None, None, message)
