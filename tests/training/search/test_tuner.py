"""The tuner for a user's own models: what a trial does, what is refused, and how it goes on."""

import errno
import functools
import gc
import os
import re
import socket
import threading
import warnings
import weakref
from pathlib import Path

import keras
import keras_tuner as kt
import numpy as np
import pytest
import tensorflow as tf
from keras_tuner.src.distribute import oracle_chief

import keras_mas
from keras_mas import metrics
from keras_mas.training import ContinualHyperModel, ContinualTuner
from keras_mas.training.run_directory import locked
from keras_mas.training.search.own_tasks import own_tasks

GUIDE = Path(__file__).parents[3] / "docs/tuning-your-own-model.md"


def part(seed, count, first):
    """Two classes around opposite points, which every task has of its own."""
    centre = np.random.default_rng(first).normal(size=4)
    labels = np.arange(count) % 2
    noise = np.random.default_rng(seed).normal(0, 0.4, [count, 4])
    return (noise + np.where(labels, 1, -1)[:, None] * centre).astype("float32"), labels


TASKS = {name: (part(1, 64, k), part(2, 32, k)) for k, name in enumerate(["ants", "bees"])}
X, Y = part(0, 8, 0)
FIT = {"epochs": 4, "batch_size": 16, "verbose": 0}


def layers(model=keras.Model, **options):
    inputs = keras.Input([4])
    hidden = keras.layers.Dense(8, "relu")(inputs)
    return model(inputs, keras.layers.Dense(2)(hidden), **options)


def stock(hp):
    hp.Float("strength", 1e-1, 1e3, sampling="log")
    hp.Fixed("learning_rate", 0.05)
    return layers()


def own_memory(hp):
    hp.Fixed("learning_rate", 0.05)
    strength = hp.Float("strength", 1e-1, 1e3, sampling="log")
    return layers(keras_mas.MASModel, strength=strength)


def fixed(strength):
    def build(hp):
        hp.Fixed("strength", strength)
        return layers()

    return build


def with_heads(hp):
    hp.Choice("strength", [0.0, 300.0])
    hp.Fixed("learning_rate", 0.2)
    inputs = keras.Input([4])
    return keras_mas.MultiHead(keras.Model(inputs, keras.layers.Dense(2, "tanh")(inputs)))


def random(trials=2, **options):
    return kt.oracles.RandomSearchOracle(max_trials=trials, seed=3, **options)


def grid(**options):
    return kt.oracles.GridSearchOracle(**options)


def made(build=stock, oracle=None, folder="", **options):
    return ContinualTuner(
        build, oracle or random(), directory=str(folder), project_name="p", **options
    )


def measured(tuner, name):
    trials = sorted(tuner.oracle.trials.values(), key=lambda trial: trial.trial_id)
    return [trial.metrics.get_best_value(name) for trial in trials]


def by_hand(strength):
    """The accuracy matrix of what the README says to do with a Keras model."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    model = layers()
    memory = keras_mas.SynapticMemory(strength).protect(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss, metrics=["accuracy"])
    rows = []
    for train, _ in TASKS.values():
        model.fit(*train, **FIT)
        memory.consolidate(model, train[0])
        predicted = [
            np.argmax(model.predict(x, verbose=0), -1) == y for _, (x, y) in TASKS.values()
        ]
        rows.append([float(np.mean(right)) for right in predicted])
    return rows


def test_a_trial_is_what_one_would_do_by_hand(tmp_path):
    tuner = made(oracle=random(1), folder=tmp_path)
    tuner.search(TASKS, **FIT)
    rows = by_hand(tuner.get_best_hyperparameters()[0]["strength"])
    assert measured(tuner, "average_accuracy") == [metrics.average_accuracy(rows)]
    assert measured(tuner, "forgetting") == [metrics.forgetting(rows)]
    assert measured(tuner, "backward_transfer") == [metrics.backward_transfer(rows)]
    assert [measured(tuner, f"accuracy/{name}") for name in TASKS] == [[a] for a in rows[-1]]
    # A model with a memory of its own learns the same.
    other = made(own_memory, random(1), tmp_path / "own")
    other.search(TASKS, **FIT)
    assert measured(other, "average_accuracy") == measured(tuner, "average_accuracy")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A finished search with heads, the models that were built, and the folder."""
    folder = tmp_path_factory.mktemp("search")
    living = weakref.WeakSet()

    class Build(ContinualHyperModel):
        def build(self, hp):
            heads = with_heads(hp)
            living.add(heads.trunk)
            return heads

    tuner = made(Build(), grid(), folder)
    logs = keras.callbacks.TensorBoard(str(folder / "logs"))
    tuner.search(TASKS, callbacks=[logs], **FIT)
    return tuner, living, folder


