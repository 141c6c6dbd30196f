import dataclasses

import keras
import numpy as np
import pytest
from cases import slow
from keras import layers

from keras_mas import MASModel, SynapticMemory
from keras_mas.binding import has_frozen_statistics
from keras_mas.errors import UsageError
from keras_mas.training import network
from keras_mas.training.identity import describe
from keras_mas.training.learner import Learner
from keras_mas.training.listening import Listener
from keras_mas.training.run import train
from keras_mas.training.run_directory import DamagedError
from keras_mas.training.saved_tasks import saved_heads
from keras_mas.training.settings import Settings
from keras_mas.training.tasks import TaskStream


def normalized_trunk(backbone, input_shape, rescale, weights=None):
    """A trunk with two batch normalizations, in place of any backbone."""
    inputs = x = keras.Input(input_shape, name="inputs")
    for number in (1, 2):
        x = layers.Dense(8, name=f"dense-{number}")(x)
        x = layers.BatchNormalization(momentum=0.5, name=f"norm-{number}")(x)
        x = layers.ReLU(name=f"relu-{number}")(x)
    trunk = keras.Model(inputs, x, name="trunk")
    if weights is not None:
        trunk.get_layer("norm-1").moving_mean.assign(np.full(8, 5.0))
    return trunk


def dropped_trunk(backbone, input_shape, rescale, weights=None):
    inputs = keras.Input(input_shape, name="inputs")
    x = layers.Dense(16, "relu", name="dense")(inputs)
    return keras.Model(inputs, layers.Dropout(0.5, name="drop")(x), name="trunk")


@pytest.fixture
def normalized(monkeypatch):
    monkeypatch.setattr(network, "build_trunk", normalized_trunk)


def with_recipe(settings, **change):
    return dataclasses.replace(settings, recipe=dataclasses.replace(settings.recipe, **change))


def learner_of(stream, settings):
    learner = Learner(stream)
    learner.begin(settings)
    return learner


def learn(learner, number):
    task = learner.stream.tasks[number].train
    learner.learn(number, task)
    learner.after_task(number, task)


def statistics(trunk):
    """The moving means and variances, copied."""
    return [w.numpy() for w in trunk.non_trainable_weights if w.path.startswith("norm-")]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


class Interrupt(Listener):
    def __init__(self, at):
        self.at = at

    def task_started(self, number, task, epochs):
        if number == self.at:
            raise KeyboardInterrupt


# Frozen layers.


def test_frozen_layers_are_neither_trained_nor_protected(stream, settings):
    learner = learner_of(
        stream, with_recipe(settings, backbone="mlp-8-7-6", freeze="2", batch_size=64)
    )
    before = learner.network.trunk.get_weights()
    learn(learner, 0)
    after = learner.network.trunk.get_weights()
    assert same(before[:4], after[:4])
    assert not any(np.array_equal(a, b) for a, b in zip(before[4:], after[4:], strict=True))
    assert set(learner.method.memory.importance) == {"hidden-3/kernel", "hidden-3/bias"}


def test_heads_alone_are_trained_on_a_frozen_trunk(stream, settings):
    settings = dataclasses.replace(with_recipe(settings, freeze="all"), method="finetune")
    learner = learner_of(stream, settings)
    before = learner.network.trunk.get_weights()
    for number in range(3):
        learn(learner, number)
    assert same(before, learner.network.trunk.get_weights())
    assert learner.accuracy(stream.tasks[0], "test") > 0.8


def test_a_shared_head_is_protected_on_a_frozen_trunk(stream, settings):
    shared = TaskStream("insects", "domain", stream.tasks, stream.rescale)
    learner = learner_of(shared, with_recipe(settings, freeze="all"))
    learn(learner, 0)
    assert set(learner.method.memory.importance) == {"head-shared/kernel", "head-shared/bias"}


def test_a_method_with_nothing_to_protect_is_refused(stream, settings):
    with pytest.raises(UsageError, match=r"'mas' to protect.*frozen as a whole.*--method finetune"):
        learner_of(stream, with_recipe(settings, freeze="all"))


