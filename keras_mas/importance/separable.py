"""Which layers keep examples apart, and in their order."""

import numpy as np
import tensorflow as tf

from .batches import count_examples

# How many examples of a batch are tried.
_TRIED = 4

# Operations that answer with as many rows as the data happen to hold, and what is made of them.
_UNCOUNTED = {"Where", "Unique", "UniqueV2", "DynamicPartition"}


def find_separable(forward, batch, signature):
    """Return the layers to which the k-th example brings the k-th row, alone or in a batch.

    Tried with some examples, each alone and all together: a layer that sees or answers with several
    rows per example (a reshape, a concatenation along the first axis), examples in another order or
    time before examples, is not separable; and none is if the model's answer to an example depends
    on the others. Nor is a layer that takes or leaves anything beside its tensors. A batch of one
    tells of batches of one.

    Args:
        forward: Function from a batch and a tape to targets `[n]` and the `Call`s of the layers.
        batch: Structure of tensors `[n, ...]`, n ≥ 1.
        signature: Its `tf.TensorSpec`s, for any n.
    """
    candidates, look = _traced(forward, signature)
    rows = _tried(count_examples(batch))
    together = look(_rows_of(batch, rows))
    keeps_apart = [True] * len(together)
    for k, row in enumerate(rows):
        for i, (alone, beside) in enumerate(
            zip(look(_rows_of(batch, [row])), together, strict=True)
        ):
            keeps_apart[i] &= all(
                _is_row(one, many, k, len(rows)) for one, many in zip(alone, beside, strict=True)
            )
    by_target, *by_call = keeps_apart
    if not by_target:
        return set()
    kept = zip(candidates, by_call, strict=True)
    strange = {
        layer for (layer, is_self_contained), apart in kept if not (is_self_contained and apart)
    }
    return {layer for layer, _ in candidates} - strange


def _traced(forward, signature):
    """Return the layers called, each with whether it is self-contained, and a function to try them.

    That function answers with the fingerprints of the targets, and then of every call.
    """
    candidates = []

    def look(batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            targets, calls = forward(batch, tape)
        graph = targets[0].graph
        own = [call for call in calls if call.graph is graph and call.tensors]
        uncounted = _uncounted(graph)
        candidates[:] = [(call.layer, _is_self_contained(call, uncounted)) for call in own]
        seen = [targets, *((*call.tensors, *call.results) for call in own)]
        return [[_fingerprints(tensor) for tensor in tensors] for tensors in seen]

    look = tf.function(look, autograph=False).get_concrete_function(signature)
    return candidates, lambda batch: tf.nest.map_structure(np.asarray, look(batch))


def _tried(examples):
    """Return the numbers of the examples to try, spread over the batch; one alone beside itself."""
    if examples == 1:
        return [0, 0]
    return sorted({k * (examples - 1) // (_TRIED - 1) for k in range(_TRIED)})


def _rows_of(batch, rows):
    return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), batch)


def _is_self_contained(call, uncounted):
    return (
        call.has_outputs_apart
        and call.is_closed()
        and not any(tensor.op.name in uncounted for tensor in call.tensors)
    )


def _uncounted(graph):
    """Return the names of the operations that depend on how many rows the data hold."""
    names = set()
    for operation in graph.get_operations():  # in the order in which they were made
        if operation.type in _UNCOUNTED or any(t.op.name in names for t in operation.inputs):
            names.add(operation.name)
    return names


def _fingerprints(tensor):
    """Return two numbers per row, `[n, 2]`, the second being the scale of the first.

    None for what has no rows, and for complex numbers, whose gradients no layer is measured by.
    """
    if tensor.shape.rank == 0 or tensor.dtype.is_complex:
        return tf.zeros([0, 2], tf.float64)
    if tensor.dtype == tf.string:
        tensor = tf.strings.to_hash_bucket_fast(tensor, 2**20)
    rows = tf.shape(tensor)[0]
    flat = tf.reshape(tensor, [rows, tf.size(tensor) // tf.maximum(rows, 1)])
    flat = tf.cast(flat, tf.float64)
    # Of places that weigh differently, or normalized rows would all look alike.
    weights = tf.cos(tf.range(tf.cast(tf.shape(flat)[1], tf.float64)))
    return tf.stack([tf.linalg.matvec(flat, weights), tf.reduce_sum(tf.abs(flat), axis=1)], axis=1)


def _is_row(one, many, k, rows):
    """Return whether the fingerprint of an example alone is the k-th of a batch, to rounding."""
    if len(one) != 1 or len(many) != rows:
        return False
    scale = np.nan_to_num(one[0, 1], posinf=0.0)
    return np.allclose(one[0], many[k], rtol=1e-4, atol=1e-4 * scale, equal_nan=True)
