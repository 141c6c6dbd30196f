import dataclasses
import json
import shutil

import numpy as np
import pytest
from cases import slow, slow_but

from keras_mas.errors import UsageError
from keras_mas.methods import load_method
from keras_mas.training.learner import Learner
from keras_mas.training.listening import Listener
from keras_mas.training.run import train
from keras_mas.training.run_directory import (
    DamagedError,
    InUseError,
    VanishedError,
)
from keras_mas.training.search import trials as trials_module
from keras_mas.training.search.plan import Observer
from keras_mas.training.search.recommend import NoTrialError
from keras_mas.training.search.search import search
from keras_mas.training.search.space import SearchSpace
from keras_mas.training.search.trial import COMPLETED, FAILED, STOPPED
from keras_mas.training.settings import Recipe, Settings


class Heard(Observer):
    def __init__(self, on_end=lambda trial: None):
        self.trials, self.on_end, self.lines = [], on_end, []

    def trial_ended(self, trial):
        self.trials.append(trial)
        self.on_end(trial)

    def said(self, text):
        self.lines.append(text)


def space(trials=8, tuner="random", **options):
    return SearchSpace(tuner, trials, strength_min=1e-3, strength_max=1e3, **options)


def told(found):
    """What a search found, without what depends on when it was trained."""
    return [(t.values, t.state, t.reason, list(t.results), t.bound) for t in found.trials]


@pytest.mark.parametrize("tuner", slow_but("random", ["random", "bayesian"]))
def test_the_best_is_first_and_failures_are_last(trained, stream, settings, tmp_path, tuner):
    heard = Heard()
    found = search(stream, settings, space(12, tuner), tmp_path, observer=heard)
    assert len(found.trials) == len(heard.trials) == len(trained) == 13
    assert len({trial.strength for trial in found.trials}) == 13
    states = [trial.state for trial in found.trials]
    assert states == sorted(states, key=(COMPLETED, STOPPED, FAILED).index)
    assert set(states) == {COMPLETED, STOPPED, FAILED}
    for trial in found.trials:
        assert (trial.state == FAILED) == (trial.strength > 100)
    assert found.trials[-1].reason == "The loss is nan."
    accuracies = [trial.accuracy for trial in found.trials if trial.is_completed]
    assert accuracies == sorted(accuracies, reverse=True)


def test_no_protection_and_the_settings_as_they_are_come_first(trained, stream, settings, tmp_path):
    search(stream, dataclasses.replace(settings, strength=3.0), space(1), tmp_path)
    assert [strength for strength, _ in trained] == [0.0, 3.0]


@pytest.mark.parametrize(
    ("vary", "values"),
    [
        ("epochs=1,2,4", {"epochs": 2}),  # as given
        ("epochs=3,1", {"epochs": 3}),
        ("epochs=5..9", {"epochs": 5}),
        ("learning-rate=1e-5..1e-4", {"learning_rate": 1e-4}),  # the end next to 0.5
        ("first-epochs=3..9", {"first_epochs": 3}),  # not given
        ("weights=a.npz,b.npz", {"weights": "a.npz"}),
        ("method=finetune,mas,ewc", {"method": "finetune"}),  # which mas with λ = 0 is
        ("method=joint,mas", {"method": "mas"}),  # joint has no λ
    ],
)
def test_no_protection_is_compared_within_the_space(trained, stream, tmp_path, vary, values):
    given = Settings("si", recipe=Recipe(epochs=2, learning_rate=0.5))
    heard = Heard()
    search(stream, given, space(1, vary=vary), tmp_path, observer=heard)
    first, *others = heard.trials
    without = {} if values.get("method") == "finetune" else {"strength": 0.0}
    assert first.values == without | values
    if "method" not in values:
        assert others[0].others() == values  # the two differ in λ alone


def test_when_all_that_differ_have_been_tried_that_is_said(trained, stream, settings, tmp_path):
    heard = Heard()
    asked = SearchSpace("grid", 12, 0.1, 1.0, vary="method=finetune,mas penalty=in_loss,decoupled")
    found = search(stream, settings, asked, tmp_path, observer=heard)
    assert len(found.trials) == 7  # six of mas, one of finetune, which λ = 0 is
    assert heard.lines == ["7 trials are all: others would differ in nothing used"]


