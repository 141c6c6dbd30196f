"""Batches of examples from any data that `model.fit` takes."""

import itertools
import operator
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .failures import reading_batches

# Things that have a shape or can be iterated over, and are neither arrays nor data sets.
_NO_DATA = (
    tuple,
    str,
    bytes,
    bytearray,
    memoryview,
    type,
    tf.RaggedTensor,
    tf.SparseTensor,
    keras.KerasTensor,
)


def batches(
    inputs: Any, batch_size: int, max_examples: int | None = None, labels: Any = None
) -> Iterator[Any]:
    """Yield the inputs of one batch after the other, and their labels if these are asked for.

    Args:
        inputs: One of
            an array `[N, ...]`, or a list or dict of such arrays for a model of several inputs;
            a `tf.data.Dataset`, `keras.utils.PyDataset` or iterable of batches `x`, `(x, y)` or
            `(x, y, sample_weight)`, as for `fit`: y and the sample weights are dropped.
        batch_size: Examples per batch of arrays; data that are batched already keep their batches.
        max_examples: Stop after so many examples; None for all of them.
        labels: None for inputs alone; `"given"` for the y of a dataset too; or an array `[N]` of
            labels for inputs in arrays.

    Yields:
        The model's input structure, of tensors `[n, ...]` with n ≥ 1; the last may be shorter. With
        labels, a pair of these and the labels.

    Raises:
        ValueError: If there is no example, if arrays differ in length, if labels are asked for and
            there are none, or an array of them beside a dataset, if a number is not a positive
            integer, if TensorFlow fails to read a batch, or if the data are endless and
            `max_examples` is None.
    """
    batch_size = positive_integer("batch_size", batch_size)
    if max_examples is not None:
        max_examples = positive_integer("max_examples", max_examples)
    _check_end(inputs, max_examples)
    count = 0
    for batch in reading_batches(_batches(inputs, batch_size, labels)):
        batch = tf.nest.map_structure(_tensor, batch)
        examples = count_examples(batch)
        if max_examples is not None and examples > max_examples - count:
            examples = max_examples - count
            batch = tf.nest.map_structure(lambda tensor, n=examples: tensor[:n], batch)
        if examples:
            count += examples
            yield batch
        if count == max_examples:
            return
    if not count:
        raise ValueError(
            "Expected at least one example to measure importance on. Received: none. "
            "Pass the inputs of the task that was just learned."
        )


def positive_integer(name: str, value: Any) -> int:
    """Return an argument as an int; ValueError if it is no integer (NumPy's are) of at least 1."""
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if number < 1 or isinstance(value, bool | np.bool_):
        raise ValueError(f"Expected {name} to be an integer of at least 1. Received: {value!r}.")
    return number


def total_examples(inputs: Any, max_examples: int | None = None) -> int | None:
    """Return how many examples `batches` yields, or None if only iterating can tell.

    Args:
        inputs: As for `batches`.
        max_examples: As for `batches`.
    """
    total = _length(inputs)
    if max_examples is None:
        return total
    limit = positive_integer("max_examples", max_examples)
    if total is None:
        return limit if _is_endless(inputs) else None
    return min(total, limit)


def _length(inputs):
    if isinstance(inputs, tf.data.Dataset):
        batches, size = int(inputs.cardinality()), _fixed_batch_size(inputs)
        return batches * size if batches >= 0 and size is not None else None
    if isinstance(inputs, keras.utils.PyDataset) or not _is_arrays(inputs):
        return None
    columns = _columns(inputs)
    if not columns or not all(map(_is_array, columns)):
        return None
    shape = tuple(columns[0].shape)
    return int(shape[0]) if shape else None


def _fixed_batch_size(dataset):
    """Return the batch size of a `tf.data.Dataset` whose batches all have it, or None."""
    shapes = [getattr(spec, "shape", None) for spec in tf.nest.flatten(dataset.element_spec)]
    sizes = {shape[0] if shape is not None and shape.rank else None for shape in shapes}
    return sizes.pop() if len(sizes) == 1 else None


