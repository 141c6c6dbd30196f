"""Partial sums of importance, so that several machines can share one pass over the data."""

import dataclasses
import os

import numpy as np

from ..arrays import load_arrays, save_arrays

_SUM = "sum/"  # what the key of a sum in a saved file begins with; the name of the weight follows


@dataclasses.dataclass(frozen=True)
class ImportanceSums:
    """Σ_k |g_k| of every weight over some examples, and their number N; Ω is one over the other.

    Each machine measures a shard of the data and saves its sums. Added in any order, they give the
    importance over all data:

        measure_sums(model, shard).save("shard-3.npz")
        omega = (ImportanceSums.load("shard-1.npz") + ImportanceSums.load("shard-3.npz")).mean()

    Attributes:
        sums: Dict from the name of a weight, as in `compute_importance`, to an array of the
            weight's shape.
        examples: N ≥ 1.
    """

    sums: dict[str, np.ndarray]
    examples: int

    def __post_init__(self):
        """Raise a ValueError if these cannot be sums of magnitudes over examples."""
        if self.examples < 1:
            raise ValueError(f"Expected at least one example. Received: {self.examples}.")
        for name, a in self.sums.items():
            # Of NaN both comparisons are false; two reductions need no further array.
            if not (np.min(a, initial=0) >= 0 and np.max(a, initial=0) < np.inf):
                raise ValueError(
                    f"Expected finite sums of magnitudes, ≥ 0. Received: others in '{name}'. "
                    "Measure this shard again."
                )

    def __add__(self, other: "ImportanceSums") -> "ImportanceSums":
        """Return the sums over the examples of both; ValueError if their weights differ."""
        shapes = [{name: a.shape for name, a in part.sums.items()} for part in (self, other)]
        if shapes[0] != shapes[1]:
            name, shape = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))[0]
            raise ValueError(
                "Expected sums over the weights of one model. Received: sums that differ in "
                f"'{name}', of shape {shape} in one of them. Measure every shard with "
                "the same model."
            )
        added = {name: a + other.sums[name] for name, a in self.sums.items()}
        return ImportanceSums(added, self.examples + other.examples)

    def mean(self) -> dict[str, np.ndarray]:
        """Return Ω by the names of the weights."""
        return {name: a / a.dtype.type(self.examples) for name, a in self.sums.items()}

    def save(self, path: str | os.PathLike) -> None:
        """Write the sums and the number of examples to an `.npz` file.

        Args:
            path: File to write, ending in `.npz`.

        Raises:
            ValueError: If the path does not end in `.npz`.
        """
        sums = {_SUM + name: a for name, a in self.sums.items()}
        save_arrays(path, {"examples": np.array(self.examples), **sums})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ImportanceSums":
        """Return what `save` wrote to a file; ValueError if it holds something else."""
        return load_arrays(path, cls._of, "sums written by `ImportanceSums.save`")

    @classmethod
    def _of(cls, arrays):
        examples = int(arrays.pop("examples"))
        if examples < 1 or not all(key.startswith(_SUM) for key in arrays):
            raise ValueError("no examples, or arrays of another kind")
        return cls({key.removeprefix(_SUM): a for key, a in arrays.items()}, examples)
