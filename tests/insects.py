"""Small tasks that a small network learns in a moment."""

import dataclasses

import numpy as np

from keras_mas.training.run_directory import MODEL, PROGRESS, read_json, write_json
from keras_mas.training.saved_tasks import digests_of
from keras_mas.training.settings import Recipe, Settings
from keras_mas.training.tasks import Split, Task, TaskStream

RECIPE = Recipe(backbone="mlp-16", learning_rate=0.02, epochs=6, batch_size=16)
SETTINGS = Settings(method="mas", strength=1.0, penalty="in_loss", seed=0, recipe=RECIPE)
ONE_EPOCH = dataclasses.replace(SETTINGS, recipe=dataclasses.replace(RECIPE, epochs=1))


def blobs(seed, count, first):
    """Two classes around opposite points; every task has points of its own."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(first).normal(size=4)
    labels = np.arange(count) % 2
    inputs = rng.normal(0, 0.4, [count, 4]) + np.where(labels, 1, -1)[:, None] * centre
    return Split(inputs.astype("float32"), labels)


def task(name, first):
    splits = [blobs(seed, count, first) for seed, count in [(1, 64), (2, 16), (3, 40)]]
    return Task(name, (f"{name}-no", f"{name}-yes"), *splits)


def insects(tasks=3):
    names = ["ants", "bees", "cats"][:tasks]
    made = tuple(task(name, first) for first, name in enumerate(names))
    return TaskStream("insects", "task", made, rescale=(1.0, 0.0))


def replace_model(folder, network):
    """Put another network in the place of a task's, as if training had led to it."""
    network.save(folder / MODEL)
    write_json(folder / PROGRESS, read_json(folder / PROGRESS) | {"files": digests_of(folder)})
