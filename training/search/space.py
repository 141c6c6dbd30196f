"""What a search tries: which options it varies, in which ranges, how, and how often."""

import argparse
import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from keras_mas.errors import UsageError

from ..first_task import digest
from ..options import (
    AT_LEAST_ONE,
    NOT_NEGATIVE,
    check_options,
    option,
    option_fields,
)
from ..settings import Settings
from ..wording import did_you_mean
from .dimensions import DIGITS, HELD, STRENGTH, Choices, Range, values_of
from .reading import read_space

# File systems take names of 255 bytes, and a seed may be added. Longer ones are cut.
_LONGEST, _CUT = 230, 200

TUNERS = ("bayesian", "random", "grid")


def tuner_name(text: str) -> str:
    """Return the name of a tuner, out of `TUNERS`; an argparse type."""
    if text == "hyperband":
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(TUNERS)}, received 'hyperband', whose budget is a number "
            "of epochs: with fewer epochs a task is forgotten less, so that its short trials say "
            "nothing about λ of long ones. Trials that will hardly win are stopped between tasks "
            "instead"
        )
    if text not in TUNERS:
        raise argparse.ArgumentTypeError(
            f"expected one of {', '.join(TUNERS)}, received {text!r}.{did_you_mean(text, TUNERS)}"
        )
    return text


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """What a search tries, how it chooses, and what it is to find.

    Attributes:
        tuner: Name out of `TUNERS`.
        trials: How many settings are tried, λ = 0 not counted.
        strength_min: Smallest λ, > 0, since the scale is logarithmic; 32 bits hold it.
        strength_max: Largest λ; 32 bits hold it too.
        vary: What else is varied, as `read_space` reads it; None for nothing.
        executions_per_trial: How many seeds, from that of the settings on, each trial is run with.
        max_forgetting: If given, the highest accuracy is sought among settings that forget no more.
        complete_trials: Whether every trial learns all tasks, even if it is not expected to win.

    Raises:
        UsageError: If a number is out of range, the tuner is unknown, or `vary` cannot be read.
    """

    tuner: str = option("bayesian", "bayesian, random or grid", choices=TUNERS, parse=tuner_name)
    trials: int = option(20, "settings to try, λ = 0 not counted", bounds=AT_LEAST_ONE)
    strength_min: float = option(
        1e-3, "smallest λ; the scale is logarithmic", bounds=HELD, metavar="λ"
    )
    strength_max: float = option(1e3, "largest λ", bounds=HELD, metavar="λ")
    vary: str | None = option(
        None,
        "other options to vary, as in 'learning-rate=1e-4..1e-2 penalty=in_loss,decoupled'; or a "
        "TOML file of them",
        metavar="SPACE",
    )
    executions_per_trial: int = option(
        1, "seeds that each trial is run with", bounds=AT_LEAST_ONE, metavar="N"
    )
    max_forgetting: float | None = option(
        None,
        "seek the highest accuracy with at most this forgetting (default: no such bound)",
        bounds=NOT_NEGATIVE,
        metavar="X",
    )
    complete_trials: bool = option(
        False, "learn all tasks in every trial, even if it is not expected to win"
    )

    def __post_init__(self):
        check_options(self)
        if self.strength_min >= self.strength_max:
            raise UsageError(
                "Expected --strength-min below --strength-max. Received: "
                f"{self.strength_min:g} and {self.strength_max:g}."
            )
        self._varied  # noqa: B018 (refuses what cannot be read)

    @property
    def _varied(self) -> dict[str, Range | Choices]:
        """What is varied besides λ, by the name of the option."""
        return {} if self.vary is None else read_space(self.vary)

    def dimensions(self, settings: Settings) -> dict[str, Range | Choices]:
        """Return what is varied, by the name of the option, around given settings.

        Raises:
            UsageError: If there is nothing to vary, or a grid has more settings than trials.
        """
        varied = self._varied
        methods = values_of(varied["method"]) if "method" in varied else (settings.method,)
        of_methods = [dataclasses.replace(settings, method=name) for name in methods]
        found: dict[str, Range | Choices] = {}
        if any(each.has_strength for each in of_methods):
            found[STRENGTH] = Range(self.strength_min, self.strength_max)
        found |= varied
        if not found:
            raise UsageError(
                f"Method '{settings.method}' has no penalty, so there is no λ to search for: all "
                f"trials would be the same. Use `keras-mas train --method {settings.method}`, or "
                "say by --vary what else is to be tried."
            )
        combinations = _combinations(found)
        if self.tuner == "grid" and combinations > self.trials:
            raise UsageError(
                f"Expected as many --trials as the grid has settings, {combinations}: fewer would "
                f"leave the largest values out. Received: {self.trials}. Take `--trials "
                f"{combinations}`, narrower ranges, or another --tuner."
            )
        return found

    def count(self, dimensions: Mapping[str, Range | Choices]) -> int:
        """Return how many settings are tried: no more than there are, in a grid or of lists."""
        is_endless = any(isinstance(each, Range) for each in dimensions.values())
        if self.tuner != "grid" and is_endless:
            return self.trials
        return min(self.trials, _combinations(dimensions))

    @property
    def decides(self) -> dict[str, Any]:
        """What decides on the trials, for JSON; not their number: a longer search continues."""
        decides = {name: value for name, value in vars(self).items() if name != "trials"}
        varied = {name: dataclasses.asdict(each) for name, each in self._varied.items()}
        return json.loads(json.dumps(decides | {"vary": varied}))


def _combinations(dimensions):
    """Return how many settings there are if of each range those of a grid are taken."""
    return math.prod(len(values_of(each)) for each in dimensions.values())


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """Return settings with other values of some options, by name."""
    own = {name: values[name] for name in values if name in option_fields(Settings)}
    recipe = {name: values[name] for name in values if name not in own}
    return dataclasses.replace(
        settings, **own, recipe=dataclasses.replace(settings.recipe, **recipe)
    )


def relevant_values(settings: Settings, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that make a difference: a method without λ, for example, takes none."""
    chosen = with_values(settings, values)
    used = {STRENGTH: chosen.has_strength, "penalty": chosen.has_penalty}
    return {name: value for name, value in values.items() if used.get(name, True)}


def nearest_values(settings: Settings, dimensions: Mapping[str, Range | Choices]) -> dict[str, Any]:
    """Return the values of what is varied that settings have, or the nearest to them.

    The nearest to a number outside a range is an end of it, and to one that is none of a list of
    values the first of them.
    """
    own = option_fields(Settings)
    return {
        name: each.nearest(getattr(settings if name in own else settings.recipe, name))
        for name, each in dimensions.items()
    }


def name_of_values(values: Mapping[str, Any]) -> str:
    """Return values of options as the name of a folder, which no other values have.

    A name that cannot tell them all, for a folder's has few characters, ends in a hash of them.
    """
    text = "-".join(f"{name}-{value}" for name, value in values.items())
    name = re.sub(r"[^\w.+-]", "_", text)
    if name == text and len(name.encode()) <= _LONGEST:
        return name
    return f"{name.encode()[:_CUT].decode(errors='ignore')}-{digest(dict(values))}"


def shown_values(values: Mapping[str, Any]) -> str:
    """Return values of options in a line, such as `λ=0.5 penalty=decoupled`."""
    return " ".join(
        f"{'λ' if name == STRENGTH else name.replace('_', '-')}="
        + (f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value))
        for name, value in values.items()
    )
