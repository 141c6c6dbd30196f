"""Models whose outputs are known exactly, and a stand-in that serves them.

The heads read two numbers x. "pets" has the logits x, so its probabilities for x = [0, ln 3] are
[1/4, 3/4]; "fruit" has the logits [0, 0, ln 2] for every x, so its probabilities are
[1/4, 1/4, 1/2].
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mas.serving.export import export_version
from keras_mas.serving.standin import StandIn


@pytest.fixture(scope="session")
def inputs():
    """Two inputs that "pets" classifies as dog and cat, with probability 3/4 each."""
    return np.array([[0.0, np.log(3.0)], [np.log(3.0), 0.0]], np.float32)


@pytest.fixture(scope="session")
def make_heads():
    return heads


@pytest.fixture(scope="session")
def make_dense():
    return dense


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folder with `shop` in versions 1 and 2, `half_plus_two`, and `half_broken`."""
    models = tmp_path_factory.mktemp("models")
    classes = {"pets": ["cat", "dog"]}
    export_version(heads(), models / "shop" / "1", classes=classes)
    export_version(heads(sign=-1.0), models / "shop" / "2", classes=classes)
    export_half_plus_two(models / "half_plus_two" / "123")
    export_half_plus_two(models / "half_broken" / "1")
    (models / "half_broken" / "2").mkdir()
    return models


@pytest.fixture(scope="session")
def server(models):
    names = ["shop", "half_plus_two", "half_broken"]
    with StandIn({name: models / name for name in names}, grpc_port=0, rest_port=0) as server:
        yield server


def heads(sign=1.0):
    """Two heads on one trunk, which is the identity; `sign` = -1 turns the pets around."""
    trunk = keras.Sequential([keras.Input((2,)), dense(np.eye(2), [0.0, 0.0])])
    return {
        "pets": head_on(trunk, dense(sign * np.eye(2), [0.0, 0.0])),
        "fruit": head_on(trunk, dense(np.zeros((2, 3)), [0.0, 0.0, np.log(2.0)])),
    }


def head_on(trunk, layer):
    inputs = keras.Input((2,))
    return keras.Model(inputs, layer(trunk(inputs)))


def dense(kernel, bias):
    layer = keras.layers.Dense(len(bias))
    layer.build((None, len(kernel)))
    layer.set_weights([np.asarray(kernel), np.asarray(bias)])
    return layer


def export_half_plus_two(directory):
    """TensorFlow Serving's own example, y = x/2 + 2: one input, one output."""
    archive = keras.export.ExportArchive()
    signature = [tf.TensorSpec([None], tf.float32, name="x")]
    archive.add_endpoint("serve", lambda x: {"y": 0.5 * x + 2.0}, signature)
    archive.write_out(str(directory), verbose=False)
