"""What a run found, as text for a terminal and as a picture."""

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import matplotlib

matplotlib.use("Agg")  # no display is needed to write a file
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table
from rich.text import Text

_MEASURES = ("average_accuracy", "forgetting", "backward_transfer")


def title(result: dict) -> str:
    """Return a run's method with its λ, where that matters."""
    if result["method"] == "finetune":
        return "finetune"
    penalty = "" if result["penalty"] == "in_loss" else f" {result['penalty']}"
    return f"{result['method']} λ={result['strength']:g}{penalty}"


def report_rows(results: Sequence[dict]) -> list[dict]:
    """Return a row of plain values per run: its settings, its recipe and its measures."""
    names = ("stream", "scenario", "method", "strength", "penalty", "seed", *_MEASURES)
    return [{name: result[name] for name in names} | result["recipe"] for result in results]


def write_csv(rows: Sequence[dict], file: TextIO) -> None:
    """Write rows as CSV with a line of column names; None becomes an empty field."""
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(file, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def print_result(result: dict, console: Console) -> None:
    """Print a run's accuracy matrix and what was forgotten."""
    names = result["tasks"]
    table = Table(box=None, pad_edge=False)
    table.add_column("after")
    for name in names:
        table.add_column(name, justify="right")
    for i, row in enumerate(result["accuracy_matrix"]):
        cells = (Text(f"{value:.3f}", style="dim" if j > i else "") for j, value in enumerate(row))
        table.add_row(names[i], *cells)
    console.print(
        f"{title(result)}: accuracy on each task (column) after learning each (row)",
    )
    console.print(table)
    console.print(
        f"average accuracy {result['average_accuracy']:.4f}   "
        f"forgetting {result['forgetting']:.4f}   "
        f"backward transfer {result['backward_transfer']:+.4f}\n",
    )


def print_comparison(results: Sequence[dict], console: Console) -> None:
    """Print a line per run, and the mean ± standard deviation of runs that differ in their seed."""
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "seed", *(name.replace("_", " ") for name in _MEASURES)):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    runs = {}
    for result in sorted(results, key=title):
        runs.setdefault(title(result), []).append(result)
        measures = (f"{result[name]:.4f}" for name in _MEASURES)
        table.add_row(title(result), str(result["seed"]), *measures)
    for name, group in runs.items():
        if len(group) > 1:
            spreads = (_spread([result[name] for result in group]) for name in _MEASURES)
            table.add_row(name, f"{len(group)} runs", *spreads)
    console.print(table)


def _spread(values):
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def draw(results: Sequence[dict], path: Path) -> None:
    """Draw the accuracy of every task over time, a panel per task, to a PNG file.

    Args:
        results: Results of runs over the same tasks, as `read_result` returns them: a line each.
        path: File to write.
    """
    names = results[0]["tasks"]
    columns = min(5, len(names))
    rows = math.ceil(len(names) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.4 * columns, 2.1 * rows + 0.9), sharey=True, squeeze=False
    )
    for j, panel in enumerate(grid.flat):
        if j < len(names):
            _draw_task(panel, results, j)
        else:
            panel.set_visible(False)
    for row in grid:
        row[0].set_ylabel("accuracy")
    figure.supxlabel("tasks learned", fontsize=10)
    lines, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        lines, labels, loc="upper left", ncols=2, frameon=False, bbox_to_anchor=(0.005, 1.0)
    )
    figure.tight_layout(
        rect=(0, 0, 1, 1 - 0.2 * math.ceil(len(results) / 2) / figure.get_figheight())
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_task(panel, results, j):
    names = results[0]["tasks"]
    after = range(j, len(names))
    for result in results:
        panel.plot(
            [i + 1 for i in after],
            [result["accuracy_matrix"][i][j] for i in after],
            marker="o",
            markersize=4,
            clip_on=False,
            label=f"{title(result)}: average {result['average_accuracy']:.3f}, "
            f"forgetting {result['forgetting']:.3f}",
        )
    least = min(min(row[: i + 1]) for r in results for i, row in enumerate(r["accuracy_matrix"]))
    panel.set(ylim=(max(0.0, min(0.9, least - 0.05)), 1.0), xlim=(0.7, len(names) + 0.3))
    panel.set_xticks(range(1, len(names) + 1))
    panel.set_title(f"task {names[j]}", fontsize=10, loc="left")
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
