"""Accuracy and forgetting against λ, for the penalty in the loss and decoupled.

    python benchmarks/penalty.py [--streams split-digits,split-mnist] [--seeds 0,1,2]

Every run is kept under runs/penalty, and a run that is there is not repeated. Writes the table
results/penalty.json, where rows of other streams stay as they are, and the picture
results/penalty.png. About 20 minutes for split-digits and 60 for split-mnist.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from keras_mas.training.divergence import DivergedError
from keras_mas.training.run import train
from keras_mas.training.run_directory import read_json, write_json
from keras_mas.training.settings import RECIPES, Settings
from keras_mas.training.tasks import load_tasks

STRENGTHS = [10.0**power for power in range(-3, 7)]
PENALTIES = ("in_loss", "decoupled")
# Each stream with its own recipe, and with the other optimizer.
RECIPES_OF = {
    "split-digits": {
        "adam": RECIPES["split-digits"],
        "sgd": dataclasses.replace(RECIPES["split-digits"], optimizer="sgd", learning_rate=0.05),
    },
    "split-mnist": {
        "adam": dataclasses.replace(
            RECIPES["split-mnist"],
            optimizer="adam",
            learning_rate=0.001,
            first_learning_rate=None,
            epochs=4,
            first_epochs=None,
        ),
        "sgd": RECIPES["split-mnist"],
    },
}


def measure(name, optimizer, penalty, strength, seed):
    """Run, or read, one combination; None if it diverged."""
    folder = Path("runs/penalty") / f"{name}-{optimizer}-{penalty}-{strength:g}-{seed}"
    failed = folder / "diverged.json"
    if failed.exists():
        return None
    settings = Settings("mas", strength, penalty, seed, RECIPES_OF[name][optimizer])
    try:
        return train(load_tasks(name, seed=seed), settings, folder)
    except DivergedError as error:
        write_json(failed, {"error": str(error)})
        return None


def row(name, optimizer, penalty, strength, seeds):
    """Return means and deviations over the seeds of one combination."""
    found = [measure(name, optimizer, penalty, strength, seed) for seed in seeds]
    ended = [result for result in found if result is not None]
    values = {"seeds": seeds, "diverged": len(found) - len(ended)}
    for key in ("average_accuracy", "forgetting"):
        numbers = [result[key] for result in ended]
        values[key] = round(statistics.mean(numbers), 4) if numbers else None
        values[f"{key}_deviation"] = round(statistics.stdev(numbers), 4) if numbers[1:] else None
    setting = {"stream": name, "optimizer": optimizer, "penalty": penalty, "strength": strength}
    return setting | values


def draw(rows, path):
    """Draw accuracy (above) and forgetting (below) against λ, a column per stream and optimizer."""
    columns = sorted({(row["stream"], row["optimizer"]) for row in rows})
    figure, grid = plt.subplots(
        2, len(columns), figsize=(4 * len(columns), 5), sharex=True, sharey="row", squeeze=False
    )
    for column, (stream, optimizer) in enumerate(columns):
        for penalty, measured in itertools.product(PENALTIES, (0, 1)):
            key = ("average_accuracy", "forgetting")[measured]
            points = [
                row
                for row in rows
                if (row["stream"], row["optimizer"], row["penalty"]) == (stream, optimizer, penalty)
                and row[key] is not None
            ]
            panel = grid[measured][column]
            panel.errorbar(
                [point["strength"] for point in points],
                [point[key] for point in points],
                [point[f"{key}_deviation"] or 0 for point in points],
                marker="o",
                markersize=4,
                capsize=2,
                label=penalty,
            )
            panel.set_xscale("log")
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
        grid[0][column].set_title(f"{stream}, {optimizer}", fontsize=10, loc="left")
        grid[1][column].set_xlabel("λ")
    grid[0][0].set_ylabel("average accuracy")
    grid[1][0].set_ylabel("forgetting")
    grid[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main():
    """Measure, print, record and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", default="split-digits,split-mnist")
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    streams = args.streams.split(",")
    table = Path("results/penalty.json")
    known = read_json(table)["rows"] if table.exists() else []
    rows = [row for row in known if row["stream"] not in streams]
    for name in streams:
        for optimizer, penalty, strength in itertools.product(
            RECIPES_OF[name], PENALTIES, STRENGTHS
        ):
            rows.append(row(name, optimizer, penalty, strength, seeds))
            print(json.dumps(rows[-1]), flush=True)
    write_json(table, {"rows": rows})
    draw(rows, Path("results/penalty.png"))


if __name__ == "__main__":
    main()
