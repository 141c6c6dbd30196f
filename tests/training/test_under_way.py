"""Runs that are interrupted within a task, which go on after its last epoch."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import slow, slow_but
from interrupting import Follower

from keras_mas.errors import UsageError
from keras_mas.training import under_way
from keras_mas.training.divergence import DivergedError
from keras_mas.training.following import Following
from keras_mas.training.listening import Listener
from keras_mas.training.run import train
from keras_mas.training.run_directory import UNDER_WAY, DamagedError, VanishedError
from keras_mas.training.run_logs import followers
from keras_mas.training.saved_tasks import saved_heads
from keras_mas.training.tasks import TaskStream

DROPOUT = """
import keras

def features(inputs):
    x = keras.layers.BatchNormalization()(keras.layers.Dense(8, "relu")(inputs))
    return keras.layers.Dropout(0.5)(x)
"""


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch):
    monkeypatch.setattr(under_way, "EVERY", 0.0)


@pytest.fixture
def two_tasks(stream):
    return TaskStream("insects", "task", stream.tasks[:2], stream.rescale)


def with_recipe(settings, **recipe):
    return dataclasses.replace(settings, recipe=dataclasses.replace(settings.recipe, **recipe))


def interrupt(stream, settings, folder, when, more=()):
    with pytest.raises(KeyboardInterrupt):
        train(stream, settings, folder, listeners=[*more, Follower(when)])


def go_on(stream, settings, folder, more=()):
    follower = Follower()
    return train(stream, settings, folder, listeners=[*more, follower]), follower


def weights(folder, tasks=2):
    models, _ = saved_heads(folder, tasks)
    return [weight for model in models.values() for weight in model.get_weights()]


def assert_ends_the_same(result, whole, tmp_path):
    for key in ("accuracy_matrix", "baseline", "forgetting", "evaluations", "free", "strengths"):
        assert result.get(key) == whole.get(key)
    for mine, theirs in zip(weights(tmp_path / "cut"), weights(tmp_path / "whole"), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("when", "epochs"),
    [
        slow(
            (1, 1), [(1, e) for e in range(1, 7)] + [(2, e) for e in range(1, 7)]
        ),  # nothing saved
        ((1, 4), [(1, 4), (1, 5), (1, 6)] + [(2, e) for e in range(1, 7)]),
        slow((2, 6), [(2, 6)]),
        slow((2, "importance"), []),
    ],
)
def test_a_run_goes_on_after_its_last_epoch(two_tasks, settings, tmp_path, when, epochs):
    whole = train(two_tasks, settings, tmp_path / "whole")
    interrupt(two_tasks, settings, tmp_path / "cut", when)
    result, follower = go_on(two_tasks, settings, tmp_path / "cut")
    assert follower.epochs == epochs
    assert_ends_the_same(result, whole, tmp_path)
    assert not (tmp_path / "cut" / UNDER_WAY).exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        {"optimizer": "sgd"},
        {"optimizer_state": "kept"},
        {"backbone": "dropped:features", "batch_norm": "shared"},
        {"backbone": "dropped:features", "batch_norm": "per-task"},
    ],
    ids=lambda recipe: "-".join(recipe.values()),
)
def test_whatever_a_step_depends_on_goes_on(two_tasks, settings, tmp_path, monkeypatch, recipe):
    (tmp_path / "dropped.py").write_text(DROPOUT)
    monkeypatch.chdir(tmp_path)
    asked = with_recipe(settings, epochs=3, **recipe)
    whole = train(two_tasks, asked, tmp_path / "whole")
    interrupt(two_tasks, asked, tmp_path / "cut", (2, 3))
    result, follower = go_on(two_tasks, asked, tmp_path / "cut")
    assert follower.epochs == [(2, 3)]
    assert_ends_the_same(result, whole, tmp_path)


@pytest.mark.slow
def test_augmented_images_are_those_of_the_epoch(two_tasks, settings, tmp_path):
    labels = np.arange(40) % 2
    random = np.random.default_rng(0)
    noise = random.integers(0, 128, [3, 40, 6, 6, 1], "uint8")
    images = noise + (labels * 127).astype("uint8")[:, None, None, None]
    tasks = [
        dataclasses.replace(
            task,
            **{
                role: type(split)(pixels, labels)
                for (role, split), pixels in zip(task.splits.items(), images, strict=True)
            },
        )
        for task in two_tasks.tasks
    ]
    stream = TaskStream("moths", "task", tuple(tasks), (1 / 255, 0.0))
    asked = with_recipe(settings, epochs=3, augment="flip,crop", backbone="mlp-4")
    whole = train(stream, asked, tmp_path / "whole")
    interrupt(stream, asked, tmp_path / "cut", (1, 3))
    result, follower = go_on(stream, asked, tmp_path / "cut")
    assert follower.epochs[0] == (1, 3)
    assert_ends_the_same(result, whole, tmp_path)


@pytest.mark.slow
def test_an_automatic_strength_is_that_of_the_whole_task(two_tasks, settings, tmp_path):
    asked = dataclasses.replace(settings, strength="auto", penalty="decoupled")
    whole = train(two_tasks, asked, tmp_path / "whole")
    interrupt(two_tasks, asked, tmp_path / "cut", (2, 5))
    result, _ = go_on(two_tasks, asked, tmp_path / "cut")
    assert_ends_the_same(result, whole, tmp_path)
    assert result["strengths"] == whole["strengths"]


@pytest.mark.slow
def test_logs_and_measurements_are_whole(two_tasks, settings, tmp_path):
    asked = dataclasses.replace(settings, evaluate_every=4)  # of five steps in an epoch

    def log(name):
        return followers(Following(log="csv"), asked, tmp_path / name)

    whole = train(two_tasks, asked, tmp_path / "whole", listeners=log("whole"))
    interrupt(two_tasks, asked, tmp_path / "cut", (2, 4), more=log("cut"))
    result, follower = go_on(two_tasks, asked, tmp_path / "cut", more=log("cut"))
    assert follower.resumed == [(2, 3, 3)]
    assert_ends_the_same(result, whole, tmp_path)
    a, b = ((tmp_path / name / "training.csv").read_text() for name in ("whole", "cut"))
    assert a == b
    assert result["seconds"].keys() == whole["seconds"].keys()
    assert min(result["seconds"].values()) > 0


@pytest.mark.slow
def test_a_training_that_a_callback_stopped_is_not_taken_up_again(two_tasks, settings, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    def stopping():
        listener = Listener()
        listener.callbacks = (Stop(),)
        return [listener]

    folder = tmp_path / "cut"
    interrupt(two_tasks, settings, folder, (2, "importance"), more=stopping())
    _, follower = go_on(two_tasks, settings, folder)
    assert follower.epochs == []
    history = json.loads((folder / "2" / "progress.json").read_text())["history"]
    assert len(history["loss"]) == 2


def test_a_method_that_does_not_say_what_it_changes_begins_the_task_anew(
    two_tasks, settings, tmp_path, monkeypatch
):
    (tmp_path / "silent.py").write_text(
        "from keras_mas.methods.base import Method\n\nclass Silent(Method):\n    pass\n"
    )
    monkeypatch.chdir(tmp_path)
    asked = dataclasses.replace(settings, method="silent:Silent")
    interrupt(two_tasks, asked, tmp_path / "cut", (1, 4))
    _, follower = go_on(two_tasks, asked, tmp_path / "cut")
    assert follower.epochs[0] == (1, 1)


def test_saves_are_a_second_apart(two_tasks, settings, tmp_path, monkeypatch):
    now = [0.0]
    saved = []
    monkeypatch.setattr(under_way, "EVERY", 1.0)
    monkeypatch.setattr(under_way.time, "monotonic", lambda: now[0])
    callback = under_way.SaveUnderWay(saved.append)
    callback.set_model(keras.Sequential())
    callback.model.stop_training = False
    for epoch in range(10):
        now[0] += 0.4
        callback.on_epoch_end(epoch)
    assert saved == [3, 6, 9]


def test_what_diverged_is_not_saved(two_tasks, settings, tmp_path):
    asked = with_recipe(settings, optimizer="sgd", learning_rate=1e3)
    with pytest.raises(DivergedError, match="epoch"):
        train(two_tasks, asked, tmp_path / "run")
    path = tmp_path / "run" / UNDER_WAY
    begun = under_way.TaskUnderWay.read(path.parent)
    assert begun is None or np.all(np.isfinite(begun.measured["history"]["loss"]))


@pytest.mark.slow
def test_what_another_task_left_is_not_taken_for_this_one(two_tasks, settings, tmp_path):
    folder = tmp_path / "cut"
    interrupt(two_tasks, settings, folder, (1, 6))
    left = (folder / UNDER_WAY).read_bytes()
    interrupt(two_tasks, settings, folder, (2, 1))
    (folder / UNDER_WAY).write_bytes(left)  # as if it was killed before it could be replaced
    whole = train(two_tasks, settings, tmp_path / "whole")
    result, follower = go_on(two_tasks, settings, folder)
    assert follower.epochs[0] == (2, 1)
    assert_ends_the_same(result, whole, tmp_path)


@pytest.mark.parametrize(
    "kind", slow_but("truncated", ["truncated", "foreign", "another network's"])
)
def test_a_damaged_file_is_named_and_nothing_is_lost(two_tasks, settings, tmp_path, kind):
    folder = tmp_path / "cut"
    interrupt(two_tasks, settings, folder, (2, 4))
    path = folder / UNDER_WAY
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "foreign":
        shutil.copy(folder / "1" / "memory.npz", path)
    else:
        other = with_recipe(settings, backbone="mlp-8")
        interrupt(two_tasks, other, tmp_path / "other", (2, 4))
        shutil.copy(tmp_path / "other" / UNDER_WAY, path)
    with pytest.raises(DamagedError, match=f"{UNDER_WAY}' is damaged.*Remove it.*anew"):
        train(two_tasks, settings, folder)
    path.unlink()
    _, follower = go_on(two_tasks, settings, folder)
    assert follower.epochs[0] == (2, 1)


@pytest.mark.slow
def test_deterministic_kernels_are_asked_for(two_tasks, settings, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: asked.append(1))
    train(two_tasks, settings, tmp_path / "plain")
    assert not asked
    plain = dataclasses.replace(settings, deterministic=True)
    train(two_tasks, plain, tmp_path / "deterministic")
    assert asked
    with pytest.raises(UsageError, match="--deterministic"):
        train(two_tasks, plain, tmp_path / "plain")


class AtEpoch(Listener):
    """Does something at the end of an epoch of the first task."""

    def __init__(self, number, what):
        self.callbacks = (keras.callbacks.LambdaCallback(on_epoch_end=self.epoch_ended),)
        self.number, self.what = number, what

    def epoch_ended(self, epoch, logs=None):
        if epoch + 1 == self.number:
            self.number = None
            self.what()


@pytest.mark.parametrize("every", [0.0, 99.0], ids=["within a task", "at its end"])
def test_a_folder_that_vanishes_is_not_made_again(
    two_tasks, settings, tmp_path, monkeypatch, every
):
    monkeypatch.setattr(under_way, "EVERY", every)
    folder = tmp_path / "run"
    remove = AtEpoch(2, lambda: shutil.rmtree(folder))
    with pytest.raises(VanishedError, match=r"'.*run', .* removed or moved meanwhile. Move"):
        train(two_tasks, settings, folder, listeners=[remove])
    assert not folder.exists()


@pytest.mark.slow
def test_a_folder_that_is_moved_goes_on_in_its_new_place(two_tasks, settings, tmp_path):
    whole = train(two_tasks, settings, tmp_path / "whole")
    folder, moved = tmp_path / "run", tmp_path / "cut"
    with pytest.raises(VanishedError):
        train(two_tasks, settings, folder, listeners=[AtEpoch(3, lambda: folder.rename(moved))])
    assert not folder.exists()
    result, follower = go_on(two_tasks, settings, moved)
    assert follower.epochs[0] == (1, 3)
    assert_ends_the_same(result, whole, tmp_path)


class Spoils(Listener):
    """Gives a weight of the trunk another value in the last step of an epoch of the second task."""

    def __init__(self, value, epoch):
        spoil = keras.callbacks.LambdaCallback(
            on_epoch_begin=self.epoch_begun, on_train_batch_end=self.step_ended
        )
        self.callbacks = (spoil,)
        self.value, self.when, self.task, self.epoch = value, (2, epoch), 0, 0

    def task_started(self, number, task, epochs):
        self.task = number

    def epoch_begun(self, epoch, logs=None):
        self.epoch = epoch + 1

    def step_ended(self, batch, logs=None):
        callback = self.callbacks[0]
        if (self.task, self.epoch) == self.when and batch + 1 == callback.params["steps"]:
            kernel = callback.model.trainable_variables[0]
            kernel.assign(np.full(kernel.shape, self.value))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "epoch", "words"),
    [
        (np.nan, 3, "NaN or infinity in '.*kernel' after epoch 3 of task 'bees' .*strength"),
        (np.inf, 6, "NaN or infinity in '.*kernel' after epoch 6 of task 'bees'"),
        (1e30, 6, "finite outputs.* after epoch 6, the last of task 'bees' with mas .*rate"),
    ],
    ids=["a weight", "a weight at the end", "Ω"],
)
def test_what_is_not_finite_stops_the_task_and_the_state_before_it_stays(
    two_tasks, settings, tmp_path, value, epoch, words
):
    whole = train(two_tasks, settings, tmp_path / "whole")
    with pytest.raises(DivergedError, match=words):
        train(two_tasks, settings, tmp_path / "cut", listeners=[Spoils(value, epoch)])
    if epoch < 6 or not np.isfinite(value):
        saved = under_way.TaskUnderWay.read(tmp_path / "cut")
        assert (saved.number, saved.epochs) == (1, epoch - 1)
    else:
        (tmp_path / "cut" / UNDER_WAY).unlink()  # finite weights, though too large to measure
    result, _ = go_on(two_tasks, settings, tmp_path / "cut")
    assert_ends_the_same(result, whole, tmp_path)


def test_a_gradient_that_is_not_finite_is_noticed_in_its_epoch(
    two_tasks, settings, tmp_path, monkeypatch
):
    # √0 = 0, a finite loss, but its derivative is infinite.
    text = "import keras\n\ndef features(x):\n    return keras.ops.sqrt(keras.ops.relu(keras.layers"
    (tmp_path / "roots.py").write_text(text + ".Dense(8)(x)))\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DivergedError, match="epoch 1 of task 'ants' .*Lower `--learning-rate`"):
        train(two_tasks, with_recipe(settings, backbone="roots:features"), tmp_path / "run")
    assert not (tmp_path / "run" / UNDER_WAY).exists()
