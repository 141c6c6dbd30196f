"""Reports on finished runs: text for a terminal or a pipe, rows for JSON and CSV, and pictures."""

import csv
import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from keras_mas.errors import UsageError
from keras_mas.files import atomic_file

from .settings import Recipe

_MEASURES = ("average_accuracy", "forgetting", "backward_transfer")

# Layout of a printed accuracy matrix, in characters: "(0.123)" and a space before it.
_CELL = 8
LONGEST_NAME = 20

# Above this number of tasks, a picture has heat maps instead of a panel per task.
MOST_PANELS = 15


def title(result: Mapping[str, Any]) -> str:
    """Return a run's method, with λ and the kind of penalty where the method has them."""
    settings = _method_settings(result)
    if settings["strength"] is None:
        return settings["method"]
    penalty = f" {settings['penalty']}" if settings["penalty"] == "decoupled" else ""
    return f"{settings['method']} λ={settings['strength']:g}{penalty}"


def _method_settings(result):
    """Return method, strength and penalty; None where the method has none."""
    return {name: result[name] for name in ("method", "strength", "penalty")}


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """Print a run's accuracy matrix and the measures computed from it.

    A matrix wider than the console is divided into blocks of columns; no number is cut.

    Args:
        result: As `read_result` returns it.
        console: Where to print; its width is respected.
    """
    lines = [
        Text(f"{title(result)}: accuracy on each task (column) after each task was learned (row)"),
        *_matrix_lines(result["tasks"], result["accuracy_matrix"], console.width),
    ]
    if len(result["tasks"]) > 1:
        lines.append(Text("(in parentheses: the task was not learned yet)"))
    lines.append(
        Text(
            f"average accuracy {result['average_accuracy']:z.4f}   "
            f"forgetting {result['forgetting']:z.4f}   "
            f"backward transfer {result['backward_transfer']:+z.4f}\n"
        )
    )
    for line in lines:
        console.print(line, soft_wrap=True)


def _matrix_lines(names, matrix, width) -> list[Text]:
    """Return the lines of an accuracy matrix whose rows have names and whose columns have numbers.

    Columns are divided into blocks of at most `width` characters, and of at least one column.
    """
    digits = len(str(len(names)))
    longest = max(1, min(LONGEST_NAME, width - digits - 1 - _CELL))
    rows = [f"{i:>{digits}} {shortened(name, longest)}" for i, name in enumerate(names, 1)]
    margin = max(map(len, [*rows, "after"]))
    per_block = max(1, (width - margin) // _CELL)
    blocks = math.ceil(len(names) / per_block)
    per_block = math.ceil(len(names) / blocks)  # blocks of equal width
    lines = []
    for start in range(0, len(names), per_block):
        columns = range(start, min(start + per_block, len(names)))
        heading = "".join(f"{j + 1:>{_CELL - 1}} " for j in columns)
        if start:
            lines.append(Text())
        lines.append(Text(f"{'after':{margin}}{heading}".rstrip()))
        for i, row in enumerate(matrix):
            line = Text(f"{rows[i]:{margin}}")
            for j in columns:
                learned = j <= i
                cell = f"  {row[j]:z.3f} " if learned else f" ({row[j]:z.3f})"
                line.append(cell, style="" if learned else "dim")
            line.rstrip()
            lines.append(line)
    return lines


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """Return a name in at most so many characters; `…` stands for those that are cut off."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def print_comparison(results: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print a line per run, and mean ± standard deviation of runs that differ only in their seed.

    A line names the run's method and those other settings in which the runs differ.

    Args:
        results: As `read_result` returns them.
        console: Where to print.
    """
    rows = [["run", "seed", *(name.replace("_", " ") for name in _MEASURES)]]
    groups = sorted(grouped(results), key=lambda group: group[0])
    for label, group in groups:
        for result in group:
            measures = (f"{result[name]:z.4f}" for name in _MEASURES)
            rows.append([label, str(result["seed"]), *measures])
    for label, group in groups:
        if len(group) > 1:
            spreads = (_spread([result[name] for result in group]) for name in _MEASURES)
            rows.append([label, f"{len(group)} runs", *spreads])
    print_table(rows, console)


def print_table(rows: Sequence[Sequence[str]], console: Console) -> None:
    """Print rows under a heading; where the console is too narrow, the first column is folded.

    Args:
        rows: The first one is the heading.
        console: Where to print.
    """
    table = Table(box=None, pad_edge=False)
    first, *others = zip(*rows, strict=True)
    table.add_column(first[0], overflow="fold", min_width=min(LONGEST_NAME, max(map(len, first))))
    for column in others:
        table.add_column(column[0], justify="right", min_width=max(map(len, column)))
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table, crop=False)