def count_examples(batch: Any) -> int:
    """Return n of a batch whose tensors are `[n, ...]`; ValueError if they disagree."""
    shapes = [tuple(array.shape) for array in tf.nest.flatten(batch)]
    if not all(shapes):
        raise ValueError("Expected arrays [N, ...] of examples. Received: a single number.")
    lengths = {int(shape[0]) for shape in shapes}
    if len(lengths) != 1:
        raise ValueError(
            f"Expected inputs with the same number of examples. Received: {sorted(lengths)}. "
            "Pass one row of every input per example."
        )
    return lengths.pop()


def _tensor(array):
    try:
        # A copy of a tensor, to which Keras may attach a mask.
        return tf.identity(tf.convert_to_tensor(array))
    except (TypeError, ValueError):
        raise ValueError(
            f"Expected arrays of numbers. Received: a {type(array).__name__} of dtype "
            f"{getattr(array, 'dtype', None)}, which TensorFlow cannot convert to a tensor. "
            'Convert the examples, with `numpy.asarray(x, "float32")` for example.'
        ) from None


def _batches(inputs, batch_size, labels):
    if isinstance(inputs, keras.utils.PyDataset):
        count = inputs.num_batches
        numbers = itertools.count() if count is None else range(count)
        return _parts((inputs[i] for i in numbers), labels)
    if _is_arrays(inputs):
        if _is_given(labels):
            raise _no_labels()
        return _slices(inputs if labels is None else (inputs, labels), batch_size)
    if isinstance(inputs, _NO_DATA) or not hasattr(inputs, "__iter__"):
        cure = (
            "Pass the inputs alone, without labels."
            if isinstance(inputs, tuple)
            else "Make an array of the examples, padded to one shape, with `numpy.asarray`."
        )
        raise ValueError(
            "Expected an array, a list or dict of arrays (several inputs), or a dataset. Received: "
            f"{type(inputs).__name__}. {cure}"
        )
    return _parts(inputs, labels)


def _check_end(inputs, max_examples):
    """Refuse endless data, such as those of `repeat()`, without a limit."""
    if max_examples is None and _is_endless(inputs):
        raise ValueError(
            "Expected data that end. Received: a dataset that repeats for ever. Leave out its "
            "`repeat()`, or pass `max_examples`."
        )


def _is_endless(inputs):
    if isinstance(inputs, tf.data.Dataset):
        return bool(inputs.cardinality() == tf.data.INFINITE_CARDINALITY)
    return isinstance(inputs, keras.utils.PyDataset) and inputs.num_batches is None


def _is_arrays(inputs):
    return isinstance(inputs, dict | list) or _is_array(inputs)


def _is_array(value):
    has_rows = hasattr(value, "shape") and hasattr(value, "__getitem__")
    return has_rows and not isinstance(value, _NO_DATA)


def _columns(arrays):
    try:
        return tf.nest.flatten(arrays)
    except NotImplementedError:  # TensorFlow takes a memoryview for a sequence of its rows
        return [memoryview(b"")]


def _slices(arrays, batch_size):
    columns = _columns(arrays)
    if not columns or not all(map(_is_array, columns)):
        raise ValueError(
            "Expected an array, a list or dict of arrays, or a dataset. Received: "
            f"{type(arrays).__name__} of {sorted({type(column).__name__ for column in columns})}. "
            "Convert the examples with `numpy.asarray`."
        )
    for start in range(0, count_examples(arrays), batch_size):
        rows = slice(start, start + batch_size)
        yield tf.nest.map_structure(lambda array, rows=rows: array[rows], arrays)


def _parts(dataset, labels):
    """Yield x, or x and y, of a dataset's batches."""
    if labels is not None and not _is_given(labels):
        raise ValueError(
            "Expected no labels beside a dataset, whose batches (x, y) have their own. Received: "
            f"a {type(labels).__name__} of labels. Pass the inputs as an array, too, or a dataset "
            'of (x, y) with "given" as its labels.'
        )
    for batch in dataset:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        if labels is None:
            yield x
        elif y is None:
            raise _no_labels()
        else:
            yield x, y


def _is_given(labels):
    return isinstance(labels, str) and labels == "given"


def _no_labels():
    return ValueError(
        "Expected labels. Received: inputs alone. Pass the labels `y` beside an array of inputs, "
        "or batches (x, y)."
    )
