"""Which rule for λ: all candidates of a case trained at once, as stacked weights, in NumPy.

    python benchmarks/auto_strength_rules.py [--cases split-digits,five-small] [--seeds 0,1]

An MLP with two hidden layers of 100, a head per task, exact Ω, Adam 0.001 or SGD 0.05 with momentum
0.9, and what differs is λ alone: fixed, or taken at the start of each task such that the pulls on
the mean weight add up to κ·t^g over the task (`keras_mas.auto` has g = 1). It tries rules far
faster than whole runs, which `benchmarks/auto_strength.py` then measures. Adds to
results/auto_strength_rules.json what is not there, and prints a table of it. Ten minutes.
"""

import argparse
import collections
import dataclasses
import json
import os
import statistics
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from peers_streams import prepared, read_tasks
from scipy.ndimage import rotate
from sklearn.datasets import load_digits

from keras_mas.training.run_directory import read_json, write_json

TABLE = Path("results/auto_strength_rules.json")
WIDTH = 100
KAPPAS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
MOMENTUM = 0.9
RATES = {"adam": 1e-3, "sgd": 0.05}
# Case → epochs of a task and batch size.
CASES = {
    "split-digits": (10, 32),
    "five-small": (5, 64),
    "rotated-digits": (10, 32),
    "letters-13": (10, 64),
    "permuted-digits": (10, 32),
}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A way to take λ.

    Attributes:
        penalty: Where the penalty acts.
        rule: "fixed", or the statistic of Ω that κ refers to: "mean", "rms", or "layer", the mean
            within a layer, each of which then has a λ of its own.
        value: λ, or κ; in the loss, κ of a rule counts the learning rate alone as η.
        growth: g, how κ grows with the number of tasks that are remembered.
    """

    penalty: str
    rule: str
    value: float
    growth: float = 0.0

    def strengths(self, omega, tasks, rate, steps, limit):
        """Return λ of each layer for a task.

        Args:
            omega: Ω of each layer, `[weights]`.
            tasks: How many tasks are remembered.
            rate: The learning rate.
            steps: The number of steps.
            limit: The largest λ in the loss.
        """
        if self.rule == "fixed":
            return [self.value] * len(omega)
        of_all = np.concatenate(omega)
        sizes = {
            "mean": [of_all.mean()] * len(omega),
            "rms": [np.sqrt((of_all**2).mean())] * len(omega),
            "layer": [each.mean() for each in omega],
        }[self.rule]
        found = [self.value * tasks**self.growth / (2 * rate * steps * size) for size in sizes]
        return [min(each, limit) for each in found] if self.penalty == "in_loss" else found


def candidates(optimizer):
    """Return what is tried with an optimizer."""
    in_loss = (0.01, 0.03, 0.1, 0.3, 1.0) if optimizer == "adam" else (0.3, 1.0, 3.0, 10.0, 30.0)
    return [
        *(Candidate("decoupled", "fixed", value) for value in (0.1, 1.0, 10.0, 100.0, 1000.0)),
        *(Candidate("in_loss", "fixed", value) for value in (0.01, 0.1, 1.0, 10.0)),
        *(Candidate("decoupled", "mean", value) for value in (10.0, 30.0, 100.0, 300.0, 1000.0)),
        *(Candidate("decoupled", "mean", value, 0.5) for value in (30.0, 100.0, 300.0)),
        *(Candidate("decoupled", "mean", value, 1.0) for value in KAPPAS),
        *(Candidate("decoupled", "rms", value, 1.0) for value in (10.0, 30.0, 100.0)),
        *(Candidate("decoupled", "layer", value, 1.0) for value in (3.0, 10.0, 30.0, 100.0)),
        *(Candidate("in_loss", "mean", value, 1.0) for value in in_loss),
    ]


def tasks_of(case, seed):
    """Return for every task its training and test data, and its number of classes."""
    if case.endswith("-digits"):
        return _digit_tasks(case.partition("-")[0], seed)
    tasks = read_tasks(prepared(case, Path("runs/peers")))
    return [_small_task(task) for task in tasks]


def _small_task(task):
    learned = zip(_small(task["train"]), _small(task["validation"]), strict=True)
    return (
        tuple(map(np.concatenate, learned)),
        _small(task["test"]),
        int(task["train"][1].max()) + 1,
    )


def _small(pair):
    """Return images of half the side, as vectors, and their labels."""
    images, labels = pair
    count, height, width, _ = images.shape
    blocks = (images.astype("float32") / 255).reshape(count, height // 2, 2, width // 2, 2)
    return blocks.mean((2, 4)).reshape(count, -1), labels


def _digit_tasks(kind, seed):
    digits = load_digits()
    x, y = (digits.data / 16).astype("float32"), digits.target
    order = np.random.default_rng(seed).permutation(len(y))
    test, train = order[:400], order[400:]
    if kind == "split":

        def cut(rows, first):
            chosen = rows[np.isin(y[rows], (first, first + 1))]
            return x[chosen], y[chosen] - first

        return [(cut(train, first), cut(test, first), 2) for first in range(0, 10, 2)]
    changed = [_changed(kind, x, number) for number in range(10)]
    return [((each[train], y[train]), (each[test], y[test]), 10) for each in changed]


def _changed(kind, x, number):
    if kind == "rotated":
        turned = [rotate(row.reshape(8, 8), 18 * number, reshape=False, order=1) for row in x]
        return np.stack(turned).reshape(len(x), -1).astype("float32")
    permuted = np.random.default_rng(100 + number).permutation(64) if number else np.arange(64)
    return x[:, permuted]


class Stack:
    """An MLP for every candidate, `[K, …]`, all with the same data in the same order."""

    def __init__(self, case, optimizer, tried, seed):
        self.tried, self.optimizer, self.rate = tried, optimizer, RATES[optimizer]
        self.epochs, self.batch = CASES[case]
        self.tasks = tasks_of(case, seed)
        self.random = np.random.default_rng(seed + 1)
        inputs = self.tasks[0][0][0].shape[1]
        self.trunk = [*self._layer(inputs, WIDTH), *self._layer(WIDTH, WIDTH)]
        self.omega = [np.zeros_like(weight) for weight in self.trunk]
        self.anchor = [weight.copy() for weight in self.trunk]
        self.decoupled = np.array([each.penalty == "decoupled" for each in tried])

    def accuracies(self):
        """Learn all tasks, and return the average accuracy of every candidate; NaN if diverged."""
        heads = []
        for number, ((x, y), _, classes) in enumerate(self.tasks):
            weights = self.trunk + self._layer(WIDTH, classes)
            steps = self.epochs * -(-len(y) // self.batch)
            self._learn(weights, x, y, self._strengths(number, steps))
            heads.append(weights[len(self.trunk) :])
            self._consolidate(weights, x)
        right = [
            (_forward(self.trunk + head, x)[1].argmax(-1) == y).mean(-1)
            for head, (_, (x, y), _) in zip(heads, self.tasks, strict=True)
        ]
        is_finite = np.all([_per(np.isfinite(weight)).all(1) for weight in self.trunk], 0)
        return np.where(is_finite, np.mean(right, 0), np.nan)

    def _layer(self, rows, columns):
        limit = np.sqrt(6 / (rows + columns))
        kernel = self.random.uniform(-limit, limit, (rows, columns)).astype("float32")
        shapes = [(len(self.tried), *part.shape) for part in (kernel, np.zeros(columns, "float32"))]
        parts = (kernel, np.zeros(columns, "float32"))
        return [np.broadcast_to(*pair).copy() for pair in zip(parts, shapes, strict=True)]

    def _strengths(self, number, steps):
        """Return λ by array of the trunk and candidate, `[arrays, K]`."""
        if number == 0:
            return np.zeros([len(self.trunk), len(self.tried)])
        arrays = [_per(each).astype("float64") for each in self.omega]
        layers = [np.concatenate(pair, 1) for pair in zip(arrays[::2], arrays[1::2], strict=True)]
        follows = 2 * (1 + MOMENTUM) / self.rate if self.optimizer == "sgd" else np.inf
        found = []
        for k, candidate in enumerate(self.tried):
            own = [each[k] for each in layers]
            limit = 0.5 * follows / (2 * max(each.max() for each in own))
            found.append(candidate.strengths(own, number, self.rate, steps, limit))
        return np.repeat(np.transpose(found), 2, axis=0)  # a kernel and its bias have one λ

    def _learn(self, weights, x, y, strengths):
        first, second = ([np.zeros_like(weight) for weight in weights] for _ in range(2))
        in_loss = np.where(self.decoupled, 0, 2 * strengths)
        pull = np.where(self.decoupled, 2 * self.rate * strengths, 0)
        step = 0
        for _ in range(self.epochs):
            order = self.random.permutation(len(y))
            for start in range(0, len(y), self.batch):
                rows = order[start : start + self.batch]
                step += 1
                gradients = _gradients(weights, x[rows], y[rows])
                for k, gradient in enumerate(gradients):
                    is_held = strengths.any() and k < len(self.trunk)
                    if is_held:
                        drift = weights[k] - self.anchor[k]
                        gradient += _along(in_loss[k], drift) * self.omega[k] * drift
                    self._step(weights[k], gradient, first[k], second[k], step)
                    if is_held:
                        drift = weights[k] - self.anchor[k]
                        held = self.anchor[k] + drift / (1 + _along(pull[k], drift) * self.omega[k])
                        weights[k][self.decoupled] = held[self.decoupled]

    def _step(self, weight, gradient, first, second, step):
        if self.optimizer == "sgd":
            first *= np.float32(MOMENTUM)
            first -= np.float32(self.rate) * gradient
            weight += first
            return
        first *= np.float32(0.9)
        first += np.float32(0.1) * gradient
        second *= np.float32(0.999)
        second += np.float32(0.001) * gradient * gradient
        scale = np.float32(self.rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step))
        weight -= scale * first / (np.sqrt(second) + np.float32(1e-7))

    def _consolidate(self, weights, x):
        rows = self.random.permutation(len(x))[:1000]
        for start in range(0, len(rows), 100):
            part = rows[start : start + 100]
            activations, logits = _forward(weights, x[part])
            found = _backward(weights, activations, 2 * logits, np.abs)
            for omega, now in zip(self.omega, found[: len(self.trunk)], strict=True):
                omega += now / np.float32(len(rows))
        self.anchor = [weight.copy() for weight in self.trunk]


def _per(stacked):
    return stacked.reshape(len(stacked), -1)


def _along(values, stacked):
    return values.reshape(-1, *[1] * (stacked.ndim - 1)).astype("float32")


def _forward(weights, x):
    activations = [x]
    for kernel, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        activations.append(np.maximum(activations[-1] @ kernel + bias[:, None, :], 0))
    return activations, activations[-1] @ weights[-2] + weights[-1][:, None, :]


def _backward(weights, activations, delta, magnitude=lambda values: values):
    """Return Σ_n magnitude(∂/∂θ) for δ of the logits: exact, for each gradient is a product."""
    found = [None] * len(weights)
    for k in range(len(weights) - 2, -1, -2):
        inputs = activations[k // 2]
        found[k] = np.swapaxes(magnitude(inputs), -1, -2) @ magnitude(delta)
        found[k + 1] = magnitude(delta).sum(-2)
        if k:
            delta = (delta @ np.swapaxes(weights[k], -1, -2)) * (inputs > 0)
    return found


def _gradients(weights, x, y):
    activations, logits = _forward(weights, x)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    p[:, np.arange(len(y)), y] -= 1
    return _backward(weights, activations, p / np.float32(len(y)))


def print_table(rows):
    """Print for every rule what it loses against the best fixed λ of a case.

    The mean over the cases, and the worst of them with its standard deviation over the seeds.
    """
    accuracy = collections.defaultdict(dict)
    for row in rows:
        rule = row["penalty"], row["rule"], row["growth"], row["value"]
        accuracy[row["case"], row["optimizer"]].setdefault(rule, {})[row["seed"]] = row["accuracy"]
    lost = collections.defaultdict(dict)
    for case, by_rule in accuracy.items():
        fixed = [rule for rule in by_rule if rule[1] == "fixed"]
        best = by_rule[max(fixed, key=lambda rule: statistics.mean(by_rule[rule].values()))]
        for rule, by_seed in by_rule.items():
            lost[rule][case] = [best[seed] - found for seed, found in by_seed.items()]
    for rule in sorted(lost):
        means = {case: statistics.mean(each) for case, each in lost[rule].items()}
        worst = max(means, key=lambda case: means[case])
        spread = statistics.stdev(lost[rule][worst]) if len(lost[rule][worst]) > 1 else 0.0
        print(
            f"{rule}  mean {statistics.mean(means.values()):.4f}  "
            f"worst {means[worst]:.4f} ± {spread:.4f} in {worst}; {len(means)} cases"
        )


def main():
    """Train what is missing, record and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--seeds", default="0,1,2")
    args = parser.parse_args()
    rows = read_json(TABLE)["rows"] if TABLE.exists() else []
    np.seterr(all="ignore")  # what diverges is recorded as accuracy 0
    for case in filter(None, args.cases.split(",")):
        for seed in map(int, args.seeds.split(",")):
            for optimizer in RATES:
                known = {
                    json.dumps([row[key] for key in ("penalty", "rule", "value", "growth")])
                    for row in rows
                    if (row["case"], row["optimizer"], row["seed"]) == (case, optimizer, seed)
                }
                tried = [
                    each
                    for each in candidates(optimizer)
                    if json.dumps(list(dataclasses.astuple(each))) not in known
                ]
                if tried:
                    found = Stack(case, optimizer, tried, seed).accuracies()
                    rows += [
                        {"case": case, "optimizer": optimizer, "seed": seed}
                        | dataclasses.asdict(each)
                        | {"accuracy": round(float(np.nan_to_num(accuracy)), 4)}
                        for each, accuracy in zip(tried, found, strict=True)
                    ]
                    write_json(TABLE, {"rows": rows})
                    print(case, optimizer, seed, len(tried), "tried", flush=True)
    print_table(rows)


if __name__ == "__main__":
    main()
