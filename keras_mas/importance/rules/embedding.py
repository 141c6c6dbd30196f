"""Embeddings: a row of the weight for each index."""

import tensorflow as tf
from keras import layers

from .dense import kernel_sum
from .registry import rule


@rule(layers.Embedding)
def embedding(layer, inputs, delta, magnitude):
    """Return the sum for z_t = E[i_t]: g_k[i] = Σ_{t: i_t = i} δ_kt.

    The positions of one example that hold the same index add up before the magnitude. Memory is
    needed for the pairs of example and index that occur, not for all of them.
    """
    rows, features = layer.embeddings.shape
    inputs = tf.cast(inputs, tf.int64) % rows  # negative indices count from the end
    example = tf.range(tf.shape(inputs, tf.int64)[0])
    example = tf.reshape(example, [-1] + [1] * (inputs.shape.rank - 1))
    pairs, place = tf.unique(tf.reshape(example * rows + inputs, [-1]), tf.int64)
    flat = tf.reshape(delta, [-1, features])
    g = tf.math.unsorted_segment_sum(flat, place, tf.size(pairs, tf.int64))
    return {"embeddings": tf.math.unsorted_segment_sum(magnitude(g), pairs % rows, rows)}


@rule(layers.ReversibleEmbedding)
def reversible_embedding(layer, inputs, delta, magnitude):
    """Return the sums for z_t = E[i_t], or, called with `reverse`, z = aEᵀ or z = aR."""
    if not inputs.dtype.is_floating:
        return embedding(layer, inputs, delta, magnitude)
    if layer.logit_soft_cap is not None:
        return {}  # δ is the gradient at the capped logits
    kernel = kernel_sum(inputs, delta, magnitude)
    if layer.tie_weights:
        return {"embeddings": tf.transpose(kernel)}
    return {"reverse_embeddings": kernel}
