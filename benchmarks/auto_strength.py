"""`strength="auto"` against fixed λ: how far each setting is from the best one of every case.

    python benchmarks/auto_strength.py [--cases rotated-digits,letters-13] [--seeds 0,1]

A case is a stream with a network and an optimizer: Adam 0.001 or SGD 0.05 with momentum 0.9, and
Adam 0.0001 for the pretrained network of `paper_tables.py`, which needs `--weights`. Every run is
kept under runs/grids and not repeated. The best setting of a case is chosen among the fixed ones by
its test data, which favours them. Writes results/auto_strength.json, where rows of other cases stay
as they are, and results/auto_strength.png. Streams of `peers_streams` and of the paper are cut from
the data sets that TFDS_DATA_DIR holds.
"""

import argparse
import dataclasses
import os
import statistics
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from grid import Grid
from paper_tables import STREAMS as PAPER
from paper_tables import maps_of
from peers_keras_mas import stream_of
from peers_streams import STREAMS, prepared, read_tasks

from keras_mas.choices import AUTO, kappa_of
from keras_mas.training.run_directory import read_json, write_json
from keras_mas.training.settings import Recipe, Settings
from keras_mas.training.summary import strength_text
from keras_mas.training.tasks import TaskStream

PENALTIES = ("decoupled", "in_loss")
FIXED = {
    "decoupled": [10.0**power for power in range(-1, 4)],
    "in_loss": [10.0**power for power in range(-2, 1)],
}
KAPPAS = (3, 10, 30, 100)
OPTIMIZERS = {"adam": 0.001, "sgd": 0.05}


def _image_recipe(stream: str, backbone: str) -> Recipe:
    return Recipe(backbone=backbone, epochs=STREAMS[stream].epochs, batch_size=128)


def _digits_recipe(backbone: str = "mlp-100-100", **changes: int) -> Recipe:
    return Recipe(backbone=backbone, epochs=10, **changes)


@dataclasses.dataclass(frozen=True)
class Case:
    """What is learned, and how.

    Attributes:
        stream: Name of a stream of ours or of `peers_streams`, or of one of the paper's.
        recipe: Its optimizer and learning rate are left to `rates`.
        rates: The learning rate of each optimizer.
        penalties: Where the penalty acts.
    """

    stream: str
    recipe: Recipe
    rates: dict[str, float] = dataclasses.field(default_factory=lambda: OPTIMIZERS)
    penalties: tuple[str, ...] = PENALTIES


_ADAM_ALONE = {"adam": OPTIMIZERS["adam"]}
# What was learned on ImageNet needs smaller steps.
_PRETRAINED = Recipe(
    backbone="mobilenet_parts:learned_part", batch_size=32, epochs=4, max_examples=200
)
_PRETRAINED_RATES = {"adam": 0.0001}

CASES = {
    "rotated-digits": Case("rotated-digits", _digits_recipe()),
    "letters-13": Case("letters-13", _image_recipe("letters-13", "mlp-100-100")),
    "five-small": Case("five-small", _image_recipe("five-small", "mlp-100-100"), _ADAM_ALONE),
    "permuted-digits": Case("permuted-digits", _digits_recipe()),
    "split-digits": Case("split-digits", _digits_recipe()),
    "five-small-cnn": Case(
        "five-small", _image_recipe("five-small", "cnn-8-16"), _ADAM_ALONE, ("decoupled",)
    ),
    "rotated-digits-batch16": Case("rotated-digits", _digits_recipe(batch_size=16)),
    "rotated-digits-wide": Case("rotated-digits", _digits_recipe("mlp-400-400")),
    "long-50": Case(
        "long-50", _image_recipe("long-50", "mlp-256-256"), _ADAM_ALONE, ("decoupled",)
    ),
    "flowers-scenes": Case("flowers-scenes", _PRETRAINED, _PRETRAINED_RATES, ("decoupled",)),
    "eight": Case("eight", _PRETRAINED, _PRETRAINED_RATES, ("decoupled",)),
}


class PreparedGrid(Grid):
    """A grid over one of the streams of `peers_streams`, whose split is no matter of the seed."""

    def stream(self, seed: int) -> TaskStream:
        """Return the stream, whatever the seed."""
        if not self.streams:
            path = prepared(self.tasks, Path("runs/peers"))
            self.streams[0] = stream_of(self.tasks, read_tasks(path))
        return self.streams[0]


def grid_of(case, seeds, weights):
    """Return the grid of a case; what is pretrained begins with the weights in a file."""
    stream = CASES[case].stream
    if stream in STREAMS:
        return PreparedGrid(stream, "task", seeds=seeds)
    return Grid(maps_of(stream, weights) if stream in PAPER else stream, "task", seeds=seeds)


def rows_of(case, grid, weights):
    """Return a row for every optimizer, penalty and strength of a case."""
    rows = []
    for optimizer, rate in CASES[case].rates.items():
        chosen = dataclasses.replace(
            CASES[case].recipe,
            optimizer=optimizer,
            learning_rate=rate,
            first_learning_rate=None,
            first_epochs=None,
            weights=weights if CASES[case].stream in PAPER else None,
        )
        for penalty in CASES[case].penalties:
            settings = Settings("mas", 0.0, penalty, recipe=chosen)
            name = f"{case}, {optimizer}, {penalty}"
            strengths = [*FIXED[penalty], *(f"{AUTO}:{kappa}" for kappa in KAPPAS)]
            for strength in strengths:
                results = grid.results(name, settings, strength)
                rows.append(_row(case, optimizer, penalty, strength, results))
                print(_line(rows[-1]), flush=True)
    return rows


