"""Which layers keep examples apart, and in their order."""

import numpy as np
import tensorflow as tf

from .batches import count_examples


def find_separable(forward, batch, signature):
    """Return the layers to which the k-th example brings the k-th row, alone or in a batch.

    Tried with one example and with two: a layer that sees several rows per example (a reshape, a
    concatenation along the first axis), examples in another order or time before examples, is not
    separable; and none is if the model's answer to an example depends on the other. A batch of one
    tells of batches of one.

    Args:
        forward: Function from a batch and a tape to targets `[n]` and the `Call`s of the layers.
        batch: Structure of tensors `[n, ...]`, n ≥ 1.
        signature: Its `tf.TensorSpec`s, for any n.
    """
    called = []

    def look(batch):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            targets, calls = forward(batch, tape)
        own = [call for call in calls if call.graph is targets[0].graph and call.tensors]
        called[:] = [call.layer for call in own]
        return targets, [call.tensors for call in own]

    look = tf.function(look, autograph=False).get_concrete_function(signature)
    alone, together = (
        look(tf.nest.map_structure(lambda tensor, rows=rows: tf.gather(tensor, rows), batch))
        for rows in ([0], [0, min(1, count_examples(batch) - 1)])
    )
    if not all(map(_is_first_of_two, alone[0], together[0])):
        return set()
    strange = {
        layer
        for layer, ones, twos in zip(called, alone[1], together[1], strict=True)
        if not all(map(_is_first_of_two, ones, twos))
    }
    return set(called) - strange


def _is_first_of_two(one, two):
    """Return whether `[1, ...]` is the first row of `[2, ...]`, to rounding."""
    one, two = np.asarray(one), np.asarray(two)
    if one.shape[:1] != (1,) or two.shape[:1] != (2,) or one.shape[1:] != two.shape[1:]:
        return False
    if not np.issubdtype(one.dtype, np.number):
        return np.array_equal(one, two[:1])
    scale = np.abs(one[np.isfinite(one)]).max(initial=0.0)
    return np.allclose(one, two[:1], rtol=1e-3, atol=1e-5 * scale, equal_nan=True)
