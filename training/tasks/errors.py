"""How a room full of other people's data says what is wrong with it."""

import difflib
from collections.abc import Iterable


class DataError(RuntimeError):
    """The data is bad or cannot be had, though it was asked for correctly.

    Raised for a file that cannot be decoded, arrays that do not fit together, labels that make no
    sense, a data set that is neither here nor within reach of the network. The command line answers
    it with exit code 1, and a wrong request (`keras_mas.errors.UsageError`) with exit code 2.
    """


def one_of(choices: Iterable[object], limit: int = 20) -> str:
    """List values for an error message, as `'a', 'b', 'c'`; after `limit` of them, only `…`."""
    shown = [repr(choice) for choice in choices]
    return ", ".join(shown[:limit] + ["…"] * (len(shown) > limit))


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the choice nearest to `word`, or nothing if none is near."""
    nearest = difflib.get_close_matches(word, list(choices), n=1)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""
