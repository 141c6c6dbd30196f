"""Tensors of requests that somebody else wrote to a file, and that may be damaged."""

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

# A message of protobuf has at most 2 GiB, so a tensor that claims more numbers of four bytes was
# never sent. A short one may claim any number: the last value stands for all that are missing.
_MAX_VALUES = 2**29


def array_of(proto: tensor_pb2.TensorProto) -> np.ndarray:
    """Return the array in a `TensorProto`.

    Args:
        proto: The message.

    Raises:
        ValueError: If it is damaged, of a type that no array has, or larger than what can be sent.
    """
    claimed = math.prod(dim.size for dim in proto.tensor_shape.dim)
    if claimed > _MAX_VALUES:
        raise ValueError(f"a tensor of {claimed:,} values, more than a request can hold")
    try:
        return np.asarray(tf.make_ndarray(proto))
    except (KeyError, MemoryError, TypeError, ValueError) as error:
        raise ValueError("a tensor that is damaged, or of a type that cannot be read") from error
