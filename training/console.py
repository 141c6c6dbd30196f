"""Consoles: results go to standard output, everything else to standard error."""

import os

from rich.console import Console

# Characters per line where there is no terminal and the environment variable COLUMNS is not set.
DEFAULT_WIDTH = 80


def result_console() -> Console:
    """Return a console on standard output that prints text verbatim, without markup."""
    return _console(stderr=False)


def stderr_console() -> Console:
    """Return a console on standard error that prints text verbatim, without markup."""
    return _console(stderr=True)


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, markup=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = DEFAULT_WIDTH  # not that of a terminal to which other streams may lead
    return console