def _row(case, optimizer, penalty, strength, results):
    row = {
        "stream": case,
        "name": f"{optimizer}, {penalty}, {strength_text(strength)}",
        "optimizer": optimizer,
        "penalty": penalty,
        "strength": strength,
    }
    for key in ("average_accuracy", "forgetting"):
        row[key] = [None if result is None else round(result[key], 4) for result in results]
    taken = [result["strengths"][1:] for result in results if result and "strengths" in result]
    if taken:
        row["taken"] = [[float(f"{value:.4g}") for value in each] for each in taken]
        row["free"] = [round(result["free"][-1], 4) for result in results if result]
    return row


def _line(row):
    accuracy = mean_accuracy(row)
    text = "diverged" if accuracy is None else f"{accuracy:.4f}"
    return f"{row['stream']}  {row['name']}  {text}  λ {row.get('taken', [''])[0]}"


def mean_accuracy(row: dict) -> float | None:
    """Return the mean over the seeds of average accuracy; None if one diverged."""
    found = row["average_accuracy"]
    return None if None in found else statistics.mean(found)


def losses(rows: list[dict]) -> dict[tuple[str, float | str], dict[tuple[str, str], list[float]]]:
    """Return by penalty and strength what every seed loses against the best fixed one, by case.

    The best one has the highest mean over the seeds. A run that diverged counts as accuracy 0.
    """
    best: dict[tuple[str, str], dict] = {}
    for row in rows:
        if not isinstance(row["strength"], str):
            known = best.setdefault((row["stream"], row["optimizer"]), row)
            if (mean_accuracy(row) or 0.0) > (mean_accuracy(known) or 0.0):
                best[row["stream"], row["optimizer"]] = row
    found: dict = {}
    for row in rows:
        case = row["stream"], row["optimizer"]
        pairs = zip(best[case]["average_accuracy"], row["average_accuracy"], strict=True)
        lost = [(highest or 0.0) - (accuracy or 0.0) for highest, accuracy in pairs]
        found.setdefault((row["penalty"], row["strength"]), {})[case] = lost
    return found


def print_losses(rows):
    """Print for every setting what it loses: the mean over the cases, and the worst of them.

    The worst has its standard deviation over the seeds.
    """
    print(f"{'setting':24} {'mean':>7} {'worst':>7}")
    for (penalty, strength), lost in losses(rows).items():
        means = {case: statistics.mean(each) for case, each in lost.items()}
        case = max(means, key=lambda case: means[case])
        spread = statistics.stdev(lost[case]) if len(lost[case]) > 1 else 0.0
        print(
            f"{penalty + ' ' + strength_text(strength):24} {statistics.mean(means.values()):7.4f} "
            f"{means[case]:7.4f} ± {spread:.4f}  "
            f"{', '.join(case)}; {len(lost)} cases, {len(lost[case])} seeds"
        )


def draw(rows, path):
    """Draw what every setting loses in every case: fixed λ on the left, κ on the right."""
    figure, grid = plt.subplots(2, 2, figsize=(10, 6), sharey=True, sharex="col")
    found = losses(rows)
    cases = sorted({case for lost in found.values() for case in lost})
    colours = plt.get_cmap("tab20")
    for across, penalty in zip(grid, PENALTIES, strict=True):
        for panel, is_auto in zip(across, (False, True), strict=True):
            for number, case in enumerate(cases):
                points = sorted(
                    (kappa_of(strength) or strength, 100 * statistics.mean(lost[case]))
                    for (kind, strength), lost in found.items()
                    if kind == penalty and isinstance(strength, str) == is_auto and case in lost
                )
                panel.plot(
                    *zip(*points, strict=True),
                    marker="o",
                    markersize=3,
                    color=colours(number),
                    label=", ".join(case),
                )
            panel.axhline(1, color="black", linewidth=0.6, linestyle=":")
            panel.set_xscale("log")
            panel.set_ylim(20, -3)
            panel.spines[["top", "right"]].set_visible(False)
            panel.set_title(f"{penalty}, {'auto' if is_auto else 'fixed'}", fontsize=10, loc="left")
        across[0].set_ylabel("points lost to the best fixed λ")
    grid[1][0].set_xlabel("λ")
    grid[1][1].set_xlabel("κ")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="center right", fontsize=7)
    figure.tight_layout(rect=(0, 0, 0.8, 1))
    figure.savefig(path, dpi=130)


def main():
    """Measure, print, record and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    own = [name for name, case in CASES.items() if case.stream not in PAPER]
    parser.add_argument("--cases", default=",".join(own))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--weights", metavar="FILE", help="those of MobileNet, for the paper's")
    args = parser.parse_args()
    cases = list(filter(None, args.cases.split(",")))
    if args.weights is None and any(CASES[case].stream in PAPER for case in cases):
        parser.error("the paper's streams need --weights")
    seeds = [int(seed) for seed in args.seeds.split(",")]
    table = Path("results/auto_strength.json")
    for case in cases:
        rows = rows_of(case, grid_of(case, seeds, args.weights), args.weights)
        # All of a case at once: settings are compared over the same seeds.
        others = [row for row in read_json(table)["rows"] if row["stream"] != case]
        write_json(table, {"rows": [*others, *rows]})
    rows = read_json(table)["rows"]
    print_losses(rows)
    draw(rows, Path("results/auto_strength.png"))


if __name__ == "__main__":
    main()
