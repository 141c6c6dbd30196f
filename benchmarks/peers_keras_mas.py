"""One run of keras_mas for `benchmarks/peers.py`, through what `keras-mas train` calls.

    python benchmarks/peers_keras_mas.py SETTINGS

SETTINGS is the JSON of `peers.job`; prints a line of JSON.
"""

import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf
from peers_job import print_outcome
from peers_streams import read_tasks

from keras_mas.training.divergence import DivergedError
from keras_mas.training.run import train
from keras_mas.training.settings import Recipe, Settings
from keras_mas.training.tasks import Split, Task, TaskStream


def stream_of(name, tasks):
    """Return the tasks as a stream with a head for each; the model scales pixels to 0 … 1."""
    return TaskStream(
        name,
        "task",
        tuple(_task(f"task-{number}", splits) for number, splits in enumerate(tasks)),
        (1 / 255, 0.0),
    )


def _task(name, splits):
    classes = tuple(str(label) for label in range(splits["train"][1].max() + 1))
    return Task(name, classes, **{role: Split(*pair) for role, pair in splits.items()})


def settings_of(job):
    """Return the settings of a job in this project's own terms."""
    recipe = Recipe(
        backbone="mlp-" + "-".join(str(width) for width in job["widths"]),
        optimizer="adam",
        learning_rate=job["learning_rate"],
        epochs=job["epochs"],
        batch_size=job["batch_size"],
    )
    return Settings(
        method=job["method"], strength=job["strength"] or 0.0, seed=job["seed"], recipe=recipe
    )


def run(job, folder):
    """Learn the stream, with all files that a run leaves behind, and return what is compared."""
    tasks = read_tasks(Path(job["data"]))
    started, processor = time.perf_counter(), time.process_time()
    stream, settings = stream_of(job["stream"], tasks), settings_of(job)
    try:
        result = train(stream, settings, folder / "run", evaluate_on=job["evaluate_on"])
    except DivergedError:
        return {"accuracy_matrix": None}
    seconds = {
        "total": time.perf_counter() - started,
        "processor": time.process_time() - processor,
    }
    return {
        "accuracy_matrix": result["accuracy_matrix"],
        "seconds": result["seconds"] | seconds,
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
    }


if __name__ == "__main__":
    print_outcome(run)
