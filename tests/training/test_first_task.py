import dataclasses
import threading

import numpy as np
import pytest
from cases import slow, slow_but

from keras_mas import SynapticMemory
from keras_mas.methods import METHODS, load_method
from keras_mas.training.first_task import learned_once, share
from keras_mas.training.learner import Learner
from keras_mas.training.listening import Listener
from keras_mas.training.run import train
from keras_mas.training.run_directory import RESULT, read_json
from keras_mas.training.saved_tasks import saved_heads

SHARING = [name for name in METHODS if not load_method(name).first_task_depends_on_strength]


class Started(Listener):
    def __init__(self):
        self.tasks = []

    def task_started(self, number, task, epochs):
        self.tasks.append(number)


def short(settings, **changes):
    """The settings with few steps, and others of the run or of its recipe."""
    own = {name: changes.pop(name) for name in ("method", "strength", "seed") if name in changes}
    recipe = dataclasses.replace(settings.recipe, **{"epochs": 2, **changes})
    return dataclasses.replace(settings, **own, recipe=recipe)


def sharing_run(stream, settings, folder, learner, name):
    started = Started()
    result = train(
        stream,
        settings,
        folder / name,
        listeners=[started],
        learner=learner,
        first_tasks=folder / "first-tasks",
    )
    return result, started.tasks


def weights(folder):
    models, _ = saved_heads(folder, 3)
    return [weight for model in models.values() for weight in model.get_weights()]


def learned_by_two(stream, first, second, folder):
    """Which tasks a run with the second settings learns after one with the first."""
    learner = Learner(stream)
    sharing_run(stream, first, folder, learner, "first")
    return sharing_run(stream, second, folder, learner, "second")


def without_times(result):
    """Return a result without what differs between equal runs; a file of a network has its time."""
    times = ("seconds", "file", "network")
    return {key: value for key, value in result.items() if key not in times}


def check_shared(stream, settings, folder):
    """Compare a run that goes on from the first task of one without λ with a run on its own."""
    weak = dataclasses.replace(settings, strength=0.0)
    shared, tasks = learned_by_two(stream, weak, settings, folder)
    assert tasks == [2, 3]
    alone = train(stream, settings, folder / "alone")
    assert without_times(shared) == without_times(alone)
    for a, b in zip(weights(folder / "second"), weights(folder / "alone"), strict=True):
        np.testing.assert_array_equal(a, b)
    assert shared != read_json(folder / "first" / RESULT)


@pytest.mark.parametrize("state", slow_but("fresh", ["fresh", "kept"]))
def test_a_run_that_goes_on_from_a_shared_first_task_is_the_run_on_its_own(
    stream, settings, tmp_path, state
):
    check_shared(stream, short(settings, optimizer_state=state, strength=3.0), tmp_path)
    assert SynapticMemory.load(tmp_path / "second/1/memory.npz").strength == 3.0
    assert SynapticMemory.load(tmp_path / "first/1/memory.npz").strength == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("penalty", ["in_loss", "decoupled"])
@pytest.mark.parametrize("method", [name for name in SHARING if load_method(name).has_strength])
def test_every_method_that_shares_its_first_task_may(stream, settings, tmp_path, method, penalty):
    if penalty == "decoupled" and not load_method(method).has_penalty:
        pytest.skip("it has no penalty")
    default = load_method(method).default_strength
    asked = short(settings, method=method, strength=default)
    check_shared(stream, dataclasses.replace(asked, penalty=penalty), tmp_path)


# The run is short: no plateau is found.
@pytest.mark.filterwarnings("ignore::keras_mas.methods.online_mas.NothingProtectedWarning")
def test_a_method_that_consolidates_within_a_task_does_not_share_it(stream, settings, tmp_path):
    asked = short(settings, method="online_mas", strength=3.0)
    weak = dataclasses.replace(asked, strength=0.0)
    _, tasks = learned_by_two(stream, weak, asked, tmp_path)
    assert tasks == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "learned"),
    [
        ({"seed": 5}, [1, 2, 3]),
        slow({"learning_rate": 0.01}, [1, 2, 3]),
        ({"first_epochs": 2, "epochs": 3}, [2, 3]),  # the first task is as it was
    ],
)
def test_a_first_task_is_shared_where_it_is_the_same(stream, settings, tmp_path, change, learned):
    _, tasks = learned_by_two(stream, short(settings), short(settings, **change), tmp_path)
    assert tasks == learned


def test_a_first_task_that_was_cut_off_is_not_shared(stream, settings, tmp_path):
    class Cut(Listener):
        def importance_measured(self, examples, total):
            raise KeyboardInterrupt

    learner, shared = Learner(stream), tmp_path / "first-tasks"
    with pytest.raises(KeyboardInterrupt):
        train(
            stream,
            short(settings),
            tmp_path / "cut",
            listeners=[Cut()],
            learner=learner,
            first_tasks=shared,
        )
    _, tasks = sharing_run(stream, short(settings), tmp_path, learner, "whole")
    assert tasks == [1, 2, 3]


def test_of_two_processes_one_waits_for_the_other(tmp_path):
    folder, entered = tmp_path / "first-tasks" / "abc", threading.Event()
    order = []

    def second():
        entered.set()
        with learned_once(folder):
            order.append("second")

    waiting = threading.Thread(target=second)
    with learned_once(folder):
        waiting.start()
        entered.wait()
        waiting.join(0.1)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_what_another_process_learned_meanwhile_stays(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "model.keras").write_text("mine")
    share(tmp_path / "saved", tmp_path / "first-tasks" / "abc")
    (tmp_path / "saved" / "model.keras").unlink()
    (tmp_path / "saved" / "model.keras").write_text("of another")
    share(tmp_path / "saved", tmp_path / "first-tasks" / "abc")
    assert (tmp_path / "first-tasks" / "abc" / "model.keras").read_text() == "mine"
    assert [path.name for path in (tmp_path / "first-tasks").iterdir()] == ["abc"]
    with pytest.raises(FileNotFoundError):
        share(tmp_path / "nothing", tmp_path / "first-tasks" / "def")
