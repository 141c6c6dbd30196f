"""What every test starts from: a fixed seed, fresh layer names, float32, a quiet TensorFlow."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import pytest


@pytest.fixture(autouse=True)
def fresh_keras():
    keras.backend.clear_session(free_memory=False)  # the names alone; memory takes 0.3 s
    keras.utils.set_random_seed(0)
    yield
    keras.backend.set_floatx("float32")
