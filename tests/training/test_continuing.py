import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cases import slow

from keras_mas import SynapticMemory
from keras_mas.errors import UsageError
from keras_mas.metrics import forgetting
from keras_mas.training.cli import main
from keras_mas.training.commands import predict
from keras_mas.training.continuing import continued, default_folder
from keras_mas.training.finished_run import FinishedRun
from keras_mas.training.report import report_rows
from keras_mas.training.run import train
from keras_mas.training.run_directory import DamagedError, read_result, write_json
from keras_mas.training.saved_tasks import saved_heads
from keras_mas.training.settings import Recipe, Settings
from keras_mas.training.tasks import DataError, LearnedTask, load_tasks

# The runs are short: `online_mas` finds no plateau in some.
pytestmark = pytest.mark.filterwarnings(
    "ignore::keras_mas.methods.online_mas.NothingProtectedWarning"
)

RECIPE = Recipe(backbone="mlp-16", learning_rate=0.02, epochs=3, batch_size=16)
QUICK = ["--backbone", "mlp-16", "--learning-rate", "0.02", "--epochs", "3", "--batch-size", "16"]
CLASSES = {"ants": 2, "bees": 2, "cats": 2, "dogs": 3}


def write_data(folder, name, classes, size=4):
    """An `.npz` file of as many classes around points of their own."""
    rng = np.random.default_rng(list(name.encode()))
    centres = rng.normal(size=[classes, size])
    arrays = {}
    for role, count in [("train", 60), ("val", 12), ("test", 60)]:
        labels = np.arange(count) % classes
        inputs = rng.normal(0, 0.7, [count, size]) + centres[labels]
        arrays |= {f"x_{role}": inputs.astype("float32"), f"y_{role}": labels}
    np.savez(folder / f"{name}.npz", **arrays)


