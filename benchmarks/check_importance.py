"""Exact importance against its definition, on whole networks: the largest error, and how measured.

    python benchmarks/check_importance.py [--networks "ResNet50;transformer"]

Weights are random, and biases, batch-norm statistics and scales are moved off 0 and 1, where an
error could hide. Every network is recorded in results/check_importance.json when it is done; the
same command goes on after an interruption. About ten minutes on two cores.
"""

import argparse
import collections
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import applications, layers

from keras_mas import check_importance
from keras_mas.files import atomic_file

RESULTS = Path("results/check_importance.json")
EXAMPLES = 3
WORDS, LENGTH = 500, 20

# A weight whose importance is below this part of that of another weight of its layer is taken to
# have none in exact arithmetic: what is measured is rounding, and has no relative error.
ROUNDING = {"float32": 1e-5, "float64": 1e-13}


def application(name):
    """Return a function that builds a network of keras.applications for images of 64×64."""

    def build():
        network = getattr(applications, name)
        return network(
            weights=None, input_shape=(64, 64, 3), classes=10, classifier_activation=None
        )

    return build


def recurrent_text():
    """Embedding, a bidirectional LSTM and a GRU over 20 words out of 500."""
    inputs = keras.Input([LENGTH], dtype="int32")
    x = layers.Embedding(WORDS, 32)(inputs)
    x = layers.Bidirectional(layers.LSTM(24, return_sequences=True))(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GRU(24)(x)))


class Positions(layers.Layer):
    """Adds an embedding of the positions."""

    def build(self, shape):
        """Make the embedding."""
        self.embedding = layers.Embedding(shape[1], shape[2], name="positions")
        self.embedding.build((shape[1],))

    def call(self, inputs):
        """Add it."""
        return inputs + self.embedding(keras.ops.arange(inputs.shape[1]))


def transformer():
    """Two encoder blocks of width 64 with 4 heads over 20 words out of 500, and their positions."""
    inputs = keras.Input([LENGTH], dtype="int32")
    x = Positions()(layers.Embedding(WORDS, 64)(inputs))
    for _ in range(2):
        attended = layers.MultiHeadAttention(4, 16)(x, x)
        x = layers.LayerNormalization()(layers.Add()([x, attended]))
        wide = layers.Dense(128, activation="gelu")(x)
        x = layers.LayerNormalization()(layers.Add()([x, layers.Dense(64)(wide)]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling1D()(x)))


NETWORKS = {
    "recurrent-text": (recurrent_text, "float32"),
    "transformer": (transformer, "float32"),
    "transformer, float64": (transformer, "float64"),
    "MobileNetV2": (application("MobileNetV2"), "float32"),
    "EfficientNetB0": (application("EfficientNetB0"), "float32"),
    "ResNet50": (application("ResNet50"), "float32"),
    "DenseNet121": (application("DenseNet121"), "float32"),
    "ConvNeXtTiny": (application("ConvNeXtTiny"), "float32"),
    "MobileNetV2, float64": (application("MobileNetV2"), "float64"),
}


def measured(name):
    """Check one network; return its record."""
    build, floatx = NETWORKS[name]
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(floatx)
    keras.utils.set_random_seed(0)
    model = build()
    randomize(model)
    started = time.perf_counter()
    checks = check_importance(model, examples_for(model), EXAMPLES)
    seconds = time.perf_counter() - started
    errors = errors_of(checks, ROUNDING[floatx])
    worst = max(errors, key=errors.get)
    return {
        "weights": len(checks),
        "parameters": model.count_params(),
        "largest_error": errors[worst],
        "of_weight": worst,
        "median_error": float(np.median(list(errors.values()))),
        "zero_up_to_rounding": sorted(checks.keys() - errors.keys()),
        "ways": collections.Counter(check.way for check in checks.values()),
        "seconds": round(seconds, 1),
    }


def errors_of(checks, rounding):
    """Return the relative errors by weight, of those whose importance is more than rounding."""
    largest = collections.defaultdict(float)
    for name, check in checks.items():
        layer = name.rpartition("/")[0]
        largest[layer] = max(largest[layer], check.largest)
    return {
        name: check.error
        for name, check in checks.items()
        if check.largest > rounding * largest[name.rpartition("/")[0]]
    }


def randomize(model):
    """Move every weight off its initial value, so that outputs keep their scale."""
    rng = np.random.default_rng(0)
    for weight in model.weights:
        kind = weight.path.rsplit("/")[-1]
        if kind in ("gamma", "moving_variance", "lambda") or "layer_scale" in kind:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        elif kind in ("beta", "bias", "moving_mean"):
            weight.assign(rng.normal(0.0, 0.1, weight.shape))


def examples_for(model):
    """Return a few random examples."""
    rng = np.random.default_rng(1)
    shape = (EXAMPLES, *model.input_shape[1:])
    if model.input.dtype == "int32":
        return rng.integers(0, WORDS, shape)
    return rng.normal(size=shape).astype(model.input.dtype)


def recorded():
    """Return the records so far, by network."""
    return json.loads(RESULTS.read_text())["networks"] if RESULTS.exists() else {}


def record(networks):
    """Write the records."""
    ordered = {name: networks[name] for name in NETWORKS if name in networks}
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
    with atomic_file(RESULTS, "w") as file:
        results = {"examples": EXAMPLES, "versions": versions, "networks": ordered}
        json.dump(results, file, indent=1)


def table(networks):
    """Print a line per network."""
    print(f"{'network':22} {'weights':>7} {'largest error':>14} {'seconds':>8}  ways")
    for name, found in networks.items():
        ways = ", ".join(f"{count} {way}" for way, count in found["ways"].items())
        zero = f"; {len(found['zero_up_to_rounding'])} zero" if found["zero_up_to_rounding"] else ""
        print(
            f"{name:22} {found['weights']:7} {found['largest_error']:14.1e} "
            f"{found['seconds']:8.1f}  {ways}{zero}"
        )


def main():
    """Check the networks that are not recorded yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", help="names, separated by semicolons; all by default")
    chosen = parser.parse_args().networks
    for name in chosen.split(";") if chosen else NETWORKS:
        networks = recorded()
        if name not in networks:
            networks[name] = measured(name)
            record(networks)
            print(f"{name} done", flush=True)
    table(recorded())


if __name__ == "__main__":
    main()
