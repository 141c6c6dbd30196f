"""A disk that is full while something is written: what was there before stays as it was."""

import contextlib
import resource

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mas import MASModel, SynapticMemory
from keras_mas.arrays import load_arrays, save_arrays
from keras_mas.files import UNFINISHED
from keras_mas.serving.export import ExportError, export_version
from keras_mas.serving.paths import list_versions
from keras_mas.serving.standin import LogSettings
from keras_mas.serving.standin.request_log import PredictionLog, PredictLog, RequestLog
from keras_mas.training.cli import main
from keras_mas.training.run_directory import read_json, write_json


@contextlib.contextmanager
def no_room_for_files_above(size):
    """Let every write fail that would make a file larger, whoever writes: Python, HDF5 or C++."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def unfinished(folder):
    return list(folder.rglob(f"{UNFINISHED}*"))


def model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input([64])
    return MASModel(inputs, keras.layers.Dense(32)(inputs))


def write_arrays(path, number):
    save_arrays(path, {"omega": np.full(5000, number)})


def write_memory(path, number):
    protected = model()
    for _ in range(number):
        protected.consolidate(np.ones([2, 64], "float32"))
    protected.memory.save(path)


WRITERS = {
    "arrays": ("a.npz", write_arrays, lambda path: load_arrays(path, dict, "arrays")["omega"][0]),
    "memory": ("m.npz", write_memory, lambda path: SynapticMemory.load(path).tasks),
    "json": (
        "r.json",
        lambda path, number: write_json(path, {"rows": [number] * 5000}),
        lambda path: read_json(path)["rows"][0],
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_old_file_stays(tmp_path, name):
    file, write, read = WRITERS[name]
    write(tmp_path / file, 1)
    for size in (0, 100, (tmp_path / file).stat().st_size - 1):
        with no_room_for_files_above(size), pytest.raises(OSError, match="too large"):
            write(tmp_path / file, 2)
        assert read(tmp_path / file) == 1
        assert unfinished(tmp_path) == []
    write(tmp_path / file, 2)
    assert read(tmp_path / file) == 2


def test_no_version_appears(tmp_path):
    heads = {"flowers": model()}
    export_version(heads, tmp_path / "shop" / "1")
    for size in (0, 3000, 20_000):
        with no_room_for_files_above(size), pytest.raises(ExportError) as caught:
            export_version(heads, tmp_path / "shop" / "2")
        folder = tmp_path / "shop" / "2"
        assert str(caught.value) == (
            f"Expected to write '{folder}'. Received: File too large. Version 2 was not published."
        )
        assert list(list_versions(tmp_path / "shop")) == [1]
        assert unfinished(tmp_path) == []
    export_version(heads, tmp_path / "shop" / "2")


def test_requests_are_logged_again_when_there_is_room(tmp_path, caplog):
    log = RequestLog(LogSettings(f"{tmp_path}/log"))

    def offer(number):
        record = PredictLog()
        record.request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.full(100, number)))
        log.offer(lambda: record)

    offer(0)
    size = next(tmp_path.iterdir()).stat().st_size
    with no_room_for_files_above(2 * size + 100):  # the third record is cut off
        for number in range(1, 4):
            offer(number)
    offer(4)
    log.close()
    read = []
    for file in sorted(map(str, tmp_path.iterdir())):
        with contextlib.suppress(tf.errors.DataLossError):
            for record in tf.data.TFRecordDataset(file).as_numpy_iterator():
                request = PredictionLog.FromString(record).predict_log.request
                read.append(tf.make_ndarray(request.inputs["x"])[0])
    assert read[0] == 0 and read[-1] == 4 and log.failed == 5 - len(read) > 0
    assert [each.getMessage()[:23] for each in caplog.records] == ["Requests are not logged"]


@pytest.mark.slow
def test_a_run_goes_on_when_there_is_room(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x, y = np.eye(4, dtype="float32").repeat(6, axis=0), np.arange(24) % 2
    np.savez("ants.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    tasks = ["ants", "bees"]
    text = "".join(f'[[task]]\nname = "{name}"\nnpz = "ants.npz"\n' for name in tasks)
    (tmp_path / "insects.toml").write_text(f'name = "insects"\n{text}')
    train = ["train", "insects.toml", "--epochs", "2", "--backbone", "mlp-16", "--output"]
    assert main([*train, "whole"]) == 0
    room = (tmp_path / "whole" / "1" / "model.keras").stat().st_size
    capsys.readouterr()
    for size in (0, 600, room - 1):
        with no_room_for_files_above(size):
            assert main([*train, "cut"]) == 1
        message = capsys.readouterr().err
        assert "--debug" not in message, message
        assert unfinished(tmp_path) == []
    assert main([*train, "cut"]) == 0
    whole, cut = (read_json(tmp_path / name / "result.json") for name in ("whole", "cut"))
    assert whole["accuracy_matrix"] == cut["accuracy_matrix"]
