"""Options of the command line, declared once, in the dataclasses that hold the settings.

A field made by `option` carries its default, its bounds and its help text. `add_options` turns the
fields of a dataclass into arguments of a parser, and `check_options` holds values that come from
Python code to the same bounds.
"""

import argparse
import dataclasses
import numbers
import re
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_mas.errors import UsageError
from keras_mas.serving.conventions import MAX_SECONDS

from .wording import did_you_mean


@dataclasses.dataclass(frozen=True)
class Bounds:
    """The range of a finite number.

    Attributes:
        at_least: Smallest value.
        above: The value is greater than this one.
        at_most: Largest value.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            abs(value) < float("inf")
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
        )

    def __str__(self) -> str:
        if self.above is not None:
            bound = "" if self.at_most is None else f", at most {self.at_most:,}"
            return f"> {self.above}{bound}"
        if self.at_most is not None:
            return f"from {self.at_least} to {self.at_most}"
        return f"≥ {self.at_least}"


POSITIVE = Bounds(above=0)
NOT_NEGATIVE = Bounds(at_least=0)
SECONDS = Bounds(above=0, at_most=MAX_SECONDS)
AT_LEAST_ONE = Bounds(at_least=1)


@dataclasses.dataclass(frozen=True)
class _Option:
    """What a field made by `option` carries; its attributes are the arguments of `option`."""

    help: str
    bounds: Bounds | None
    choices: tuple[str, ...]
    besides: str | None
    metavar: str | None
    label: str | None
    several: bool
    parse: Callable[[str], Any] | None


def option(
    default: Any,
    help: str,
    *,
    bounds: Bounds | None = None,
    choices: tuple[str, ...] = (),
    besides: str | None = None,
    metavar: str | None = None,
    label: str | None = None,
    several: bool = False,
    parse: Callable[[str], Any] | None = None,
) -> Any:
    """Declare a dataclass field that is also an option of the command line.

    Args:
        default: Its default.
        help: Help text, without the default.
        bounds: Range of a number.
        choices: Allowed values of a string; any by default.
        besides: What is allowed besides the choices that are listed, in words.
        metavar: How the help names the value; made of the field's name by default.
        label: What precedes the value in the name of a run's folder; the field's name by default.
        several: Whether the string may be several of the choices, separated by commas.
        parse: What makes the value of the text; decided by the field's type by default. A field of
            type `bool` becomes an option without a value.

    Returns:
        A `dataclasses.field`.
    """
    about = _Option(help, bounds, choices, besides, metavar, label, several, parse)
    return dataclasses.field(default=default, metadata={"option": about})


def option_fields(settings: type) -> dict[str, dataclasses.Field]:
    """Return the fields of a dataclass that `option` declared, by name."""
    return {
        field.name: field for field in dataclasses.fields(settings) if "option" in field.metadata
    }


def flag(name: str) -> str:
    """Return the option of a field's name: `--batch-size` of `batch_size`."""
    return f"--{name.replace('_', '-')}"


def label(field: dataclasses.Field) -> str:
    """Return what precedes a field's value in the name of a run's folder."""
    about = field.metadata["option"]
    return field.name if about.label is None else about.label


def add_options(
    group: argparse._ActionsContainer,
    settings: type,
    *names: str,
    with_defaults: bool = True,
    told: bool = False,
) -> None:
    """Add the options of a dataclass to a parser or a group of it.

    Args:
        group: Parser or group of arguments.
        settings: The dataclass.
        *names: Its fields to add; all by default.
        with_defaults: Whether an option that is not given has the field's default. Without it has
            the value None: the default is decided elsewhere.
        told: Whether the help tells the field's default nevertheless.
    """
    for name, field in option_fields(settings).items():
        if names and name not in names:
            continue
        about = field.metadata["option"]
        if field.type is bool:
            group.add_argument(flag(name), action="store_true", help=about.help)
            continue
        has_default = (with_defaults or told) and field.default is not None
        default = f" (default: {_written(field.default)})" if has_default else ""
        group.add_argument(
            flag(name),
            type=parser_of(field),
            choices=None if about.several else about.choices or None,
            metavar=about.metavar,
            default=field.default if with_defaults else None,
            help=about.help + default,
        )


def parser_of(field: dataclasses.Field) -> Callable[[str], Any]:
    """Return the function that makes a field's value of the command line's text."""
    about, kind = field.metadata["option"], kind_of(field)
    if about.parse is not None:
        return about.parse
    if about.several:
        return several(about.choices)
    if about.choices:
        return _choice(about)
    return not_empty if kind is str else number(kind, about.bounds)


