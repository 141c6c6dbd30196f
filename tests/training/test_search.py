import pytest

from keras_mas.training import search as search_module
from keras_mas.training.search import search
from keras_mas.training.settings import SearchSpace


@pytest.fixture
def trained(monkeypatch):
    """Replace training by a formula with its maximum at λ = 1, and by a crash above λ = 10."""
    asked = []

    def train(stream, settings, directory, **kwargs):
        directory.mkdir(parents=True, exist_ok=True)
        asked.append(settings.strength)
        if settings.strength > 10:
            raise MemoryError("too much\nof everything")
        accuracy = 0.5 if settings.strength == 0 else 1 / (1 + abs(settings.strength - 1))
        result = {"average_accuracy": accuracy, "forgetting": 0.0}
        search_module.write_json(directory / "result.json", result)
        return result

    monkeypatch.setattr(search_module, "train", train)
    return asked


def space(trials=12, tuner="random"):
    return SearchSpace(tuner, trials, strength_min=1e-3, strength_max=1e3)


@pytest.mark.parametrize("tuner", ["random", "bayesian"])
def test_the_best_is_first_and_a_crash_is_last(trained, stream, settings, tmp_path, tuner):
    heard = []
    trials, _ = search(stream, settings, space(tuner=tuner), tmp_path, on_trial=heard.append)
    assert len(trials) == len(heard) == len(trained) == 13
    ended = [trial for trial in trials if trial.result]
    failed = [trial for trial in trials if not trial.result]
    assert failed
    assert all(trial.strength > 10 and trial.error == "too much" for trial in failed)
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
