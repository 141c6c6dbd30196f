"""What a search costs, against as many runs on their own and keras-tuner around whole runs.

    python benchmarks/search.py [--tasks 2,5,13] [--trials 10] [--epochs 30] [--without-tuner]

A task is scikit-learn's digits turned by another angle. K settings, λ = 0, λ = 1 and random ones,
are tried in four ways:

    search   `training.search`, each trial to its end
    runs     K runs of `training.run.train`, with one learner, so that nothing is traced again; in
             the same process, one after each trial
    stopped  `training.search`, trials not expected to win stopped between tasks
    tuner    keras-tuner's random search around whole runs, which builds everything anew

The cost is processor seconds, which a busy machine changes less than a clock's time, from when the
network has been traced, but for `tuner`, which traces it for every trial. Of `search` it should be
at most (1 + K (T − 1)) / (K T) + 5 % of that of `runs`, since the first task is learned once. With
`--memory` instead, the peak memory of a process after 3 and after 30 trials. Writes
results/search.json.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras_tuner
import numpy as np
from scipy import ndimage
from sklearn.datasets import load_digits

from keras_mas.training.learner import Learner
from keras_mas.training.run import train
from keras_mas.training.run_directory import write_json
from keras_mas.training.search.plan import Observer
from keras_mas.training.search.search import search
from keras_mas.training.search.space import SearchSpace
from keras_mas.training.settings import Recipe, Settings
from keras_mas.training.tasks import Split, Task, TaskStream

RECIPE = Recipe(backbone="mlp-400-400", batch_size=32)
SPACE = SearchSpace("random", strength_min=1e-2, strength_max=1e2)
# How many digits each task has to train on and to choose settings by; the others are test data.
TRAIN, VALIDATION = 900, 300


def stream_of(tasks):
    """Return digits that are turned by 0° to less than 180° in so many tasks."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    parts = np.split(order, [TRAIN, TRAIN + VALIDATION])
    made = []
    for number in range(tasks):
        angle = 180 * number / tasks
        turned = ndimage.rotate(digits.images, angle, axes=(1, 2), reshape=False, order=1)
        inputs = turned.reshape(len(turned), -1).astype("float32")
        splits = [Split(inputs[rows], digits.target[rows]) for rows in parts]
        made.append(Task(f"{angle:.0f}-degrees", tuple("0123456789"), *splits))
    return TaskStream("turned-digits", "task", tuple(made), (1 / 16, 0.0))


def settings_of(strength, epochs):
    """Return the settings of a run."""
    return Settings(strength=strength, recipe=dataclasses.replace(RECIPE, epochs=epochs))


def tune(stream, trials, epochs, folder):
    """Have keras-tuner try values of λ by whole runs, as its users do; return the highest."""
    space = keras_tuner.HyperParameters()
    space.Float("strength", SPACE.strength_min, SPACE.strength_max, sampling="log")

    class Tuner(keras_tuner.RandomSearch):
        def run_trial(self, trial, **fit_arguments):  # `verbose`, of which there is none here
            settings = settings_of(trial.hyperparameters.get("strength"), epochs)
            result = train(stream, settings, folder / trial.trial_id, evaluate_on="validation")
            return {"average_accuracy": result["average_accuracy"]}

    objective = keras_tuner.Objective("average_accuracy", "max")
    tuner = Tuner(
        objective=objective,
        max_trials=trials,
        hyperparameters=space,
        seed=1,
        directory=folder,
        project_name="tuner",
    )
    tuner.search(verbose=0)
    return tuner.oracle.get_best_trials()[0].score


def warm_learner(stream, folder):
    """Return a learner that has traced all that it needs."""
    learner = Learner(stream)
    quick = settings_of(1.0, 1)
    train(stream, quick, folder / "warm", evaluate_on="validation", learner=learner)
    return learner


