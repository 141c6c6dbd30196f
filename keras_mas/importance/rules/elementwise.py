"""Layers whose output is affine in each weight, element by element: normalizations and PReLU."""

import keras
import tensorflow as tf
from keras import layers

from .registry import rule
from .slices import sum_to_axes, sum_to_shape

_NEUTRAL = {"gamma": 1.0, "scale": 1.0, "beta": 0.0}


@rule(layers.BatchNormalization, layers.LayerNormalization, layers.GroupNormalization)
def normalization(layer, inputs, delta, magnitude):
    """Return the sums for z = γ∘â + β, with â the normalized input: g_γ = Σ_t δ∘â, g_β = Σ_t δ."""
    sums = {
        "gamma": _sum(delta * _normalized(layer, inputs), layer, magnitude),
        "beta": _sum(delta, layer, magnitude),
    }
    weights = {name: getattr(layer, name) for name in sums}
    # Keras reshapes weights of several axes to the order of the input's axes.
    return {
        name: tf.reshape(sums[name], weight.shape)
        for name, weight in weights.items()
        if weight is not None
    }


@rule(layers.RMSNormalization)
def rms_normalization(layer, inputs, delta, magnitude):
    """Return the sum for z = γ∘â."""
    axes = [layer.axis] if isinstance(layer.axis, int) else layer.axis
    rank = inputs.shape.rank
    if {axis % rank for axis in axes} != set(range(rank - len(axes), rank)):
        return {}  # Keras 3.15 multiplies the last axes by γ, whichever were normalized
    return {"scale": _sum(delta * _normalized(layer, inputs), layer, magnitude)}


def _sum(terms, layer, magnitude):
    axes = [layer.axis] if isinstance(layer.axis, int) else layer.axis
    return tf.reduce_sum(magnitude(sum_to_axes(terms, axes)), axis=0)


def _normalized(layer, inputs):
    """Return the layer's output with γ = 1 and β = 0."""
    weights = [(getattr(layer, name, None), value) for name, value in _NEUTRAL.items()]
    neutral = [
        (weight, keras.ops.full(weight.shape, value, weight.dtype))
        for weight, value in weights
        if isinstance(weight, keras.Variable)  # `scale` is also an option of some layers
    ]
    with keras.StatelessScope(state_mapping=neutral):
        return type(layer).call(layer, inputs)


@rule(layers.PReLU)
def prelu(layer, inputs, delta, magnitude):
    """Return the sum for z = max(a, 0) + α∘min(a, 0), α shared along some axes."""
    terms = delta * tf.minimum(inputs, 0)
    return {"alpha": tf.reduce_sum(magnitude(sum_to_shape(terms, layer.alpha.shape)), axis=0)}
