"""Errors about a batch that a model cannot be measured on."""

import re
from typing import Any

import keras
import tensorflow as tf

# What TensorFlow raises on data that a model was not made for, or on Python's `if` of a tensor.
FAILURES = (tf.errors.OpError, tf.errors.OperatorNotAllowedInGraphError)

# Paragraphs that Keras puts around TensorFlow's own message.
_AROUND = ("Exception encountered when calling", "Arguments received by")


def is_finite(*tensors: tf.Tensor) -> tf.Tensor:
    """Return whether squared norms and magnitudes, all ≥ 0, are finite.

    Both are checked: a ReLU can hide a NaN in the input from the output.
    """
    # One pass: in float32 or wider a sum of finite terms ≥ 0 overflows only where they do.
    sums = [tf.reduce_sum(tensor) for tensor in tensors]
    return tf.reduce_all([tf.math.is_finite(total) for total in sums])


def batch_failed(model: keras.Model, inputs: Any, number: int, error: Exception) -> ValueError:
    """Return the error to raise for a batch, counted from 0, on which TensorFlow failed."""
    received = tf.nest.map_structure(
        lambda tensor: f"{tuple(tensor.shape)} {tensor.dtype.name}", inputs
    )
    paragraphs = re.sub("\x1b\\[\\dm", "", str(error)).strip().split("\n\n")
    said = [part for part in paragraphs if not part.startswith(_AROUND)][-1].splitlines()[0]
    return ValueError(
        f"Expected inputs that '{model.name}' can take, and outputs with a row for each of them. "
        f"Received: {received} in batch {number} (counted from 0), on which TensorFlow said: "
        f"{said}. Try `model(batch)`; a model that needs the numbers themselves in its "
        "`call` is measured after `compile(run_eagerly=True)`."
    )


def not_finite(model: keras.Model, number: int) -> ValueError:
    """Return the error to raise for a batch, counted from 0, with NaN or infinite importance."""
    return ValueError(
        f"Expected finite outputs and gradients of '{model.name}'. Received: NaN or infinity in "
        f"batch {number} (counted from 0). Look at the inputs of that batch, and at the weights: "
        "training may have diverged."
    )