@pytest.mark.slow
def test_strength_holds_the_first_task(searched):
    tuner, *_ = searched
    # The grid tries λ = 0 first, and λ = 300 then.
    free, held = measured(tuner, "forgetting")
    assert free > held + 0.1
    assert held < 0.05


def test_memory_and_disk_do_not_grow_with_the_trials(searched):
    _, living, folder = searched
    gc.collect()
    assert len(living) <= 1
    assert len(list(folder.glob("p/trial_*/learned.npz"))) == 1


def test_the_best_model_is_what_the_best_trial_had_learned(searched):
    tuner, *_ = searched
    [model] = tuner.get_best_models()
    found = max(tuner.oracle.trials.values(), key=lambda trial: trial.score)
    for name, (_, (x, y)) in TASKS.items():
        right = np.argmax(model.predict(x, verbose=0)[name], axis=-1) == y
        assert np.mean(right) == found.metrics.get_best_value(f"accuracy/{name}")
    assert not model.losses  # nothing holds it any more
    with pytest.raises(ValueError, match="at most 1 models.*keep_models=2"):
        tuner.get_best_models(2)


def test_tensorboard_is_told_of_each_trial_and_task(searched):
    _, _, folder = searched
    for trial in ("0000", "0001"):
        execution = folder / "logs" / trial / "execution0"
        assert list(execution.glob("events*"))  # HParams
        assert all(list((execution / name).rglob("events*")) for name in TASKS)


def test_the_guide_has_a_script_of_twenty_lines_that_runs(tmp_path, monkeypatch, capsys):
    [script] = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    lines = [line for line in script.splitlines() if line and "import" not in line]
    assert len(lines) <= 20
    monkeypatch.chdir(tmp_path)
    exec(script.replace("max_trials=10", "max_trials=1").replace("(0, 2, 4, 6, 8)", "(0, 2)"), {})
    assert "trial 0  average_accuracy 0.9" in capsys.readouterr().out


# What follows trains nothing: a trial's accuracies are a formula of λ.


@pytest.fixture
def trained(monkeypatch):
    """Replace the training: return what was asked of it; what is to go wrong may be added."""
    asked, wrong = [], {}

    def learned(self, network, trial, execution, tasks, fit_arguments):
        strength = trial.hyperparameters["strength"]
        asked.append(strength)
        if (len(asked) - 1) in wrong:
            raise wrong[len(asked) - 1]
        if strength > 100:
            return None
        return [[1.0, 0.5], [0.5 + strength / 200, 0.8]]

    monkeypatch.setattr(ContinualTuner, "_learned", learned)
    monkeypatch.setattr(ContinualTuner, "_network", lambda *_: None)
    monkeypatch.setattr(ContinualTuner, "_save", lambda *_: None)
    learned.asked, learned.wrong = asked, wrong
    return learned


def strengths(*values):
    def build(hp):
        hp.Choice("strength", list(values))
        return layers()

    return build


def test_a_bound_on_forgetting_changes_what_is_best(trained, tmp_path):
    # λ = 10 forgets 0.45 and reaches 0.675 on average; λ = 100 forgets nothing, and reaches 0.9.
    tuner = made(strengths(10.0, 90.0), grid(), tmp_path, max_forgetting=0.1)
    tuner.search(TASKS, epochs=1)
    expected = [0.675 - 10 * (0.45 - 0.1), 0.875]
    assert measured(tuner, "bounded_accuracy") == pytest.approx(expected)
    assert tuner.oracle.objective.name == "bounded_accuracy"


@pytest.mark.filterwarnings("ignore:1 of 2 trials gave no result")
def test_a_trial_that_diverged_is_the_worst_under_a_bound_on_forgetting_too(trained, tmp_path):
    # λ = 10 counts as 0.675 − 10 · (0.45 − 0), far below 0.
    tuner = made(strengths(10.0, 200.0), grid(), tmp_path, max_forgetting=0.0)
    tuner.search(TASKS)
    assert measured(tuner, "bounded_accuracy") == pytest.approx([0.675 - 4.5, 0.0 - 10.0])
    assert measured(tuner, "forgetting") == pytest.approx([0.45, 1.0])
    assert measured(tuner, "average_accuracy") == pytest.approx([0.675, 0.0])


