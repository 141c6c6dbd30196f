"""λ of a task without the data of earlier ones: maximal plasticity, then stability decay.

The rule of De Lange et al., "A continual learning survey: Defying forgetting in classification
tasks", TPAMI 2021, arXiv:1909.08383, Algorithm 1. A task is first learned with λ = 0, and A* is the
accuracy that it then has on its own validation data: its maximal plasticity. Then it is learned
again from the same weights with a large λ, which is halved until

    A ≥ (1 − p) A*

The λ that is reached is the first that is tried for the next task. Nothing is read but the new
task's own training and validation data.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from keras_mas.choices import auto_text

DECAY = "decay"

# The margin p, unless another one is given; results/stability-decay.md says how it was chosen.
MARGIN = 0.01

# The first λ is that of "auto" with this κ, a hundred times the usual one: large for every network,
# learning rate and number of steps, and never more than the optimizer can follow.
_START = auto_text(3000.0)

# A λ that was halved so often is as good as 0.
_MOST_TRIES = 30


@dataclasses.dataclass(frozen=True)
class Decayed:
    """How λ of a task was found.

    Attributes:
        best: A*, the accuracy on the task's validation data with λ = 0.
        tries: Each λ that was tried with its accuracy, in order; the last one is taken.
    """

    best: float
    tries: list[tuple[float, float]]

    @property
    def strength(self) -> float:
        """The λ that was taken."""
        return self.tries[-1][0]


def margin_of(strength: Any) -> float | None:
    """Return p if a strength is "decay" or, for another p, as in "decay:0.05"; None otherwise.

    Raises:
        ValueError: If p is not a number above 0 and below 1.

    Example:
        >>> margin_of("decay:0.05"), margin_of("auto"), margin_of(1.0)
        (0.05, None, None)
    """
    if not isinstance(strength, str) or not strength.startswith(DECAY):
        return None
    name, colon, text = strength.partition(":")
    try:
        margin = float(text) if colon else MARGIN
    except ValueError:
        margin = math.nan
    if name != DECAY or not 0 < margin < 1:
        raise ValueError(
            f"Expected {DECAY}, or {DECAY}:MARGIN with a number above 0 and below 1 in place of "
            f"{MARGIN:g}. Received: {strength!r}."
        )
    return margin


def decay_text(margin: float) -> str:
    """Return the strength that `margin_of` reads a margin from."""
    return DECAY if margin == MARGIN else f"{DECAY}:{margin!r}"


def strength_of_method(strength: float | str) -> float | str:
    """Return the λ that a method begins with: as it was asked for, or the first that is tried."""
    return strength if margin_of(strength) is None else _START


def stability_decay(start: float, margin: float, accuracy: Callable[[float], float]) -> Decayed:
    """Halve λ until the new task is learned nearly as well as without a penalty.

    Args:
        start: The first λ that is tried, > 0.
        margin: p, which share of the accuracy that λ = 0 reaches may be lost.
        accuracy: Function from λ to the accuracy on the task's validation data, of the task
            learned with this λ from the weights that earlier tasks have left.

    Returns:
        The λ that is taken, with all that were tried. If none of them is good enough it is 0.

    Example:
        >>> stability_decay(8.0, 0.1, lambda strength: 1 / (1 + strength / 10)).tries[-1]
        (1.0, 0.9090909090909091)
    """
    best = accuracy(0.0)
    tries: list[tuple[float, float]] = []
    for halvings in range(_MOST_TRIES):
        strength = start / 2**halvings
        tries.append((strength, accuracy(strength)))
        if tries[-1][1] >= (1.0 - margin) * best:
            return Decayed(best, tries)
    return Decayed(best, [*tries, (0.0, best)])