def write_tasks(folder, file, *names, stream="insects", scenario="task"):
    tasks = "".join(f'[[task]]\nname = "{name}"\nnpz = "{name}.npz"\n' for name in names)
    (folder / file).write_text(f'name = "{stream}"\nscenario = "{scenario}"\n{tasks}')
    return str(folder / file)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of data, and TOML files of the first two tasks, the last one, and all three."""
    folder = tmp_path_factory.mktemp("data")
    for name, classes in CLASSES.items():
        write_data(folder, name, classes)
    write_tasks(folder, "two.toml", "ants", "bees")
    write_tasks(folder, "third.toml", "cats", stream="more")
    write_tasks(folder, "three.toml", "ants", "bees", "cats")
    return folder


def learned(data, file, folder, **changes):
    """A finished run; `changes` are of its settings."""
    settings = Settings(**{"method": "mas", "recipe": RECIPE} | changes)
    stream = load_tasks(data / file)
    train(stream, settings, folder, arguments={"tasks": str(data / file)})
    return folder


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    return learned(data, "two.toml", tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return learned(data, "three.toml", tmp_path_factory.mktemp("runs") / "whole")


def go_on(run, add, folder, *, given=None, recipe=None, **options):
    """A run that goes on from another one."""
    finished = FinishedRun.read(run)
    settings = finished.settings(given or {}, recipe or {})
    where = finished.load_options({})
    found = continued(finished, add, settings, options=where, **options)
    train(found.stream, settings, folder, continued=found)
    return folder


def same_state(one, other, task, equal=np.array_equal):
    """Whether two runs have the same weights and the same memory after a task."""
    models = [saved_heads(run, task)[0] for run in (one, other)]
    memories = [dict(np.load(run / str(task) / "memory.npz")) for run in (one, other)]
    return all(
        equal(a, b)
        for name in models[0]
        for a, b in zip(*(each[name].get_weights() for each in models), strict=True)
    ) and all(equal(memories[0][key], memories[1][key]) for key in memories[0])


def nearly_equal(one, other):
    if one.dtype.kind != "f":
        return np.array_equal(one, other)
    return np.allclose(one, other, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.slow
def test_a_run_goes_on_in_a_new_process_when_the_old_data_are_gone(data, whole, tmp_path, capsys):
    here, kept = tmp_path / "here", tmp_path / "kept"
    shutil.copytree(data, here)
    assert main(["train", str(here / "two.toml"), *QUICK, "--output", str(here / "first")]) == 0
    before = {path: path.read_bytes() for path in (here / "first").rglob("*") if path.is_file()}
    shutil.copytree(here, kept)
    for name in ("ants.npz", "bees.npz", "two.toml", "three.toml"):
        (here / name).unlink()
    words = ["train", "--continue", "first", "--add", "third.toml", "--json"]
    command = [sys.executable, "-m", "keras_mas.training.cli", *words]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "The data of 'ants', 'bees' are not there as they were" in done.stderr
    found = here / "first+more"
    result = read_result(found)
    assert json.loads(done.stdout) == result
    # Bit for bit what one run of three tasks learns.
    assert all(same_state(found, whole, task) for task in (1, 2, 3))
    uninterrupted = read_result(whole)
    matrix = np.array(uninterrupted["accuracy_matrix"], object)
    assert result["baseline"] == uninterrupted["baseline"]
    matrix[2, :2] = None  # what could not be measured, and is counted as nothing
    assert result["accuracy_matrix"] == matrix.tolist()
    assert result["evaluated_tasks"] == ["cats"]
    assert result["average_accuracy"] == uninterrupted["accuracy_matrix"][2][2]
    assert result["forgetting"] is result["backward_transfer"] is None
    assert result["continues"]["folder"] == "first"
    assert before == {path: path.read_bytes() for path in before}  # the old run is as it was
    # Measured on the kept copies.
    models, _ = saved_heads(found, 3)
    last = [accuracy(models[name], kept, name) for name in ("ants", "bees", "cats")]
    rows = [*uninterrupted["accuracy_matrix"][:2], last]
    assert forgetting(rows) <= uninterrupted["forgetting"] + 0.005
    assert forgetting(rows) == uninterrupted["forgetting"]


def accuracy(model, folder, name):
    with np.load(folder / f"{name}.npz") as arrays:
        answers = model.predict(arrays["x_test"], verbose=0).argmax(-1)
        return float(np.mean(answers == arrays["y_test"]))


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "lwf"},
        *[slow({"method": name}) for name in ("ebll", "si", "imm_mode", "online_mas")],
        slow({"strength": "auto", "penalty": "decoupled"}),
    ],
    ids=lambda changes: changes.get("method", "auto"),
)
def test_every_method_goes_on_as_in_one_run(data, tmp_path, changes):
    one = learned(data, "three.toml", tmp_path / "one", **changes)
    two = learned(data, "two.toml", tmp_path / "two", **changes)
    found = go_on(two, data / "third.toml", tmp_path / "found")
    # A loss over the logits of all heads, of which there were fewer then, is the same to rounding.
    equal = nearly_equal if changes.get("method") == "online_mas" else np.array_equal
    assert same_state(found, one, 3, equal)
    # The old data were where they had been.
    assert read_result(found)["accuracy_matrix"] == read_result(one)["accuracy_matrix"]
    assert read_result(found)["forgetting"] == read_result(one)["forgetting"]


@pytest.mark.slow
def test_a_head_of_another_size_is_added_to_a_kept_optimizer(data, tmp_path):
    recipe = Recipe(**vars(RECIPE) | {"optimizer_state": "kept"})
    write_tasks(data, "other.toml", "dogs", stream="more")
    write_tasks(data, "two-and-dogs.toml", "ants", "bees", "dogs")
    one = learned(data, "two-and-dogs.toml", tmp_path / "one", recipe=recipe)
    two = learned(data, "two.toml", tmp_path / "two", recipe=recipe)
    assert same_state(go_on(two, data / "other.toml", tmp_path / "found"), one, 3)


@pytest.mark.slow
def test_tasks_that_share_a_head_go_on_with_it(data, tmp_path):
    write_tasks(data, "shared.toml", "ants", "bees", scenario="domain")
    write_tasks(data, "all-shared.toml", "ants", "bees", "cats", scenario="domain")
    two = learned(data, "shared.toml", tmp_path / "two")
    one = learned(data, "all-shared.toml", tmp_path / "one")
    found = go_on(two, data / "third.toml", tmp_path / "found")  # whose scenario is the run's
    assert same_state(found, one, 3)


@pytest.mark.slow
def test_a_continued_run_is_continued_again(data, first, tmp_path, recwarn):
    write_tasks(data, "fourth.toml", "dogs", stream="last")
    write_tasks(data, "four.toml", *CLASSES)
    one = learned(data, "four.toml", tmp_path / "one")
    three = go_on(first, data / "third.toml", tmp_path / "three")
    four = go_on(three, data / "fourth.toml", tmp_path / "four")
    assert not [w for w in recwarn if "not there" in str(w.message)]
    assert same_state(four, one, 4)
    assert read_result(four)["accuracy_matrix"] == read_result(one)["accuracy_matrix"]
    assert [source["names"] for source in read_result(four)["sources"]] == [
        ["ants", "bees"],
        ["cats"],
        ["dogs"],
    ]


def test_a_run_that_goes_on_is_itself_resumed(data, first, whole, tmp_path):
    finished = FinishedRun.read(first)
    settings = finished.settings({}, {})
    found = continued(finished, data / "third.toml", settings, options=finished.load_options({}))
    directory = tmp_path / "found"
    with pytest.raises(KeyboardInterrupt):
        train(found.stream, settings, directory, continued=found, listeners=[_Interrupt()])
    assert sorted(path.name for path in directory.glob("[0-9]*")) == ["1", "2"]
    train(found.stream, settings, directory, continued=found)
    assert same_state(directory, whole, 3)


class _Interrupt:
    callbacks = ()

    def task_started(self, number, task, epochs):
        raise KeyboardInterrupt

    def task_finished(self, result):
        pass


def test_old_data_that_have_moved_or_are_others(data, first, whole, tmp_path):
    # The same data elsewhere: as if they had never gone.
    moved = go_on(first, data / "third.toml", tmp_path / "a", old_data=data / "three.toml")
    expected = read_result(whole)["accuracy_matrix"]
    assert read_result(moved)["accuracy_matrix"] == expected
    # Others, of one task: all rows are measured on them, so that they can be compared.
    other = tmp_path / "other"
    other.mkdir()
    with np.load(data / "ants.npz") as arrays:
        wrong = {"y_test": 1 - arrays["y_test"]}
        np.savez(other / "ants.npz", **{**arrays, **wrong})
    write_tasks(other, "ants.toml", "ants")
    found = go_on(first, data / "third.toml", tmp_path / "b", old_data=other / "ants.toml")
    result = read_result(found)
    assert result["evaluated_tasks"] == ["ants", "cats"]
    for row, measured in zip(expected, result["accuracy_matrix"], strict=True):
        assert measured[0] == pytest.approx(1 - row[0])
        assert measured[2] == row[2]
    assert [row[1] for row in result["accuracy_matrix"]] == [expected[0][1], expected[1][1], None]


def test_a_memory_made_from_the_last_one_takes_its_place(data, first, tmp_path):
    memory = SynapticMemory.load(first / "2" / "memory.npz")
    arrays = memory.state()
    doubled = {k: 2 * v if k.startswith("importance/") else v for k, v in arrays.items()}
    memory.restore(doubled)
    memory.save(tmp_path / "memory.npz")
    found = go_on(first, data / "third.toml", tmp_path / "found", memory=tmp_path / "memory.npz")
    used = dict(np.load(found / "2" / "memory.npz"))
    for key, value in arrays.items():
        expected = 2 * value if key.startswith("importance/") else value
        assert np.array_equal(used[key], expected), key
    assert json.loads((found / "arguments.json").read_text())["memory"].startswith("sha256:")
    assert read_result(found)["tasks"] == ["ants", "bees", "cats"]


def test_another_scenario_is_refused(first):
    finished = FinishedRun.read(first)
    assert finished.load_options({"scenario": "task"})["scenario"] == "task"
    with pytest.raises(UsageError, match="continued run, 'task'. Received: --scenario domain"):
        finished.load_options({"scenario": "domain"})


def test_a_memory_of_another_network_is_refused(data, first, whole, tmp_path):
    with pytest.raises(ValueError, match=r"Received: other values θ\* of the weight '.*kernel'"):
        go_on(first, data / "third.toml", tmp_path / "a", memory=whole / "3" / "memory.npz")
    recipe = Recipe(**vars(RECIPE) | {"backbone": "mlp-8"})
    other = learned(data, "two.toml", tmp_path / "other", recipe=recipe)
    with pytest.raises(ValueError, match=r"Received: shape \(4, 8\) for the weight '.*kernel'"):
        go_on(first, data / "third.toml", tmp_path / "b", memory=other / "2" / "memory.npz")
    (tmp_path / "text.npz").write_text("no memory")
    with pytest.raises(ValueError, match="that `SynapticMemory.save` wrote.*text.npz"):
        go_on(first, data / "third.toml", tmp_path / "c", memory=tmp_path / "text.npz")
    with pytest.raises(ValueError, match="a method that holds weights.*'finetune'"):
        go_on(
            first,
            data / "third.toml",
            tmp_path / "d",
            memory=first / "2" / "memory.npz",
            given={"method": "finetune"},
        )


def test_settings_are_the_run_s_but_for_those_that_are_given(first):
    finished = FinishedRun.read(first)
    assert finished.settings({}, {}) == Settings(method="mas", strength=0.1, recipe=RECIPE)
    changed = finished.settings({"strength": 2.0}, {"epochs": 7})
    assert (changed.strength, changed.recipe.epochs) == (2.0, 7)
    assert changed.recipe.learning_rate == RECIPE.learning_rate
    name = default_folder(finished, "more", {"strength": 2.0, "epochs": 7}).name
    assert name == "first+more-epochs7-strength2.0"


def refused(*words):
    return main(["train", *map(str, words)])


def test_what_does_not_fit_is_one_sentence(data, first, tmp_path, capsys):
    write_data(tmp_path, "wide", 2, size=5)
    wide = write_tasks(tmp_path, "wide.toml", "wide", stream="more")
    half = tmp_path / "half"
    shutil.copytree(first, half)
    (half / "result.json").unlink()
    old = tmp_path / "old"
    shutil.copytree(first, old)
    result = json.loads((old / "result.json").read_text())
    del result["input_shape"]
    write_json(old / "result.json", result)
    cut = tmp_path / "cut"
    shutil.copytree(first, cut)
    damaged = cut / "2" / "progress.json"
    damaged.write_text(damaged.read_text()[:20])
    joint = tmp_path / "joint"
    shutil.copytree(first, joint)
    for file in ("result.json", "arguments.json"):
        content = json.loads((joint / file).read_text())
        content |= {"method": "joint", "strength": None, "penalty": None, "arguments": {}}
        write_json(joint / file, content)
    third = data / "third.toml"
    cases = [
        (2, [half, "--add", third], "is not the folder of a finished run"),
        (2, [tmp_path / "none", "--add", third], "is not the folder of a finished run"),
        (2, [old, "--add", third], "an earlier version wrote it"),
        (1, [cut, "--add", third], "progress.json' is damaged"),
        (2, [first, "--add", data / "two.toml"], "Received: 'ants', 'bees', which"),
        (2, [first, "--add", wide], "float32 of shape [5] in 'more'"),
        (2, [joint, "--add", third], "Received: none for 'ants', 'bees'. Say where"),
        (2, [first, "--add", third, "--method", "ewc"], "Received: --method ewc"),
        (2, [first, "--add", third, "--backbone", "mlp-8"], "Received: --backbone mlp-8"),
        (2, [first, "--add", third, "--output", first], "Expected a new folder"),
        (2, [first, "--add", third, "--output", first / "more"], "outside of the one that it goes"),
        (2, [first, "--add", third, "--scenario", "class"], "Received: --scenario class"),
        (
            2,
            [first, "--add", third, "--method", "finetune", "--strength", "2"],
            "no --strength for 'finetune', which has no λ",
        ),
        (2, [first], "Expected `--add TASKS` beside `--continue`"),
        (2, [first, "--add", third, "--old-data", third], "Expected tasks of"),
    ]
    for code, words, sentence in cases:
        assert refused("--continue", *words) == code, (words, capsys.readouterr().err)
        error = capsys.readouterr().err
        assert sentence in error, error
        assert error.count("\n") == 1
    assert refused("--add", third) == 2
    assert "Expected `--continue RUN` beside `--add`" in capsys.readouterr().err
    assert refused() == 2
    assert "Expected TASKS, or `--continue RUN --add TASKS`" in capsys.readouterr().err
    assert refused(third, "--continue", first) == 2
    assert "Expected new tasks behind `--add`" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::keras_mas.training.divergence.NotLearnedWarning")
def test_a_class_incremental_run_is_not_continued(data, tmp_path):
    write_tasks(data, "classes.toml", "ants", "bees", scenario="class")
    run = learned(data, "classes.toml", tmp_path / "run", recipe=Recipe(backbone="mlp-2", epochs=1))
    with pytest.raises(ValueError, match="would have to grow"):
        FinishedRun.read(run)


def test_a_damaged_model_is_named(data, first, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(first, run)
    (run / "1" / "model.keras").write_bytes(b"no model")
    with pytest.raises(DamagedError, match="1/model.keras' is damaged"):
        go_on(run, data / "third.toml", tmp_path / "found")


def test_a_learned_task_has_no_examples():
    task = LearnedTask.without_examples("ants", ("no", "yes"), (4,), np.dtype("float32"))
    assert [len(split) for split in task.splits.values()] == [0, 0, 0]
    assert (task.input_shape, task.train.dtype) == ((4,), np.float32)


@pytest.mark.slow
def test_a_report_shows_what_was_not_measured_as_such(data, whole, first, tmp_path, capsys):
    lost = tmp_path / "lost"
    shutil.copytree(first, lost)
    result = json.loads((lost / "result.json").read_text())
    write_json(lost / "result.json", result | {"arguments": {}})
    found = go_on(lost, data / "third.toml", tmp_path / "found")
    assert report_rows([read_result(found)])[0]["forgetting"] is None
    picture, page = tmp_path / "picture.png", tmp_path / "page.html"
    words = ["report", found, whole, "--output", picture, "--html", page]
    assert main(list(map(str, words))) == 0
    assert "–" in capsys.readouterr().out
    text = page.read_text()
    assert "There are no examples of ants, bees" in text
    assert ">nan" not in text
    assert main(["report", str(found), "--html", str(page)]) == 0
    assert "not measured, since there are no examples of the task" in capsys.readouterr().out
    assert Path(picture).stat().st_size > 0


def test_what_an_earlier_version_did_not_record(first, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(first, old)
    result = json.loads((old / "result.json").read_text())
    for name in ("classes", "input_dtype", "evaluated_tasks"):
        del result[name]
    write_json(old / "result.json", result)
    assert FinishedRun.read(old).classes == FinishedRun.read(first).classes
    assert FinishedRun.read(old).classes["ants"] == ("0", "1")
    assert [source.names for source in FinishedRun.read(old).sources] == [["ants", "bees"]]


@pytest.mark.slow
def test_versions_are_added_to_those_of_the_run(data, first, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(first, tmp_path / "first")
    assert main(["export", "first", "--to", "models"]) == 0, capsys.readouterr().err
    before = (tmp_path / "models/2/saved_model.pb").read_bytes()
    third = str(data / "third.toml")
    words = ["train", "--continue", "first", "--add", third, "--export", "models"]
    assert main(words) == 0, capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "models").glob("[0-9]*")) == ["1", "2", "3"]
    assert (tmp_path / "models/2/saved_model.pb").read_bytes() == before
    manifest = json.loads((tmp_path / "models/3/assets.extra/manifest.json").read_text())["run"]
    assert manifest["tasks"] == ["ants", "bees", "cats"]
    assert manifest["command"].startswith("keras-mas train --continue first --add")
    assert manifest["data"] == read_result(tmp_path / "first+more")["data"]
    capsys.readouterr()
    # All data are where they were: every task is measured.
    assert main(["export", "first+more", "--to", "again"]) == 0
    assert "not measured" not in capsys.readouterr().err
    blessing = json.loads((tmp_path / "again/blessing.json").read_text())
    assert [row["examples"] for row in blessing["tasks"]] == [60, 60, 60]
    two = str(data / "two.toml")
    words = ["export", "first+more", "--to", "part", "--version", "3", "--examples-of", two]
    assert main(words) == 0
    said = "In what is exported, 'cats' was not measured, since there are no examples of it."
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_versions_are_exported_where_the_old_data_are_gone(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    learned(tmp_path, "two.toml", tmp_path / "first")
    for name in ("ants.npz", "bees.npz"):
        (tmp_path / name).unlink()
    words = ["train", "--continue", "first", "--add", "third.toml", "--export", "models"]
    assert main(words) == 0, capsys.readouterr().err
    said = "'ants', 'bees' were not measured, since there are no examples of them."
    assert " ".join(capsys.readouterr().err.split()).count(said) == 1
    manifest = json.loads((tmp_path / "models/3/assets.extra/manifest.json").read_text())["run"]
    assert manifest["accuracy_matrix"][2][:2] == [None, None]
    blessing = json.loads((tmp_path / "models/3/assets.extra/blessing.json").read_text())
    assert [row["accuracy"] is None for row in blessing["tasks"]] == [True, True, False]
    assert blessing["note"] == said
    assert main(["export", "first+more", "--to", "again"]) == 0
    said = "again/2: compared with version 1 (the latest): 'ants', 'bees' were not measured"
    assert said in capsys.readouterr().out
    (tmp_path / "cats.npz").unlink()
    assert main(["export", "first+more", "--to", "none"]) == 2
    said = "Expected test examples of tasks that the run has learned, 'ants', 'bees', 'cats'"
    assert said in " ".join(capsys.readouterr().err.split())


def write_shop(folder, name, rows):
    (folder / f"{name}.csv").write_text("age,city,y\n" + rows * 5)
    text = f'name = "{name}"\nlabel = "y"\ntest_fraction = 0.4\n[[task]]\nname = "{name}"\n'
    (folder / f"{name}.toml").write_text(text + f'csv = "{name}.csv"\n')
    return str(folder / f"{name}.toml")


def test_a_table_that_is_added_is_encoded_as_those_before_it(tmp_path, capsys):
    march = write_shop(tmp_path, "march", "20,Bonn,no\n40,Ulm,yes\n")
    april = write_shop(tmp_path, "april", "60,Ulm,no\n80,Ulm,yes\n")
    train(load_tasks(march), Settings(recipe=RECIPE), tmp_path / "run", arguments={"tasks": march})
    (tmp_path / "march.csv").unlink()
    finished = FinishedRun.read(tmp_path / "run")
    with pytest.warns(UserWarning, match="are not there as they were"):
        found = continued(finished, april, finished.settings({}, {}), options={})
    assert found.stream.columns == ("age", "city=Bonn", "city=Ulm")
    assert found.stream.rescale == ([0.1, 1.0, 1.0], [-3.0, 0.0, 0.0])
    assert {tuple(row) for row in found.stream.tasks[1].train.inputs} == {(60, 0, 1), (80, 0, 1)}
    train(found.stream, finished.settings({}, {}), tmp_path / "two", continued=found)
    again = FinishedRun.read(tmp_path / "two")
    assert again.encoding == finished.encoding
    # As a server is asked about it, too.
    own = {"run": tmp_path / "run", "debug": False}
    asked = argparse.Namespace(examples_of=april, task=None, count=9, **own)
    [question] = predict._from_stream(asked)
    assert {tuple(row) for row in question.inputs} == {(60, 0, 1), (80, 0, 1)}
    words = [
        "predict",
        "shop",
        "--examples-of",
        april,
        "--run",
        own["run"],
        "--server",
        "127.0.0.1:9",
    ]
    assert main([*map(str, words)]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err
    asked.run = None
    with pytest.raises(UsageError, match="Expected `--run RUN` beside tables.*Received: none"):
        predict._from_stream(asked)
    may = write_shop(tmp_path, "may", "60,Ulm,no\n80,Paris,yes\n")
    with pytest.raises(
        DataError, match="Received: 'Paris' in column 'city' of line . of .*may.csv"
    ):
        continued(again, may, again.settings({}, {}), options={})


GO_ON = """
import sys
from keras_mas.training.cli import main
for method in sys.argv[1:]:
    words = ["train", "--continue", method, "--add", "third.toml", "--output", f"{method}-3"]
    assert main(words) == 0