def test_trials_that_crash_or_diverge_are_named_and_never_the_best(trained, tmp_path, capsys):
    trained.wrong[1] = RuntimeError("no room\nleft")
    tuner = made(strengths(200.0, 20.0, 50.0), grid(), tmp_path)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        tuner.search(TASKS)
    text = str(found[-1].message)
    assert "2 of 3 trials gave no result: " in text
    assert "trial 0000 diverged: strength 200" in text
    assert "trial 0001 failed: strength 20: left" in text
    best = tuner.get_best_hyperparameters(3)
    assert [hp["strength"] for hp in best] == [50.0]  # keras-tuner would add the other two
    tuner.results_summary()
    shown = capsys.readouterr().out.splitlines()
    assert any("average_accuracy 0.7750  forgetting 0.2500  strength 50" in line for line in shown)
    assert shown[-1].startswith("trial 0001 failed")


def test_failures_in_a_row_are_named(trained, tmp_path):
    trained.wrong |= {k: ValueError(f"Expected {k} inputs.") for k in range(3)}
    tuner = made(strengths(*(10.0 * k for k in range(1, 6))), grid(), tmp_path)
    with pytest.raises(RuntimeError) as raised:
        tuner.search(TASKS)
    text = str(raised.value)
    assert "Traceback" not in text
    assert "failed: strength 10: ValueError: Expected 0 inputs; trial 0001 failed" in text
    assert "Expected 2 inputs. After 3 failures in a row" in text
    assert len(trained.asked) == 3


def test_what_failed_ends_with_one_dot(trained, tmp_path):
    trained.wrong[0] = ValueError("Expected more.")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        made(strengths(10.0, 20.0), grid(), tmp_path).search(TASKS)
    assert str(found[-1].message).endswith("strength 10: ValueError: Expected more.")


def test_a_search_without_a_result_says_so(trained, tmp_path):
    tuner = made(strengths(200.0, 300.0), grid(), tmp_path)
    with pytest.raises(RuntimeError, match="Received: none of 2: trial 0000 diverged"):
        tuner.search(TASKS)


@pytest.mark.parametrize("oracle", [grid, lambda: random(4)])
def test_a_search_that_was_cut_off_goes_on(trained, tmp_path, oracle):
    values = [1.0, 2.0, 3.0, 4.0]
    whole = made(strengths(*values), oracle(), tmp_path / "whole")
    whole.search(TASKS)
    expected = list(trained.asked)
    trained.asked.clear()
    trained.wrong[2] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        made(strengths(*values), oracle(), tmp_path / "cut").search(TASKS)
    trained.wrong.clear()
    again = made(strengths(*values), oracle(), tmp_path / "cut")
    again.search(TASKS)
    # The third trial is made again; none is lost, and none of the others made twice.
    assert trained.asked == [*expected[:3], *expected[2:]]
    assert measured(again, "average_accuracy") == measured(whole, "average_accuracy")
    made(strengths(*values), oracle(), tmp_path / "cut").search(TASKS)
    assert len(trained.asked) == len(expected) + 1


def test_the_bayesian_oracle_goes_on_from_what_it_has_learned(trained, tmp_path):
    def build(hp):
        hp.Float("strength", 1.0, 90.0, sampling="log")
        return layers()

    def searched(folder):
        oracle = kt.oracles.BayesianOptimizationOracle(max_trials=5, num_initial_points=3, seed=3)
        tuner = made(build, oracle, folder)
        tuner.search(TASKS)
        return tuner

    whole = searched(tmp_path / "whole")
    expected = list(trained.asked)
    # Accuracy rises with λ: what is proposed from it lies above all that was drawn before.
    assert max(expected[3:]) > max(expected[:3])
    trained.asked.clear()
    trained.wrong[2] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "cut")
    trained.wrong.clear()
    again = searched(tmp_path / "cut")
    assert trained.asked == pytest.approx([*expected[:3], *expected[2:]], rel=1e-3)
    found = [tuner.get_best_hyperparameters()[0]["strength"] for tuner in (whole, again)]
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_worker_of_a_chief_reads_what_was_found_and_says_what_failed(
    trained, tmp_path, monkeypatch, capsys
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    monkeypatch.setenv("KERASTUNER_ORACLE_PORT", str(port))
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "chief")
    chief = made(strengths(10.0, 20.0, 90.0), grid(), tmp_path)
    chief.save()
    serving = threading.Thread(target=oracle_chief.start_server, args=[chief.oracle], daemon=True)
    serving.start()
    monkeypatch.setenv("KERASTUNER_TUNER_ID", "worker")
    trained.wrong[1] = RuntimeError("no room\nleft")
    worker = made(strengths(10.0, 20.0, 90.0), grid(), tmp_path)
    worker.search(TASKS)
    serving.join(60)
    worker.oracle.stub = None  # whoever asks the chief now waits for an hour
    assert worker.get_best_hyperparameters()[0]["strength"] == 90.0
    capsys.readouterr()
    for tuner in (worker, chief):
        tuner.results_summary()
        *_, found, failed = capsys.readouterr().out.splitlines()
        assert "average_accuracy 0.6750" in found
        assert failed.endswith("failed: strength 20: left")


