"""What a task costs beside its training steps, and whether that grows with the number of tasks.

    python benchmarks/tasks.py [--tasks 5,20,50] [--sizes 128,512,1024,2048]

Tasks of random 28×28 images, two classes each, are learned by `keras_mas.training.run.train` with
MAS, an MLP of 256 and 256 units and Adam; the time of the steps does not depend on what the images
show. Every stream runs in a process of its own.

The fixed cost of a task is the intercept of a line through the seconds of a task against its number
of examples, the first task of each stream left out, which traces. Time and memory after each task
are drawn for streams of several lengths. Writes results/tasks.json and results/tasks.png.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib
import numpy as np
import psutil

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from keras_mas.training.listening import Listener
from keras_mas.training.run import train
from keras_mas.training.run_directory import PROGRESS, read_json, task_folder, write_json
from keras_mas.training.settings import Recipe, Settings
from keras_mas.training.tasks import Split, Task, TaskStream

RECIPE = Recipe(backbone="mlp-256-256", epochs=5, batch_size=128)
TASKS_PER_SIZE = 8
EXAMPLES = 600
MIB = 2**20


class MemoryAfterTasks(Listener):
    """Notes the resident memory of the process, in MiB, after each task."""

    def __init__(self):
        self.mebibytes = []

    def task_finished(self, result):
        """Note it."""
        self.mebibytes.append(psutil.Process().memory_info().rss / MIB)


def random_stream(tasks, examples):
    """Return a stream of random images."""
    rng = np.random.default_rng(0)

    def split(count):
        images = rng.integers(0, 256, (count, 28, 28, 1), dtype=np.uint8)
        return Split(images, np.arange(count) % 2)

    held = max(2, examples // 10)
    made = (
        Task(f"task-{k}", ("a", "b"), split(examples - held), split(held), split(100))
        for k in range(tasks)
    )
    return TaskStream("random", "task", tuple(made), (1 / 255, 0.0))


def measure(tasks, examples):
    """Learn a stream; return seconds by phase and memory after each task."""
    memory = MemoryAfterTasks()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        train(random_stream(tasks, examples), Settings(recipe=RECIPE), run, listeners=[memory])
        seconds = [
            read_json(task_folder(run, number + 1) / PROGRESS)["seconds"] for number in range(tasks)
        ]
    # Of each task alone: what had been spent when it began is taken off.
    each = {
        phase: np.diff([0.0, *(spent[phase] for spent in seconds)]).round(4).tolist()
        for phase in seconds[0]
    }
    return {"seconds": each, "mebibytes": [round(value, 1) for value in memory.mebibytes]}


def in_a_process_of_its_own(tasks, examples):
    """Return what `measure` returns."""
    command = [sys.executable, __file__, "--measure", f"{tasks},{examples}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def fixed_cost(sizes):
    """Return the intercept in seconds, and the median seconds of a task by its examples."""
    medians = {}
    for size in sizes:
        seconds = in_a_process_of_its_own(TASKS_PER_SIZE, size)["seconds"]
        whole = [sum(parts) for parts in zip(*seconds.values(), strict=True)]
        medians[size] = round(statistics.median(whole[1:]), 4)
    _, intercept = np.polyfit(list(medians), list(medians.values()), 1)
    return {"intercept_seconds": round(float(intercept), 4), "median_seconds": medians}


def draw(lengths, path):
    """Draw seconds of each task by phase, and memory after it, against its number."""
    figure, (time, memory) = plt.subplots(1, 2, figsize=(9, 3.4))
    longest = lengths[max(lengths)]
    for phase, seconds in longest["seconds"].items():
        time.plot(range(2, len(seconds) + 1), seconds[1:], label=phase)
    for count, found in sorted(lengths.items()):
        used = found["mebibytes"]
        memory.plot(range(1, len(used) + 1), used, label=f"{count} tasks")
    time.set_ylabel("seconds of the task")
    time.set_title(f"{max(lengths)} tasks, the first left out", fontsize=10)
    memory.set_ylabel("resident memory, MiB")
    memory.set_ylim(top=1.2 * max(max(found["mebibytes"]) for found in lengths.values()))
    for panel in (time, memory):
        panel.set_xlabel("task")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, loc="lower right" if panel is memory else "upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main(argv=None):
    """Measure, print, record and draw."""
    parser = argparse.ArgumentParser(description="The cost of a task, and of many.")
    parser.add_argument("--tasks", default="5,20,50")
    parser.add_argument("--sizes", default="128,512,1024,2048")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure:
        print(json.dumps(measure(*map(int, args.measure.split(",")))))
        return
    cost = fixed_cost([int(size) for size in args.sizes.split(",")])
    print(cost, flush=True)
    lengths = {}
    for count in map(int, args.tasks.split(",")):
        lengths[count] = in_a_process_of_its_own(count, EXAMPLES)
        phases = {k: round(sum(v[1:]), 3) for k, v in lengths[count]["seconds"].items()}
        used = lengths[count]["mebibytes"]
        print(
            f"{count} tasks: seconds without the first task {phases}, MiB after the first and "
            f"the last task {used[0]:.0f} and {used[-1]:.0f}",
            flush=True,
        )
    write_json(Path("results/tasks.json"), {"fixed_cost": cost, "lengths": lengths})
    draw(lengths, Path("results/tasks.png"))


if __name__ == "__main__":
    main()
