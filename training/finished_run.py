"""A finished run as later ones find it: its settings, its tasks, and where their data were."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_mas.errors import UsageError

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
from .tasks.tables import Encoding

# The recipe's options that the network is made by, which stays as it is.
_OF_NETWORK = ("backbone", "weights", "freeze", "batch_norm")

# The options that say where the data of a stream lie, and how they are read.
OF_LOADING = ("data_dir", "cache_memory", "cache_dir", "skip_broken")

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
        options = {name: arguments[name] for name in OF_LOADING if arguments.get(name)}
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
