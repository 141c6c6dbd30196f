"""What every test starts from: a fixed seed, fresh layer names, float32, a quiet TensorFlow.

Property tests draw the same cases in every local run. With CI=true they draw new ones each time; a
failure then prints the `@reproduce_failure` line that repeats it.
"""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores: a TensorFlow that starts a thread per core slows down its neighbours.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import keras
import pytest
import tensorflow as tf

hypothesis.settings.register_profile("local", derandomize=True, deadline=None)
# No database of earlier failures: CI starts from a clean checkout.
hypothesis.settings.register_profile(
    "ci", derandomize=False, deadline=None, database=None, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "local")

# To optimize a graph takes longer than to run it as it was traced once or twice, as most tests do.
# Large ones are optimized, and so is all that runs in a process of its own: commands and scripts.
tf.config.optimizer.set_experimental_options({"min_graph_nodes": 1000})


def pytest_collection_finish():
    """Keep what the imports made out of every search of the heap, of the library's own too."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fresh_keras():
    keras.backend.clear_session(free_memory=False)  # the names alone; memory takes 0.3 s
    keras.utils.set_random_seed(0)
    yield
    keras.backend.set_floatx("float32")
