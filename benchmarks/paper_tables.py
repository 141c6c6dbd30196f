"""The paper's pairs and sequence of eight tasks, in small images, with every method of the paper.

    python benchmarks/paper_tables.py --weights FILE [--seeds 3] [--streams flowers-scenes,...]

MobileNet (α = 0.75) begins with the weights in FILE, learned on ImageNet, a file without a
classifier as Keras publishes it. Images are enlarged to 96×96. The first eleven blocks are frozen,
so that they are run once for every image; the last two, 0.9 million weights, and the heads learn.
Batch normalization keeps the statistics of ImageNet. λ of each method is chosen on validation data
of Flowers → Scenes, the first seed, and taken for all streams. Data come from the folder that
TFDS_DATA_DIR names. Runs are kept under runs/grids, what the frozen part gives under
runs/paper-maps. Writes results/paper_tables.json, and prints the tables.
"""

import argparse
import os
import statistics
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from grid import Grid, replace_rows
from mobilenet_parts import frozen_part
from variants import OnTestData

from keras_mas.training.settings import Recipe, Settings
from keras_mas.training.tasks import load_tasks

STREAMS = ("flowers-scenes", "flowers-birds", "birds-scenes", "scenes-birds", "eight")
# Name in the paper → method, and the grid of λ, to be widened where the best lies at an edge; the
# authors of LwF and EBLL give λ = 1.
METHODS = {
    "FineTune": ("finetune", [0.0]),
    "LwF": ("lwf", [1.0]),
    "EBLL": ("ebll", [1.0]),
    "IMM (mean)": ("imm_mean", [0.001, 0.01, 0.1]),
    "EWC": ("ewc", [10.0, 100.0, 1000.0]),
    "SI": ("si", [10.0, 100.0, 1000.0]),
    "MAS": ("mas", [0.01, 0.1, 1.0]),
    "MAS, Ω on test data": ("variants:OnTestData", "MAS"),  # takes its λ, as in the paper
    "l-MAS": ("local_mas", [0.01, 0.1, 1.0]),
}
MAPS = Path("runs/paper-maps")
RECORD = Path("results/paper_tables.json")


def main():
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True, metavar="FILE")
    parser.add_argument("--streams", default=",".join(STREAMS), metavar="NAMES")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    args = parser.parse_args()
    seeds = range(args.seeds)
    streams = {name: maps_of(name, args.weights) for name in args.streams.split(",")}
    strengths = chosen(maps_of("flowers-scenes", args.weights), args.weights)
    for stream, path in streams.items():
        print(stream, flush=True)
        grid = Grid(path, "task", (), seeds)
        for name, strength in strengths.items():
            OnTestData.test_inputs = [task.test.inputs for task in grid.stream(seeds[0]).tasks]
            found = grid.results(name, settings_of(name, stream, args.weights), strength)
            row = {"stream": stream, "name": name, "strength": strength, **row_of(found)}
            print(row, flush=True)
            rows = replace_rows(RECORD, [row])
    print(pairs_table(rows), sequence_table(rows), sep="\n\n")


def maps_of(stream, weights):
    """Return the TOML file of a stream of what the frozen part gives; write it if it is not there.

    The images are those of `benchmarks/paper/STREAM-64.toml`, all of one task in one file.
    """
    path = MAPS / f"{stream}.toml"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        images = load_tasks(Path(f"benchmarks/paper/{stream}-64.toml"), scenario="task")
        frozen = frozen_part(weights)
        entries = []
        for task in images.tasks:
            write_maps(task, frozen, MAPS / f"{task.name}.npz")
            entries.append(f'[[task]]\nname = "{task.name}"\nnpz = "{task.name}.npz"\n')
        path.write_text(f'name = "paper-{stream}-maps"\n\n' + "\n".join(entries))
    return path


def write_maps(task, frozen, path):
    """Write what the frozen part gives for all images of a task, with their labels."""
    if path.exists():
        return
    arrays = {}
    for role, splits in {"train": (task.train, task.validation), "test": (task.test,)}.items():
        batches = (batch for split in splits for batch in split.batches(64))
        arrays[f"x_{role}"] = np.concatenate([frozen(batch) for batch in batches])
        arrays[f"y_{role}"] = np.concatenate([split.labels for split in splits])
    np.savez(path, **arrays)


def chosen(path, weights):
    """Return λ of each method, chosen on validation data of a stream."""
    grid = Grid(path, "task", (0,), ())
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
    recipe = Recipe(
        backbone="mobilenet_parts:learned_part",
        weights=weights,
        learning_rate=0.0001,
        batch_size=32,
        epochs=4,
        first_epochs=8 if starts_small else None,
        max_examples=200,  # the exact Fisher information of 200 classes takes as many passes
    )
    return Settings(METHODS[name][0], 0.0, recipe=recipe)


def row_of(results):
    """Return what the paper's tables show, of each seed: accuracies at the end, and their fall."""
    if None in results:
        return {"diverged": True}
    matrices = [result["accuracy_matrix"] for result in results]
    drops = [
        [matrix[task][task] - accuracy for task, accuracy in enumerate(matrix[-1])]
        for matrix in matrices
    ]
    return {
        "accuracies": [[round(each, 4) for each in matrix[-1]] for matrix in matrices],
        "drops": [[round(each, 4) for each in one] for one in drops],
        "average_accuracy": [round(result["average_accuracy"], 4) for result in results],
        "average_drop": [round(sum(one[:-1]) / len(one[:-1]), 4) for one in drops],
        "minutes": [round(sum(result["seconds"].values()) / 60, 1) for result in results],
    }


def pairs_table(rows):
    """Return the pairs as the paper's table: first task (its drop) | second task, in percent."""
    pairs = [name for name in STREAMS if name != "eight"]
    titles = ["" if name == "" else " → ".join(name.title().split("-")) for name in ("", *pairs)]
    lines = [titles, ["---"] * len(titles)]
    for name in METHODS:
        found = {row["stream"]: row for row in rows if row["name"] == name}
        lines.append([name, *(_pair(found.get(pair)) for pair in pairs)])
    return _markdown(lines)


def sequence_table(rows):
    """Return the eight tasks as the paper's figure: average accuracy and drop, and all tasks."""
    eight = {row["name"]: row for row in rows if row["stream"] == "eight"}
    tasks = ["flowers", "scenes", "birds", "cars", "aircraft", "actions", "letters", "svhn"]
    titles = ["", "λ", "average accuracy", "average drop", *tasks, "minutes"]
    lines = [titles, ["---"] * len(titles)]
    for name in METHODS:
        if name in eight:
            row = eight[name]
            accuracies = [_percent(each) for each in zip(*row["accuracies"], strict=True)]
            lines.append(
                [
                    name,
                    f"{row['strength']:g}" if row["strength"] else "",
                    _percent(row["average_accuracy"]),
                    _percent(row["average_drop"], sign=-1),
                    *accuracies,
                    f"{statistics.mean(row['minutes']):.1f}",
                ]
            )
    return _markdown(lines)


def _pair(row):
    if row is None or "accuracies" not in row:
        return "" if row is None else "diverged"
    first, second = (_percent(each) for each in zip(*row["accuracies"], strict=True))
    drop = _percent([one[0] for one in row["drops"]], sign=-1)
    return f"{first} ({drop}) \\| {second}"


def _percent(values, sign=1):
    """Return the mean over seeds, with the standard deviation if there are several, in percent."""
    values = [100 * sign * value for value in values]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):z.1f}{spread}".replace("-", "−")


def _markdown(lines):
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
