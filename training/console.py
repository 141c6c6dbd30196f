"""Where text goes: results to standard output, talk to standard error."""

from rich.console import Console


def result_console() -> Console:
    """Return a console on standard output that prints text as it is, names in brackets too."""
    return Console(markup=False, highlight=False)


def stderr_console() -> Console:
    """Return a console on standard error that prints text as it is."""
    return Console(stderr=True, markup=False, highlight=False)
