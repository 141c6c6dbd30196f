"""The messages of TensorFlow Serving's gRPC interface that clients need, without TensorFlow.

The generated modules of tensorflow-serving-api import `tensorflow`, which takes seconds. A message
on the wire is fields by number, so here the same fields are declared again, with the names and
numbers of TensorFlow 2.21 and TensorFlow Serving 2.21; the tests compare them with the generated
modules. Fields that a client does not need are left out, and skipped where a server sends them.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

_PACKAGE = "keras_mas.serving.messages"

_ENUMS: dict[str, dict[str, int]] = {
    "DataType": {
        "DT_INVALID": 0,
        "DT_FLOAT": 1,
        "DT_DOUBLE": 2,
        "DT_INT32": 3,
        "DT_UINT8": 4,
        "DT_INT16": 5,
        "DT_INT8": 6,
        "DT_STRING": 7,
        "DT_COMPLEX64": 8,
        "DT_INT64": 9,
        "DT_BOOL": 10,
        "DT_BFLOAT16": 14,
        "DT_UINT16": 17,
        "DT_COMPLEX128": 18,
        "DT_HALF": 19,
        "DT_RESOURCE": 20,
        "DT_VARIANT": 21,
        "DT_UINT32": 22,
        "DT_UINT64": 23,
    },
    "State": {
        "UNKNOWN": 0,
        "START": 10,
        "LOADING": 20,
        "AVAILABLE": 30,
        "UNLOADING": 40,
        "END": 50,
    },
    "Code": {"OK": 0},  # of which there are more; what is no OK is an error
}

# See `message_classes`.
_MESSAGES: dict[str, Sequence[str]] = {
    "Dim": ["1 size int64", "2 name string"],
    "TensorShapeProto": ["2 dim repeated Dim", "3 unknown_rank bool"],
    "TensorProto": [
        "1 dtype DataType",
        "2 tensor_shape TensorShapeProto",
        "4 tensor_content bytes",
        "5 float_val repeated float",
        "6 double_val repeated double",
        "7 int_val repeated int32",
        "8 string_val repeated bytes",
        "10 int64_val repeated int64",
        "11 bool_val repeated bool",
        "13 half_val repeated int32",
        "16 uint32_val repeated uint32",
        "17 uint64_val repeated uint64",
    ],
    "TensorInfo": ["1 name string", "2 dtype DataType", "3 tensor_shape TensorShapeProto"],
    "SignatureDef": [
        "1 inputs map TensorInfo",
        "2 outputs map TensorInfo",
        "3 method_name string",
    ],
    "SignatureDefMap": ["1 signature_def map SignatureDef"],
    "ModelSpec": [
        "1 name string",
        "2 version google.protobuf.Int64Value",
        "3 signature_name string",
        "4 version_label string",
    ],
    "PredictRequest": ["1 model_spec ModelSpec", "2 inputs map TensorProto"],
    "PredictResponse": ["1 outputs map TensorProto", "2 model_spec ModelSpec"],
    "GetModelMetadataRequest": ["1 model_spec ModelSpec", "2 metadata_field repeated string"],
    "GetModelMetadataResponse": [
        "1 model_spec ModelSpec",
        "2 metadata map google.protobuf.Any",
    ],
    "GetModelStatusRequest": ["1 model_spec ModelSpec"],
    "StatusProto": ["1 error_code Code", "2 error_message string"],
    "ModelVersionStatus": ["1 version int64", "2 state State", "3 status StatusProto"],
    "GetModelStatusResponse": ["1 model_version_status repeated ModelVersionStatus"],
    # A message within another one is its bytes; those of a `ModelServerConfig` are given as such.
    "ReloadConfigRequest": ["1 config bytes"],
    "ReloadConfigResponse": ["1 status StatusProto"],
}


def message_classes(
    package: str,
    messages: Mapping[str, Sequence[str]],
    enums: Mapping[str, Mapping[str, int]] | None = None,
) -> dict[str, Any]:
    """Return the classes of messages in proto3.

    Args:
        package: Package of protobuf that the messages are in.
        messages: The fields of each message by its name. A field is "number name type", with
            "repeated" or, for a map from strings, "map" before the type: one of protobuf, as
            "int64" or "google.protobuf.Int64Value", a message or an enum.
        enums: The values of each enum by its name, and their numbers.
    """
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package.replace('.', '/')}.proto", package=package, syntax="proto3"
    )
    file.dependency.extend([wrappers_pb2.DESCRIPTOR.name, any_pb2.DESCRIPTOR.name])
    for name, values in (enums or {}).items():
        enum = file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for line in fields:
            _add_field(message, *line.split())
    # A pool of its own: nothing here can collide with TensorFlow's in the same process.
    pool = descriptor_pool.DescriptorPool()
    for of_google in (wrappers_pb2, any_pb2):
        pool.AddSerializedFile(of_google.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{package}.{name}"))
        for name in messages
    }


def _add_field(message: descriptor_pb2.DescriptorProto, number: str, name: str, *kind: str) -> None:
    field = message.field.add(name=name, number=int(number))
    field.label = field.LABEL_REPEATED if len(kind) == 2 else field.LABEL_OPTIONAL
    if kind[0] == "map":
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "1", "key", "string")
        _add_field(entry, "2", "value", kind[1])
        field.type_name = entry.name
    elif kind[-1].islower() and "." not in kind[-1]:
        field.type = field.Type.Value(f"TYPE_{kind[-1].upper()}")
    else:  # protobuf finds out whether the name is that of a message or of an enum
        field.type_name = kind[-1]


CLASSES: Mapping[str, Any] = message_classes(_PACKAGE, _MESSAGES, _ENUMS)
"""The class of every message by its name, which is that of TensorFlow or TensorFlow Serving."""

TensorProto = CLASSES["TensorProto"]
SignatureDefMap = CLASSES["SignatureDefMap"]
ModelSpec = CLASSES["ModelSpec"]
PredictRequest = CLASSES["PredictRequest"]
PredictResponse = CLASSES["PredictResponse"]
GetModelMetadataRequest = CLASSES["GetModelMetadataRequest"]
GetModelMetadataResponse = CLASSES["GetModelMetadataResponse"]
GetModelStatusRequest = CLASSES["GetModelStatusRequest"]
GetModelStatusResponse = CLASSES["GetModelStatusResponse"]
ReloadConfigRequest = CLASSES["ReloadConfigRequest"]
ReloadConfigResponse = CLASSES["ReloadConfigResponse"]

DATA_TYPES: Mapping[int, str] = {number: name for name, number in _ENUMS["DataType"].items()}
"""The types of tensors by number, as "DT_FLOAT"."""

STATES: Mapping[int, str] = {number: name for name, number in _ENUMS["State"].items()}
"""The state of a version by its number."""

TYPES: Mapping[str, tuple[int, str]] = {
    "float32": (1, "float_val"),
    "float64": (2, "double_val"),
    "int32": (3, "int_val"),
    "uint8": (4, "int_val"),
    "int16": (5, "int_val"),
    "int8": (6, "int_val"),
    "object": (7, "string_val"),
    "int64": (9, "int64_val"),
    "bool": (10, "bool_val"),
    "uint16": (17, "int_val"),
    "float16": (19, "half_val"),
    "uint32": (22, "uint32_val"),
    "uint64": (23, "uint64_val"),
}
"""The types that NumPy has, by name: the number, and the field that holds values one by one."""

_NAMES = {number: name for name, (number, _) in TYPES.items()}


def dtype_of(number: int) -> np.dtype:
    """Return the NumPy type of a `DataType`; object for strings.

    Raises:
        TypeError: If there is none.
    """
    if number not in _NAMES:
        raise TypeError(f"tensors of the type with number {number} cannot be read")
    return np.dtype(_NAMES[number])


def as_array(value: Any) -> np.ndarray:
    """Return what a tensor of a value would hold, typed as TensorFlow types it.

    Lists of Python floats are float32, of Python integers int32 where they fit. Strings become
    object arrays of `bytes`.

    Raises:
        TypeError: If the value has a type that no tensor has.
        ValueError: If lists are ragged.
    """
    leaf = _first_leaf(value)
    # NumPy's own type for bytes would drop zeros at the end.
    array = np.asarray(value, object if isinstance(leaf, str | bytes) else None)
    if isinstance(leaf, int | float) and not isinstance(value, np.generic):  # Python's numbers
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        elif _fits(array, np.int32):
            array = array.astype(np.int32)
    if array.dtype.kind in "OSU":
        array = _of_bytes(array)
    _check_type(array)
    return array


def _check_type(array: np.ndarray) -> None:
    if array.dtype.name not in TYPES:
        raise TypeError(f"no tensor holds {array.dtype}")


def _first_leaf(value: Any) -> Any:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return value


def _fits(array: np.ndarray, dtype: type) -> bool:
    info = np.iinfo(dtype)
    return array.dtype.kind == "i" and info.min <= array.min() and array.max() <= info.max


def _of_bytes(array: np.ndarray) -> np.ndarray:
    return np.array([_bytes(item) for item in array.flat], object).reshape(array.shape)


def _bytes(item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode()
    if not isinstance(item, bytes):
        raise TypeError(f"no tensor holds {type(item).__name__}")
    return item


def functions_of(signatures: Mapping[str, Any]) -> dict[str, Any]:
    """Return those signatures of a version that can be called.

    TensorFlow Serving lists the operation that initializes the version too.

    Args:
        signatures: Mapping from signature name to `SignatureDef`.
    """
    return {name: each for name, each in signatures.items() if name != "__saved_model_init_op"}


def tensor_of(array: np.ndarray) -> Any:
    """Return the `TensorProto` of an array from `as_array`."""
    tensor = TensorProto()
    fill(tensor, array)
    return tensor


def fill(tensor: Any, array: np.ndarray, *, one_by_one: bool = False) -> None:
    """Write an array into an empty `TensorProto`, of this module or of TensorFlow.

    Args:
        tensor: The message.
        array: Of numbers or booleans, or an object array of `bytes`.
        one_by_one: Whether the values are listed in the field of their type, as `float_val`, in
            place of their bytes.

    Raises:
        TypeError: If the array has none of these types.
    """
    _check_type(array)
    tensor.dtype, field = TYPES[array.dtype.name]
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_shape.SetInParent()  # which says that it is known, also of rank 0
    little_endian = array.dtype.newbyteorder("<")
    if one_by_one and array.size and array.dtype.name in _PACKED:
        data = np.ascontiguousarray(array, little_endian).tobytes()
        tensor.MergeFromString(_field(_PACKED[array.dtype.name], data))
    elif array.dtype == object or one_by_one:
        # The bits of a float16 are sent as an integer.
        values = array.view(np.uint16) if array.dtype == np.float16 else array
        getattr(tensor, field).extend(values.ravel().tolist())
    else:
        tensor.tensor_content = np.ascontiguousarray(array, little_endian).tobytes()


# The numbers of fields whose values protobuf writes as the bytes of an array, by NumPy's types:
# they need not become Python's numbers, which takes seven times as long.
_PACKED = {"float32": 5, "float64": 6, "bool": 11}


def _field(number: int, data: bytes) -> bytes:
    """Return a field of bytes, or of packed numbers, as protobuf writes it."""
    size, length = len(data), bytearray()
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + data


def array_of(tensor: Any) -> np.ndarray:
    """Return the array of a `TensorProto`; strings are object arrays of `bytes`.

    A tensor that gives fewer values than its shape asks for repeats the last one; one that gives
    none holds zeros.

    Raises:
        TypeError: If NumPy lacks the type.
        ValueError: If there are more values than the shape has room for, or the shape is unknown.
    """
    dtype = dtype_of(tensor.dtype)
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    if tensor.tensor_shape.unknown_rank or min(shape, default=0) < 0:
        raise ValueError("a tensor of unknown shape")
    size = math.prod(shape)
    if tensor.tensor_content:
        values = np.frombuffer(tensor.tensor_content, dtype.newbyteorder("<")).astype(dtype)
        if len(values) != size:
            raise ValueError(f"{len(values)} values in a tensor of shape {shape}")
        return values.reshape(shape)
    listed = getattr(tensor, TYPES[dtype.name][1])
    if len(listed) > size:
        raise ValueError(f"{len(listed)} values in a tensor of shape {shape}")
    return _filled(list(_values(listed, dtype)), dtype, size).reshape(shape)


def _values(listed: Any, dtype: np.dtype) -> Iterator[Any]:
    if dtype == np.float16:  # whose bits are sent as an integer
        return iter(np.array(listed, np.uint16).view(np.float16))
    return iter(listed)


def _filled(values: list[Any], dtype: np.dtype, size: int) -> np.ndarray:
    array = np.empty(size, dtype)
    array[:] = values[-1] if values else (b"" if dtype.kind == "O" else 0)
    array[: len(values)] = values
    return array
