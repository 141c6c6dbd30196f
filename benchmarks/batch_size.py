"""Exact importance does not depend on the batch size; the batch-sum shortcut does.

    python benchmarks/batch_size.py

Ω of a network that has learned scikit-learn's digits, over all 1,797 of them, by batch size:
exactly, and with the absolute value taken after the sum over a batch, as the public codes do.
Writes results/batch_size.json and results/batch_size.png. Under a minute.
"""

import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib
import numpy as np
import tensorflow as tf

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

from keras_mas import compute_importance
from keras_mas.importance.definition import squared_norms
from keras_mas.training.run_directory import write_json

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


def learned():
    """Return a network that has learned the digits, and these."""
    keras.utils.set_random_seed(0)
    digits = load_digits()
    x = (digits.data / 16).astype("float32")
    inputs = keras.Input([64])
    hidden = keras.layers.Dense(128, activation="relu")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(10)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    model.fit(x, digits.target, epochs=20, verbose=0)
    return model, x


def batch_sum_importance(model, x, batch_size):
    """Return what codes compute that take the absolute value of the gradient of a batch."""
    weights = [weight.value for weight in model.trainable_weights]

    @tf.function(reduce_retracing=True)
    def gradient(batch):
        with tf.GradientTape() as tape:
            norm = tf.reduce_sum(squared_norms(model(batch, training=False)))
        return [tf.abs(g) for g in tape.gradient(norm, weights)]

    sums = [0.0] * len(weights)
    for start in range(0, len(x), batch_size):
        terms = gradient(tf.constant(x[start : start + batch_size]))
        sums = [total + term.numpy() for total, term in zip(sums, terms, strict=True)]
    return [total / len(x) for total in sums]


def main():
    """Measure, print, record and draw."""
    model, x = learned()
    reference = [*compute_importance(model, x, batch_size=1).values()]
    scale = np.mean([omega.mean() for omega in reference])
    rows = []
    for size in BATCH_SIZES:
        exact = [*compute_importance(model, x, batch_size=size).values()]
        shortcut = batch_sum_importance(model, x, size)
        rows.append(
            {
                "batch_size": size,
                "exact": float(np.mean([omega.mean() for omega in exact]) / scale),
                "batch_sum": float(np.mean([omega.mean() for omega in shortcut]) / scale),
                "largest_relative_difference": float(
                    max(
                        np.abs(a - b).max() / b.max() for a, b in zip(exact, reference, strict=True)
                    )
                ),
            }
        )
        print(rows[-1], flush=True)
    write_json(Path("results/batch_size.json"), {"rows": rows})
    draw(rows, Path("results/batch_size.png"))


def draw(rows, path):
    """Draw the mean of Ω, relative to one example at a time, against the batch size."""
    figure, panel = plt.subplots(figsize=(5, 3.2))
    sizes = [row["batch_size"] for row in rows]
    for key, label in [("exact", "exact"), ("batch_sum", "absolute value after the batch sum")]:
        panel.plot(sizes, [row[key] for row in rows], "o-", label=label)
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, sizes)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("batch size")
    panel.set_ylabel("mean Ω, batch size 1 = 1")
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
