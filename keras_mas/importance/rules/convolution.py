"""Convolutions, with any rank, stride, dilation, padding and number of groups.

z[p] = Σ_u a[p·s + u·d] W[u] for the offsets u of the kernel, so g[u] = Σ_p a[p·s + u·d] ⊗ δ[p]:
unfold the inputs by offset, multiply per example, take magnitudes, add. A transposed convolution is
the same with the parts of a and δ exchanged.
"""

import itertools

import keras
import tensorflow as tf
from keras import layers

from .dense import kernel_sum
from .registry import rule
from .sums import sum_over_slices, sum_to_axes


@rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def convolution(layer, inputs, delta, magnitude):
    """Return the sums of a convolution with kernel `[*offsets, I / groups, O]`."""
    a, delta = _channels_last(layer, inputs), _channels_last(layer, delta)
    patches = _unfold(a, delta, layer)
    if layer.groups == 1:
        kernel = _patch_sum(patches, delta, magnitude)
    else:
        kernel = _grouped_sum(patches, delta, layer.groups, magnitude)
    return _sums(layer, delta, magnitude, kernel=kernel)


@rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def transposed_convolution(layer, inputs, delta, magnitude):
    """Return the sums of a transposed convolution with kernel `[*offsets, O, I]`."""
    a, delta = _channels_last(layer, inputs), _channels_last(layer, delta)
    kernel = _patch_sum(_unfold(delta, a, layer), a, magnitude)
    return _sums(layer, delta, magnitude, kernel=kernel)


@rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def depthwise_convolution(layer, inputs, delta, magnitude):
    """Return the sums of a convolution per channel with kernel `[*offsets, I, multiplier]`."""
    a, delta = _channels_last(layer, inputs), _channels_last(layer, delta)
    kernel = _depthwise_sum(_unfold(a, delta, layer), delta, magnitude)
    return _sums(layer, delta, magnitude, kernel=kernel)


@rule(layers.SeparableConv1D, layers.SeparableConv2D)
def separable_convolution(layer, inputs, delta, magnitude):
    """Return the sums of z = pointwise(depthwise(a)): each kernel with its own inputs and δ."""
    middle = keras.ops.depthwise_conv(
        inputs,
        layer.depthwise_kernel,
        strides=layer.strides,
        padding="valid" if layer.padding == "causal" else layer.padding,
        dilation_rate=layer.dilation_rate,
        data_format=layer.data_format,
    )
    a, middle, delta = (_channels_last(layer, t) for t in (inputs, middle, delta))
    pointwise = tf.convert_to_tensor(layer.pointwise_kernel)
    matrix = tf.reshape(pointwise, pointwise.shape[-2:])
    middle_delta = tf.matmul(delta, matrix, transpose_b=True)
    return _sums(
        layer,
        delta,
        magnitude,
        depthwise_kernel=_depthwise_sum(_unfold(a, middle_delta, layer), middle_delta, magnitude),
        pointwise_kernel=kernel_sum(middle, delta, magnitude),
    )


def _sums(layer, delta, magnitude, **kernels):
    """Return the sums of kernels in the shape of their weights, and of the bias."""
    sums = {name: tf.reshape(terms, getattr(layer, name).shape) for name, terms in kernels.items()}
    return sums | {"bias": tf.reduce_sum(magnitude(sum_to_axes(delta, [-1])), axis=0)}


def _patch_sum(patches, delta, magnitude):
    """Return Σ_k magnitude(g_k), `[U · I, O]`, for patches `[N, ..., U, I]`."""
    offsets, features = patches.shape[-2:]
    flat = tf.reshape(patches, [*_leading(patches), offsets * features])
    return kernel_sum(flat, delta, magnitude)


def _grouped_sum(patches, delta, groups, magnitude):
    """Return Σ_k magnitude(g_k), `[U, I / groups, O]`: each group sees its own channels."""
    offsets, features = patches.shape[-2:]
    a = tf.reshape(patches, [tf.shape(patches)[0], -1, offsets, groups, features // groups])
    d = tf.reshape(delta, [tf.shape(delta)[0], -1, groups, delta.shape[-1] // groups])

    def part(a_part, d_part):
        g = tf.einsum("npugi,npgo->nuigo", a_part, d_part)
        return tf.reduce_sum(magnitude(g), axis=0)

    elements = offsets * features // groups * delta.shape[-1]
    return sum_over_slices(part, (a, d), elements)


def _depthwise_sum(patches, delta, magnitude):
    """Return Σ_k magnitude(g_k), `[U, I, multiplier]`: each channel sees itself."""
    offsets, features = patches.shape[-2:]
    multiplier = delta.shape[-1] // features
    a = tf.reshape(patches, [tf.shape(patches)[0], -1, offsets, features])
    d = tf.reshape(delta, [tf.shape(delta)[0], -1, features, multiplier])

    def part(a_part, d_part):
        g = tf.einsum("npui,npim->nuim", a_part, d_part)
        return tf.reduce_sum(magnitude(g), axis=0)

    return sum_over_slices(part, (a, d), offsets * features * multiplier)


def _unfold(a, z, layer):
    """Return `[N, *positions of z, U, I]`: what each offset of the kernel sees of a `[N, ..., I]`.

    Plain slices serve every rank and dilation, which TensorFlow's own patch extraction does not.
    """
    geometry = list(zip(layer.kernel_size, layer.strides, layer.dilation_rate, strict=True))
    sizes = [_size(z, axis + 1) for axis in range(len(geometry))]
    pads = [
        _pads(layer.padding, _size(a, axis + 1), size, *one)
        for axis, (size, one) in enumerate(zip(sizes, geometry, strict=True))
    ]
    padded = tf.pad(a, [(0, 0), *pads, (0, 0)])
    seen = [
        padded[(slice(None), *_seen(offset, sizes, geometry))]
        for offset in itertools.product(*(range(size) for size in layer.kernel_size))
    ]
    return tf.stack(seen, axis=-2)


def _seen(offset, sizes, geometry):
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


def _leading(patches):
    """Return the sizes of all axes but the last two, as they are known."""
    return [_size(patches, axis) for axis in range(patches.shape.rank - 2)]


def _size(tensor, axis):
    size = tensor.shape[axis]
    return tf.shape(tensor)[axis] if size is None else size
