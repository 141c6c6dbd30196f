"""The folders of a served model and its versions: `<models>/<NAME>/<integer>/`.

TensorFlow Serving takes every folder whose name is an integer for a version and ignores the rest,
so a new version can be written to a folder `.tmp-…` beside the others.
"""

import os
from pathlib import Path

from keras_mas.errors import UsageError


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


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit()
