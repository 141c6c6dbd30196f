"""Runs that differ in their seed alone: their label, means, spread, and paired differences."""

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from .settings import Recipe

Result = Mapping[str, Any]


def title(result: Result) -> str:
    """Return a run's method, with λ and the kind of penalty where the method has them."""
    settings = method_settings(result)
    if settings["strength"] is None:
        return settings["method"]
    penalty = f" {settings['penalty']}" if settings["penalty"] == "decoupled" else ""
    return f"{settings['method']} λ={settings['strength']:g}{penalty}"


def method_settings(result: Result) -> dict[str, Any]:
    """Return method, strength and penalty; None where the method has none."""
    return {name: result[name] for name in ("method", "strength", "penalty")}


def labels(results: Sequence[Result]) -> list[str]:
    """Return a label per run, equal for those runs that agree in everything but the seed."""
    settings = [run_settings(result) for result in results]
    names = list(dict.fromkeys(name for one in settings for name in one))
    differing = [name for name in names if len({json.dumps(one.get(name)) for one in settings}) > 1]
    return [
        "  ".join([title(result), *(f"{name}={one.get(name)}" for name in differing)])
        for result, one in zip(results, settings, strict=True)
    ]


def run_settings(result: Result) -> dict[str, Any]:
    """Return all that decides a result except the seed and what `title` says, flat.

    A result that is older than an option was made with what is now the option's default.
    """
    names = ("stream", "scenario", "evaluated_on", "data")
    found = {name: result[name] for name in names if name in result}
    return found | dataclasses.asdict(Recipe()) | result["recipe"]


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mean over runs.

    Attributes:
        mean: The mean.
        deviation: Standard deviation of a sample, with n − 1; None for one run.
        runs: How many runs there are.
    """

    mean: float
    deviation: float | None
    runs: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return mean and standard deviation of at least one value."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.mean(values), deviation, len(values))

    @property
    def standard_error(self) -> float | None:
        """Standard error of the mean, the deviation over √n; None for one run."""
        return None if self.deviation is None else self.deviation / math.sqrt(self.runs)

    def with_deviation(self) -> str:
        """Return the mean ± the deviation as text."""
        deviation = "" if self.deviation is None else f" ± {self.deviation:z.4f}"
        return f"{self.mean:z.4f}{deviation}"

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
        """Return mean and spread of a measure of the results, or of one out of `MEASURES`."""
        value = MEASURES.get(measure, lambda result: result[measure])
        return Spread.of([value(result) for result in self.results])

    def difference(self, other: "Group", measure: str) -> Spread | None:
        """Return how a measure differs from that of another group, over the seeds of both.

        Differences are taken for each seed, so that what a seed does to both groups does not count.
        None if no seed is in both.
        """
        value = MEASURES.get(measure, lambda result: result[measure])
        others = {result["seed"]: value(result) for result in other.results}
        pairs = [(value(r), others[r["seed"]]) for r in self.results if r["seed"] in others]
        return Spread.of([mine - theirs for mine, theirs in pairs]) if pairs else None


def groups(results: Sequence[Result]) -> list[Group]:
    """Return runs in groups that agree in everything but the seed, in order of their first run.

    Args:
        results: As `read_result` returns them.
    """
    found: dict[tuple[str, float | None], list[Result]] = {}
    for label, result in zip(labels(results), results, strict=True):
        key = (label, method_settings(result)["strength"])  # the label has six digits of λ only
        found.setdefault(key, []).append(result)
    return [
        Group(label, tuple(sorted(runs, key=lambda run: run["seed"])))
        for (label, _), runs in found.items()
    ]


def best(candidates: Sequence[Group]) -> Group:
    """Return the group with the highest average accuracy."""
    return max(candidates, key=lambda group: group.spread("average_accuracy").mean)


def new_task_accuracy(result: Result) -> float:
    """Return the plasticity of a run: the mean over tasks of R[j, j], when each was learned."""
    matrix = result["accuracy_matrix"]
    return statistics.mean(row[j] for j, row in enumerate(matrix))


def total_seconds(result: Result) -> float:
    """Return how long a run took in all its phases."""
    return sum(result["seconds"].values())


# Measures that are not in a result as they stand.
MEASURES = {"new_task_accuracy": new_task_accuracy, "seconds": total_seconds}
