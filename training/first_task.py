"""The first task, which runs that differ only in λ learn once: where it is kept."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import filelock

from keras_mas.files import atomic_folder

from .settings import Recipe


def shared_first_task(directory: Path, description: dict[str, Any]) -> Path:
    """Return the folder of what is learned of the first task, named after all that decides it.

    Args:
        directory: Folder of all first tasks.
        description: Of a run whose first task does not depend on λ, as `identity.describe` returns
            it.
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


@contextlib.contextmanager
def learned_once(folder: Path) -> Iterator[None]:
    """Wait until no other process learns a first task; none begins while the block lasts.

    A process that ends, however it does, lets the next one in. Where locks are not passed on, as on
    some network file systems, two machines may learn the same task at the same time, which costs
    time and changes nothing: `share` keeps what the first of them has learned.

    Args:
        folder: Folder of the first task, as `shared_first_task` returns it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f"{folder.name}.lock")):
        yield


def share(saved: Path, folder: Path) -> None:
    """Have other runs go on from a first task, if another process has not done so already.

    Args:
        saved: Folder of what a run saved after its first task.
        folder: Folder of the first task, as `shared_first_task` returns it.
    """
    try:
        with atomic_folder(folder) as unfinished:
            link_files(saved, unfinished)
    except OSError:
        if not folder.exists():
            raise


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
