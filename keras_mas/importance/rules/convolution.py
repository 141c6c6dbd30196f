"""Convolutions, with any rank, stride, dilation, padding and number of groups.

z[p] = Σ_u a[p·s + u·d] W[u] for the offsets u of the kernel, so g[u] = Σ_p a[p·s + u·d] ⊗ δ[p]: per
offset a matrix product per example, then magnitudes, then the sum. For a transposed convolution the
roles of a and δ are exchanged.
"""

import itertools
import math
from typing import NamedTuple

import keras
import tensorflow as tf
from keras import layers

from .dense import bias_sums, kernel_sum
from .registry import rule
from .slices import flat_positions, ones_for, sum_first, sum_over_slices, traced_once

# Offsets are concatenated until a matrix product has so many rows: one of three rows, as in the
# first layer of an image network, takes as long as one of thirty.
_MIN_ROWS = 32


@rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def convolution(layer, inputs, delta, magnitude):
    """Return the sums of a convolution with kernel `[*offsets, I / groups, O]`."""
    a, d = _channels_last(layer, inputs), _channels_last(layer, delta)
    kernel = _kernel_sum(a, d, window=_window(layer), magnitude=magnitude, groups=layer.groups)
    return _sums(layer, delta, magnitude, kernel=kernel)


@rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def transposed_convolution(layer, inputs, delta, magnitude):
    """Return the sums of a transposed convolution with kernel `[*offsets, O, I]`."""
    a, d = _channels_last(layer, inputs), _channels_last(layer, delta)
    kernel = _kernel_sum(d, a, window=_window(layer), magnitude=magnitude)
    return _sums(layer, delta, magnitude, kernel=kernel)


@rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def depthwise_convolution(layer, inputs, delta, magnitude):
    """Return the sums of a convolution per channel with kernel `[*offsets, I, multiplier]`."""
    a, d = _channels_last(layer, inputs), _channels_last(layer, delta)
    shape = tuple(layer.kernel.shape)
    kernel = _depthwise_sum(a, d, window=_window(layer), shape=shape, magnitude=magnitude)
    return _sums(layer, delta, magnitude, kernel=kernel)


@rule(layers.SeparableConv1D, layers.SeparableConv2D)
def separable_convolution(layer, inputs, delta, magnitude):
    """Return the sums of z = pointwise(depthwise(a)): each kernel with its own inputs and δ."""
    a, d = _channels_last(layer, inputs), _channels_last(layer, delta)
    window, shape = _window(layer), tuple(layer.depthwise_kernel.shape)
    middle = _depthwise(a, layer.depthwise_kernel, window, layer.padding)
    matrix = tf.reshape(layer.pointwise_kernel, layer.pointwise_kernel.shape[-2:])
    middle_delta = tf.matmul(d, matrix, transpose_b=True)
    depthwise = _depthwise_sum(a, middle_delta, window=window, shape=shape, magnitude=magnitude)
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
def _kernel_sum(a, z, *, window, magnitude, groups=1):
    """Return Σ_k magnitude(Σ_p a_k[p·s + u·d] ⊗ z_k[p]), `[U · I / groups, O]`.

    Groups do not mix, so they are an axis beside that of the examples until these are summed.
    """
    inputs_by_offset = _offsets(a, z, window)
    rows, columns = a.shape[-1] // groups, z.shape[-1] // groups
    together = max(1, _MIN_ROWS // rows)

    def part(a_part, z_part):
        ones = ones_for(a_part)
        a_part, z_part = _groups_as_examples(a_part, groups), _groups_as_examples(z_part, groups)
        d = tf.transpose(flat_positions(z_part), [0, 2, 1])
        by_offset, sums = list(inputs_by_offset(a_part)), []
        for first in range(0, len(by_offset), together):
            terms = tf.concat(by_offset[first : first + together], axis=-1)
            g = magnitude(tf.matmul(d, flat_positions(terms)))
            sums.append(sum_first(tf.reshape(g, [-1, groups, columns, terms.shape[-1]]), ones))
        return tf.concat(sums, axis=2)

    elements = max(math.prod(filter(None, z.shape[1:-1])), columns) * together * rows * groups
    zero = tf.zeros([groups, columns, math.prod(window.sizes) * rows], a.dtype)
    return tf.transpose(sum_over_slices(part, (a, z), elements, zero), [2, 0, 1])


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
def _depthwise_sum(a, delta, *, window, shape, magnitude):
    """Return Σ_k magnitude(g_k), `[*offsets, I, multiplier]`.

    A depthwise convolution does not mix channels. With the examples of the batch laid side by side
    as channels it does not mix examples either, and its kernel's gradient has a part for each.
    """
    *offsets, features, multiplier = shape

    def part(a_part, delta_part):
        side_by_side = tf.zeros([*offsets, tf.shape(a_part)[0] * features, multiplier], a.dtype)
        padded = _padded(a_part, delta_part, window)
        with tf.GradientTape() as tape:
            tape.watch(side_by_side)
            z = _depthwise(_examples_as_channels(padded), side_by_side, window, "valid")
        g = tape.gradient(z, side_by_side, output_gradients=_examples_as_channels(delta_part))
        by_example = tf.reshape(g, [*offsets, -1, features, multiplier])
        return tf.reduce_sum(magnitude(by_example), axis=len(offsets))

    elements = math.prod(filter(None, a.shape[1:]))
    return sum_over_slices(part, (a, delta), elements, tf.zeros(shape, a.dtype))


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
    sizes = [_size(z, axis + 1) for axis in range(len(window.sizes))]

    def by_offset(part):
        padded = _padded(part, z, window)
        for offset in itertools.product(*map(range, window.sizes)):
            yield padded[(slice(None), *_multiplied(offset, sizes, window.by_axis))]

    return by_offset


def _padded(a, z, window):
    """Return the inputs with the zeros around them that a layer pads them with to output z."""
    pads = [
        _pads(window.padding, _size(a, axis + 1), _size(z, axis + 1), *parameters)
        for axis, parameters in enumerate(window.by_axis)
    ]
    return tf.pad(a, [(0, 0), *pads, (0, 0)])


class _Window(NamedTuple):
    """What a convolution's kernel sees: its size, stride and dilation per axis, and the padding."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: str

    @property
    def by_axis(self):
        return list(zip(self.sizes, self.strides, self.dilations, strict=True))


def _window(layer):
    # As tuples, which `traced_once` can compare.
    sizes, strides, dilations = layer.kernel_size, layer.strides, layer.dilation_rate
    return _Window(tuple(sizes), tuple(strides), tuple(dilations), layer.padding)


def _multiplied(offset, sizes, geometry):
    """Yield the slice per axis of the inputs at p·s + u·d for all positions p."""
    for u, size, (_, stride, dilation) in zip(offset, sizes, geometry, strict=True):
        yield slice(u * dilation, u * dilation + (size - 1) * stride + 1, stride)


def _pads(padding, size_in, size_out, kernel, stride, dilation):
    """Return the zeros before and after one axis, as TensorFlow places them."""
    reach = (kernel - 1) * dilation
    if padding == "causal":
        return reach, 0
    if padding == "valid":
        return 0, 0
    total = (size_out - 1) * stride + reach + 1 - size_in
    total = max(total, 0) if isinstance(total, int) else tf.maximum(total, 0)
    return total // 2, total - total // 2


def _channels_last(layer, tensor):
    if layer.data_format == "channels_last":
        return tensor
    rank = tensor.shape.rank
    return tf.transpose(tensor, [0, *range(2, rank), 1])


def _size(tensor, axis):
    size = tensor.shape[axis]
    return tf.shape(tensor)[axis] if size is None else size
