"""Writes what Caffe writes, byte by byte: its protocol buffer `NetParameter`."""

import numpy as np


def network(layers: dict, form: str = "new") -> bytes:
    """Return a file of layers `{name: arrays}`, as Caffe writes it, or wrote it before 2014."""
    of_net, of_name, of_blobs = (2, 4, 6) if form == "old" else (100, 1, 7)
    written = [
        part(of_name, name.encode()) + b"".join(part(of_blobs, blob(each, form)) for each in arrays)
        for name, arrays in layers.items()
    ]
    return part(1, b"its name") + b"".join(part(of_net, layer) for layer in written)


def blob(array: np.ndarray, form: str) -> bytes:
    """Return an array with its shape; in the old form of four axes, in "double" of float64."""
    if form == "old":
        four = (1,) * (4 - array.ndim) + array.shape
        axes = b"".join(varint(axis << 3) + varint(size) for axis, size in enumerate(four, 1))
        return axes + part(5, array.astype("<f4").tobytes())
    number, dtype = (8, "<f8") if form == "double" else (5, "<f4")
    shape = part(1, b"".join(map(varint, array.shape)))
    return part(number, array.astype(dtype).tobytes()) + part(7, shape)


def part(number: int, content: bytes) -> bytes:
    """Return a field of so many bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """Return a whole number in groups of seven bits, the lowest first."""
    more, low = divmod(value, 128)
    return bytes([low | 128]) + varint(more) if more else bytes([low])
