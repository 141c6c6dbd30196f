"""One pass over data that several processes share: each measures its batches, and sums are added.

Every process goes through the same data in the same order. Ω of the whole comes out on each of
them, so that what follows, such as merging it with that of earlier tasks, needs no exchange.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable

import numpy as np

from ..context import holding


@dataclasses.dataclass(frozen=True)
class SharedPass:
    """The part of one process.

    Attributes:
        process: Its number, from 0.
        processes: Of how many.
        total: Returns the sum over all processes of an array, on each of them.
    """

    process: int = 0
    processes: int = 1
    total: Callable[[np.ndarray], np.ndarray] = lambda array: array

    def has(self, batch: int) -> bool:
        """Return whether this process measures a batch, by its number from 0."""
        return batch % self.processes == self.process

    def totals(self, sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the sums of all processes; a process without a batch has zeros."""
        return {name: self.total(array) for name, array in sums.items()}


_ALONE = SharedPass()

_SHARED = contextvars.ContextVar("shared_pass", default=_ALONE)


def sharing(part: SharedPass) -> contextlib.AbstractContextManager[None]:
    """Have every pass over data inside the block be shared; all processes make the same passes."""
    return holding(_SHARED, part)


def current() -> SharedPass:
    """Return the part of this process in a pass that begins now: all of it, unless shared."""
    return _SHARED.get()