def test_more_layers_than_there_are_cannot_be_frozen(stream, settings):
    with pytest.raises(UsageError, match=r"at most 3 layers to freeze.*Received: 4.*`--freeze`"):
        learner_of(stream, with_recipe(settings, backbone="mlp-8-7-6", freeze="4"))


# Batch normalization.


def test_statistics_are_frozen_after_the_first_task(normalized, stream, settings):
    learner = learner_of(stream, settings)
    trunk = learner.network.trunk
    fresh = statistics(trunk)
    learn(learner, 0)
    first, gamma = statistics(trunk), trunk.get_layer("norm-1").gamma.numpy()
    assert not any(np.array_equal(a, b) for a, b in zip(fresh, first, strict=True))
    learn(learner, 1)
    assert same(first, statistics(trunk))
    assert not np.array_equal(gamma, trunk.get_layer("norm-1").gamma)
    assert "norm-1/gamma" in learner.method.memory.importance


def test_statistics_of_given_weights_are_frozen_from_the_start(normalized, stream, settings):
    settings = dataclasses.replace(with_recipe(settings, weights="imagenet"), method="finetune")
    learner = learner_of(stream, settings)
    given = statistics(learner.network.trunk)
    assert given[0].tolist() == [5.0] * 8
    learn(learner, 0)
    assert same(given, statistics(learner.network.trunk))