def given_options(settings: type, args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of a dataclass's options, by field, that have one other than None."""
    values = {name: getattr(args, name, None) for name in option_fields(settings)}
    return {name: value for name, value in values.items() if value is not None}


def check_options(settings: Any) -> None:
    """Refuse an instance of a dataclass with a value of another type, or outside its bounds.

    Raises:
        UsageError: If there is one.
    """
    for name, field in option_fields(type(settings)).items():
        value, about = getattr(settings, name), field.metadata["option"]
        if value is None and field.default is None:
            continue
        _check_kind(name, field, value)
        if about.several:
            check_names(name, listed(value), about.choices)
        elif about.choices and value not in about.choices:
            raise UsageError(
                f"Expected `{name}` to be one of {_choices(about)}. Received: {value!r}."
                f"{did_you_mean(str(value), about.choices)}"
            )
        if about.bounds is not None and value not in about.bounds:
            raise UsageError(
                f"Expected `{name}` to be {_noun(kind_of(field))} {about.bounds}. Received: "
                f"{value!r}."
            )


_KINDS: dict[object, tuple[type, str]] = {
    str: (str, "a text"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    bool: (bool, "true or false"),
    Path: (Path, "a path"),
}


def _check_kind(name, field, value):
    """Refuse a value of another type than the field's, as Python code or a file may give it."""
    kinds = [_KINDS[kind] for kind in _types_of(field) if kind in _KINDS]
    if isinstance(value, bool) and bool not in _types_of(field):
        is_one = False
    else:
        is_one = isinstance(value, tuple(kind for kind, _ in kinds))
    if not is_one:
        words = " or ".join(noun for _, noun in kinds)
        raise UsageError(f"Expected `{name}` to be {words}. Received: {value!r}.")


def _types_of(field):
    is_union = isinstance(field.type, types.UnionType)
    return typing.get_args(field.type) if is_union else (field.type,)


def number(kind: Callable[[str], float], bounds: Bounds) -> Callable[[str], float]:
    """Return an argparse type for a finite number within bounds.

    Args:
        kind: `int` or `float`.
        bounds: Range of the number.
    """

    def parse(text: str) -> float:
        try:
            value = kind(text)
            if value in bounds:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"expected {_noun(kind)} {bounds}, received {text!r}")

    return parse


def not_empty(text: str) -> str:
    """Return a text as it is, for argparse; an empty one is refused, as of an unset variable."""
    if text.strip():
        return text
    raise argparse.ArgumentTypeError(f"expected a text that is not empty, received {text!r}")


def file_or_folder(text: str) -> Path:
    """Return the path of a file or folder, for argparse; no text would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError(
            f"expected the name of a file or folder, received {text!r}; a dot is the current folder"
        )
    return Path(text)


def count_or(word: str) -> Callable[[str], int | str]:
    """Return an argparse type for a number of at least 1, or a word that stands for one."""

    def parse(text: str) -> int | str:
        if text == word:
            return text
        try:
            return int(number(int, AT_LEAST_ONE)(text))
        except argparse.ArgumentTypeError:
            raise argparse.ArgumentTypeError(
                f"expected a whole number {AT_LEAST_ONE}, or {word}, received {text!r}"
            ) from None

    return parse


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgt]i?|)b?", re.IGNORECASE)


def size(text: str) -> int:
    """Return a number of bytes, for argparse: `4GB` is 4·10⁹, `4GiB` is 4·2³⁰."""
    match = _SIZE.fullmatch(text.strip())
    count = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if count < 1:
        raise argparse.ArgumentTypeError(
            f"expected a size such as 500MB, 4GB or 4GiB, received {text!r}"
        )
    return count


def _choice(about: _Option) -> Callable[[str], str]:
    """Return an argparse type for one of the choices."""

    def parse(text: str) -> str:
        if text in about.choices:
            return text
        raise argparse.ArgumentTypeError(
            f"expected one of {_choices(about)}, received {text!r}."
            f"{did_you_mean(text, about.choices)}"
        )

    return parse


def _choices(about: _Option) -> str:
    """Return the choices in words."""
    return ", ".join(about.choices) + (f", or {about.besides}" if about.besides else "")


def several(choices: tuple[str, ...]) -> Callable[[str], str]:
    """Return an argparse type for some of the choices, which it puts into their own order."""

    def parse(text: str) -> str:
        names = listed(text)
        for name in names:
            if name not in choices:
                raise argparse.ArgumentTypeError(
                    f"expected names out of {','.join(choices)}, received {name!r}."
                    f"{did_you_mean(name, choices)}"
                )
        return ",".join(name for name in choices if name in names)

    return parse


def listed(text: str) -> tuple[str, ...]:
    """Return the names in a text that separates them by commas."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


def check_names(option: str, names: tuple[str, ...], choices: tuple[str, ...]) -> None:
    """Refuse a name that is none of the choices.

    Args:
        option: What the names were given for, as an error names it.
        names: The names.
        choices: Those that are allowed.

    Raises:
        UsageError: If there is one.
    """
    for name in names:
        if name not in choices:
            raise UsageError(
                f"Expected each name in `{option}` to be one of {', '.join(choices)}. Received: "
                f"{name!r}."
                f"{did_you_mean(name, choices)}"
            )


def kind_of(field: dataclasses.Field) -> type:
    """Return the type of a field's values, `float` for `float | None`."""
    return typing.cast(type, _types_of(field)[0])


def _noun(kind: object) -> str:
    return "a whole number" if kind is int else "a number"


def _written(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value) or "none"
