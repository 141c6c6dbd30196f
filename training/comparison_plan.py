"""Which runs a comparison consists of."""

import dataclasses
from typing import Any

from keras_mas.errors import UsageError

from .options import check_names, listed, option
from .settings import (
    FOUND,
    OWN_METHOD,
    SEEDS,
    STRENGTHS,
    Recipe,
    Settings,
    check_options_act,
)

# More are a slip of the pen, and a comparison that would never end.
_MOST_SEEDS = 1000


@dataclasses.dataclass(frozen=True)
class ComparisonPlan:
    """Which runs a comparison consists of, and what its differences are taken from.

    Attributes:
        methods: Names of methods, separated by commas, each once.
        seeds: Seeds, separated by commas, each once, 1,000 at most; `0-9` stands for 0 to 9.
        strength: λ of all methods, as in `3`; or of some, as in `mas=auto,ewc=100`; None for the
            default of each method.
        search: Whether λ of each method that has one is searched for instead.
        against: The method that differences are taken from: `first`, `best` by average accuracy,
            or its name.

    Raises:
        UsageError: If one of them cannot be read, or a name or seed occurs twice.
    """

    methods: str = option(
        "mas,finetune",
        f"methods of continual learning, as in mas,finetune: those that `keras-mas train --help` "
        f"lists, or {OWN_METHOD}",
        metavar="NAMES",
    )
    seeds: str = option("0,1,2", "seeds, as in 0,1,2 or 0-9", metavar="SEEDS")
    strength: str | None = option(
        None,
        "λ of all methods, as in 3 or auto, or of each, as in mas=auto,ewc=100 (default: the "
        "method's own)",
        metavar="λ",
    )
    search: bool = option(
        False, "search λ of each method that has one, on validation data, with the first seed"
    )
    against: str = option(
        "first",
        "method that differences are taken from: first, best, or its name",
        metavar="METHOD",
    )

    def __post_init__(self):
        names, strengths = self.method_names, self.strengths
        check_names("--strength", tuple(name for name in strengths if name), names)
        if self.against not in ("first", "best"):
            check_names("--against", (self.against,), names)
        if self.search and strengths:
            raise UsageError(
                f"Expected either --search or --strength. Received: both, '{self.strength}' for "
                "the latter. Leave one out."
            )
        self.seed_numbers  # noqa: B018 (refuses what is no seed)

    @property
    def method_names(self) -> tuple[str, ...]:
        """The names in `methods`."""
        names = listed(self.methods)
        if not all(names):
            raise UsageError(
                "Expected names of methods in `--methods`, with one comma between two of them. "
                f"Received: '{self.methods}'."
            )
        return _different("--methods", "method", names)

    @property
    def seed_numbers(self) -> tuple[int, ...]:
        """The seeds in `seeds`."""
        ranges = [_range(text) for text in listed(self.seeds)]
        count = sum(map(len, ranges))
        if count > _MOST_SEEDS:
            raise UsageError(
                f"Expected at most {_MOST_SEEDS:,} seeds in `--seeds`, each of which is a run of "
                f"every method. Received: {count:,} in '{self.seeds}'. Name fewer."
            )
        return _different("--seeds", "seed", [seed for numbers in ranges for seed in numbers])

    @property
    def strengths(self) -> dict[str | None, float | str]:
        """λ by the name of the method; by None for all methods."""
        if self.strength is None:
            return {}
        pairs = [text.rpartition("=") for text in listed(self.strength) or ("",)]
        if len(pairs) > 1 and not all(equals for _, equals, _ in pairs):
            raise UsageError(
                "Expected one --strength for all methods, as in 3, or one for each, as in "
                f"mas=1,ewc=100. Received: '{self.strength}'."
            )
        _different("--strength", "method", [name for name, *_ in pairs])
        return {name or None: _strength(text) for name, _, text in pairs}

    def contestants(self, recipe: Recipe, **common: Any) -> list[Settings]:
        """Return the settings of each method with the first seed.

        Args:
            recipe: How each task is trained.
            **common: Further fields of `Settings`.

        Raises:
            UsageError: If there is no such method, or λ is given for none that has one.
        """
        strengths, chosen = self.strengths, []
        for name in self.method_names:
            plain = Settings(method=name, seed=self.seed_numbers[0], recipe=recipe, **common)
            of_all = strengths.get(None) if plain.has_strength else None
            check_options_act({"strength": strengths.get(name)}, (name,))
            given = strengths.get(name, of_all)
            chosen.append(plain if given is None else dataclasses.replace(plain, strength=given))
        of_any = {"strength": strengths.get(None), "search": self.search}
        check_options_act(of_any, self.method_names)
        return chosen


def _different(option, what, values):
    """Return values as a tuple; refuse none at all, and one that occurs twice."""
    if not values:
        raise UsageError(f"Expected at least one {what} in `{option}`. Received: none.")
    twice = [value for value in values if list(values).count(value) > 1]
    if twice:
        raise UsageError(
            f"Expected each {what} once in `{option}`. Received: '{twice[0]}' more than once."
        )
    return tuple(values)


def _range(text):
    first, dash, last = text.partition("-")
    try:
        numbers = range(int(first), int(last if dash else first) + 1)
    except ValueError:
        numbers = range(0)
    if not numbers or numbers[-1] not in SEEDS:
        raise UsageError(
            f"Expected --seeds to be whole numbers {SEEDS} and ranges of them, as in 0,1,2 or "
            f"0-9. Received: {text!r}."
        )
    return numbers


def _strength(text):
    try:
        return text if text.startswith(FOUND) else float(text)
    except ValueError:
        raise UsageError(
            f"Expected --strength to be {STRENGTHS}, or one for each method as in "
            f"mas=1,ewc=100. Received: {text!r}."
        ) from None
