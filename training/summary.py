"""Runs that differ in their seed alone: their label, means, spread, and paired differences."""

import dataclasses
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_mas.errors import UsageError

from .settings import Recipe

Result = Mapping[str, Any]

# What is shown in the place of an accuracy that was not measured, and of what follows from it.
NOT_MEASURED = "–"

# What stands for a setting that an older result lacks, and that has no default.
NOT_RECORDED = "not recorded"

# What a result has if its run was measured while tasks were being learned, too.
WORST_CASE = ("min_accuracy", "worst_case_accuracy")

ABOUT_SECONDS = "Runs of one comparison share a process: a method's first run includes tracing."


def known(values: Iterable[float | None]) -> list[float]:
    """Return those of some accuracies that were measured."""
    return [value for value in values if value is not None]


def mean_of_known(values: Iterable[float | None]) -> float:
    """Return the mean of what was measured; NaN if nothing was."""
    found = known(values)
    return statistics.mean(found) if found else math.nan


def measure_text(value: float | None, form: str = "z.4f") -> str:
    """Return a measure as it is shown; None and NaN stand for one that is not known."""
    return NOT_MEASURED if value is None or math.isnan(value) else f"{value:{form}}"


def matrix_of(result: Result) -> np.ndarray:
    """Return the accuracy matrix `[T, T]` of a run, NaN for what was not measured."""
    return np.array(result["accuracy_matrix"], float)


def title(result: Result) -> str:
    """Return a run's method, with λ and the kind of penalty where the method has them."""
    settings = method_settings(result)
    if settings["strength"] is None:
        return settings["method"]
    penalty = f" {settings['penalty']}" if settings["penalty"] == "decoupled" else ""
    return f"{settings['method']} λ={strength_text(settings['strength'])}{penalty}"


def strength_text(strength: float | str) -> str:
    """Return λ as it is shown: a number in six digits, or "auto"."""
    return strength if isinstance(strength, str) else f"{strength:g}"


def method_settings(result: Result) -> dict[str, Any]:
    """Return method, strength and penalty; None where the method has none."""
    return {name: result[name] for name in ("method", "strength", "penalty")}


def labels(results: Sequence[Result]) -> list[str]:
    """Return a label per run, equal for those alone that agree in everything but the seed.

    A number tells labels apart that would look alike, as those of two files of one name.

    Raises:
        UsageError: If two runs agree in the seed, too.
    """
    settings = [run_settings(result) for result in results]
    names = list(dict.fromkeys(name for one in settings for name in one))
    settings = [{name: one.get(name, NOT_RECORDED) for name in names} for one in settings]
    differing = [name for name in names if any(one[name] != settings[0][name] for one in settings)]
    found: dict[str, list[dict[str, Any]]] = {}
    texts = []
    for result, one in zip(results, settings, strict=True):
        words = [f"{name}={setting_text(name, one[name])}" for name in differing]
        text = "  ".join([title(result), *words])
        texts.append(_numbered(text, method_settings(result) | one, found))
    _check_given_once(results, texts)
    return texts


def _numbered(text, settings, found):
    """Return a label, with a number from the second settings on that were found to have it."""
    alike = found.setdefault(text, [])
    if settings not in alike:
        alike.append(settings)
    number = alike.index(settings) + 1
    return text if number == 1 else f"{text} ({number})"


def _check_given_once(results, labels):
    seen = set()
    for result, label in zip(results, labels, strict=True):
        run = (label, result["seed"])
        if run in seen:
            raise UsageError(
                f"Expected each run once: another with the same settings and seed says nothing "
                f"new. Received: {label} with seed {result['seed']} twice. Name one of them."
            )
        seen.add(run)


