"""Convolutions, with any rank, stride, dilation, padding and number of groups.

z[p] = Σ_u a[p·s + u·d] W[u] for the offsets u of the kernel, so g[u] = Σ_p a[p·s + u·d] ⊗ δ[p]: per
offset a matrix product per example, then magnitudes, then the sum. For a transposed convolution the
roles of a and δ are exchanged.
"""

import itertools
import math
import operator
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import layers

from .dense import bias_sums, kernel_sum
from .registry import rule
from .slices import ones_for, sum_over_slices, traced_once

# Offsets are concatenated until a matrix product has so many rows: one of three rows, as in the
# first layer of an image network, takes as long as one of thirty.
_MIN_ROWS = 32


@rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def convolution(layer, inputs, delta, magnitude):
    """Return the sums of a convolution with kernel `[*offsets, I / groups, O]`."""
    a, d = _channels_last(layer, inputs), _channels_last(layer, delta)
    window = _window(layer)
    kernel = _kernel_sum(
        a,
        d,
        window=window,
        together=_together(window, rows=a.shape[-1] // layer.groups),
        magnitude=magnitude,
        groups=layer.groups,
    )
    return _sums(layer, delta, magnitude, kernel=kernel)


@rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def transposed_convolution(layer, inputs, delta, magnitude):
    """Return the sums of a transposed convolution with kernel `[*offsets, O, I]`."""
    a, d = _channels_last(layer, inputs), _channels_last(layer, delta)
    window = _window(layer)
    together = _together(window, rows=d.shape[-1])
    kernel = _kernel_sum(d, a, window=window, together=together, magnitude=magnitude)
    return _sums(layer, delta, magnitude, kernel=kernel)


@rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def depthwise_convolution(layer, inputs, delta, magnitude):
    """Return the sums of a convolution per channel with kernel `[*offsets, I, multiplier]`."""
    a, d = _channels_last(layer, inputs), _channels_last(layer, delta)
    kernel = _depthwise_sum(a, d, window=_window(layer), magnitude=magnitude)
    return _sums(layer, delta, magnitude, kernel=kernel)


@rule(layers.SeparableConv1D, layers.SeparableConv2D)
def separable_convolution(layer, inputs, delta, magnitude):
    """Return the sums of z = pointwise(depthwise(a)): each kernel with its own inputs and δ."""
    a, d = _channels_last(layer, inputs), _channels_last(layer, delta)
    window = _window(layer)
    middle = _depthwise(a, layer.depthwise_kernel, window, layer.padding)
    matrix = tf.reshape(layer.pointwise_kernel, layer.pointwise_kernel.shape[-2:])
    middle_delta = tf.matmul(d, matrix, transpose_b=True)
    depthwise = _depthwise_sum(a, middle_delta, window=window, magnitude=magnitude)
    return _sums(
        layer,
        delta,
        magnitude,
        depthwise_kernel=depthwise,
        pointwise_kernel=kernel_sum(middle, d, magnitude),
    )


def _sums(layer, delta, magnitude, **kernels):
    """Return the sums of kernels in the shape of their weights, and of the bias."""
    sums = {name: tf.reshape(terms, getattr(layer, name).shape) for name, terms in kernels.items()}
    trailing = delta.shape.rank - 2 if layer.data_format == "channels_first" else 0
    return sums | bias_sums(layer, delta, magnitude, trailing)


@traced_once
def _kernel_sum(a, z, *, window, together, magnitude, groups=1):
    """Return Σ_k magnitude(Σ_p a_k[p·s + u·d] ⊗ z_k[p]), `[U · I / groups, O]`.

    Groups do not mix, so they are an axis beside that of the examples until these are summed.
    """
    rows, columns = tf.shape(a)[-1] // groups, tf.shape(z)[-1] // groups
    positions = tf.reduce_prod(tf.shape(z)[1:-1])
    # All that does not depend on the slice stays out of the loop over slices, which may be short.
    inputs_by_offset = _offsets(a, z, window)
    inputs_shape = tf.stack([-1, positions, rows * together])
    outputs_shape = tf.stack([-1, positions, columns])
    last = math.prod(window.sizes) % together  # offsets in the last product, if fewer
    last_shape = tf.stack([-1, positions, rows * last])
    sum_shape = tf.stack([groups, columns, -1])

    def part(a_part, z_part):
        d = tf.reshape(_groups_as_examples(z_part, groups), outputs_shape)
        d = tf.transpose(d, [0, 2, 1])
        ones, sums = ones_for(a_part), []
        by_example = tf.stack([tf.shape(a_part)[0], -1])
        by_offset = list(inputs_by_offset(_groups_as_examples(a_part, groups)))
        for first in range(0, len(by_offset), together):
            terms = by_offset[first : first + together]
            shape = inputs_shape if len(terms) == together else last_shape
            beside = tf.concat(terms, axis=-1) if len(terms) > 1 else terms[0]
            g = magnitude(tf.matmul(d, tf.reshape(beside, shape)))
            sums.append(tf.reshape(tf.matmul(ones, tf.reshape(g, by_example)), sum_shape))
        return tf.concat(sums, axis=2)

    elements = tf.maximum(positions, columns) * together * rows * groups
    zero = tf.zeros([groups, columns, math.prod(window.sizes) * rows], a.dtype)
    return tf.transpose(sum_over_slices(part, (a, z), elements, zero), [2, 0, 1])


def _together(window, rows):
    """Return how many offsets of a window, of so many rows each, one matrix product takes."""
    return min(math.prod(window.sizes), max(1, _MIN_ROWS // rows))


def _groups_as_examples(tensor, groups):
    """Turn `[n, *positions, groups · C]` into `[n · groups, *positions, C]`."""
    if groups == 1:
        return tensor
    sizes = [_size(tensor, axis) for axis in range(tensor.shape.rank)]
    split = tf.reshape(tensor, [*sizes[:-1], groups, sizes[-1] // groups])
    rank = split.shape.rank
    moved = tf.transpose(split, [0, rank - 2, *range(1, rank - 2), rank - 1])
    return tf.reshape(moved, [-1, *sizes[1:-1], sizes[-1] // groups])


@traced_once
def _depthwise_sum(a, delta, *, window, magnitude):
    """Return Σ_k magnitude(g_k), `[*offsets, I, multiplier]`.

    A depthwise convolution does not mix channels. With the examples of the batch laid side by side
    as channels it does not mix examples either, and its kernel's gradient has a part for each.
    """
    features = tf.shape(a)[-1]
    multiplier = tf.shape(delta)[-1] // features
    pads = _pads(a, delta, window)

    def part(a_part, delta_part):
        examples = tf.shape(a_part)[0]
        side_by_side = tf.zeros([*window.sizes, examples * features, multiplier], a.dtype)
        padded = _examples_as_channels(tf.pad(a_part, pads))
        with tf.GradientTape() as tape:
            tape.watch(side_by_side)
            z = _depthwise(padded, side_by_side, window, "valid")
        g = tape.gradient(z, side_by_side, output_gradients=_examples_as_channels(delta_part))
        by_example = tf.reshape(g, [*window.sizes, examples, features, multiplier])
        return tf.reduce_sum(magnitude(by_example), axis=len(window.sizes))

    elements = tf.reduce_prod(tf.shape(a)[1:])
    zero = tf.zeros([*window.sizes, features, multiplier], a.dtype)
    return sum_over_slices(part, (a, delta), elements, zero)


def _depthwise(a, kernel, window, padding):
    # Depthwise layers in Keras have no causal padding.
    return keras.ops.depthwise_conv(
        a,
        kernel,
        strides=window.strides,
        padding=padding,
        dilation_rate=window.dilations,
        data_format="channels_last",
    )


def _examples_as_channels(tensor):
    """Turn `[n, *positions, C]` into `[1, *positions, n · C]`."""
    sizes = [_size(tensor, axis) for axis in range(tensor.shape.rank)]
    rank = len(sizes)
    moved = tf.transpose(tensor, [*range(1, rank - 1), 0, rank - 1])
    return tf.reshape(moved, [1, *sizes[1:-1], sizes[0] * sizes[-1]])


def _offsets(a, z, window):
    """Return a function from (a part of) a to the inputs that each offset of the kernel multiplies.

    By plain slices, for every rank and dilation; TensorFlow's patch extraction supports fewer.
    """
    if window.is_a_point:
        return lambda part: [part]  # without a copy
    pads = _pads(a, z, window)
    span = (tf.shape(z)[1:-1] - 1) * window.strides + 1  # of what an offset sees
    offsets = itertools.product(*map(range, window.sizes))
    firsts = [[0, *map(operator.mul, offset, window.dilations), 0] for offset in offsets]
    starts = tf.constant(firsts)
    ends = tf.pad(span, [[1, 1]]) + starts
    strides = tf.constant([1, *window.strides, 1])
    whole = 1 | 1 << len(window.sizes) + 1  # the first axis and the last

    def by_offset(part):
        padded = tf.pad(part, pads)
        # Unstacked here: a tensor for each offset would be carried into the loop over slices.
        return [
            tf.strided_slice(padded, start, end, strides, begin_mask=whole, end_mask=whole)
            for start, end in zip(tf.unstack(starts), tf.unstack(ends), strict=True)
        ]

    return by_offset


class _Window(NamedTuple):
    """What a convolution's kernel sees: its size, stride and dilation per axis, and the padding."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: str

    @property
    def is_a_point(self):
        return {*self.sizes, *self.strides} == {1}


def _window(layer):
    # As tuples, which `traced_once` can compare.
    sizes, strides, dilations = layer.kernel_size, layer.strides, layer.dilation_rate
    return _Window(tuple(sizes), tuple(strides), tuple(dilations), layer.padding)


def _pads(a, z, window):
    """Return the zeros around the inputs that a layer pads them with to output z, `[rank, 2]`.

    They are placed as TensorFlow places them.
    """
    reach = [
        (size - 1) * dilation for size, dilation in zip(window.sizes, window.dilations, strict=True)
    ]
    if window.padding == "same":
        needed = (tf.shape(z)[1:-1] - 1) * window.strides + reach + 1
        total = tf.maximum(needed - tf.shape(a)[1:-1], 0)
        pads = tf.stack([total // 2, total - total // 2], axis=1)
    elif window.padding == "causal":
        pads = [(before, 0) for before in reach]
    else:
        pads = [(0, 0)] * len(reach)
    return tf.pad(pads, [[1, 1], [0, 0]])


def _channels_last(layer, tensor):
    if layer.data_format == "channels_last":
        return tensor
    rank = tensor.shape.rank
    return tf.transpose(tensor, [0, *range(2, rank), 1])


def _size(tensor, axis):
    size = tensor.shape[axis]
    return tf.shape(tensor)[axis] if size is None else size
