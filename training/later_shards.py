"""Ω of later inputs that are too many for one process: a map over their files, and a reduce.

The files are read twice. First each shard is surveyed: what is in it, and the keys of its inputs,
8 bytes each, which are all that comes together in one place. There inputs that are equal to another
shard's are left out, and as many drawn as are asked for, so that the result is that of one process.
Then each shard is read again, and its inputs are measured, a few at a time.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from keras_mas.serving.traffic import Asked, Collector, Counts, InputForm

from .distributed import SentFile
from .later_inputs import MOST_TESTED, HeadSums, Measuring, add_sums
from .saved_tasks import load_network

# Inputs that are measured together, and so are in memory at a time.
_AT_A_TIME = 1024

Shard = tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class Reading:
    """How a shard is read.

    Attributes:
        read: Function that adds the inputs of a file to a collector.
        form: What inputs are.
        seed: Of the drawing.
    """

    read: Callable[[Path, Collector], None]
    form: InputForm
    seed: int

    def into(self, collector: Collector, shard: Shard) -> None:
        """Read the files of a shard."""
        for path in shard:
            self.read(path, collector)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The inputs of a shard that are measured.

    Attributes:
        shard: Its files.
        keys: The keys of the inputs, uint64 `[N]`.
        sampled: The largest key of those that are returned to measure drift; -1 for none.
    """

    shard: Shard
    keys: np.ndarray
    sampled: int = -1

    def __str__(self) -> str:
        return named(self.shard)


def named(shard: Shard) -> str:
    """Return how a shard is called in messages: by its only file, or the first of several."""
    more = f" and {len(shard) - 1} more" if len(shard) > 1 else ""
    return f"{shard[0]}{more}"


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the inputs of one shard or of all say.

    Attributes:
        sums: Σ_k |g_k| of every head.
        not_finite: How many inputs could not be measured.
        sample: Inputs to measure drift with, by their keys.
    """

    sums: HeadSums
    not_finite: int
    sample: dict[int, np.ndarray]


def survey(shard: Shard, reading: Reading) -> tuple[Counts, np.ndarray]:
    """Return what a shard holds, and the keys of its distinct inputs, in order."""
    collector = Collector(reading.form, limit=0, seed=reading.seed)
    reading.into(collector, shard)
    return collector.counted(), collector.keys


def choose(
    surveys: Iterable[tuple[Counts, np.ndarray]],
    shards: Sequence[Shard],
    limit: int | None,
    sample: int = MOST_TESTED,
) -> tuple[Counts, list[Chosen]]:
    """Draw distinct inputs from all shards, as a `Collector` does that reads one after the other.

    Args:
        surveys: What `survey` returned for each shard.
        shards: Files of each shard.
        limit: How many inputs are drawn at most; None for all.
        sample: How many of them are returned to measure drift.

    Returns:
        What has been read from all shards, and for each of them what is measured there: an input
        that several shards hold in the first of them.
    """
    read, parts = Counts(), []
    for counts, keys in surveys:
        read.count(counts)
        parts.append(keys)
    keys = np.concatenate([np.zeros(0, np.uint64), *parts])
    distinct, first = np.unique(keys, return_index=True)
    read.duplicates += len(keys) - len(distinct)
    drawn = first[:limit]
    largest = int(distinct[:limit][:sample][-1]) if len(drawn) and sample else -1
    drawn.sort()  # in place: from now on in the order in which they were read
    ends = np.cumsum([len(part) for part in parts])
    of_shards = np.split(keys[drawn], np.searchsorted(drawn, ends[:-1]))
    chosen = [Chosen(*each, largest) for each in zip(shards, of_shards, strict=True)]
    return read, chosen


def measure(chosen: Chosen, reading: Reading, method: str, network: SentFile) -> Measured:
    """Measure the chosen inputs of a shard.

    Args:
        chosen: Which they are.
        reading: How the shard is read.
        method: Name of the run's method.
        network: The file of its network.

    Raises:
        RuntimeError: If the shard holds other inputs than when it was surveyed.
    """
    measuring = network.loaded(lambda path: Measuring(method, load_network(path)))
    collector = _Measuring(chosen, reading, measuring)
    if len(chosen.keys):
        reading.into(collector, chosen.shard)
        collector.measure()
    if collector.found != len(chosen.keys):
        raise RuntimeError(
            f"Expected {len(chosen.keys)} inputs in '{chosen}', as when it was read before. "
            f"Received: {collector.found}. Run the command again when nothing writes to it."
        )
    return Measured(collector.sums, collector.not_finite, collector.sample)


def measured(parts: Iterable[Measured]) -> Measured:
    """Return what all shards say; sums are added in the order of the shards."""
    sums: HeadSums = {}
    sample: dict[int, np.ndarray] = {}
    not_finite = 0
    for part in parts:
        add_sums(sums, part.sums)
        not_finite += part.not_finite
        sample |= part.sample
    return Measured(sums, not_finite, dict(sorted(sample.items())))


class _Measuring(Collector):
    """Measures chosen inputs while they are read.

    Attributes:
        found: How many of them there were.
        sums: As of `Measured`, as are the rest.
    """

    def __init__(self, chosen, reading, measuring):
        super().__init__(reading.form, seed=reading.seed)
        self._chosen, self._measuring = chosen, measuring
        self._keys = set(chosen.keys.tolist())
        self._waiting = []
        self.found, self.not_finite = 0, 0
        self.sums, self.sample = {}, {}

    def take(self, key, value, head):
        if key in self._keys:
            self.found += 1
            self._waiting.append((key, value, head))
            if len(self._waiting) == _AT_A_TIME:
                self.measure()

    def measure(self):
        """Measure what has been read."""
        if not self._waiting:
            return
        keys, values, heads = zip(*self._waiting, strict=True)
        self._waiting.clear()
        asked = Asked(np.stack(values), list(heads))
        kept = self._measuring.measurable(asked)
        self.not_finite += int(np.sum(~kept))
        if kept.any():
            add_sums(self.sums, self._measuring.sums(asked.only(kept)))
        for key, value, keep in zip(keys, values, kept, strict=True):
            if keep and key <= self._chosen.sampled:
                self.sample[key] = value
