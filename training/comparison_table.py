"""A comparison as text for a terminal or a pipe, and as rows for JSON and CSV."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from .report import print_rows, report_rows
from .summary import ABOUT_SECONDS, WORST_CASE, Group, Spread, best, groups, have_worst_case

if TYPE_CHECKING:
    from .compare import Entry

_COMPARED = ("average_accuracy", "forgetting", "new_task_accuracy")
_DIFFERENCES = ("average_accuracy", "forgetting")


def reference_group(candidates: Sequence[Group], against: str) -> Group:
    """Return the group that differences are taken from.

    Args:
        candidates: At least one group.
        against: `first`, `best`, or the name of a method. If none of its runs was finished, the
            first group is taken.
    """
    if against == "best":
        return best(candidates)
    named = [group for group in candidates if group.results[0]["method"] == against]
    return (named or candidates)[0]


def print_entries(
    entries: Sequence["Entry"],
    against: str,
    console: Console,
    remarks: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Print a line per method, what its runs took, differences with the same seeds, and failures.

    Args:
        entries: At least one with a result.
        against: As for `reference_group`.
        console: Where to print; its width is respected.
        remarks: What is said first about the λ that was found, by the name of the method.
    """
    for method, sentences in (remarks or {}).items():
        for sentence in sentences:
            console.print(f"{method}: {sentence}", soft_wrap=True)
    found = groups([entry.result for entry in entries if entry.result])
    console.print("mean ± standard deviation over the seeds")
    rows = [["method", "runs", "average accuracy", "forgetting", "new tasks"]]
    for group in found:
        cells = [group.spread(measure).with_deviation() for measure in _COMPARED]
        rows.append([group.label, str(len(group.results)), *cells])
    print_rows(rows, console)
    console.print(Text())
    _print_worst_case_and_seconds(found, console)
    if len(found) > 1:
        console.print(Text())
        _print_differences(found, reference_group(found, against), console)
    for entry in entries:
        if not entry.result:
            console.print(f"{entry.name} failed: {entry.error}", soft_wrap=True)


def _print_worst_case_and_seconds(found, console):
    """Print what has no place beside the accuracies in 80 columns."""
    measures = WORST_CASE if have_worst_case(found) else ()
    headings = ["min-ACC", "WC-ACC"] if measures else []
    rows = [["method", *headings, "seconds a run"]]
    for group in found:
        cells = [group.spread(measure).with_deviation() for measure in measures]
        rows.append([group.label, *cells, f"{group.spread('seconds').mean:.1f}"])
    print_rows(rows, console)
    console.print(ABOUT_SECONDS, soft_wrap=True)


def _print_differences(found, reference, console):
    console.print(f"difference from {reference.label} with the same seed, ± standard error")
    rows = [["method", "pairs", "average accuracy", "forgetting"]]
    for group in found:
        differences = [group.difference(reference, measure) for measure in _DIFFERENCES]
        is_other = group != reference
        cells = [_difference(spread) if is_other else "" for spread in differences]
        pairs = str(differences[0].runs) if differences[0] and is_other else ""
        rows.append([group.label, pairs, *cells])
    print_rows(rows, console)


def _difference(spread: Spread | None) -> str:
    return "no pairs" if spread is None else spread.with_error()


def comparison_rows(entries: Sequence["Entry"]) -> list[dict[str, Any]]:
    """Return a flat dict per run for JSON and CSV: as `report_rows`, with its folder and error.

    Args:
        entries: A row of a run that failed has its settings, seed and error alone.
    """
    rows = []
    for entry in entries:
        [row] = report_rows([entry.result]) if entry.result else [_settings_row(entry)]
        rows.append({**row, "folder": str(entry.directory), "error": entry.error or None})
    return rows


def _settings_row(entry):
    return {**entry.settings.of_method, "seed": entry.settings.seed}


def comparison_content(
    entries: Sequence["Entry"],
    against: str,
    command: str,
    output: Path,
    remarks: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Return a comparison as JSON can hold it.

    Args:
        entries: At least one with a result.
        against: As for `reference_group`.
        command: The command line that makes it.
        output: Folder of its files.
        remarks: As for `print_entries`.
    """
    found = groups([entry.result for entry in entries if entry.result])
    reference = reference_group(found, against)
    return {
        "command": command,
        "folder": str(output),
        "against": reference.label,
        "methods": [_group_content(group, reference) for group in found],
        "remarks": {method: list(said) for method, said in (remarks or {}).items()},
        "runs": comparison_rows(entries),
    }


def _group_content(group, reference) -> Mapping[str, Any]:
    worst_case = WORST_CASE if have_worst_case([group]) else ()
    measures = (*_COMPARED, "backward_transfer", "seconds", *worst_case)
    differences = {name: group.difference(reference, name) for name in _DIFFERENCES}
    return {
        "label": group.label,
        "method": group.results[0]["method"],
        "seeds": [result["seed"] for result in group.results],
        **{name: dataclasses.asdict(group.spread(name)) for name in measures},
        "differences": {
            name: spread and {**dataclasses.asdict(spread), "standard_error": spread.standard_error}
            for name, spread in differences.items()
            if group != reference
        },
    }