def test_a_strength_outside_the_range_is_not_tried(trained, stream, settings, tmp_path):
    search(stream, dataclasses.replace(settings, strength=5000.0), space(1), tmp_path)
    assert trained[1][0] <= 1000


def test_a_trial_that_cannot_win_is_stopped_and_not_recommended(
    trained, stream, settings, tmp_path
):
    # λ = 5 comes before them and ends at 0.943. λ = 50 learns each task to 2/3, and would with what
    # λ = 0 learns of the others, reach (2/3 + 1 + 1) / 3 = 0.889.
    asked = SearchSpace("grid", 3, strength_min=5.0, strength_max=50.0)
    found = search(stream, settings, asked, tmp_path)
    stopped = {t.strength: t.reason for t in found.trials if t.state == STOPPED}
    assert set(stopped) == {15.81, 50.0}
    assert stopped[15.81].startswith("stopped after task 2 of 3: at most 0.908")
    assert stopped[50.0].startswith(
        "stopped after task 1 of 3: at most 0.8889 is expected, and 0.93"
    )
    assert found.recommendation().trial.strength == 5.0
    complete = dataclasses.replace(asked, complete_trials=True)
    assert all(t.is_completed for t in search(stream, settings, complete, tmp_path).trials)


def test_a_finished_search_trains_nothing(trained, stream, settings, tmp_path):
    first = search(stream, settings, space(), tmp_path)
    trained.clear()
    again = search(stream, settings, space(), tmp_path)
    assert first.folder == again.folder
    assert trained == []
    assert told(first) == told(again)
    assert not any(trial.is_new for trial in again.trials)


@pytest.mark.parametrize("tuner", ["random", slow("bayesian"), "grid"])
def test_an_interrupted_search_tries_the_same_as_one_that_was_not(
    trained, stream, settings, tmp_path, tuner
):
    asked = space(13, tuner)
    whole = search(stream, settings, asked, tmp_path / "whole")
    of_whole = list(trained)
    trained.clear()

    def interrupt(trial):
        if len(trained) in (2, 7):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search(stream, settings, asked, tmp_path / "cut", observer=Heard(interrupt))
        interrupted = len(trained)
        assert interrupted in (2, 7)
        if interrupted == 2:
            trained.append(None)  # so that the same count does not interrupt again
    resumed = search(stream, settings, asked, tmp_path / "cut")
    assert [each for each in trained if each] == of_whole
    assert told(resumed) == told(whole)


@pytest.mark.parametrize("tuner", slow_but("random", ["random", "bayesian"]))
def test_a_longer_search_goes_on_from_a_shorter_one(trained, stream, settings, tmp_path, tuner):
    short = search(stream, settings, space(4, tuner), tmp_path)
    longer = search(stream, settings, space(6, tuner), tmp_path)
    assert short.folder == longer.folder
    assert {t.strength for t in short.trials} < {t.strength for t in longer.trials}
    assert sum(trial.is_new for trial in longer.trials) == 2
    at_once = search(stream, settings, space(6, tuner), tmp_path / "at-once")
    assert told(longer) == told(at_once)


def test_a_shorter_search_says_what_it_leaves_out(trained, stream, settings, tmp_path):
    heard = Heard()
    search(stream, settings, space(4), tmp_path, observer=heard)
    assert heard.lines == []
    search(stream, settings, space(1), tmp_path, observer=heard)
    [line] = heard.lines
    assert line.startswith("3 more were proposed by an earlier search of more --trials")


