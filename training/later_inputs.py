"""What inputs that came after a run say: Ω of them, added to what the run remembers, and drift.

The inputs need no labels. Aljundi et al., Sec. 4.1 and 5.3, measure Ω on what a user really sees,
so that the network keeps what is used, and forgets what is not.
"""

import dataclasses
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_mas import SynapticMemory
from keras_mas.arrays import load_arrays, save_arrays
from keras_mas.errors import UsageError
from keras_mas.importance import ImportanceSums
from keras_mas.methods import METHODS, load_method
from keras_mas.serving.signatures import trunk_of
from keras_mas.serving.traffic import Asked
from keras_mas.states import SAVED_BY

from .run_directory import MEMORY, naming_damage, task_folder
from .saved_tasks import saved_file

# The probability of a warning if nothing has drifted.
_SIGNIFICANCE = 0.01

# Both samples of a test; a difference that thousands of examples hardly show changes no answer.
MOST_TESTED = 1000

_FEATURES_BATCH = 256

# Below this, squares and gradients are finite in float32, which ends at 3.4e38.
_SURELY_FINITE = 1e12


# Sums over the inputs that were sent to each head; None stands for all heads.
HeadSums = dict[str | None, ImportanceSums]


@dataclasses.dataclass(frozen=True)
class Added:
    """What was remembered before and after Ω of inputs was added.

    Attributes:
        memory: The memory, with it.
        before: Mean Ω of all weights without it.
        now: Mean Ω of all weights, of these inputs alone.
    """

    memory: SynapticMemory
    before: float
    now: float


def check_method(name: str) -> None:
    """Refuse a method whose Ω cannot be measured on inputs alone.

    Raises:
        UsageError: If it keeps no Ω, or needs labels or a part of the training for it.
    """
    if not load_method(name).needs_inputs_alone:
        able = ", ".join(each for each in METHODS if load_method(each).needs_inputs_alone)
        raise UsageError(
            f"Expected a run of a method that measures Ω on inputs alone: {able}. Received: a run "
            f"of '{name}', which keeps no Ω, or needs labels or the course of the training for it."
        )


class Measuring:
    """Measures what the method of a run takes the importance of inputs to be.

    An input that was sent to one head is measured on its logits, and one that all heads answer on
    those of all of them: F is what the server answered.

    Args:
        method: Name of the method.
        network: From inputs to the logits of every head.

    Raises:
        UsageError: As `check_method`.
    """

    def __init__(self, method: str, network: keras.Model):
        check_method(method)
        self._method = load_method(method)()
        self._network = network
        self._models: dict[str | None, keras.Model] = {}

    def measurable(self, asked: Asked) -> np.ndarray:
        """Return for each input whether the network and its gradients are finite on it.

        Numbers that a user may send, up to 3e38, are squared in ‖F‖², and one of them would keep
        all others from being measured. Those that are large are measured alone, to see.

        Args:
            asked: N inputs.

        Returns:
            bool `[N]`.
        """
        kept = np.zeros(len(asked.heads), bool)
        for head, rows in asked.rows_by_head():
            largest = _largest_products(self.answering(head), asked.inputs[rows])
            for row, product in zip(rows, largest, strict=True):
                kept[row] = product < _SURELY_FINITE or (
                    np.isfinite(product) and self._is_measurable(head, asked.inputs[row : row + 1])
                )
        return kept

    def sums(self, asked: Asked) -> HeadSums:
        """Return Σ_k |∂‖F(x_k)‖² / ∂θ| over the inputs that were sent to each head, in float64.

        Args:
            asked: Inputs that are measurable.
        """
        return {head: self._sums(head, inputs) for head, inputs in asked.by_head()}

    def answering(self, head: str | None) -> keras.Model:
        """Return the part of the network that answers for a head; all of it if none is named."""
        if head not in self._models:
            self._models[head] = _answering(self._network, head)
        return self._models[head]

    def _sums(self, head, inputs):
        mean = self._method.importance(self.answering(head), inputs)
        examples = len(inputs)
        sums = {name: examples * values.astype(np.float64) for name, values in mean.items()}
        return ImportanceSums(sums, examples)

    def _is_measurable(self, head, inputs):
        try:
            importance = self._method.importance(self.answering(head), inputs)
        except ValueError:  # not finite
            return False
        return all(np.isfinite(values).all() for values in importance.values())


def add_sums(sums: HeadSums, more: HeadSums) -> None:
    """Add the sums over other inputs to those of each head."""
    for head, part in more.items():
        sums[head] = sums[head] + part if head in sums else part


