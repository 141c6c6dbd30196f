"""Inputs of one request or of several, and their outputs."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from keras_mas.errors import UsageError

from .. import messages

Arrays = dict[str, np.ndarray]
"""Inputs or outputs by name."""


def as_array(name: str, value: ArrayLike) -> np.ndarray:
    """Return an input as an array that a tensor can hold; UsageError if there is none."""
    try:
        return messages.as_array(value)
    except (TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UsageError(
            f"Expected input '{name}' to be an array of numbers, booleans or strings. "
            f"Received: {type(value).__name__} ({reason})."
        ) from error


def batches(arrays: Arrays, batch_size: int | None) -> Iterator[Arrays]:
    """Yield the inputs in parts of at most `batch_size` rows; all at once for None."""
    if batch_size is None:
        yield arrays
        return
    if type(batch_size) is not int or batch_size < 1:
        raise UsageError(f"Expected `batch_size` to be an integer ≥ 1. Received: {batch_size!r}.")
    counts = {name: array.shape[:1] for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or () in counts.values():
        shapes = ", ".join(f"'{name}' {list(array.shape)}" for name, array in arrays.items())
        raise UsageError(
            "Expected inputs [N, …] of one N, to divide them into batches. Received: "
            f"{shapes or 'none'}. Leave `batch_size` out."
        )
    [count] = next(iter(counts.values()))
    for start in range(0, max(count, 1), batch_size):
        yield {name: array[start : start + batch_size] for name, array in arrays.items()}


def without_rows(answer: Arrays, batch: Arrays) -> str:
    """Describe the outputs that do not have one row per input; empty if all of them have.

    Args:
        answer: The outputs of a request.
        batch: Its inputs, `[N, …]` of one N.
    """
    count = len(next(iter(batch.values())))
    wrong = [
        f"'{name}' {list(array.shape)}"
        for name, array in sorted(answer.items())
        if array.shape[:1] != (count,)
    ]
    if not wrong:
        return ""
    return f"outputs without one row for each of {count} inputs, {', '.join(wrong)}"


def joined(answers: list[Arrays]) -> Arrays:
    """Return the outputs of all inputs."""
    if len(answers) == 1:
        return answers[0]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
