import csv
import dataclasses
import json
import math
import shutil
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import slow_but

from keras_mas import SynapticMemory
from keras_mas.errors import UsageError
from keras_mas.metrics import min_accuracy, worst_case_accuracy
from keras_mas.training.following import Following
from keras_mas.training.learner import Learner
from keras_mas.training.listening import Listener
from keras_mas.training.run import train
from keras_mas.training.run_logs import followers
from keras_mas.training.saved_tasks import saved_heads, saved_importance
from keras_mas.training.tasks import TaskStream


@pytest.fixture
def quick(settings):
    return dataclasses.replace(settings, recipe=dataclasses.replace(settings.recipe, epochs=2))


def logged(stream, settings, folder, *, log="csv", more=(), **options):
    listeners = [*more, *followers(Following(log=log), settings, folder)]
    return train(stream, settings, folder, listeners=listeners, **options)


class Stop(Listener):
    """Interrupts a run when a task has been learned in part."""

    def __init__(self, task):
        self.task, self.number = task, 0
        self.callbacks = (keras.callbacks.LambdaCallback(on_epoch_end=self.stop),)

    def task_started(self, number, task, epochs):
        self.number = number

    def stop(self, epoch, logs):
        if self.number == self.task:
            raise KeyboardInterrupt


def interrupted(stream, settings, folder, task, **options):
    with pytest.raises(KeyboardInterrupt):
        logged(stream, settings, folder, more=[Stop(task)], **options)


# While a task is being learned.


def weights(folder):
    models, _ = saved_heads(folder, 3)
    return [weight for model in models.values() for weight in model.get_weights()]


