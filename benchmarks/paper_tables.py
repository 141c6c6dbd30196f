"""The paper's pairs and sequence of eight tasks, in small images, with every method of the paper.

    python benchmarks/paper_tables.py --weights FILE [--streams flowers-scenes,eight,...]

SqueezeNet v1.1 begins with the weights in FILE, learned on ImageNet; its first half is frozen. λ of
each method is chosen on validation data of Flowers → Scenes, the first seed, and taken for all
streams. Data come from the folder that TFDS_DATA_DIR names. Runs are kept under runs/grids. Writes
results/paper_tables.json.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from grid import Grid, replace_rows
from variants import OnTestData

from keras_mas.training.settings import Recipe, Settings

SEEDS = (0,)
PAIRS = ("flowers-scenes", "flowers-birds", "birds-scenes", "scenes-birds")
# Name in the paper → method, and the grid of λ, to be widened where the best lies at an edge; the
# authors of LwF and EBLL give λ = 1.
METHODS = {
    "FineTune": ("finetune", [0.0]),
    "LwF": ("lwf", [1.0]),
    "EBLL": ("ebll", [1.0]),
    "IMM (mean)": ("imm_mean", [0.01]),
    "EWC": ("ewc", [10.0, 100.0, 1000.0]),
    "SI": ("si", [1.0, 10.0, 100.0]),
    "MAS": ("mas", [0.01, 0.1, 1.0]),
    "MAS, Ω on test data": ("variants:OnTestData", "MAS"),  # takes its λ, as in the paper
    "l-MAS": ("local_mas", [0.01, 0.1, 1.0]),
}


def main():
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, metavar="FILE")
    parser.add_argument("--streams", default=",".join((*PAIRS, "eight")), metavar="NAMES")
    args = parser.parse_args()
    strengths = chosen(args.weights)
    for stream in args.streams.split(","):
        print(stream, flush=True)
        grid = Grid(Path(f"benchmarks/paper/{stream}-64.toml"), "task", (), SEEDS)
        for name, strength in strengths.items():
            settings = settings_of(name, stream, args.weights)
            OnTestData.test_inputs = [task.test.inputs for task in grid.stream(SEEDS[0]).tasks]
            [result] = grid.results(name, settings, strength)
            row = row_of(result) if result else {"diverged": True}
            row = {"stream": stream, "name": name, "strength": strength, **row}
            print(row, flush=True)
            replace_rows(Path("results/paper_tables.json"), [row])


def chosen(weights):
    """Return λ of each method, chosen on validation data of Flowers → Scenes."""
    grid = Grid(Path("benchmarks/paper/flowers-scenes-64.toml"), "task", SEEDS[:1], ())
    found = {}
    for name, (_, strengths) in METHODS.items():
        if isinstance(strengths, str):
            found[name], curve = found[strengths], f"as {strengths}"
        else:
            settings = settings_of(name, "flowers-scenes", weights)
            found[name], curve = grid.strength(name, settings, strengths, widen=3)
        print(f"{name}  λ={found[name]:g}  validation: {curve}", flush=True)
    return found


def settings_of(name, stream, weights):
    """Return how a stream is learned; Flowers has half of the images of the others."""
    starts_small = stream.startswith("flowers") or stream == "eight"
    method = METHODS[name][0]
    recipe = Recipe(
        backbone="squeezenet",
        weights=weights,
        freeze="13",  # the first convolution and four of the eight modules
        learning_rate=0.0003,
        batch_size=32,
        epochs=4,
        first_epochs=8 if starts_small else None,
        # The exact Fisher information of 200 classes takes as many passes.
        max_examples=64 if method == "ewc" else 256,
    )
    return Settings(method, 0.0, recipe=recipe)


def row_of(result):
    """Return what the paper's tables show: accuracies at the end, and how far each task fell."""
    matrix = result["accuracy_matrix"]
    drops = [matrix[task][task] - accuracy for task, accuracy in enumerate(matrix[-1])]
    return {
        "accuracies": [round(accuracy, 4) for accuracy in matrix[-1]],
        "drops": [round(drop, 4) for drop in drops],
        "average_accuracy": round(result["average_accuracy"], 4),
        "average_drop": round(sum(drops[:-1]) / len(drops[:-1]), 4),
        "minutes": round(sum(result["seconds"].values()) / 60, 1),
    }


if __name__ == "__main__":
    main()
