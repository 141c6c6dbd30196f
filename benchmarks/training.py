"""Time of a training step with the penalty, through either entry point, against plain `fit`.

    python benchmarks/training.py [--networks mlp,small-vgg] [--repeats 40]

The entry points take turns in one process. A time is the median over the repeats of one epoch of 30
steps, after an epoch that traces; a ratio is one of medians.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from networks import NETWORKS

from keras_mas import MASModel, SynapticMemory

STEPS = 30


def plain(model):
    """Return the model as it is."""
    return model


def regularizer(model):
    """Return the model held by a memory through its regularizers."""
    SynapticMemory().protect(model)
    return model


def in_loss(model):
    """Return a `MASModel` of the same layers."""
    return MASModel(model.inputs, model.outputs)


def decoupled(model):
    """Return a `MASModel` of the same layers, its penalty decoupled."""
    return MASModel(model.inputs, model.outputs, penalty="decoupled")


ENTRY_POINTS = (plain, regularizer, in_loss, decoupled)


def milliseconds_per_step(name, repeats):
    """Return, by entry point, the median time of a step."""
    build, examples = NETWORKS[name]
    rng = np.random.default_rng(0)
    models = {entry.__name__: entry(build()) for entry in ENTRY_POINTS}
    shape = models["plain"].input_shape[1:]
    x = rng.normal(size=(examples * STEPS, *shape)).astype("float32")
    y = rng.integers(0, 10, size=len(x))
    times = {entry: [] for entry in models}
    for model in models.values():
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), loss)
        model.fit(x, y, batch_size=examples, verbose=0)
    for _ in range(repeats):
        for entry, model in models.items():
            started = time.perf_counter()
            model.fit(x, y, batch_size=examples, verbose=0)
            times[entry].append((time.perf_counter() - started) / STEPS)
    return {entry: 1e3 * statistics.median(values) for entry, values in times.items()}


def main():
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="mlp,small-vgg")
    parser.add_argument("--repeats", type=int, default=40)
    args = parser.parse_args()
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {os.cpu_count()} CPU cores")
    print(f"{'network':14} {'entry point':12} {'ratio':>6} {'ms/step':>9}")
    for name in args.networks.split(","):
        times = milliseconds_per_step(name, args.repeats)
        for entry, value in times.items():
            print(f"{name:14} {entry:12} {value / times['plain']:6.2f} {value:9.2f}", flush=True)


if __name__ == "__main__":
    main()
