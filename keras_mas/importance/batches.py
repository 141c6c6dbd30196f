"""Batches out of whatever `model.fit` takes."""

import itertools

import keras
import tensorflow as tf


def batches(inputs, batch_size, max_examples=None, labels=None):
    """Yield the inputs of one batch after the other, without labels unless these are asked for.

    Args:
        inputs: One of
            an array `[N, ...]`, or a list or dict of such arrays for a model of several inputs;
            a `tf.data.Dataset`, `keras.utils.PyDataset` or iterable of batches `x`, `(x, y)` or
            `(x, y, sample_weight)`, as for `fit`: y and the sample weights are dropped.
        batch_size: Examples per batch of arrays; batched data keep their own.
        max_examples: Stop after so many examples; None for all of them.
        labels: None for inputs alone; `"given"` for the y of a dataset beside them; or an array
            `[N]` beside arrays.

    Yields:
        The model's input structure, of tensors `[n, ...]` with n ≥ 1; the last may be shorter. With
        labels, a pair of these and the labels.

    Raises:
        ValueError: If there is no example, or arrays differ in length.
    """
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"Expected max_examples of at least 1, or None. Received: {max_examples}.")
    _check_end(inputs, max_examples)
    count = 0
    for batch in _batches(inputs, batch_size, labels):
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


def count_examples(batch):
    """Return n of a batch whose tensors are `[n, ...]`; ValueError if they disagree."""
    shapes = [tuple(array.shape) for array in tf.nest.flatten(batch)]
    lengths = {int(shape[0]) if shape else None for shape in shapes}
    if None in lengths:
        raise ValueError("Expected arrays [N, ...] of examples. Received: a single number.")
    if len(lengths) != 1:
        raise ValueError(
            f"Expected inputs with the same number of examples. Received: {sorted(lengths)}. "
            "Pass one row of every input per example."
        )
    return lengths.pop()


def _tensor(array):
    try:
        return tf.convert_to_tensor(array)
    except (TypeError, ValueError):
        raise ValueError(
            f"Expected arrays of numbers. Received: a {type(array).__name__} of dtype "
            f"{getattr(array, 'dtype', None)}, of which no tensor can be made. Convert the "
            'examples, with `numpy.asarray(x, "float32")` for example.'
        ) from None


def _batches(inputs, batch_size, labels):
    if isinstance(inputs, keras.utils.PyDataset):
        return _parts((inputs[i] for i in _forever_or(inputs.num_batches)), labels)
    if _is_arrays(inputs):
        return _slices(inputs if labels is None else (inputs, labels), batch_size)
    if isinstance(inputs, tuple | str) or not hasattr(inputs, "__iter__"):
        raise ValueError(
            "Expected an array, a list or dict of arrays (several inputs), or a dataset. Received: "
            f"{type(inputs).__name__}. Pass the inputs alone, without labels."
        )
    return _parts(inputs, labels)


def _forever_or(count):
    return itertools.count() if count is None else range(count)


def _check_end(inputs, max_examples):
    """Refuse data that never end, as `repeat()` makes them, without a limit."""
    if isinstance(inputs, tf.data.Dataset):
        is_endless = inputs.cardinality() == tf.data.INFINITE_CARDINALITY
    else:
        is_endless = isinstance(inputs, keras.utils.PyDataset) and inputs.num_batches is None
    if is_endless and max_examples is None:
        raise ValueError(
            "Expected data that end. Received: a dataset that repeats for ever. Leave out its "
            "`repeat()`, or pass `max_examples`."
        )


def _is_arrays(inputs):
    return isinstance(inputs, dict | list) or _is_array(inputs)


def _is_array(value):
    return hasattr(value, "shape") and hasattr(value, "__getitem__")


def _slices(arrays, batch_size):
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"Expected a batch size of at least 1. Received: {batch_size}.")
    columns = tf.nest.flatten(arrays)
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
    for batch in dataset:
        x, y, _ = keras.utils.unpack_x_y_sample_weight(batch)
        if labels is None:
            yield x
        elif y is None:
            raise ValueError(
                'Expected batches (x, y). Received: batches without labels. Pass labels="exact" or '
                '"sampled", which need none.'
            )
        else:
            yield x, y
