"""Parts of error messages."""

from collections.abc import Iterable


def sentence(text: str) -> str:
    """Return a text with a full stop, unless it ends as a sentence does already."""
    return text if text.endswith((".", "?", "!")) else f"{text}."


def one_of(choices: Iterable[object], limit: int = 20) -> str:
    """Return values as `'a', 'b', 'c'` for an error message; `…` stands for those after `limit`."""
    shown = [repr(choice) for choice in choices]
    return ", ".join(shown[:limit] + ["…"] * (len(shown) > limit))


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the choice most similar to `word`; empty if none is.

    Capitals are as similar as small letters.
    """
    import difflib  # which what is right does not wait for

    by_small_letters = {choice.lower(): choice for choice in choices}
    nearest = difflib.get_close_matches(word.lower(), by_small_letters, n=1)
    return f" Did you mean '{by_small_letters[nearest[0]]}'?" if nearest else ""


def amount(nbytes: int) -> str:
    """Return a number of bytes in words, such as `64.0 MB`."""
    value, unit = float(nbytes), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"
