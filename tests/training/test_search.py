import shutil

import pytest

from keras_mas.errors import UsageError
from keras_mas.training import search as search_module
from keras_mas.training.run import DivergedError
from keras_mas.training.run_directory import (
    DamagedError,
    InUseError,
    is_finished,
    read_json,
    write_json,
)
from keras_mas.training.search import search
from keras_mas.training.settings import SearchSpace, Settings


@pytest.fixture
def trained(monkeypatch):
    """Replace training by a formula with its maximum at λ = 1 that diverges above λ = 10."""
    asked = []

    def train(stream, settings, directory, **kwargs):
        directory.mkdir(parents=True, exist_ok=True)
        if is_finished(directory):
            return read_json(directory / "result.json")
        asked.append(settings.strength)
        if settings.strength > 10:
            raise DivergedError("The loss is nan.")
        accuracy = 0.5 if settings.strength == 0 else 1 / (1 + abs(settings.strength - 1))
        result = {"average_accuracy": accuracy, "forgetting": 0.0}
        write_json(directory / "result.json", result)
        return result

    monkeypatch.setattr(search_module, "train", train)
    return asked


def space(trials=12, tuner="random"):
    return SearchSpace(tuner, trials, strength_min=1e-3, strength_max=1e3)


@pytest.mark.parametrize("tuner", ["random", "bayesian"])
def test_the_best_is_first_and_a_failure_is_last(trained, stream, settings, tmp_path, tuner):
    heard = []
    trials, _ = search(stream, settings, space(tuner=tuner), tmp_path, on_trial=heard.append)
    assert len(trials) == len(heard) == len(trained) == 13
    ended = [trial for trial in trials if trial.result]
    failed = [trial for trial in trials if not trial.result]
    assert failed
    assert all(trial.strength > 10 and trial.error == "The loss is nan." for trial in failed)
    assert trials == ended + failed
    accuracies = [trial.result["average_accuracy"] for trial in ended]
    assert accuracies == sorted(accuracies, reverse=True)


def test_a_finished_search_trains_nothing(trained, stream, settings, tmp_path):
    first, folder = search(stream, settings, space(), tmp_path)
    trained.clear()
    again, same_folder = search(stream, settings, space(), tmp_path)
    assert folder == same_folder
    assert [trial for trial in trained if trial] == []
    assert [(t.strength, t.result, t.error) for t in first] == [
        (t.strength, t.result, t.error) for t in again
    ]
    assert not any(trial.is_new for trial in again)


def test_an_interrupted_search_goes_on(trained, stream, settings, tmp_path, monkeypatch):
    whole, _ = search(stream, settings, space(), tmp_path / "whole")
    trained.clear()

    def interrupt(trial):
        if len(trained) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(stream, settings, space(), tmp_path / "cut", on_trial=interrupt)
    resumed, _ = search(stream, settings, space(), tmp_path / "cut")
    assert len(resumed) == len(whole)
    assert resumed[0].result is not None


def test_a_longer_search_goes_on_from_a_shorter_one(trained, stream, settings, tmp_path):
    short, folder = search(stream, settings, space(2), tmp_path)
    longer, same_folder = search(stream, settings, space(3), tmp_path)
    assert folder == same_folder
    assert {trial.strength for trial in short} < {trial.strength for trial in longer}
    assert sum(trial.is_new for trial in longer if trial.strength) == 1


def test_another_question_is_another_search(trained, stream, settings, tmp_path):
    _, folder = search(stream, settings, space(2), tmp_path)
    _, other = search(stream, settings, space(2, tuner="bayesian"), tmp_path)
    assert folder != other


def test_the_same_search_elsewhere_tries_the_same(trained, stream, settings, tmp_path):
    first, again = (search(stream, settings, space(3), tmp_path / name)[0] for name in "ab")
    assert [trial.strength for trial in first] == [trial.strength for trial in again]


def strengths(trials):
    return sorted(trial.strength for trial in trials)


@pytest.mark.parametrize("tuner", ["random", "bayesian"])
@pytest.mark.parametrize("broken", [b"", b"{", b"[]", b"{}", None, "gone"])
@pytest.mark.parametrize("name", ["oracle.json", "trial_2/trial.json"])
def test_a_damaged_state_is_named_and_its_cure_loses_no_training(
    trained, stream, settings, tmp_path, name, broken, tuner
):
    before, folder = search(stream, settings, space(4, tuner), tmp_path)
    count = len(trained)
    path = folder / name
    path.unlink()
    if broken is None:
        path.mkdir()
    elif broken != "gone":
        path.write_bytes(broken)
    with pytest.raises(DamagedError) as raised:
        search(stream, settings, space(4, tuner), tmp_path)
    assert str(raised.value).startswith(f"'{path}' is damaged: ")
    cure = f"Remove 'tuner0.json', 'oracle.json' and the 'trial_*' folders in '{folder}'"
    assert cure in str(raised.value)

    for path in [folder / "tuner0.json", folder / "oracle.json", *folder.glob("trial_*")]:
        if path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    after, _ = search(stream, settings, space(4, tuner), tmp_path)
    assert strengths(after) == strengths(before)
    assert len(trained) == count


def test_the_files_of_one_trial_can_be_removed(trained, stream, settings, tmp_path):
    before, folder = search(stream, settings, space(), tmp_path)
    failed, best = before[-1], before[0]
    (folder / f"strength-{failed.strength}" / "failure.json").write_text("{}")
    with pytest.raises(DamagedError, match=r"failure.json' is damaged: it has no 'error'. Remove"):
        search(stream, settings, space(), tmp_path)
    (folder / f"strength-{failed.strength}" / "failure.json").unlink()
    shutil.rmtree(folder / f"strength-{best.strength}")
    trained.clear()
    after, _ = search(stream, settings, space(), tmp_path)
    assert sorted(trained) == sorted([failed.strength, best.strength])
    assert [(trial.strength, trial.result) for trial in after] == [
        (trial.strength, trial.result) for trial in before
    ]


def test_an_error_that_is_not_the_fault_of_a_strength_ends_the_search(
    trained, stream, settings, tmp_path, monkeypatch
):
    learn = search_module.train

    def train(stream, settings, directory, **options):
        if len(trained) == 3:
            raise OSError(28, "No space left on device", str(directory))
        return learn(stream, settings, directory, **options)

    monkeypatch.setattr(search_module, "train", train)
    with pytest.raises(OSError, match="No space left"):
        search(stream, settings, space(), tmp_path)
    monkeypatch.setattr(search_module, "train", learn)
    trials, _ = search(stream, settings, space(), tmp_path)
    assert len(trials) == len(trained) == 13


def test_a_search_is_locked_and_can_start_anew(trained, stream, settings, tmp_path):
    def again(trial):
        with pytest.raises(InUseError, match="in use by process"):
            search(stream, settings, space(2), tmp_path)

    _, folder = search(stream, settings, space(2), tmp_path, on_trial=again)
    trained.clear()
    search(stream, settings, space(2), tmp_path, overwrite=True)
    assert len(trained) == 3
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="it holds 'notes.txt'"):
        search(stream, settings, space(2), tmp_path, overwrite=True)


def test_a_method_without_a_penalty_is_not_searched(trained, stream, tmp_path):
    with pytest.raises(UsageError, match="'finetune' has no penalty, so there is no λ to search"):
        search(stream, Settings(method="finetune"), space(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (9.0, 2.0)])
def test_an_empty_range_is_refused(low, high):
    with pytest.raises(UsageError, match=f"Received: {low:g} and {high:g}"):
        SearchSpace(strength_min=low, strength_max=high)