def spanning(low, high, **others):
    """A λ from a range, and hyperparameters of one value."""

    def build(hp):
        hp.Float("strength", low, high, sampling="log")
        for name, value in others.items():
            hp.Fixed(name, value)
        return layers()

    return build


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"build": spanning(1.0, 50.0)}, r"strength Float\(.*max_value=90.* instead of .*=50"),
        ({"build": spanning(1.0, 90.0, method="ewc")}, r"method none instead of Fixed\(.*'ewc'"),
        ({"oracle": grid()}, "oracle RandomSearchOracle instead of GridSearchOracle"),
        ({"seed": 7}, "another search: seed 0 instead of 7"),
        ({"executions_per_trial": 2}, "executions_per_trial 1 instead of 2"),
        ({"max_forgetting": 0.5}, "max_forgetting none instead of 0.5"),
    ],
)
def test_a_search_of_other_trials_is_not_continued(trained, tmp_path, changed, words):
    same = {"build": spanning(1.0, 90.0), "folder": tmp_path}
    made(oracle=random(1), **same).search(TASKS)
    with pytest.raises(ValueError, match=f"{words}.*overwrite=True"):
        made(**{**same, **changed})
    # Another number of trials is the same search.
    made(oracle=random(2), **same).search(TASKS)
    assert len(trained.asked) == 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"epochs": 2}, "epochs 1 instead of 2"),
        ({"steps_per_epoch": 1}, "steps_per_epoch none instead of 1"),
        ({"validation_split": 0.25}, "validation_split none instead of 0.25"),
        ({"class_weight": {0: 1.0, 1: 2.0}}, "class_weight {'0': 1.0, '1': 3.0} instead of"),
        ({"class_weight": None}, "class_weight {'0': 1.0, '1': 3.0} instead of none"),
        (
            {"callbacks": [keras.callbacks.EarlyStopping(patience=3)]},
            "callbacks none instead of .*EarlyStopping.*'patience': 3",
        ),
        ({"tasks": {"ants": TASKS["bees"], "bees": TASKS["ants"]}}, "other tasks"),
        ({"tasks": {"bees": TASKS["bees"], "ants": TASKS["ants"]}}, "other tasks"),
    ],
)
def test_a_search_with_another_fit_is_not_continued(trained, tmp_path, changed, words):
    same = {"tasks": TASKS, "epochs": 1, "class_weight": {0: 1.0, 1: 3.0}}
    made(strengths(1.0), grid(), tmp_path).search(**same)
    # What is shown and logged makes no other trial, nor does how a number is held.
    logs = [keras.callbacks.TensorBoard(str(tmp_path / "logs"))]
    weights = {0: np.float32(1.0), 1: 3}
    again = {**same, "class_weight": weights, "verbose": 0, "callbacks": logs}
    made(strengths(1.0), grid(), tmp_path).search(**again)
    with pytest.raises(ValueError, match=f"another search: {words}.*overwrite=True"):
        made(strengths(1.0), grid(), tmp_path).search(**{**same, **changed})
    assert len(trained.asked) == 1
    made(strengths(1.0), grid(), tmp_path, overwrite=True).search(**{**same, **changed})
    assert len(trained.asked) == 2


def test_a_search_over_another_network_is_not_continued(trained, tmp_path):
    def build(activation):
        def network(hp):
            hp.Fixed("strength", 1.0)
            inputs = keras.Input([4])
            return keras.Model(inputs, keras.layers.Dense(2, activation)(inputs))

        return network

    made(build("relu"), grid(), tmp_path).search(TASKS, epochs=1)
    made(build("relu"), grid(), tmp_path).search(TASKS, epochs=1)
    with pytest.raises(ValueError, match="another search: another network.*overwrite=True"):
        made(build("tanh"), grid(), tmp_path).search(TASKS, epochs=1)


