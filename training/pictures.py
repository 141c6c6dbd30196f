"""Pictures of a report in HTML: SVG that takes its colours from the page, light or dark."""

import io
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from .accuracy_picture import least_accuracy, whole_numbers
from .summary import Group, matrix_of, mean_of_known, new_task_accuracy

# What is drawn in these colours takes them from the page: that of its text, of its lines, and those
# of the methods.
_INK, _LINE, _PAGE = "#010101", "#020202", "#020203"
SERIES = tuple(f"#0300{number:02x}" for number in range(7))
_FROM_PAGE = {_INK: "currentColor", _LINE: "var(--line)", _PAGE: "var(--page)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES)
}

# With more methods than colours, the next ones have the colours again, in other lines and marks.
_DASHES = ("-", "--", ":", "-.")
_MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p")

_STYLE: Any = {
    "svg.fonttype": "none",  # text that can be selected, read aloud and searched
    "svg.hashsalt": "keras_mas",  # the same picture is the same text
    "text.parse_math": False,  # a "$" in a name is a "$"
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.axisbelow": True,
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "grid.color": _LINE,
    "grid.alpha": 0.5,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}

# A heat map of so many tasks at most has its numbers written in it.
_MOST_NUMBERS = 8

# Names beside a picture are wrapped at so many characters, and take so many inches a line.
_NAME_WIDTH = 24
_NAME_LINE = 0.16


