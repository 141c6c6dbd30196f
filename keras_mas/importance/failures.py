"""Errors about a batch that a model cannot be measured on."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf

from ..errors import NotFiniteError, without_operations

# What TensorFlow raises on data that a model was not made for, or on Python's `if` of a tensor.
_FAILURES = (tf.errors.OpError, tf.errors.OperatorNotAllowedInGraphError)

# Paragraphs that Keras puts around TensorFlow's own message.
_AROUND = ("Exception encountered when calling", "Arguments received by")

# By which an error of Keras about what it was called with is told from one of ours.
_OF_KERAS = (_AROUND[0], "is incompatible with the layer")


def is_finite(*tensors: tf.Tensor) -> tf.Tensor:
    """Return whether squared norms and magnitudes, all ≥ 0, are finite.

    Both are checked: a ReLU can hide a NaN in the input from the output.
    """
    # One pass: in float32 or wider a sum of finite terms ≥ 0 overflows only where they do.
    sums = [tf.reduce_sum(tensor) for tensor in tensors]
    return tf.reduce_all([tf.math.is_finite(total) for total in sums])


@contextlib.contextmanager
def naming_batch(model: keras.Model, inputs: Any, number: int) -> Iterator[None]:
    """Raise errors of the block, in which a model is measured on a batch, as ones that name it.

    Args:
        model: The model.
        inputs: Structure of the batch's tensors.
        number: Number of the batch, counted from 0.
    """
    try:
        yield
    except _FAILURES as error:
        cure = (
            "Try `model(batch)`; a model that needs the numbers themselves in its `call` is "
            "measured after `compile(run_eagerly=True)`."
        )
        raise _batch_failed(model, inputs, number, "TensorFlow", error, cure) from error
    except ValueError as error:
        if any(words in str(error) for words in _OF_KERAS):
            cure = "Try `model(batch)`, and give all batches the shape that the model was made for."
            raise _batch_failed(model, inputs, number, "Keras", error, cure) from error
        if number == 0:  # an option, and nothing of this batch
            raise
        raise ValueError(f"{error} This was batch {number} (counted from 0).") from error


def _batch_failed(model, inputs, number, library, error, cure):
    received = tf.nest.map_structure(
        lambda tensor: f"{tuple(tensor.shape)} {tensor.dtype.name}", inputs
    )
    return ValueError(
        f"Expected inputs that '{model.name}' can take, and outputs with a row for each of them. "
        f"Received: {received} in batch {number} (counted from 0), on which {library} said: "
        f"{_first_line(error)}. {cure}"
    )


def reading_batches(data: Iterable[Any]) -> Iterator[Any]:
    """Yield batches; an error names the one that could not be read, counted from 0."""
    number = 0
    iterator = iter(data)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            raise ValueError(
                f"Expected data that can be read to their end. Received: batch {number} (counted "
                f"from 0), on which TensorFlow said: {_first_line(error)}. Iterate over the data "
                "alone to find the cause."
            ) from error
        except Exception as error:  # of the user's own code, which may tell one by its class
            error.add_note(f"This was raised while batch {number} (counted from 0) was read.")
            raise
        yield batch
        number += 1


def refuse_complex(model: keras.Model, inputs: Any, number: int) -> None:
    """Raise a ValueError for complex inputs that a model would cast, without their imaginary part.

    Args:
        model: The model. Only one that declares its inputs casts them.
        inputs: Structure of tensors.
        number: Number of the batch, counted from 0.
    """
    declared = tf.nest.flatten(getattr(model, "inputs", None) or [])
    if not declared or any(tf.as_dtype(tensor.dtype).is_complex for tensor in declared):
        return
    for tensor in tf.nest.flatten(inputs):
        if tensor.dtype.is_complex:
            raise ValueError(
                f"Expected real inputs, as '{model.name}' declares them. Received: "
                f"{tensor.dtype.name} in batch {number} (counted from 0). Pass `numpy.real(x)` and "
                "`numpy.imag(x)` as two features, or give the model complex inputs."
            )


def not_finite(model: keras.Model, number: int) -> NotFiniteError:
    """Return the error to raise for a batch, counted from 0, with NaN or infinite importance."""
    return NotFiniteError(
        f"Expected finite outputs and gradients of '{model.name}'. Received: NaN or infinity in "
        f"batch {number} (counted from 0). Look at the inputs of that batch, and at the weights: "
        "training may have diverged."
    )


def _first_line(error: Exception) -> str:
    """Return what TensorFlow said itself, in one line and without a full stop."""
    # TensorFlow repeats the traceback of a Python function that it calls.
    text = str(error).partition("\nTraceback (most recent call last)")[0]
    paragraphs = re.sub("\x1b\\[\\dm", "", text).strip().split("\n\n")
    said = [part for part in paragraphs if not part.startswith(_AROUND)][-1].splitlines()
    line = without_operations(said[0]) if said else type(error).__name__
    return line.rstrip(".")
