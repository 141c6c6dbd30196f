"""Going on from a finished run: its tasks by name, what is left of their data, and new ones."""

import dataclasses
import functools
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_mas.arrays import load_arrays
from keras_mas.errors import UsageError
from keras_mas.methods import load_method
from keras_mas.methods.base import Method
from keras_mas.states import SAVED_BY, from_arrays, to_arrays

from .backbones.weights import digest_of_file
from .finished_run import OF_LOADING, FinishedRun, Source
from .first_task import digest
from .run_directory import task_folder
from .settings import Settings
from .tasks import DataError, LearnedTask, Split, Task, TaskStream, load_tasks
from .tasks.changes import Rgb
from .tasks.inputs import ChangedArray
from .tasks.store import OnDecoded
from .wording import one_of


@dataclasses.dataclass(frozen=True)
class Continued:
    """What a run goes on from.

    Attributes:
        run: The finished run.
        stream: Its tasks, and those that are added.
        sources: Where the data of all of them were loaded from.
        name_of_added: Name of the stream of the tasks that are added.
        measured_anew: Names of old tasks whose data are others than those that the run was measured
            on, so that its models are measured on these.
        memory: File of a memory in the place of the run's last one; None for that.
        old_data: Fingerprint of old data that were asked for; None if none were.
    """

    run: FinishedRun
    stream: TaskStream
    sources: Sequence[Source]
    name_of_added: str
    measured_anew: frozenset[str] = frozenset()
    memory: Path | None = None
    old_data: str | None = None

    @property
    def tasks(self) -> int:
        """How many tasks the finished run learned."""
        return len(self.run.names)

    @property
    def added(self) -> tuple[Task, ...]:
        """The tasks that are added."""
        return self.stream.tasks[self.tasks :]

    def folder(self, number: int) -> Path | None:
        """Return the run's folder of a task, counted from 0; None if the task is added."""
        return task_folder(self.run.directory, number + 1) if number < self.tasks else None

    def accuracies(self, row: Sequence[float | None]) -> list[float | None]:
        """Return accuracies on the run's tasks, None for those that are measured anew or added."""
        known = zip(self.run.names, row, strict=True)
        old = [None if name in self.measured_anew else value for name, value in known]
        return [*old, *[None] * len(self.added)]

    @property
    def description(self) -> dict[str, Any]:
        """What of a description, as `identity.describe` returns it, is not the settings'.

        Whether old data are there makes no difference to it, so that they may vanish meanwhile.
        """
        data = [self.run.description["data"], *(task.fingerprint for task in self.added)]
        return {
            "data": digest({"data": data}),
            "files_left_out": self.run.description.get("files_left_out", 0)
            + len(self.stream.left_out),
            "continues": self.run.digest,
            "memory": None if self.memory is None else digest_of_file(self.memory),
            "old_data": self.old_data,
        }

    def recipe_of(self, recipe: dict[str, Any]) -> dict[str, Any]:
        """Return a described recipe, with the hash of the weights that the run began with."""
        return recipe | {"weights": self.run.description["recipe"].get("weights")}

    @property
    def result(self) -> dict[str, Any]:
        """What of a result is not as in a run that loaded all its tasks."""
        data = [self.run.result.get("data"), *(task.data_fingerprint for task in self.added)]
        examples = self.run.result.get("examples", {})
        lost = {task.name for task in self.stream.tasks if isinstance(task, LearnedTask)}
        return {
            "data": digest({"data": data}),
            "files_left_out": self.description["files_left_out"],
            "examples": {name: examples[name] for name in examples if name in lost},
            "sources": [dataclasses.asdict(source) for source in self.sources],
            "continues": {
                "folder": str(self.run.directory),
                "tasks": self.tasks,
                "digest": self.run.digest,
            },
        }

    def take_memory(self, method: Method) -> None:
        """Put Ω and θ* of the given file, if there is one, in the place of the method's own.

        Raises:
            UsageError: If the method has no memory, or the file is of another network.
        """
        if self.memory is not None:
            replace_memory(method, self.memory)


