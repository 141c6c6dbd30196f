"""The definition of importance, computed one example at a time: slow, and easy to verify."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..weights import trainable_weights
from .batches import batches, count_examples
from .failures import is_finite, naming_batch, not_finite, refuse_complex
from .outputs import LOGITS, learned_function
from .unchanged import flatten_layers, leaving_unchanged


def squared_norms(outputs: Any) -> tf.Tensor:
    """Return ‖F(x_k)‖² of every example: the squares of all its outputs, added up.

    Args:
        outputs: Tensor `[N, ...]`, or any structure of such tensors.

    Returns:
        Tensor `[N]`, float32, or float64 where an output is.
    """
    norms = [_squared_norm(output) for output in tf.nest.flatten(outputs)]
    widest = tf.float64 if any(norm.dtype == tf.float64 for norm in norms) else tf.float32
    return tf.add_n([tf.cast(norm, widest) for norm in norms])


def _squared_norm(output: tf.Tensor) -> tf.Tensor:
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


def importance_one_by_one(
    model: keras.Model, inputs: Any, *, output: str | Callable[[Any], Any] = LOGITS
) -> dict[str, np.ndarray]:
    """Mean sensitivity of the squared output norm to every weight, by its definition.

    For inputs x_1 … x_N and network output F,

        g_k = ∂‖F(x_k; θ)‖² / ∂θ        Ω = 1/N Σ_k |g_k|

    (Eq. 2 and Sec. 4.1 of Aljundi et al., arXiv:1711.09601), each g_k from a gradient tape of its
    own. `compute_importance` gives the same numbers faster; `check_importance` compares the two.

    Args:
        model: Built `keras.Model`; run with `training=False`.
        inputs: As in `compute_importance`.
        output: As in `compute_importance`.

    Returns:
        Dict from the name of a weight, as in `compute_importance`, to an array of the weight's
        shape, all entries ≥ 0.

    Raises:
        ValueError: As `compute_importance`.

    Example:
        >>> import keras, numpy as np
        >>> x = keras.Input([1])
        >>> line = keras.Model(x, keras.layers.Dense(1, name="line")(x))
        >>> line.set_weights([np.array([[1.0]]), np.array([0.0])])
        >>> omega = importance_one_by_one(line, np.array([[1.0], [-1.0]]))
        >>> {name: values.tolist() for name, values in omega.items()}
        {'line/kernel': [[2.0]], 'line/bias': [2.0]}
    """
    weights = trainable_weights(model)
    layers = flatten_layers(model)
    sums: dict[str, Any] = dict.fromkeys(weights, 0.0)
    examples = 0
    for number, batch in enumerate(batches(inputs, batch_size=1)):
        refuse_complex(model, batch, number)
        for k in range(count_examples(batch)):
            example = tf.nest.map_structure(lambda array, k=k: array[k : k + 1], batch)
            named = naming_batch(model, example, number)
            with leaving_unchanged(layers), named, tf.GradientTape() as tape:
                norm = squared_norms(learned_function(model, example, tape, output)[0])
            gradients = tape.gradient(
                norm,
                [weight.value for weight in weights.values()],
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            magnitudes = [tf.abs(tf.convert_to_tensor(gradient)) for gradient in gradients]
            if not is_finite(norm, *magnitudes):
                raise not_finite(model, number)
            for name, magnitude in zip(weights, magnitudes, strict=True):
                sums[name] += magnitude.numpy()
            examples += 1
    return {name: values / examples for name, values in sums.items()}
