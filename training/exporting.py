"""Versions of a served model from a run: one after each task."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_mas.errors import UsageError
from keras_mas.serving.export import check_exportable, export_version, is_exported
from keras_mas.serving.paths import version_path

from .heads import unique_heads
from .run import Listener, TaskResult
from .run_directory import task_folder
from .settings import Settings
from .tasks import TaskStream

# What the manifest of a version takes from the result of its run.
_OF_RUN = ("stream", "scenario", "method", "strength", "penalty", "seed", "data")


class Exporter(Listener):
    """Exports a version after each task.

    Args:
        base: Folder of the served model.
        stream: The tasks.
        settings: How they are learned.
        command: The command of the run, for the manifests.
        data: Fingerprint of the data; by default that of the stream's.
    """

    def __init__(
        self,
        base: Path,
        stream: TaskStream,
        settings: Settings,
        command: str,
        data: str | None = None,
    ):
        self.base, self.command = base, command
        self.resize = resize_of(stream)
        self.result = {
            "stream": stream.name,
            "scenario": stream.scenario,
            **settings.of_method,
            "seed": settings.seed,
            "data": data or stream.data_fingerprint,
            "tasks": [task.name for task in stream.tasks],
        }
        self.rows: list[list[float | None]] = []

    def task_finished(self, result: TaskResult) -> None:
        """Export the heads learned so far, unless they have been exported already."""
        self.rows.append(result.accuracies)
        export_heads(
            self.base,
            result.number,
            result.models,
            result.classes,
            resize=self.resize,
            manifest=manifest_of(
                self.result | {"accuracy_matrix": self.rows}, result.number, self.command
            ),
        )


def export_heads(
    base: Path,
    number: int,
    models: dict[str, keras.Model],
    classes: dict[str, tuple[str, ...]],
    *,
    resize: str | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Path:
    """Export the heads of a run as a version, unless it holds these heads already.

    Args:
        base: Folder of the served model.
        number: The version.
        models: Model of every head, by the head's name.
        classes: Class names of every head.
        resize: As for `export_version`.
        manifest: As for `export_version`.

    Returns:
        The folder of the version.
    """
    folder = version_path(base, number)
    if not (folder.exists() and is_exported(models, folder)):
        export_version(models, folder, classes=classes, resize=resize, manifest=manifest)
    return folder


def manifest_of(result: Mapping[str, Any], number: int, command: str) -> dict[str, Any]:
    """Return what the manifest of a version says of its run.

    Args:
        result: The result of the run, or what of it is known already.
        number: How many tasks had been learned.
        command: The command of the run.
    """
    return {
        **{key: result[key] for key in _OF_RUN if key in result},  # older results have no `data`
        "tasks": result["tasks"][:number],
        "accuracy_matrix": [row[:number] for row in result["accuracy_matrix"][:number]],
        "command": command,
    }


def resize_of(stream: TaskStream) -> str | None:
    """Return how files of images become inputs of a stream, as `export_version` takes it."""
    shape, dtype = stream.input_shape, stream.tasks[0].train.dtype
    if dtype != np.uint8 or len(shape) != 3 or shape[-1] not in (1, 3):
        return None
    return stream.resize or "none"


def check_export(stream: TaskStream, base: Path, runs: Sequence[Path]) -> None:
    """Refuse an export that would fail, before anything is trained.

    Args:
        stream: The tasks that will be learned.
        base: Folder of the served model.
        runs: Folders of runs whose saved tasks may have been exported before: of the run, unless it
            starts anew, and of one that it goes on from.

    Raises:
        UsageError: If a head cannot name a signature, the folder cannot be written, or a version
            of another run is in it.
    """
    check_exportable([head.name for head in unique_heads(stream)], base)
    for number in range(1, len(stream.tasks) + 1):
        folder = version_path(base, number)
        if folder.exists() and not any(task_folder(run, number).exists() for run in runs):
            raise UsageError(
                f"'{folder}' exists already: version {number} of the model, exported by another "
                "run. A version is never overwritten; choose another folder with `--export`."
            )