@pytest.mark.parametrize("name", ["arguments.json", "oracle.json", "trial_0/trial.json"])
@pytest.mark.parametrize("content", ["", "half", "[]", "{}", None])
def test_a_damaged_file_is_named(trained, tmp_path, name, content):
    made(strengths(1.0, 2.0), random(2), tmp_path).search(TASKS)
    path = tmp_path / "p" / name
    if content is None:
        path.unlink()
    else:
        text = path.read_text()
        path.write_text(text[: len(text) // 2] if content == "half" else content)
    named = "without arguments.json" if (content, name[0]) == (None, "a") else f"{name}' is damaged"
    with pytest.raises((RuntimeError, ValueError), match=f"{named}.*overwrite=True"):
        made(strengths(1.0, 2.0), random(2), tmp_path)
    made(strengths(1.0, 2.0), random(2), tmp_path, overwrite=True)


def test_a_trial_that_was_written_before_the_oracle_is_proposed_again(trained, tmp_path):
    def killed():
        raise KeyboardInterrupt

    tuner = made(strengths(*range(1, 9)), random(3), tmp_path)
    tuner.search(TASKS)
    expected = list(trained.asked)
    trained.asked.clear()
    tuner = made(strengths(*range(1, 9)), random(3), tmp_path / "cut")
    save, saved = tuner.oracle.save, []
    # The oracle is saved as the search begins, as the first trial begins, and twice as it ends.
    tuner.oracle.save = lambda: saved.append(1) or (save() if len(saved) < 5 else killed())
    with pytest.raises(KeyboardInterrupt):
        tuner.search(TASKS)
    assert (tmp_path / "cut/p/trial_1/trial.json").exists()
    made(strengths(*range(1, 9)), random(3), tmp_path / "cut").search(TASKS)
    assert trained.asked == expected


def no_room(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_in_a_trial_ends_the_search(trained, tmp_path):
    trained.wrong[1] = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left.*Make room, and run the same script again"):
        made(strengths(1.0, 2.0, 3.0), grid(), tmp_path).search(TASKS)
    made(strengths(1.0, 2.0, 3.0), grid(), tmp_path).search(TASKS)
    assert trained.asked == [1.0, 2.0, 2.0, 3.0]


# Who searches, the description and the oracle are written as the search begins, and then for a
# trial: the trial and the oracle; the trial with its metrics; the trial and, twice, the oracle.
@pytest.mark.parametrize("writes", range(9))
def test_a_disk_that_is_full_between_two_files_ends_the_search(
    trained, tmp_path, monkeypatch, writes
):
    fsync, written = os.fsync, []

    def sync(file):
        written.append(file)
        return no_room() if len(written) > 2 * writes else fsync(file)  # a file and its folder

    made(strengths(1.0, 2.0), grid(), tmp_path)
    with monkeypatch.context() as full:
        full.setattr("keras_mas.files.os.fsync", sync)
        tuner = made(strengths(1.0, 2.0), grid(), tmp_path)
        with pytest.raises(OSError, match="No space left.*keeps the trials.*Make room"):
            tuner.search(TASKS)
    again = made(strengths(1.0, 2.0), grid(), tmp_path)
    again.search(TASKS)
    assert measured(again, "average_accuracy") == pytest.approx([0.6525, 0.655])
    assert not [path for path in (tmp_path / "p").rglob("*") if path.name.startswith(".tmp-")]


def test_one_folder_has_one_search_at_a_time(trained, tmp_path):
    tuner = made(strengths(1.0, 2.0), grid(), tmp_path)
    other = made(strengths(1.0, 2.0), grid(), tmp_path)  # before there is anything to read
    with locked(tmp_path / "p"):
        with pytest.raises(RuntimeError, match="is in use by process .*nothing was changed"):
            tuner.search(TASKS)
        with pytest.raises(RuntimeError, match="is in use by process"):
            made(strengths(1.0, 2.0), grid(), tmp_path, overwrite=True)
    tuner.search(TASKS)
    other.search(TASKS)  # it reads what has been found meanwhile
    assert trained.asked == [1.0, 2.0]
    assert measured(other, "average_accuracy") == measured(tuner, "average_accuracy")


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"max_forgetting": float("nan")}, "`max_forgetting` to be a number ≥ 0. Received: nan"),
        ({"max_forgetting": -1}, "`max_forgetting` to be a number ≥ 0. Received: -1"),
        ({"max_forgetting": "0.1"}, "`max_forgetting` to be a number. Received: '0.1'"),
        ({"keep_models": 1.5}, "`keep_models` to be a whole number. Received: 1.5"),
        ({"keep_models": -1}, "`keep_models` to be a whole number ≥ 0. Received: -1"),
        ({"seed": None}, "`seed` to be a whole number. Received: None"),
        ({"seed": -1}, "`seed` to be a whole number from 0 to 4294967295. Received: -1"),
        ({"seed": 2**32 - 1, "executions_per_trial": 2}, "Received: 4294967295 for the first of 2"),
        ({"executions_per_trial": 0}, "`executions_per_trial` to be a whole number ≥ 1"),
        ({"executions_per_trial": True}, "`executions_per_trial` to be a whole number"),
    ],
)
def test_numbers_are_checked_before_anything_is_built(tmp_path, numbers, words):
    with pytest.raises(ValueError, match=words):
        made(pytest.fail, folder=tmp_path, **numbers)


