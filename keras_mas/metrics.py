"""How much was learned and how much was forgotten: pure functions of the accuracy matrix.

R is `[T, T]`; R[i, j] is the accuracy, a fraction, on task j after training on task i, both counted
from 0. What was not measured, because no examples of the task were left, is None. It counts as no
number: a mean is over the tasks for which all that it takes was measured (`measured` says which
have an accuracy in the end), and NaN if there is none.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

# Accuracies on all tasks, None where one was not measured; and a row of them after each task.
Row = npt.ArrayLike | Sequence[float | None]
Matrix = npt.ArrayLike | Sequence[Row]


def average_accuracy(R: Matrix) -> float:
    """Return the mean over all tasks of the accuracy after the last one, mean_j R[T−1, j].

    Args:
        R: Accuracy matrix `[T, T]`, T ≥ 1.

    Raises:
        ValueError: If R is not a square matrix of numbers in 0 … 1 and None, here and in every
            metric.

    Example:
        >>> average_accuracy([[1.0, 0.5], [0.75, 1.0]])
        0.875
        >>> average_accuracy([[1.0, 0.5], [None, 0.75]])  # of the second task alone
        0.75
    """
    return _mean_of_measured(_matrix(R)[-1])


def measured(R: Matrix) -> list[int]:
    """Return the numbers, from 0, of the tasks that were measured after the last one was learned.

    Args:
        R: Accuracy matrix `[T, T]`.

    Example:
        >>> measured([[1.0, 0.5], [None, 0.75]])
        [1]
    """
    return [int(j) for j in np.flatnonzero(~np.isnan(_matrix(R)[-1]))]


def backward_transfer(R: Matrix) -> float:
    """Return what later tasks did to earlier ones, mean_{j<T−1} (R[T−1, j] − R[j, j]).

    Negative is forgetting. One task alone has none: 0.

    Args:
        R: Accuracy matrix `[T, T]`.

    Example:
        >>> backward_transfer([[1.0, 0.5], [0.75, 1.0]])
        -0.25
    """
    matrix = _matrix(R)
    return _mean_over_earlier((matrix[-1] - np.diag(matrix))[:-1])


def forgetting(R: Matrix) -> float:
    """Return the mean over j < T−1 of the best accuracy a task ever had, less the last one.

    The best is sought over max_{j ≤ i < T−1} R[i, j]: from the moment the task was learned to the
    one before the last (Chaudhry et al., ECCV 2018, arXiv:1801.10112, Eq. 3). Negative if the last
    task improved the earlier ones. One task alone has none: 0. Where some of these R[i, j] were not
    measured, the best of the others is taken.

    Args:
        R: Accuracy matrix `[T, T]`.

    Example:
        >>> forgetting([[0.75, 0.5, 0.5], [1.0, 1.0, 0.5], [0.5, 0.75, 1.0]])
        0.375
    """
    matrix = _matrix(R)
    last = len(matrix) - 1
    # `fmax` takes the number where the other one is NaN.
    best = [np.fmax.reduce(matrix[j:last, j]) for j in range(last)]
    return _mean_over_earlier(best - matrix[last, :last])


def forward_transfer(R: Matrix, baseline: Row) -> float:
    """Return what earlier tasks gave to a task not yet trained, mean_{j≥1} (R[j−1, j] − b[j]).

    One task alone has none: 0.

    Args:
        R: Accuracy matrix `[T, T]`.
        baseline: b `[T]`, the accuracy on each task before any training.

    Raises:
        ValueError: If the baseline has another length.

    Example:
        >>> forward_transfer([[1.0, 0.75], [1.0, 1.0]], baseline=[0.5, 0.5])
        0.25
    """
    matrix, before = _matrix(R), _numbers(baseline)
    if before.shape != (len(matrix),):
        raise ValueError(
            f"Expected a baseline of shape ({len(matrix)},), one accuracy per task of the matrix. "
            f"Received: shape {before.shape}."
        )
    return _mean_over_earlier([matrix[j - 1, j] - before[j] for j in range(1, len(matrix))])


def min_accuracy(R: Matrix, during: Mapping[int, Sequence[Row]] | None = None) -> float:
    """Return the mean over the earlier tasks of the lowest accuracy each had since it was learned.

    min-ACC = mean_{j<T−1} min_n a_n[j], where n goes over all evaluations after task j was learned:
    R[i, j] with i > j and, where there are any, those while a later task was being learned. They
    show what the matrix alone does not: accuracy that drops when a task begins and recovers until
    it ends, the stability gap (De Lange et al., "Continual evaluation for lifelong learning:
    Identifying the stability gap", ICLR 2023, arXiv:2205.13452).

    One task alone has no earlier ones: its own accuracy. Where some of the a_n[j] were not
    measured, the lowest of the others is taken.

    Args:
        R: Accuracy matrix `[T, T]`.
        during: By the number of a task, from 0: the accuracies measured while it was being learned,
            each `[t]` with t from the number of earlier tasks to T. None for none.

    Raises:
        ValueError: If an evaluation has another length, or is of no task of the matrix.

    Example:
        >>> min_accuracy([[1.0, 0.5], [0.75, 1.0]])
        0.75
        >>> min_accuracy([[1.0, 0.5], [0.75, 1.0]], during={1: [[0.25, 0.5], [0.5, 0.75]]})
        0.25
    """
    matrix = _matrix(R)
    tasks = len(matrix)
    rows = {i: [matrix[i], *_checked(i, tasks, during or {})] for i in range(tasks)}
    if set(during or {}) - set(rows):
        raise ValueError(
            f"Expected evaluations while tasks 0 to {tasks - 1} were learned. Received: some of "
            f"task {max(set(during or {}) - set(rows))}."
        )
    if tasks == 1:
        return float(matrix[0, 0])
    since = ([row[j] for i in range(j + 1, tasks) for row in rows[i]] for j in range(tasks - 1))
    return _mean_over_earlier([np.fmin.reduce(values) for values in since])


def worst_case_accuracy(R: Matrix, during: Mapping[int, Sequence[Row]] | None = None) -> float:
    """Return the accuracy that could be relied on at any time, WC-ACC.

    WC-ACC = 1/T R[T−1, T−1] + (1 − 1/T) min-ACC: the last task as it was learned, the earlier ones
    at their worst (De Lange et al., ICLR 2023).

    Args:
        R: Accuracy matrix `[T, T]`.
        during: As for `min_accuracy`.

    Example:
        >>> worst_case_accuracy([[1.0, 0.5], [0.75, 1.0]], during={1: [[0.25, 0.5]]})
        0.625
    """
    matrix = _matrix(R)
    share = 1 / len(matrix)
    return float(share * matrix[-1, -1] + (1 - share) * min_accuracy(R, during))


def _checked(number, tasks, during):
    """Return the evaluations while a task was learned; refuse any that lack an earlier task."""
    rows = [_numbers(row) for row in during.get(number, ())]
    for row in rows:
        if row.ndim != 1 or not number <= len(row) <= tasks:
            raise ValueError(
                f"Expected an accuracy for each of the {number} tasks before task {number}, and at "
                f"most for {tasks}. Received: shape {row.shape}."
            )
    return rows


def _mean_over_earlier(values):
    """Return the mean over earlier tasks, of which one task alone has none: 0."""
    return _mean_of_measured(np.asarray(values)) if len(values) else 0.0


def _mean_of_measured(values):
    """Return the mean of what was measured; NaN if nothing was."""
    known = values[~np.isnan(values)]
    return float(np.mean(known)) if len(known) else math.nan


def _matrix(R):
    matrix = _numbers(R)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(
            f"Expected a square accuracy matrix [T, T], R[i, j] on task j after task i. Received: "
            f"shape {matrix.shape}."
        )
    return matrix


def _numbers(values):
    """Return accuracies as an array in which NaN stands for None; refuse what is no fraction."""
    given = np.asarray(values, object)
    is_known = np.array([value is not None for value in given.flat], bool).reshape(given.shape)
    numbers = np.full(given.shape, math.nan)
    numbers[is_known] = given[is_known].astype(float)
    known = numbers[is_known]
    if not np.all((known >= 0) & (known <= 1)):
        raise ValueError(
            f"Expected accuracies as fractions from 0 to 1. Received: values from {known.min()} to "
            f"{known.max()}. Divide percentages by 100."
        )
    return numbers
