"""Which layers treat the rows of a batch independently, found by trying.

The engine measures a weight from the calls of its layer alone. That is exact if the layer is
*row-wise*: of every tensor that goes in or comes out of its calls, row k belongs to example k and
to no other, and nothing else goes in or out. Neither a layer's class nor its graph shows that in
general, so a `Trial` runs the model on up to four examples of a batch, each alone and
all together, and compares.

It relies on this:

- What differs for the examples tried differs for all. A model that mixes examples only for rare
  values (a branch on the data) may pass the trial with examples that do not show it. Each new kind
  of batch (structure, shape of an example, dtype, one example or several) is tried anew, and a
  layer must pass every trial.
- Rows are compared by two numbers each, a weighted sum and the sum of magnitudes, to a relative
  1e-4: room for float32 rounding. Mixing that changes every row by less goes unnoticed, and adds an
  error of that size.
- Of what a layer reads or writes beside its tensors, it sees what is in the traced graph. Python
  code that stores numbers outside TensorFlow is not seen.

A row-wise layer that is taken for another costs time and no accuracy: its weights are measured by
passes through the whole model, one example at a time. A mistake in the other direction shows in
`check_importance`, which compares with the definition.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .batches import count_examples
from .graph_options import NONE, optimized_from
from .recording import Call

# How many examples of a batch are tried.
_TRIED = 4

# Operations whose number of output rows depends on values.
_VALUE_DEPENDENT_ROWS = {"Where", "Unique", "UniqueV2", "DynamicPartition"}


class Trial:
    """A model's forward pass on a few examples, to be run for one batch or several.

    Args:
        forward: Function from a batch and a tape to targets `[n]` and the calls of the layers.
        signature: `tf.TensorSpec`s of the batches, for any n.
    """

    def __init__(
        self,
        forward: Callable[[Any, tf.GradientTape], tuple[list[tf.Tensor], list[Call]]],
        signature: Any,
    ):
        self._forward = forward
        self._candidates: list[tuple[keras.Layer, bool]] = []  # with whether the call is closed
        # Of the targets, and of each call: the places of its tensors among the outputs.
        self._places: list[list[int]] = []
        self._traced = tf.function(self._run, autograph=False).get_concrete_function(signature)

    def rowwise_layers(self, batch: Any) -> frozenset[keras.Layer]:
        """Return the layers that treat the rows of a batch independently in every call.

        None does if the targets of an example depend on the other examples. A batch of one example
        only shows how batches of one are treated.

        Args:
            batch: Structure of tensors `[n, ...]`, n ≥ 1.
        """
        # To optimize a graph takes longer than to run it five times on a few examples.
        with optimized_from(NONE):
            independent = self._independent(batch)
        targets_are, *calls_are = (
            all(independent[place] for place in places) for places in self._places
        )
        if not targets_are:
            return frozenset()
        excluded = {
            layer
            for (layer, is_closed), is_independent in zip(self._candidates, calls_are, strict=True)
            if not (is_closed and is_independent)
        }
        return frozenset(layer for layer, _ in self._candidates) - excluded

    def _independent(self, batch) -> np.ndarray:
        """Return for each tensor of the outputs whether its rows belong to one example each."""
        rows = _rows_to_try(count_examples(batch))
        together = self._fingerprints(_take(batch, rows))
        alone = {row: self._fingerprints(_take(batch, [row])) for row in set(rows)}
        by_row = [alone[row] for row in rows]
        found = np.zeros(len(together), bool)
        # A row for each example, or it is none.
        have_rows = [
            number
            for number, many in enumerate(together)
            if len(many) == len(rows) and all(len(each[number]) == 1 for each in by_row)
        ]
        if have_rows:
            many = np.stack([together[number] for number in have_rows])
            one = np.stack([[each[number][0] for each in by_row] for number in have_rows])
            found[have_rows] = _are_equal(one, many).all(axis=1)
        return found

    def _run(self, batch):
        """Return the tensors of the targets and of all calls, each tensor once."""
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            targets, calls = self._forward(batch, tape)
        graph = targets[0].graph
        calls = [call for call in calls if call.graph is graph and call.tensors]
        varying = _with_varying_rows(graph)
        self._candidates = [(call.layer, _is_closed(call, varying)) for call in calls]
        parts = [targets, *([*call.tensors, *call.results] for call in calls)]
        distinct = {tensor.ref(): tensor for part in parts for tensor in part}
        place = {ref: number for number, ref in enumerate(distinct)}
        self._places = [[place[tensor.ref()] for tensor in part] for part in parts]
        return list(distinct.values())

    def _fingerprints(self, batch) -> list[np.ndarray]:
        arrays = [np.asarray(tensor) for tensor in self._traced(batch)]  # which copies nothing
        # Plain sums would be equal for all normalized rows.
        factors = np.cos(np.arange(max(map(np.size, arrays)), dtype=np.float32))
        return [_fingerprint(array, factors) for array in arrays]


def _rows_to_try(examples: int) -> list[int]:
    """Return the numbers of some examples, spread over the batch; a single one twice."""
    if examples == 1:
        return [0, 0]
    return sorted({k * (examples - 1) // (_TRIED - 1) for k in range(_TRIED)})


def _take(batch, rows):
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), batch)


def _is_closed(call: Call, varying: set[str]) -> bool:
    return (
        call.has_independent_outputs
        and call.is_closed()
        and not any(tensor.op.name in varying for tensor in call.tensors)
    )


def _with_varying_rows(graph: tf.Graph) -> set[str]:
    """Return the names of the operations whose number of rows may depend on values."""
    names: set[str] = set()
    for operation in graph.get_operations():  # in the order in which they were added
        depends = any(tensor.op.name in names for tensor in operation.inputs)
        if depends or operation.type in _VALUE_DEPENDENT_ROWS:
            names.add(operation.name)
    return names


def _fingerprint(array: Any, factors: np.ndarray) -> np.ndarray:
    """Return two numbers per row, `[n, 2]`: its sum, weighted by factors, and the scale of that.

    No rows for a scalar, and for complex numbers, whose gradients no layer is measured by.
    """
    if np.ndim(array) == 0 or np.iscomplexobj(array):
        return np.zeros([0, 2])
    if array.dtype == object:  # strings
        array = np.vectorize(hash, otypes=[np.float64])(array)
    rows = len(array)
    precise = array if array.dtype == np.float32 else array.astype(np.float64)
    flat = precise.reshape(rows, array.size // max(rows, 1))
    with np.errstate(over="ignore", invalid="ignore"):  # of what is not finite
        weighted = flat @ factors[: flat.shape[1]].astype(flat.dtype)
        return np.stack([weighted, np.abs(flat).sum(axis=1)], axis=1)


def _are_equal(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Return whether fingerprints `[..., 2]` are equal, to rounding; `[...]`."""
    scale = np.nan_to_num(one[..., 1:], posinf=0.0)
    with np.errstate(invalid="ignore"):  # ∞ − ∞
        difference = np.abs(one - many)
        are_near = np.isfinite(difference) & (difference <= 1e-4 * (np.abs(many) + scale))
    both_nan = np.isnan(one) & np.isnan(many)
    return (are_near | (one == many) | both_nan).all(axis=-1)
