"""What exact importance costs: time as a ratio to a plain gradient pass, and peak memory.

    python benchmarks/importance.py [--networks mlp,small-vgg] [--repeats 7]
    python benchmarks/importance.py --first [--networks mlp,small-vgg] [--repeats 3]

With `--first`: the first call of `compute_importance` on one batch, with all that is traced for it,
against the first plain gradient of the same batch, each in a fresh model, in turn; and later calls
on one batch and on five of one example each. Their difference is what a batch costs; what is left
of a call without its batch is its fixed cost.

Every way works on the same batch of the same network, in one process, in turn; a time is the median
over the repeats, and a ratio is one of medians. Peak memory is that of a process of its own.
"""

import argparse
import functools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from networks import NETWORKS

from keras_mas import compute_importance
from keras_mas.importance.definition import squared_norms
from keras_mas.importance.engine import Engine
from keras_mas.importance.rules.slices import SLICE_BYTES

# Ways that go example by example, or hold every example's gradient, get this many examples.
FEW = 8

# Batches of the longer ones of the later calls.
MANY = 5

# A short step is called until so much time has passed, so that no way pays for the one before it.
LEAST_SECONDS = 0.2


def plain(model, batch):
    """Return a plain gradient pass over the batch: the unit of every ratio."""

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            norm = tf.reduce_sum(squared_norms(model(batch, training=False)))
        return [_dense(g) for g in tape.gradient(norm, _variables(model))]

    return step, len(batch)


def exact(model, batch):
    """Return the pass of `compute_importance`."""
    engine = Engine(model, "logits", SLICE_BYTES)
    return lambda: engine.add((batch, ())), len(batch)


def batch_sum(model, batch):
    """Return the shortcut of the public codes: absolute values after the sum. Wrong, and quick."""

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            norm = tf.reduce_sum(squared_norms(model(batch, training=False)))
        return [tf.abs(_dense(g)) for g in tape.gradient(norm, _variables(model))]

    return step, len(batch)


def _gradient_of_one(model):
    def gradient(example):
        with tf.GradientTape() as tape:
            norm = tf.reduce_sum(squared_norms(model(example[None], training=False)))
        return [tf.abs(_dense(g)) for g in tape.gradient(norm, _variables(model))]

    return gradient


def vectorized_map(model, batch):
    """Return `tf.vectorized_map` over a few examples."""
    few = batch[:FEW]

    @tf.function
    def step():
        return [tf.reduce_sum(g, axis=0) for g in tf.vectorized_map(_gradient_of_one(model), few)]

    return step, len(few)


def one_at_a_time(model, batch):
    """Return a compiled loop over a few examples."""
    few = batch[:FEW]
    gradient = tf.function(_gradient_of_one(model))

    def step():
        sums = gradient(few[0])
        for example in few[1:]:
            sums = [a + b for a, b in zip(sums, gradient(example), strict=True)]
        return sums

    return step, len(few)


WAYS = {
    "plain": plain,
    "exact": exact,
    "batch-sum": batch_sum,
    "vectorized_map": vectorized_map,
    "one-at-a-time": one_at_a_time,
}


def _variables(model):
    return [weight.value for weight in model.trainable_weights]


def _dense(gradient):
    return tf.convert_to_tensor(gradient)


def setting(name):
    """Build a network and one batch of random examples."""
    build, examples = NETWORKS[name]
    keras.utils.set_random_seed(0)
    model = build()
    rng = np.random.default_rng(0)
    shape = (examples, *model.input_shape[1:])
    if model.input.dtype == "int32":
        return model, tf.constant(rng.integers(0, 2000, shape), tf.int32)
    return model, tf.constant(rng.normal(size=shape), tf.float32)


def seconds_per_example(name, ways, repeats):
    """Return the median seconds per example of every way, timed in turn."""
    model, batch = setting(name)
    steps, calls = {}, {}
    for way in ways:
        steps[way] = WAYS[way](model, batch)
        _seconds(steps[way][0], 1)  # traces
        calls[way] = max(1, round(LEAST_SECONDS / _seconds(steps[way][0], 1)))
    times = {way: [] for way in ways}
    for _ in range(repeats):
        for way, (step, examples) in steps.items():
            times[way].append(_seconds(step, calls[way]) / examples)
    return {way: statistics.median(values) for way, values in times.items()}


def first_calls(name, repeats):
    """Return the median seconds of first plain gradients and calls, and of later ones.

    Later ones are of batches of one example: of one batch, and calls of `MANY` too.
    """
    times = {"plain": [], "first": [], "plain again": [], "again": [], "many": []}
    for _ in range(repeats):
        model, batch = setting(name)
        step, _ = plain(model, batch)
        times["plain"].append(_seconds(step, 1))
        one = batch[:1]
        step, _ = plain(model, one)
        _seconds(step, 1)
        times["plain again"].append(_seconds(step, 3))
        model, batch = setting(name)
        measure = functools.partial(compute_importance, model)
        times["first"].append(_seconds(functools.partial(measure, batch), 1))
        for way, data in (("again", one), ("many", batch[:MANY])):
            later = functools.partial(measure, data, batch_size=1)
            later()
            times[way].append(_seconds(later, 3))
    return {way: statistics.median(values) for way, values in times.items()}


def _print_first_calls(names, repeats):
    first_calls("mlp", 1)  # what TensorFlow and Keras do once in a process
    print(
        f"{'network':14} {'plain s':>8} {'first s':>8} {'ratio':>6} {'plain, again':>13} "
        f"{'again s':>8} {'batch s':>8} {'fixed s':>8}"
    )
    for name in names:
        seconds = first_calls(name, repeats)
        of_batch = (seconds["many"] - seconds["again"]) / (MANY - 1)
        print(
            f"{name:14} {seconds['plain']:8.2f} {seconds['first']:8.2f} "
            f"{seconds['first'] / seconds['plain']:6.2f} {seconds['plain again']:13.3f} "
            f"{seconds['again']:8.3f} {of_batch:8.3f} {seconds['again'] - of_batch:8.3f}",
            flush=True,
        )


def _seconds(step, calls):
    started = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - started) / calls


def peak_megabytes(name, way):
    """Run one way in a process of its own; return the peak of its memory in MB."""
    words = [sys.executable, __file__, "--peak", name, way]
    done = subprocess.run(words, capture_output=True, text=True)
    return json.loads(done.stdout) if done.returncode == 0 else None


def _measure_peak(name, way):
    model, batch = setting(name)
    step, _ = WAYS[way](model, batch)
    for _ in range(2):
        step()
    # Not `getrusage`, whose maximum a child process takes over from its parent.
    status = Path("/proc/self/status").read_text()
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


def main():
    """Print a table per network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--first", action="store_true", help="measure first and later calls")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        _measure_peak(*args.peak)
        return
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}, {os.cpu_count()} CPU cores")
    if args.first:
        _print_first_calls(args.networks.split(","), args.repeats)
        return
    print(f"{'network':14} {'way':15} {'ratio':>7} {'ms/example':>11} {'peak MB':>8}")
    for name in args.networks.split(","):
        ways = args.ways.split(",")
        times = seconds_per_example(name, ways, args.repeats)
        for way in ways:
            peak = None if args.no_memory else peak_megabytes(name, way)
            print(
                f"{name:14} {way:15} {times[way] / times['plain']:7.2f} {1e3 * times[way]:11.3f} "
                f"{'-' if peak is None else format(peak, '.0f'):>8}",
                flush=True,
            )


if __name__ == "__main__":
    main()
