"""The error for bad data, and helpers for error messages."""

import difflib
from collections.abc import Iterable


class DataError(RuntimeError):
    """The request is valid, but the data is bad or unavailable.

    Raised for a file that cannot be decoded, arrays whose shapes do not match, labels that number
    no class, or a data set that is not on disk and cannot be downloaded. The command line exits
    with code 1, and with code 2 after a wrong request (`keras_mas.errors.UsageError`).
    """


def one_of(choices: Iterable[object], limit: int = 20) -> str:
    """Return values as `'a', 'b', 'c'` for an error message; `…` stands for those after `limit`."""
    shown = [repr(choice) for choice in choices]
    return ", ".join(shown[:limit] + ["…"] * (len(shown) > limit))


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the choice most similar to `word`; empty if none is."""
    nearest = difflib.get_close_matches(word, list(choices), n=1)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""
