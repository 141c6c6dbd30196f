"""Reports on finished runs: text for a terminal or a pipe, and rows for JSON and CSV."""

import csv
import math
from collections.abc import Mapping, Sequence
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .console import print_table
from .summary import (
    NOT_MEASURED,
    WORST_CASE,
    groups,
    measure_text,
    method_settings,
    title,
    total_seconds,
)

_PRINTED = ("average_accuracy", "forgetting", "backward_transfer")

# Layout of a printed accuracy matrix, in characters: "(0.123)" and a space before it.
_CELL = 8
LONGEST_NAME = 20


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
    evaluated = result.get("evaluated_tasks", result["tasks"])
    if len(evaluated) < len(result["tasks"]):
        lines.append(
            Text(
                f"({NOT_MEASURED}: not measured, since there are no examples of the task; the "
                f"average is over {', '.join(evaluated)})"
            )
        )
    lines.append(
        Text(
            f"average accuracy {measure_text(result['average_accuracy'])}   "
            f"forgetting {measure_text(result['forgetting'])}   "
            f"backward transfer {measure_text(result['backward_transfer'], '+z.4f')}\n"
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
                text = measure_text(row[j], "z.3f")
                cell = f"{text} " if learned else f"({text})"
                line.append(f"{cell:>{_CELL}}", style="" if learned else "dim")
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
    rows = [["run", "seed", *(name.replace("_", " ") for name in _PRINTED)]]
    found = sorted(groups(results), key=lambda group: group.label)
    for group in found:
        for result in group.results:
            measures = (measure_text(result[name]) for name in _PRINTED)
            rows.append([group.label, str(result["seed"]), *measures])
    for group in found:
        runs = len(group.results)
        if runs > 1:
            spreads = (group.spread(name).with_deviation() for name in _PRINTED)
            rows.append([group.label, f"{runs} runs", *spreads])
    print_rows(rows, console)


def print_rows(rows: Sequence[Sequence[str]], console: Console) -> None:
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
    print_table(console, table)


def report_rows(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a flat dict per run, for JSON and CSV.

    Args:
        results: As `read_result` returns them.

    Returns:
        Per run: stream, scenario, method, strength and penalty (None where the method has none),
        seed, what it was evaluated on, the four measures, seconds in total, and every setting of
        its recipe. If it was measured while tasks were being learned, also how often, min-ACC and
        WC-ACC.
    """
    return [_row(result) for result in results]


def _row(result):
    measures = (*_PRINTED, "forward_transfer")
    under_way = ("evaluate_every", *WORST_CASE)
    return {
        "stream": result["stream"],
        "scenario": result["scenario"],
        **method_settings(result),
        "seed": result["seed"],
        "evaluated_on": result.get("evaluated_on"),
        **{name: _without_sign_of_zero(result[name]) for name in measures},
        **{name: result[name] for name in under_way if name in result},
        "seconds": round(total_seconds(result), 3),
        **result["recipe"],
    }


def _without_sign_of_zero(value):
    return None if value is None else value + 0.0  # -0.0 + 0.0 is 0.0


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
