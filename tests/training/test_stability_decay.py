"""λ by stability decay: which one is taken, and which data it is found with."""

import dataclasses

import numpy as np
import pytest
from cases import slow_but

from keras_mas.errors import UsageError
from keras_mas.training.comparison_plan import ComparisonPlan
from keras_mas.training.listening import Listener
from keras_mas.training.run import train
from keras_mas.training.run_directory import read_json, write_json
from keras_mas.training.saved_tasks import saved_heads
from keras_mas.training.settings import Recipe, Settings, run_name
from keras_mas.training.stability_decay import decay_text, margin_of, stability_decay
from keras_mas.training.tasks import Split, Task, TaskStream
from keras_mas.training.tasks.inputs import MemoryArray


def test_strength_is_halved_until_the_accuracy_is_within_the_margin():
    # A* = 0.8 and p = 0.25, so that 0.6 is enough: 8 and 4 lose too much, 2 reaches just that.
    reached = {0.0: 0.8, 8.0: 0.3, 4.0: 0.5999, 2.0: 0.6000001, 1.0: 0.7}
    found = stability_decay(8.0, 0.25, reached.__getitem__)
    assert found.best == 0.8
    assert found.tries == [(8.0, 0.3), (4.0, 0.5999), (2.0, 0.6000001)]
    assert found.strength == 2.0


def test_nothing_is_held_if_no_strength_lets_the_task_be_learned():
    found = stability_decay(8.0, 0.01, lambda strength: 0.9 if strength == 0 else 0.1)
    assert [strength for strength, _ in found.tries[:3]] == [8.0, 4.0, 2.0]
    assert found.tries[-1] == (0.0, 0.9)
    assert found.strength == 0.0


@pytest.mark.parametrize(
    ("text", "margin"), [("decay", 0.01), ("decay:0.01", 0.01), ("decay:0.2", 0.2), ("auto", None)]
)
def test_the_margin_is_read_from_the_text(text, margin):
    assert margin_of(text) == margin
    assert margin is None or margin_of(decay_text(margin)) == margin


@pytest.mark.parametrize("text", ["decay:", "decay:0", "decay:1", "decay:nan", "decayed"])
def test_a_margin_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match=f"decay:MARGIN .* Received: '{text}'"):
        Settings(strength=text)


def test_methods_without_a_penalty_on_weights_are_refused():
    with pytest.raises(UsageError, match=r"strength of the method 'lwf'. Received: 'decay:0.1'"):
        Settings(method="lwf", strength="decay:0.1")


@pytest.mark.parametrize("way", ["decay", "auto", "auto:3"])
def test_a_method_without_strength_finds_none(way):
    with pytest.raises(UsageError, match=f"'finetune', which has no λ. Received: --strength {way}"):
        Settings(method="finetune", strength=way)
    with pytest.raises(UsageError, match="'finetune', which has no λ"):
        ComparisonPlan(methods="mas,finetune", strength=f"finetune={way}").contestants(Recipe())
    # One for all methods is meant for those that have one.
    both = ComparisonPlan(methods="mas,finetune", strength=way).contestants(Recipe())
    assert [each.of_method["strength"] for each in both] == [way, None]


def test_runs_and_comparisons_are_named_after_it(stream, settings):
    decaying = dataclasses.replace(settings, strength="decay:0.05")
    assert run_name(stream, decaying).startswith("insects-mas-decay.0.05-")
    plan = ComparisonPlan(methods="mas,ewc", strength="mas=decay,ewc=3")
    assert [each.strength for each in plan.contestants(settings.recipe)] == ["decay", 3.0]


class Tried(Listener):
    """What was tried for each task; calls a function when a task starts or ends."""

    def __init__(self, started=None, tried=None):
        self.of_task, self.started, self.tried = {}, started, tried

    def task_started(self, number, task, epochs):
        self.number = number
        if self.started:
            self.started(number)

    def strength_tried(self, strength, accuracy):
        self.of_task.setdefault(self.number, []).append((strength, accuracy))
        if self.tried:
            self.tried(self.number, len(self.of_task[self.number]))


@pytest.fixture
def decaying(settings):
    return dataclasses.replace(settings, strength="decay:0.05")