@pytest.mark.parametrize(
    "change",
    [
        {"tuner": "bayesian"},
        {"strength_max": 100.0},
        {"vary": "penalty=in_loss,decoupled"},
        {"executions_per_trial": 2},
        {"max_forgetting": 0.1},
        {"complete_trials": True},
    ],
)
def test_another_question_is_another_search(trained, stream, settings, tmp_path, change):
    found = search(stream, settings, space(1), tmp_path)
    other = search(stream, settings, dataclasses.replace(space(1), **change), tmp_path)
    assert found.folder != other.folder


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b"{}", b'{"proposals": [{}]}'])
def test_damaged_proposals_are_named_and_the_cure_loses_no_training(
    trained, stream, settings, tmp_path, broken
):
    before = search(stream, settings, space(4, "bayesian"), tmp_path)
    count = len(trained)
    path = before.folder / "proposals.json"
    path.write_bytes(broken)
    with pytest.raises(DamagedError, match="is damaged: .* Remove it, and run") as raised:
        search(stream, settings, space(4, "bayesian"), tmp_path)
    assert str(path) in str(raised.value)
    path.unlink()
    assert told(search(stream, settings, space(4, "bayesian"), tmp_path)) == told(before)
    assert len(trained) == count


def test_the_files_of_one_trial_can_be_removed(trained, stream, settings, tmp_path):
    asked = space(12, complete_trials=True)
    before = search(stream, settings, asked, tmp_path)
    failed, best = before.trials[-1], before.trials[0]
    runs = before.folder / "trials"
    (runs / f"strength-{failed.strength}" / "failure.json").write_text("{}")
    with pytest.raises(DamagedError, match=r"failure.json' is damaged: it has no 'error'. Remove"):
        search(stream, settings, asked, tmp_path)
    (runs / f"strength-{failed.strength}" / "failure.json").unlink()
    shutil.rmtree(runs / f"strength-{best.strength}")
    trained.clear()
    after = search(stream, settings, asked, tmp_path)
    assert sorted(s for s, _ in trained) == sorted([failed.strength, best.strength])
    assert told(after) == told(before)


def test_a_damaged_description_of_a_trial_costs_that_trial_alone(stream, settings, tmp_path):
    quick = dataclasses.replace(settings, recipe=dataclasses.replace(settings.recipe, epochs=1))
    found = search(stream, quick, space(1), tmp_path)
    run = found.folder / "trials" / "strength-0.0"
    for file in ("arguments.json", "result.json"):
        whole = (run / file).read_bytes()
        (run / file).write_text("{")
        with pytest.raises(DamagedError, match=f"{file}' is damaged") as raised:
            search(stream, quick, space(1), tmp_path)
        assert "overwrite" not in str(raised.value) and "train" not in str(raised.value)
        (run / file).write_bytes(whole)
    assert "Remove it, and run the command that wrote it again." in str(raised.value)


def failing(monkeypatch, error, at):
    """Have the training of the trial of a number, from 1, fail."""
    learn, count = trials_module.train, []

    def train(stream, settings, directory, **options):
        count.append(settings.strength)
        if len(count) == at:
            raise error
        return learn(stream, settings, directory, **options)

    monkeypatch.setattr(trials_module, "train", train)
    return count


def test_a_crashed_trial_is_named_and_tried_again_the_next_time(
    trained, stream, settings, tmp_path, monkeypatch
):
    asked = failing(monkeypatch, ValueError("shapes\ndiffer"), at=3)
    found = search(stream, settings, space(4), tmp_path)
    [crashed] = [trial for trial in found.trials if "crashed" in trial.reason]
    assert (crashed.state, crashed.reason) == (FAILED, "crashed: ValueError: shapes differ")
    assert crashed.strength == asked[2]
    assert len(asked) == 5  # the others went on
    again = search(stream, settings, space(4), tmp_path)
    assert asked[5:] == [crashed.strength]
    assert not any("crashed" in trial.reason for trial in again.trials)


@pytest.mark.parametrize(
    ("error", "at"),
    [(OSError(28, "No space left"), 3), (VanishedError("removed"), 3), (TypeError("x"), 1)],
)
def test_an_error_that_would_come_again_ends_the_search(
    trained, stream, settings, tmp_path, monkeypatch, error, at
):
    failing(monkeypatch, error, at)
    with pytest.raises(type(error)):
        search(stream, settings, space(4), tmp_path)
    assert len(search(stream, settings, space(4), tmp_path).trials) == len(trained) == 5


