"""Outputs of the stand-in as the messages of TensorFlow."""

from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from .. import messages


def write_tensor(proto: tensor_pb2.TensorProto, value: Any) -> None:
    """Write an array, or the bare value of rank 0 that a session returns, into a `TensorProto`.

    The values are listed in the field of their type, where clients of the server look for them
    (`Tensor::AsProtoField` in its predict_util.cc).
    """
    array = np.asarray(value, object if isinstance(value, bytes) else None)
    if array.dtype.name in messages.TYPES:
        messages.fill(proto, array, one_by_one=True)
    else:  # bfloat16, for example
        proto.CopyFrom(tf.make_tensor_proto(value))
