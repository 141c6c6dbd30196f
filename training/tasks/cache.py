"""Decoded inputs on disk.

The inputs of a split have a folder, named after what they were decoded from:

    about.json             for people: what is in it, and where it came from
    00000.npy 00001.npy …  the inputs in order, so many to a file; each appears whole or not at all
    00000.json 00001.json … which of these could not be decoded, and why: mostly none; and a
                           checksum of both files
    .lock                  held by the process that writes

Whatever is missing, or is not as it was written, is decoded again. To tell, every process reads the
files once before it uses them: a CRC-32 takes 0.3 s/GB beside the reading, and decoding photographs
20 s/GB on a core. The folder may be removed at any time when nothing reads from it.
"""

import contextlib
import errno
import io
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np

from keras_mas.errors import UsageError
from keras_mas.files import atomic_file, check_writable, remove_unfinished

from ..wording import amount
from .errors import DataError
from .inputs import Inputs, Row

# What is read or written at once, and decoded again at most when a process is killed.
SHARD_BYTES = 64 * 10**6

_ABOUT = "about.json"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# The key of the checksum among the notes, whose others are numbers of rows.
_CHECKSUM = "crc32"

# How much of a file is read at once for its checksum.
_BLOCK_BYTES = 2**20

# The files whose checksums this process has compared, which it does once.
_compared: set[tuple[object, ...]] = set()