def test_a_search_in_which_nothing_is_completed_recommends_nothing(
    trained, stream, settings, tmp_path
):
    diverging = SearchSpace("random", 2, strength_min=200.0, strength_max=300.0)
    found = search(stream, settings, diverging, tmp_path)
    assert found.recommendation().trial.strength == 0.0
    found = dataclasses.replace(found, trials=found.trials[1:])
    with pytest.raises(NoTrialError, match="No trial was completed: 2 of 2 failed. The last one"):
        found.recommendation()


def test_the_highest_accuracy_with_bounded_forgetting(trained, stream, settings, tmp_path):
    # 5, 16 and 50 keep 0.990, 0.997 and 0.999 of a task each time another is learned.
    asked = SearchSpace("grid", 3, 5.0, 50.0, max_forgetting=0.005, complete_trials=True)
    found = search(stream, settings, asked, tmp_path)
    assert found.recommendation().trial.strength == 15.81
    impossible = dataclasses.replace(asked, max_forgetting=1e-6)
    found = search(stream, settings, impossible, tmp_path)
    with pytest.raises(NoTrialError, match=r"None of 4 trials forgets at most 1e-06. The least is"):
        found.recommendation()


def test_every_trial_is_run_with_several_seeds(trained, stream, settings, tmp_path):
    asked = space(1, executions_per_trial=3, complete_trials=True)
    found = search(stream, dataclasses.replace(settings, seed=5), asked, tmp_path)
    assert trained == [(s, seed) for s in (0.0, 1.0) for seed in (5, 6, 7)]
    assert found.trials[0].standard_error == 0.0  # the formula does not look at the seed


def test_a_search_is_locked_and_can_start_anew(trained, stream, settings, tmp_path):
    def again(trial):
        with pytest.raises(InUseError, match="in use by process"):
            search(stream, settings, space(2), tmp_path)

    found = search(stream, settings, space(2), tmp_path, observer=Heard(again))
    trained.clear()
    search(stream, settings, space(2), tmp_path, overwrite=True)
    assert len(trained) == 3
    (found.folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="it holds 'notes.txt'"):
        search(stream, settings, space(2), tmp_path, overwrite=True)


def test_a_method_without_a_penalty_is_searched_for_other_options(
    trained, stream, tmp_path, settings
):
    plain = dataclasses.replace(settings, method="finetune")
    with pytest.raises(UsageError, match="'finetune' has no penalty, so there is no λ to search"):
        search(stream, plain, space(), tmp_path)
    assert not list(tmp_path.iterdir())
    found = search(stream, plain, space(3, vary="epochs=1,2,3"), tmp_path)
    assert sorted(trial.values["epochs"] for trial in found.trials) == [1, 2, 3]
    assert all(trial.strength is None for trial in found.trials)
    again = search(stream, plain, space(3, vary="epochs=1,2,3"), tmp_path)
    assert told(again) == told(found)
    assert len(trained) == 3


def test_methods_side_by_side(trained, stream, settings, tmp_path):
    asked = SearchSpace("grid", 6, 0.5, 5.0, vary="method=mas,finetune", complete_trials=True)
    found = search(stream, settings, asked, tmp_path)
    names = sorted(trial.name for trial in found.trials)
    assert names == [  # fine-tuning once, whatever λ, and MAS with λ = 0 is the same
        "method=finetune",
        "λ=0.5 method=mas",
        "λ=1.581 method=mas",
        "λ=5 method=mas",
    ]


def test_merging_without_a_penalty_is_not_fine_tuning(trained, stream, settings, tmp_path):
    merging = dataclasses.replace(settings, method="imm_mean")
    asked = SearchSpace("grid", 6, 0.5, 5.0, vary="method=imm_mean,finetune", complete_trials=True)
    names = [trial.name for trial in search(stream, merging, asked, tmp_path).trials]
    assert {"λ=0 method=imm_mean", "method=finetune"} < set(names)


# With real training.


class Tasks(Observer, Listener):
    """Notes which tasks are learned, in which trials; interrupts at one of them."""

    def __init__(self, interrupt_at=None):
        self.learned, self.interrupt_at = [], interrupt_at

    def trial_started(self, name):
        self.name = name
        return [self]

    def task_started(self, number, task, epochs):
        if len(self.learned) == self.interrupt_at:
            raise KeyboardInterrupt
        self.learned.append((self.name, number))