def setting_text(name: str, value: Any) -> str:
    """Return the value of a setting as it is shown: of a file its name, of a hash its beginning."""
    if value is None or value == "":
        return "none"
    if name == "weights":
        return Path(value).name
    if name == "data" and value != NOT_RECORDED:
        return value[:8]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def run_settings(result: Result) -> dict[str, Any]:
    """Return all that decides a result except the seed and what `title` says, flat.

    A result that is older than an option was made with what is now the option's default.
    """
    names = ("stream", "scenario", "evaluated_on", "data")
    found = {name: result[name] for name in names if name in result}
    found["evaluate_every"] = result.get("evaluate_every")
    # Averages over some tasks are not those over all.
    evaluated = result.get("evaluated_tasks", result["tasks"])
    found["tasks evaluated"] = "all" if evaluated == result["tasks"] else ", ".join(evaluated)
    return found | dataclasses.asdict(Recipe()) | result["recipe"]


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mean over runs.

    Attributes:
        mean: The mean; NaN if it is known of no run.
        deviation: Standard deviation of a sample, with n − 1; None for one run.
        runs: Of how many runs it is.
    """

    mean: float
    deviation: float | None
    runs: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread":
        """Return mean and standard deviation of the values that are known."""
        found = known(values)
        deviation = statistics.stdev(found) if len(found) > 1 else None
        return cls(mean_of_known(found), deviation, len(found))

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean, the deviation over √n; None for one run."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.runs)

    def with_deviation(self) -> str:
        """Return the mean ± the deviation as text."""
        deviation = "" if self.deviation is None else f" ± {self.deviation:z.4f}"
        return f"{self.text('z.4f')}{deviation}"

    def text(self, form: str = ".3f") -> str:
        """Return the mean alone as text."""
        return measure_text(self.mean, form)

    def with_error(self) -> str:
        """Return the mean of differences, with its sign, ± the standard error as text."""
        error = "" if self.standard_error is None else f" ± {self.standard_error:z.4f}"
        return f"{self.mean:+z.4f}{error}"


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that agree in everything but the seed.

    Attributes:
        label: Their method, λ, and the settings in which they differ from other groups.
        results: Their results, by seed.
    """

    label: str
    results: tuple[Result, ...]

    def spread(self, measure: str) -> Spread:
        """Return mean and spread of a measure of the results, or of one out of `_COMPUTED`."""
        value = _COMPUTED.get(measure, lambda result: result[measure])
        return Spread.of([value(result) for result in self.results])

    def difference(self, other: "Group", measure: str) -> Spread | None:
        """Return how a measure differs from that of another group, over the seeds of both.

        Differences are taken for each seed, so that what a seed does to both groups does not count.
        None if no seed is in both with the same data.
        """
        value = _COMPUTED.get(measure, lambda result: result[measure])
        others = {_pair_key(result): value(result) for result in other.results}
        mine = {_pair_key(result): value(result) for result in self.results}
        pairs = [(mine[key], others[key]) for key in mine if key in others]
        differences = [a - b for a, b in pairs if a is not None and b is not None]
        return Spread.of(differences) if differences else None


def _pair_key(result):
    """Return what two runs of a pair have in common."""
    return result["seed"], result.get("data")


def groups(results: Sequence[Result]) -> list[Group]:
    """Return runs in groups that agree in everything but the seed, in order of their first run.

    Args:
        results: As `read_result` returns them.

    Raises:
        UsageError: If two of them agree in the seed, too.
    """
    found: dict[str, list[Result]] = {}
    for label, result in zip(labels(results), results, strict=True):
        found.setdefault(label, []).append(result)
    return [
        Group(label, tuple(sorted(runs, key=lambda run: run["seed"])))
        for label, runs in found.items()
    ]


def have_worst_case(candidates: Sequence[Group]) -> bool:
    """Return whether all runs were measured while tasks were being learned, too."""
    return all(name in result for g in candidates for result in g.results for name in WORST_CASE)


def best(candidates: Sequence[Group]) -> Group:
    """Return the group with the highest average accuracy."""
    return max(candidates, key=lambda group: group.spread("average_accuracy").mean)


def new_task_accuracy(result: Result) -> float:
    """Return the plasticity of a run: the mean over tasks of R[j, j], when each was learned."""
    matrix = result["accuracy_matrix"]
    return mean_of_known(row[j] for j, row in enumerate(matrix))


def total_seconds(result: Result) -> float:
    """Return how long a run took in all its phases."""
    return sum(result["seconds"].values())


# Measures that are not in a result as they stand.
_COMPUTED = {"new_task_accuracy": new_task_accuracy, "seconds": total_seconds}
