"""Layers that contract their input with a kernel: Dense and EinsumDense."""

import math
import string

import tensorflow as tf
from keras import layers

from .registry import rule
from .slices import flat_positions, sum_first, sum_over_slices, sum_to_shape


@rule(layers.Dense)
def dense(layer, inputs, delta, magnitude):
    """Return the sums for z = aW + b."""
    return {"kernel": kernel_sum(inputs, delta, magnitude)} | bias_sums(layer, delta, magnitude)


def kernel_sum(inputs, delta, magnitude):
    """Return Σ_k magnitude(Σ_t a_kt ⊗ δ_kt) for inputs `[N, ..., I]` and delta `[N, ..., O]`.

    At a single position the magnitude of an outer product is the outer product of magnitudes, so
    the sum over examples is one matrix product: |A|ᵀ|Δ|.
    """
    if inputs.shape.rank == 2:
        return tf.matmul(magnitude(inputs), magnitude(delta), transpose_a=True)

    def part(a, d):
        return sum_first(magnitude(tf.matmul(a, d, transpose_a=True)))

    positions = flat_positions(inputs), flat_positions(delta)
    shape = inputs.shape[-1], delta.shape[-1]
    return sum_over_slices(part, positions, math.prod(shape), tf.zeros(shape, delta.dtype))


def bias_sums(layer, delta, magnitude, trailing=0):
    """Return Σ_k magnitude(Σ_t δ_kt) for the bias of a layer, or nothing where it has none.

    Args:
        layer: Layer with a `bias`, which may be None.
        delta: δ, `[N, ...]`.
        magnitude: As for a rule.
        trailing: The number of axes of the outputs after those of the bias.
    """
    if layer.bias is None:
        return {}
    shape = [*layer.bias.shape, *[1] * trailing]
    if _is_added_along_another_axis(shape, delta.shape):
        return {}
    sums = tf.reduce_sum(magnitude(sum_to_shape(delta, shape)), axis=0)
    return {"bias": tf.reshape(sums, layer.bias.shape) if trailing else sums}


def _is_added_along_another_axis(shape, outputs):
    """Return whether Keras adds a bias along another axis than that of its shape.

    `keras.ops.add` (3.15) adds a vector along the last axis if that has its length, or else along
    the second.
    """
    vector = [size for size in shape if size != 1]
    if len(vector) != 1:
        return False
    axis = outputs.rank - len(shape) + shape.index(vector[0])
    if outputs[-1] == vector[0]:
        return axis != outputs.rank - 1
    return outputs[1] == vector[0] and axis != 1


@rule(layers.EinsumDense)
def einsum_dense(layer, inputs, delta, magnitude):
    """Return the sums for z = einsum(equation, a, W) + b, by the same letters."""
    a, w, z = _letters(layer.equation, inputs.shape.rank)
    sums = bias_sums(layer, delta, magnitude)
    # If each letter names one axis, and that of the examples is no axis of W, g_k is the
    # contraction of a_k and δ_k. For other equations, which are rare, the kernel is left out.
    is_plain = all(len(set(letters)) == len(letters) for letters in (a, w, z))
    if is_plain and a[0] == z[0] and a[0] not in w and set(w) <= set(a + z):

        def part(a_part, delta_part):
            products = tf.einsum(f"{a},{z}->{a[0]}{w}", a_part, delta_part)
            return sum_first(magnitude(products))

        if set(a) & set(z) <= {a[0]} | set(w):  # a single position
            magnitudes = magnitude(inputs), magnitude(delta)
            sums["kernel"] = tf.einsum(f"{a},{z}->{w}", *magnitudes)
        else:
            shape = layer.kernel.shape
            zero = tf.zeros(shape, delta.dtype)
            sums["kernel"] = sum_over_slices(part, (inputs, delta), math.prod(shape), zero)
    return sums


def _letters(equation, rank):
    """Return the letters of a, W and z, an ellipsis written out for inputs of this rank."""
    left, z = equation.replace(" ", "").split("->")
    a, w = left.split(",")
    spare = [letter for letter in string.ascii_letters if letter not in equation]
    rest = "".join(spare[: rank - len(a.replace("...", ""))])
    return a.replace("...", rest), w, z.replace("...", rest)
