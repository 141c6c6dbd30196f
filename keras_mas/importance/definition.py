"""The definition of importance, one example at a time: obviously right, and slow."""

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
    return tf.add_n([_squared_norm(output) for output in tf.nest.flatten(outputs)])


def _squared_norm(output):
    # Half precision would overflow at ‖F‖ = 256.
    output = output if output.dtype == tf.float64 else tf.cast(output, tf.float32)
    return tf.reduce_sum(tf.square(output), axis=tf.range(1, tf.rank(output)))


def is_finite(norms, *magnitudes):
    """Return whether ‖F‖² and all |g| are finite: a ReLU can hide a NaN input from the output."""
    # A sum tells in one pass; in float32 and of terms ≥ 0 it is not infinite by itself.
    sums = [tf.reduce_sum(tensor) for tensor in (norms, *magnitudes)]
    return tf.reduce_all([tf.math.is_finite(total) for total in sums])


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
                norm = squared_norms(learned_function(model, example, tape, output)[0])
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
