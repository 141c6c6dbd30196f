import numpy as np
import pytest

from keras_mas.training.settings import Recipe, Settings
from keras_mas.training.tasks import Split, Task, TaskStream

RECIPE = Recipe(backbone="mlp-16", learning_rate=0.02, epochs=6, batch_size=16)


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


@pytest.fixture
def stream():
    tasks = tuple(task(name, first) for first, name in enumerate(["ants", "bees", "cats"]))
    return TaskStream("insects", "task", tasks, rescale=(1.0, 0.0))


@pytest.fixture
def settings():
    return Settings(method="mas", strength=1.0, penalty="in_loss", seed=0, recipe=RECIPE)
