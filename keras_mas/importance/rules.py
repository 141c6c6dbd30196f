"""Exact importance of a layer's weights from its inputs and the gradient at its pre-activation.

Letters: N examples, I inputs, O outputs, T positions; a_k the input of example k, `[..., I]`, and
δ_k = ∂‖F(x_k)‖² / ∂z_k the gradient at its pre-activation z_k, `[..., O]`.
"""

import keras
import tensorflow as tf

_RULES = {}


def rule(layer_class):
    """Register the rule of a layer class; subclasses need a rule of their own.

    The rule is called once per batch with

        layer: the layer;
        inputs: what the layer was called with, `[N, ...]`;
        delta: the gradient at the layer's pre-activation (at its output, if it has no
            activation), `[N, ...]`.

    and returns a dict from the attribute that holds a weight (`"kernel"`) to Σ_k |g_k|, a tensor of
    that weight's shape: absolute values per example, before the sum.

    Example:
        >>> class Shift(keras.layers.Layer):
        ...     def build(self, shape):
        ...         self.offset = self.add_weight(shape=(shape[-1],))
        ...     def call(self, inputs):
        ...         return inputs + self.offset
        >>> @rule(Shift)
        ... def shift(layer, inputs, delta):  # z = a + b, so ∂/∂b = δ
        ...     return {"offset": tf.reduce_sum(tf.abs(delta), axis=0)}
    """

    def register(function):
        _RULES[layer_class] = function
        return function

    return register


def rule_for(layer):
    """Return the rule of exactly this layer's class, or None: a subclass may compute otherwise."""
    return _RULES.get(type(layer))


@rule(keras.layers.Dense)
def dense(layer, inputs, delta):
    """Return Σ_k |g_k| for z = aW + b.

    On rank-2 input g_k = a_k ⊗ δ_k, and |a_k ⊗ δ_k| = |a_k| ⊗ |δ_k|, so the sum over examples is
    one matrix product: |A|ᵀ|Δ|. At several positions they add up before the absolute value.
    """
    if inputs.shape.rank == 2:
        kernel = tf.matmul(tf.abs(inputs), tf.abs(delta), transpose_a=True)
        bias = delta
    else:
        rows = _positions(inputs), _positions(delta)
        kernel = sum_over_examples(lambda a, d: tf.abs(tf.matmul(a, d, transpose_a=True)), rows)
        bias = tf.reduce_sum(rows[1], axis=1)
    return {"kernel": kernel, "bias": tf.reduce_sum(tf.abs(bias), axis=0)}


def sum_over_examples(function, examples):
    """Return Σ_k function(*example_k), holding one example's term at a time.

    Args:
        function: From the tensors of one example, without their first axis, to a tensor, or a
            list of tensors.
        examples: Tuple of tensors `[N, ...]`, N ≥ 1.
    """
    first = function(*(tensor[0] for tensor in examples))

    def add(sums, example):
        return tf.nest.map_structure(tf.add, sums, function(*example))

    return tf.foldl(
        add, tuple(tensor[1:] for tensor in examples), initializer=first, parallel_iterations=1
    )


def _positions(tensor):
    """Flatten `[N, ..., C]` to `[N, T, C]`."""
    shape = tf.shape(tensor)
    return tf.reshape(tensor, [shape[0], -1, tensor.shape[-1]])
