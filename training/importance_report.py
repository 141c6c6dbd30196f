"""Pictures of what a network takes to be important: by weight, by filter and by pixel."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import pictures
from .html_report import figure, section
from .run_directory import task_folder
from .saved_tasks import saved_importance
from .summary import Result

# With more tasks, what each of them added is not drawn.
_MOST_TASKS = 10

_ABOUT = (
    "Ω after the last task. A weight with a high Ω is held where it is, one with Ω = 0 is free. "
    "Weights of a layer differ by orders of magnitude; what is compared is a weight with another."
)


def importance_sections(runs: Sequence[tuple[str, Path, Result]]) -> Iterator[dict[str, Any]]:
    """Yield a section of the page for each run whose method keeps importance.

    Args:
        runs: Name, folder and result of each.
    """
    for name, folder, result in runs:
        importance = saved_importance(task_folder(folder, len(result["tasks"])))
        if importance:
            figures = list(_figures(importance, folder, result))
            about = f"{_ABOUT}{_left_out(importance)}"
            yield section(f"What the network must keep: {name}", figures, about)


def _left_out(importance):
    zeros = sum(not np.any(values > 0) for values in importance.values())
    if not zeros:
        return ""
    verb = "is" if zeros == 1 else "are"
    return (
        f" Of {len(importance)} kernels, biases and the like, {zeros} {verb} not drawn: all Ω is 0."
    )


def _figures(importance, folder, result):
    means = ", ".join(
        f"{name} {values.mean():.3g}, of which {np.mean(values == 0):.0%} are 0"
        for name, values in importance.items()
    )
    drawn = {name: values for name, values in importance.items() if np.any(values > 0)}
    if drawn:
        yield figure(
            "Importance of the weights by layer",
            f"Box plot of the importance of each weight. Means: {means}.",
            pictures.importance_by_weight(drawn),
            wide=True,
        )
    filters = next((name for name, values in importance.items() if values.ndim == 4), None)
    if filters is not None:
        count = importance[filters].shape[-1]
        yield figure(
            f"The {count} filters of {filters}, bright where they must stay",
            f"Small maps of the importance of the {count} filters of {filters}, summed over the "
            "channels that they read.",
            pictures.importance_of_filters(importance[filters]),
            wide=True,
        )
    yield from _pixels(folder, result)


def _pixels(folder, result):
    """Yield maps of the inputs that the first layer must keep reading: in all, and by task.

    Those by task are called a change where a method lets importance fall again.
    """
    tasks = result["tasks"]
    shape = tuple(result.get("input_shape", ()))
    numbers = range(1, len(tasks) + 1) if len(tasks) <= _MOST_TASKS else [len(tasks)]
    found = [pixel_importance(saved_importance(task_folder(folder, n)), shape) for n in numbers]
    maps = [values for values in found if values is not None]
    if not maps:
        return
    yield _pixel_figure("Pixels, all tasks", maps[-1])
    if len(maps) > 1:
        changes = [
            maps[0],
            *(later - earlier for earlier, later in zip(maps, maps[1:], strict=False)),
        ]
        word = "added" if all(values.min() >= 0 for values in changes) else "change"
        for name, values in zip(tasks, changes, strict=True):
            yield _pixel_figure(f"Pixels, {word} by {name}", values)


def _pixel_figure(caption, values):
    row, column = np.unravel_index(values.argmax(), values.shape)
    height, width = values.shape
    return figure(
        f"{caption}: at most {values.max():.3g}",
        f"Map of {height} by {width} pixels, bright where the first layer must keep reading them. "
        f"The brightest is in row {row + 1} and column {column + 1}.",
        pictures.importance_map(values),
    )


def pixel_importance(
    importance: dict[str, np.ndarray], shape: tuple[int, ...]
) -> np.ndarray | None:
    """Return how important the connections of each pixel to the first layer are, `[H, W]`.

    It is Σ_h Ω[i, h] over the hidden units h that pixel i is connected to, and over its channels.

    Args:
        importance: Ω by weight.
        shape: Of one input, `[H, W, C]`.

    Returns:
        The map; None if the inputs are no images, or the first layer is not fully connected.
    """
    first = next(iter(importance.values()), np.zeros(0))
    if len(shape) != 3 or first.ndim != 2 or len(first) != math.prod(shape):
        return None
    return first.sum(axis=1).reshape(shape).sum(axis=-1)
