"""Two replicas on one machine give the weights and the loss of one; run by test_memory.py."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_mas import MASModel, SynapticMemory, compute_importance
from keras_mas.methods import load_method

rng = np.random.default_rng(0)
a, b = rng.normal(size=(2, 32, 5)).astype("float32")
labels = rng.integers(0, 3, size=32)


def network(kind, **kwargs):
    keras.utils.set_random_seed(3)
    inputs = keras.Input([5])
    hidden = layers.Dense(6, "relu", name="hidden")(inputs)
    return kind(inputs, layers.Dense(3, name="out")(hidden), **kwargs)


WAYS = [(keras.Model, {}), (MASModel, {}), (MASModel, {"penalty": "decoupled"})]


def train(kind, **kwargs):
    model = network(kind, **kwargs)
    memory = model.memory if kind is MASModel else SynapticMemory().protect(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss)
    options = dict(epochs=2, batch_size=16, verbose=0, shuffle=False)
    model.fit(a, labels, **options)
    memory.consolidate(model, a)
    history = model.fit(b, labels, **options)
    return model.get_weights(), memory.importance, history.history["loss"]


def distill():
    """Learn two tasks by LwF, with the answers of the first one held."""
    keras.utils.set_random_seed(3)
    method = load_method("lwf")(50.0)
    inputs = keras.Input([5])
    hidden = layers.Dense(6, "relu")(inputs)
    model = method.model(inputs, [layers.Dense(3)(hidden), layers.Dense(3)(hidden)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.05), loss)
    for task, x in enumerate((a, b)):
        method.before_task(model, x)
        model.fit(x, labels + 3 * task, epochs=2, batch_size=16, verbose=0, shuffle=False)
        method.after_task(model, x)
    return model.get_weights()


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    for kind, options in WAYS:
        one = train(kind, **options)
        with two.scope():
            both = train(kind, **options)
            model = network(keras.Model)
            inside = compute_importance(model, a)
        for x, y in zip(one[0], both[0], strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
        for path in one[1]:
            np.testing.assert_allclose(one[1][path], both[1][path], rtol=1e-3)
        np.testing.assert_allclose(one[2], both[2], rtol=1e-4)
        outside = compute_importance(model, a)
        for path in inside:
            np.testing.assert_allclose(inside[path], outside[path], rtol=1e-5)
    one = distill()
    with two.scope():
        both = distill()
    for x, y in zip(one, both, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)


if __name__ == "__main__":
    main()
