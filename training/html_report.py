"""One HTML file on runs: tables, pictures and settings, readable without a network or scripts."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from keras_mas.files import atomic_file

from . import pictures
from .accuracy_picture import MOST_PANELS
from .summary import (
    ABOUT_SECONDS,
    NOT_RECORDED,
    Group,
    Result,
    Spread,
    groups,
    have_worst_case,
    known,
    mean_of_known,
    measure_text,
    method_settings,
    run_settings,
    setting_text,
)

# The phases of a run, in the order in which they are shown.
_PHASES = ("training", "importance", "evaluation", "saving")

# A heading names every method if that takes so many characters at most.
_LONGEST_LIST = 60

_MEGABYTE = 10**6


def write_html(
    path: Path,
    results: Sequence[Result],
    *,
    reference: Group | None = None,
    commands: Sequence[str] = (),
    failed: Sequence[tuple[str, str]] = (),
    remarks: Mapping[str, Sequence[str]] | None = None,
    more: Iterable[dict] = (),
) -> None:
    """Write a report on runs over the same tasks.

    Args:
        path: File to write; its folder is made.
        results: As `read_result` returns them; at least one.
        reference: The group that differences are taken from; None for the first one.
        commands: The command lines that make the runs, or the comparison.
        failed: What could not be run, and why.
        remarks: What is said about the λ that was found, by the name of the method.
        more: Further sections, as `section` returns them.
    """
    found = groups(results)
    page = _environment().get_template("report.html.jinja")
    text = page.render(
        title=f"{_listed(found)} on {' and '.join(_all_of(results, 'stream'))}",
        scenarios=_all_of(results, "scenario"),
        tasks=results[0]["tasks"],
        evaluated_on=_all_of(results, "evaluated_on"),
        not_evaluated=_not_evaluated(results),
        groups=found,
        summary=_summary(found, reference or found[0]),
        worst=_worst(found),
        about_seconds=ABOUT_SECONDS,
        reference=(reference or found[0]).label,
        sections=[*_sections(found), *more],
        settings=_settings(found),
        versions=_versions(results),
        examples=_examples(results),
        held_out=_held_out(results),
        commands=list(dict.fromkeys(commands)),
        failed=failed,
        remarks=remarks or {},
        swatches=[Markup(pictures.swatch(number)) for number in range(len(found))],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, "w") as file:
        file.write(text)


def _not_evaluated(results) -> list[str]:
    """Return the names of tasks that were not measured in the end, by any of the runs."""
    names = results[0]["tasks"]
    evaluated = [result.get("evaluated_tasks", names) for result in results]
    return [name for name in names if any(name not in one for one in evaluated)]


def _listed(found):
    """Return the labels of the groups, or how many there are where they fill more than a line."""
    labels = ", ".join(group.label for group in found)
    if len(found) == 1 or len(labels) <= _LONGEST_LIST:
        return labels
    methods = {group.results[0]["method"] for group in found}
    if len(methods) == len(found):
        return f"{len(found)} methods"
    of = methods.pop() if len(methods) == 1 else f"{len(methods)} methods"
    return f"{len(found)} settings of {of}"


def _all_of(results, name) -> list[str]:
    """Return what the results have under a name, each value once."""
    return list(dict.fromkeys(result[name] for result in results if name in result))


def _environment():
    folder = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=folder,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"spread": Spread.with_deviation, "change": _change_text}
    environment.filters |= {"measure": measure_text}
    return environment


def _summary(found, reference) -> list[dict[str, Any]]:
    """Return a row of the first table for every group."""
    measures = ("average_accuracy", "forgetting", "new_task_accuracy", "backward_transfer")
    return [
        {
            "group": group,
            **{name: group.spread(name) for name in measures},
            "seconds": group.spread("seconds").mean,
            "difference": None
            if group == reference
            else group.difference(reference, "average_accuracy"),
        }
        for group in found
    ]


def _worst(found) -> list[tuple[Group, Spread, Spread]]:
    """Return min-ACC and WC-ACC of every group, if all runs have measured them."""
    if not have_worst_case(found):
        return []
    return [(g, g.spread("min_accuracy"), g.spread("worst_case_accuracy")) for g in found]


def _sections(found) -> list[dict[str, Any]]:
    """Return the pictures by section; each with a title, what it says in words, and its SVG."""
    sections = [
        section("Accuracy over time", _over_time(found), _OVER_TIME, has_legend=True),
        section("The stability gap", _gaps(found), _GAPS, has_legend=True),
        section("Accuracy matrix", [_matrix(group, found) for group in found], _MATRIX),
        section("Stability and plasticity", [_stability(found)], _STABILITY, has_legend=True),
        section("Time and memory", _costs(found), _COSTS),
    ]
    return [part for part in sections if part["figures"]]


_OVER_TIME = (
    "How well each task is known after it and later ones were learned: mean over the seeds, in a "
    "band of ± one standard deviation where there are several."
)
_GAPS = (
    "Old tasks measured while a new one is learned. What falls when a task begins and recovers "
    "until it ends is not seen above. min-ACC is the mean of the lowest points of the old tasks; "
    "WC-ACC counts the last task as it was learned beside them (De Lange et al., ICLR 2023). "
    "Joint training begins anew with every task, so that it knows nothing when one begins. IMM is "
    "measured here with the weights that it is training, before it merges them."
)
_MATRIX = (
    "Row: how many tasks have been learned. Column: the task that is measured. A column that "
    "darkens downwards is a task that is being forgotten. Tasks not learned yet are left out, and "
    "what could not be measured since there are no examples of it."
)
_STABILITY = (
    "Right: new tasks are learned well (plasticity). Low: old ones are kept (stability). The best "
    "corner is the lower right one. A small mark is a run, a large one the mean of its method."
)
_COSTS = (
    "Mean over the runs. Times depend on the machine and on what else it was doing. "
    f"{ABOUT_SECONDS} What a method keeps on disk between tasks is the size of its file beside the "
    "network. It says nothing of the memory that the method needs while a task is learned: a "
    "second copy of the weights, as LwF holds, is in no file."
)


def section(
    title: str, figures: Iterable[dict], about: str, *, has_legend: bool = False
) -> dict[str, Any]:
    """Return a section of the page: a title, what it shows in words, and its figures."""
    return {"title": title, "figures": list(figures), "about": about, "has_legend": has_legend}


def figure(caption: str, alt: str, svg: str, *, wide: bool = False) -> dict[str, Any]:
    """Return a figure of a section: its caption, what it shows in words, and the picture."""
    return {"caption": caption, "alt": alt, "svg": Markup(svg), "wide": wide}


def _over_time(found):
    names = found[0].results[0]["tasks"]
    ends = ", ".join(f"{group.label} {group.spread('average_accuracy').text()}" for group in found)
    yield figure(
        "Mean over the tasks learned so far",
        f"Line chart of the mean accuracy on the tasks learned so far. At the end: {ends}.",
        pictures.mean_over_time(found),
        wide=True,
    )
    if len(names) > MOST_PANELS:
        return  # the accuracy matrices show each of so many tasks
    for task, name in enumerate(names):
        ends = ", ".join(
            f"{group.label} {measure_text(_last(group, task), '.3f')}" for group in found
        )
        yield figure(
            f"Task {task + 1}: {name}",
            f"Line chart of the accuracy on task {name}. After the last task: {ends}.",
            pictures.task_over_time(found, task),
        )


def _gaps(found):
    results = [result for group in found for result in group.results]
    names = results[0]["tasks"]
    if not all(result.get("evaluations") for result in results):
        return
    worst = ", ".join(
        f"{g.label} {g.spread('min_accuracy').text()} and {g.spread('worst_case_accuracy').text()}"
        for g in found
    )
    for task, name in enumerate(names[: min(len(names) - 1, MOST_PANELS)]):
        lowest = ", ".join(
            f"{group.label} {measure_text(_lowest(group, task), '.3f')}" for group in found
        )
        yield figure(
            f"Task {task + 1}: {name}",
            f"Line chart of the accuracy on task {name} since it was learned. Lowest: {lowest}. "
            f"min-ACC and WC-ACC over all tasks: {worst}.",
            pictures.task_while_others_are_learned(found, task),
        )


def _lowest(group, task):
    """Return the lowest accuracy of a task since it was learned, as min-ACC takes it."""
    since = known(value for result in group.results for value in _since(result, task))
    return min(since, default=None)


def _since(result, task):
    yield from (row[task] for row in result["accuracy_matrix"][task + 1 :])
    later = (each for each in result["evaluations"] if each["task"] > task + 1)
    yield from (each["accuracies"][task] for each in later)


def _last(group, task):
    return mean_of_known(result["accuracy_matrix"][-1][task] for result in group.results)


def _matrix(group, found):
    tasks = len(group.results[0]["tasks"])
    return figure(
        group.label,
        f"Heat map of the accuracy matrix of {group.label}, {tasks} by {tasks}. Mean of its last "
        f"row: {group.spread('average_accuracy').text()}.",
        pictures.matrix(group, found),
    )


def _stability(found):
    places = ", ".join(
        f"{g.label} {g.spread('new_task_accuracy').text()} and {g.spread('forgetting').text()}"
        for g in found
    )
    return figure(
        "Forgetting against the accuracy on new tasks",
        f"Scatter plot. Accuracy on new tasks and forgetting: {places}.",
        pictures.stability_and_plasticity(found),
        wide=True,
    )


def _costs(found):
    labels = [group.label for group in found]
    phases = {
        phase: [_mean_of(group, lambda r, p=phase: r["seconds"].get(p, 0.0)) for group in found]
        for phase in _PHASES
    }
    totals = ", ".join(f"{g.label} {g.spread('seconds').mean:.1f}" for g in found)
    yield figure(
        "Seconds a run",
        f"Bar chart of the seconds of a run by phase. In all: {totals}.",
        pictures.bars(labels, phases, "seconds"),
        wide=True,
    )
    if all("memory" in result for group in found for result in group.results):
        sizes = [_mean_of(g, lambda r: r["memory"]["kept_by_method"]) / _MEGABYTE for g in found]
        words = ", ".join(f"{g.label} {size:.1f}" for g, size in zip(found, sizes, strict=True))
        yield figure(
            "Megabytes on disk between tasks",
            f"Bar chart of the megabytes that the method keeps on disk between tasks: {words}.",
            pictures.bars(labels, {"kept": sizes}, "megabytes on disk"),
            wide=True,
        )


def _mean_of(group, value):
    return statistics.mean(map(value, group.results))


def _settings(found) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return every setting with its values: one, or one for each group where they differ."""
    names = dict.fromkeys(name for group in found for r in group.results for name in _all(r))
    rows = []
    for name in names:
        values = [(group.label, _value(group, name)) for group in found]
        same = len({text for _, text in values}) == 1
        rows.append((name.replace("_", " "), [("", values[0][1])] if same else values))
    return rows


