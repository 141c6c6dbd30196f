"""What is gained if several λ are trained as one program, instead of one trial after the other?

    python benchmarks/stacked_strengths.py [--strengths 10] [--repeats 5]

A search trains the same network on the same batches for every λ. Stacked, the weights of all
trials are one array `[K, inputs, outputs]` per layer, a step takes K matrix products as one, and
Adam updates all of them at once. Both ways take the same steps in one process, in turn: the trials
one after the other in the compiled loop of `keras-mas search`, without what a search does beside
its steps; and the stacked program, a compiled loop too. First both train, and their weights are
compared. Writes results/stacked_strengths.json.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from keras_mas import MASModel
from keras_mas.training.loop import STEPS_PER_CALL, CompiledLoop
from keras_mas.training.run_directory import write_json
from keras_mas.training.tasks import Split
from keras_mas.training.tasks.pipeline import epoch_order

# Inputs, hidden units and batch size of streams that `keras-mas` brings.
STREAMS = {
    "split-digits": (64, (400, 400), 32),
    "split-mnist": (784, (256, 256), 64),
    "split-mnist-hsu": (1024, (400, 400), 128),
}
CLASSES = 2
LEARNING_RATE = 0.001


def main():
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strengths", type=int, default=10, metavar="K")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    strengths = np.logspace(-2, 3, args.strengths).astype("float32")
    print(f"{'stream':18} {'one by one ms':>14} {'stacked ms':>11} {'ratio':>6} {'difference':>11}")
    rows = [measured(name, strengths, args.repeats) for name in STREAMS]
    write_json(Path("results/stacked_strengths.json"), {"strengths": args.strengths, "rows": rows})


def measured(name, strengths, repeats):
    """Return milliseconds that a step of all trials takes, both ways, and how far they differ."""
    features, hidden, batch_size = STREAMS[name]
    rng = np.random.default_rng(0)
    examples = batch_size * STEPS_PER_CALL
    inputs = rng.normal(size=(examples, features)).astype("float32")
    labels = rng.integers(0, CLASSES, examples)
    one_by_one = OneByOne(features, hidden, inputs, labels, batch_size)
    stacked = Stacked(one_by_one, strengths, inputs, labels, batch_size)
    seconds = {"one_by_one": [], "stacked": []}
    for repeat in range(repeats + 1):
        started = time.perf_counter()
        expected = [one_by_one.train(strength) for strength in strengths]
        seconds["one_by_one"].append(time.perf_counter() - started)
        started = time.perf_counter()
        found = stacked.train()
        seconds["stacked"].append(time.perf_counter() - started)
        if repeat == 0:  # which traced, too
            difference = largest_difference(expected, found)
            seconds = {way: [] for way in seconds}
    per_step = {
        way: 1e3 * statistics.median(times) / STEPS_PER_CALL for way, times in seconds.items()
    }
    ratio = per_step["one_by_one"] / per_step["stacked"]
    print(
        f"{name:18} {per_step['one_by_one']:14.2f} {per_step['stacked']:11.2f} {ratio:6.2f} "
        f"{difference:11.1e}",
        flush=True,
    )
    return {"stream": name, "ratio": ratio, "difference": difference, "milliseconds": per_step}


def largest_difference(expected, found):
    """Return the largest difference of a weight of any trial."""
    return max(
        float(np.abs(array - stack[k]).max())
        for k, arrays in enumerate(expected)
        for array, stack in zip(arrays, found, strict=True)
    )


class OneByOne:
    """Trains a trial as `keras-mas` does, always from the same weights, Ω and θ*."""

    def __init__(self, features, hidden, inputs, labels, batch_size):
        keras.utils.set_random_seed(0)
        x = first = keras.Input([features])
        for units in hidden:
            x = keras.layers.Dense(units, activation="relu")(x)
        self.model = MASModel(first, keras.layers.Dense(CLASSES)(x))
        self.optimizer = keras.optimizers.Adam(LEARNING_RATE)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(self.optimizer, loss, metrics=["accuracy"])
        self.optimizer.build(self.model.trainable_variables)
        self.model.consolidate(inputs[:256])
        self.weights = self.model.get_weights()
        self.loop = CompiledLoop(self.model, inputs.dtype)
        self.split, self.batch_size = Split(inputs, labels), batch_size

    def train(self, strength):
        """Return the weights after one call of the loop."""
        self.model.set_weights(self.weights)
        self.model.strength = float(strength)
        for variable in self.optimizer.variables:
            variable.assign(tf.zeros_like(variable))
        self.optimizer.learning_rate = LEARNING_RATE
        self.loop.fit(self.split, epochs=1, batch_size=self.batch_size, seed=0)
        return self.model.get_weights()


class Stacked:
    """Trains a trial for every λ at the same time."""

    def __init__(self, one, strengths, inputs, labels, batch_size):
        order = epoch_order(len(inputs), 0, 0)
        self.inputs, self.labels = tf.constant(inputs[order]), tf.constant(labels[order])
        self.batch_size, self.start = batch_size, one.weights
        self.strengths = strengths
        memory = one.model.memory
        self.importance = [tf.constant(omega) for omega in memory.importance.values()]
        self.anchors = [tf.constant(anchor) for anchor in memory.anchor.values()]
        self.weights = [keras.Variable(self._stack(weight)) for weight in one.weights]
        self.optimizer = keras.optimizers.Adam(LEARNING_RATE)
        self.optimizer.build(self.weights)
        self._train = tf.function(self._steps, autograph=False)

    def _stack(self, array):
        return np.repeat(array[None], len(self.strengths), axis=0)

    def train(self):
        """Return the weights `[K, …]` of all trials after as many steps."""
        for stack, weight in zip(self.weights, self.start, strict=True):
            stack.assign(self._stack(weight))
        for variable in self.optimizer.variables:
            variable.assign(tf.zeros_like(variable))
        self.optimizer.learning_rate = LEARNING_RATE
        self._train()
        return [stack.numpy() for stack in self.weights]

    def _steps(self):
        def step(start):
            batch = slice(start, start + self.batch_size)
            with tf.GradientTape() as tape:
                loss = self._losses(self.inputs[batch], self.labels[batch])
            stacks = [stack.value for stack in self.weights]
            self.optimizer.apply(tape.gradient(loss, stacks), self.weights)
            return (start + self.batch_size,)

        tf.while_loop(lambda start: start < len(self.labels), step, (tf.constant(0),))

    def _losses(self, inputs, labels):
        """Return the sum over the trials, whose gradients do not mix."""
        *hidden, (kernel, bias) = zip(self.weights[::2], self.weights[1::2], strict=True)
        x = inputs[None]
        for each, offset in hidden:
            x = tf.nn.relu(tf.matmul(x, each.value) + offset.value[:, None])
        logits = tf.matmul(x, kernel.value) + bias.value[:, None]
        repeated = tf.repeat(labels[None], len(self.strengths), axis=0)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(repeated, logits)
        penalties = [
            tf.reduce_sum(omega * tf.square(stack.value - anchor), axis=list(range(1, stack.ndim)))
            for stack, omega, anchor in zip(
                self.weights, self.importance, self.anchors, strict=True
            )
        ]
        return tf.reduce_sum(tf.reduce_mean(losses, axis=1) + self.strengths * tf.add_n(penalties))


if __name__ == "__main__":
    main()
