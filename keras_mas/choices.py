"""The names of choices; importing them costs nothing, so that the command line may list them."""

import math
from typing import Any

# Where the penalty acts: in the loss, or in a proximal step after the optimizer's.
PENALTIES = ("in_loss", "decoupled")


# The strength that is found when a `fit` begins (`keras_mas.auto`), and the κ that it has unless
# another one is given; results/auto-strength.md says how it was chosen.
AUTO = "auto"
KAPPA = 30.0


def kappa_of(strength: Any) -> float | None:
    """Return κ if a strength is "auto" or, for another κ, as in "auto:100"; None for a number.

    Raises:
        ValueError: If it is another text, or κ is not a positive, finite number.

    Example:
        >>> kappa_of("auto:100"), kappa_of(1.0)
        (100.0, None)
    """
    if not isinstance(strength, str):
        return None
    name, colon, text = strength.partition(":")
    try:
        kappa = float(text) if colon else KAPPA
    except ValueError:
        kappa = math.nan
    if name != AUTO or not 0 < kappa < math.inf:
        raise ValueError(
            f"Expected a strength λ ≥ 0, or {AUTO}, or {AUTO}:KAPPA with a number > 0, which is "
            f"{KAPPA:g} by default. Received: {strength!r}."
        )
    return kappa


def auto_text(kappa: float) -> str:
    """Return the strength that `kappa_of` reads a κ from."""
    return AUTO if kappa == KAPPA else f"{AUTO}:{kappa!r}".removesuffix(".0")


def checked_penalty(name: str) -> str:
    """Return a name out of `PENALTIES` as it is; ValueError for any other."""
    if name not in PENALTIES:
        raise ValueError(f"Expected a penalty out of {', '.join(PENALTIES)}. Received: {name!r}.")
    return name


# What becomes of the moving statistics of batch normalization, which no penalty holds.
BATCH_NORM = ("freeze", "update")
