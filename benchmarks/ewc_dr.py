"""Does EWC-DR beat MAS when both are exact and λ is chosen for each?

    python benchmarks/ewc_dr.py [--streams rotated-digits,permuted-digits,tiny-features]

EWC-DR (arXiv:2603.18596) says so of class-incremental streams, by importance that is summed over
batches. `tiny-features` is class-incremental: the 200 classes of the prepared data set
`tiny_imagenet200_64`, twenty a task, one head for all, an MLP on features of a frozen MobileNet
(alpha 0.75, ImageNet; images enlarged to 112×112). It needs TFDS_DATA_DIR and KERAS_HOME. The other
streams are task-incremental. Runs are kept under runs/grids. Writes results/ewc_dr.json and
results/ewc_dr.png.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import tensorflow as tf
import tensorflow_datasets as tfds
from grid import Grid, mean_and_deviation, replace_rows

from keras_mas.training.run_directory import read_json
from keras_mas.training.settings import RECIPES, Recipe, Settings

FEATURES = Path("runs/tiny-features")
# Tasks, scenario, recipe, and a factor of the grids: one head of 200 logits takes a smaller λ.
STREAMS = {
    "rotated-digits": ("rotated-digits", "task", RECIPES["rotated-digits"], 1.0),
    "permuted-digits": ("permuted-digits", "task", RECIPES["permuted-digits"], 1.0),
    "tiny-features": (FEATURES / "tiny-features.toml", "class", Recipe("mlp-400", epochs=10), 1e-4),
}
METHODS = {
    "fine-tuning": ("finetune", [0.0]),
    "MAS, exact": ("mas", [10.0**power for power in range(-2, 3)]),
    "EWC-DR, exact": ("ewc_dr", [10.0**power for power in range(-1, 5)]),
    "EWC, exact": ("ewc", [10.0**power for power in range(1, 8)]),
}
RECORD = Path("results/ewc_dr.json")


def main():
    """Measure, print, record and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", default=",".join(STREAMS), metavar="NAMES")
    for name in parser.parse_args().streams.split(","):
        print(name, flush=True)
        tasks, scenario, recipe, factor = STREAMS[name]
        if name == "tiny-features" and not tasks.exists():
            write_features(tasks)
        grid = Grid(tasks, scenario)
        for label, (method, strengths) in METHODS.items():
            scaled = [factor * strength for strength in strengths]
            row = grid.row(label, Settings(method, 0.0, recipe=recipe), scaled)
            replace_rows(RECORD, [{"stream": name, **row}])
    draw(read_json(RECORD)["rows"], Path("results/ewc_dr.png"))


def write_features(path):
    """Write features of all images into an .npz file, and a TOML file of ten tasks beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    network = keras.applications.MobileNet(
        (112, 112, 3), alpha=0.75, include_top=False, weights="imagenet", pooling="avg"
    )
    arrays = {}
    for split in ("train", "test"):
        features, labels = [], []
        for batch in tfds.load("tiny_imagenet200_64", split=split).batch(100):
            larger = tf.image.resize(tf.cast(batch["image"], tf.float32), (112, 112))
            features.append(network(larger / 127.5 - 1, training=False).numpy())
            labels.append(batch["label"].numpy())
        arrays[f"x_{split}"] = np.concatenate(features).astype("float32")
        arrays[f"y_{split}"] = np.concatenate(labels)
    np.savez(path.with_suffix(".npz"), **arrays)
    tasks = [
        f'[[task]]\nname = "{first}"\nnpz = "{path.stem}.npz"\n'
        f"classes = {list(range(first, first + 20))}\n"
        for first in range(0, 200, 20)
    ]
    path.write_text(f'name = "{path.stem}"\nscenario = "class"\n\n' + "\n".join(tasks))


def draw(rows, path):
    """Draw average accuracy on validation data against λ, a panel per stream."""
    streams = [name for name in STREAMS if any(row["stream"] == name for row in rows)]
    figure, grid = plt.subplots(1, len(streams), figsize=(3.6 * len(streams), 3.3), squeeze=False)
    for panel, stream in zip(grid[0], streams, strict=True):
        for row in (row for row in rows if row["stream"] == stream):
            points = [(s, sum(a) / len(a)) for s, a in row["validation"] if None not in a]
            if points:
                strengths, accuracies = zip(*points, strict=True)
                colour = f"C{list(METHODS).index(row['name'])}"
                panel.plot(
                    strengths, accuracies, "o-", color=colour, markersize=3, label=row["name"]
                )
            else:
                mean, _ = mean_and_deviation(row, "average_accuracy")
                panel.axhline(mean, color="grey", linestyle=":", linewidth=1)
                place = panel.get_yaxis_transform()  # x from 0 to 1 across the panel
                panel.text(
                    0.02, mean, row["name"], fontsize=7, color="grey", va="bottom", transform=place
                )
        panel.set_xscale("log")
        panel.set_xlabel("λ")
        panel.set_title(stream, fontsize=10, loc="left")
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("average accuracy\n(validation)")
    grid[0][0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