@contextmanager
def _drawing(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Iterator[tuple[Figure, list[str]]]:
    """Make a figure to draw in the block, in inches; its SVG is in the list when the block ends."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout=layout)
        drawn: list[str] = []
        yield figure, drawn
        file = io.StringIO()
        without = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=without)
    text = file.getvalue()
    text = text[text.index("<svg") :]  # without what stands before it in a file of its own
    for colour, variable in _FROM_PAGE.items():
        text = text.replace(colour, variable)
    drawn.append(text)


def swatch(number: int) -> str:
    """Draw a piece of the line of a method, for a legend."""
    with _drawing(0.42, 0.16, layout=None) as (figure, drawn):
        panel = figure.add_axes((0, 0, 1, 1))
        panel.plot([0, 1, 2], [0, 0, 0], **_line(number), markevery=[1])
        panel.set_axis_off()
    return drawn[0]


def task_over_time(groups: Sequence[Group], task: int) -> str:
    """Draw the accuracy on a task, counted from 0, against the number of tasks learned."""

    def points(result):
        values = matrix_of(result)[task:, task]
        return range(task + 1, task + 1 + len(values)), values

    return _curves(groups, points, "accuracy", size=(2.5, 1.9))


def task_while_others_are_learned(groups: Sequence[Group], task: int) -> str:
    """Draw the accuracy on a task, counted from 0, since it was learned, between tasks too."""

    def points(result):
        rows = enumerate(matrix_of(result))
        found = [(i + 1.0, row[task]) for i, row in rows if i >= task]
        found += [
            (each["task"] - 1 + each["step"] / each["steps"], _or_nan(each["accuracies"][task]))
            for each in result["evaluations"]
            if each["task"] > task + 1
        ]
        return tuple(zip(*sorted(found), strict=True))

    return _curves(groups, points, "accuracy", size=(2.5, 1.9))


def mean_over_time(groups: Sequence[Group]) -> str:
    """Draw the mean accuracy on the tasks learned so far."""

    def points(result):
        rows = result["accuracy_matrix"]
        return range(1, len(rows) + 1), [mean_of_known(row[: i + 1]) for i, row in enumerate(rows)]

    return _curves(groups, points, "mean accuracy on them", size=(4.4, 2.6))


def _or_nan(value):
    return math.nan if value is None else value


def _curves(groups, points: Callable, ylabel: str, size) -> str:
    """Draw a line per group: the mean over its runs in a band of ± one standard deviation."""
    lowest = 1.0
    with _drawing(*size) as (figure, drawn):
        panel = figure.subplots()
        for number, group in enumerate(groups):
            xs, curves = zip(*map(points, group.results), strict=True)
            [x] = set(map(tuple, xs))  # runs that differ in their seed alone were measured together
            lowest = min(lowest, _mean_line(panel, x, np.array(curves), number))
        tasks = len(groups[0].results[0]["tasks"])
        panel.set(xlabel="tasks learned", ylabel=ylabel, xlim=(0.7, tasks + 0.3))
        panel.set_ylim(min(_least(groups), max(0.0, lowest - 0.03)), 1.005)
        whole_numbers(panel.xaxis)
    return drawn[0]


def _mean_line(panel: Axes, x: Sequence[float], curves: np.ndarray, number: int) -> float:
    """Draw the mean of curves `[runs, n]` in its band, and return the lowest point of both."""
    mean = curves.mean(axis=0)
    panel.plot(x, mean, **_line(number), clip_on=False, markevery=max(1, len(x) // 10))
    if len(curves) == 1:
        return _lowest(mean)
    deviation = curves.std(axis=0, ddof=1)
    low, high = np.clip((mean - deviation, mean + deviation), 0, 1)
    panel.fill_between(x, low, high, color=_colour(number), alpha=0.15, linewidth=0)
    return _lowest(low)


def _lowest(values):
    """Return the lowest of the values that are known; 1 if none is."""
    return float(np.fmin.reduce(values, initial=1.0))


def matrix(group: Group, groups: Sequence[Group]) -> str:
    """Draw the mean accuracy matrix of a group as a heat map, on the colour scale of all groups."""
    mean = np.mean([matrix_of(result) for result in group.results], axis=0)
    learned = np.where(np.tri(len(mean), dtype=bool), mean, math.nan)
    first, last = 0.5, len(learned) + 0.5
    with _drawing(3.6, 3.0) as (figure, drawn):
        panel = figure.subplots()
        least = _least(groups)
        image = panel.imshow(
            learned,
            vmin=least,
            vmax=1.0,
            cmap="cividis",
            extent=(first, last, last, first),
            interpolation="none",
        )
        panel.set(xlabel="task", ylabel="tasks learned")
        panel.grid(False)
        for axis in (panel.xaxis, panel.yaxis):
            whole_numbers(axis, most=10)
        bar = figure.colorbar(image, ax=panel, shrink=0.9)
        bar.set_label("accuracy")
        bar.outline.set_visible(False)
        if len(learned) <= _MOST_NUMBERS:
            _write_numbers(panel, learned, least)
    return drawn[0]


def _write_numbers(panel, learned, least):
    size = min(8.5, 60 / len(learned))
    for (i, j), value in np.ndenumerate(learned):
        if math.isfinite(value):
            dark = (value - least) / (1 - least) < 0.55
            text = f"{value:.2f}".removeprefix("0")
            colour = "white" if dark else "black"
            panel.text(j + 1, i + 1, text, ha="center", va="center", color=colour, size=size)


def stability_and_plasticity(groups: Sequence[Group]) -> str:
    """Draw forgetting against the accuracy on new tasks: a mark per run, a large one per group."""
    with _drawing(4.4, 3.0) as (figure, drawn):
        panel = figure.subplots()
        for number, group in enumerate(groups):
            x = [new_task_accuracy(result) for result in group.results]
            y = [_or_nan(result["forgetting"]) for result in group.results]
            style = {"color": _colour(number), "marker": _mark(number)}
            if len(x) > 1:
                panel.scatter(x, y, s=14, alpha=0.55, linewidths=0, **style)
            panel.scatter(np.mean(x), np.mean(y), s=70, **style)
        panel.set(xlabel="accuracy on a task when it was learned", ylabel="forgetting")
        panel.margins(0.12)
    return drawn[0]


def bars(labels: Sequence[str], parts: Mapping[str, Sequence[float]], unit: str) -> str:
    """Draw horizontal bars, one per label.

    Args:
        labels: Name of each bar, from the top; a long one takes several lines.
        parts: The lengths of a part of every bar, by the name of the part.
        unit: Of the lengths.
    """
    names, row = _wrapped(labels, least=0.3)
    with _drawing(4.4, 0.7 + row * len(labels) + 0.25 * (len(parts) > 1)) as (figure, drawn):
        panel = figure.subplots()
        rows, left = np.arange(len(labels)), np.zeros(len(labels))
        for number, (name, lengths) in enumerate(parts.items()):
            look = {"color": _colour(number), "edgecolor": _PAGE, "linewidth": 0.8}
            panel.barh(rows, lengths, left=left, height=0.6, label=name, **look)
            left = left + np.asarray(lengths)
        panel.set_yticks(rows, names)
        panel.tick_params(axis="y", length=0)
        panel.set(xlabel=unit, ylim=(len(labels) - 0.4, -0.6), xlim=(0, None))
        panel.grid(False, axis="y")
        if len(parts) > 1:
            figure.legend(loc="outside upper left", ncols=len(parts), frameon=False, fontsize=8)
    return drawn[0]


def _wrapped(names, least):
    """Return names in lines, and the height in inches of a row that any of them fits into."""
    wrapped = [textwrap.fill(name, _NAME_WIDTH, break_on_hyphens=False) for name in names]
    lines = max(name.count("\n") + 1 for name in wrapped)
    return wrapped, max(least, 0.1 + _NAME_LINE * lines)


def importance_by_weight(importance: Mapping[str, np.ndarray]) -> str:
    """Draw where the importance of each weight lies, the zeros left out, on a logarithmic scale.

    A box holds the middle half of the values, its line is the median; the whiskers end at the 5th
    and the 95th percentile.

    Args:
        importance: Ω by weight; some of each is above 0.
    """
    names, row = _wrapped(importance, least=0.26)
    keys = ("whislo", "q1", "med", "q3", "whishi")
    boxes = []
    for name, values in zip(names, importance.values(), strict=True):
        ends = np.percentile(values[values > 0], (5, 25, 50, 75, 95))
        boxes.append({"label": name, **dict(zip(keys, ends, strict=True))})
    with _drawing(4.4, 0.7 + row * len(boxes)) as (figure, drawn):
        panel = figure.subplots()
        look: dict[str, Any] = {"boxprops": {"facecolor": SERIES[0], "edgecolor": _INK}}
        look |= {f"{part}props": {"color": _INK} for part in ("median", "whisker", "cap")}
        panel.bxp(
            boxes, orientation="horizontal", showfliers=False, patch_artist=True, widths=0.6, **look
        )
        panel.set(xscale="log", xlabel="importance Ω, of values above 0")
        panel.xaxis.set_major_locator(LogLocator(numticks=6))
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:.0e}")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.invert_yaxis()
        panel.grid(False, axis="y")
        panel.tick_params(axis="y", length=0)
    return drawn[0]


def importance_map(values: np.ndarray) -> str:
    """Draw the importance `[H, W]` of each pixel of the inputs, or its change, from 0 upwards."""
    with _drawing(1.7, 1.7, layout=None) as (figure, drawn):
        panel = figure.add_axes((0, 0, 1, 1))
        panel.imshow(values, **_from_zero(values), interpolation="none")
        panel.set_axis_off()
    return drawn[0]


def importance_of_filters(kernel: np.ndarray) -> str:
    """Draw the importance `[h, w, C, filters]` of each filter of a convolution, summed over C."""
    filters = np.moveaxis(kernel.sum(axis=2), -1, 0)
    columns = min(8, len(filters))
    rows = math.ceil(len(filters) / columns)
    with _drawing(4.4, 0.55 * rows + 0.1) as (figure, drawn):
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for number, panel in enumerate(panels):
            panel.set_axis_off()
            if number < len(filters):
                panel.imshow(filters[number], **_from_zero(filters))
    return drawn[0]


def _from_zero(values) -> dict[str, Any]:
    """Return a colour scale from 0 to the largest value; to 1 if none is above 0."""
    return {"vmin": 0, "vmax": max(values.max(), 0) or 1, "cmap": "cividis"}


def _line(number) -> dict[str, Any]:
    dashes = _DASHES[number // len(SERIES) % len(_DASHES)]
    mark = {"marker": _mark(number), "markersize": 4, "markeredgewidth": 0}
    return {"color": _colour(number), "linestyle": dashes, "linewidth": 1.4, **mark}


def _colour(number):
    return SERIES[number % len(SERIES)]


def _mark(number):
    return _MARKS[number % len(_MARKS)]


def _least(groups):
    """Return the lower end of the accuracy axis, common to all pictures."""
    return least_accuracy([result for group in groups for result in group.results])
