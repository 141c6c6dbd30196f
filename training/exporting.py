"""Versions of a served model from a run: one after each task."""

from pathlib import Path

import keras

from keras_mas.errors import UsageError
from keras_mas.serving.export import check_exportable, export_version, is_exported
from keras_mas.serving.paths import version_path

from .heads import unique_heads
from .run import Listener, TaskResult
from .run_directory import task_folder
from .tasks import TaskStream


class Exporter(Listener):
    """Exports a version after each task.

    Args:
        base: Folder of the served model.
    """

    def __init__(self, base: Path):
        self.base = base

    def task_finished(self, result: TaskResult) -> None:
        """Export the heads learned so far, unless they have been exported already."""
        export_heads(self.base, result.number, result.models, result.classes)


def export_heads(
    base: Path,
    number: int,
    models: dict[str, keras.Model],
    classes: dict[str, tuple[str, ...]],
) -> Path:
    """Export the heads of a run as a version, unless it holds these heads already.

    Args:
        base: Folder of the served model.
        number: The version.
        models: Model of every head, by the head's name.
        classes: Class names of every head.

    Returns:
        The folder of the version.
    """
    folder = version_path(base, number)
    if not (folder.exists() and is_exported(models, folder)):
        export_version(models, folder, classes=classes)
    return folder


def check_export(stream: TaskStream, base: Path, run: Path | None) -> None:
    """Refuse an export that would fail, before anything is trained.

    Args:
        stream: The tasks that will be learned.
        base: Folder of the served model.
        run: Folder of the run, whose saved tasks may have been exported before; None if the run
            starts anew.

    Raises:
        UsageError: If a head cannot name a signature, the folder cannot be written, or a version
            of another run is in it.
    """
    check_exportable([head.name for head in unique_heads(stream)], base)
    for number in range(1, len(stream.tasks) + 1):
        folder = version_path(base, number)
        if folder.exists() and (run is None or not task_folder(run, number).exists()):
            raise UsageError(
                f"'{folder}' exists already: version {number} of the model, exported by another "
                "run. A version is never overwritten; choose another folder with `--export`."
            )
