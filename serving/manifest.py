"""What a version holds and where it comes from: `assets.extra/manifest.json` in its folder.

TensorFlow Serving ignores the file. It is read without TensorFlow.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .conventions import EXTRA_ASSETS

FORMAT = 1
"""Number of the manifest's format, raised when a key changes its meaning."""

_PATH = Path(EXTRA_ASSETS) / "manifest.json"


class ManifestError(RuntimeError):
    """A version has no manifest that can be read; the message says which version and why."""


def write_manifest(directory: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Write the manifest of a version that is not visible yet.

    Args:
        directory: Folder of the version.
        content: What JSON can hold. The format is added.

    Raises:
        TypeError: If JSON cannot hold the content.
        ValueError: If it holds NaN or infinity, which are no JSON.
    """
    text = json.dumps({"format": FORMAT, **content}, indent=2, ensure_ascii=False, allow_nan=False)
    path = Path(directory) / _PATH
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def read_manifest(directory: str | os.PathLike) -> dict[str, Any]:
    """Read the manifest of a version.

    Args:
        directory: Folder of the version.

    Returns:
        The content as `export_version` describes it.

    Raises:
        ManifestError: If there is none, it is damaged, or a later version of keras_mas wrote it.
    """
    path = Path(directory) / _PATH
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestError(
            f"Expected the manifest of a version in '{path}'. Received: {type(error).__name__}: "
            f"{error}. Export the version again."
        ) from error
    if found != FORMAT:
        raise ManifestError(
            f"Expected a manifest of format {FORMAT}. Received: format {found!r} in '{path}'. "
            "Read it with the version of keras_mas that wrote it."
        )
    return content


def weights_checksum(arrays: Iterable[np.ndarray]) -> str:
    """Return a hash of weights, whatever their names and order.

    Args:
        arrays: The weights.

    Returns:
        SHA-256 in hexadecimal digits, of the sorted SHA-256 of every weight's type, shape and
        values.
    """
    digests = sorted(map(_digest, arrays))
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _digest(array: np.ndarray) -> bytes:
    sha = hashlib.sha256(f"{array.dtype.name} {array.shape} ".encode())
    sha.update(np.ascontiguousarray(array).data)
    return sha.digest()
