"""Reads what a search varies, from the command line or a TOML file."""

import argparse
import dataclasses
import tomllib
from pathlib import Path

from keras_mas.errors import UsageError

from ..options import flag, kind_of, option_fields, parser_of
from ..settings import Recipe, Settings
from ..wording import did_you_mean, sentence
from .dimensions import HELD, STRENGTH, Choices, Range

# Not varied: several seeds are a trial's executions, and measuring changes no result.
_FIXED = ("seed", "evaluate_every", "deterministic")


def fields() -> dict[str, dataclasses.Field]:
    """Return the options that can be varied, by name."""
    known = option_fields(Settings) | option_fields(Recipe)
    return {name: field for name, field in known.items() if name not in (*_FIXED, STRENGTH)}


def read_space(text: str) -> dict[str, Range | Choices]:
    """Read what is varied: `NAME=LEAST..LARGEST` or `NAME=A,B,C`, separated by spaces.

    Numbers are tried on a logarithmic scale, whole numbers on a linear one. In a TOML file, named
    by `text`, a value is a text of the same form, `"0.1..10"` or `"a,b"`; or `["a", "b"]`, or
    `{min = 0.1, max = 10, scale = "log"}`, with "linear" as the other scale.

    Args:
        text: As above.

    Raises:
        UsageError: If no option is named, or one is named twice, is unknown or does not take such
            values, if a value occurs twice, if bounds are reversed, if one of a logarithmic scale
            is not above 0, or if 32 bits do not hold one.

    Example:
        >>> read_space("penalty=in_loss,decoupled epochs=5..20")["epochs"]
        Range(least=5, largest=20, is_log=False, is_whole=True)
    """
    is_file = text.endswith(".toml")
    given = _read_toml(Path(text)) if is_file else [_parted(word) for word in text.split()]
    if not given:
        raise UsageError(
            f"Expected --vary to name an option or more. Received: none in {text!r}. Leave it out "
            "to vary λ alone."
        )
    names = [_as_typed(name) for name, _ in given]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"Expected each option once in --vary. Received: '{name}' more than once. Put all "
                f"its values together, as in {name}=A,B,C."
            )
    return {name.replace("-", "_"): _dimension(name, value) for name, value in given}


def _parted(part):
    name, equals, values = part.partition("=")
    if not equals or not values:
        raise UsageError(
            "Expected --vary to be NAME=LEAST..LARGEST or NAME=A,B,C, or several of them separated "
            f"by spaces, or a TOML file. Received: {part!r}."
        )
    return name, values


def _read_toml(path):
    """Return the names and values in a file, which may begin with a byte order mark."""
    try:
        return list(tomllib.loads(path.read_text(encoding="utf-8-sig")).items())
    except (OSError, ValueError, RecursionError) as error:  # no TOML, a huge number, or very deep
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"Expected --vary to name a TOML file of options. Received: '{path}', which cannot be "
            f"read ({reason})."
        ) from None


def _dimension(name, given):
    typed = _as_typed(name)
    field = fields().get(name.replace("-", "_"))
    if field is None:
        raise UsageError(_unknown(typed))
    if isinstance(given, str):
        least, dots, largest = given.partition("..")
        is_range = dots and "," not in given  # a path may have two dots
        given = {"min": least, "max": largest} if is_range else given.split(",")
    if isinstance(given, list) and given:
        return Choices(_different(typed, [_value(typed, field, each) for each in given]))
    if isinstance(given, dict) and {"min", "max"} <= set(given) <= {"min", "max", "scale"}:
        return _range(typed, field, given)
    raise UsageError(
        f"Expected `{typed}` in --vary to be several values or a range, as in NAME=A,B,C and "
        "NAME=LEAST..LARGEST; or, in TOML, [A, B, C] and {min = LEAST, max = LARGEST}. Received: "
        f"{given!r}."
    )


def _different(name, values):
    """Return values as a tuple; refuse one that occurs twice, however it is written."""
    for value in values:
        if values.count(value) > 1:
            raise UsageError(
                f"Expected each value of `{name}` once in --vary. Received: '{value}' more than "
                "once."
            )
    return tuple(values)


def _unknown(given):
    if given == STRENGTH:
        return "Expected λ to be varied by --strength-min and --strength-max, not in --vary."
    if given == "seed":
        return "Expected seeds to be varied by --executions-per-trial, not in --vary."
    known = [_as_typed(each) for each in fields()]
    return (
        f"Expected an option of `keras-mas train` in --vary, out of {', '.join(known)}. "
        f"Received: {given!r}.{did_you_mean(given, known)}"
    )


def _as_typed(name):
    return name.replace("_", "-")


def _range(name, field, given):
    kind = kind_of(field)
    if kind not in (int, float):
        raise UsageError(
            f"Expected several values of `{name}` in --vary, as in {name}=A,B,C, since it is no "
            f"number. Received: a range, {given['min']} to {given['max']}."
        )
    least, largest = (_value(name, field, given[end]) for end in ("min", "max"))
    scale = given.get("scale", "linear" if kind is int else "log")
    if scale not in ("log", "linear"):
        raise UsageError(
            f'Expected the scale of `{name}` in --vary to be "log" or "linear". Received: '
            f"{scale!r}."
        )
    if least >= largest:
        raise UsageError(
            f"Expected a range of `{name}` in --vary from its smallest to its largest value. "
            f"Received: {least:g} to {largest:g}."
        )
    if scale == "log" and least <= 0:
        raise UsageError(
            f"Expected a range of `{name}` in --vary above 0, since its scale is logarithmic. "
            f"Received: {least:g} to {largest:g}. Take a small number in the place of {least:g}."
        )
    for end in (least, largest):
        if end and end not in HELD:
            raise UsageError(
                f"Expected a range of `{name}` in --vary within {HELD.at_least} and "
                f"{HELD.at_most}, as 32 bits hold. Received: {given['min']} to {given['max']}."
            )
    return Range(least, largest, is_log=scale == "log", is_whole=kind is int)


def _value(name, field, given):
    """Return a value as the command line would read it."""
    try:
        return parser_of(field)(str(given))
    except argparse.ArgumentTypeError as error:
        said = sentence(str(error))
        raise UsageError(f"In --vary, `{name}`: {said} See {flag(name)} of `train`.") from None
