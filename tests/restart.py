"""Models and ways to protect them, trained on through a restart; used by test_restart.py.

python tests/restart.py FOLDER MODEL WAY …    learn B with what FOLDER holds; print the drift
"""

import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

from keras_mas import MASModel, SynapticMemory

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WAYS = ("regularizer", "MASModel", "shared trunk")


@keras.saving.register_keras_serializable("restart")
class Network(keras.Model):
    """Its layers are called in another order than they were made in."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.second = layers.Dense(6)
        self.first = layers.Dense(6, "relu")

    def call(self, inputs):
        return self.second(self.first(inputs))


def dense(units, **kwargs):
    return layers.Dense(units, "relu", **kwargs)


def sequential():
    trunk = keras.Sequential([dense(6), dense(6)])  # no Input: built when it is called
    trunk.build([None, 5])
    return trunk


def functional():
    inputs = keras.Input([5])
    return keras.Model(inputs, dense(6)(dense(6, name="hidden")(inputs)))


def nested():
    inputs = keras.Input([5])
    inner = keras.Sequential([dense(6), dense(6)])
    return keras.Model(inputs, dense(6)(inner(inputs)))


def subclassed():
    inputs = keras.Input([5])
    return keras.Model(inputs, Network()(inputs))


def towers():
    """Two towers whose inner paths are equal, as those of one application are."""
    inputs = keras.Input([5])

    def tower(name):
        x = keras.Input([5])
        return keras.Model(x, dense(6, name="same")(x), name=name)(inputs)

    return keras.Model(inputs, layers.Concatenate()([tower("left"), tower("right")]))


def mobile_net():
    """The first five blocks of a MobileNet, all kinds of its layers; the first three are frozen."""
    whole = keras.applications.MobileNetV2(
        weights=None, include_top=False, input_shape=(32, 32, 3), alpha=0.35
    )
    features = layers.GlobalAveragePooling2D()(whole.get_layer("block_4_add").output)
    network = keras.Model(whole.input, features)
    for layer in network.layers[: network.layers.index(whole.get_layer("block_2_add")) + 1]:
        layer.trainable = False
    return network


TRUNKS = {
    trunk.__name__: trunk
    for trunk in (sequential, functional, nested, subclassed, towers, mobile_net)
}


def build(name, way, strength):
    """Return a compiled model of a trunk and a head, and the memory that protects it."""
    keras.utils.set_random_seed(1)
    trunk = TRUNKS[name]()
    inputs = keras.Input(trunk.input_shape[1:])
    outputs = layers.Dense(3)(trunk(inputs))
    if way == "regularizer":
        model = keras.Model(inputs, outputs)
        memory = SynapticMemory(strength).protect(model, batch_norm="freeze")
    elif way == "MASModel":
        model = MASModel(inputs, outputs, strength=strength, batch_norm="freeze")
        memory = model.memory
    else:
        memory = SynapticMemory(strength).protect(trunk, batch_norm="freeze")
        model = MASModel(inputs, outputs, memory=memory)
    return compiled(model), memory


def compiled(model):
    # A fresh optimizer: nothing but the weights passes from task to task. With random weights,
    # SGD diverges on the application.
    is_small = model.count_params() < 1000
    optimizer = keras.optimizers.SGD(0.02) if is_small else keras.optimizers.Adam(1e-4)
    model.compile(optimizer, LOSS)
    return model


def data(model):
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 32, *model.input_shape[1:])).astype("float32")
    return a, b + 0.5, np.arange(32) % 3


def learn_a(name, way, strength=10.0):
    model, memory = build(name, way, strength)
    a, _, labels = data(model)
    model.fit(a, labels, epochs=2, batch_size=16, shuffle=False, verbose=0)
    memory.consolidate(model, a)
    return compiled(model), memory


def drift_after_b(model, memory):
    """Learn B; return Σ Ω (θ − θ*)², the drift of what was important, and the weights held."""
    _, b, labels = data(model)
    model.fit(b, labels, epochs=2, batch_size=16, shuffle=False, verbose=0)
    states = [memory.state_for(weight) for weight in model.trainable_weights]
    held = [state for state in states if state is not None]
    drift = sum(
        np.sum(state.importance.numpy() * (state.weight.numpy() - state.anchor.numpy()) ** 2.0)
        for state in held
    )
    return float(drift), len(held)


def save(folder, model, memory, way):
    model.save(folder / "model.keras")
    if way == "regularizer":
        memory.save(folder / "memory.npz")


def load(folder, way):
    model = compiled(keras.models.load_model(folder / "model.keras"))
    if way == "regularizer":
        memory = SynapticMemory.load(folder / "memory.npz").protect(model, batch_norm="freeze")
        return model, memory
    return model, model.memory


def main(folder, *cases):
    drifts = {}
    for case in cases:
        way = case.partition("-")[2]
        drifts[case] = drift_after_b(*load(Path(folder) / case, way))
    sys.stdout.write(json.dumps(drifts))


if __name__ == "__main__":
    main(*sys.argv[1:])
