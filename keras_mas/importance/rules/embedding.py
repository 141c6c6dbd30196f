"""Embeddings: a row of the weight per symbol."""

import tensorflow as tf
from keras import layers

from .dense import kernel_sum
from .registry import rule


@rule(layers.Embedding)
def embedding(layer, inputs, delta, magnitude):
    """Return the sum for z_t = E[i_t]: g_k[i] = Σ_{t: i_t = i} δ_kt.

    A symbol may stand at several positions of one example; they add up before the magnitude. No
    array of examples × symbols is made: a row per pair that occurs.
    """
    symbols, features = layer.embeddings.shape
    inputs = tf.cast(inputs, tf.int64) % symbols  # Keras counts negative ones from the end
    example = tf.range(tf.shape(inputs, tf.int64)[0])
    example = tf.reshape(example, [-1] + [1] * (inputs.shape.rank - 1))
    pairs, place = tf.unique(tf.reshape(example * symbols + inputs, [-1]), tf.int64)
    rows = tf.reshape(delta, [-1, features])
    g = tf.math.unsorted_segment_sum(rows, place, tf.size(pairs, tf.int64))
    return {"embeddings": tf.math.unsorted_segment_sum(magnitude(g), pairs % symbols, symbols)}


@rule(layers.ReversibleEmbedding)
def reversible_embedding(layer, inputs, delta, magnitude):
    """Return the sums for z_t = E[i_t], or, in reverse, for z = aEᵀ or z = aR."""
    if not inputs.dtype.is_floating:
        return embedding(layer, inputs, delta, magnitude)
    if layer.logit_soft_cap is not None:
        return {}  # δ is known behind the cap, not before it
    kernel = kernel_sum(inputs, delta, magnitude)
    if layer.tie_weights:
        return {"embeddings": tf.transpose(kernel)}
    return {"reverse_embeddings": kernel}