@pytest.mark.parametrize(
    ("fit", "words"),
    [
        ({"epochs": 0}, "`epochs` to be a whole number ≥ 1. Received: 0"),
        ({"epochs": 1.5}, "`epochs` to be a whole number. Received: 1.5"),
        ({"batch_size": 0}, "`batch_size` to be a whole number ≥ 1"),
        ({"steps_per_epoch": 0}, "`steps_per_epoch` to be a whole number ≥ 1"),
        ({"initial_epoch": 5, "epochs": 5}, "`initial_epoch` below `epochs`. Received: 5 and 5"),
        ({"initial_epoch": 1}, "Received: 1 and 1, with which nothing is trained"),
        ({"epoch": 3}, "Received: `epoch`, which is none. Did you mean 'epochs'?"),
        ({"x": X}, "Expected no `x`, which each task has of its own"),
        ({"validation_data": (X, Y)}, "Expected no `validation_data`"),
    ],
)
def test_a_fit_that_would_train_nothing_or_fail_is_refused(tmp_path, fit, words):
    tuner = made(strengths(1.0), grid(), tmp_path)
    with pytest.raises(ValueError, match=words):
        tuner.search(TASKS, **fit)
    assert not tuner.oracle.trials


def test_a_fit_of_ones_own_may_have_other_arguments(tmp_path):
    class Build(ContinualHyperModel):
        def fit(self, hp, model, *data, rounds, **options):
            return model.fit(*data, epochs=rounds, **options)

    tuner = made(Build(fixed(1.0)), grid(), tmp_path)
    tuner.search(TASKS, rounds=2, initial_epoch=1, verbose=0)
    assert len(measured(tuner, "average_accuracy")) == 1


@pytest.mark.parametrize("strength", [-1.0, float("inf"), "decay", "x"])
def test_a_strength_that_the_method_does_not_take_is_refused_before_the_search(strength):
    with pytest.raises(ValueError, match="Expected a (strength|number)"):
        made(strengths(1.0, strength) if isinstance(strength, float) else fixed(strength))


@pytest.mark.parametrize("ends", [(1e-300, 1.0), (1.0, 1e300)])
def test_the_end_of_a_range_that_float32_does_not_hold_is_named(tmp_path, ends):
    with pytest.raises(ValueError) as raised:
        made(spanning(*ends), folder=tmp_path)
    wrong = min(ends) if min(ends) < 1 else max(ends)
    assert f"Received: {wrong!r} of Float(default={ends[0]!r}, min_value=" in str(raised.value)


def penalties(model, **options):
    """A space that has both penalties, over a network of some kind."""

    def build(hp):
        hp.Fixed("strength", 1.0)
        hp.Choice("penalty", ["in_loss", "decoupled"])
        inputs = keras.Input([4])
        return model(inputs, keras.layers.Dense(2)(inputs), **options)

    return build


def test_a_decoupled_penalty_of_a_plain_model_is_refused_at_once(tmp_path):
    words = r"`keras_mas.MASModel\(….*, from `build`.*'decoupled'.*a Functional"
    with pytest.raises(ValueError, match=words):
        made(penalties(keras.Model), folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "model", [keras_mas.MASModel, lambda *ends: keras_mas.MultiHead(keras.Model(*ends))]
)
def test_a_decoupled_penalty_is_learned_with_what_has_one(tmp_path, model):
    tuner = made(penalties(model), grid(), tmp_path)
    tuner.search(TASKS, **FIT)
    assert len(measured(tuner, "average_accuracy")) == 2


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be a folder, since .*file' is a file"):
        made(folder=tmp_path / "file")


def test_the_folder_of_another_tuner_is_refused(tmp_path):
    kt.RandomSearch(
        lambda hp: stock(hp) and compiled(),
        objective="val_loss",
        directory=str(tmp_path),
        project_name="p",
    ).save()
    with pytest.raises(ValueError, match="Received: one of another tuner"):
        made(folder=tmp_path)


def compiled():
    model = layers()
    model.compile("sgd", "mse")
    return model


def test_seeds_of_executions_are_averaged(trained, tmp_path):
    tuner = made(strengths(10.0), grid(), tmp_path, executions_per_trial=2)
    tuner.search(TASKS)
    assert trained.asked == [10.0, 10.0]
    assert measured(tuner, "average_accuracy") == pytest.approx([0.675])