def continued(
    run: FinishedRun,
    add: str | Path,
    settings: Settings,
    *,
    options: Mapping[str, Any],
    old_data: str | Path | None = None,
    memory: Path | None = None,
    on_decoded: OnDecoded = lambda *_: None,
) -> Continued:
    """Load the tasks that are added to a run, and what is left of the data of its own.

    Args:
        run: The run.
        add: The tasks, as for `load_tasks`.
        settings: How they are learned.
        options: Options of `LoadOptions`, by field.
        old_data: Where the old data are now, as for `load_tasks`; None for where they were.
        memory: As for `Continued`.
        on_decoded: As for `load_tasks`.

    Raises:
        UsageError: If the tasks do not fit those of the run, or the method needs old data that are
            not there.
        DataError: If the data of the added tasks, or old data that were asked for, are bad.
    """
    if memory is not None:
        _check_memory(settings.method, memory)
    load = functools.partial(load_tasks, on_decoded=on_decoded, encoding=run.encoding)
    added = load(add, seed=settings.seed, batch_size=settings.recipe.batch_size, **options)
    _check_added(run, added)
    fitting = _with_channels_of(run, added)
    if old_data is None:
        old, anew, given = _what_is_left(run, options, load), frozenset[str](), None
    else:
        old, anew, given = _given_data(run, old_data, options, load)
    if settings.learns_all_tasks and not all(
        name in old and name not in anew for name in run.names
    ):
        raise UsageError(
            f"Expected the data of all tasks for method '{settings.method}', which learns old "
            f"tasks again with every new one. Received: none for "
            f"{one_of(name for name in run.names if name not in old or name in anew)}. Say where "
            "they are with `--old-data`, or continue a run of another method."
        )
    shape, dtype = tuple(run.result["input_shape"]), fitting[0].train.dtype
    learned = tuple(
        old.get(name) or LearnedTask.without_examples(name, run.classes[name], shape, dtype)
        for name in run.names
    )
    stream = dataclasses.replace(
        added,
        name=run.result["stream"],
        tasks=(*learned, *fitting),
        rescale=tuple(run.description["rescale"]),
        builtin=False,
        usual_scenario=None,
        resize=added.resize or run.result.get("resize"),
    )
    kept = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in options.items()
        if name in OF_LOADING and value
    }
    new = Source(_found_again(add), added.fingerprint, [task.name for task in added.tasks], kept)
    return Continued(run, stream, [*run.sources, new], added.name, anew, memory, given)


def _found_again(tasks):
    """Return the path of a file of tasks from wherever it is looked for; a name as it is."""
    return str(Path(tasks).resolve()) if Path(tasks).is_file() else str(tasks)


def _check_added(run, added):
    known = sorted({task.name for task in added.tasks} & set(run.names))
    if known:
        raise UsageError(
            f"Expected names of new tasks. Received: {one_of(known)}, which '{run.directory}' has "
            "learned already. Rename the task."
        )
    _check_columns(run, added)
    expected, found = _kind(run), (added.tasks[0].train.dtype, added.input_shape)
    shapes = [expected[1], (*expected[1][:-1], 1)] if _is_rgb(expected[1]) else [expected[1]]
    if found[1] not in shapes or found[0] != (expected[0] or found[0]):
        raise UsageError(
            f"Expected inputs like those of '{run.directory}', {_words(*expected)}. Received: "
            f"{_words(*found)} in '{added.name}'. Bring them to that shape and dtype (for images "
            "in a folder or from TFDS, set `image_size`)."
        )
    resize = run.result.get("resize")
    # "none" are inputs that had the size already, which contradicts no way to get it.
    if added.resize and resize not in (None, "none", added.resize):
        raise UsageError(
            f"Expected images that are resized as those of '{run.directory}' were, "
            f'resize = "{resize}". Received: "{added.resize}" in \'{added.name}\'. Change the key '
            "`resize`."
        )


def _check_columns(run, added):
    columns = run.result.get("columns", [])
    if columns != list(added.columns):
        different = [name for name in added.columns if name not in columns]
        different += [name for name in columns if name not in added.columns]
        raise UsageError(
            f"Expected the columns of '{run.directory}'. Received: others in '{added.name}', such "
            f"as {one_of(different[:1])}. Add tables to what has learned tables, and nothing else."
        )


def _kind(run):
    """Return type and shape of a run's inputs; the type is None if it was not recorded."""
    dtype = run.result.get("input_dtype")
    return None if dtype is None else np.dtype(dtype), tuple(run.result["input_shape"])


def _words(dtype, shape):
    return f"{dtype or 'inputs'} of shape {list(shape)}"


def _is_rgb(shape):
    return len(shape) == 3 and shape[-1] == 3


def _with_channels_of(run, added):
    """Return the added tasks; grey images become RGB images, as they do within one stream."""
    if added.input_shape == tuple(run.result["input_shape"]):
        return added.tasks

    def in_rgb(split):
        return Split(ChangedArray(split.source, Rgb()), split.labels, split.rows)

    return tuple(
        dataclasses.replace(task, **{role: in_rgb(split) for role, split in task.splits.items()})
        for task in added.tasks
    )


_OLD_DATA = (
    "These tasks are not evaluated, and the averages are over the others; `--old-data` says where "
    "their data are now."
)


def _what_is_left(run, options, load, advice=_OLD_DATA) -> dict[str, Task]:
    """Return the run's tasks whose data are where they were, and as they were."""
    found: dict[str, Task] = {}
    for source in run.sources:
        found |= _of_source(run, source, options, load, advice)
    return {name: found[name] for name in run.names if name in found}


