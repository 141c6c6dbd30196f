import dataclasses

import numpy as np
import pytest
from cases import slow

from keras_mas.training import learner as learner_module
from keras_mas.training.divergence import DivergedError
from keras_mas.training.learner import Learner
from keras_mas.training.run import train
from keras_mas.training.saved_tasks import saved_heads
from keras_mas.training.search.search import search
from keras_mas.training.search.space import SearchSpace
from keras_mas.training.tasks import Split, Task, TaskStream


def final_weights(folder):
    models, _ = saved_heads(folder, 3)
    return [weight for model in models.values() for weight in model.get_weights()]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.fixture
def steps(monkeypatch):
    """The training steps that are traced, by the number of classes."""
    traced = []
    from keras_mas import MASModel

    train_step = MASModel.train_step

    def counted(self, data):
        traced.append(self.output_shape[-1])
        return train_step(self, data)

    monkeypatch.setattr(MASModel, "train_step", counted)
    return traced


def three_classes(task):
    """The same task with a third class, of which there is one example in each split."""

    def more(split):
        return Split(
            np.concatenate([split.inputs, split.inputs[:1] + 9]), np.append(split.labels, 2)
        )

    splits = {role: more(split) for role, split in task.splits.items()}
    return Task(task.name, ("a", "b", "c"), **splits)


def test_a_step_is_traced_once_for_each_shape_of_head(steps, stream, settings, tmp_path):
    ants, bees, cats = stream.tasks
    mixed = TaskStream("mixed", "task", (ants, three_classes(bees), cats), stream.rescale)
    train(mixed, settings, tmp_path / "run")
    assert sorted(steps) == [2, 3]


def test_the_trials_of_a_search_trace_the_step_once(steps, stream, settings, tmp_path):
    space = SearchSpace("random", 4, strength_min=0.1, strength_max=10.0)
    found = search(stream, settings, space, tmp_path)
    assert len({trial.accuracy for trial in found.trials if trial.is_completed}) > 1
    assert steps == [2]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 5},
        slow({"strength": 30.0}),
        slow({"penalty": "decoupled"}),
        slow({"method": "finetune"}),
    ],
)
def test_a_run_does_not_depend_on_the_runs_before_it(stream, settings, tmp_path, change):
    learner = Learner(stream)
    before = dataclasses.replace(settings, **change)
    train(stream, before, tmp_path / "before", learner=learner)
    used = train(stream, settings, tmp_path / "used", learner=learner)
    fresh = train(stream, settings, tmp_path / "fresh")
    assert used["accuracy_matrix"] == fresh["accuracy_matrix"]
    assert used["baseline"] == fresh["baseline"]
    assert same(final_weights(tmp_path / "used"), final_weights(tmp_path / "fresh"))
    assert not same(final_weights(tmp_path / "used"), final_weights(tmp_path / "before"))


@pytest.mark.slow
def test_a_run_that_diverged_leaves_nothing_behind(stream, settings, tmp_path):
    learner = Learner(stream)
    recipe = dataclasses.replace(settings.recipe, learning_rate=1e30)
    with pytest.raises(DivergedError):
        train(
            stream,
            dataclasses.replace(settings, recipe=recipe),
            tmp_path / "diverged",
            learner=learner,
        )
    train(stream, settings, tmp_path / "used", learner=learner)
    train(stream, settings, tmp_path / "fresh")
    assert same(final_weights(tmp_path / "used"), final_weights(tmp_path / "fresh"))


def test_each_task_begins_with_a_fresh_optimizer(stream, settings, tmp_path):
    learner = Learner(stream)
    learner.begin(settings)
    [model] = learner.network.models.values()
    learner.learn(0, stream.tasks[0].train)
    slots = [v for v in model.optimizer.variables if v.path.endswith("momentum")]
    assert int(model.optimizer.iterations) == 6 * 4
    assert slots
    assert all(np.any(slot.numpy()) for slot in slots)
    seen = []
    fit = learner.loops[2].fit

    def noting(*args, **kwargs):
        seen.extend(v.numpy() for v in model.optimizer.variables)
        return fit(*args, **kwargs)

    learner.loops[2].fit = noting
    learner.learn(1, stream.tasks[1].train)
    assert {float(np.max(np.abs(value))) for value in seen} == {0.0, np.float32(0.02)}


def test_the_heads_of_other_tasks_stay_as_they_are(stream, settings):
    learner = Learner(stream)
    learner.begin(settings)
    learner.learn(0, stream.tasks[0].train)
    ants = [w.copy() for w in learner.network.model_of(learner.head_of["ants"]).get_weights()[2:]]
    learner.learn(1, stream.tasks[1].train)
    learner.accuracy(stream.tasks[2], "test")
    now = learner.network.model_of(learner.head_of["ants"]).get_weights()[2:]
    assert same(ants, now)
    assert same(learner.network.load(learner.head_of["ants"]).get_weights()[2:], ants)


@pytest.mark.parametrize("measured", [1000, 7])
def test_a_run_on_validation_data_tells_the_cross_entropy_of_all_data_but_the_test(
    stream, settings, tmp_path, monkeypatch, measured
):
    monkeypatch.setattr(learner_module, "CROSS_ENTROPY_EXAMPLES", measured)
    result = train(stream, settings, tmp_path, evaluate_on="validation")
    models, _ = saved_heads(tmp_path, 3)
    for task, found in zip(stream.tasks, result["cross_entropy"], strict=True):
        rows = np.random.default_rng(0).permutation(64)[:measured]
        inputs = np.concatenate([task.train.inputs[rows], task.validation.inputs])
        labels = np.concatenate([task.train.labels[rows], task.validation.labels])
        logits = models[task.name].predict(inputs, verbose=0)
        of_right = logits[np.arange(len(labels)), labels]
        expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - of_right)
        assert found == pytest.approx(expected, rel=1e-4)


def test_a_run_on_test_data_does_not_tell_it(stream, settings, tmp_path):
    quick = dataclasses.replace(settings, recipe=dataclasses.replace(settings.recipe, epochs=1))
    assert "cross_entropy" not in train(stream, quick, tmp_path)
