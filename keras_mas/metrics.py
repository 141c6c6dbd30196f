"""How much was learned and how much was forgotten: pure functions of the accuracy matrix.

R is `[T, T]`; R[i, j] is the accuracy, a fraction, on task j after training on task i, both counted
from 0.
"""

import numpy as np
import numpy.typing as npt


def average_accuracy(R: npt.ArrayLike) -> float:
    """Return the mean over all tasks of the accuracy after the last one, mean_j R[T−1, j].

    Args:
        R: Accuracy matrix `[T, T]`, T ≥ 1.

    Raises:
        ValueError: If R is not a square matrix of numbers in 0 … 1, here and in every metric.

    Example:
        >>> average_accuracy([[1.0, 0.5], [0.75, 1.0]])
        0.875
    """
    return float(np.mean(_matrix(R)[-1]))


def backward_transfer(R: npt.ArrayLike) -> float:
    """Return what later tasks did to earlier ones, mean_{j<T−1} (R[T−1, j] − R[j, j]).

    Negative is forgetting. One task alone has none: 0.

    Args:
        R: Accuracy matrix `[T, T]`.

    Example:
        >>> backward_transfer([[1.0, 0.5], [0.75, 1.0]])
        -0.25
    """
    matrix = _matrix(R)
    return _mean((matrix[-1] - np.diag(matrix))[:-1])


def forgetting(R: npt.ArrayLike) -> float:
    """Return the mean over j < T−1 of the best accuracy a task ever had, less the last one.

    The best is sought over max_{j ≤ i < T−1} R[i, j]: from the moment the task was learned to the
    one before the last (Chaudhry et al., ECCV 2018, arXiv:1801.10112, Eq. 3). Negative if the last
    task improved the earlier ones. One task alone has none: 0.

    Args:
        R: Accuracy matrix `[T, T]`.

    Example:
        >>> forgetting([[0.75, 0.5, 0.5], [1.0, 1.0, 0.5], [0.5, 0.75, 1.0]])
        0.375
    """
    matrix = _matrix(R)
    last = len(matrix) - 1
    return _mean([matrix[j:last, j].max() - matrix[last, j] for j in range(last)])


def forward_transfer(R: npt.ArrayLike, baseline: npt.ArrayLike) -> float:
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
    matrix, before = _matrix(R), np.asarray(baseline, float)
    if before.shape != (len(matrix),):
        raise ValueError(
            f"Expected a baseline of shape ({len(matrix)},), one accuracy per task of the matrix. "
            f"Received: shape {before.shape}."
        )
    return _mean([matrix[j - 1, j] - before[j] for j in range(1, len(matrix))])


def _mean(values):
    return float(np.mean(values)) if len(values) else 0.0


def _matrix(R):
    R = np.asarray(R, float)
    if R.ndim != 2 or R.shape[0] != R.shape[1] or R.size == 0:
        raise ValueError(
            f"Expected a square accuracy matrix [T, T], R[i, j] on task j after task i. Received: "
            f"shape {R.shape}."
        )
    if not np.all((R >= 0) & (R <= 1)):
        raise ValueError(
            f"Expected accuracies as fractions from 0 to 1. Received: values from {R.min()} to "
            f"{R.max()}. Divide percentages by 100."
        )
    return R
