"""Where decoded inputs are kept: in memory as long as they fit under a limit, then on disk."""

import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from keras_mas.errors import UsageError

from ..available_memory import machine_memory, require_memory
from ..wording import amount
from .cache import CachedArray, read_row
from .encoded import Encoded
from .errors import BrokenFileError
from .inputs import Inputs, MemoryArray, Row


def default_directory() -> Path:
    """Return the user's cache folder: `$XDG_CACHE_HOME/keras_mas`, or `~/.cache/keras_mas`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "keras_mas"


# Called with what is decoded, the folder that it is kept in (None for memory), how many inputs have
# been decoded, and of how many.
OnDecoded = Callable[[str, Path | None, int, int], object]


def default_memory() -> int:
    """Return how many bytes decoded inputs may take if nothing is said: a quarter of all."""
    return machine_memory() // 4


class Store:
    """Keeps the decoded inputs of a stream: in memory, or in a folder for this run and later ones.

    Args:
        memory: Bytes of memory for all inputs together; None for a quarter of the machine's.
        directory: Folder for inputs that do not fit; None for `default_directory()`. It takes the
            size of the decoded inputs, 150 kB for an image of 224x224, until it is removed.
        skip_broken: Whether to leave out what cannot be decoded.
        on_decoded: Called after every input that was decoded.
        batch_size: How many inputs will be read at once, as far as that is known, so that a memory
            which is too small for them is refused before anything is decoded.

    Attributes:
        left_out: What was left out, and why: a line for each file.
        is_used: Whether anything was to be decoded.
    """

    def __init__(
        self,
        memory: int | None = None,
        directory: str | Path | None = None,
        skip_broken: bool = False,
        on_decoded: OnDecoded = lambda *_: None,
        batch_size: int = 1,
    ):
        self.memory = default_memory() if memory is None else memory
        self.directory = default_directory() if directory is None else Path(directory)
        self.skip_broken = skip_broken
        self.on_decoded = on_decoded
        self.batch_size = batch_size
        self.left_out: list[str] = []
        self.is_used = False
        self._free = self.memory

    def reserve(self, nbytes: int) -> bool:
        """Return whether so many bytes fit into what is left of the memory, and take them if so."""
        self.is_used = True
        fits = nbytes <= self._free
        self._free -= nbytes if fits else 0
        return fits

    def keep(self, encoded: Encoded, in_memory: bool | None = None) -> tuple[Inputs, np.ndarray]:
        """Decode what has not been decoded before, in parallel, and keep it.

        Args:
            encoded: The examples.
            in_memory: Where to keep them; by default in memory, if they fit.

        Returns:
            The inputs, and those of their rows that could be decoded, `[n]`.

        Raises:
            UsageError: If the inputs differ in size, there is no room for them, or the memory is
                too small for a single one, or for a batch of those that it cannot hold.
            DataError: If an example cannot be decoded, unless such examples are left out.
        """
        self.is_used = True
        folder = self.directory / encoded.key
        row = encoded.row if encoded.row is not None else read_row(folder)
        row = row if row is not None else encoded.first_row(self.skip_broken)
        if row.nbytes > self.memory:
            raise UsageError(
                f"Expected memory for one input of {encoded.where}, {amount(row.nbytes)}. "
                f"Received: {amount(self.memory)}. Raise `--cache-memory`, or set a smaller "
                "`image_size` in the TOML file."
            )
        if in_memory is None:
            in_memory = self.reserve(encoded.count * row.nbytes)
        cached = CachedArray(folder, encoded.count, row, encoded.fingerprint, self.memory)
        inputs: Inputs = cached
        if not in_memory:
            cached.check_batch(self.batch_size)
            broken = self._on_disk(cached, encoded, row)
        else:
            inputs, broken = self._in_memory(cached, encoded, row)
        self._leave_out(broken)
        return inputs, np.setdiff1d(np.arange(encoded.count), list(broken))

    def _in_memory(self, cached, encoded, row):
        require_memory(
            encoded.count * row.nbytes,
            f"{encoded.count:,} inputs of {encoded.where}",
            "Lower `--cache-memory`, so that they are kept on disk.",
        )
        if not cached.missing():  # an earlier run had less memory
            array, broken = cached.read(np.arange(len(cached))), cached.broken()
        else:
            array, broken = row.empty(encoded.count), {}
            for index, values in enumerate(self._decoded(encoded, 0, row, broken, None)):
                array[index] = values
        return MemoryArray(array, encoded.fingerprint), broken

    def _on_disk(self, cached, encoded, row):
        if cached.missing():
            with cached.writing(encoded.where) as missing:
                broken: dict[int, str] = {}
                position: int | None = None
                for shard in missing:
                    if shard.start != position:
                        inputs = self._decoded(encoded, shard.start, row, broken, self.directory)
                    shard.write(itertools.islice(inputs, len(shard)), broken)
                    position = shard.stop
        return cached.broken()

    def _decoded(
        self,
        encoded: Encoded,
        first: int,
        row: Row,
        broken: dict[int, str],
        directory: Path | None,
    ) -> Iterator[np.ndarray]:
        """Yield the inputs from a row on; zeros for one that is broken and noted as such."""
        for number, outcome in enumerate(encoded.decoded(first, row), first):
            if isinstance(outcome, BrokenFileError):
                if not self.skip_broken:
                    raise outcome
                broken[number] = outcome.reason
                outcome = np.zeros(row.shape, row.dtype)
            self.on_decoded(encoded.where, directory, number + 1, encoded.count)
            yield outcome

    def _leave_out(self, broken):
        for reason in broken.values():
            if not self.skip_broken:
                raise BrokenFileError(reason)
            warnings.warn(f"left out: {reason}", stacklevel=1)
            self.left_out.append(reason)
