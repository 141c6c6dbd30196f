"""What every test starts from: a fixed seed, fresh layer names, float32, a quiet TensorFlow.

`pytest --hypothesis-profile=random` draws other cases than those of every run.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import hypothesis
import keras
import pytest

hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None)
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def fresh_keras():
    keras.backend.clear_session(free_memory=False)  # the names alone; memory takes 0.3 s
    keras.utils.set_random_seed(0)
    yield
    keras.backend.set_floatx("float32")
