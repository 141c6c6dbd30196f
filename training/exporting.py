"""Versions of a served model from a run: one after each task."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_mas.errors import UsageError
from keras_mas.serving.conventions import MAX_FORGETTING
from keras_mas.serving.export import check_exportable
from keras_mas.serving.gate import HeldOut, losses, unmeasured_sentence
from keras_mas.serving.paths import version_path
from keras_mas.serving.publish import publish
from keras_mas.serving.published import blessing_of, is_published

from .heads import heads_of, unique_heads
from .listening import Listener, TaskResult
from .run_directory import task_folder
from .settings import Settings
from .tasks import LearnedTask, Task, TaskStream
from .wording import one_of

# What the manifest of a version takes from the result of its run.
_OF_RUN = ("stream", "scenario", "method", "strength", "penalty", "seed", "data")

# How many examples of one task stand in for those of a task that has none.
_EXAMPLES = 16


class Exporter(Listener):
    """Publishes a version after each task, whatever it forgot: that is measured, and recorded.

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
        self.base, self.stream, self.command = base, stream, command
        self.resize = stream.resize_of_files
        self.result = {
            "stream": stream.name,
            "scenario": stream.scenario,
            **settings.of_method,
            "seed": settings.seed,
            "data": data or stream.data_fingerprint,
            "tasks": [task.name for task in stream.tasks],
            "columns": list(stream.columns),
        }
        self.rows: list[list[float | None]] = []
        self.published: list[int] = []

    def task_finished(self, result: TaskResult) -> None:
        """Export the heads learned so far, unless they have been exported already."""
        self.rows.append(result.accuracies)
        published = export_heads(
            self.base,
            result.number,
            result.models,
            result.classes,
            held_out_of(self.stream, result.number),
            examples=examples_of(self.stream),
            after=self.published,
            resize=self.resize,
            manifest=manifest_of(
                self.result | {"accuracy_matrix": self.rows}, result.number, self.command
            ),
        )
        self.published.append(result.number)
        if published:
            warn_of_losses(published)


def warn_of_losses(folder: Path) -> None:
    """Warn if a version that was published without a bound lost more than is usual.

    Args:
        folder: Folder of the version.
    """
    blessing = blessing_of(folder)
    if lost := losses(blessing, MAX_FORGETTING):
        warnings.warn(
            f"'{folder}' was published, and not judged: {lost}, since version "
            f"{blessing['compared_with']['version']}. `keras-mas export` would refuse it.",
            stacklevel=2,
        )


def export_heads(
    base: Path,
    number: int | None,
    models: dict[str, keras.Model],
    classes: dict[str, tuple[str, ...]],
    held_out: Sequence[HeldOut],
    **options: Any,
) -> Path | None:
    """Publish the heads of a run as a version, unless it holds these heads already.

    Args:
        base: Folder of the served model.
        number: The version; None for the next one, whatever the others hold.
        models: Model of every head, by the head's name.
        classes: Class names of every head.
        held_out: Held-out examples of every task; none of a task that cannot be measured.
        **options: Further arguments of `publish`.

    Returns:
        The folder of the version; None if it was there already, which is not judged again.

    Raises:
        LoadError: If the version that is there is damaged.
        UsageError: If it holds other heads, or these with other options.
    """

    def is_there() -> bool:
        return number is not None and is_published(
            models, version_path(base, number), classes=classes, **options
        )

    if is_there():
        return None
    try:
        return publish(models, base, held_out, version=number, classes=classes, **options)
    except UsageError:
        # While this process waited for its turn, another one published the same.
        if is_there():
            return None
        raise


def held_out_of(stream: TaskStream, tasks: int) -> list[HeldOut]:
    """Return the test examples of the first tasks of a stream, as `publish` takes them."""
    heads = heads_of(stream)
    return [
        HeldOut(
            task.name,
            heads[task.name].name,
            task.test.labels + heads[task.name].offset,
            task.test.batches,
        )
        for task in stream.tasks[:tasks]
    ]


