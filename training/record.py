"""What a run measures of itself: a part is kept with every task, and all of it in the result."""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

from keras_mas import metrics

from .listening import Evaluation
from .stability_decay import Decayed

_PHASES = ("training", "importance", "evaluation", "saving")


class Record:
    """What a run has measured so far.

    Attributes:
        rows: The accuracy matrix, a row for each task that has been learned; None for an accuracy
            that is not known.
        baseline: Accuracy on every task before any was learned; empty as long as it is unknown.
        evaluations: What was measured in the middle of tasks.
        history: Keras's history of the last task, `{name: [value after each epoch]}`.
        seconds: By phase: training, importance, evaluation, saving.
        memory: Bytes that are kept between tasks.
        decayed: How λ was found for the last task by stability decay; None if it was not.
        noted: What else was noted of each task, as lists by name.
    """

    def __init__(self) -> None:
        self.rows: list[list[float | None]] = []
        self.baseline: list[float | None] = []
        self.evaluations: list[Evaluation] = []
        self.history: dict[str, list[float]] = {}
        self.seconds = dict.fromkeys(_PHASES, 0.0)
        self.memory = {"kept_by_method": 0}
        self.decayed: Decayed | None = None
        self.noted: dict[str, list[Any]] = {}

    def timed(self, phase: str) -> "Stopwatch":
        """Return a context that adds its seconds to a phase."""
        return Stopwatch(self.seconds, phase)

    @contextlib.contextmanager
    def timed_within_training(self, phase: str) -> Iterator[None]:
        """Count what happens between two steps of training as another phase."""
        before = self.seconds[phase]
        with self.timed(phase):
            yield
        self.seconds["training"] -= self.seconds[phase] - before

    def note(self, **values: Any) -> None:
        """Note something of the task that has just been learned."""
        for name, value in values.items():
            self.noted.setdefault(name, []).append(value)

    def last(self, name: str) -> Any:
        """Return what was noted of the last task; None if nothing is."""
        return self.noted.get(name, [None])[-1]

    def evaluations_of(self, number: int) -> list[Evaluation]:
        """Return what was measured in the middle of a task; the first has number 1."""
        return [each for each in self.evaluations if each.task == number]

    def measurements_of(self, number: int) -> dict[str, Any]:
        """Return what is kept of a task, under way or learned, for JSON; the first has number 1."""
        return {
            "seconds": self.seconds,
            "history": self.history,
            "evaluations": _plain(self.evaluations_of(number)),
        }

    def progress(self, number: int) -> dict[str, Any]:
        """Return what is kept of a task that has been learned, the last one, for JSON."""
        return self.measurements_of(number) | {
            "accuracies": self.rows[-1],
            "baseline": self.baseline,
            "memory": self.memory,
            **({"decayed": dataclasses.asdict(self.decayed)} if self.decayed else {}),
        }

    def restore(self, kept: Mapping[str, Any]) -> list[Evaluation]:
        """Take what was kept of a task, finished or under way, except its accuracies.

        Returns:
            What was measured in the middle of it.
        """
        evaluations = [Evaluation(**each) for each in kept.get("evaluations", ())]
        self.seconds |= {phase: kept["seconds"][phase] for phase in self.seconds}
        self.history = dict(kept.get("history", {}))  # earlier versions kept less
        self.memory |= kept.get("memory", {})
        if found := kept.get("decayed"):
            self.decayed = Decayed(found["best"], [tuple(each) for each in found["tries"]])
        self.evaluations += evaluations
        return evaluations

    def scores(self) -> dict[str, Any]:
        """Return the accuracies and what is computed from them, for JSON: null for unknown."""
        return {
            "accuracy_matrix": self.rows,
            "baseline": self.baseline,
            "average_accuracy": _null_if_unknown(metrics.average_accuracy(self.rows)),
            "backward_transfer": _null_if_unknown(metrics.backward_transfer(self.rows)),
            "forgetting": _null_if_unknown(metrics.forgetting(self.rows)),
            "forward_transfer": _null_if_unknown(
                metrics.forward_transfer(self.rows, self.baseline)
            ),
        }

    def stability(self) -> dict[str, Any]:
        """Return what was measured while tasks were being learned, and the worst of it."""
        during: dict[int, list[list[float | None]]] = {}
        for evaluation in self.evaluations:
            during.setdefault(evaluation.task - 1, []).append(evaluation.accuracies)
        return {
            "min_accuracy": _null_if_unknown(metrics.min_accuracy(self.rows, during)),
            "worst_case_accuracy": _null_if_unknown(metrics.worst_case_accuracy(self.rows, during)),
            "evaluations": _plain(self.evaluations),
        }


class Stopwatch:
    """Adds the seconds spent inside a `with` block to a phase."""

    def __init__(self, seconds: dict[str, float], phase: str):
        self.seconds, self.phase = seconds, phase

    def __enter__(self) -> Self:
        self.started = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.lap()

    def lap(self) -> None:
        """Add the seconds so far."""
        now = time.perf_counter()
        self.seconds[self.phase] += now - self.started
        self.started = now


def _plain(evaluations):
    return [dataclasses.asdict(each) for each in evaluations]


def _null_if_unknown(value):
    """Return a measure as JSON holds it: null in the place of NaN."""
    return None if math.isnan(value) else value
