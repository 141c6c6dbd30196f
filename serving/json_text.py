"""JSON text as RapidJSON 1.1 reads it and quotes it, the library that TensorFlow Serving uses.

Python's parser does the work. Where the two differ, what RapidJSON does is added: it takes NaN and
Infinity for numbers, and Inf too, keeps the first of two members of one name, ignores what follows
the first value, and has messages and positions of its own for what it refuses.
"""

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from .protocol import invalid_argument

_EXCERPT_BYTES = 256

_AFTER_SPACE = re.compile(r"[ \t\n\r]*")

_STRING = r'"(?:[^"\\]|\\.)*"'
_NUMBER = r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
_STRING_OR_NUMBER = re.compile(rf"{_STRING}|{_NUMBER}", re.DOTALL)
_STRING_OR_BRACKET = re.compile(rf"{_STRING}|[\[\]{{}}]", re.DOTALL)
_STRING_OR_INF = re.compile(rf"{_STRING}|-?(?:Inf(?!inity)|NaN)", re.DOTALL)
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\.", re.DOTALL)

# Of what may be too large for a double, every case has one of these, and hardly anything else has.
_PERHAPS_TOO_BIG = re.compile(r"[eE]\+?\d{3}|\d{309}")


def parse(body: bytes) -> Any:
    """Parse the first JSON value in a text.

    Args:
        body: The text in UTF-8; bytes that are not come back as lone surrogates, as in Python's
            "surrogateescape".

    Returns:
        What `json.loads` would return.

    Raises:
        RequestError: If there is no value, with RapidJSON's message and its offset in bytes.
    """
    if not body:
        raise invalid_argument("JSON Parse error: The document is empty")
    text = body.decode(errors="surrogateescape")
    try:
        return _parsed(text)
    except _Error as error:
        offset = len(text[: error.position].encode(errors="surrogateescape"))
        raise invalid_argument(f"JSON Parse error: {error.message} at offset: {offset}") from error


class _Error(Exception):
    """What is wrong with a text, and at which character."""

    def __init__(self, message: str, position: int):
        super().__init__(message)
        self.message = message
        self.position = position


def _first_of_each_name(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        members.update(reversed(pairs))
    return members


_DECODER = json.JSONDecoder(object_pairs_hook=_first_of_each_name)


def _parsed(text: str) -> Any:
    _check_numbers(text)
    _check_surrogates(text)
    start = _skip_space(text, 1 if text.startswith("\ufeff") else 0)
    try:
        return _DECODER.raw_decode(text, start)[0]
    except json.JSONDecodeError as error:
        words = _with_words_of_python(text)
        if words != text:
            return _parsed(words)
        raise _as_rapidjson_says_it(text, error, start) from error
    except RecursionError as error:
        raise _Error("Lists or objects are nested too deep", len(text)) from error


def _skip_space(text: str, position: int) -> int:
    match = _AFTER_SPACE.match(text, position)
    return match.end() if match else position


def _with_words_of_python(text: str) -> str:
    """Write RapidJSON's Inf and -NaN as Python's parser reads them."""

    def replace(match: re.Match[str]) -> str:
        word = match[0]
        return {"Inf": "Infinity", "-Inf": "-Infinity", "-NaN": "NaN"}.get(word, word)

    return _STRING_OR_INF.sub(replace, text) if "Inf" in text or "-NaN" in text else text


def _check_numbers(text: str) -> None:
    if not _PERHAPS_TOO_BIG.search(text):
        return
    for match in _STRING_OR_NUMBER.finditer(text):
        if not match[0].startswith('"') and math.isinf(float(match[0])):
            raise _Error("Number too big to be stored in double.", match.start())


def _check_surrogates(text: str) -> None:
    """Refuse half a surrogate pair: a high one without a low one after it."""
    if "\\ud" not in text and "\\uD" not in text:
        return
    high = None
    for match in _ESCAPE.finditer(text):
        code = int(match[1], 16) if match[1] else 0
        if high is not None and (match.start() != high.end() or not 0xDC00 <= code < 0xE000):
            break
        high = match if high is None and 0xD800 <= code < 0xDC00 else None
    if high is not None:
        raise _Error("The surrogate pair in string is invalid.", high.start())


def _as_rapidjson_says_it(text: str, error: json.JSONDecodeError, start: int) -> _Error:
    """Translate what Python's parser says of a text."""
    message, position = error.msg, error.pos
    if message.startswith("Illegal trailing comma"):  # since Python 3.13
        position = _skip_space(text, position + 1)
        message = "Expecting value" if "array" in message else "Expecting property name"
    if message.startswith("Expecting value"):
        if position >= len(text) or text[position] in ",:]}":
            empty = position <= start
            return _Error("The document is empty." if empty else "Invalid value.", position)
        return _in_value(text, position)
    if message.startswith("Expecting property name"):
        return _Error("Missing a name for object member.", position)
    if message.startswith("Expecting ':'"):
        return _Error("Missing a colon after a name of object member.", position)
    if message.startswith("Expecting ','"):
        return _after_value(text, position)
    return _in_string(text, message, position)


def _in_value(text: str, position: int) -> _Error:
    """Return the error of what is no value: where it departs from the word it begins like."""
    words = ("true", "false", "null", "NaN", "Infinity", "-NaN", "-Infinity")
    departures = (
        next((k for k, c in enumerate(word) if text[position + k : position + k + 1] != c), 0)
        for word in words
    )
    return _Error("Invalid value.", position + max(departures))


_UNFINISHED_NUMBER = re.compile(r"-?\d+(?:(?P<fraction>\.)(?!\d)|(?:\.\d+)?[eE][+-]?(?!\d))")


def _after_value(text: str, position: int) -> _Error:
    """Return the error of a value that is followed by neither a comma nor the end of its list."""
    before = max((text.rfind(c, 0, position) for c in "[{,: \t\n\r"), default=-1) + 1
    number = _UNFINISHED_NUMBER.match(text, before)
    if number:
        part = "fraction part" if number["fraction"] else "exponent"
        return _Error(f"Miss {part} in number.", number.end())
    is_array = _innermost(text[:position]) == "["
    what = "] after an array element." if is_array else "} after an object member."
    return _Error(f"Missing a comma or {what}", position)


def _innermost(text: str) -> str:
    """Return the bracket that is open where a text ends."""
    opened = []
    for match in _STRING_OR_BRACKET.finditer(text):
        if match[0] in "[{":
            opened.append(match[0])
        elif match[0] in "]}":
            opened.pop()
    return opened[-1]


def _in_string(text: str, message: str, position: int) -> _Error:
    if message.startswith("Unterminated string"):
        return _Error("Missing a closing quotation mark in string.", len(text))
    if message.startswith("Invalid control character"):
        if text[position] == "\0":
            return _Error("Missing a closing quotation mark in string.", position)
        return _Error("Invalid escape character in string.", position)
    escape = text.rfind("\\", 0, position + 1)
    if "XXXX" in message:
        return _Error("Incorrect hex digit after \\u escape in string.", escape)
    return _Error("Invalid escape character in string.", escape)


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
        written += len(token.encode(errors="surrogateescape"))
        yield token.removesuffix(_STOP)
        if token.endswith(_STOP):
            return


def _tokens(value: Any, depth: int) -> Iterator[str]:
    """Yield the text of a value, divided where RapidJSON's writer looks at the limit."""
    if isinstance(value, dict):
        yield "{"
        for number, (name, item) in enumerate(value.items()):
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
