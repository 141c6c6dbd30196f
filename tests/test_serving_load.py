"""Clients of the stand-in while versions are published and rolled back; `benchmarks/serving.py`."""

import shutil
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mas.serving.standin import BatchingParameters, ServerOptions, StandIn, config_of

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import serving_load  # noqa: E402

MODEL = "line"


@pytest.fixture(scope="module")
def versions(tmp_path_factory):
    """Version n answers y = x + n."""
    folder = tmp_path_factory.mktemp("versions")
    for number in (1, 2):
        archive = keras.export.ExportArchive()
        spec = tf.TensorSpec([None], tf.float32, name="x")
        archive.add_endpoint("serve", lambda x, number=number: {"y": x + number}, [spec])
        archive.write_out(str(folder / str(number)), verbose=False)
    return {number: folder / str(number) for number in (1, 2)}


@pytest.mark.parametrize("batching", [None, BatchingParameters(8, 500, allowed_batch_sizes=(4, 8))])
def test_no_failed_and_no_wrong_answer(versions, tmp_path, batching):
    base = tmp_path / MODEL
    shutil.copytree(versions[1], base / "1")
    config = config_of({MODEL: base})
    config.model_config_list.config[0].version_labels[serving_load.LABEL] = 1
    options = ServerOptions(0.05, 0, True, batching)
    x = np.float32([1.0, 5.0])
    answers = {1: x + 1, 2: x + 2}
    traffic = serving_load.Traffic(MODEL, "serve", {"x": x}, "y", answers)
    with StandIn(config, grpc_port=0, rest_port=0, options=options) as server:
        publisher = serving_load.Publisher(MODEL, base, server.grpc_port, versions)
        ports = (server.grpc_port, server.rest_port)
        publishing = threading.Thread(target=publisher.run, args=[1.0])
        publishing.start()
        outcome = serving_load.run_clients(traffic, ports, clients=8, duration=1.5)
        publishing.join()
    assert outcome.wrong == []
    assert publisher.rounds >= 2 and len(outcome.seconds) > 20


def test_a_wrong_answer_is_noticed():
    traffic = serving_load.Traffic(MODEL, "serve", {}, "y", {1: np.ones(2), 2: np.zeros(2)})
    assert traffic.is_right([1.0, 1.0], 1) and traffic.is_right([0.0, 0.0], None)
    assert not traffic.is_right([0.0, 0.0], 1) and not traffic.is_right([1.0, 0.0], None)
