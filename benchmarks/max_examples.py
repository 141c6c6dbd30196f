"""What importance from fewer examples costs in accuracy, and saves in time.

    python benchmarks/max_examples.py [--streams split-digits,split-mnist,letters] [--seeds 0,1,2]

Each stream is learned with Ω from 100, 300, 500, 1,000 and all examples of each task. The error is
that of Ω after the first task, until which the runs of a seed are equal: Σ |Ω_n − Ω| / Σ Ω over all
weights. Runs are kept under runs/max_examples, and a run that is there is not repeated. Writes
results/max_examples.json, where rows of other streams stay as they are. `letters` is cut from
the prepared data set `chars74k_36_64`; set TFDS_DATA_DIR to the folder that holds it.
"""

import argparse
import dataclasses
import os
import statistics
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from keras_mas import SynapticMemory
from keras_mas.training.learner import Learner
from keras_mas.training.run import train
from keras_mas.training.run_directory import read_json, write_json
from keras_mas.training.settings import RECIPES, Recipe, Settings
from keras_mas.training.tasks import load_tasks

ALL = 10**9
SIZES = (100, 300, 500, 1000, ALL)

LETTERS = """
name = "letters"
image_size = 32

[[task]]
name = "digits"
tfds = "chars74k_36_64"
classes = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]

[[task]]
name = "a-to-m"
tfds = "chars74k_36_64"
classes = [10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]

[[task]]
name = "n-to-z"
tfds = "chars74k_36_64"
classes = [23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35]
"""

RECIPES_OF = {
    "split-digits": RECIPES["split-digits"],
    "split-mnist": Recipe(epochs=4, batch_size=128),
    "letters": Recipe(backbone="cnn-16-32-64", epochs=30),
}
STRENGTHS = {"split-digits": 1.0, "split-mnist": 1.0, "letters": 1.0}

RUNS = Path("runs/max_examples")
RECORD = Path("results/max_examples.json")


def main(argv=None):
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description="Importance from fewer examples.")
    parser.add_argument("--streams", default=",".join(RECIPES_OF))
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args(argv)
    seeds = [int(seed) for seed in args.seeds.split(",")]
    for name in args.streams.split(","):
        rows = measure(name, seeds)
        known = read_json(RECORD)["rows"] if RECORD.exists() else []
        write_json(RECORD, {"rows": [row for row in known if row["stream"] != name] + rows})


def measure(name, seeds):
    """Return a row for each number of examples, over the seeds."""
    found = {size: [] for size in SIZES}
    for seed in seeds:
        stream = load_tasks(stream_of(name), seed=seed)
        learner = Learner(stream)
        for size in SIZES:
            recipe = dataclasses.replace(RECIPES_OF[name], max_examples=size)
            settings = Settings("mas", STRENGTHS[name], seed=seed, recipe=recipe)
            found[size].append(train(stream, settings, folder(name, size, seed), learner=learner))
    rows = [row(name, size, seeds, found[size]) for size in SIZES]
    for printed in rows:
        print(printed, flush=True)
    return rows


def stream_of(name):
    """Return what `load_tasks` takes for a stream."""
    if name != "letters":
        return name
    path = RUNS / "letters.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(LETTERS)
    return path


def folder(name, size, seed):
    """Return the folder of a run."""
    return RUNS / f"{name}-{named(size)}-{seed}"


def named(size):
    """Return the number of examples as the table shows it."""
    return "all" if size == ALL else size


def row(name, size, seeds, results):
    """Return means, and deviations over the seeds."""
    accuracies = [result["average_accuracy"] for result in results]
    share = [r["seconds"]["importance"] / r["seconds"]["training"] for r in results]
    return {
        "stream": name,
        "examples": named(size),
        "seeds": seeds,
        "error_of_importance": round(statistics.mean(error(name, size, s) for s in seeds), 4),
        "average_accuracy": round(statistics.mean(accuracies), 4),
        "average_accuracy_deviation": round(statistics.stdev(accuracies), 4) if seeds[1:] else None,
        "importance_seconds": round(
            statistics.median(result["seconds"]["importance"] for result in results), 3
        ),
        "importance_per_training": round(statistics.median(share), 3),
    }


def error(name, size, seed):
    """Return Σ |Ω_n − Ω| / Σ Ω after the first task."""
    some, every = (
        SynapticMemory.load(folder(name, n, seed) / "1/memory.npz").importance for n in (size, ALL)
    )
    difference = sum(np.abs(some[key] - every[key]).sum() for key in every)
    return float(difference / sum(omega.sum() for omega in every.values()))


if __name__ == "__main__":
    main()
