import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import any_pb2
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    status_pb2,
)
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from keras_mas.serving import messages

MODULES = (
    tensor_pb2,
    meta_graph_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
    tensor_shape_pb2,
    status_pb2,
)


def generated(name):
    """Return the descriptor of a message in the generated modules, by its last name."""
    if name == "Dim":
        return tensor_shape_pb2.TensorShapeProto.Dim.DESCRIPTOR
    return next(getattr(m, name) for m in MODULES if hasattr(m, name)).DESCRIPTOR


def kind(field, as_bytes=False):
    """Return all that the wire knows of a field, and the name of its message.

    On the wire a message within another one is its bytes, and may be declared so.
    """
    message = field.message_type
    if message is not None and as_bytes:
        return field.name, field.TYPE_BYTES, field.is_repeated, None
    if message is not None and message.GetOptions().map_entry:
        return field.name, field.type, {name: kind(f) for name, f in message.fields_by_name.items()}
    return field.name, field.type, field.is_repeated, message and message.name


@pytest.mark.parametrize("name", messages.CLASSES)
def test_every_field_is_that_of_the_official_message(name):
    official = generated(name).fields_by_number
    for number, field in messages.CLASSES[name].DESCRIPTOR.fields_by_number.items():
        assert kind(field) == kind(official[number], as_bytes=field.type == field.TYPE_BYTES)


def test_a_configuration_is_sent_as_its_bytes():
    config = ModelServerConfig()
    config.model_config_list.config.add(name="shop", base_path="/models/shop")
    sent = messages.ReloadConfigRequest(config=config.SerializeToString()).SerializeToString()
    assert model_management_pb2.ReloadConfigRequest.FromString(sent).config == config


def test_numbers_of_types_and_states_are_the_official_ones():
    types = messages.CLASSES["TensorProto"].DESCRIPTOR.fields_by_name["dtype"].enum_type
    assert {v.name: v.number for v in types.values}.items() <= dict(
        types_pb2.DataType.items()
    ).items()
    states = get_model_status_pb2.ModelVersionStatus.State
    assert {number: name for name, number in states.items()} == messages.STATES


ARRAYS = [
    np.array([[1.5, -2.0], [np.nan, np.inf]], np.float32),
    np.array(0.1),  # float64, of rank 0
    np.arange(-3, 3, dtype=np.int8),
    np.array([1.5, -0.25], np.float16),
    np.array([[True], [False]]),
    np.array([2**63], np.uint64),
    np.zeros((0, 3), np.int64),
    np.array([b"\x00a\x00", b""], object),
    np.arange(6, dtype=">i4").reshape(2, 3).T,
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: f"{array.dtype}{array.shape}")
def test_tensorflow_reads_what_is_written_and_writes_what_is_read(array):
    sent = messages.tensor_of(messages.as_array(array)).SerializeToString()
    read = tf.make_ndarray(tensor_pb2.TensorProto.FromString(sent))
    np.testing.assert_array_equal(read, array)
    assert read.dtype == array.dtype.newbyteorder("=")

    native = array.astype(array.dtype.newbyteorder("="))  # TensorFlow sends others as they lie
    received = messages.TensorProto.FromString(tf.make_tensor_proto(native).SerializeToString())
    np.testing.assert_array_equal(messages.array_of(received), array)


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        ([1.0, 2.0], np.float32),
        ([1, 2.5], np.float32),
        ([1, 2], np.int32),
        ([2**31], np.int64),
        ([[True]], np.bool_),
        (["a", b"b\x00"], object),
        ([np.float64(1.0)], np.float32),  # a subclass of float
    ],
)
def test_python_values_get_the_type_that_tensorflow_gives_them(value, dtype):
    array = messages.as_array(value)
    expected = tf.make_ndarray(tf.make_tensor_proto(value))
    assert array.dtype == expected.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"float_val": [7.0]},  # the last value fills the rest
        {"float_val": [7.0, 8.0]},
        {"float_val": []},
    ],
)
def test_fewer_values_than_the_shape_asks_for_are_repeated(fields):
    official = tensor_pb2.TensorProto(dtype=1, **fields)
    official.tensor_shape.dim.add(size=3)
    received = messages.TensorProto.FromString(official.SerializeToString())
    np.testing.assert_array_equal(messages.array_of(received), tf.make_ndarray(official))


@pytest.mark.parametrize(
    ("fields", "sizes"),
    [
        ({"dtype": 1, "float_val": [1.0, 2.0]}, [1]),
        ({"dtype": 1, "tensor_content": b"12345678"}, [1]),
        ({"dtype": 1}, [-1]),
        ({"dtype": 8}, [1]),
    ],
)
def test_what_is_no_tensor_is_refused(fields, sizes):
    tensor = messages.TensorProto(**fields)
    for size in sizes:
        tensor.tensor_shape.dim.add(size=size)
    with pytest.raises((TypeError, ValueError)):
        messages.array_of(tensor)


def test_signatures_come_packed():
    official = get_model_metadata_pb2.SignatureDefMap()
    official.signature_def["pets"].inputs["x"].dtype = 1
    packed = any_pb2.Any()
    packed.Pack(official)
    read = messages.SignatureDefMap.FromString(packed.value)
    assert messages.dtype_of(read.signature_def["pets"].inputs["x"].dtype) == np.float32
