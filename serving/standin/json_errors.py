"""What RapidJSON 1.1 finds wrong with a JSON text: the first fault, and where it is.

Its iterative parser is at every character in one of a few states, and each has its own message.
"""

import re
from collections.abc import Callable


class Malformed(Exception):
    """What is wrong with a text, and at which character."""

    def __init__(self, message: str, position: int):
        super().__init__(message)
        self.message = message
        self.position = position


_SPACE = re.compile(r"[ \t\n\r]*")
_UNESCAPED = re.compile(r'[^"\\\x00-\x1f]*')
_HEX = re.compile(r"[0-9a-fA-F]{4}")
_NUMBER = re.compile(
    r"-?(?:(?P<integer>0|[1-9][0-9]*)(?P<point>\.(?P<fraction>[0-9]*))?"
    r"(?P<e>[eE](?:(?P<minus>-)|\+)?(?P<exponent>[0-9]*))?)?"
)
# Numbers in a list that are sound and have a comma behind them; large batches hold little else.
_NUMBERS = re.compile(r"(?:-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]++)?[ \t\n\r]*+,[ \t\n\r]*+){1,1000}+")
_WORDS = {word[0]: word for word in ("true", "false", "null", "NaN", "Infinity")}

_INVALID = "Invalid value."
_NO_NAME = "Missing a name for object member."

# By state: the message of a character, or an end, that is not allowed there. An opening bracket is
# the state that follows it, and a closing one that after a value in such brackets.
_BEFORE_VALUE = {
    "start": "The document is empty.",
    "[": _INVALID,
    "[,": _INVALID,
    ":": _INVALID,
}
_MESSAGES = {
    **_BEFORE_VALUE,
    "{": _NO_NAME,
    "{,": _NO_NAME,
    "name": "Missing a colon after a name of object member.",
    "]": "Missing a comma or ']' after an array element.",
    "}": "Missing a comma or '}' after an object member.",
}
_CLOSING = {"[": "]", "{": "}"}


def skip_space(text: str, position: int) -> int:
    """Return where the white space ends that begins at a position of a text, or does not."""
    match = _SPACE.match(text, position)
    return match.end() if match else position


def check(text: str) -> None:
    """Refuse a text that does not begin with a JSON value, as RapidJSON would.

    Raises:
        Malformed: With its message.
    """
    opened: list[str] = []
    state, position = "start", 0
    while True:
        position = skip_space(text, position)
        if state in ("[", "[,") and (match := _NUMBERS.match(text, position)):
            state, position = "[,", match.end()
        character = text[position : position + 1]
        if state in _BEFORE_VALUE and character not in ("", "\0", *",:]}"):
            if character in "[{":
                opened.append(character)
                state, position = character, position + 1
                continue
            position = _after_scalar(text, position)
        elif state in ("{", "{,") and character == '"':
            state, position = "name", _after_string(text, position)
            continue
        elif state == "name" and character == ":":
            state, position = ":", position + 1
            continue
        elif state in ("]", "}") and character == ",":
            state, position = f"{opened[-1]},", position + 1
            continue
        elif state in ("[", "{", "]", "}") and character == _CLOSING[opened[-1]]:
            opened.pop()
            position += 1
        else:
            raise Malformed(_MESSAGES[state], position)
        if not opened:
            return
        state = _CLOSING[opened[-1]]


def _after_scalar(text: str, position: int) -> int:
    character = text[position]
    if character == '"':
        return _after_string(text, position)
    return _after_word(text, position) if character in "tfn" else _after_number(text, position)


def _after_word(text: str, position: int) -> int:
    """Return where a word ends; a wrong one is refused where it departs from the right one."""
    word = _WORDS[text[position]]
    if word == "Infinity" and not text.startswith("Infi", position):
        word = "Inf"
    for offset, letter in enumerate(word):
        if text[position + offset : position + offset + 1] != letter:
            raise Malformed(_INVALID, position + offset)
    return position + len(word)


def _after_number(text: str, position: int) -> int:
    match = _NUMBER.match(text, position)
    assert match is not None
    if match["integer"] is None:
        end = match.end()
        if text[end : end + 1] in ("N", "I"):
            return _after_word(text, end)
        raise Malformed(_INVALID, end)
    integer, fraction, exponent = match["integer"], match["fraction"], match["exponent"]
    if _is_too_big(integer, 2**63 if text[position] == "-" else 2**64 - 1):
        raise Malformed(_TOO_BIG, position)
    if fraction == "":
        raise Malformed("Miss fraction part in number.", match.end("point"))
    if exponent == "":
        raise Malformed("Miss exponent in number.", match.end())
    if exponent and not match["minus"]:
        largest = 308 + _digits_kept(integer, fraction or "")
        # The first digit is not compared, and an exponent may have more than Python would read.
        if len(exponent) > 1 and float(exponent) > largest:
            raise Malformed(_TOO_BIG, position)
    return match.end()


_TOO_BIG = "Number too big to be stored in double."
_TENTH_OF_MAX = 1.7976931348623157e307


def _is_too_big(integer: str, largest: int) -> bool:
    """Whether RapidJSON refuses a whole number, which it reads as a double beyond 64 bits."""
    value: float = 0
    for digit in integer if len(integer) > 300 else "":
        if type(value) is int and 10 * value + int(digit) > largest:
            value = float(value)
        if value >= _TENTH_OF_MAX:
            return True
        value = 10 * value + int(digit)
    return False


def _digits_kept(integer: str, fraction: str) -> int:
    """Return how many digits of a fraction RapidJSON reads: those that a double has room for."""
    value, significant, kept = float(integer), len(integer) - 1, 0
    for digit in fraction:
        if value < 2**53 or significant < 17:
            value = 10 * value + int(digit)
            kept += 1
            significant += value > 0
    return kept


def _after_string(text: str, position: int) -> int:
    position += 1
    while True:
        match = _UNESCAPED.match(text, position)
        position = match.end() if match else position
        character = text[position : position + 1]
        if character == '"':
            return position + 1
        if character == "\\":
            position = _after_escape(text, position)
        elif character in ("", "\0"):
            raise Malformed("Missing a closing quotation mark in string.", position)
        else:  # a control character
            raise Malformed("Invalid escape character in string.", position)


def _after_escape(text: str, position: int) -> int:
    """Return where an escape ends; what is wrong with it is refused at its backslash."""

    def refuse(message: str) -> Malformed:
        return Malformed(message, position)

    if text[position + 1 : position + 2] in tuple('"\\/bfnrt'):
        return position + 2
    if text[position + 1 : position + 2] != "u":
        raise refuse("Invalid escape character in string.")
    code = _code(text, position + 2, refuse)
    if not 0xD800 <= code < 0xDC00:
        return position + 6
    unpaired = refuse("The surrogate pair in string is invalid.")
    if text[position + 6 : position + 8] != "\\u":
        raise unpaired
    if not 0xDC00 <= _code(text, position + 8, refuse) < 0xE000:
        raise unpaired
    return position + 12


def _code(text: str, position: int, refuse: Callable[[str], Malformed]) -> int:
    match = _HEX.match(text, position)
    if match is None:
        raise refuse("Incorrect hex digit after \\u escape in string.")
    return int(match[0], 16)
