"""Models and servers for the conformance table."""

import contextlib
import os
import shutil
import socket
import subprocess
import threading

import keras
import pytest
import tensorflow as tf
from google.protobuf import text_format

from keras_mas.serving.client import RestClient
from keras_mas.serving.standin import ServerOptions, StandIn, config_of
from keras_mas.serving.standin.models import ServedVersion

REAL_SERVER = "KERAS_MAS_MODEL_SERVER"


@pytest.fixture(scope="session")
def conformance_config(models, tmp_path_factory):
    """The models of the table: `half_plus_two`, `shop` with a label, and `typed`."""
    folder = tmp_path_factory.mktemp("conformance")
    export_typed(folder / "typed" / "1")
    folders = {name: models / name for name in ("half_plus_two", "shop")}
    config = config_of({**folders, "typed": folder / "typed"})
    config.model_config_list.config[1].version_labels["stable"] = 1
    return config


@pytest.fixture(scope="session", params=["stand-in", "real server"])
def conformance_ports(request, conformance_config, tmp_path_factory):
    """The gRPC and the REST port of a server with the models of the table."""
    if request.param == "stand-in":
        options = ServerOptions(allow_version_labels_for_unavailable_models=True)
        with StandIn(conformance_config, grpc_port=0, rest_port=0, options=options) as server:
            yield server.grpc_port, server.rest_port
        return
    if REAL_SERVER not in os.environ:
        pytest.skip(f"{REAL_SERVER} does not name the executable of a tensorflow_model_server")
    path = tmp_path_factory.mktemp("configuration") / "models.config"
    path.write_text(text_format.MessageToString(conformance_config))
    with real_server(shutil.which(os.environ[REAL_SERVER]), path) as ports:
        yield ports


@contextlib.contextmanager
def real_server(executable, config):
    """Run a `tensorflow_model_server`, and yield its ports once its models are loaded."""
    grpc_port, rest_port = free_port(), free_port()
    command = [
        executable,
        f"--port={grpc_port}",
        f"--rest_api_port={rest_port}",
        f"--model_config_file={config}",
        "--allow_version_labels_for_unavailable_models",
    ]
    with subprocess.Popen(command) as process:
        try:
            with RestClient(f"127.0.0.1:{rest_port}") as client:
                for name in ("half_plus_two", "shop", "typed"):
                    client.wait_until_available(name, 60)
            yield grpc_port, rest_port
        finally:
            process.terminate()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def free_ports():
    """Ports for gRPC and REST that nothing listens on, by the names of the stand-in's options."""
    return {"grpc_port": free_port(), "rest_port": free_port()}


@pytest.fixture
def held_request(monkeypatch):
    """Two events: the stand-in sets the first when a request runs, and waits for the second."""
    running, finish = threading.Event(), threading.Event()
    predict = ServedVersion.predict

    def wait_and_predict(self, *request):
        running.set()
        assert finish.wait(30)
        return predict(self, *request)

    monkeypatch.setattr(ServedVersion, "predict", wait_and_predict)
    yield running, finish
    finish.set()


def export_typed(directory):
    """Signatures of other types: i32 + u8, the bytes themselves, and a float16 output."""
    archive = keras.export.ExportArchive()
    archive.add_endpoint(
        "ints",
        lambda i32, u8: {"sum": i32 + tf.cast(u8, tf.int32)},
        [tf.TensorSpec([None], tf.int32, "i32"), tf.TensorSpec([None], tf.uint8, "u8")],
    )
    archive.add_endpoint(
        "text", lambda x: {"same_bytes": x}, [tf.TensorSpec([None], tf.string, "x")]
    )
    archive.add_endpoint(
        "half",
        lambda x: {"y": tf.cast(x, tf.float16)},
        [tf.TensorSpec([None], tf.float32, "x")],
    )
    archive.write_out(str(directory), verbose=False)