@pytest.fixture
def quick(settings):
    return dataclasses.replace(settings, recipe=dataclasses.replace(settings.recipe, epochs=2))


@pytest.mark.slow
def test_the_first_task_is_learned_once_and_models_do_not_stay(stream, quick, tmp_path):
    tasks = Tasks()
    asked = space(3, complete_trials=True)
    found = search(stream, quick, asked, tmp_path, observer=tasks)
    assert [number for _, number in tasks.learned] == [1, 2, 3, 2, 3, 2, 3, 2, 3]
    assert [trial.learned for trial in found.trials if trial.strength == 0] == [3]
    kept = {path.name for path in (found.folder / "trials").glob("*/*") if path.name[0] != "."}
    assert kept == {"arguments.json", "result.json"}
    for trial in found.trials:
        alone = train(stream, trial.settings, tmp_path / "alone", evaluate_on="validation")
        assert trial.results[0]["accuracy_matrix"] == alone["accuracy_matrix"]
        shutil.rmtree(tmp_path / "alone")


@pytest.mark.parametrize(("method", "measured"), [("mas", 2), ("lwf", 2), ("imm_mean", 3)])
def test_a_trial_does_after_its_last_task_what_changes_its_answers_alone(
    stream, settings, tmp_path, monkeypatch, method, measured
):
    # Merging, which IMM does after a task, changes them; the importance of the last task does not.
    recipe = dataclasses.replace(settings.recipe, epochs=1)
    asked = dataclasses.replace(settings, method=method, recipe=recipe)
    whole = train(stream, asked, tmp_path / "whole", evaluate_on="validation")
    kind, calls = load_method(method), []
    after_task = kind.after_task
    monkeypatch.setattr(
        kind, "after_task", lambda *args, **kwargs: calls.append(1) or after_task(*args, **kwargs)
    )
    options = {"evaluate_on": "validation", "keeps_models": False}
    trial = train(stream, asked, tmp_path / "trial", **options)
    assert len(calls) == measured
    assert trial["accuracy_matrix"] == whole["accuracy_matrix"]
    assert trial["cross_entropy"] == whole["cross_entropy"]
    tasks = Tasks()
    listeners = tasks.trial_started("again")
    again = train(stream, asked, tmp_path / "trial", listeners=listeners, **options)
    assert (again, tasks.learned) == (trial, [])  # it is read
    assert (tmp_path / "whole/3/model.keras").exists() and (tmp_path / "whole/model.keras").exists()
    assert not (tmp_path / "trial/3").exists() and not (tmp_path / "trial/model.keras").exists()


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 5])
def test_a_trial_goes_on_after_its_last_task(stream, quick, tmp_path, at):
    whole = search(stream, quick, space(2), tmp_path / "whole", learner=Learner(stream))
    cut = Tasks(interrupt_at=at)
    with pytest.raises(KeyboardInterrupt):
        search(stream, quick, space(2), tmp_path / "cut", observer=cut)
    rest = Tasks()
    resumed = search(stream, quick, space(2), tmp_path / "cut", observer=rest)
    of_whole = {(name, 1) for name, number in cut.learned + rest.learned if number == 1}
    assert len(of_whole) == 1
    assert len(set(cut.learned) | set(rest.learned)) == len(cut.learned) + len(rest.learned)
    for a, b in zip(resumed.trials, whole.trials, strict=True):
        assert a.values == b.values
        assert [r["accuracy_matrix"] for r in a.results] == [
            r["accuracy_matrix"] for r in b.results
        ]


def test_what_is_written_can_be_read(trained, stream, settings, tmp_path):
    found = search(stream, settings, space(2, "bayesian"), tmp_path)
    content = json.loads((found.folder / "proposals.json").read_text())
    assert [each["strength"] for each in content["proposals"]] == [s for s, _ in trained][1:]
    assert all(np.isfinite(each["strength"]) for each in content["proposals"])
    assert Settings(strength=content["proposals"][-1]["strength"])
