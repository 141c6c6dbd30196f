"""Exact against batch-summed importance, and against fewer examples, for MAS and EWC.

    python benchmarks/batch_sums.py [--streams rotated-digits,permuted-digits]

For each importance λ is chosen out of powers of ten on validation data of two seeds; accuracy is
that of five seeds on test data. Runs are kept under runs/grids. Writes results/batch_sums.json and
results/batch_sums.png. About half an hour a stream.
"""

import argparse
import dataclasses
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from grid import Grid, replace_rows

from keras_mas.training.run_directory import read_json
from keras_mas.training.settings import RECIPES, Settings

ALL = 10**9
STREAMS = ("rotated-digits", "permuted-digits")
RECORD = Path("results/batch_sums.json")
_MAS = [10.0**power for power in range(-2, 3)]
_EWC = [10.0**power for power in range(1, 8)]
# Name → method, examples that importance is measured on, and the grid of λ.
VARIANTS = {
    "MAS, exact": ("mas", 1000, _MAS),
    "MAS, batches of 8": ("variants:MAS_8", 1000, _MAS),
    "MAS, batches of 64": ("variants:MAS_64", 1000, _MAS),
    "MAS, batches of 1,024": ("variants:MAS_1024", 1000, _MAS),
    "MAS, exact, 100 examples": ("mas", 100, _MAS),
    "MAS, exact, all examples": ("mas", ALL, _MAS),
    "EWC, exact": ("ewc", 1000, _EWC),
    "EWC, exact, true labels": ("variants:EWC_1", 1000, _EWC),
    "EWC, batches of 8": ("variants:EWC_8", 1000, _EWC),
    "EWC, batches of 64": ("variants:EWC_64", 1000, _EWC),
    "EWC, batches of 1,024": ("variants:EWC_1024", 1000, _EWC),
    "EWC, exact, 100 examples": ("ewc", 100, _EWC),
    "EWC, exact, all examples": ("ewc", ALL, _EWC),
}


def main():
    """Measure, print, record and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", default=",".join(STREAMS), metavar="NAMES")
    for stream in parser.parse_args().streams.split(","):
        print(stream, flush=True)
        grid = Grid(stream, scenario="task")
        for name, (method, examples, strengths) in VARIANTS.items():
            recipe = dataclasses.replace(RECIPES[stream], max_examples=examples)
            row = grid.row(name, Settings(method, 0.0, recipe=recipe), strengths)
            replace_rows(RECORD, [{"stream": stream, **row}])
    draw(read_json(RECORD)["rows"], Path("results/batch_sums.png"))


def draw(rows, path):
    """Draw accuracy on validation data against λ, a panel per stream and method."""
    streams = [stream for stream in STREAMS if any(row["stream"] == stream for row in rows)]
    figure, grid = plt.subplots(
        len(streams), 2, figsize=(9, 3 * len(streams) + 0.4), sharey="row", squeeze=False
    )
    for across, stream in zip(grid, streams, strict=True):
        for panel, method in zip(across, ("MAS", "EWC"), strict=True):
            for name in VARIANTS:
                curve = [r for r in rows if r["stream"] == stream and r["name"] == name]
                if name.startswith(method) and "examples" not in name and curve:
                    points = [
                        (s, min(a), max(a)) for s, a in curve[0]["validation"] if None not in a
                    ]
                    strengths, low, high = zip(*points, strict=True)
                    middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
                    panel.plot(strengths, middle, "o-", markersize=3, label=name.split(", ", 1)[1])
                    panel.fill_between(strengths, low, high, alpha=0.15)
            panel.set_xscale("log")
            panel.grid(alpha=0.3)
            panel.spines[["top", "right"]].set_visible(False)
            panel.set_title(f"{stream}, {method}", fontsize=10, loc="left")
            panel.legend(frameon=False, fontsize=8)
        across[0].set_ylabel("average accuracy\n(validation)")
    for panel in grid[-1]:
        panel.set_xlabel("λ")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
