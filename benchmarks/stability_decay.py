"""λ by stability decay against the best fixed λ: what does not looking at old data cost?

    python benchmarks/stability_decay.py [--tasks split-mnist] [--seeds 0,1,2] [--margins 0.01]

`--strength decay` finds λ of each task on that task's own validation data. The best of the fixed λ
is chosen by the test data of all tasks, by mean average accuracy over the same seeds, which favours
it. Recipe and penalty are the stream's own. Every run is kept under runs/grids and not repeated; a
run that was cut off goes on. Writes results/stability_decay.json, where rows of other streams stay
as they are. split-mnist is read from TFDS_DATA_DIR.
"""

import argparse
import os
import statistics
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from grid import Grid, replace_rows

from keras_mas.training.settings import Settings, recipe_for
from keras_mas.training.stability_decay import MARGIN, decay_text
from keras_mas.training.summary import new_task_accuracy, strength_text

FIXED = [0.001, 0.01, 0.1, 1.0]
# More than this may not be lost to the best fixed λ.
MOST_LOST = 0.01


def _row(tasks, strength, results):
    row = {"stream": tasks, "name": strength_text(strength), "strength": strength}
    for key in ("average_accuracy", "forgetting"):
        row[key] = [None if result is None else round(result[key], 4) for result in results]
    row["new_task_accuracy"] = [
        result and round(new_task_accuracy(result), 4) for result in results
    ]
    if isinstance(strength, str):
        row["taken"] = [[float(f"{value:.4g}") for value in r["strengths"][1:]] for r in results]
        row["tries"] = [[len(each["tries"]) for each in r["decayed"][1:]] for r in results]
    return row


def mean(row: dict, measure: str = "average_accuracy") -> float:
    """Return the mean of a measure over the seeds; −1 if a run diverged."""
    return -1.0 if None in row[measure] else statistics.mean(row[measure])


def _line(row):
    if None in row["average_accuracy"]:
        return f"λ = {row['name']:12} diverged"
    found = "".join(f"  {name} {row[name]}" for name in ("taken", "tries") if name in row)
    return (
        f"λ = {row['name']:12} accuracy {mean(row):.4f}  new tasks "
        f"{mean(row, 'new_task_accuracy'):.4f}  forgetting {mean(row, 'forgetting'):.4f}{found}"
    )


def main():
    """Measure, print and record; fail if too much is lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="split-mnist")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--margins", default=str(MARGIN))
    parser.add_argument("--fixed", default=",".join(map(str, FIXED)))
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    grid = Grid(args.tasks, "task", seeds=seeds)
    settings = Settings("mas", 0.0, recipe=recipe_for(grid.stream(seeds[0])))
    rows = []
    margins = [float(margin) for margin in args.margins.split(",")]
    fixed = [float(strength) for strength in filter(None, args.fixed.split(","))]
    for strength in [*map(decay_text, margins), *fixed]:
        rows.append(_row(args.tasks, strength, grid.results("fixed", settings, strength)))
        print(_line(rows[-1]), flush=True)
    replace_rows(Path("results/stability_decay.json"), rows)
    best = max((row for row in rows if isinstance(row["strength"], float)), key=mean, default=None)
    if best is not None:
        lost = mean(best) - mean(rows[0])
        print(f"{lost:.4f} lost to the best fixed λ, {best['name']}")
        raise SystemExit(lost > MOST_LOST)


if __name__ == "__main__":
    main()
