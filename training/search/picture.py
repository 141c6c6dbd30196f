"""The picture of a search: accuracy and forgetting against λ, every trial a point."""

import textwrap
from collections.abc import Callable
from pathlib import Path

from keras_mas.files import atomic_file

from .dimensions import STRENGTH, Range
from .recommend import Recommendation
from .search import Found
from .trial import FAILED, STOPPED, Trial

_BAND, _CHOSEN = "tab:green", "tab:red"
# Characters of a line of the title, and the share of the width beside each end of the range.
_WIDTH, _MARGIN = 72, 0.04


def draw(found: Found, recommendation: Recommendation, path: Path) -> None:
    """Draw accuracy and forgetting of every trial against λ, or the first number varied.

    Trials that differ in nothing else are joined. The plateau is a green band, and what is within
    one standard error of the best is above the dotted line. A stopped trial is a hollow triangle at
    the most that was expected of it, a failed one a cross at the lower end. λ = 0, and a method
    without λ, is a dashed line. Nothing is drawn if no number is varied.

    Args:
        found: What the search found.
        recommendation: What is recommended.
        path: File to write, a PNG.
    """
    from matplotlib.figure import Figure

    ranges = {name: each for name, each in found.dimensions.items() if isinstance(each, Range)}
    name = next(iter(ranges), None)
    if name is None:
        return
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    _show_range(lower, ranges[name])
    kinds = list(dict.fromkeys(_kind(trial, name) for trial in found.trials))
    for number, kind in enumerate(kinds):
        trials = [trial for trial in found.trials if _kind(trial, name) == kind]
        look = {"color": f"C{number}", "label": kind or None}
        _points(upper, trials, name, lambda trial: trial.accuracy, lambda t: t.bound, look)
        _points(lower, trials, name, lambda trial: trial.forgetting, None, look)
    chosen, highest = recommendation.trial, recommendation.highest
    upper.axhline(
        highest.accuracy - recommendation.standard_error, color="grey", ls=":", lw=1, zorder=0
    )
    for panel, value in ((upper, chosen.accuracy), (lower, chosen.forgetting)):
        if recommendation.plateau is not None and recommendation.plateau[1] > 0:
            least, largest = recommendation.plateau
            panel.axvspan(max(least, _least(found, name)), largest, color=_BAND, alpha=0.12, lw=0)
        if chosen.values.get(name, 0.0) > 0:
            panel.plot(chosen.values[name], value, "o", ms=11, mfc="none", mec=_CHOSEN, mew=1.5)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    upper.set(ylabel="average accuracy")
    lower.set(ylabel="forgetting", xlabel="λ" if name == STRENGTH else name.replace("_", " "))
    title = textwrap.fill(_title(found, recommendation), _WIDTH, break_on_hyphens=False)
    upper.set_title(title, fontsize=10, loc="left", parse_math=False)
    if len(kinds) > 1 and upper.get_legend_handles_labels()[0]:  # none if all were stopped
        upper.legend(frameon=False, fontsize=8)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150)


def _show_range(panel, shown):
    """Have the axis of a panel show the whole range, whatever of it was tried."""
    if shown.is_log:
        panel.set_xscale("log")
        margin = (shown.largest / shown.least) ** _MARGIN
        panel.set_xlim(shown.least / margin, shown.largest * margin)
    else:
        margin = (shown.largest - shown.least) * _MARGIN
        panel.set_xlim(shown.least - margin, shown.largest + margin)


def _points(
    panel, trials: list[Trial], name: str, of_completed: Callable, of_stopped, look
) -> None:
    """Draw the trials of one kind, and those that are not completed beneath them."""
    curves: dict[tuple, list[tuple[float, float]]] = {}
    for trial in (t for t in trials if t.is_completed):
        if trial.values.get(name):
            point = (trial.values[name], of_completed(trial))
            curves.setdefault(_others(trial, name), []).append(point)
            continue
        panel.axhline(of_completed(trial), ls="--", lw=1, color=look["color"], zorder=0)
        where = {"xy": (1, of_completed(trial)), "xycoords": ("axes fraction", "data")}
        panel.annotate(trial.name, **where, ha="right", va="bottom", fontsize=8, parse_math=False)
    for number, curve in enumerate(curves.values()):
        label = look["label"] if number == 0 else None
        style = {"ms": 4.5, "lw": 0.8, "alpha": 0.9, "color": look["color"], "label": label}
        panel.plot(*zip(*sorted(curve), strict=True), "o-", **style)
    if of_stopped is not None:
        stopped = [t for t in trials if t.state == STOPPED and t.values.get(name)]
        x, y = [t.values[name] for t in stopped], [of_stopped(t) for t in stopped]
        panel.scatter(x, y, marker="v", facecolors="none", edgecolors=look["color"], s=26)
    failed = [t.values[name] for t in trials if t.state == FAILED and t.values.get(name)]
    panel.scatter(
        failed,
        [0.03] * len(failed),
        marker="x",
        color="black",
        s=26,
        transform=panel.get_xaxis_transform(),
    )


def _others(trial, name):
    """Return the values of a trial besides that of an option."""
    return tuple((key, value) for key, value in trial.values.items() if key != name)


def _kind(trial, name):
    """Return what tells colours apart: names that are varied, such as methods."""
    return " ".join(
        str(value) for key, value in trial.values.items() if key != name and isinstance(value, str)
    )


def _least(found, name):
    return min(t.values[name] for t in found.trials if t.values.get(name))


def _title(found, recommendation):
    states = [trial.state for trial in found.trials]
    parts = [f"{len(states)} trials", f"recommended {recommendation.trial.name}"]
    for state in (STOPPED, FAILED):
        if state in states:
            parts.insert(1, f"{states.count(state)} {state}")
    return ", ".join(parts)