def grouped(
    results: Sequence[Mapping[str, Any]],
) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Return pairs of a label and the runs that agree in everything but the seed, by seed.

    Args:
        results: As `read_result` returns them; groups come in the order of their first run.
    """
    groups: dict[tuple[str, float | None], list[Mapping[str, Any]]] = {}
    for label, result in zip(_labels(results), results, strict=True):
        key = (label, _method_settings(result)["strength"])  # the label has six digits of λ only
        groups.setdefault(key, []).append(result)
    return [
        (label, sorted(group, key=lambda result: result["seed"]))
        for (label, _), group in groups.items()
    ]


def _spread(values):
    return f"{statistics.mean(values):z.4f} ± {statistics.stdev(values):z.4f}"


def _labels(results):
    """Return a label per run, equal for those runs that agree in everything but the seed."""
    settings = [run_settings(result) for result in results]
    names = list(dict.fromkeys(name for one in settings for name in one))
    differing = [name for name in names if len({json.dumps(one.get(name)) for one in settings}) > 1]
    return [
        "  ".join([title(result), *(f"{name}={one.get(name)}" for name in differing)])
        for result, one in zip(results, settings, strict=True)
    ]


def run_settings(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that decides a result except the seed and what `title` says, flat.

    A result that is older than an option was made with what is now the option's default.
    """
    names = ("stream", "scenario", "evaluated_on", "data")
    found = {name: result[name] for name in names if name in result}
    return found | dataclasses.asdict(Recipe()) | result["recipe"]


def report_rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a flat dict per run, for JSON and CSV.

    Args:
        results: As `read_result` returns them.

    Returns:
        Per run: stream, scenario, method, strength and penalty (None where the method has none),
        seed, what it was evaluated on, the four measures, seconds in total, and every setting of
        its recipe.
    """
    return [_row(result) for result in results]


def _row(result):
    measures = (*_MEASURES, "forward_transfer")
    return {
        "stream": result["stream"],
        "scenario": result["scenario"],
        **_method_settings(result),
        "seed": result["seed"],
        "evaluated_on": result.get("evaluated_on"),
        **{name: result[name] + 0.0 for name in measures},  # -0.0 + 0.0 is 0.0
        "seconds": round(sum(result["seconds"].values()), 3),
        **result["recipe"],
    }


def write_csv(rows: Sequence[Mapping[str, Any]], file: IO[str]) -> None:
    """Write rows as CSV with a line of column names; None becomes an empty field.

    Args:
        rows: As `report_rows` returns them. A column that only some rows have is empty in others.
        file: Text file to write to.
    """
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(file, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def draw(results: Sequence[Mapping[str, Any]], path: Path) -> None:
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
    labels = _labels(results)
    if len({result["seed"] for result in results}) == 1:
        return labels
    return [f"{label}  seed={r['seed']}" for label, r in zip(labels, results, strict=True)]


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
            [result["accuracy_matrix"][i][j] for i in after],
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
        means = [statistics.mean(row[: i + 1]) for i, row in enumerate(result["accuracy_matrix"])]
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
    learned = [
        [value if j <= i else math.nan for j, value in enumerate(row)]
        for i, row in enumerate(result["accuracy_matrix"])
    ]
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
        f"{label}: average {result['average_accuracy']:z.3f}, "
        f"forgetting {result['forgetting']:z.3f}"
    )


def _add_legend(figure, panel, runs):
    """Put the legend of a panel above all panels, two runs a line."""
    lines, labels = panel.get_legend_handles_labels()
    figure.legend(
        lines, labels, loc="upper left", ncols=2, frameon=False, bbox_to_anchor=(0.005, 1.0)
    )
    top = 1 - 0.2 * math.ceil(runs / 2) / figure.get_figheight()
    figure.tight_layout(rect=(0, 0, 1, top))


def least_accuracy(results: Sequence[Mapping[str, Any]]) -> float:
    """Return the lower end of the accuracy axis, common to all panels."""
    least = min(min(row[: i + 1]) for r in results for i, row in enumerate(r["accuracy_matrix"]))
    return max(0.0, min(0.9, least - 0.05))
