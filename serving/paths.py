"""The folders of a served model and its versions: `<models>/<NAME>/<integer>/`.

TensorFlow Serving takes every folder whose name is an integer for a version and ignores the rest,
so a new version can be written to a folder `.tmp-…` beside the others.
"""

import contextlib
import os
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

import filelock

from keras_mas.errors import UsageError
from keras_mas.files import UNFINISHED, atomic_folder, remove_unfinished

# Held by the process that publishes or removes versions. TensorFlow Serving ignores the name, and
# the system gives the lock back when the process ends, however it does.
_LOCK = ".lock"


def version_path(base_path: str | os.PathLike, version: int) -> Path:
    """Return the folder of one version.

    Args:
        base_path: Folder of the model, `models/NAME`.
        version: Integer ≥ 0.

    Returns:
        `Path` of `models/NAME/<version>`; it need not exist.
    """
    return Path(base_path) / str(version)


def parse_version(directory: str | os.PathLike) -> int:
    """Return the version number that a folder's name stands for, the inverse of `version_path`.

    Args:
        directory: Path of one version, `models/NAME/<version>`; it need not exist.

    Returns:
        The version, an integer ≥ 0.

    Raises:
        UsageError: If the last part of `directory` is not a non-negative decimal integer.
    """
    directory = Path(directory)
    if not _is_version(directory.name):
        raise UsageError(
            "Expected the folder of a version to be named by an integer, as in 'models/NAME/3'. "
            f"Received: '{directory.name}' in '{directory}'. TensorFlow Serving would not see it; "
            "end the path with a version number."
        )
    return int(directory.name)


def list_versions(base_path: str | os.PathLike) -> dict[int, Path]:
    """Find the versions of a model, as TensorFlow Serving would.

    Args:
        base_path: Folder of the model, `models/NAME`; it need not exist.

    Returns:
        Dict from version number to its folder, in ascending order; empty if there is none. Names
        that are not integers, and files, are left out.
    """
    base_path = Path(base_path)
    if not base_path.is_dir():
        return {}
    folders = (path for path in base_path.iterdir() if _is_version(path.name) and path.is_dir())
    return dict(sorted((int(path.name), path) for path in folders))


def model_names(models: str | os.PathLike) -> list[str]:
    """Return the names of the models in a folder, `models`: those that have a version, sorted."""
    return sorted(path.name for path in Path(models).iterdir() if list_versions(path))


def check_model_folder(base_path: str | os.PathLike) -> None:
    """Check that a folder can be the folder of a model, which is named after it.

    Args:
        base_path: Folder of the model, `models/NAME`; it need not exist.

    Raises:
        UsageError: If its name is a number, like that of a version, or it has no name, as `..`.
    """
    base_path = Path(base_path)
    if base_path.name in ("", "..") or _is_version(base_path.name):
        raise UsageError(
            "Expected the folder of a model, whose name is that of the model, as 'models/shop'; "
            f"folders of numbers in it are its versions. Received: '{base_path}'. Name a folder "
            "that is no version."
        )


@contextlib.contextmanager
def new_version(directory: str | os.PathLike) -> Iterator[Path]:
    """Make a folder to fill that becomes a version, by one rename, when the block ends.

    Processes that make versions of one model take turns, so that none takes another's number or
    judges a version by another that is not the latest any more. What killed ones left is removed.

    Args:
        directory: Folder of the version, `models/NAME/<version>`; its parents are made.

    Yields:
        Path of an empty folder beside `directory`.

    Raises:
        UsageError: If the version exists.
        OSError: If it cannot be written, the folder of the model has vanished, or the version has
            appeared meanwhile from a machine that does not see the lock. What was written is
            removed, as after any error.
    """
    directory = Path(directory)
    refuse_existing(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _alone(directory.parent):
        refuse_existing(directory)
        with atomic_folder(directory) as unfinished:
            try:
                yield unfinished
            except Exception as error:
                _check_still_there(directory.parent, error)
                raise
            _check_still_there(directory.parent)


def _check_still_there(base_path: Path, error: Exception | None = None) -> None:
    """Raise FileNotFoundError if a folder was removed, even if TensorFlow has made it anew."""
    if not (base_path / _LOCK).exists():
        raise FileNotFoundError(
            f"the folder '{base_path}' has vanished while the version was written"
        ) from error


def remove_versions(base_path: str | os.PathLike, versions: Collection[int]) -> None:
    """Remove versions: each disappears by one rename, and then its files are deleted.

    Of a version that is a link, the link is removed, and what it leads to stays.

    Args:
        base_path: Folder of the model, `models/NAME`.
        versions: Their numbers; those that do not exist are left out.
    """
    with _alone(Path(base_path)):
        for version, folder in list_versions(base_path).items():
            if version in versions:
                # A server would load what is left of a folder while its files are deleted.
                folder.rename(folder.with_name(f"{UNFINISHED}removed-{folder.name}"))
        remove_unfinished(base_path)


def refuse_existing(directory: Path) -> None:
    """Refuse the folder of a version that exists, under this name or as `03` instead of `3`.

    Raises:
        UsageError: If it does.
    """
    version = parse_version(directory)
    taken = list_versions(directory.parent).get(version, directory)
    if taken.is_file():
        raise UsageError(
            f"Expected no '{taken}', where version {version} of '{directory.parent.name}' is to "
            "lie. Received: a file. Move it elsewhere."
        )
    if taken.exists():
        raise UsageError(
            f"Expected version {version} of '{directory.parent.name}' not to exist. Received: "
            f"'{taken}', which does. A version is never overwritten, since a server may be "
            "answering from it; publish this one under a number that is free, as `keras-mas export "
            "RUN --as next` does."
        )


@contextlib.contextmanager
def _alone(base_path: Path) -> Iterator[None]:
    """Wait until no other process changes the versions of a model, and keep it so."""
    lock = filelock.FileLock(base_path / _LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        warnings.warn(
            f"Another process is publishing to '{base_path}'; waiting until it has finished.",
            stacklevel=4,
        )
        lock.acquire()
    try:
        remove_unfinished(base_path)
        yield
    finally:
        lock.release()


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit()
