"""Does the importance of MAS follow √F rather than F, and do √F and |F| protect as well?

    python benchmarks/root_fisher.py

Three parts, after the claims of Benzing (AISTATS 2022): the correlation of Ω with the exact Fisher
F, its root, and the absolute Fisher |F|, for every kernel of networks that have learned ten
classes; accuracy with each of the four as importance, λ chosen for each; and SI beside MAS when
training takes larger batches. Runs are kept under runs/grids. Writes results/root_fisher.json,
results/root_fisher.png and results/si_batch_size.png. MNIST and `svhn10_32` come from the folder
that TFDS_DATA_DIR names.
"""

import dataclasses
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import tensorflow_datasets as tfds
from grid import Grid, mean_and_deviation
from sklearn.datasets import load_digits
from variants import AbsoluteFisher

from keras_mas import compute_importance
from keras_mas.importance import compute_fisher
from keras_mas.training.run_directory import write_json
from keras_mas.training.settings import RECIPES, Settings

STREAM = "rotated-digits"
EXAMPLES = 1000
# Importance → method, and the grid of λ.
IMPORTANCES = {
    "MAS, exact": ("mas", [10.0**power for power in range(-2, 3)]),
    "√F": ("sqrt_fisher", [10.0**power for power in range(0, 8)]),
    "|F|": ("variants:AbsoluteFisher", [10.0**power for power in range(0, 8)]),
    "EWC, exact": ("ewc", [10.0**power for power in range(1, 8)]),
}
BATCH_SIZES = (32, 128, 512)
OF_BATCH_SIZES = {
    "MAS": ("mas", [10.0**power for power in range(-2, 3)]),
    "SI": ("si", [10.0**power for power in range(-1, 5)]),
}


def main():
    """Measure, print, record and draw."""
    points, correlations = {}, []
    for name, learn in (("digits, MLP", _digits), ("MNIST, MLP", _mnist), ("SVHN, CNN", _svhn)):
        keras.utils.set_random_seed(0)
        model, inputs = learn()
        importances = measured(model, inputs)
        correlations += [{"network": name, **row} for row in correlated(importances)]
        points[name] = importances
    grid = Grid(STREAM, "task")
    rows = [
        grid.row(name, Settings(method, 0.0, recipe=RECIPES[STREAM]), strengths)
        for name, (method, strengths) in IMPORTANCES.items()
    ]
    by_batch_size = [
        {"method": name, "batch_size": size, **_with_batches(grid, name, size)}
        for size in BATCH_SIZES
        for name in OF_BATCH_SIZES
    ]
    record = {"correlations": correlations, "importances": rows, "batch_sizes": by_batch_size}
    write_json(Path("results/root_fisher.json"), record)
    draw(points, Path("results/root_fisher.png"))
    draw_batch_sizes(by_batch_size, Path("results/si_batch_size.png"))


def _with_batches(grid, name, size):
    method, strengths = OF_BATCH_SIZES[name]
    recipe = dataclasses.replace(RECIPES[STREAM], batch_size=size)
    return grid.row(f"{name}, batch {size}", Settings(method, 0.0, recipe=recipe), strengths)


def measured(model, inputs):
    """Return Ω of MAS, F, √F and |F| of every kernel of a model, by the kernel's name."""
    fisher = compute_fisher(model, inputs)
    found = {
        "Ω": compute_importance(model, inputs),
        "F": fisher,
        "√F": {name: np.sqrt(values) for name, values in fisher.items()},
        "|F|": AbsoluteFisher().importance(model, [(inputs, np.zeros(len(inputs)))]),
    }
    kernels = [name for name, values in fisher.items() if values.ndim > 1]
    return {name: {kind: values[name] for kind, values in found.items()} for name in kernels}


def correlated(importances):
    """Return for each kernel Pearson's correlation of Ω with F, √F and |F| over its weights."""
    rows = []
    for name, values in importances.items():
        found = {
            kind: round(float(np.corrcoef(values["Ω"].ravel(), other.ravel())[0, 1]), 3)
            for kind, other in values.items()
            if kind != "Ω"
        }
        rows.append({"kernel": name, **found})
        print(rows[-1], flush=True)
    return rows


def _digits():
    digits = load_digits()
    return _learned(_mlp([64]), (digits.data / 16).astype("float32"), digits.target, 20)


def _mnist():
    images, labels = tfds.as_numpy(tfds.load("mnist", split="train", batch_size=-1)).values()
    return _learned(_mlp([784]), images.reshape(len(images), -1) / np.float32(255), labels, 4)


def _svhn():
    data = tfds.as_numpy(tfds.load("svhn10_32", split="train", batch_size=-1))
    inputs = x = keras.Input([32, 32, 3])
    for width in (32, 64, 128):
        x = keras.layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.Dense(256, activation="relu")(keras.layers.Flatten()(x))
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    return _learned(model, data["image"] / np.float32(255), data["label"], 15)


def _mlp(shape):
    inputs = x = keras.Input(shape)
    for _ in range(2):
        x = keras.layers.Dense(400, activation="relu")(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x))


def _learned(model, inputs, labels, epochs):
    """Return a model that has learned the labels, and the inputs that it is measured on."""
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True), metrics=["accuracy"])
    logs = model.fit(inputs, labels, epochs=epochs, batch_size=64, verbose=0).history
    print(f"training accuracy {logs['accuracy'][-1]:.3f}", flush=True)
    return model, np.asarray(inputs[:EXAMPLES])


def draw(points, path):
    """Draw Ω against F and √F of the middle kernel of each network."""
    figure, grid = plt.subplots(2, len(points), figsize=(10, 5.6))
    random = np.random.default_rng(0)
    for column, (network, importances) in enumerate(points.items()):
        name = list(importances)[len(importances) // 2]
        values = importances[name]
        for row, kind in enumerate(("F", "√F")):
            panel = grid[row][column]
            some = random.choice(values["Ω"].size, 2000, replace=False)
            panel.plot(values[kind].ravel()[some], values["Ω"].ravel()[some], ".", markersize=1.5)
            panel.set_xlabel(kind)
            panel.ticklabel_format(style="sci", scilimits=(-2, 3))
            panel.spines[["top", "right"]].set_visible(False)
        grid[0][column].set_title(f"{network}: {name.rpartition('/')[0]}", fontsize=10, loc="left")
    for across in grid:
        across[0].set_ylabel("Ω of MAS")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def draw_batch_sizes(by_batch_size, path):
    """Draw the accuracy of SI and of MAS against the batch size of training."""
    figure, panel = plt.subplots(figsize=(5, 3.2))
    for name in OF_BATCH_SIZES:
        rows = [row for row in by_batch_size if row["method"] == name]
        spreads = [mean_and_deviation(row, "average_accuracy") for row in rows]
        means, deviations = zip(*spreads, strict=True)
        panel.errorbar(BATCH_SIZES, means, deviations, marker="o", capsize=2, label=name)
    panel.set_xscale("log", base=2)
    panel.set_xticks(BATCH_SIZES, BATCH_SIZES)
    panel.set_xlabel("batch size of training")
    panel.set_ylabel("average accuracy")
    panel.legend(frameon=False)
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
