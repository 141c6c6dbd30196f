"""The first task, which runs that differ only in λ learn once: where it is kept."""

import hashlib
import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .settings import Recipe


def shared_first_task(directory: Path, description: dict[str, Any]) -> Path:
    """Return the folder of what is learned of the first task, named after all that decides it.

    Args:
        directory: Folder of all first tasks.
        description: Of a run, as `run.describe` returns it, whose first task does not depend on λ.
    """
    recipe = Recipe(**description["recipe"])
    learning_rate, epochs = recipe.for_task(0)
    first = {"learning_rate": learning_rate, "epochs": epochs}
    later = {"first_learning_rate": None, "first_epochs": None}
    recorded = description["recipe"] | first | later
    # With "auto", what λ is found by is measured in the first task, and saved with it.
    strength = description["strength"] if isinstance(description["strength"], str) else None
    decides = description | {"strength": strength, "recipe": recorded}
    return directory / digest(decides)


def digest(description: dict[str, Any]) -> str:
    """Return a short name for a description, as JSON can hold it."""
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def link_files(folder: Path, other: Path, besides: Collection[str] = ()) -> None:
    """Have the files of a folder in another one too, where they take no more space.

    Args:
        folder: Folder of files that are never changed, only replaced.
        other: Existing folder.
        besides: Names of files that are left out.
    """
    for path in folder.iterdir():
        if path.name not in besides:
            try:
                os.link(path, other / path.name)
            except OSError:  # a file system without links
                shutil.copyfile(path, other / path.name)
