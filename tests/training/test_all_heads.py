"""Runs of the methods that change the heads of earlier tasks, or the weights that are evaluated."""

import dataclasses
import shutil

import keras
import numpy as np
import pytest
from cases import slow_but

from keras_mas.heads import AllHeads
from keras_mas.training.learner import Learner
from keras_mas.training.listening import Listener
from keras_mas.training.run import train
from keras_mas.training.saved_tasks import saved_heads
from keras_mas.training.tasks import TaskStream

# The runs are short: `online_mas` finds no plateau in some.
pytestmark = pytest.mark.filterwarnings(
    "ignore::keras_mas.methods.online_mas.NothingProtectedWarning"
)

ALL_HEADS = ("lwf", "ebll", "joint", "online_mas")


@pytest.fixture
def quick(settings):
    return dataclasses.replace(settings, recipe=dataclasses.replace(settings.recipe, epochs=2))


def two_tasks(stream, scenario="task"):
    return TaskStream("insects", scenario, stream.tasks[:2], stream.rescale)


def of_method(settings, method):
    return dataclasses.replace(settings, method=method)


class Answers(Listener):
    """What every head answers after each task, to the same inputs."""

    def __init__(self, x):
        self.x, self.logits = x, []

    def task_finished(self, result):
        self.logits.append({name: np.array(model(self.x)) for name, model in result.models.items()})


def assert_same_answers(found, expected):
    assert list(found) == list(expected)
    for name, logits in expected.items():
        np.testing.assert_allclose(found[name], logits, rtol=1e-5, atol=1e-6)


# Those that change earlier heads, other weights than those they go on from, or a shared head.
# Each method is resumed in a task-incremental stream in `test_methods.py`.
CASES = [("lwf", "class"), ("imm_mode", "class"), ("ebll", "domain"), ("online_mas", "domain")]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "scenario"), CASES)
def test_a_resumed_run_gives_what_an_undisturbed_one_does(
    stream, quick, tmp_path, method, scenario
):
    stream = two_tasks(stream, scenario)
    x = stream.tasks[0].test.inputs
    runs = []
    for _ in range(2):
        answers = Answers(x)
        result = train(stream, of_method(quick, method), tmp_path / "run", listeners=[answers])
        runs.append((result["accuracy_matrix"], answers.logits))
        # What is saved, and exported, is what was evaluated.
        for after, logits in enumerate(answers.logits, 1):
            models, _ = saved_heads(tmp_path / "run", after)
            assert_same_answers(
                {name: m.predict(x, verbose=0) for name, m in models.items()}, logits
            )
        network = keras.models.load_model(tmp_path / "run/model.keras")
        assert_same_answers(network.predict(x, verbose=0), answers.logits[-1])
        # As an interruption of the second task leaves it:
        shutil.rmtree(tmp_path / "run/2")
        (tmp_path / "run/result.json").unlink()
    assert runs[0][0] == runs[1][0]
    for here, there in zip(runs[0][1], runs[1][1], strict=True):
        assert all(np.array_equal(here[name], there[name]) for name in here)


def test_lwf_changes_the_heads_of_earlier_tasks(stream, quick, tmp_path):
    train(stream, of_method(quick, "lwf"), tmp_path / "run")
    heads = [saved_heads(tmp_path / "run", after)[0]["ants"].get_weights()[2] for after in (1, 2)]
    assert not np.allclose(*heads)
    folders = [keras.models.load_model(tmp_path / f"run/{n}/model.keras") for n in (1, 2, 3)]
    assert [len(model.output) for model in folders] == [1, 2, 3]
    # Each version needs its own folder alone.
    expected = saved_heads(tmp_path / "run", 3)[0]["ants"].get_weights()
    shutil.rmtree(tmp_path / "run/1")
    found = saved_heads(tmp_path / "run", 3)[0]["ants"].get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))


def test_lwf_keeps_old_answers_that_fine_tuning_loses(stream, settings, tmp_path):
    stream = two_tasks(stream)
    x = stream.tasks[1].train.inputs
    moved = {}
    for method, strength in (("finetune", 1.0), ("lwf", 0.0), ("lwf", 100.0)):
        answers = Answers(x)
        asked = dataclasses.replace(settings, method=method, strength=strength)
        train(stream, asked, tmp_path / f"{method}-{strength}", listeners=[answers])
        p = [1 / (1 + np.exp(z["ants"] @ [1, -1])) for z in answers.logits[:2]]
        moved[method, strength] = np.abs(p[0] - p[1]).mean()
    assert moved["lwf", 100.0] < moved["finetune", 1.0] / 5
    assert moved["lwf", 0.0] > moved["finetune", 1.0] / 2


def test_strength_zero_of_lwf_is_fine_tuning(stream, quick, tmp_path):
    stream = two_tasks(stream)
    free = dataclasses.replace(quick, method="lwf", strength=0.0)
    fine = of_method(quick, "finetune")
    matrices = [
        train(stream, settings, tmp_path / settings.method)["accuracy_matrix"]
        for settings in (free, fine)
    ]
    assert matrices[0] == matrices[1]


def test_joint_training_begins_anew_with_all_data(stream, quick, tmp_path):
    learner = Learner(stream)
    learner.begin(of_method(quick, "joint"))
    [model] = learner.network.models.values()
    [loop] = learner.loops.values()
    seen, fit = [], loop.fit

    def noting(split, **options):
        seen.append((sorted(set(split.labels.tolist())), len(split), model.get_weights()))
        return fit(split, **options)

    loop.fit = noting
    for number in range(3):
        splits = [task.train for task in stream.tasks[: number + 1]]
        learner.learn(number, splits[-1], earlier=splits[:-1])
    assert [labels for labels, _, _ in seen] == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert [count for _, count, _ in seen] == [64, 128, 192]
    for _, _, weights in seen:
        assert all(np.array_equal(a, b) for a, b in zip(weights, seen[0][2], strict=True))


def test_joint_training_forgets_nothing(stream, settings, tmp_path):
    stream = two_tasks(stream)
    result = train(stream, of_method(settings, "joint"), tmp_path / "run")
    (first, _), (again, second) = result["accuracy_matrix"]
    assert min(first, again, second) > 0.8


@pytest.mark.parametrize("method", slow_but("lwf", ALL_HEADS))
def test_the_step_is_traced_once_for_all_tasks(stream, quick, tmp_path, method, monkeypatch):
    traced, compute_loss = [], AllHeads.compute_loss

    def counted(self, *args, **options):
        traced.append(1)
        return compute_loss(self, *args, **options)

    monkeypatch.setattr(AllHeads, "compute_loss", counted)
    stream = two_tasks(stream)
    learner = Learner(stream)
    for seed in (0, 1):
        settings = dataclasses.replace(quick, method=method, seed=seed, strength=seed + 0.5)
        train(stream, settings, tmp_path / str(seed), learner=learner)
    assert traced == [1]


def test_a_run_does_not_depend_on_the_runs_before_it(stream, quick, tmp_path):
    stream = two_tasks(stream)
    learner = Learner(stream)
    settings = of_method(quick, "lwf")
    other = dataclasses.replace(settings, strength=30.0, seed=4)
    train(stream, other, tmp_path / "before", learner=learner)
    used = train(stream, settings, tmp_path / "used", learner=learner)
    fresh = train(stream, settings, tmp_path / "fresh")
    assert used["accuracy_matrix"] == fresh["accuracy_matrix"]
    weights = [
        saved_heads(tmp_path / name, 2)[0]["bees"].get_weights() for name in ("used", "fresh")
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
