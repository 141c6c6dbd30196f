"""Going on from a finished run: its settings, its tasks by name, and what is left of their data."""

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

from .backbones import saved
from .backbones.weights import IMAGENET, digest_of_file
from .first_task import digest
from .heads import SHARED_HEADS
from .run_directory import (
    ARGUMENTS,
    MEMORY,
    MODEL,
    PROGRESS,
    RESULT,
    START,
    are,
    is_text,
    maps_to,
    naming_damage,
    read_json,
    read_result,
    task_folder,
)
from .settings import Recipe, Settings
from .tasks import DataError, LearnedTask, Split, Task, TaskStream, load_tasks
from .tasks.changes import Rgb
from .tasks.inputs import ChangedArray
from .tasks.store import OnDecoded
from .tasks.tables import Encoding
from .wording import one_of

# The recipe's options that the network is made by, which stays as it is.
_OF_NETWORK = ("backbone", "weights", "freeze", "batch_norm")

# The options that say where the data of a stream lie, and how they are read.
_OF_LOADING = ("data_dir", "cache_memory", "cache_dir", "skip_broken")

_CURE = "Take the folder from a copy of it; a run whose files are damaged cannot be continued."


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the data of some tasks were loaded from.

    Attributes:
        tasks: Name of a built-in stream, or path of a TOML file.
        fingerprint: Of the stream that was loaded.
        names: Names of its tasks.
        options: The options of `LoadOptions` that were given, by name.
    """

    tasks: str
    fingerprint: str
    names: Sequence[str]
    options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A finished run that is to be continued, as its folder describes it.

    Attributes:
        directory: Its folder, which is only read.
        result: Its result.
        description: Everything that decided the result.
        classes: Class names of every task, by the task's name.
    """

    directory: Path
    result: dict[str, Any]
    description: dict[str, Any]
    classes: dict[str, tuple[str, ...]]

    @classmethod
    def read(cls, directory: Path) -> "FinishedRun":
        """Read the folder of a run.

        Raises:
            UsageError: If the run is not finished, of an earlier version that recorded too little,
                without its models, or class-incremental.
            DamagedError: If a file is damaged.
        """
        result = read_result(directory)
        description = read_json(directory / ARGUMENTS, _DESCRIPTION, cure=_CURE)
        if "input_shape" not in result:
            raise UsageError(
                f"Expected a run that records the shape of its inputs. Received: '{directory}', "
                f"whose {RESULT} does not; an earlier version wrote it. Run its `keras-mas train` "
                "command again in another folder, and continue that run."
            )
        last = task_folder(directory, len(result["tasks"]))
        if not last.exists():
            raise UsageError(
                f"Expected a run with the models of its tasks. Received: '{directory}' without "
                f"'{last.name}/', as of a trial of a search. Run its `keras-mas train` command "
                "again in another folder, and continue that run."
            )
        if result["scenario"] == "class":
            raise UsageError(
                "Expected a run whose tasks are told apart by their heads, or share their classes. "
                f"Received: '{directory}', which is class-incremental: its one head tells "
                "all classes of all tasks apart, and would have to grow, with its Ω and θ*. "
                "Learn all classes in one run, or tell the task at test time (`--scenario task`)."
            )
        progress = read_json(last / PROGRESS, _PROGRESS, cure=_CURE)
        return cls(directory, result, description, _classes_of(result, progress["classes"]))

    @property
    def names(self) -> list[str]:
        """The names of its tasks."""
        return self.result["tasks"]

    @property
    def sources(self) -> list[Source]:
        """Where the data of its tasks were loaded from, as far as that was recorded."""
        if "sources" in self.result:
            return [Source(**source) for source in self.result["sources"]]
        arguments = self.result.get("arguments", {})
        if not arguments.get("tasks"):
            return []
        options = {name: arguments[name] for name in _OF_LOADING if arguments.get(name)}
        data = self.description["data"]
        return [Source(arguments["tasks"], data, self.names, options)]

    @functools.cached_property
    def digest(self) -> str:
        """A hash that tells it from all other runs."""
        last = task_folder(self.directory, len(self.names))
        files = [last / MODEL, last / MEMORY, last / PROGRESS]
        content = {path.name: digest_of_file(path) for path in files if path.exists()}
        return digest(content | {"description": self.description})

    def settings(self, given: Mapping[str, Any], given_recipe: Mapping[str, Any]) -> Settings:
        """Return its settings, with others in place of those that are given.

        Args:
            given: Values by field of `Settings`.
            given_recipe: Values by field of `Recipe`.

        Raises:
            UsageError: If the network would be another one, or a method could not go on from what
                this run's remembers.
        """
        for name in _OF_NETWORK:
            if name in given_recipe and given_recipe[name] != self.recorded_recipe[name]:
                raise UsageError(
                    f"Expected the network of '{self.directory}', whose weights are gone on from. "
                    f"Received: --{name.replace('_', '-')} {given_recipe[name]}, which was "
                    f"{self.recorded_recipe[name]}. Leave the option out."
                )
        method = self.result["method"]
        asked = given.get("method", method)
        if asked not in (method, "finetune"):
            raise UsageError(
                f"Expected the method of '{self.directory}', '{method}', which goes on from what "
                f"it remembers, or 'finetune'. Received: --method {asked}. Leave the option out."
            )
        kept = ("penalty", "seed", "evaluate_every", "deterministic")
        known = {name: self.description.get(name) for name in kept}
        known = {name: value for name, value in known.items() if value is not None}
        known |= {"method": method}
        if self.result["strength"] is not None:
            known["strength"] = self.result["strength"]
        if asked != method:
            known.pop("strength", None)
        recipe = Recipe(**{**self.recorded_recipe, **given_recipe, "weights": self.weights})
        return Settings(**{**known, **given}, recipe=recipe)

    @property
    def recorded_recipe(self) -> dict[str, Any]:
        """The recipe as the result records it; of an older one, with what are defaults now."""
        fields = {field.name for field in dataclasses.fields(Recipe)}
        recorded = {k: v for k, v in self.result["recipe"].items() if k in fields}
        found = dataclasses.asdict(Recipe(**recorded))
        own = self.directory / START  # its copy, wherever the network lay
        if not own.exists():
            return found
        _, layer = saved.parts(found["backbone"]) or (None, None)
        return found | {"backbone": saved.named(own, layer), "weights": str(own)}

    @property
    def weights(self) -> str | None:
        """What its trunk began with; its own network if that file is gone.

        It makes a difference to the baseline alone, since all weights of the trunk are restored.
        """
        recorded = self.recorded_recipe["weights"]
        return str(self.directory / MODEL) if self.has_lost_weights else recorded

    @property
    def has_lost_weights(self) -> bool:
        """Whether the file that its trunk began with is gone, or is another one now."""
        recorded = self.recorded_recipe["weights"]
        if recorded in (None, IMAGENET):
            return False
        path = Path(recorded)
        return not path.is_file() or digest_of_file(path) != self.description["recipe"]["weights"]

    @property
    def encoding(self) -> Encoding | None:
        """What its network takes of tables; None if it has learned none."""
        return known_encoding(self.directory, self.result)

    def load_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return where data lie and how they are read: what is given, else as it was recorded.

        Raises:
            UsageError: If another scenario is given.
        """
        scenario = self.result["scenario"]
        if given.get("scenario") not in (None, False, scenario):
            raise UsageError(
                f"Expected the scenario of the continued run, '{scenario}'. Received: "
                f"--scenario {given['scenario']}. Leave the option out."
            )
        recorded = [source.options for source in self.sources]
        known = dict(recorded[-1]) if recorded else {}
        asked = {name: value for name, value in given.items() if value is not False}
        return {**known, **asked, "scenario": scenario}


def known_encoding(directory: Path, result: Mapping[str, Any]) -> Encoding | None:
    """Return what the network of a finished run takes of tables; None if it has learned none.

    Args:
        directory: Its folder.
        result: Its result.

    Raises:
        DamagedError: If its description is damaged.
    """
    columns = tuple(result.get("columns", ()))
    if not columns:
        return None
    description = read_json(directory / ARGUMENTS, cure=_CURE)
    with naming_damage(directory / ARGUMENTS, _CURE):
        scale, offset = description["rescale"]
        return Encoding(columns, (list(map(float, scale)), list(map(float, offset))))


_DESCRIPTION = {"data": is_text, "recipe": lambda value: isinstance(value, dict)}
_PROGRESS = {"classes": maps_to(are(is_text))}


def _classes_of(result, heads):
    """Return the class names of every task; before they were recorded, those of its head."""
    recorded = result.get("classes", {})
    head = SHARED_HEADS.get(result["scenario"])
    return {name: tuple(recorded.get(name) or heads[head or name]) for name in result["tasks"]}


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
    added = load(add, seed=settings.seed, **options)
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
        if name in _OF_LOADING and value
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
