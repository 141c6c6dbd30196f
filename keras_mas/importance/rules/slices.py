"""Sums over positions and over examples, with a slice of the examples in memory at a time."""

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator

import tensorflow as tf

from ...context import holding

# Memory for the largest product of one slice of examples. From 1 MB to 64 MB the time hardly
# depends on it.
SLICE_BYTES = 2**22

_slice_bytes = contextvars.ContextVar("slice_bytes", default=SLICE_BYTES)
_traces: contextvars.ContextVar[dict[tuple, Callable]] = contextvars.ContextVar("traces")


@contextlib.contextmanager
def tracing_rules(slice_bytes: int) -> Iterator[None]:
    """Set the memory for one slice in rules traced inside the block, which share their traces."""
    with holding(_slice_bytes, slice_bytes), holding(_traces, {}):
        yield


def traced_once(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Trace a function once for all calls in one `tracing_rules` that are alike, as a decorator.

    Calls are alike if they have equal options, and tensors of equal ranks and dtypes: the function
    is traced for tensors of any size.

    The function takes tensors, and by name options that can be compared; it returns a tensor.
    """

    @functools.wraps(function)
    def call(*tensors, **options):
        specs = tuple(tf.TensorSpec([None] * len(tensor.shape), tensor.dtype) for tensor in tensors)
        key = function, specs, tuple(options.items())
        traces = _traces.get({})  # outside of `tracing_rules` nothing is shared
        if key not in traces:
            # Put in line, each call would be optimized by itself.
            traced = tf.function(
                functools.partial(function, **options),
                autograph=False,
                experimental_attributes={"_noinline": True},
            )
            traces[key] = traced.get_concrete_function(*specs)
        return traces[key](*tensors)

    return call


def flat_positions(tensor):
    """Flatten `[N, ..., C]` to `[N, T, C]`."""
    if tensor.shape.rank == 3:
        return tensor
    positions = tensor.shape[1:-1]
    if positions.is_fully_defined():
        return tf.reshape(tensor, [-1, math.prod(positions), tensor.shape[-1]])
    return tf.reshape(tensor, [tf.shape(tensor)[0], -1, tensor.shape[-1]])


def sum_to_axes(tensor, axes):
    """Sum `[N, ...]` over every axis but the first and `axes`, where a weight was broadcast."""
    kept = {axis % tensor.shape.rank for axis in axes} | {0}
    return tf.reduce_sum(tensor, [axis for axis in range(tensor.shape.rank) if axis not in kept])


def sum_to_shape(tensor, shape):
    """Sum `[N, ...]` to `[N, *shape]`, where a weight of `shape` was broadcast as NumPy does."""
    full = [1] * (tensor.shape.rank - 1 - len(shape)) + list(shape)
    summed = tf.reduce_sum(tensor, [i + 1 for i, size in enumerate(full) if size == 1])
    return summed if 1 not in shape else tf.reshape(summed, [-1, *shape])


def sum_first(tensor):
    """Sum `[n, *shape]` over its first axis, `shape` known.

    By a product with ones `[1, n]`, which takes TensorFlow two thirds of the time of
    `tf.reduce_sum`.
    """
    shape = tensor.shape[1:]
    flat = tf.reshape(tensor, [-1, shape.num_elements()])
    return tf.reshape(tf.matmul(ones_for(tensor), flat), shape)


def ones_for(tensor):
    """Return the ones `[1, n]` that `sum_first` multiplies `[n, ...]` with."""
    return tf.ones([1, tf.shape(tensor)[0]], tensor.dtype)


def sum_over_examples(function, examples, zero):
    """Return Σ_k function(*example_k), holding one example's terms at a time.

    Args:
        function: From the tensors of one example, without their first axis, to a tensor, or a list
            of tensors.
        examples: Tuple of tensors `[N, ...]`.
        zero: The sum over no examples.
    """

    # From 0, and not from the first example, so that the function is traced once.
    def add(sums, example):
        return tf.nest.map_structure(tf.add, sums, function(*example))

    return tf.foldl(add, examples, initializer=zero, parallel_iterations=1)


def sum_over_slices(function, examples, elements, zero):
    """Return the sum of `function` over slices of the examples, one slice in memory at a time.

    Args:
        function: From tensors `[n, ...]`, n ≥ 1, to a tensor that adds up over examples.
        examples: Tuple of tensors `[N, ...]`.
        elements: Elements of the largest product that one example needs; an int or a scalar tensor.
        zero: The sum over no examples.
    """
    size = tf.maximum(1, _slice_bytes.get() // (examples[0].dtype.size * tf.maximum(1, elements)))
    total = tf.shape(examples[0])[0]

    def add(start, sums):
        part = function(*(tensor[start : start + size] for tensor in examples))
        return start + size, sums + part

    return tf.while_loop(
        lambda start, _: start < total, add, (tf.constant(0), zero), parallel_iterations=1
    )[1]
