"""Examples that are still to be decoded, and their decoding in parallel."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from keras_mas.errors import UsageError

from .errors import BrokenFileError, DataError
from .inputs import Row, digest

# Examples that are decoded ahead of their use, for each core.
_AHEAD = 4


@dataclass(frozen=True)
class Example:
    """An example that is still to be decoded.

    Attributes:
        name: Its file, or its place in a data set, for error messages.
        decode: Returns its input, of the final shape; raises BrokenFileError if it cannot.
    """

    name: str
    decode: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Encoded:
    """Examples of one split that are still to be decoded.

    Attributes:
        where: What they belong to, for error messages.
        count: How many there are, N.
        fingerprint: A text that changes when an example changes, or the way in which it is decoded;
            the same wherever the examples lie.
        examples: Returns an iterator over the examples from a row on.
        row: Type and shape of a decoded input; None if one must be decoded to know.
        identity: A text that, with the fingerprint, tells these examples from all others on this
            machine.
    """

    where: str
    count: int
    fingerprint: str
    examples: Callable[[int], Iterator[Example]]
    row: Row | None = None
    identity: str = ""

    @property
    def key(self) -> str:
        """A name for what is kept of the decoded examples on this machine."""
        return digest(self.fingerprint, self.identity) if self.identity else self.fingerprint

    def first_row(self, skip_broken: bool) -> Row:
        """Return type and shape of an input by decoding the first one.

        Args:
            skip_broken: Whether to take the first one that can be decoded.

        Raises:
            DataError: If it cannot be decoded, or there is none.
        """
        for example in self.examples(0):
            try:
                return Row.of(example.decode())
            except BrokenFileError:
                if not skip_broken:
                    raise
        raise DataError(
            f"Expected at least one example that can be decoded. Received: none in {self.where}. "
            "Repair the files."
        )

    def decoded(self, first: int, row: Row) -> Iterator[np.ndarray | BrokenFileError]:
        """Yield all inputs from a row on, or the error that says why one cannot be decoded.

        Args:
            first: The row.
            row: Type and shape of an input.

        Raises:
            UsageError: If an input has another shape.
            DataError: If there are fewer than N examples.
        """
        number = first
        examples = itertools.islice(self.examples(first), self.count - first)
        for example, outcome in _in_parallel(examples):
            if not isinstance(outcome, BrokenFileError) and Row.of(outcome) != row:
                raise UsageError(
                    f"Expected images of one size. Received: {_size(row)} in "
                    f"{next(self.examples(0)).name} and {_size(Row.of(outcome))} in "
                    f"{example.name}. Set `image_size` in the TOML file, for example "
                    "image_size = 64."
                )
            number += 1
            yield outcome
        if number < self.count:
            raise DataError(
                f"Expected {self.count} examples in {self.where}. Received: {number}, after which "
                "the data end. Prepare the data set again."
            )


def _size(row: Row) -> str:
    return "x".join(str(extent) for extent in row.shape)


def _in_parallel(examples):
    """Yield every example with its input or BrokenFileError, in order; a thread per core."""
    cores = os.cpu_count() or 1
    waiting: deque[tuple[Example, Future]] = deque()
    with ThreadPoolExecutor(cores) as pool:
        for example in examples:
            waiting.append((example, pool.submit(_outcome, example)))
            if len(waiting) == _AHEAD * cores:
                example, future = waiting.popleft()
                yield example, future.result()
        for example, future in waiting:
            yield example, future.result()


def _outcome(example):
    try:
        return example.decode()
    except BrokenFileError as error:
        return error
