"""The picture of finished runs: the accuracy of every task over time."""

import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from keras_mas.errors import UsageError
from keras_mas.files import atomic_file

from .report import LONGEST_NAME, shortened
from .summary import Result, known, labels, matrix_of, mean_of_known, measure_text

# Above this number of tasks, a picture has heat maps instead of a panel per task.
MOST_PANELS = 15


def draw(results: Sequence[Result], path: Path) -> None:
    """Draw the accuracy of every task over time.

    Up to 15 tasks have a panel each, with a line per run. More tasks are drawn as a heat map of the
    accuracy matrix per run, beside the mean accuracy on the tasks learned so far.

    Args:
        results: Results of runs over the same tasks, as `read_result` returns them.
        path: File to write; its suffix decides on the format, such as .png, .svg or .pdf.

    Raises:
        UsageError: If there is no such format.
    """
    from matplotlib.figure import Figure

    figure = Figure()
    form = path.suffix.lstrip(".").lower() or "png"
    known = figure.canvas.get_supported_filetypes()
    if form not in known:
        raise UsageError(
            f"Expected the name of a picture that ends in one of {', '.join(sorted(known))}. "
            f"Received: '{path}'. Choose another `--output`, such as 'report.png'."
        )
    show = _draw_panels if len(results[0]["tasks"]) <= MOST_PANELS else _draw_heat_maps
    show(figure, results, _run_labels(results))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        figure.savefig(file, format=form, dpi=150)


def _run_labels(results):
    """Return a label per run that also names the seed if the runs differ in it."""
    names = labels(results)
    if len({result["seed"] for result in results}) == 1:
        return names
    return [f"{label}  seed={r['seed']}" for label, r in zip(names, results, strict=True)]


def _draw_panels(figure, results, labels):
    """Draw a panel per task: its accuracy against the number of tasks learned."""
    names = results[0]["tasks"]
    columns = min(5, len(names))
    rows = math.ceil(len(names) / columns)
    figure.set_size_inches(2.4 * columns, 2.1 * rows + 0.9)
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for j, panel in enumerate(grid.flat):
        if j < len(names):
            _draw_task(panel, results, labels, j)
        else:
            panel.set_visible(False)
    for row in grid:
        row[0].set_ylabel("accuracy")
    figure.supxlabel("tasks learned", fontsize=10)
    _add_legend(figure, grid[0, 0], len(results))


def _draw_task(panel, results, labels, j):
    names = results[0]["tasks"]
    after = range(j, len(names))
    for result, label in zip(results, labels, strict=True):
        panel.plot(
            [i + 1 for i in after],
            matrix_of(result)[j:, j],
            marker="o",
            markersize=4,
            clip_on=False,
            label=_legend(result, label),
        )
    panel.set(ylim=(least_accuracy(results), 1.0), xlim=(0.7, len(names) + 0.3))
    whole_numbers(panel.xaxis)
    panel.set_title(f"task {shortened(names[j], LONGEST_NAME)}", fontsize=10, loc="left")
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)


def _draw_heat_maps(figure, results, labels):
    """Draw the mean accuracy over time, and the accuracy matrix of each run as a heat map."""
    columns = min(3, len(results) + 1)
    rows = math.ceil((len(results) + 1) / columns)
    figure.set_size_inches(4.2 * columns, 3.8 * rows + 0.9)
    curve, *maps = figure.subplots(rows, columns, squeeze=False).flat
    for result, label in zip(results, labels, strict=True):
        matrix = enumerate(result["accuracy_matrix"])
        means = [mean_of_known(row[: i + 1]) for i, row in matrix]
        curve.plot(range(1, len(means) + 1), means, label=_legend(result, label))
    curve.set(xlabel="tasks learned", ylabel="mean accuracy on the tasks learned", ylim=(None, 1.0))
    curve.grid(alpha=0.3)
    curve.spines[["top", "right"]].set_visible(False)
    whole_numbers(curve.xaxis)
    for panel, result, label in zip_longest(maps, results, labels):
        if result is None:
            panel.set_visible(False)
        else:
            _draw_matrix(figure, panel, result, least_accuracy(results))
            panel.set_title(label, fontsize=10, loc="left")
    _add_legend(figure, curve, len(results))


def _draw_matrix(figure, panel, result, least):
    matrix = matrix_of(result)
    learned = np.where(np.tri(len(matrix), dtype=bool), matrix, math.nan)
    edges = (0.5, len(learned) + 0.5)
    image = panel.imshow(learned, vmin=least, vmax=1.0, extent=(*edges, *reversed(edges)))
    panel.set(xlabel="task", ylabel="tasks learned")
    whole_numbers(panel.xaxis)
    whole_numbers(panel.yaxis)
    figure.colorbar(image, ax=panel, label="accuracy", shrink=0.8)


def whole_numbers(axis: Any, most: int = 6) -> None:
    """Mark an axis of a picture at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=most, integer=True, min_n_ticks=1))


def _legend(result, label):
    return (
        f"{label}: average {measure_text(result['average_accuracy'], 'z.3f')}, "
        f"forgetting {measure_text(result['forgetting'], 'z.3f')}"
    )


def _add_legend(figure, panel, runs):
    """Put the legend of a panel above all panels, two runs a line."""
    lines, labels = panel.get_legend_handles_labels()
    figure.legend(
        lines, labels, loc="upper left", ncols=2, frameon=False, bbox_to_anchor=(0.005, 1.0)
    )
    top = 1 - 0.2 * math.ceil(runs / 2) / figure.get_figheight()
    figure.tight_layout(rect=(0, 0, 1, top))


def least_accuracy(results: Sequence[Result]) -> float:
    """Return the lower end of the accuracy axis, common to all panels."""
    rows = (row[: i + 1] for r in results for i, row in enumerate(r["accuracy_matrix"]))
    least = min((value for row in rows for value in known(row)), default=1.0)
    return max(0.0, min(0.9, least - 0.05))
