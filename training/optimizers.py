"""The optimizers that tasks are trained with."""

import functools
from typing import Any

import keras
import tensorflow as tf


def optimizer_of(name: str) -> keras.optimizers.Optimizer:
    """Return a new optimizer: "adam", or "sgd", which has momentum 0.9."""
    return keras.optimizers.SGD(momentum=0.9) if name == "sgd" else fused_adam()


def fused_adam() -> keras.optimizers.Adam:
    """Return Keras's Adam with its default options, a step of each weight being one operation.

    Keras composes the step of about fifteen operations, each of which passes over the weight and
    has to be traced; TensorFlow has a kernel for all of it. The results are those of Keras's Adam
    but for rounding. A model that is saved with the optimizer has Keras's Adam in its file, and can
    be loaded where this package is not installed.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015,
    arXiv:1412.6980, in the form before Section 2.1, with ε̂ beside √v.
    """
    adam = keras.optimizers.Adam()
    adam.update_step = functools.partial(_update_step, adam)
    return adam


def _update_step(
    adam: keras.optimizers.Adam, gradient: Any, variable: tf.Variable, learning_rate: Any
) -> None:
    """Take one step of a weight, as Keras asks for it."""
    dtype = variable.dtype
    beta_1, beta_2 = (tf.cast(beta, dtype) for beta in (adam.beta_1, adam.beta_2))
    step = tf.cast(adam.iterations + 1, dtype)
    index = adam._get_variable_index(variable)
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=adam._momentums[index].value.handle,
        v=adam._velocities[index].value.handle,
        beta1_power=tf.pow(beta_1, step),
        beta2_power=tf.pow(beta_2, step),
        lr=tf.cast(learning_rate, dtype),
        beta1=beta_1,
        beta2=beta_2,
        epsilon=tf.cast(adam.epsilon, dtype),
        grad=tf.cast(tf.convert_to_tensor(gradient), dtype),
    )