def _of_source(run, source, options, load, advice):
    """Return the tasks of a source by name; none, with a warning, if it is not as it was."""
    reason = "they have changed since"
    try:
        stream = load(
            source.tasks, seed=run.description.get("seed", 0), **{**source.options, **options}
        )
        if stream.fingerprint == source.fingerprint:
            return {task.name: _like(run, task) for task in _with_channels_of(run, stream)}
    except (UsageError, DataError, OSError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
    warnings.warn(
        f"The data of {one_of(source.names)} are not there as they were ({reason}). {advice}",
        stacklevel=4,
    )
    return {}


def tasks_left(
    run: FinishedRun, options: Mapping[str, Any], on_decoded: OnDecoded = lambda *_: None
) -> dict[str, Task]:
    """Return the tasks of a run that went on from another one of which the data are left, by name.

    Of others it warns.

    Args:
        run: The run.
        options: Options of `LoadOptions` in the place of those that were recorded, by field.
        on_decoded: As for `load_tasks`.
    """
    load = functools.partial(load_tasks, on_decoded=on_decoded, encoding=run.encoding)
    where = {**options, "scenario": run.result["scenario"]}
    advice = "`--examples-of TASKS` names a stream with examples of them."
    return _what_is_left(run, where, load, advice)


def _given_data(run, old_data, options, load):
    """Return the tasks of old data that are asked for, which of them are others, and a hash."""
    stream = load(old_data, seed=run.description.get("seed", 0), **options)
    found = {task.name: _like(run, task) for task in stream.tasks if task.name in run.names}
    if not found:
        raise UsageError(
            f"Expected tasks of '{run.directory}' in the old data: {one_of(run.names)}. Received: "
            f"{one_of(task.name for task in stream.tasks)} in '{old_data}'. Name the stream that "
            "the run learned with `--old-data`."
        )
    for name, task in found.items():
        if len(task.classes) != len(run.classes[name]):
            raise UsageError(
                f"Expected the {len(run.classes[name])} classes of task '{name}' in the old data. "
                f"Received: {len(task.classes)} in '{old_data}'."
            )
    is_same = any(stream.fingerprint == source.fingerprint for source in run.sources)
    return found, frozenset() if is_same else frozenset(found), stream.fingerprint


def _like(run, task):
    """Return a task of old data, with the class names that the run knows it by."""
    return dataclasses.replace(task, classes=run.classes[task.name])


def _check_memory(method, path):
    """Refuse a memory for a method that holds no weights, or a file that is none."""
    if not hasattr(load_method(method)(), "memory"):
        raise UsageError(
            f"Expected a method that holds weights by their importance, for `--memory`. Received: "
            f"'{method}'. Leave `--memory` out, or continue a run of another method."
        )
    _read_memory(path)


def _read_memory(path):
    """Return what a file remembers of every weight, by the weight's place."""
    try:
        arrays = load_arrays(path, lambda arrays: arrays, "a memory")
        arrays.pop(SAVED_BY, None)
        _, _, states, _ = from_arrays(arrays)
    except (OSError, ValueError, KeyError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rstrip(".")
        raise UsageError(
            f"Expected a memory that `SynapticMemory.save` wrote, for `--memory`. Received: "
            f"'{path}', which cannot be read as one ({reason})."
        ) from error
    return {(state.model, state.identity.place): state for state in states}


def replace_memory(method: Method, path: Path) -> None:
    """Put Ω of a file in the place of what a method has measured so far; λ stays.

    Args:
        method: A method with a `SynapticMemory`, whose θ* are those of the file.
        path: File that `SynapticMemory.save` wrote.

    Raises:
        UsageError: If it is no such file, or of another network.
    """
    memory = method.memory  # type: ignore[attr-defined]
    given, taken = _read_memory(path), []
    strength, tasks, states, auto = from_arrays(memory.state())
    for state in states:
        place = state.model, state.identity.place
        if place not in given:
            raise _other_network(path, f"nothing for the weight '{state.name}'")
        found = given.pop(place)
        if found.importance.shape != state.importance.shape:
            raise _other_network(
                path,
                f"shape {tuple(found.importance.shape)} for the weight '{state.name}', which has "
                f"{tuple(state.importance.shape)}",
            )
        if not np.array_equal(found.anchor.numpy(), state.anchor.numpy()):
            raise _other_network(path, f"other values θ* of the weight '{state.name}'")
        found.name = state.name
        taken.append((found, state.identity, state.model))
    if given:
        extra = next(iter(given.values()))
        raise _other_network(path, f"a weight '{extra.name}' that the network does not have")
    memory.restore(to_arrays(np.array(strength), tasks, taken, auto))


def _other_network(path, what):
    return UsageError(
        f"Expected a memory of the network that is continued. Received: {what} in '{path}'. Name a "
        "file that was made from the memory of this run with `--memory`."
    )


def default_folder(run: FinishedRun, added: str, given: Mapping[str, Any]) -> Path:
    """Return the folder of a run that goes on from another one, beside that one.

    Args:
        run: The run.
        added: Name of the stream of added tasks.
        given: The settings that were given.
    """
    changed = [f"{name.replace('_', '')}{json.dumps(given[name])}" for name in sorted(given)]
    words = [part.replace('"', "").replace("/", ".") for part in changed]
    folder = run.directory.resolve()
    name = "-".join([f"{folder.name}+{added}", *words])
    return (
        run.directory.parent / name if run.directory.name == folder.name else folder.parent / name
    )