@pytest.mark.parametrize("scenario", slow_but("task", ["task", "class"]))
@pytest.mark.parametrize("method", slow_but("mas", ["mas", "finetune"]))
def test_measuring_changes_nothing_of_what_is_learned(stream, quick, tmp_path, method, scenario):
    stream = TaskStream("insects", scenario, stream.tasks, stream.rescale)
    plain = dataclasses.replace(quick, method=method)
    measuring = dataclasses.replace(plain, evaluate_every=3)
    a, b = (train(stream, asked, tmp_path / n) for asked, n in ((plain, "a"), (measuring, "b")))
    assert a["accuracy_matrix"] == b["accuracy_matrix"]
    for mine, theirs in zip(weights(tmp_path / "a"), weights(tmp_path / "b"), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    if method == "mas":
        first, second = (saved_importance(tmp_path / name / "3") for name in "ab")
        assert all(np.array_equal(first[name], second[name]) for name in first)
    # 80 examples in batches of 16, twice: ten steps a task.
    when = [(each["task"], each["step"], each["steps"]) for each in b["evaluations"]]
    assert when == [(task, step, 10) for task in (1, 2, 3) for step in (3, 6, 9)]
    assert [len(each["accuracies"]) for each in b["evaluations"]] == [1] * 3 + [2] * 3 + [3] * 3
    assert "evaluations" not in a


def test_what_is_measured_is_the_accuracy_at_that_step(stream, quick, tmp_path):
    measuring = dataclasses.replace(quick, evaluate_every=5)
    result = train(stream, measuring, tmp_path / "run")
    # The tenth of ten steps is the end of the task, as far as the tasks that are learned go.
    last = [each["accuracies"] for each in result["evaluations"] if each["step"] == 10]
    assert last == [row[: i + 1] for i, row in enumerate(result["accuracy_matrix"])]
    # The fifth is the end of the first of two epochs.
    recipe = dataclasses.replace(quick.recipe, first_epochs=1)
    short = train(stream, dataclasses.replace(quick, recipe=recipe), tmp_path / "short")
    assert result["evaluations"][0]["accuracies"] == short["accuracy_matrix"][0][:1]


def test_the_worst_is_recorded(stream, quick, tmp_path):
    result = train(stream, dataclasses.replace(quick, evaluate_every=2), tmp_path / "run")
    during = {}
    for each in result["evaluations"]:
        during.setdefault(each["task"] - 1, []).append(each["accuracies"])
    R = result["accuracy_matrix"]
    assert result["min_accuracy"] == min_accuracy(R, during)
    assert result["worst_case_accuracy"] == worst_case_accuracy(R, during)
    assert result["evaluate_every"] == 2


def test_the_time_of_measuring_is_not_that_of_training(stream, quick, tmp_path, monkeypatch):
    original = Learner.accuracies_under_way

    def slow(*args):
        end = tf.timestamp() + 0.05
        while tf.timestamp() < end:
            pass
        return original(*args)

    monkeypatch.setattr(Learner, "accuracies_under_way", slow)
    seconds = train(stream, dataclasses.replace(quick, evaluate_every=1), tmp_path)["seconds"]
    assert seconds["evaluation"] > 30 * 0.05
    assert seconds["training"] > 0


@pytest.mark.slow
def test_a_resumed_run_keeps_what_was_measured(stream, quick, tmp_path):
    asked = dataclasses.replace(quick, evaluate_every=4)
    whole = train(stream, asked, tmp_path / "whole")
    interrupted(stream, asked, tmp_path / "cut", 3, log="")
    resumed = train(stream, asked, tmp_path / "cut")
    assert resumed["evaluations"] == whole["evaluations"]
    assert resumed["memory"]["kept_by_method"] == whole["memory"]["kept_by_method"] > 0


def test_measuring_is_part_of_what_a_run_is(stream, quick, tmp_path):
    train(stream, quick, tmp_path)
    with pytest.raises(UsageError, match="--evaluate-every none instead of 7"):
        train(stream, dataclasses.replace(quick, evaluate_every=7), tmp_path)


# CSV.


def test_a_line_for_every_epoch(stream, quick, tmp_path):
    logged(stream, quick, tmp_path)
    rows = list(csv.DictReader((tmp_path / "training.csv").read_text().splitlines()))
    assert [(row["task"], row["name"], row["epoch"]) for row in rows] == [
        (str(number), name, str(epoch))
        for number, name in enumerate(["ants", "bees", "cats"], 1)
        for epoch in (1, 2)
    ]
    assert {*rows[0]} == {"task", "name", "epoch", "loss", "accuracy", "penalty"}
    assert float(rows[0]["penalty"]) == 0 < float(rows[-1]["penalty"])
    progress = json.loads((tmp_path / "1/progress.json").read_text())
    assert [float(row["loss"]) for row in rows[:2]] == progress["history"]["loss"]


@pytest.mark.parametrize("task", slow_but(2, [1, 2, 3]))
def test_a_resumed_run_writes_the_whole_log(stream, quick, tmp_path, task):
    logged(stream, quick, tmp_path / "whole")
    interrupted(stream, quick, tmp_path / "cut", task)
    logged(stream, quick, tmp_path / "cut")
    assert (tmp_path / "cut/training.csv").read_text() == (
        tmp_path / "whole/training.csv"
    ).read_text()


@pytest.mark.slow
def test_a_finished_run_can_be_logged_later(stream, quick, tmp_path):
    logged(stream, quick, tmp_path / "whole")
    train(stream, quick, tmp_path / "later")
    logged(stream, quick, tmp_path / "later")
    assert (tmp_path / "later/training.csv").read_text() == (
        tmp_path / "whole/training.csv"
    ).read_text()


@pytest.mark.slow
def test_logs_are_replaced_with_their_run(stream, quick, tmp_path):
    logged(stream, quick, tmp_path, log="csv,tensorboard")
    train(stream, dataclasses.replace(quick, seed=1), tmp_path, overwrite=True)
    assert not (tmp_path / "training.csv").exists()
    assert not (tmp_path / "tensorboard").exists()


# TensorBoard.


def events(folder):
    """Everything in the log: by tag, the values by step."""
    found = {}
    for path in sorted((folder / "tensorboard").glob("events*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                number = tf.make_ndarray(value.tensor) if value.HasField("tensor") else None
                found.setdefault(value.tag, {})[event.step] = number
    return found


@pytest.fixture
def measured(stream, quick, tmp_path):
    asked = dataclasses.replace(quick, evaluate_every=5)
    interrupted(stream, asked, tmp_path, 3, log="tensorboard")
    result = logged(stream, asked, tmp_path, log="tensorboard")
    return result, events(tmp_path), tmp_path


@pytest.mark.slow
def test_tensorboard_gets_every_number_once_after_an_interruption(measured):
    result, found, folder = measured
    losses = [json.loads((folder / f"{n}/progress.json").read_text())["history"] for n in (1, 2, 3)]
    expected = [loss for history in losses for loss in history["loss"]]
    assert list(found["training/loss"]) == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([*found["training/loss"].values()], expected, rtol=1e-6)
    accuracies = {step: float(value) for step, value in found["accuracy/task_1"].items()}
    R = result["accuracy_matrix"]
    assert accuracies == pytest.approx({i + 1: R[i][0] for i in range(3)})
    assert list(found["while_learning/task_2"]) == [1500, 2000, 2500, 3000]


def test_tensorboard_gets_histograms_of_the_importance(measured):
    _, found, folder = measured
    memory = SynapticMemory.load(folder / "3/memory.npz")
    histogram = found["importance/hidden-1/kernel"][3]  # buckets: from, to, how many
    values = memory.importance["hidden-1/kernel"]
    assert histogram[:, 2].sum() == values.size
    assert math.isclose(histogram[-1, 1], values.max(), rel_tol=1e-5)


def hparams_in(folder):
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    [path] = (folder / "tensorboard").glob("events*")
    for record in tf.data.TFRecordDataset(str(path)):
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
            if value.tag == metadata.SESSION_START_INFO_TAG:
                content = value.metadata.plugin_data.content
                data = plugin_data_pb2.HParamsPluginData.FromString(content)
    return data.session_start_info.hparams


@pytest.mark.slow
def test_tensorboard_gets_the_settings(measured):
    _, _, folder = measured
    hparams = hparams_in(folder)
    assert hparams["method"].string_value == "mas"
    assert hparams["strength"].number_value == 1.0
    assert hparams["batch_size"].number_value == 16


def test_what_has_no_importance_is_drawn_without(stream, quick, tmp_path):
    logged(stream, dataclasses.replace(quick, method="finetune"), tmp_path, log="tensorboard")
    assert not any(tag.startswith("importance") for tag in events(tmp_path))
    assert {"method", "seed"} <= {*hparams_in(tmp_path)}
    assert not {"strength", "penalty"} & {*hparams_in(tmp_path)}  # which finetune has not
    np.savez(tmp_path / "memory.npz", other=np.zeros(3))
    assert saved_importance(tmp_path) == {}


# Callbacks of the user's.


MODULE = """
import keras
from keras_mas.training.listening import Listener
asked = []
learned = []
class Names(Listener):
    def task_finished(self, result):
        learned.append((result.task.name, len(result.accuracies)))
def make_callback(settings, directory):
    asked.append((settings.method, directory.name))
    return [keras.callbacks.CSVLogger(directory.with_suffix(".log"), append=True)]
def make_listener(settings, directory):
    return Names()
def nothing(settings, directory):
    return None
def one_argument(settings):
    return []
value = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_followers.py").write_text(MODULE)
    yield "my_followers"
    sys.modules.pop("my_followers", None)


def test_a_callback_of_the_user_follows_every_task(module, stream, quick, tmp_path):
    following = Following(callback=f"{module}:make_callback")
    folder = tmp_path / "run"
    train(stream, quick, folder, listeners=followers(following, quick, folder))
    assert (tmp_path / "run.log").read_text().count("\n") == 1 + 3 * 2
    shutil.rmtree(folder)


def test_a_listener_of_the_user_is_told_of_every_task(module, stream, quick, tmp_path):
    following = Following(callback=f"{module}:make_listener")
    folder = tmp_path / "run"
    train(stream, quick, folder, listeners=followers(following, quick, folder))
    learned = sys.modules[module].learned
    assert learned == [("ants", 3), ("bees", 3), ("cats", 3)]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("my_followers", "as MODULE:NAME, such as my_module:my_name"),
        ("no_such_module:f", "no module 'no_such_module'. Change to the folder"),
        ("my_followers:other", "Received: a module without 'other'"),
        ("my_followers:value", "to name a function. Received: int."),
        (
            "my_followers:one_argument",
            "`my_followers:one_argument` to take the settings and the folder of a run.*too many",
        ),
        ("my_followers:nothing", "to return a `keras.callbacks.Callback`.*Received: NoneType"),
    ],
)
def test_a_callback_that_cannot_be_made(module, quick, tmp_path, name, sentence):
    with pytest.raises(UsageError, match=sentence):
        followers(Following(callback=name), quick, tmp_path)
