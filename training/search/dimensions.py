"""One thing that a search varies: a range of numbers, or a list of values."""

import dataclasses
import math
from typing import Any

from ..options import Bounds

STRENGTH = "strength"

# Of a range: numbers that TensorFlow can hold in 32 bits, with all their digits.
LEAST_HELD, LARGEST_HELD = 1.2e-38, 3.4e38
HELD = Bounds(at_least=LEAST_HELD, at_most=LARGEST_HELD)

# Numbers of a range are tried to so many digits, so that a command can name them again.
DIGITS = 4
# A grid has so many values per factor of ten of a logarithmic range, and of a linear one in all.
_PER_DECADE, _OF_LINEAR = 2, 5


def rounded(value: float) -> float:
    """Return a number to the digits that are tried.

    Example:
        >>> rounded(0.0316227766)
        0.03162
    """
    return float(f"{value:.{DIGITS}g}")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `least` to `largest`.

    Attributes:
        least: The smallest.
        largest: The largest.
        is_log: Whether they are tried evenly on a logarithmic scale, else on a linear one.
        is_whole: Whether they are whole numbers.
    """

    least: float
    largest: float
    is_log: bool = True
    is_whole: bool = False

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and self.least <= value <= self.largest

    def nearest(self, value: Any) -> float:
        """Return the number within the range nearest to a value; the least to what is none."""
        if not isinstance(value, int | float):
            return self.least
        return min(max(value, self.least), self.largest)

    def value(self, number: float) -> float:
        """Return a number within the range in the digits that are tried."""
        return int(number) if self.is_whole else min(max(rounded(number), self.least), self.largest)

    def position(self, value: float) -> float:
        """Return where a value lies: 0 at the least, 1 at the largest; below 0 beneath."""
        scale = math.log if self.is_log else float
        if self.is_log and value <= 0:
            return -math.inf
        return (scale(value) - scale(self.least)) / (scale(self.largest) - scale(self.least))

    def grid(self) -> tuple[float, ...]:
        """Return the values of a grid, both ends among them: 0.001, 0.003162, 0.01, … of a log."""
        if self.is_log:
            steps = math.floor(_PER_DECADE * math.log10(self.largest / self.least) + 1e-9)
            values = [self.least * 10 ** (k / _PER_DECADE) for k in range(steps + 1)]
        else:
            width = (self.largest - self.least) / (_OF_LINEAR - 1)
            values = [self.least + k * width for k in range(_OF_LINEAR)]
        return tuple(
            sorted(
                {self.value(round(v) if self.is_whole else v) for v in values}
                | {self.value(self.largest)}
            )
        )


@dataclasses.dataclass(frozen=True)
class Choices:
    """Values of which one is taken."""

    values: tuple[Any, ...]

    def __contains__(self, value: object) -> bool:
        return value in self.values

    def nearest(self, value: Any) -> Any:
        """Return a value if it is one of them, else the first of them."""
        return value if value in self else self.values[0]


def values_of(dimension: Range | Choices) -> tuple[Any, ...]:
    """Return the values of a list, or those that a grid has of a range."""
    return dimension.grid() if isinstance(dimension, Range) else dimension.values
