import pytest
from insects import RECIPE, task

from keras_mas.training.settings import Settings
from keras_mas.training.tasks import TaskStream


@pytest.fixture
def stream():
    tasks = tuple(task(name, first) for first, name in enumerate(["ants", "bees", "cats"]))
    return TaskStream("insects", "task", tasks, rescale=(1.0, 0.0))


@pytest.fixture
def settings():
    return Settings(method="mas", strength=1.0, penalty="in_loss", seed=0, recipe=RECIPE)
