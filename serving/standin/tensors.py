"""Outputs of the stand-in as the messages of TensorFlow."""

from typing import Any

import numpy as np
import tensorflow as tf

from .. import messages


def write_tensor(proto: Any, value: Any) -> None:
    """Write an array, or the bare value of rank 0 that a session returns, into a `TensorProto`.

    `tf.make_tensor_proto` takes any value, and three times as long as writing an array does.
    """
    if isinstance(value, np.ndarray) and value.dtype.name in messages.TYPES:
        messages.fill(proto, value)
    else:  # bfloat16, for example
        proto.CopyFrom(tf.make_tensor_proto(value))