def add_importance(
    directory: Path, result: dict[str, Any], network: keras.Model, sums: HeadSums
) -> Added:
    """Add Ω of inputs to what a run remembers after its last task, which stays as it is on disk.

    Over all N inputs, of all heads together,

        Ω ← Ω + 1/N Σ_k |∂‖F(x_k)‖² / ∂θ|

    and θ* stays. Inputs are no new task: λ that is found by "auto" counts the same tasks.

    Args:
        directory: Folder of the run.
        result: Its result.
        network: Its network.
        sums: The sums over the inputs, as of `Measuring`.

    Raises:
        DamagedError: If the run's memory is damaged.
    """
    path = _memory_path(directory, result)
    with naming_damage(path, "Run the `keras-mas train` command of this run in a new folder."):
        memory = SynapticMemory.load(path)
        memory.recognize(network)
    before = _mean(memory.importance)
    examples = sum(part.examples for part in sums.values())
    for head in sorted(sums, key=str):  # the same order, whichever was asked first
        weighted = {name: values / examples for name, values in sums[head].sums.items()}
        memory.remember(_answering(network, head), weighted, _add, new_task=False)
    return Added(memory, before, _mean(memory.importance) - before)


def _largest_products(model, inputs):
    """Return max |x| · max |F(x)| of each input, to which gradients of ‖F‖² are proportional."""
    outputs = [_outputs(model, batch) for batch in _batches(inputs)]
    scale = np.abs(inputs.reshape(len(inputs), -1)).max(axis=1).astype(np.float64)
    return np.maximum(scale, 1.0) * np.abs(np.concatenate(outputs)).max(axis=1)


def _outputs(model, batch):
    logits = keras.tree.flatten(model(batch, training=False))
    return np.concatenate([keras.ops.convert_to_numpy(each) for each in logits], axis=1)


def _answering(network, head):
    """Return the part of a network that answers for a head; all of it if none is named."""
    return network if head is None else keras.Model(network.input, network.output[head])


def save_memory(directory: Path, result: dict[str, Any], memory: SynapticMemory, to: Path) -> None:
    """Write a memory as the method of a run does, for the same method to load.

    Args:
        directory: Folder of the run.
        result: Its result.
        memory: What is remembered now.
        to: File to write, ending in `.npz`.
    """
    saved = load_arrays(_memory_path(directory, result), dict, "what a method remembers")
    kept = {name: saved[name] for name in (SAVED_BY,) if name in saved}  # not in older files
    save_arrays(to, memory.state() | kept)


def _memory_path(directory, result):
    return saved_file(task_folder(directory, len(result["tasks"])), MEMORY)


def _add(importance, anchor, now, weight):
    return importance + now, anchor


def _mean(importance):
    sizes = sum(values.size for values in importance.values())
    return float(sum(values.sum(dtype=np.float64) for values in importance.values()) / sizes)


@dataclasses.dataclass(frozen=True)
class Drift:
    """How far later inputs are from those of the training, in what the trunk makes of them.

    Attributes:
        features: How many features differ between any two inputs, and so were tested.
        drifted: How many of them are distributed otherwise, at 1 % for all tests together.
        largest: The largest Kolmogorov-Smirnov statistic: the greatest distance, from 0 to 1, of
            the two distribution functions of a feature.
        p: The smallest p-value, times the number of tests.
        examples: Sizes of both samples.
    """

    features: int
    drifted: int
    largest: float
    p: float
    examples: tuple[int, int]

    def __bool__(self) -> bool:
        return self.drifted > 0


def measure_drift(network: keras.Model, trained_on: np.ndarray, later: np.ndarray) -> Drift | None:
    """Compare what the trunk makes of two samples of inputs, feature by feature.

    The test is that of Kolmogorov and Smirnov, which assumes no form of a distribution and has no
    parameter to choose, such as the bandwidth of a kernel test (MMD); each is of one feature, so
    the p-values are multiplied by how many there are (Bonferroni). Rabanser et al., "Failing
    Loudly", NeurIPS 2019, arXiv:1810.11953, find this as good as tests of all features together.

    Args:
        network: From inputs to the logits of every head.
        trained_on: Inputs of the training, `[N, …]`.
        later: The others, `[M, …]`.

    Returns:
        The drift; None if the heads share no trunk.
    """
    from scipy import stats

    trunk = trunk_of({name: keras.Model(network.input, y) for name, y in network.output.items()})
    if trunk is None:
        return None
    samples = [_features(trunk, inputs[:MOST_TESTED]) for inputs in (trained_on, later)]
    varies = np.ptp(np.concatenate(samples), axis=0) > 0
    first, second = (sample[:, varies] for sample in samples)
    if not first.shape[1]:
        return Drift(0, 0, 0.0, 1.0, (len(first), len(second)))
    # In the limit of large samples one input outside of the range of all others has p = 0.
    tests = [stats.ks_2samp(a, b, method="exact") for a, b in zip(first.T, second.T, strict=True)]
    p_values = np.minimum(1.0, len(tests) * np.array([test.pvalue for test in tests]))
    return Drift(
        features=len(tests),
        drifted=int(np.sum(p_values < _SIGNIFICANCE)),
        largest=float(max(test.statistic for test in tests)),
        p=float(p_values.min()),
        examples=(len(first), len(second)),
    )


def _features(trunk, inputs):
    features = [
        keras.ops.convert_to_numpy(trunk(batch, training=False)) for batch in _batches(inputs)
    ]
    return np.concatenate(features).reshape(len(inputs), -1).astype(np.float64)


def _batches(inputs):
    return np.split(inputs, range(_FEATURES_BATCH, len(inputs), _FEATURES_BATCH))