def _all(result) -> Mapping[str, Any]:
    """Return everything that decides a result, flat."""
    return {**method_settings(result), "seed": result["seed"], **run_settings(result)}


def _value(group, name):
    values = (_all(result).get(name, NOT_RECORDED) for result in group.results)
    return ", ".join(dict.fromkeys(setting_text(name, value) for value in values))


def _examples(results) -> dict[str, dict[str, str]]:
    """Return how many examples each task has by role; several numbers where runs differ."""
    recorded = [result["examples"] for result in results if "examples" in result]
    tasks = recorded[0] if recorded else {}
    return {
        task: {
            role: ", ".join(
                dict.fromkeys(str(counts[task][role]) for counts in recorded if task in counts)
            )
            for role in roles
        }
        for task, roles in tasks.items()
    }


def _held_out(results):
    """Return what became of the examples that a run calls validation data."""
    names = {"test": "held out, then trained on", "validation": "to validate"}
    found = {names.get(result.get("evaluated_on"), "held out") for result in results}
    return found.pop() if len(found) == 1 else "held out"


def _versions(results):
    """Return the versions of each package, of all runs."""
    found: dict[str, dict[str, None]] = {}
    for result in results:
        for package, version in result.get("versions", {}).items():
            found.setdefault(package, {})[str(version)] = None
    return {package: ", ".join(versions) for package, versions in found.items()}


def _change_text(spread: Spread | None) -> str:
    return "–" if spread is None else spread.with_error()