def test_shared_statistics_are_moved_by_every_task(normalized, stream, settings):
    learner = learner_of(stream, with_recipe(settings, batch_norm="shared"))
    seen = []
    for number in range(3):
        learn(learner, number)
        seen.append(statistics(learner.network.trunk))
    assert not any(np.array_equal(a, b) for a, b in zip(*seen[:2], strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(*seen[1:], strict=True))


def own_weights(learner, name):
    """The weights of a task outside the trunk, by path."""
    model = learner.network.model_of(learner.head_of[name])
    shared = {weight.path for weight in learner.network.trunk.weights}
    return {w.path: w.numpy() for w in model.weights if w.path not in shared}


def test_every_task_keeps_batch_normalization_of_its_own(normalized, stream, settings):
    learner = learner_of(stream, with_recipe(settings, batch_norm="per-task"))
    fresh = own_weights(learner, "ants")
    learn(learner, 0)
    ants = own_weights(learner, "ants")
    assert set(ants) == {
        *(f"norm-{k}-ants/{w}" for k in (1, 2) for w in ("gamma", "beta")),
        *(f"norm-{k}-ants/moving_{w}" for k in (1, 2) for w in ("mean", "variance")),
        *("head-ants/kernel", "head-ants/bias"),
    }
    assert not any(np.array_equal(fresh[path], ants[path]) for path in ants)
    bees = own_weights(learner, "bees")
    assert bees["norm-1-bees/moving_mean"].tolist() == [0.0] * 8  # it begins as the trunk's
    learn(learner, 1)
    learner.accuracy(stream.tasks[2], "test")
    assert same(ants.values(), own_weights(learner, "ants").values())
    assert own_weights(learner, "bees")["norm-1-bees/moving_mean"].any()
    # What another task normalizes with stays away from the model of this one.
    ants_again = learner.network.load(learner.head_of["ants"])
    x = stream.tasks[0].test.inputs
    np.testing.assert_array_equal(
        ants_again(x), learner.network.model_of(learner.head_of["ants"])(x)
    )
    held = {name for name, omega in learner.method.memory.importance.items() if omega.any()}
    assert held == {f"dense-{k}/{w}" for k in (1, 2) for w in ("kernel", "bias")}


def test_batch_normalization_per_task_needs_to_know_the_task(normalized, stream, settings):
    domain = TaskStream("insects", "domain", stream.tasks, stream.rescale)
    with pytest.raises(UsageError, match=r"task-incremental.*'insects', which is domain-incr"):
        learner_of(domain, with_recipe(settings, batch_norm="per-task"))


def of_method(settings, method, batch_norm):
    """Settings of any method, with its own λ."""
    recipe = dataclasses.replace(settings.recipe, batch_norm=batch_norm)
    return Settings(method=method, recipe=recipe)


@pytest.mark.parametrize(
    ("batch_norm", "method"),
    [
        # Methods with one head in a model, with all, and with the data of all tasks.
        *[slow("frozen", method) for method in ("mas", "lwf", "joint")],
        ("per-task", "mas"),
        slow("per-task", "imm_mode"),
    ],
)
def test_a_run_with_batch_normalization_is_saved_and_resumed(
    normalized, stream, settings, tmp_path, batch_norm, method
):
    settings = of_method(settings, method, batch_norm)
    learner = Learner(stream)
    whole = train(stream, settings, tmp_path / "whole", learner=learner)
    with pytest.raises(KeyboardInterrupt):
        train(stream, settings, tmp_path / "cut", listeners=[Interrupt(3)])
    resumed = train(stream, settings, tmp_path / "cut")
    assert resumed["accuracy_matrix"] == whole["accuracy_matrix"]
    models, _ = saved_heads(tmp_path / "whole", 3)
    again, _ = saved_heads(tmp_path / "cut", 3)
    for number, (name, model) in enumerate(models.items()):
        x, labels = stream.tasks[number].test.inputs, stream.tasks[number].test.labels
        logits = model(x)
        np.testing.assert_array_equal(logits, again[name](x))
        with learner.method.evaluated():
            np.testing.assert_array_equal(
                logits, learner.network.model_of(learner.head_of[name])(x)
            )
        right = np.argmax(logits, axis=1) == labels
        assert np.mean(right) == whole["accuracy_matrix"][-1][number]
    shared = set.intersection(*(set(map(id, model.weights)) for model in models.values()))
    assert len(shared) == (4 if batch_norm == "per-task" else 12)


@pytest.mark.slow
def test_earlier_heads_are_read_on_the_later_trunk(normalized, stream, settings, tmp_path):
    train(stream, with_recipe(settings, batch_norm="per-task"), tmp_path / "run")
    models, _ = saved_heads(tmp_path / "run", 3)
    saved = keras.models.load_model(tmp_path / "run/3/model.keras")
    kernel = models["ants"].get_layer("dense-1").kernel
    np.testing.assert_array_equal(kernel, saved.get_layer("dense-1").kernel)
    before = keras.models.load_model(tmp_path / "run/1/model.keras")
    np.testing.assert_array_equal(
        models["ants"].get_layer("norm-1-ants").moving_mean,
        before.get_layer("norm-1-ants").moving_mean,
    )
    (tmp_path / "run/1/model.keras").unlink()
    with pytest.raises(DamagedError, match="1/model.keras"):
        saved_heads(tmp_path / "run", 3)


def test_tasks_that_are_learned_together_move_the_statistics(normalized, stream, settings):
    learner = learner_of(stream, of_method(settings, "joint", "frozen"))
    trunk = learner.network.trunk
    fresh = statistics(trunk)
    learner.learn(0, stream.tasks[0].train)
    learner.learn(1, stream.tasks[1].train, earlier=[stream.tasks[0].train])
    # They begin with the initial weights again, whose statistics are those of no data.
    assert not any(np.array_equal(a, b) for a, b in zip(fresh, statistics(trunk), strict=True))


@pytest.mark.parametrize("method", ["lwf", "ebll", "joint", "online_mas"])
def test_batch_normalization_per_task_is_refused_where_all_heads_are_trained(settings, method):
    with pytest.raises(UsageError, match=rf"method '{method}', which.*--batch-norm per-task. Ch"):
        of_method(settings, method, "per-task")


@pytest.mark.filterwarnings("error::keras_mas.BatchNormWarning")
@pytest.mark.parametrize("batch_norm", ["frozen", "per-task", "shared"])
def test_no_method_sees_to_batch_normalization_itself(normalized, stream, settings, batch_norm):
    learner = learner_of(stream, of_method(settings, "imm_mean", batch_norm))
    learn(learner, 0)
    norm = learner.network.trunk.get_layer("norm-1")
    assert not has_frozen_statistics(norm)  # before the next task begins


@pytest.fixture
def traced(monkeypatch):
    """The names of the models whose training step was traced."""
    names = []
    train_step = MASModel.train_step

    def noting(self, data):
        names.append(self.name)
        return train_step(self, data)

    monkeypatch.setattr(MASModel, "train_step", noting)
    return names


# Before and after the statistics are frozen, the step is another one.
@pytest.mark.slow
@pytest.mark.parametrize(("batch_norm", "steps"), [("frozen", 2), ("per-task", 1)])
def test_a_run_does_not_depend_on_the_statistics_of_the_run_before(
    normalized, stream, settings, tmp_path, traced, batch_norm, steps
):
    settings = with_recipe(settings, batch_norm=batch_norm, epochs=2)
    learner = Learner(stream)
    train(stream, dataclasses.replace(settings, seed=5), tmp_path / "before", learner=learner)
    train(stream, settings, tmp_path / "used", learner=learner)
    assert len(traced) == steps
    train(stream, settings, tmp_path / "fresh")
    used, fresh = (saved_heads(tmp_path / name, 3)[0] for name in ("used", "fresh"))
    for name, model in used.items():
        assert same(model.get_weights(), fresh[name].get_weights())


# Dropout.


@pytest.mark.slow
def test_dropout_draws_the_same_in_a_resumed_run(stream, settings, monkeypatch, tmp_path):
    monkeypatch.setattr(network, "build_trunk", dropped_trunk)
    learner = Learner(stream)
    train(stream, settings, tmp_path / "whole", learner=learner)
    with pytest.raises(KeyboardInterrupt):
        train(stream, settings, tmp_path / "cut", listeners=[Interrupt(3)])
    train(stream, settings, tmp_path / "cut")
    train(stream, settings, tmp_path / "again", learner=learner)
    whole, cut, again = (
        SynapticMemory.load(tmp_path / name / "3/memory.npz").anchor
        for name in ("whole", "cut", "again")
    )
    assert same(whole.values(), cut.values())
    assert same(whole.values(), again.values())


# Given weights.


def test_a_run_begins_with_the_weights_of_a_file(stream, settings, tmp_path):
    values = {"hidden-1/kernel": np.full([4, 3], 0.5), "hidden-1/bias": np.arange(3.0)}
    np.savez(tmp_path / "w.npz", **values)
    settings = with_recipe(settings, backbone="mlp-3", weights=str(tmp_path / "w.npz"))
    learner = learner_of(stream, settings)
    kernel, bias = learner.network.trunk.get_weights()
    np.testing.assert_array_equal(kernel, values["hidden-1/kernel"])
    np.testing.assert_array_equal(bias, values["hidden-1/bias"])
    heads = [learner.network.layer_of(head).kernel.numpy() for head in learner.head_of.values()]
    assert not same(heads[:1], heads[1:2])
    learner.begin(dataclasses.replace(settings, seed=1))
    ants = learner.network.layer_of(learner.head_of["ants"]).kernel
    assert not np.array_equal(ants, heads[0])


@pytest.mark.slow
def test_a_run_is_not_continued_with_other_weights(stream, settings, tmp_path):
    def write(name, bias):
        path = tmp_path / name
        np.savez(path, **{"hidden-1/kernel": np.ones([4, 3]), "hidden-1/bias": np.full(3, bias)})
        return with_recipe(settings, backbone="mlp-3", weights=str(path), epochs=1)

    first = write("first.npz", 0.0)
    result = train(stream, first, tmp_path / "run")
    assert result["recipe"]["weights"] == str(tmp_path / "first.npz")
    assert train(stream, write("moved.npz", 0.0), tmp_path / "run") == result
    with pytest.raises(UsageError, match=r"another run: --weights sha256:\w+ instead of sha256:"):
        train(stream, write("first.npz", 1.0), tmp_path / "run")
    with pytest.raises(UsageError, match="none.npz', which cannot be read"):
        describe(stream, with_recipe(first, weights=str(tmp_path / "none.npz")), "test")


@pytest.mark.parametrize("batch_norm", ["per-task", "shared"])
def test_a_backbone_without_batch_normalization_is_told_of(stream, settings, batch_norm):
    with pytest.warns(UserWarning, match=f"--batch-norm {batch_norm} makes no difference: nothing"):
        learner_of(stream, with_recipe(settings, batch_norm=batch_norm))
