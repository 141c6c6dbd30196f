import shutil

import pytest
from insects import ONE_EPOCH, SETTINGS, insects

from keras_mas.training.run import train


@pytest.fixture
def stream():
    return insects()


@pytest.fixture
def settings():
    return SETTINGS


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    train(insects(), SETTINGS, folder)
    return folder


@pytest.fixture
def trained(trained_once, tmp_path):
    """A folder of one's own with the finished run of `stream` and `settings`."""
    return shutil.copytree(trained_once, tmp_path / "run")


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(insects(tasks=2), ONE_EPOCH, folder)
    return folder


@pytest.fixture
def finished(finished_once, tmp_path):
    """A finished run of two tasks with one epoch each, and a function that continues it."""
    folder = shutil.copytree(finished_once, tmp_path / "run")
    return folder, lambda: train(insects(tasks=2), ONE_EPOCH, folder)