class Halves(keras.utils.PyDataset):
    """The examples in batches, in another order in every epoch."""

    def __init__(self, inputs, labels, batches=2):
        super().__init__()
        self.inputs, self.labels, self.batches = inputs, labels, batches
        self.order = np.arange(len(inputs))

    @property
    def num_batches(self):
        return self.batches

    def __getitem__(self, index):
        rows = np.array_split(self.order, self.batches or 2)[index]
        return self.inputs[rows], self.labels[rows]

    def on_epoch_end(self):
        self.order = np.random.default_rng(0).permutation(self.order)


class Endless(Halves):
    num_batches = keras.utils.PyDataset.num_batches


@pytest.mark.slow
def test_a_py_dataset_is_learned_and_measured(tmp_path):
    tasks = {name: (Halves(*train), Halves(*held)) for name, (train, held) in TASKS.items()}
    tuner = made(fixed(1.0), grid(), tmp_path)
    tuner.search(tasks, epochs=20, verbose=0)
    [accuracy] = measured(tuner, "average_accuracy")
    assert accuracy > 0.7
    # The same examples in another order are the same search, and others another one.
    for halves in tasks["ants"]:
        halves.on_epoch_end()
    made(fixed(1.0), grid(), tmp_path).search(tasks, epochs=20, verbose=0)
    tasks["ants"][0].labels = 1 - tasks["ants"][0].labels[:-1]
    tasks["ants"][0].order = np.arange(63)
    with pytest.raises(ValueError, match="other tasks"):
        made(fixed(1.0), grid(), tmp_path).search(tasks, epochs=20, verbose=0)


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ({}, "at least one task"),
        ("ants", "a dict from name to data, or a list. Received: str"),
        ({1: TASKS["ants"], "1": TASKS["bees"]}, "a name of its own .* Received: 1, '1'"),
        ({"ants": (X, Y)}, "validation data for task 'ants'.*training data alone"),
        ({"ants": tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)}, "training data alone"),
        ({"ants": ((X, Y), None)}, "validation data for task 'ants'"),
        ({"ants": ((X, Y), (X, Y), (X, Y))}, "two parts of task 'ants'. Received: 3 parts"),
        ({"ants": ((X, Y[:-1]), (X, Y))}, "the training data of task 'ants'. Received: 8 in"),
        ({"ants": ((X, Y), (X[:0], Y[:0]))}, "examples in the validation data .* none"),
        ({"ants": ((X, Y), (X, np.eye(2)[Y]))}, r"labels \[N\], whole numbers.*shape \(8, 2\)"),
        ({"ants": ((X, Y + 0.5), (X, Y))}, "whole numbers, in the training data"),
        (
            [((X, Y), tf.data.Dataset.from_tensor_slices((X, Y)).batch(4).repeat())],
            "the validation data of task 'task-1'. Received: one that repeats for ever",
        ),
        ([((X, Y), Halves(X, Y, None))], "Received: one that repeats for ever"),
        ([((X, Y), Endless(X, Y))], "Received: one that repeats for ever"),
        ([((X, Y), Halves(X, Y, 0))], r"Expected batches \(x, y\) in the validation data"),
        ([((X, Y), tf.data.Dataset.from_tensor_slices((X, Y)))], "single examples"),
        ([((X, Y), tf.data.Dataset.from_tensor_slices(X).batch(4))], r"batches \(x, y\)"),
    ],
)
def test_tasks_that_cannot_be_used_are_refused(tasks, words):
    with pytest.raises((ValueError, TypeError), match=words):
        own_tasks(tasks)


@pytest.mark.parametrize("seed", range(5))
def test_a_shuffled_dataset_is_measured_by_its_own_labels(seed):
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(8, seed=seed).batch(4)
    [task] = own_tasks([((X, Y), data)])
    for inputs, labels in task.validation.batches():
        for row, label in zip(inputs.numpy(), labels, strict=True):
            assert label == Y[np.flatnonzero((row == X).all(axis=1))[0]]


@pytest.mark.parametrize(
    ("build", "labels", "words"),
    [
        (stock, Y + 1, "labels from 0 to 1, the numbers of the 2 logits .* 1 to 2 in the training"),
        (stock, Y - 1, "Received: -1 to 0 in the training data of task 'ants'"),
        (with_heads, Y + 4, "count|number the classes of each task from 0.*Subtract 4"),
    ],
)
def test_labels_out_of_range_end_the_search(tmp_path, build, labels, words):
    tuner = made(build, folder=tmp_path)
    with pytest.raises(ValueError, match=words):
        tuner.search({"ants": ((X, labels), (X, labels))}, **FIT)