@pytest.mark.parametrize("penalty", slow_but("decoupled", ["in_loss", "decoupled"]))
def test_a_run_says_which_strengths_it_took_and_why(stream, decaying, tmp_path, penalty):
    asked = dataclasses.replace(decaying, penalty=penalty)
    tried = Tried()
    result = train(stream, asked, tmp_path, listeners=[tried])
    assert result["strength"] == "decay:0.05"
    none, second, third = result["decayed"]
    assert none is None  # nothing is held while the first task is learned
    assert result["strengths"] == [0.0, second["tries"][-1][0], third["tries"][-1][0]]
    assert result["strengths"][1] > 0
    assert third["tries"][0][0] == second["tries"][-1][0]  # it begins where the last task ended
    for number, found in [(2, second), (3, third)]:
        assert tried.of_task[number] == [(0.0, found["best"]), *map(tuple, found["tries"])]
        strengths, accuracies = zip(*found["tries"], strict=True)
        assert all(a == 2 * b for a, b in zip(strengths, strengths[1:], strict=False))
        enough = [accuracy >= 0.95 * found["best"] for accuracy in accuracies]
        assert enough == [False] * (len(enough) - 1) + [True]


@pytest.mark.slow
def test_trying_changes_nothing(stream, decaying, tmp_path):
    # A run whose λ is given as what was found learns the same.
    found = train(stream, decaying, tmp_path / "found", evaluate_on="validation")
    second = found["strengths"][1]
    other = dataclasses.replace(decaying, strength=second)
    given = train(stream, other, tmp_path / "given", evaluate_on="validation")
    assert given["accuracy_matrix"][:2] == found["accuracy_matrix"][:2]
    weights = [
        [w for model in saved_heads(tmp_path / name, 2)[0].values() for w in model.get_weights()]
        for name in ("found", "given")
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
    # The accuracy of the try that was taken is the one that the run then reaches.
    for number in (1, 2):
        tried = found["decayed"][number]["tries"][-1][1]
        assert tried == found["accuracy_matrix"][number][number]


@pytest.mark.slow
def test_a_run_goes_on_among_its_tries(stream, decaying, tmp_path):
    whole = train(stream, decaying, tmp_path / "whole")

    def stop(number, tries):
        if (number, tries) == (3, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stream, decaying, tmp_path / "parts", listeners=[Tried(tried=stop)])
    known = read_json(tmp_path / "parts/tries.json")
    assert known["task"] == 3
    assert len(known["tries"]) == 2
    # A value that only a run that reads the file can know of.
    known["tries"][0][1] = 0.0
    write_json(tmp_path / "parts/tries.json", known)
    parts = train(stream, decaying, tmp_path / "parts")
    assert parts["decayed"][2]["best"] == 0.0
    known = whole["decayed"][1]
    assert parts["decayed"][1] == known
    assert parts["accuracy_matrix"][:2] == whole["accuracy_matrix"][:2]


class Lockable(MemoryArray):
    """Inputs that cannot be read while they are locked."""

    is_locked = False

    def read(self, rows):
        assert not self.is_locked, "read while another task is being learned"
        return super().read(rows)


def with_locks(task):
    splits = [
        Split(Lockable(task.splits[role].inputs), task.splits[role].labels)
        for role in ("train", "validation", "test")
    ]
    return Task(task.name, task.classes, *splits)


class Locking(Listener):
    """Locks all data of other tasks when a task starts, and test data until it has been learned."""

    def __init__(self, stream):
        self.stream = stream

    def task_started(self, number, task, epochs):
        for other in self.stream.tasks:
            for split in other.splits.values():
                split.source.is_locked = other is not task

    def importance_measured(self, examples, total):
        for task in self.stream.tasks:
            task.splits["test"].source.is_locked = False


@pytest.mark.slow
def test_no_data_of_another_task_is_read_until_the_task_has_been_learned(
    stream, decaying, tmp_path
):
    tasks = tuple(map(with_locks, stream.tasks))
    locked = TaskStream("insects", "task", tasks, rescale=(1.0, 0.0))
    result = train(locked, decaying, tmp_path / "locked", listeners=[Locking(locked)])
    assert min(result["strengths"][1:]) > 0
    # The lock holds: a method that does read earlier data is stopped.
    joint = dataclasses.replace(decaying, method="joint", strength=None)
    with pytest.raises(AssertionError, match="read while another task"):
        train(locked, joint, tmp_path / "joint", listeners=[Locking(locked)])
