import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mas.serving.export import export_version
from keras_mas.serving.runtime import LoadedVersion
from keras_mas.training import network
from keras_mas.training.exporting import manifest_of
from keras_mas.training.run import Listener, saved_heads, train
from keras_mas.training.tasks import Split, Task, TaskStream


def stream_of(inputs, resize=None):
    split = Split(inputs, np.arange(len(inputs)) % 2)
    task = Task("pets", ("cat", "dog"), split, split, split)
    return TaskStream("animals", "task", (task,), (1.0, 0.0), resize=resize)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_read_from_files_of_their_size_unless_images_were_resized(channels):
    stream = stream_of(np.zeros([4, 6, 6, channels], np.uint8))
    assert stream.resize_of_files == "none"
    assert dataclasses.replace(stream, resize="stretch").resize_of_files == "stretch"


@pytest.mark.parametrize(
    "inputs",
    [
        np.zeros([4, 6], np.uint8),
        np.zeros([4, 6, 6, 2], np.uint8),
        np.zeros([4, 6, 6, 3], np.float32),
    ],
    ids=lambda inputs: f"{inputs.dtype}{inputs.shape}",
)
def test_other_inputs_are_no_images(inputs):
    assert stream_of(inputs).resize_of_files is None


def test_a_manifest_says_what_was_known_after_its_task():
    result = {"method": "mas", "tasks": ["a", "b", "c"], "seconds": {"training": 1.0}}
    matrix = [[0.9, 0.1, 0.2], [0.8, 0.7, 0.3], [0.6, 0.5, 0.4]]
    assert manifest_of(result | {"accuracy_matrix": matrix}, 2, "keras-mas train letters") == {
        "method": "mas",
        "tasks": ["a", "b"],
        "accuracy_matrix": [[0.9, 0.1], [0.8, 0.7]],
        "command": "keras-mas train letters",
    }


class Versions(Listener):
    """Exports the models in memory after each task, as `train --export` does."""

    def __init__(self, folder):
        self.folder = folder

    def task_finished(self, result):
        export_version(result.models, self.folder / str(result.number), classes=result.classes)


def operations_of(version):
    """How many operations of each kind are in all graphs of a version."""
    model = tf.saved_model.load(version)
    counts = {}
    for name, function in model.signatures.items():
        for operation in function.graph.get_operations():
            counts[name, operation.type] = counts.get((name, operation.type), 0) + 1
    return counts


def residual_trunk(backbone, input_shape, rescale, weights=None):
    """A trunk with batch normalization, and with operations that are no layers."""
    inputs = keras.Input(input_shape, name="inputs")
    hidden = keras.layers.Dense(4, "relu", name="hidden")(inputs)
    hidden = keras.layers.BatchNormalization(momentum=0.5, name="norm")(hidden)
    return keras.Model(inputs, 0.5 * hidden + inputs, name="trunk")


@pytest.mark.parametrize("batch_norm", ["shared", "per-task"])
def test_a_saved_run_is_exported_as_the_models_in_memory(
    stream, settings, tmp_path, monkeypatch, batch_norm
):
    monkeypatch.setattr(network, "build_trunk", residual_trunk)
    recipe = dataclasses.replace(settings.recipe, batch_norm=batch_norm)
    settings = dataclasses.replace(settings, recipe=recipe)
    in_memory, saved = tmp_path / "in-memory", tmp_path / "saved"
    train(stream, settings, tmp_path / "run", listeners=[Versions(in_memory)])
    models, classes = saved_heads(tmp_path / "run", 3)
    export_version(models, saved / "3", classes=classes)
    # The trunk runs once for all heads where they share it.
    assert operations_of(saved / "3") == operations_of(in_memory / "3")
    one, other = (LoadedVersion(folder / "3") for folder in (in_memory, saved))
    assert one.signatures.keys() == other.signatures.keys()
    assert ("features" in other.signatures) == (batch_norm == "shared")
    x = stream.tasks[1].test.inputs
    for name in ("serving_default", "ants", "bees", "cats"):
        expected, found = (each.run(name, {"inputs": x}) for each in (one, other))
        assert expected.keys() == found.keys()
        for key in expected:
            np.testing.assert_array_equal(expected[key], found[key], err_msg=key)
