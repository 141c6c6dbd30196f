"""Named arrays in one file, never seen half-written."""

import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np

from .files import atomic_file

# Between the name of a group of arrays and that of an array.
_GROUP = ":"

# Name of the array that holds the number of the format, raised when what is written changes its
# meaning. Files of version 0.1 have none. Each array has a checksum: that of the archive.
_FORMAT_NAME, _FORMAT = "keras_mas_format", 1


def save_arrays(path: str | os.PathLike, arrays: Mapping[str, Any]) -> None:
    """Write arrays by name to an `.npz` file; a crash leaves the old file or the new one.

    Args:
        path: File to write, ending in `.npz`.
        arrays: Dict from name to array.

    Raises:
        ValueError: If the path does not end in `.npz`.
    """
    path = os.fsdecode(path)
    if not path.endswith(".npz"):
        raise ValueError(f"Expected a path that ends in '.npz'. Received: '{path}'.")
    with atomic_file(path) as file:
        np.savez(file, **dict(arrays) | {_FORMAT_NAME: np.array(_FORMAT)})


def load_arrays(
    path: str | os.PathLike, read: Callable[[dict[str, np.ndarray]], Any], what: str
) -> Any:
    """Read a file that `save_arrays` wrote.

    Args:
        path: File to read.
        read: Function from the dict of arrays to what they stand for; raises what it likes.
        what: What the file should be, for the error: "a memory written by `SynapticMemory.save`".

    Returns:
        What `read` returns.

    Raises:
        ValueError: If the file is damaged, of a later format, or something else.
        FileNotFoundError: If there is no such file.
    """
    with open(path, "rb") as file:  # `np.load` leaves a damaged file open
        try:
            arrays = read_archive(file)
            for name, array in arrays.items():
                if not isinstance(array, np.ndarray):  # NumPy returns another file's bytes
                    raise ValueError(f"its '{name}' is no array")
            _check_format(arrays.pop(_FORMAT_NAME, _FORMAT))
            return read(arrays)
        except Exception as error:
            raise ValueError(
                f"Expected {what}. Received: '{path}', which cannot be read as one ({error})."
            ) from error


def read_archive(file: BinaryIO) -> dict[str, np.ndarray]:
    """Return the arrays of an `.npz` file by name, each compared with its checksum.

    NumPy reads as many bytes of an array as its header says, and its checksum is looked at when all
    are read: a damaged header that says less, such as float16 for float32, would pass. It also
    takes whatever is no archive for a pickle.

    Args:
        file: The file, open for reading.

    Raises:
        ValueError: If it is no archive, or holds Python objects.
        BadZipFile: If an array is not as it was written.
    """
    if not zipfile.is_zipfile(file):
        raise ValueError("it is no archive of arrays, or is cut off")
    file.seek(0)
    with np.load(file, allow_pickle=False) as archive:
        damaged = archive.zip.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"Bad CRC-32 for file '{damaged}'")
        return dict(archive)


def _check_format(found):
    if found != _FORMAT:
        raise ValueError(
            f"it has format {found}, and this version of keras_mas reads format {_FORMAT}; use "
            "that which wrote it"
        )


def joined(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the arrays of several groups as one dict, for `save_arrays`."""
    return {
        f"{group}{_GROUP}{name}": array
        for group, arrays in groups.items()
        for name, array in arrays.items()
    }


def split(arrays: Mapping[str, np.ndarray], groups: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the groups that `joined` made one dict of; ValueError if there are others."""
    found: dict[str, dict[str, Any]] = {group: {} for group in groups}
    for key, array in arrays.items():
        group, _, name = key.partition(_GROUP)
        if group not in found:
            raise ValueError(f"Expected arrays of {', '.join(found)}. Received: '{key}'.")
        found[group][name] = array
    return found
