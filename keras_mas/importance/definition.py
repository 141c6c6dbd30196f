"""The definition of importance, one example at a time: obviously right, and slow."""

import re

import tensorflow as tf

from ..weights import trainable_weights
from .batches import batches, count_examples
from .outputs import LOGITS, learned_function
from .watch import flatten_layers, measuring


def squared_norms(outputs):
    """Return ‖F(x_k)‖² of every example: the squares of all its outputs, added up.

    Args:
        outputs: Tensor `[N, ...]`, or any structure of such tensors.

    Returns:
        Tensor `[N]`, float32, or float64 where an output is.
    """
    norms = [_squared_norm(output) for output in tf.nest.flatten(outputs)]
    widest = tf.float64 if any(norm.dtype == tf.float64 for norm in norms) else tf.float32
    return tf.add_n([tf.cast(norm, widest) for norm in norms])


def _squared_norm(output):
    if output.shape.rank == 0:
        raise ValueError(
            "Expected outputs with a row for each example. Received: a single number. Choose "
            "another `output`."
        )
    if output.dtype.is_complex:
        squares = tf.math.real(output * tf.math.conj(output))
    else:
        # Half precision would overflow at ‖F‖ = 256.
        precise = output if output.dtype == tf.float64 else tf.cast(output, tf.float32)
        squares = tf.square(precise)
    return tf.reduce_sum(squares, axis=tf.range(1, tf.rank(output)))


def is_finite(norms, *magnitudes):
    """Return whether ‖F‖² and all |g| are finite: a ReLU can hide a NaN input from the output."""
    # A sum tells in one pass; in float32 and of terms ≥ 0 it is not infinite by itself.
    sums = [tf.reduce_sum(tensor) for tensor in (norms, *magnitudes)]
    return tf.reduce_all([tf.math.is_finite(total) for total in sums])


# What TensorFlow raises on data that a model was not made for, or on Python's `if` of a tensor.
FAILURES = (tf.errors.OpError, tf.errors.OperatorNotAllowedInGraphError)

_KERAS_SAYS = ("Exception encountered when calling", "Arguments received by")


def refused(model, inputs, number, error):
    """Return the error of a batch, counted from 0, that TensorFlow has failed on."""
    received = tf.nest.map_structure(
        lambda tensor: f"{tuple(tensor.shape)} {tensor.dtype.name}", inputs
    )
    # Around what TensorFlow said stand a trace, and what Keras says of the layer.
    paragraphs = re.sub("\x1b\\[\\dm", "", str(error)).strip().split("\n\n")
    said = [part for part in paragraphs if not part.startswith(_KERAS_SAYS)][-1].splitlines()[0]
    return ValueError(
        f"Expected inputs that '{model.name}' can take, and outputs with a row for each of them. "
        f"Received: {received} in batch {number} (counted from 0), on which TensorFlow said: "
        f"{said}. Try `model(batch)`; a model that needs the numbers themselves in its "
        "`call` is measured after `compile(run_eagerly=True)`."
    )


def not_finite(model, number):
    """Return the error of a batch, counted from 0, on which importance is NaN or infinite."""
    return ValueError(
        f"Expected finite outputs and gradients of '{model.name}'. Received: NaN or infinity in "
        f"batch {number} (counted from 0). Look at the inputs of that batch, or at a training that "
        "diverged."
    )


def importance_one_by_one(model, inputs, *, output=LOGITS):
    """Mean sensitivity of the squared output norm to every weight, by its definition.

    For inputs x_1 … x_N and network output F,

        g_k = ∂‖F(x_k; θ)‖² / ∂θ        Ω = 1/N Σ_k |g_k|

    (Eq. 2 and Sec. 4.1 of Aljundi et al., arXiv:1711.09601), each g_k from a gradient tape of its
    own. Use it to check a fast rule; `compute_importance` gives the same numbers sooner.

    Args:
        model: Built `keras.Model`; run with `training=False`.
        inputs: As in `compute_importance`.
        output: As in `compute_importance`.

    Returns:
        Dict from `variable.path` to an array of the variable's shape, all entries ≥ 0.

    Raises:
        ValueError: As `compute_importance`.

    Example:
        >>> import keras, numpy as np
        >>> x = keras.Input([1])
        >>> line = keras.Model(x, keras.layers.Dense(1, name="line")(x))
        >>> line.set_weights([np.array([[1.0]]), np.array([0.0])])
        >>> omega = importance_one_by_one(line, np.array([[1.0], [-1.0]]))
        >>> {path: values.tolist() for path, values in omega.items()}
        {'line/kernel': [[2.0]], 'line/bias': [2.0]}
    """
    weights = trainable_weights(model)
    layers = flatten_layers(model)
    total, examples = {path: 0.0 for path in weights}, 0
    for number, batch in enumerate(batches(inputs, batch_size=1)):
        for k in range(count_examples(batch)):
            example = tf.nest.map_structure(lambda array, k=k: array[k : k + 1], batch)
            with measuring(layers), tf.GradientTape() as tape:
                try:
                    norm = squared_norms(learned_function(model, example, tape, output)[0])
                except FAILURES as error:
                    raise refused(model, example, number, error) from error
            gradients = tape.gradient(
                norm,
                [weight.value for weight in weights.values()],
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            magnitudes = [tf.abs(tf.convert_to_tensor(gradient)) for gradient in gradients]
            if not is_finite(norm, *magnitudes):
                raise not_finite(model, number)
            for path, magnitude in zip(weights, magnitudes, strict=True):
                total[path] += magnitude.numpy()
            examples += 1
    return {path: sums / examples for path, sums in total.items()}
