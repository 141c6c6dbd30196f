import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from keras_mas.serving.standin.tensors import write_tensor

VALUES = [
    np.array([[0.25, 0.75]], np.float32),
    np.array([b"cat", b"\x00"], object),
    np.array([1.5, -2.0], ml_dtypes.bfloat16),
    np.array([1 + 2j], np.complex64),
    np.float32(3.0),  # of rank 0, as a session returns it
    b"cat",
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: str(np.asarray(value).dtype))
def test_tensorflow_reads_what_is_written(value):
    proto = tensor_pb2.TensorProto()
    write_tensor(proto, value)
    read = tf.make_ndarray(proto)
    assert read.dtype == tf.make_ndarray(tf.make_tensor_proto(value)).dtype
    assert read.shape == np.shape(value) and read.tolist() == np.asarray(value).tolist()


@pytest.mark.parametrize(
    ("dtype", "field", "listed"),
    [
        ("float32", "float_val", [0, 1]),
        ("float16", "half_val", [0, 15360]),  # the bits of 1.0
        ("uint8", "int_val", [0, 1]),
        ("bool", "bool_val", [False, True]),
    ],
)
def test_values_are_listed_as_the_server_lists_them(dtype, field, listed):
    proto = tensor_pb2.TensorProto()
    write_tensor(proto, np.array([[0], [1]], dtype))
    assert list(getattr(proto, field)) == listed and not proto.tensor_content


@pytest.mark.parametrize("dtype", ["float32", "float64", "bool", "int64"])
@pytest.mark.parametrize("size", [0, 1, 127, 128, 20_000])
def test_listed_values_of_any_number_are_read_back(dtype, size):
    value = (np.arange(size) % 3).astype(dtype).reshape(-1, 1)[::-1]
    proto = tensor_pb2.TensorProto()
    write_tensor(proto, value)
    assert not proto.tensor_content
    np.testing.assert_array_equal(tf.make_ndarray(proto), value)
