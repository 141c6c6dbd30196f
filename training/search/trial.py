"""A trial: settings that a search tried, and what became of them."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ..settings import Settings
from .dimensions import STRENGTH
from .space import shown_values
from .stopping import standard_error

# Shares of a million examples, averaged over a hundred tasks, differ by more.
_DIGITS = 10

COMPLETED, STOPPED, FAILED = "completed", "stopped", "failed"


@dataclasses.dataclass(frozen=True)
class Trial:
    """Settings that were tried, with one seed or several.

    Attributes:
        values: What is varied, by the name of the option.
        settings: All settings, with the first seed.
        state: `COMPLETED`; `STOPPED` since it was not expected to win; or `FAILED`.
        results: Of each seed, as `run.train` returns it, on validation data; of one that is not
            completed, those of the seeds before.
        reason: Why it is not completed, in one line.
        bound: The highest average accuracy that was expected of a stopped one; 0 of others.
        lost: The least forgetting that was expected of a stopped one; 0 of others.
        learned: How many tasks were learned for it, those that it shares left out.
        is_new: Whether any was learned now, rather than read from the search's folder.
        seconds: How long it took now.
    """

    values: Mapping[str, Any]
    settings: Settings
    state: str = COMPLETED
    results: Sequence[dict] = ()
    reason: str = ""
    bound: float = 0.0
    lost: float = 0.0
    learned: int = 0
    is_new: bool = True
    seconds: float = 0.0

    @property
    def is_completed(self) -> bool:
        """Whether it has learned all tasks with all seeds."""
        return self.state == COMPLETED

    @property
    def strength(self) -> float | None:
        """λ, if that is varied and makes a difference to the method."""
        return self.values.get(STRENGTH) if self.settings.has_strength else None

    @property
    def name(self) -> str:
        """What is varied, in a line."""
        return shown_values(self.values) or "the options as given"

    @property
    def accuracy(self) -> float:
        """Average accuracy, a mean over the seeds, of a completed trial."""
        return _mean(result["average_accuracy"] for result in self.results)

    @property
    def forgetting(self) -> float:
        """Forgetting, a mean over the seeds, of a completed trial."""
        return _mean(result["forgetting"] for result in self.results)

    @property
    def cross_entropy(self) -> float | None:
        """Mean cross-entropy of all tasks, training data included, in the end.

        A mean over the seeds, of a completed trial; None if an earlier version did not record it.
        """
        recorded = [r["cross_entropy"] for r in self.results if "cross_entropy" in r]
        if len(recorded) < len(self.results):
            return None
        return statistics.mean(statistics.mean(of_tasks) for of_tasks in recorded)

    @property
    def standard_error(self) -> float:
        """That of the accuracy: over the seeds if there are several, else of its examples."""
        if len(self.results) > 1:
            accuracies = [result["average_accuracy"] for result in self.results]
            return statistics.stdev(accuracies) / len(accuracies) ** 0.5
        [result] = self.results
        examples = [result["examples"][task]["validation"] for task in result["tasks"]]
        return standard_error(result["accuracy_matrix"], examples)

    @property
    def untrained(self) -> float:
        """Average accuracy before the first task; 0 if it was not recorded."""
        return statistics.mean(statistics.mean(r.get("baseline") or [0.0]) for r in self.results)

    def others(self) -> dict[str, Any]:
        """Return what is varied besides λ."""
        return {name: value for name, value in self.values.items() if name != STRENGTH}


def _mean(values):
    """Return a mean without what rounding adds to it, which would tell equal trials apart."""
    return round(statistics.mean(values), _DIGITS) + 0.0  # and never −0


def bounded_accuracy(accuracy: float, forgetting: float, max_forgetting: float | None) -> float:
    """Return average accuracy less ten times what exceeds the bound on forgetting, if there is one.

    Example:
        >>> round(bounded_accuracy(0.9, 0.03, 0.01), 6)
        0.7
    """
    excess = 0.0 if max_forgetting is None else max(0.0, forgetting - max_forgetting)
    return accuracy - 10 * excess


def trial_line(trial: Trial) -> str:
    """Return what a trial found, in one line."""
    if not trial.is_completed:
        return f"{trial.name:<11} {trial.reason}"
    return (
        f"{trial.name:<11} average accuracy {trial.accuracy:.4f}  forgetting {trial.forgetting:.4f}"
    )


def meets(trial: Trial, max_forgetting: float | None) -> bool:
    """Return whether a trial may be recommended: completed, and within a bound if there is one."""
    return trial.is_completed and (max_forgetting is None or trial.forgetting <= max_forgetting)


def best_of(trials: Sequence[Trial], max_forgetting: float | None) -> Trial | None:
    """Return the first trial of the highest accuracy that may be recommended; None without any."""
    candidates = [trial for trial in trials if meets(trial, max_forgetting)]
    return max(candidates, key=lambda trial: trial.accuracy, default=None)
