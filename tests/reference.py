"""Slow and obviously right: importance by central differences, and by a plain tape per example."""

import numpy as np
import tensorflow as tf

from keras_mas.weights import trainable_weights


def importance_by_plain_tape(model, inputs):
    """Ω = 1/N Σ_k |∂‖F(x_k)‖²/∂θ|, without recording any layer; for one array of inputs."""
    weights = trainable_weights(model)
    omega = dict.fromkeys(weights, 0.0)
    states = [(variable, variable.numpy()) for variable in model.non_trainable_variables]
    for k in range(len(inputs)):
        with tf.GradientTape() as tape:
            outputs = tf.nest.flatten(model(inputs[k : k + 1], training=False))
            norm = tf.add_n([tf.reduce_sum(output**2) for output in outputs])
        variables = [weight.value for weight in weights.values()]
        gradients = tape.gradient(norm, variables, unconnected_gradients="zero")
        for name, gradient in zip(omega, gradients, strict=True):
            omega[name] += np.abs(tf.convert_to_tensor(gradient)) / len(inputs)
        for variable, values in states:
            variable.assign(values)
    return omega


def importance_by_differences(model, inputs, step=1e-5):
    """Ω = 1/N Σ_k |∂‖F(x_k)‖²/∂θ|, each derivative from two forward passes; for float64 models."""
    omega = {}
    for weight in model.trainable_weights:
        values = weight.numpy()
        total = np.zeros_like(values)
        for index in np.ndindex(values.shape):
            up, down = (_moved(values, index, sign * step) for sign in (+1, -1))
            difference = _norms_with(model, weight, up, inputs) - _norms_with(
                model, weight, down, inputs
            )
            total[index] = np.abs(difference / (2 * step)).mean()
        weight.assign(values)
        omega[weight.path] = total
    return omega


def _moved(values, index, step):
    moved = values.copy()
    moved[index] += step
    return moved


def _norms_with(model, weight, values, inputs):
    weight.assign(values)
    outputs = model(inputs, training=False)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return sum((np.asarray(out).reshape(len(out), -1) ** 2).sum(axis=1) for out in outputs)
