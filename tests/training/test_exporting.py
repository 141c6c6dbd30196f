import dataclasses
import shutil
import warnings
from collections import Counter
from contextlib import closing

import keras
import numpy as np
import pytest
from cases import slow_but
from tensorflow.core.protobuf import saved_model_pb2

from keras_mas.errors import UsageError
from keras_mas.serving.export import ExportError, export_version
from keras_mas.serving.gate import Bounds, Compared, HeldOut, judge, write_blessing
from keras_mas.serving.publish import publish
from keras_mas.serving.runtime import LoadedVersion
from keras_mas.training import exporting, network
from keras_mas.training.exporting import (
    examples_of,
    export_heads,
    held_out_of,
    manifest_of,
    warn_of_unmeasured,
    with_all_tasks,
)
from keras_mas.training.listening import Listener
from keras_mas.training.run import train
from keras_mas.training.saved_tasks import saved_heads
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


def test_a_version_that_another_process_publishes_meanwhile_is_no_failure(tmp_path, monkeypatch):
    heads = {}
    for name in ("same", "other"):
        inputs = keras.Input((2,))
        heads[name] = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    points, labels = np.float32([[0, 1], [1, 0]]), np.array([1, 0])
    held_out = [HeldOut("pets", "pets", labels, lambda _: [points])]

    def publish_after_another(models, base, *args, **options):
        publish({"pets": heads["same"]}, base, *args, **options)
        publish(models, base, *args, **options)

    monkeypatch.setattr(exporting, "publish", publish_after_another)
    names = {"pets": ("cat", "dog")}
    assert not export_heads(tmp_path / "a", 1, {"pets": heads["same"]}, names, held_out)
    with pytest.raises(UsageError, match="'.*1', which does. A version is never overwritten"):
        export_heads(tmp_path / "b", 1, {"pets": heads["other"]}, names, held_out)


def test_a_version_that_would_be_another_or_vanished_is_not_published_already(tmp_path):
    inputs = keras.Input((2,))
    models = {"pets": keras.Model(inputs, keras.layers.Dense(2)(inputs))}
    points, labels = np.float32([[0, 1], [1, 0]]), np.array([1, 0])
    given = [
        models,
        {"pets": ("cat", "dog")},
        [HeldOut("pets", "pets", labels, lambda _: [points])],
    ]
    assert export_heads(tmp_path / "m", 1, *given)
    assert not export_heads(tmp_path / "m", 1, *given)
    given[1] = {"pets": ("cat", "hound")}
    with pytest.raises(UsageError, match="other options: classes .*'dog'.* instead of .*'hound'"):
        export_heads(tmp_path / "m", 1, *given)
    shutil.rmtree(tmp_path / "m")
    with pytest.raises(ExportError, match="before this one: 1. .* that folder has vanished"):
        export_heads(tmp_path / "m", 2, *given, after=[1])


def test_a_version_that_lost_much_is_published_with_a_warning(tmp_path):
    right, wrong = np.ones(4, bool), np.array([True, True, False, False])
    earlier = Compared(2, "", ["ants", "bees"], {"ants": right, "bees": right})
    version = tmp_path / "models/insects/3"
    (version / "assets.extra").mkdir(parents=True)
    for answers, loses in ((wrong, True), (right, False)):
        blessing = judge(3, {"ants": answers, "bees": right}, Bounds(), earlier)
        write_blessing(version / "assets.extra", blessing)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            exporting.warn_of_losses(version)
        assert len(caught) == loses
        for each in caught:
            assert "not judged: task 'ants' lost 0.5000 of its accuracy" in str(each.message)
            assert "since version 2. `keras-mas export` would refuse" in str(each.message)


def test_a_manifest_says_what_was_known_after_its_task():
    result = {"method": "mas", "tasks": ["a", "b", "c"], "seconds": {"training": 1.0}}
    matrix = [[0.9, 0.1, 0.2], [0.8, 0.7, 0.3], [0.6, 0.5, 0.4]]
    assert manifest_of(result | {"accuracy_matrix": matrix}, 2, "keras-mas train letters") == {
        "method": "mas",
        "tasks": ["a", "b"],
        "accuracy_matrix": [[0.9, 0.1], [0.8, 0.7]],
        "command": "keras-mas train letters",
    }