def examples_of(stream: TaskStream) -> np.ndarray:
    """Return test inputs `[n, ...]` of a stream, n ≥ 1, to compare the answers of heads by.

    They are those of one task, and stand in for those of a task without any.

    Args:
        stream: The tasks, one with examples among them.
    """
    test = next(task.test for task in stream.tasks if len(task.test))
    return next(test.batches(_EXAMPLES))


def with_all_tasks(
    result: Mapping[str, Any], found: Mapping[str, Task], received: str
) -> TaskStream:
    """Return the tasks of a run in their order, without examples where there are none left.

    Args:
        result: The result of the run.
        found: Tasks with examples, by name; those that the run did not learn are left out.
        received: What they were looked for in, for the error message.

    Raises:
        UsageError: If examples of all tasks are missing, or a task has another number of classes
            than the run learned.
    """
    names, classes = result["tasks"], result.get("classes", {})
    with_examples = {name: found[name] for name in names if name in found}
    # Earlier versions recorded neither the classes nor the shape: nothing can stand in then.
    if not with_examples or ("input_shape" not in result and len(with_examples) < len(names)):
        raise UsageError(
            f"Expected test examples of tasks that the run has learned, {one_of(names)}, to "
            f"measure what it forgot. Received: {one_of(found) if found else 'none'} in "
            f"{received}. Name a stream that has some with `--examples-of TASKS`."
        )
    for name, task in with_examples.items():
        if name in classes and len(classes[name]) != len(task.classes):
            raise UsageError(
                f"Expected the {len(classes[name])} classes of task '{name}' that the run has "
                f"learned. Received: {len(task.classes)} in {received}."
            )
    test = next(iter(with_examples.values())).test
    kind = test.input_shape, test.dtype
    tasks = tuple(
        with_examples.get(name) or LearnedTask.without_examples(name, tuple(classes[name]), *kind)
        for name in names
    )
    return TaskStream(result["stream"], result["scenario"], tasks, rescale=(1.0, 0.0))


def warn_of_unmeasured(stream: TaskStream, tasks: int) -> None:
    """Warn of the first tasks of a stream that will be exported without being measured.

    Args:
        stream: The tasks.
        tasks: How many of them.
    """
    without = [task.name for task in stream.tasks[:tasks] if not len(task.test)]
    if said := unmeasured_sentence(without):
        warnings.warn(f"In what is exported, {said}.", stacklevel=3)


def check_same_data(stream: TaskStream, result: Mapping[str, Any], run: Path) -> None:
    """Refuse to judge a run by other examples than those that it was made of.

    Args:
        stream: The tasks as they are now.
        result: The result of the run.
        run: Folder of the run.

    Raises:
        UsageError: If the tasks or their examples have changed since.
    """
    names = [task.name for task in stream.tasks]
    # Older results have no `data`.
    if names == result["tasks"] and result.get("data", stream.data_fingerprint) == (
        stream.data_fingerprint
    ):
        return
    received = "other examples" if names == result["tasks"] else f"the tasks {', '.join(names)}"
    raise UsageError(
        f"Expected the data of '{stream.name}' as '{run}' was trained on, to measure what it "
        f"forgot. Received: {received}. Restore the data, or name test examples of the same tasks "
        "with `--examples-of TASKS`."
    )


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
        # Nothing else says in which order the inputs of a table are asked for.
        **({"columns": result["columns"]} if result.get("columns") else {}),
    }


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

    Warns of tasks without examples.
    """
    warn_of_unmeasured(stream, len(stream.tasks))
    check_exportable([head.name for head in unique_heads(stream)], base)
    for number in range(1, len(stream.tasks) + 1):
        folder = version_path(base, number)
        if folder.exists() and not any(task_folder(run, number).exists() for run in runs):
            raise UsageError(
                f"'{folder}' exists already: version {number} of the model, exported by another "
                "run. A version is never overwritten; choose another folder with `--export`."
            )
