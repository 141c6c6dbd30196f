"""F: which output of a model is the function that it has learned."""

import keras
import tensorflow as tf
from keras import layers

from .watch import flatten_layers, own_activation, watching

_PROBABILITIES = (keras.activations.softmax, keras.activations.sigmoid)

# Layers that are nothing but an activation, which a layer before them leaves to them.
_ACTIVATIONS = (
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Softmax,
)

LOGITS = "logits"
OUTPUT = "output"
LAYERS = "layers"


def learned_function(model, inputs, tape, choice):
    """Run a model in inference; return the tensors of F, whose squared norm is measured.

    Args:
        model: `keras.Model`.
        inputs: One batch, tensors `[N, ...]`.
        tape: The tape that watches what comes out of each layer.
        choice: `"logits"`, `"output"`, `"layers"`, the name of a layer, or a function of the
            outputs; see `measure_sums`.

    Returns:
        List of tensors `[N, ...]`, and the `Call`s of the layers.

    Raises:
        ValueError: If no layer has that name, or it was not called; or, for `"layers"`, if a weight
            is in no layer.
    """
    apart = _functions_of_their_own(model) if choice == LAYERS else ()
    # What a call of a layer moves (a counter, a codebook) it moves in this scope alone.
    with watching(flatten_layers(model), tape, apart) as calls, keras.StatelessScope():
        outputs = model(inputs, training=False)
    tensors = [tensor for tensor in _chosen(outputs, calls, choice) if tensor is not None]
    if not tensors:
        raise ValueError(f"Expected at least one output tensor of '{model.name}'. Received: none.")
    return tensors, calls


def _functions_of_their_own(model):
    """Return the layers with trainable weights, those of models inside the model among them."""
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += _functions_of_their_own(layer)
        elif layer.trainable_weights:
            found.append(layer)
    held = {id(weight) for layer in found for weight in layer.trainable_weights}
    for weight in model.trainable_weights:
        if id(weight) not in held:
            raise ValueError(
                f"Expected every weight in a layer, for output='{LAYERS}' takes each layer for a "
                f"function of its own. Received: '{weight.path}', a weight of the model "
                f"'{model.name}' itself. Put it into a layer, or choose another output."
            )
    return found


def _chosen(outputs, calls, choice):
    if callable(choice):
        return tf.nest.flatten(choice(outputs))
    outer = tf.compat.v1.get_default_graph()
    if choice == LAYERS:
        for call in calls:
            if call.is_apart and call.graph is not outer:
                raise ValueError(
                    f"Expected every layer called by the model itself, for output='{LAYERS}'. "
                    f"Received: '{call.layer.path}', called in a loop, a branch or a function of "
                    "TensorFlow. Choose another output."
                )
        answers = [_activated(call, calls) for call in calls if call.is_apart]
        ends = {id(tensor) for tensor in tf.nest.flatten(outputs)}
        return [
            _before_probabilities(tensor, calls) if id(tensor) in ends else tensor
            for answer in answers
            for tensor in tf.nest.flatten(answer)
        ]
    if choice == OUTPUT:
        return tf.nest.flatten(outputs)
    if choice == LOGITS:
        return [_before_probabilities(tensor, calls) for tensor in tf.nest.flatten(outputs)]
    named = [call for call in calls if call.layer.name == choice and call.graph is outer]
    if not named:
        names = list(dict.fromkeys(call.layer.name for call in calls))
        raise ValueError(
            f"Expected '{LOGITS}', '{OUTPUT}', '{LAYERS}', a function, or the name of a layer: "
            f"{', '.join(names)}. Received: '{choice}' as `output`."
        )
    return tf.nest.flatten(named[-1].output)


def _before_probabilities(tensor, calls):
    """Return what a softmax or sigmoid made the tensor of, or the tensor itself."""
    for call in calls:
        if call.output is tensor and _ends_in_probabilities(call.layer):
            return call.tensors[0] if call.preactivation is tensor else call.preactivation
    return tensor


def _activated(call, calls):
    """Return what a layer answers, after the activation if that is the next layer."""
    behind = [
        later
        for later in calls
        if any(tensor is call.output for tensor in later.given)
        and not isinstance(later.layer, keras.Model)  # its first layer is there too
    ]
    if len(behind) == 1 and isinstance(behind[0].layer, _ACTIVATIONS):
        return behind[0].output
    return call.output


def _ends_in_probabilities(layer):
    if isinstance(layer, layers.Softmax):
        return True
    if isinstance(layer, layers.Activation):
        return layer.activation in _PROBABILITIES
    return own_activation(layer) in _PROBABILITIES