def test_the_manifest_of_a_table_lists_its_inputs(settings, tmp_path):
    result = {"tasks": ["may"], "accuracy_matrix": [[0.9]], "columns": ["age", "city=Ulm"]}
    assert manifest_of(result, 1, "")["columns"] == ["age", "city=Ulm"]
    assert "columns" not in manifest_of(result | {"columns": []}, 1, "")
    stream = dataclasses.replace(stream_of(np.zeros((4, 2), np.float32)), columns=("age", "size"))
    exporter = exporting.Exporter(tmp_path / "animals", stream, settings, "")
    assert exporter.result["columns"] == ["age", "size"]


def test_tasks_without_examples_keep_their_place_and_their_heads():
    stream = stream_of(np.arange(8, dtype=np.float32).reshape(4, 2))
    [pets] = stream.tasks
    classes = {"fruit": ["apple", "pear", "plum"], "pets": ["cat", "dog"]}
    result = {"stream": "shop", "scenario": "task", "tasks": ["fruit", "pets"], "classes": classes}
    result["input_shape"] = [2]
    found = with_all_tasks(result, {"pets": pets}, "'pets.toml'")
    assert [(each.task, len(each.labels)) for each in held_out_of(found, 2)] == [
        ("fruit", 0),
        ("pets", 4),
    ]
    np.testing.assert_array_equal(examples_of(found), pets.test.inputs)
    with pytest.warns(UserWarning, match="'fruit' was not measured, since there are no examples"):
        warn_of_unmeasured(found, 1)
    with pytest.raises(UsageError, match="'fruit', 'pets', .*none in what is left.*--examples-of"):
        with_all_tasks(result, {}, "what is left of their data")
    with pytest.raises(UsageError, match="Expected the 3 classes of task 'fruit'.*Received: 2 in"):
        with_all_tasks(result, {"fruit": pets}, "'pets.toml'")


class ExportLast(Listener):
    """Exports the models in memory after the last of two tasks, as `train --export` does."""

    def __init__(self, folder):
        self.folder = folder

    def task_finished(self, result):
        if result.number == 2:
            export(result.models, result.classes, self.folder)


def export(models, classes, folder):
    export_version(models, folder, classes=classes, warmup_batch_sizes=[1])


def operations_of(version):
    """How many operations of each kind the graph of a version holds, in all its functions."""
    model = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    library = model.meta_graphs[0].graph_def.library
    return Counter(node.op for function in library.function for node in function.node_def)


def residual_trunk(backbone, input_shape, rescale, weights=None):
    """A trunk with batch normalization, and with operations that are no layers."""
    inputs = keras.Input(input_shape, name="inputs")
    hidden = keras.layers.Dense(4, "relu", name="hidden")(inputs)
    hidden = keras.layers.BatchNormalization(momentum=0.5, name="norm")(hidden)
    return keras.Model(inputs, 0.5 * hidden + inputs, name="trunk")


@pytest.mark.parametrize("batch_norm", slow_but("per-task", ["shared", "per-task"]))
def test_a_saved_run_is_exported_as_the_models_in_memory(
    stream, settings, tmp_path, monkeypatch, batch_norm
):
    monkeypatch.setattr(network, "build_trunk", residual_trunk)
    recipe = dataclasses.replace(settings.recipe, batch_norm=batch_norm)
    settings = dataclasses.replace(settings, recipe=recipe)
    stream = dataclasses.replace(stream, tasks=stream.tasks[:2])
    in_memory, saved = tmp_path / "in-memory" / "2", tmp_path / "saved" / "2"
    train(stream, settings, tmp_path / "run", listeners=[ExportLast(in_memory)])
    export(*saved_heads(tmp_path / "run", 2), saved)
    # What the heads share of the trunk runs no more often than there.
    assert operations_of(saved) <= operations_of(in_memory)
    x = stream.tasks[1].test.inputs
    with closing(LoadedVersion(in_memory)) as one, closing(LoadedVersion(saved)) as other:
        assert one.signatures.keys() == other.signatures.keys()
        assert ("features" in other.signatures) == (batch_norm == "shared")
        for name in ("serving_default", "ants", "bees"):
            expected, found = (each.run(name, {"inputs": x}) for each in (one, other))
            assert expected.keys() == found.keys()
            for key in expected:
                np.testing.assert_array_equal(expected[key], found[key], err_msg=key)
