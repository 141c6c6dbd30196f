"""Sums over positions and over examples, with a slice of the examples in memory at a time."""

import contextlib
import contextvars
import math

import tensorflow as tf

from ...context import holding

# Memory for the largest product of one slice of examples. From 1 MB to 64 MB the time hardly
# depends on it.
SLICE_BYTES = 2**22

_slice_bytes = contextvars.ContextVar("slice_bytes", default=SLICE_BYTES)


def slices_of(size: int) -> contextlib.AbstractContextManager[None]:
    """Set the memory in bytes for one slice in the rules that are traced inside the block."""
    return holding(_slice_bytes, size)


def flat_positions(tensor):
    """Flatten `[N, ..., C]` to `[N, T, C]`."""
    if tensor.shape.rank == 3:
        return tensor
    positions = tensor.shape[1:-1]
    total = math.prod(positions) if positions.is_fully_defined() else -1
    return tf.reshape(tensor, [tf.shape(tensor)[0], total, tensor.shape[-1]])


def sum_to_axes(tensor, axes):
    """Sum `[N, ...]` over every axis but the first and `axes`, where a weight was broadcast."""
    kept = {axis % tensor.shape.rank for axis in axes} | {0}
    return tf.reduce_sum(tensor, [axis for axis in range(tensor.shape.rank) if axis not in kept])


def sum_to_shape(tensor, shape):
    """Sum `[N, ...]` to `[N, *shape]`, where a weight of `shape` was broadcast as NumPy does."""
    full = [1] * (tensor.shape.rank - 1 - len(shape)) + list(shape)
    summed = tf.reduce_sum(tensor, [i + 1 for i, size in enumerate(full) if size == 1])
    return tf.reshape(summed, [-1, *shape])


def sum_first(tensor):
    """Sum `[n, *shape]` over its first axis, `shape` known.

    By a product with ones, which takes TensorFlow two thirds of the time of `tf.reduce_sum`.
    """
    shape = tensor.shape[1:]
    flat = tf.reshape(tensor, [-1, shape.num_elements()])
    ones = tf.ones([1, tf.shape(flat)[0]], tensor.dtype)
    return tf.reshape(tf.matmul(ones, flat), shape)


def sum_over_examples(function, examples):
    """Return Σ_k function(*example_k), holding one example's terms at a time.

    Args:
        function: From the tensors of one example, without their first axis, to a tensor, or a list
            of tensors.
        examples: Tuple of tensors `[N, ...]`, N ≥ 1.
    """
    first = function(*(tensor[0] for tensor in examples))

    def add(sums, example):
        return tf.nest.map_structure(tf.add, sums, function(*example))

    return tf.foldl(
        add, tuple(tensor[1:] for tensor in examples), initializer=first, parallel_iterations=1
    )


def sum_over_slices(function, examples, elements):
    """Return the sum of `function` over slices of the examples, one slice in memory at a time.

    Args:
        function: From tensors `[n, ...]`, n ≥ 1, to a tensor that adds up over examples.
        examples: Tuple of tensors `[N, ...]`, N ≥ 1.
        elements: Elements of the largest product that one example needs; an int.
    """
    size = max(1, _slice_bytes.get() // (examples[0].dtype.size * max(1, elements)))
    total = tf.shape(examples[0])[0]

    def part(start):
        return function(*(tensor[start : start + size] for tensor in examples))

    if size == 1:
        return sum_over_examples(
            lambda *example: function(*(tensor[None] for tensor in example)), examples
        )
    return tf.while_loop(
        lambda start, _: start < total,
        lambda start, sums: (start + size, sums + part(start)),
        (tf.constant(size), part(0)),
        parallel_iterations=1,
    )[1]