class RunsBeside(Observer):
    """Makes a run on its own of the same settings after every trial, and counts what it takes."""

    def __init__(self, stream, folder):
        self.stream, self.folder = stream, folder
        self.learner = warm_learner(stream, folder)
        self.seconds = 0.0

    def trial_ended(self, trial):
        """Make the run."""
        started = time.process_time()
        result = train(
            self.stream,
            trial.settings,
            self.folder / trial.name,
            evaluate_on="validation",
            learner=self.learner,
        )
        self.seconds += time.process_time() - started
        assert result["accuracy_matrix"] == trial.results[0]["accuracy_matrix"]


def searched(stream, trials, epochs, folder, complete, **options):
    """Search; return what was found."""
    space = dataclasses.replace(SPACE, trials=trials - 1, complete_trials=complete)
    return search(stream, settings_of(1.0, epochs), space, folder, **options)


def measure(way, tasks, trials, epochs):
    """Return what was measured of one way, or of two, by the name of the way."""
    stream = stream_of(tasks)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if way == "tuner":
            started = time.process_time()
            best = tune(stream, trials, epochs, folder)
            return {way: cost(time.process_time() - started, best, trials * tasks)}
        complete = way == "search"
        options = {"learner": warm_learner(stream, folder)}
        if complete:
            options["observer"] = RunsBeside(stream, folder / "beside")
        started = time.process_time()
        found = searched(stream, trials, epochs, folder, complete, **options)
        seconds = time.process_time() - started
        best = found.recommendation().highest.accuracy
        learned = sum(trial.learned for trial in found.trials)
        if not complete:
            return {way: cost(seconds, best, learned)}
        runs = options["observer"].seconds
        return {way: cost(seconds - runs, best, learned), "runs": cost(runs, best, trials * tasks)}


def cost(seconds, best, learned):
    """Return processor seconds, the highest accuracy on validation data and the tasks learned."""
    return {
        "processor_seconds": round(seconds, 2),
        "highest_accuracy": round(best, 4),
        "tasks_learned": learned,
    }


def peak_memory(trials, epochs):
    """Return the peak memory in MiB of a process that searches two tasks."""
    with tempfile.TemporaryDirectory() as name:
        searched(stream_of(2), trials, epochs, Path(name), complete=True)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def in_a_process_of_its_own(*words):
    """Return the JSON that this file prints with other arguments."""
    command = [sys.executable, __file__, "--measure", json.dumps(words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(tasks, trials, epochs, ways):
    """Return what each way costs, and its share of the cost of the runs."""
    found = {}
    for way in ways:
        found |= in_a_process_of_its_own("cost", way, tasks, trials, epochs)
        print(f"{tasks} tasks: {found}", flush=True)
    for each in found.values():
        share = each["processor_seconds"] / found["runs"]["processor_seconds"]
        each["share"] = round(share, 3)
    bound = round((1 + trials * (tasks - 1)) / (trials * tasks), 3)
    shares = {way: each["share"] for way, each in found.items()}
    print(f"{tasks} tasks: {shares}, bound {bound} + 5 %", flush=True)
    return {"epochs": epochs, "trials": trials, "bound": bound, **found}


def main(argv=None):
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description="The cost of a search.")
    parser.add_argument("--tasks", default="2,5,13")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--without-tuner", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    path = Path("results/search.json")
    recorded = json.loads(path.read_text()) if path.exists() else {}
    if args.measure:
        kind, *words = json.loads(args.measure)
        print(json.dumps(measure(*words) if kind == "cost" else peak_memory(*words)))
        return
    if args.memory:
        peaks = {n: in_a_process_of_its_own("memory", n, args.epochs) for n in (3, 30)}
        print(f"peak memory in MiB after 3 and 30 trials: {peaks}", flush=True)
        recorded["peak_mebibytes_by_trials"] = peaks
    else:
        ways = ("search", "stopped", "tuner")[: 2 if args.without_tuner else 3]
        by_tasks = recorded.setdefault("cost_by_tasks", {})
        for tasks in map(int, args.tasks.split(",")):
            by_tasks[str(tasks)] = compare(tasks, args.trials, args.epochs, ways)
            write_json(path, recorded)
    write_json(path, recorded)


if __name__ == "__main__":
    main()
