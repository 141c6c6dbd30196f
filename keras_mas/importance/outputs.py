"""F, the function whose squared norm is differentiated: which output of a model that is."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from .recording import Call, own_activation, recording_calls
from .unchanged import flatten_layers

PROBABILITIES = (
    keras.activations.softmax,
    keras.activations.sigmoid,
    keras.ops.softmax,
    keras.ops.sigmoid,
    tf.nn.softmax,
    tf.nn.sigmoid,
)
"""Activations that make probabilities of logits."""

# Layers that only apply an activation, which counts as that of the layer before them.
_ACTIVATION_LAYERS = (
    layers.Activation,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Softmax,
)

_NO_TENSORS = (
    "Expected the function `output` to return one or several tensors [n, ...] of numbers. "
    "Received: {}. Compute them from the model's outputs with TensorFlow or `keras.ops`."
)

LOGITS = "logits"
OUTPUT = "output"
LAYERS = "layers"


def learned_function(
    model: keras.Model,
    inputs: Any,
    tape: tf.GradientTape,
    choice: str | Callable[[Any], Any],
) -> tuple[list[tf.Tensor], list[Call]]:
    """Run a model in inference; return the tensors of F, whose squared norm is measured.

    Args:
        model: `keras.Model`.
        inputs: One batch, tensors `[n, ...]`.
        tape: The tape that watches what comes out of each layer.
        choice: `"logits"`, `"output"`, `"layers"`, the name of a layer, or a function of the
            outputs; see `compute_importance`.

    Returns:
        List of tensors `[n, ...]`, and the `Call`s of the layers.

    Raises:
        ValueError: If no layer has that name, or it was not called; if the function returns
            something else than tensors; or, for `"layers"`, if a weight is in no layer.
    """
    if choice == LAYERS:
        outputs, calls = _run_detached(model, inputs, tape)
    else:
        outputs, calls = _run(model, inputs, tape)
    tensors = [tensor for tensor in _chosen(outputs, calls, choice) if tensor is not None]
    if not tensors:
        raise ValueError(f"Expected at least one output tensor of '{model.name}'. Received: none.")
    if choice == LAYERS:
        first = tf.nest.flatten(inputs)[0]
        tensors = [_by_example(tensor, first) for tensor in tensors]
    return tensors, calls


def _run(model, inputs, tape, detached=()):
    """Return the outputs of a model and the calls of its layers."""
    # Variables that a call assigns (a counter, a codebook) are assigned in this scope alone.
    with recording_calls(flatten_layers(model), tape, detached) as calls, keras.StatelessScope():
        return model(inputs, training=False), calls


def _run_detached(model, inputs, tape):
    """Return the same, of a model through whose layers with weights no gradient flows."""
    detached = _layers_with_weights(model)
    try:
        return _run(model, inputs, tape, detached)
    except (TypeError, ValueError) as error:
        _run(model, inputs, tape)  # if this fails too, the error has another cause
        raise ValueError(
            f"Expected a model that runs without gradients through its layers, for output="
            f"'{LAYERS}' measures each layer as a function of its own inputs. Received: "
            f"'{model.name}', which takes a gradient in its `call`. Choose another output."
        ) from error


def _layers_with_weights(model):
    """Return the layers with trainable weights, those of models inside the model among them."""
    found = []
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found += _layers_with_weights(layer)
        elif layer.trainable_weights:
            found.append(layer)
    inside = {id(weight) for layer in found for weight in layer.trainable_weights}
    for weight in model.trainable_weights:
        if id(weight) not in inside:
            raise ValueError(
                f"Expected every weight in a layer, for output='{LAYERS}' measures each layer as a "
                f"function of its own. Received: '{weight.path}', a weight of the model "
                f"'{model.name}' itself. Put it into a layer, or choose another output."
            )
    return found


def _chosen(outputs, calls, choice):
    """Return the tensors of F; some may be None, as outputs of a model may be."""
    if callable(choice):
        return _checked_tensors(tf.nest.flatten(choice(outputs)))
    if choice == LAYERS:
        return _of_every_layer(outputs, calls)
    if choice == OUTPUT:
        return tf.nest.flatten(outputs)
    if choice == LOGITS:
        return [_before_probabilities(tensor, calls) for tensor in tf.nest.flatten(outputs)]
    return _of_named_layer(calls, choice)


def _checked_tensors(results):
    """Return what a user's function returned, if these are tensors of numbers, or None."""
    for result in results:
        if result is not None and not isinstance(result, tf.Tensor):
            raise ValueError(_NO_TENSORS.format(f"a {type(result).__name__}"))
        if result is not None and result.dtype == tf.string:
            raise ValueError(_NO_TENSORS.format("a tensor of dtype string"))
    return results


def _of_named_layer(calls, name):
    graph = tf.compat.v1.get_default_graph()
    named = [call for call in calls if call.layer.name == name and call.graph is graph]
    if not named:
        names = list(dict.fromkeys(call.layer.name for call in calls))
        raise ValueError(
            f"Expected '{LOGITS}', '{OUTPUT}', '{LAYERS}', a function, or the name of a layer: "
            f"{', '.join(names)}. Received: '{name}' as `output`."
        )
    return tf.nest.flatten(named[-1].output)


def _of_every_layer(outputs, calls):
    detached = [call for call in calls if call.detached]
    for call in detached:
        if call.graph is not tf.compat.v1.get_default_graph():
            raise ValueError(
                f"Expected every layer called by the model itself, for output='{LAYERS}'. "
                f"Received: '{call.layer.path}', called in a loop, a branch or a function of "
                "TensorFlow. Choose another output."
            )
    results = [tensor for call in detached for tensor in tf.nest.flatten(_activated(call, calls))]
    ends = {id(tensor) for tensor in tf.nest.flatten(outputs)}
    return [
        _before_probabilities(tensor, calls) if id(tensor) in ends else tensor for tensor in results
    ]


def _by_example(tensor, inputs):
    """Return a layer's output with one row per example of the inputs `[n, ...]`.

    Several rows per example become one. An output whose rows do not depend on n, such as the
    embedding of all positions, is output once for each example.
    """
    examples = inputs.shape[0]
    rows = tensor.shape[0] if tensor.shape.rank else 1
    if rows is None or examples == 1 or (examples is not None and rows % examples == 0):
        return tf.reshape(tensor, [tf.shape(inputs)[0], -1])
    return tf.repeat(tf.reshape(tensor, [1, -1]), tf.shape(inputs)[0], axis=0)


def _before_probabilities(tensor, calls):
    """Return what a softmax or sigmoid made the tensor of, or the tensor itself."""
    for call in calls:
        if call.output is tensor and _ends_in_probabilities(call.layer):
            return call.tensors[0] if call.preactivation is tensor else call.preactivation
    # Between layers or in `call` it was a function of Keras, which leaves this for Keras's losses.
    return getattr(tensor, "_keras_logits", tensor)


def _activated(call, calls):
    """Return a layer's output, after the activation if that is the next layer."""
    following = [
        later
        for later in calls
        if any(tensor is call.output for tensor in later.given)
        and not isinstance(later.layer, keras.Model)  # its first layer is there too
    ]
    if len(following) == 1 and isinstance(following[0].layer, _ACTIVATION_LAYERS):
        return following[0].output
    return call.output


def _ends_in_probabilities(layer):
    if isinstance(layer, layers.Softmax):
        return True
    if isinstance(layer, layers.Activation):
        return layer.activation in PROBABILITIES
    return own_activation(layer) in PROBABILITIES
