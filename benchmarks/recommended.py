"""What is the λ that a search recommends worth on test data, beside λ = 1?

    python benchmarks/recommended.py [--tasks split-digits] [--trials 20] [--seeds 0,1,2,3,4]

For every seed a search is made as `keras-mas search` makes it, on the examples that the seed holds
out. What it recommends is trained with all seeds, and so are λ = 1 and the λ of a simpler rule: of
the most accurate trials that forget least, the middle one. Searches are kept under search/ and runs
under runs/grids; none is repeated. Differences from λ = 1 are paired by seed, with their standard
error; means over the searches have that of the searches. Writes results/recommended.json, in which
other streams stay as they are.
"""

import argparse
import os
import statistics
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from grid import Grid, replace_rows

from keras_mas.training.search.search import search
from keras_mas.training.search.space import SearchSpace
from keras_mas.training.settings import Settings, recipe_for

REFERENCE = 1.0
MEASURES = ("average_accuracy", "forgetting")


def middle(as_good):
    """Return λ by the simpler rule, which does not know the cross-entropy."""
    order = [(trial.forgetting, -trial.accuracy) for trial in as_good]
    pairs = zip(as_good, order, strict=True)
    alike = sorted(trial.strength for trial, each in pairs if each == min(order))
    return alike[(len(alike) - 1) // 2]


def recommended(grid, seed, trials):
    """Return what a search recommends, by the name of the rule."""
    stream = grid.stream(seed)
    settings = Settings(seed=seed, recipe=recipe_for(stream))
    found = search(stream, settings, SearchSpace(trials=trials), Path("search")).recommendation()
    return {"recommended": found.trial.strength, "middle": middle(found.as_good)}


def difference(values, others):
    """Return the mean of paired differences and its standard error."""
    pairs = [a - b for a, b in zip(values, others, strict=True)]
    return statistics.mean(pairs), statistics.stdev(pairs) / len(pairs) ** 0.5


def measured(grid, strengths):
    """Return test accuracy and forgetting of every seed with each of some λ, by λ and measure."""
    settings = Settings(recipe=recipe_for(grid.stream(grid.seeds[0])))
    return {
        strength: {
            name: [result[name] for result in grid.results("recommended", settings, strength)]
            for name in MEASURES
        }
        for strength in strengths
    }


def shown(name, found, reference):
    """Return a line: mean ± standard deviation, and the difference ± its standard error."""
    parts = [name]
    for measure in MEASURES:
        mean, deviation = statistics.mean(found[measure]), statistics.stdev(found[measure])
        by, error = difference(found[measure], reference[measure])
        parts.append(f"{measure} {mean:.4f} ± {deviation:.4f} ({by:+.4f} ± {error:.4f})")
    return "  ".join(parts)


def main():
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default="split-digits")
    parser.add_argument("--scenario", default="task")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", default="0,1,2,3,4")
    args = parser.parse_args()
    seeds = [int(seed) for seed in args.seeds.split(",")]
    if len(seeds) < 2:
        parser.error(f"expected two seeds or more, for a standard error, received {args.seeds}")
    grid = Grid(args.tasks, args.scenario, seeds=seeds)
    chosen = [recommended(grid, seed, args.trials) for seed in seeds]
    strengths = {each[rule] for each in chosen for rule in each} | {REFERENCE}
    by_strength = measured(grid, sorted(strengths))
    rows = []
    for rule in chosen[0]:
        taken = [each[rule] for each in chosen]
        of_searches = {
            name: [statistics.mean(by_strength[strength][name]) for strength in taken]
            for name in MEASURES
        }
        every = {
            name: [statistics.mean(by_strength[REFERENCE][name])] * len(taken) for name in MEASURES
        }
        print(shown(f"{rule}, mean ± over the searches", of_searches, every), flush=True)
        # Of each search its own seed, which is what a user does who changes the seed of both.
        own = {name: [by_strength[s][name][k] for k, s in enumerate(taken)] for name in MEASURES}
        print(shown("  each search its own seed", own, by_strength[REFERENCE]), flush=True)
        for seed, strength in zip(seeds, taken, strict=True):
            line = shown(f"λ={strength:g}", by_strength[strength], by_strength[REFERENCE])
            print(f"  search of seed {seed}: {line}", flush=True)
        rows.append({"stream": args.tasks, "name": rule, "seeds": seeds, "strengths": taken})
    for strength, found in by_strength.items():
        print(shown(f"λ={strength:g}", found, by_strength[REFERENCE]), flush=True)
        rows.append({"stream": args.tasks, "name": f"λ={strength:g}", "seeds": seeds} | found)
    replace_rows(Path("results/recommended.json"), rows)


if __name__ == "__main__":
    main()
