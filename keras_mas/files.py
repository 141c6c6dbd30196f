"""Files and folders that appear whole or not at all, whatever is interrupted."""

import contextlib
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from .errors import UsageError

# What the name of an unfinished file or folder begins with. TensorFlow Serving ignores such names.
UNFINISHED = ".tmp-"

# Random bytes at its end, in hexadecimal digits.
_RANDOM_BYTES = 4


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open a file to write that takes its place at `path` when the block ends without an error.

    It is written beside `path`, forced to the disk and renamed: after a crash there is the old file
    or the new one, and an error leaves the old one.

    Args:
        path: File to write; an existing one is replaced, of a link the file that it leads to.
        mode: `"wb"`, or `"w"` for UTF-8 text.

    Yields:
        The open file.

    Raises:
        FileNotFoundError: If its folder does not exist.
        FileExistsError: If there is something else than a file, such as a device.
    """
    path = Path(os.fsdecode(path))
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such folder", str(path.parent))
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "It is no regular file", str(path))
    unfinished = _unfinished(path)
    try:
        with open(unfinished, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Make a folder to fill that takes its place at `path` when the block ends without an error.

    Args:
        path: Folder to make. Its parents are made; it must not exist when the block ends.

    Yields:
        Path of the empty folder, beside `path`.

    Raises:
        OSError: If `path` exists when the block ends; what was written is removed, as after any
            error.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _unfinished(path)
    unfinished.mkdir()
    try:
        yield unfinished
        for folder, _, files in os.walk(unfinished):
            for name in files:
                _sync(Path(folder) / name)
            _sync(Path(folder))
        # `os.rename` takes an empty folder's place without a word.
        if path.exists():
            raise FileExistsError(f"Expected no '{path}' yet. Received: one that exists.")
        os.rename(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    _sync(path.parent)


def check_writable(folder: str | os.PathLike) -> None:
    """Check that a folder can be made or written to, without a trace.

    Args:
        folder: The folder, which need not exist.

    Raises:
        UsageError: If the path, or one above it, is something else than a folder, or the user may
            not write there.
    """
    path = Path(folder)
    try:
        nearest = next(part for part in (path, *path.absolute().parents) if _exists(part))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"'{path}' cannot be a folder ({getattr(error, 'strerror', None) or error}). Choose "
            "another one."
        ) from error
    if not nearest.is_dir():
        raise UsageError(
            f"'{path}' cannot be a folder, since '{nearest}' is a file, or a link to nothing. "
            "Choose another one; nothing was changed."
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(
            f"'{path}' cannot be written: there is no permission to write in '{nearest}'. Choose "
            "another folder, or change its permissions."
        )


def _exists(path: Path) -> bool:
    """Return whether there is something, a link to nothing included; OSError for a bad name."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def remove_unfinished(folder: str | os.PathLike, of: str = "") -> None:
    """Remove what killed processes left unfinished in a folder.

    Args:
        folder: The folder.
        of: Name of the file or folder, which no other process writes now; by default, no other
            process writes to the folder at all.
    """
    pattern = f"{glob.escape(of)}-{'[0-9a-f]' * 2 * _RANDOM_BYTES}" if of else "*"
    for path in Path(folder).glob(f"{UNFINISHED}{pattern}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{UNFINISHED}{path.name}-{secrets.token_hex(_RANDOM_BYTES)}")


def _sync(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
