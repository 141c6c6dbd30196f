"""When a trial is not expected to win any more: what it can still reach, after each task."""

import dataclasses
import statistics
from collections.abc import Sequence

from ..listening import Listener, TaskResult
from ..summary import known

Rows = Sequence[Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Stop:
    """Why and where a run was stopped.

    Attributes:
        reason: Why, in one line.
        bound: The highest average accuracy that was still expected of it.
        lost: The least forgetting that was expected of it.
        rows: Rows of its accuracy matrix so far.
    """

    reason: str
    bound: float
    lost: float
    rows: Rows


class CannotWinError(Exception):
    """A run was stopped between tasks.

    Args:
        stop: Why and where.
    """

    def __init__(self, stop: Stop):
        super().__init__(stop.reason)
        self.stop = stop


def accuracy_bound(rows: Rows, ceilings: Sequence[float], recovery: float = 0.0) -> float:
    """Return the average accuracy that a run can still reach.

    That is, if the tasks learned so far gain as much as given, and every other one ends at its
    ceiling.

    Args:
        rows: The rows of the accuracy matrix so far, each `[T]`.
        ceilings: Highest accuracy of each task, `[T]`.
        recovery: What the accuracy on a task may gain by later ones, up to 1.

    Example:
        >>> accuracy_bound([[0.9, 0.5], [0.6, 0.8]][:1], ceilings=[1.0, 0.7])
        0.8
        >>> accuracy_bound([[0.9, 0.5], [0.6, 0.8]][:1], ceilings=[1.0, 0.7], recovery=0.2)
        0.85
    """
    learned = len(rows)
    return statistics.mean([*_recovered(rows, recovery), *ceilings[learned:]])


def forgetting_bound(rows: Rows, recovery: float = 0.0) -> float:
    """Return the forgetting that a run has at least, if no task gains more again than given.

    Args:
        rows: The rows of the accuracy matrix so far, fewer than tasks, each `[T]`.
        recovery: What the accuracy on a task may gain by later ones, up to 1.

    Example:
        >>> forgetting_bound([[0.9, 0.0, 0.0], [0.7, 0.8, 0.0]])  # 0.2 of two tasks
        0.1
        >>> forgetting_bound([[0.9, 0.0, 0.0], [0.7, 0.8, 0.0]], recovery=0.1)
        0.05
    """
    learned, tasks = len(rows), len(rows[-1])
    best = [max(row[j] for row in rows[j:]) for j in range(learned)]
    pairs = zip(best, _recovered(rows, recovery), strict=True)
    lost = sum(max(0.0, before - now) for before, now in pairs)
    return round(lost / (tasks - 1), 12)


def _recovered(rows, recovery):
    """Return the accuracies on the tasks learned so far, each with what it may gain."""
    return [min(1.0, accuracy + recovery) for accuracy in rows[-1][: len(rows)]]


def forgetting_error(rows: Rows, examples: Sequence[int]) -> float:
    """Return the standard error of `forgetting_bound`, from the examples it was measured on.

    It is that of the differences between the best and the last accuracy on each task, as if other
    examples were right each time, which is too large rather than too small.

    Args:
        rows: As for `forgetting_bound`.
        examples: How many examples each task learned so far was measured on.

    Example:
        >>> round(forgetting_error([[0.5, 0.0], [0.5, 0.5]][:1], [100]), 3)  # 2 (1/4) / 100
        0.071
    """
    tasks = len(rows[-1])
    shares = [((max(row[j] for row in rows[j:]), rows[-1][j]), n) for j, n in enumerate(examples)]
    variances = [p * (1 - p) / n for pair, n in shares for p in pair]
    return sum(variances) ** 0.5 / (tasks - 1)


def ceilings_of(matrices: Sequence[Rows]) -> list[float]:
    """Return the highest accuracy on each task since it was learned, `[T]`, in several runs.

    Example:
        >>> ceilings_of([[[0.7, 0.9], [0.8, 0.4]], [[0.6, 0.0], [0.7, 0.5]]])
        [0.8, 0.5]
    """
    tasks = range(len(matrices[0]))
    return [max(row[j] for matrix in matrices for row in matrix[j:]) for j in tasks]


def recovery_of(matrices: Sequence[Rows]) -> float:
    """Return the most that the accuracy on a learned task gained by later ones, in several runs.

    Example:
        >>> recovery_of([[[0.5, 0.1], [0.75, 0.9]], [[0.8, 0.0], [0.6, 0.9]]])
        0.25
    """
    gains = [
        end - accuracy
        for matrix in matrices
        for learned, row in enumerate(matrix, 1)
        for end, accuracy in zip(matrix[-1][:learned], row[:learned], strict=True)
    ]
    return max(gains)  # of the last task 0


class Judge(Listener):
    """Stops a run after a task when it is not expected to be recommended any more.

    After each task but the last, the accuracy is bounded by `accuracy_bound`. If that is less than
    what the best trial has on average, less one standard error, the run is stopped. It is an
    assumption that no task gains more by later ones than one did in another run, and that no task
    is learned better than the ceilings: where another run has learned it that well, or 1. A run
    that would have broken it by more than the standard error is stopped though it might have won;
    `complete_trials` of the search switches this off. With a bound on forgetting, a run that
    forgets more, by two standard errors, is stopped too.

    Args:
        ceilings: Highest accuracy of each task, `[T]`.
        recovery: What the accuracy on a task may gain by later ones.
        required: The accuracy that a run needs, less of which is not recommended; None if nothing
            is known yet.
        max_forgetting: As in `SearchSpace`.
    """

    def __init__(
        self,
        ceilings: Sequence[float],
        recovery: float,
        required: float | None,
        max_forgetting: float | None,
    ):
        self.ceilings, self.recovery, self.required = ceilings, recovery, required
        self.max_forgetting = max_forgetting
        self.rows: list[list[float]] = []
        self.examples: list[int] = []

    def task_finished(self, result: TaskResult) -> None:
        """Stop the run if it will hardly win; it is told of tasks that were read from disk too."""
        self.rows.append(known(result.accuracies))  # all are: a trial has all its data
        self.examples.append(len(result.task.validation))
        learned, tasks = len(self.rows), len(result.accuracies)
        if learned == tasks:
            return
        bound = accuracy_bound(self.rows, self.ceilings, self.recovery)
        lost = forgetting_bound(self.rows, self.recovery)
        certain = lost - 2 * forgetting_error(self.rows, self.examples)
        if self.max_forgetting is not None and certain > self.max_forgetting:
            why = f"it would forget {lost:.4f} at least"
        elif self.required is not None and bound < self.required:
            why = f"at most {bound:.4f} is expected, and {self.required:.4f} is needed"
        else:
            return
        reason = f"stopped after task {learned} of {tasks}: {why}"
        raise CannotWinError(Stop(reason, bound, lost, self.rows))


def standard_error(matrix: Rows, examples: Sequence[int]) -> float:
    """Return the standard error of the average accuracy, from the examples it was measured on.

    The accuracy on each of T tasks is a share of its n examples, with the variance p (1 − p) / n,
    for which two more right examples and two more wrong ones are counted in all: 2/T and 2/T of
    each task (Agresti and Coull, "Approximate is better than exact", The American Statistician 52,
    1998). So an accuracy of 1 on few examples is not taken for certain, and one wrong answer less
    than another setting gives is no more than chance.

    Args:
        matrix: The accuracy matrix.
        examples: How many examples each task was measured on.

    Example:
        >>> round(standard_error([[1.0]], [12]), 4)  # 14 of 16: (7/8 · 1/8 / 16)^½
        0.0827
    """
    part = 2 / len(examples)
    counted = [n + 2 * part for n in examples]
    rights = (p * n + part for p, n in zip(matrix[-1], examples, strict=True))
    shares = [right / n for right, n in zip(rights, counted, strict=True)]
    variances = [p * (1 - p) / n for p, n in zip(shares, counted, strict=True)]
    return sum(variances) ** 0.5 / len(variances)
