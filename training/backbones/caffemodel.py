"""The weights in a `.caffemodel` file, in which Caffe keeps a network that it has learned.

The file is a protocol buffer, a `NetParameter` of Caffe's `caffe.proto`. What is read of it are the
fields below, by their numbers there, in the two forms that Caffe writes and has written: a list
`layer`, or before 2014 a list `layers`.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FIELD = descriptor_pb2.FieldDescriptorProto

# Messages with their fields: name, number, type, and whether it is repeated. The numbers of a blob
# are packed, and so as many bytes as `bytes` would be, which need not be unpacked one by one.
_MESSAGES = {
    "Shape": [("dim", 1, "int64", True)],
    "Blob": [
        ("num", 1, "int64", False),
        ("channels", 2, "int64", False),
        ("height", 3, "int64", False),
        ("width", 4, "int64", False),
        ("data", 5, "bytes", False),
        ("shape", 7, "Shape", False),
        ("double_data", 8, "bytes", False),
    ],
    "Layer": [("name", 1, "string", False), ("blobs", 7, "Blob", True)],
    "OldLayer": [("name", 4, "string", False), ("blobs", 6, "Blob", True)],
    "Net": [("layers", 2, "OldLayer", True), ("layer", 100, "Layer", True)],
}


def read_caffemodel(path: Path) -> dict[str, list[np.ndarray]]:
    """Return the arrays of every layer by its name, in the order of the file.

    Args:
        path: The file.

    Returns:
        Kernels `[O, I, H, W]` or `[O, I]` and biases `[O]`, in which order a layer has them; an
        empty list for a layer without weights.

    Raises:
        ValueError: If it is no such file.
        google.protobuf.message.DecodeError: If it is no protocol buffer, or a part of one.
    """
    net = _net_class().FromString(path.read_bytes())
    found = {
        layer.name: [_array(blob) for blob in layer.blobs] for layer in [*net.layer, *net.layers]
    }
    if not any(found.values()):
        raise ValueError("it holds no layer with weights")
    return found


def _array(blob):
    values = np.frombuffer(blob.data, "<f4")
    if blob.double_data:
        values = np.frombuffer(blob.double_data, "<f8").astype("float32")
    return values.reshape(_shape(blob))


def _shape(blob) -> Sequence[int]:
    if blob.HasField("shape"):
        return blob.shape.dim
    # Early versions gave every blob four axes: a bias is [1, 1, 1, O], and a matrix [1, 1, O, I].
    four = [blob.num, blob.channels, blob.height, blob.width]
    if four[:2] != [1, 1]:
        return four
    return four[3:] if four[2] == 1 else four[2:]


@functools.cache
def _net_class() -> Any:
    """Return the class of a `NetParameter` with the fields that are read."""
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, number, kind, is_repeated in fields:
            label = _FIELD.LABEL_REPEATED if is_repeated else _FIELD.LABEL_OPTIONAL
            field = described.field.add(name=name, number=number, label=label)
            if kind in _MESSAGES:
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".caffe.{kind}"
            else:
                field.type = _FIELD.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.Net"))
