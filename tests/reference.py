"""Slow and obviously right: importance by central differences, with no tape and no rule."""

import numpy as np


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
