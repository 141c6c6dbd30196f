"""Consoles: results go to standard output, everything else to standard error."""

import os

from rich.console import Console, RenderableType

# Characters per line where there is no terminal and the environment variable COLUMNS is not set.
DEFAULT_WIDTH = 80


def result_console() -> Console:
    """Return a console on standard output that prints text verbatim, without markup."""
    return _console(stderr=False)


def stderr_console() -> Console:
    """Return a console on standard error that prints text verbatim, without markup."""
    return _console(stderr=True)


def print_table(console: Console, table: RenderableType) -> None:
    """Print a table; its lines end in no blanks where they go to a file or another program.

    Args:
        console: Where to print; a line that is longer than its width is not cut.
        table: The table.
    """
    if console.is_terminal:
        console.print(table, crop=False)
        return
    with console.capture() as captured:
        console.print(table, crop=False)
    for line in captured.get().splitlines():
        console.print(line.rstrip(), soft_wrap=True)


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, markup=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = DEFAULT_WIDTH  # not that of a terminal to which other streams may lead
    return console