"""


@pytest.mark.slow
def test_digits_are_forgotten_no_more_than_in_one_run(tmp_path):
    """Two tasks today; in another process, without their data, a third one."""
    methods = ("mas", "ewc", "si", "lwf")
    names = ["a", "b", "c"]
    for name, task in zip(names, load_tasks("split-digits").tasks, strict=False):
        arrays = {f"x_{role}": split.inputs for role, split in task.splits.items()}
        arrays |= {f"y_{role}": split.labels for role, split in task.splits.items()}
        arrays |= {f"{k}_val": arrays.pop(f"{k}_validation") for k in "xy"}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    write_tasks(tmp_path, "two.toml", *names[:2])
    write_tasks(tmp_path, "third.toml", names[2], stream="more")
    write_tasks(tmp_path, "three.toml", *names)
    recipe = Recipe(backbone="mlp-64", learning_rate=0.01, epochs=5, batch_size=32)
    shutil.copytree(tmp_path, tmp_path / "kept")
    for method in methods:
        learned(tmp_path, "two.toml", tmp_path / method, method=method, recipe=recipe)
        learned(
            tmp_path / "kept",
            "three.toml",
            tmp_path / f"{method}-whole",
            method=method,
            recipe=recipe,
        )
    for name in ("a.npz", "b.npz", "two.toml", "three.toml"):
        (tmp_path / name).unlink()
    command = [sys.executable, "-c", GO_ON, *methods]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for method in methods:
        uninterrupted = read_result(tmp_path / f"{method}-whole")
        assert read_result(tmp_path / f"{method}-3")["evaluated_tasks"] == ["c"]
        models, _ = saved_heads(tmp_path / f"{method}-3", 3)
        last = [accuracy(models[name], tmp_path / "kept", name) for name in names]
        rows = [*uninterrupted["accuracy_matrix"][:2], last]
        assert forgetting(rows) <= uninterrupted["forgetting"] + 0.005, method
        assert last[2] >= uninterrupted["accuracy_matrix"][2][2] - 0.005, method
