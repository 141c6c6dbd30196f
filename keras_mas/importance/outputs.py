"""F: which output of a model is the function that it has learned."""

import keras
import tensorflow as tf

from .watch import own_activation

_PROBABILITIES = (keras.activations.softmax, keras.activations.sigmoid)

LOGITS = "logits"
OUTPUT = "output"


def learned_function(outputs, calls, choice):
    """Return the tensors whose squared norm is measured.

    Args:
        outputs: What the model answered.
        calls: The `Call`s of the layers of the model.
        choice: `"logits"`, `"output"`, the name of a layer, or a function of the outputs; see
            `compute_importance`.

    Returns:
        List of tensors `[N, ...]`.

    Raises:
        ValueError: If no layer has that name, or it was not called.
    """
    if callable(choice):
        return tf.nest.flatten(choice(outputs))
    if choice == OUTPUT:
        return tf.nest.flatten(outputs)
    if choice == LOGITS:
        return [_before_probabilities(tensor, calls) for tensor in tf.nest.flatten(outputs)]
    named = [call for call in calls if call.layer.name == choice]
    if not named:
        names = list(dict.fromkeys(call.layer.name for call in calls))
        raise ValueError(
            f"Expected '{LOGITS}', '{OUTPUT}', a function, or the name of a layer: "
            f"{', '.join(names)}. Received: '{choice}' as `output`."
        )
    return tf.nest.flatten(named[-1].output)


def _before_probabilities(tensor, calls):
    """Return what a softmax or sigmoid made the tensor of, or the tensor itself."""
    for call in calls:
        if call.output is tensor and _ends_in_probabilities(call.layer):
            return call.inputs if call.preactivation is tensor else call.preactivation
    return tensor


def _ends_in_probabilities(layer):
    if isinstance(layer, keras.layers.Softmax):
        return True
    if isinstance(layer, keras.layers.Activation):
        return layer.activation in _PROBABILITIES
    return own_activation(layer) in _PROBABILITIES
