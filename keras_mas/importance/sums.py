"""Partial sums of importance, so that several machines can share one pass."""

import dataclasses

import numpy as np

from ..arrays import load_arrays, save_arrays

_SUM = "sum/"  # what the key of a sum begins with in a saved file; the path of the weight follows


@dataclasses.dataclass(frozen=True)
class ImportanceSums:
    """Σ_k |g_k| by weight path over some examples, and their number N; Ω is one over the other.

    Shards of the data are measured apart, saved, loaded, added in any order, and finished:

        measure_sums(model, shard).save("shard-3.npz")
        omega = (ImportanceSums.load("shard-1.npz") + ImportanceSums.load("shard-3.npz")).mean()

    Attributes:
        sums: Dict from weight path to an array of the weight's shape.
        examples: N ≥ 1.
    """

    sums: dict
    examples: int

    def __post_init__(self):
        """Refuse what is no sum of magnitudes over examples, with a ValueError."""
        if self.examples < 1:
            raise ValueError(f"Expected at least one example. Received: {self.examples}.")
        for path, a in self.sums.items():
            if not np.all(np.isfinite(a) & (a >= 0)):
                raise ValueError(
                    f"Expected finite sums of magnitudes, ≥ 0. Received: others in '{path}'. "
                    "Measure this shard again."
                )

    def __add__(self, other):
        """Return the sums over the examples of both; ValueError if they are of two models."""
        shapes = [{path: a.shape for path, a in part.sums.items()} for part in (self, other)]
        if shapes[0] != shapes[1]:
            strange = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))[0]
            raise ValueError(
                "Expected sums over the weights of one model. Received: sums that differ in "
                f"'{strange[0]}', of shape {strange[1]} in one of them. Measure every shard with "
                "the same model."
            )
        added = {path: a + other.sums[path] for path, a in self.sums.items()}
        return ImportanceSums(added, self.examples + other.examples)

    def mean(self):
        """Return Ω by weight path."""
        return {path: a / a.dtype.type(self.examples) for path, a in self.sums.items()}

    def save(self, path):
        """Write the sums and their number to an `.npz` file.

        Args:
            path: File to write, ending in `.npz`.

        Raises:
            ValueError: If the path does not end in `.npz`.
        """
        sums = {_SUM + path: a for path, a in self.sums.items()}
        save_arrays(path, {"examples": np.array(self.examples), **sums})

    @classmethod
    def load(cls, path):
        """Read what `save` wrote; ValueError if it is something else."""
        return load_arrays(path, cls._of, "sums written by `ImportanceSums.save`")

    @classmethod
    def _of(cls, arrays):
        examples = int(arrays.pop("examples"))
        if examples < 1 or not all(key.startswith(_SUM) for key in arrays):
            raise ValueError("no examples, or arrays of another kind")
        return cls({key.removeprefix(_SUM): a for key, a in arrays.items()}, examples)