def declared(build):
    def both(hp):
        hp.Fixed("strength", 1.0)
        return build(hp)

    return both


def method_named(name, build):
    def named(hp):
        hp.Fixed("method", name)
        return build(hp)

    return named


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (declared(lambda hp: None), "Received: None, a NoneType, from|`build`. Received: None"),
        (declared(lambda hp: keras_mas.MASModel), "MultiHead"),
        (lambda hp: layers(), "the hyperparameter 'strength'.*Received: none. Call `hp.Float"),
        (
            declared(lambda hp: keras_mas.MultiHead(layers(), keras_mas.MASModel)),
            "to which the tuner adds heads",
        ),
        ("model", "a function of hyperparameters .* Received: str"),
    ],
)
def test_what_is_no_model_is_refused_at_once(tmp_path, build, words):
    with pytest.raises((ValueError, TypeError), match=words):
        made(build, folder=tmp_path)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (method_named("lwf", with_heads), "'lwf', which trains the heads of all tasks together"),
        (method_named("si", stock), "'si', which has its own. Return `keras_mas.MultiHead"),
        (
            declared(lambda hp: keras.Sequential([keras.Input([4]), keras.layers.Dense(1)])),
            r"one output \[N, classes\] of two classes or more",
        ),
    ],
)
def test_what_cannot_learn_the_tasks_ends_the_search(tmp_path, build, words):
    with pytest.raises(ValueError, match=words):
        made(build, folder=tmp_path).search(TASKS, **FIT)


@pytest.mark.parametrize(
    ("oracle", "options", "words"),
    [
        (kt.oracles.HyperbandOracle(), {}, "Received: Hyperband's, whose budget cannot be kept"),
        (random(objective="val_loss"), {}, r"kt.Objective\('average_accuracy', 'max'\)"),
        (
            random(objective=kt.Objective("average_accuracy", "max")),
            {"max_forgetting": 0.01},
            r"kt.Objective\('bounded_accuracy', 'max'\)",
        ),
        (random(objective=kt.Objective("average_accuracy", "min")), {}, "'average_accuracy', min"),
        ("random", {}, "Expected an oracle .* Received: str"),
        (random(), {"optimizer": "adam"}, "Expected no `optimizer`"),
    ],
)
def test_what_a_sequence_cannot_be_tuned_by_is_refused(tmp_path, oracle, options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        ContinualTuner(stock, oracle, directory=str(tmp_path), **options)


@pytest.mark.parametrize(
    ("callback", "words"),
    [
        (keras_mas.Consolidate(X), "consolidate each task twice"),
        (keras.callbacks.BackupAndRestore("backup"), "skip every task after the first"),
    ],
)
def test_callbacks_that_do_not_suit_a_sequence_are_refused(tmp_path, callback, words):
    with pytest.raises(ValueError, match=words):
        made(folder=tmp_path).search(TASKS, callbacks=[callback])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            keras_mas.MultiHead,
            r"'net' has 1 .*every trial.*MultiHead\(trunk, batch_norm=",
        ),
        (lambda net: keras.Model(net.inputs, net.outputs), "MASModel` with batch_norm='freeze' fr"),
        (functools.partial(keras_mas.MultiHead, batch_norm="per_task"), None),
        (lambda n: keras_mas.MASModel(n.inputs, n.outputs, batch_norm="freeze"), None),
    ],
)
def test_what_becomes_of_batch_normalization_is_said_in_terms_of_build(tmp_path, build, words):
    def built(hp):
        hp.Fixed("strength", 1.0)
        inputs = keras.Input([4])
        norm = keras.layers.BatchNormalization(name="norm")(inputs)
        return build(keras.Model(inputs, keras.layers.Dense(2)(norm), name="net"))

    tuner = made(built, folder=tmp_path)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        tuner._network(tuner.oracle.get_space(), own_tasks(TASKS), 0)
    texts = [str(each.message) for each in found if each.category is keras_mas.BatchNormWarning]
    assert len(texts) == (words is not None)
    assert words is None or re.search(words, texts[0])


def test_a_search_asks_for_nothing_again_when_it_is_read(trained, tmp_path):
    made(strengths(1.0), grid(), tmp_path).search(TASKS)
    tuner = made(strengths(1.0), grid(), tmp_path)
    with pytest.raises(ValueError, match="Call `search` with the tasks"):
        tuner.get_best_models()
    assert tuner.get_best_hyperparameters()[0]["strength"] == 1.0