@dataclass(frozen=True)
class Shard:
    """A file of inputs: the rows from `start` until `stop`, of type and shape `row`."""

    path: Path
    start: int
    stop: int
    row: Row

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return len(self.header) + len(self) * self.row.nbytes

    @property
    def header(self) -> bytes:
        """What an .npy file of these inputs begins with."""
        file = io.BytesIO()
        description = {
            "descr": np.lib.format.dtype_to_descr(self.row.dtype),
            "fortran_order": False,
            "shape": (len(self), *self.row.shape),
        }
        np.lib.format.write_array_header_1_0(file, description)
        return file.getvalue()

    @property
    def notes(self) -> Path:
        """The file that names the rows that could not be decoded, and has the checksum."""
        return self.path.with_suffix(".json")

    def is_whole(self) -> bool:
        """Return whether the file and its notes are there as they were written."""
        try:
            broken, checksum = self._noted()
            with self.path.open("rb") as file:
                return (
                    os.fstat(file.fileno()).st_size == self.nbytes
                    and file.read(len(self.header)) == self.header
                    and _has_checksum(file, broken, checksum)
                )
        except (OSError, ValueError):
            return False

    def broken(self) -> dict[int, str]:
        """Return the rows that could not be decoded, and why.

        Raises:
            OSError: If there are no notes.
            ValueError: If they are damaged.
        """
        return self._noted()[0]

    def _noted(self):
        """Return the rows that could not be decoded, and the checksum."""
        found = json.loads(self.notes.read_text(encoding="utf-8"))
        is_whole = isinstance(found, dict) and _CHECKSUM in found
        if not is_whole or not all(isinstance(why, str) for why in found.values()):
            raise ValueError(f"'{self.notes}' holds no notes")
        checksum = found.pop(_CHECKSUM)
        return {int(row): why for row, why in found.items()}, checksum

    def write(self, inputs: Iterable[np.ndarray], broken: dict[int, str]) -> None:
        """Write the inputs; `broken` is filled while they are decoded."""
        content = self.row.empty(len(self))
        for index, values in enumerate(inputs):
            content[index] = values
        here = {row: why for row, why in broken.items() if self.start <= row < self.stop}
        notes = here | {_CHECKSUM: _checksum(here, [content.data])}
        with atomic_file(self.notes, "w") as file:
            json.dump(notes, file, indent=2)  # in ASCII: a file's name may be no Unicode
        with atomic_file(self.path) as file:
            file.write(self.header)
            file.write(content.data)

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Read inputs into an array, without leaving them in the process's memory.

        Args:
            rows: `[n]`, of the whole array.
            out: `[n, ...]`, C-contiguous.

        Raises:
            DataError: If the file ends too early, or is gone.
        """
        offset = len(self.header)
        try:
            with self.path.open("rb", buffering=0) as file:
                buffers = out.reshape(len(out), -1).view(np.uint8)
                for row, buffer in zip(rows - self.start, buffers, strict=True):
                    file.seek(offset + int(row) * self.row.nbytes)
                    _read_into(file, buffer.data)
        except (OSError, EOFError) as error:
            raise DataError(
                f"Expected decoded inputs in '{self.path}', as they were written. Received: "
                f"{getattr(error, 'strerror', None) or 'a file that ends too early'}. Run the same "
                "command again: it decodes what is missing."
            ) from error


def _has_checksum(file, broken, checksum):
    """Return whether a file that is open behind its header, with its notes, has a checksum."""
    status = os.fstat(file.fileno())
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, checksum)
    if identity not in _compared:
        blocks = iter(lambda: file.read(_BLOCK_BYTES), b"")
        if _checksum(broken, blocks) != checksum:
            return False
        _compared.add(identity)
    return True


def _checksum(broken, blocks):
    """Return a CRC-32 of the rows that could not be decoded and of the inputs."""
    crc = zlib.crc32(json.dumps(sorted(broken.items())).encode())
    for block in blocks:
        crc = zlib.crc32(block, crc)
    return f"{crc:08x}"


def _read_into(file, buffer):
    while len(buffer):
        count = file.readinto(buffer)
        if not count:
            raise EOFError
        buffer = buffer[count:]


class CachedArray(Inputs):
    """Inputs on disk, in a folder as this module describes it.

    Args:
        folder: The folder, which need not exist.
        count: Number of inputs N.
        row: Type and shape of an input.
        fingerprint: What the inputs are decoded from.
        memory: Bytes that a batch may take.
    """

    def __init__(self, folder: Path, count: int, row: Row, fingerprint: str, memory: int):
        super().__init__((count, *row.shape), row.dtype, in_memory=False)
        self.folder, self.memory = folder, memory
        self._row, self._fingerprint = row, fingerprint
        per_shard = max(1, SHARD_BYTES // max(1, row.nbytes))
        self.shards = [
            Shard(folder / f"{number:05d}.npy", start, min(start + per_shard, count), row)
            for number, start in enumerate(range(0, count, per_shard))
        ]
        self._starts = np.array([shard.start for shard in self.shards])

    @property
    def fingerprint(self) -> str:
        """What the inputs were decoded from."""
        return self._fingerprint

    def missing(self) -> list[Shard]:
        """Return the files that are still to be written, or are damaged."""
        return [shard for shard in self.shards if not shard.is_whole()]

    def broken(self) -> dict[int, str]:
        """Return the rows that could not be decoded, and why."""
        return {row: why for shard in self.shards for row, why in shard.broken().items()}

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return the inputs at `rows`.

        Raises:
            DataError: If a file has been damaged or removed.
        """
        inputs = self._row.empty(len(rows))
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            inside = np.flatnonzero(numbers == number)
            part = self._row.empty(len(inside)) if len(inside) < len(rows) else inputs
            self.shards[number].read(rows[inside], part)
            if part is not inputs:
                inputs[inside] = part
        return inputs

    def check_batch(self, batch_size: int) -> None:
        """Refuse batches that are larger than the memory that was allowed."""
        needed = batch_size * self._row.nbytes
        if needed > self.memory:
            raise UsageError(
                f"Expected memory for one batch of {batch_size} inputs, {amount(needed)}. "
                f"Received: {amount(self.memory)}. Raise `--cache-memory`, or lower "
                "`--batch-size`."
            )

    @contextlib.contextmanager
    def writing(self, where: str) -> Iterator[list[Shard]]:
        """Hold the folder, and give the files that are still to be written.

        Args:
            where: What the inputs belong to.

        Raises:
            UsageError: If the folder cannot be written, or there is no room for the files. What
                was written stays.
        """
        check_writable(self.folder.parent)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._naming_a_full_disk(), _locked(self.folder):
            remove_unfinished(self.folder)
            about = {"inputs of": where, "dtype": self.dtype.str, "shape": list(self._row.shape)}
            with atomic_file(self.folder / _ABOUT, "w") as file:
                json.dump(about | {"count": len(self)}, file, ensure_ascii=False, indent=2)
            missing = self.missing()  # by now another process may have written some
            if _needed(missing) > shutil.disk_usage(self.folder).free:
                raise self._no_room(missing)
            yield missing

    @contextlib.contextmanager
    def _naming_a_full_disk(self):
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise self._no_room(self.missing()) from error

    def _no_room(self, missing):
        return UsageError(
            f"Expected room for decoded inputs in '{self.folder.parent}'. Received: "
            f"{amount(_needed(missing))} needed, {amount(shutil.disk_usage(self.folder).free)} "
            "free. Choose another folder with `--cache-dir`, make room, or set a smaller "
            "`image_size` in the TOML file; what has been decoded stays."
        )


def _needed(missing):
    return sum(shard.nbytes for shard in missing)


def read_row(folder: Path) -> Row | None:
    """Return type and shape of the inputs in a folder, from its first file; None without one."""
    try:
        first = np.load(folder / "00000.npy", mmap_mode="r", allow_pickle=False)
        return Row(first.dtype, first.shape[1:])
    except (OSError, ValueError, EOFError):
        return None


@contextlib.contextmanager
def _locked(folder):
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        warnings.warn(f"waiting for another process that decodes to '{folder}'", stacklevel=1)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
