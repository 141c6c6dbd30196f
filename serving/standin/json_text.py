"""JSON text as RapidJSON 1.1 reads it and quotes it, the library that TensorFlow Serving uses.

Python's parser does the work. Where the two differ, what RapidJSON does is added: it takes NaN and
Infinity for numbers, and Inf too, finds the first of two members of one name, ignores what follows
the first value, and has messages and positions of its own for what it refuses (`json_errors`).
"""

import codecs
import json
import math
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from .json_errors import Malformed, check, skip_space
from .protocol import invalid_argument

_EXCERPT_BYTES = 256

_BOM = "\ufeff".encode()
_STRING = r'"(?:[^"\\]|\\.)*"'
_STRING_OR_INF = re.compile(rf"{_STRING}|-?(?:Inf(?!inity)|NaN)", re.DOTALL)

# What Python's parser takes and RapidJSON may not: large exponents, hundreds of digits, and the
# first half of a surrogate pair without the second. Hardly anything else looks like one of these.
_SUSPICIOUS = re.compile(
    r"[eE]\+?\d{3}|\d{309}|\\u[dD][89abAB](?![0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
)


class RepeatedMembers(dict[str, Any]):
    """An object in which a name is given more than once: as a dict, the first member of each.

    Attributes:
        pairs: All members.
    """

    pairs: list[tuple[str, Any]]


def members(value: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Return the names and values in an object, also of a name that is given twice."""
    return value.pairs if isinstance(value, RepeatedMembers) else value.items()


def parse(body: bytes) -> Any:
    """Parse the first JSON value in a text.

    Args:
        body: The text in UTF-8; bytes that are not come back as lone surrogates, as in Python's
            "surrogateescape".

    Returns:
        What `json.loads` would return; an object that repeats a name is a `RepeatedMembers`.

    Raises:
        RequestError: If there is no value, with RapidJSON's message and its offset in bytes.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    start = _after_byte_order_mark(body)
    text = body[start:].decode(errors="surrogateescape")
    try:
        return _parsed(text)
    except Malformed as error:
        offset = start + len(encoded(text[: error.position]))
        raise invalid_argument(f"JSON Parse error: {error.message} at offset: {offset}") from error


def encoded(text: str) -> bytes:
    """Return a text that came from `parse` as bytes: those that it was read from, or stands for.

    Half a surrogate pair, which RapidJSON lets through in an escape, becomes three bytes.
    """
    return text.encode(errors="keras_mas.lone_surrogates")


def _lone_surrogates(error: UnicodeError) -> tuple[bytes, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    try:
        return text.encode(errors="surrogateescape"), error.end
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass"), error.end


codecs.register_error("keras_mas.lone_surrogates", _lone_surrogates)


def _after_byte_order_mark(body: bytes) -> int:
    """Return where a text begins; of the mark each byte may be missing, as RapidJSON reads it."""
    start = 0
    for byte in _BOM:
        start += body[start : start + 1] == bytes([byte])
    return start


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        found = RepeatedMembers(reversed(pairs))
        found.pairs = pairs
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _parsed(text: str) -> Any:
    start = skip_space(text, 0)
    if _SUSPICIOUS.search(text):
        check(text)
    try:
        return _DECODER.raw_decode(text, start)[0]
    except json.JSONDecodeError:
        check(text)
        return _DECODER.raw_decode(_with_words_of_python(text), start)[0]
    except RecursionError as error:
        check(text)
        raise Malformed("Lists or objects are nested too deep", len(text)) from error


def _with_words_of_python(text: str) -> str:
    """Write RapidJSON's Inf and -NaN as Python's parser reads them."""

    def replace(match: re.Match[str]) -> str:
        word = match[0]
        return {"Inf": "Infinity", "-Inf": "-Infinity", "-NaN": "NaN"}.get(word, word)

    return _STRING_OR_INF.sub(replace, text)


def excerpt(value: Any) -> str:
    """Return how RapidJSON writes a value, up to the first token past 256 bytes.

    Args:
        value: As `parse` returns it.
    """
    return "".join(_limited(value))


def _limited(value: Any) -> Iterator[str]:
    written = 0
    for token in _tokens(value, 0):
        if written >= _EXCERPT_BYTES:
            return
        written += len(encoded(token))
        yield token.removesuffix(_STOP)
        if token.endswith(_STOP):
            return


def _tokens(value: Any, depth: int) -> Iterator[str]:
    """Yield the text of a value, divided where RapidJSON's writer looks at the limit."""
    if isinstance(value, dict):
        yield "{"
        for number, (name, item) in enumerate(members(value)):
            yield f"{',' if number else ''}{_new_line(depth + 1)}{_quoted(name)}"
            yield from _after(": ", _tokens(item, depth + 1))
        yield f"{_new_line(depth)}}}" if value else "}"
    elif isinstance(value, list):
        yield "["
        for number, item in enumerate(value):
            yield from _after(", " if number else "", _tokens(item, depth + 1))
        yield "]"
    else:
        yield _scalar(value)


def _after(text: str, tokens: Iterator[str]) -> Iterator[str]:
    yield text + next(tokens)
    yield from tokens


def _new_line(depth: int) -> str:
    return "\n" + 4 * depth * " "


def _scalar(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, float) or (type(value) is int and not -(2**63) <= value < 2**64):
        return _double(float(value))
    return json.dumps(value)


# RapidJSON's writer refuses NaN and Infinity, and stops.
_STOP = "\0"

_ESCAPES = {"\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_ESCAPES |= {'"': '\\"', "\\": "\\\\"}
_ESCAPED = str.maketrans({chr(code): f"\\u{code:04X}" for code in range(32)} | _ESCAPES)


def _quoted(text: str) -> str:
    return f'"{text.translate(_ESCAPED)}"'


def _double(value: float) -> str:
    """Write a double with the fewest digits that are read back as the same."""
    if not math.isfinite(value):
        return _STOP
    sign, digits, power = Decimal(repr(value)).normalize().as_tuple()
    exponent = int(power)
    text = "".join(map(str, digits))
    point = len(text) + exponent
    if exponent >= 0 and point <= 21:
        text += "0" * exponent + ".0"
    elif 0 < point <= 21:
        text = f"{text[:point]}.{text[point:]}"
    elif -6 < point <= 0:
        text = f"0.{'0' * -point}{text}"
    else:
        fraction = f".{text[1:]}" if len(text) > 1 else ""
        text = f"{text[0]}{fraction}e{point - 1}"
    return "-" * sign + text
