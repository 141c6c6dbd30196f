import dataclasses
import importlib
import json
import shutil
import sys
from unittest.mock import ANY

import keras
import numpy as np
import pytest
from cases import slow, slow_but
from insects import ONE_EPOCH, insects, task

from keras_mas import SynapticMemory
from keras_mas.errors import UsageError
from keras_mas.metrics import average_accuracy, forgetting
from keras_mas.training.backbones.weights import digest_of_file
from keras_mas.training.divergence import (
    DivergedError,
    NotLearnedWarning,
    warn_if_not_learned,
)
from keras_mas.training.heads import heads_of
from keras_mas.training.identity import describe
from keras_mas.training.listening import Listener
from keras_mas.training.run import train
from keras_mas.training.run_directory import DamagedError, read_json, read_result, write_json
from keras_mas.training.saved_tasks import finished_network, saved_heads
from keras_mas.training.settings import Recipe
from keras_mas.training.tasks import Split, Task, TaskStream, load_tasks


class Notes(Listener):
    def __init__(self, fail_at=None):
        self.started, self.result, self.fail_at = [], [], fail_at

    def task_started(self, number, task, epochs):
        if number == self.fail_at:
            raise KeyboardInterrupt
        self.started.append((number, task.name, epochs))

    def task_finished(self, result):
        self.result.append(result)


def test_a_run_records_what_it_found(stream, settings, tmp_path):
    result = train(stream, settings, tmp_path / "run", arguments={"tasks": "insects"})
    assert result == json.loads((tmp_path / "run/result.json").read_text())
    matrix = np.array(result["accuracy_matrix"])
    assert matrix.shape == (3, 3)
    assert np.diag(matrix).min() > 0.8
    assert result["average_accuracy"] == average_accuracy(matrix)
    assert result["forgetting"] == forgetting(matrix)
    expected = {"tasks": ["ants", "bees", "cats"], "method": "mas", "strength": 1.0, "seed": 0}
    expected |= {"scenario": "task", "arguments": {"tasks": "insects"}}
    assert {key: result[key] for key in expected} == expected
    assert set(result["seconds"]) == {"training", "importance", "evaluation", "saving"}
    assert set(result["versions"]) == {"python", "tensorflow", "keras", "numpy"}


def test_a_run_without_penalty_is_the_same_run_whatever_the_strength(stream, settings, tmp_path):
    plain = dataclasses.replace(settings, method="finetune")
    first = train(stream, plain, tmp_path)
    stronger = dataclasses.replace(plain, strength=5.0, penalty="decoupled")
    assert train(stream, stronger, tmp_path) == first
    assert json.loads((tmp_path / "arguments.json").read_text())["strength"] is None


OWN = """
import numpy as np
from keras_mas.methods.base import Method

class Mine(Method):
    def after_task(self, model, x, y=None, **options):
        {body}
"""


@pytest.fixture
def own_method(tmp_path, monkeypatch):
    """A function that writes the body of `after_task` of a method of one's own."""
    monkeypatch.chdir(tmp_path)

    def write(body):
        (tmp_path / "own_method.py").write_text(OWN.format(body=body))
        sys.modules.pop("own_method", None)
        importlib.invalidate_caches()
        return "own_method:Mine"

    yield write
    sys.modules.pop("own_method", None)


def test_a_finished_run_of_another_version_of_a_method_is_not_taken_for_this_one(
    stream, settings, tmp_path, own_method
):
    mine = dataclasses.replace(settings, method=own_method("pass"))
    train(stream, mine, tmp_path / "run")
    own_method("return None  # another version")
    with pytest.raises(UsageError, match="another version of the method's module"):
        train(stream, mine, tmp_path / "run")


def test_another_version_of_a_helper_of_an_own_method_is_another_run(
    stream, settings, tmp_path, own_method
):
    (tmp_path / "own_helper.py").write_text("scale = 1")
    mine = dataclasses.replace(settings, method=own_method("from own_helper import scale"))
    train(stream, mine, tmp_path / "run")
    (tmp_path / "own_helper.py").write_text("scale = 2")
    with pytest.raises(UsageError, match="another version of the method's module"):
        train(stream, mine, tmp_path / "run")


def test_a_run_of_an_own_method_without_helpers_has_the_hash_of_its_file(
    stream, settings, tmp_path, own_method
):
    mine = dataclasses.replace(settings, method=own_method("pass"))
    digest = digest_of_file(tmp_path / "own_method.py")
    assert describe(stream, mine, "test")["method_module"] == digest


def test_another_version_of_an_own_backbone_is_another_run(stream, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = dataclasses.replace(settings.recipe, backbone="own_trunk:features")
    own = dataclasses.replace(settings, recipe=recipe)
    versions = []
    for body in ("return x", "return 2 * x"):
        (tmp_path / "own_trunk.py").write_text(f"def features(x):\n    {body}\n")
        versions.append(describe(stream, own, "test"))
        monkeypatch.delitem(sys.modules, "own_trunk", raising=False)
    assert versions[0].pop("backbone_module") != versions[1].pop("backbone_module")
    assert versions[0] == versions[1]


@pytest.mark.parametrize(
    ("weight", "value", "path"), [(0, "np.nan", "hidden-1/kernel"), (-1, "np.inf", ".*/bias")]
)
def test_weights_that_a_method_spoils_are_no_result(
    stream, settings, tmp_path, own_method, weight, value, path
):
    name = own_method(f"w = model.weights[{weight}]; w.assign(np.full(w.shape, {value}))")
    spoiled = dataclasses.replace(settings, method=name)
    shared_head = dataclasses.replace(stream, scenario="domain")
    with pytest.raises(DivergedError, match=f"NaN or infinity in '{path}' after task 'ants' was"):
        train(shared_head, spoiled, tmp_path / "run")


def other_examples(stream):
    first, *others = stream.tasks
    first = dataclasses.replace(first, test=first.train)
    return dataclasses.replace(stream, tasks=(first, *others))


def other_names(stream):
    tasks = [dataclasses.replace(each, name=f"{each.name}-2") for each in stream.tasks]
    return dataclasses.replace(stream, tasks=tuple(tasks))


@pytest.mark.parametrize(
    "change",
    [
        other_examples,
        other_names,
        lambda stream: dataclasses.replace(stream, name="animals"),
        lambda stream: dataclasses.replace(stream, scenario="domain"),
        lambda stream: dataclasses.replace(stream, rescale=(0.5, 0.0)),
        lambda stream: dataclasses.replace(stream, left_out=("ant.jpg",)),
    ],
)
def test_whatever_decides_a_result_makes_another_run(stream, settings, change):
    assert describe(change(stream), settings, "test") != describe(stream, settings, "test")


def test_validation_data_and_test_data_make_different_runs(stream, settings):
    assert describe(stream, settings, "validation") != describe(stream, settings, "test")


def test_a_result_tells_its_data_but_not_its_seed(settings, tmp_path):
    recipe = dataclasses.replace(settings.recipe, epochs=1, batch_size=256)
    results = [
        train(
            load_tasks("split-digits", seed=seed, scenario=scenario),
            dataclasses.replace(settings, method="finetune", seed=seed, recipe=recipe),
            tmp_path / f"{seed}{scenario}",
        )["data"]
        for seed, scenario in [(0, "task"), (1, "task")]
    ]
    assert results[0] == results[1]
    other = load_tasks("permuted-digits")
    assert results[0] != other.data_fingerprint


def test_the_matrix_is_the_accuracy_of_the_saved_models(trained, stream):
    result = read_result(trained)
    for after in (1, 3):
        models, classes = saved_heads(trained, after)
        assert list(models) == ["ants", "bees", "cats"][:after]
        assert classes["ants"] == ("ants-no", "ants-yes")
        for j, (name, model) in enumerate(models.items()):
            test = stream.tasks[j].test
            right = np.argmax(model.predict(test.inputs, verbose=0), axis=1) == test.labels
            assert np.mean(right) == result["accuracy_matrix"][after - 1][j], name


def test_a_network_takes_the_numbers_of_a_table_as_they_are(settings, tmp_path):
    # Unscaled, ages around 40,000 days drown the fine column that says the class.
    rng = np.random.default_rng(0)
    for name in ("may", "june"):
        fine, days = rng.normal(size=200), rng.normal(40_000, 4_000, 200)
        rows = [f"{d:.1f},{x / 1000:.6f},{int(x > 0)}\n" for d, x in zip(days, fine, strict=True)]
        (tmp_path / f"{name}.csv").write_text("days,fine,y\n" + "".join(rows))
    text = 'name = "shop"\nscenario = "domain"\nlabel = "y"\ntest_fraction = 0.2\n'
    for name in ("may", "june"):
        text += f'[[task]]\nname = "{name}"\ncsv = "{name}.csv"\n'
    (tmp_path / "shop.toml").write_text(text)
    stream = load_tasks(tmp_path / "shop.toml")
    result = train(stream, settings, tmp_path / "run")
    assert result["average_accuracy"] > 0.85
    assert result["columns"] == ["days", "fine"]
    assert train(stream, settings, tmp_path / "run") == result
    models, _ = saved_heads(tmp_path / "run", 2)
    logits = models["shared"].predict(np.array([[40_000, 0.002], [40_000, -0.002]]), verbose=0)
    assert logits.argmax(axis=1).tolist() == [1, 0]


def test_the_whole_network_is_saved_in_the_end(trained, stream):
    whole = keras.models.load_model(trained / "model.keras")
    models, _ = saved_heads(trained, 3)
    x = stream.tasks[0].test.inputs
    logits = whole.predict(x, verbose=0)
    assert list(logits) == list(models) == ["ants", "bees", "cats"]
    for name, model in models.items():
        np.testing.assert_array_equal(logits[name], model.predict(x, verbose=0))
    # Each task saves its own head, so that the last of many tasks costs what the first one does.
    assert list(keras.models.load_model(trained / "2/model.keras").output) == ["bees"]


def test_a_head_in_the_folder_of_another_task_is_noticed(trained):
    forget_files(trained / "1")
    shutil.copy(trained / "2/model.keras", trained / "1/model.keras")
    with pytest.raises(DamagedError, match="the head of bees, not of 'ants'"):
        saved_heads(trained, 3)
    progress = trained / "3/progress.json"
    write_json(progress, read_json(progress) | {"classes": {}})
    with pytest.raises(DamagedError, match="3/progress.json' is damaged: it names no head"):
        saved_heads(trained, 3)


def test_only_the_trunk_is_remembered(trained):
    first, last = (SynapticMemory.load(trained / f"{n}/memory.npz") for n in (1, 3))
    assert set(last.importance) == {"hidden-1/kernel", "hidden-1/bias"}
    # Ω adds up over the tasks.
    assert (last.importance["hidden-1/kernel"] >= first.importance["hidden-1/kernel"]).all()
    saved = keras.models.load_model(trained / "3/model.keras")
    np.testing.assert_array_equal(
        last.anchor["hidden-1/kernel"], saved.get_layer("hidden-1").kernel.numpy()
    )


def test_the_same_seed_gives_the_same_result(trained, stream, settings, tmp_path):
    again = train(stream, settings, tmp_path / "again")
    other = train(stream, dataclasses.replace(settings, seed=1), tmp_path / "other")
    weights = [
        saved_heads(folder, 3)[0]["cats"].get_weights()
        for folder in (trained, tmp_path / "again", tmp_path / "other")
    ]
    assert read_result(trained)["accuracy_matrix"] == again["accuracy_matrix"]
    assert all(np.array_equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not np.array_equal(weights[0][0], weights[2][0])
    assert other["seed"] == 1


@pytest.mark.parametrize("scenario", slow_but("task", ["task", "class"]))
def test_an_interrupted_run_goes_on_to_the_same_result(stream, settings, tmp_path, scenario):
    stream = TaskStream("insects", scenario, stream.tasks, stream.rescale)
    settings = dataclasses.replace(settings, strength=0.1)
    whole = train(stream, settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(stream, settings, tmp_path / "cut", listeners=[Notes(fail_at=3)])
    assert not (tmp_path / "cut/result.json").exists()
    notes = Notes()
    resumed = train(stream, settings, tmp_path / "cut", listeners=[notes])
    assert notes.started == [(3, "cats", 6)]
    assert [result.seconds == 0 for result in notes.result] == [True, True, False]
    assert resumed["accuracy_matrix"] == whole["accuracy_matrix"]
    for name in ("whole", "cut"):
        models, _ = saved_heads(tmp_path / name, 3)
        memory = SynapticMemory.load(tmp_path / name / "3/memory.npz")
        if name == "whole":
            expected = next(iter(models.values())).get_weights(), memory.importance
    found = next(iter(models.values())).get_weights(), memory.importance
    assert all(np.array_equal(a, b) for a, b in zip(expected[0], found[0], strict=True))
    assert all(np.array_equal(expected[1][path], found[1][path]) for path in expected[1])


@pytest.mark.parametrize("penalty", slow_but("decoupled", ["in_loss", "decoupled"]))
def test_a_run_finds_its_strengths_again_when_it_goes_on(stream, settings, tmp_path, penalty):
    asked = dataclasses.replace(settings, strength="auto", penalty=penalty)
    notes = Notes()
    whole = train(stream, asked, tmp_path / "whole", listeners=[notes])
    first, *strengths = whole["strengths"]
    assert whole["strength"] == "auto"
    assert first == 0.0
    assert min(strengths) > 0
    # What one more task holds is free no more.
    assert 1 > whole["free"][0] > whole["free"][-1] > 0
    assert [each.strength for each in notes.result] == whole["strengths"]
    assert [each.free for each in notes.result] == whole["free"]
    with pytest.raises(KeyboardInterrupt):
        train(stream, asked, tmp_path / "parts", listeners=[Notes(fail_at=3)])
    parts = train(stream, asked, tmp_path / "parts")
    for key in ("strengths", "free", "accuracy_matrix"):
        assert parts[key] == whole[key]


def test_strengths_are_not_recorded_of_one_that_was_given(trained):
    assert not {"strengths", "free"} & set(read_result(trained))


def test_a_finished_run_is_not_repeated(trained, stream, settings):
    first = read_result(trained)
    notes = Notes()
    assert train(stream, settings, trained, listeners=[notes]) == first
    assert notes.started == []
    assert len(notes.result) == 3


def test_strength_zero_is_fine_tuning(stream, settings, tmp_path):
    free = train(stream, dataclasses.replace(settings, strength=0.0), tmp_path / "free")
    fine = train(stream, dataclasses.replace(settings, method="finetune"), tmp_path / "fine")
    assert free["accuracy_matrix"] == fine["accuracy_matrix"]
    assert not (tmp_path / "fine/1/memory.npz").exists()


def test_the_first_task_may_have_a_recipe_of_its_own(stream, settings, tmp_path):
    recipe = dataclasses.replace(settings.recipe, first_epochs=2, epochs=1)
    notes = Notes()
    asked = dataclasses.replace(settings, recipe=recipe)
    train(stream, asked, tmp_path / "run", listeners=[notes])
    assert [epochs for _, _, epochs in notes.started] == [2, 1, 1]
    assert Recipe(learning_rate=0.1, first_learning_rate=0.5).for_task(0) == (0.5, 20)
    assert Recipe(learning_rate=0.1, first_learning_rate=0.5).for_task(1) == (0.1, 20)


def test_a_folder_with_something_else_is_left_as_it_is(stream, settings, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="such as 'notes.txt'. Choose a new or empty"):
        train(stream, settings, tmp_path)
    with pytest.raises(UsageError, match="notes.txt' is a file"):
        train(stream, settings, tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_with_another_run_is_left_as_it_is(trained, stream, settings):
    before = (trained / "result.json").read_bytes()
    other = dataclasses.replace(settings, strength=3.0)
    with pytest.raises(UsageError, match="another run: --strength 1.0 instead of 3.0. Choose"):
        train(stream, other, trained)
    fewer = TaskStream("insects", "task", stream.tasks[:2], stream.rescale)
    with pytest.raises(UsageError, match="tasks ants, bees, cats instead of ants, bees. "):
        train(fewer, settings, trained)
    changed = (stream.tasks[0], task("bees", 5), stream.tasks[2])
    with pytest.raises(UsageError, match="other data in its task bees. "):
        train(dataclasses.replace(stream, tasks=changed), settings, trained)
    assert (trained / "result.json").read_bytes() == before


def test_a_training_that_diverges_is_named(stream, settings, tmp_path):
    recipe = dataclasses.replace(settings.recipe, optimizer="sgd", learning_rate=1e6)
    asked = dataclasses.replace(settings, recipe=recipe)
    with pytest.raises(
        DivergedError,
        match=r"finite loss.*epoch \d of task '.*' with mas λ=1. Lower `--learning-rate` or",
    ):
        train(stream, asked, tmp_path / "run")
    assert not (tmp_path / "run/result.json").exists()


def test_a_task_that_was_not_learned_is_named(stream, settings, tmp_path):
    first, *others = stream.tasks
    blank = {
        role: Split(np.zeros((len(split), *split.input_shape), split.dtype), split.labels)
        for role, split in first.splits.items()
    }
    tasks = (Task(first.name, first.classes, **blank), *others)
    nothing_to_see = dataclasses.replace(stream, tasks=tasks)
    with pytest.warns(NotLearnedWarning, match="'ants' was not .* mas λ=1: its .* is 0.5000"):
        train(nothing_to_see, settings, tmp_path / "run")


LABELS = np.array([0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("number", "strength", "accuracy", "advice"),
    [
        (0, 1.0, 0.6, "Lower `--learning-rate`, or raise"),
        (0, 1.0, 0.61, None),
        (0, 1.0, None, None),
        (1, "auto", 0.6, "Hold less, as with `--strength auto:3`"),
        (1, "auto", 0.61, None),
        (1, 1e6, 0.6, None),  # whoever gives a number has chosen it
        (1, "decay", 0.6, None),
    ],
)
def test_what_was_not_learned_is_told_of(settings, recwarn, number, strength, accuracy, advice):
    asked = dataclasses.replace(settings, strength=strength)
    warn_if_not_learned("bees", number, asked, LABELS, accuracy)
    said = [str(each.message) for each in recwarn]
    assert advice in said[0] if advice else not said


def test_a_task_of_a_single_class_is_not_named(settings, recwarn):
    warn_if_not_learned("bees", 0, settings, np.zeros(5, np.int64), 1.0)
    assert not recwarn


def test_a_later_task_that_auto_holds_too_still_is_named(stream, settings, tmp_path):
    asked = dataclasses.replace(settings, strength="auto:1000000", penalty="decoupled")
    one_head = dataclasses.replace(stream, scenario="domain")
    with pytest.warns(NotLearnedWarning, match="was not learned .*Hold less"):
        train(one_head, asked, tmp_path / "run")


@pytest.mark.parametrize(
    ("scenario", "heads", "units"), [("domain", {"shared"}, 2), slow("class", {"all"}, 6)]
)
def test_one_head_for_all_tasks(stream, settings, tmp_path, scenario, heads, units):
    one_head = TaskStream("insects", scenario, stream.tasks, stream.rescale)
    assert {head.name for head in heads_of(one_head).values()} == heads
    asked = dataclasses.replace(settings, strength=0.001)
    result = train(one_head, asked, tmp_path / "run")
    models, classes = saved_heads(tmp_path / "run", 3)
    assert set(models) == heads
    assert models[heads.pop()].output_shape == (None, units)
    assert all(len(names) == units for names in classes.values())
    # The last task is known, whatever became of the others.
    assert result["accuracy_matrix"][2][2] > 0.9
    # A head that all tasks share is protected too, and recognized where it was saved.
    memory = SynapticMemory.load(tmp_path / "run/1/memory.npz")
    assert any(path.startswith("head-") for path in memory.importance)
    saved = keras.models.load_model(tmp_path / "run/1/model.keras")
    memory.protect(saved)
    assert float(memory.penalty(saved)) == 0


def damage_cases():
    for file in ("model.keras", "memory.npz", "progress.json"):
        for content in (b"", b"{", b"PK", b"[]", b"{}", None, "gone"):
            yield file, content


def break_file(path, content):
    """Give a file other content; None puts a folder in its place, "gone" removes it."""
    path.unlink()
    if content is None:
        path.mkdir()
    elif content != "gone":
        path.write_bytes(content)


@pytest.mark.slow
def test_every_damage_of_a_task_is_named_with_its_cure(finished):
    directory, run_again = finished
    expected = run_again()["accuracy_matrix"]
    shutil.copytree(directory, directory.with_name("whole"))
    for file, content in damage_cases():
        path = directory / "2" / file
        break_file(path, content)
        with pytest.raises(DamagedError) as raised:
            run_again()
        message = str(raised.value)
        assert message.startswith(f"'{path}' is damaged: "), content
        assert f"Remove '{directory / '2'}' and the folders with higher numbers" in message
        assert "\n" not in message
        # A copy of what the cure restores, so that the many cases are quick.
        shutil.rmtree(directory / "2")
        shutil.copytree(directory.with_name("whole") / "2", directory / "2")
    # The cure itself.
    shutil.rmtree(directory / "2")
    assert run_again()["accuracy_matrix"] == expected
    assert (directory / "2/model.keras").is_file()


def forget_files(folder):
    """Leave out what earlier versions did not record: the hashes of a task's files."""
    recorded = read_json(folder / "progress.json")
    write_json(folder / "progress.json", {k: v for k, v in recorded.items() if k != "files"})


@pytest.mark.parametrize("name", ["model.keras", "memory.npz"])
def test_a_file_of_another_run_is_damage(finished, trained_once, name):
    directory, run_again = finished
    (directory / "result.json").unlink()
    shutil.copy(trained_once / "2" / name, directory / "2" / name)
    with pytest.raises(
        DamagedError, match=f"2/{name}' is damaged: its content is not what was saved with"
    ):
        run_again()


def test_the_network_of_another_run_is_damage(finished):
    directory, _ = finished
    shutil.copy(directory / "2/model.keras", directory / "model.keras")
    with pytest.raises(DamagedError, match="is damaged: its content is not what was saved with"):
        finished_network(directory)


def test_the_memory_of_another_task_is_damage(finished):
    directory, run_again = finished
    (directory / "result.json").unlink()
    forget_files(directory / "2")
    shutil.copy(directory / "1/memory.npz", directory / "2/memory.npz")
    cure = f"Remove '{directory / '2'}' and the folders with higher numbers"
    with pytest.raises(
        DamagedError, match=r"2/memory.npz' is damaged: .*1 task.*not of 2"
    ) as raised:
        run_again()
    assert cure in str(raised.value)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-0.5", "7", "1" + "0" * 400])
def test_an_accuracy_that_is_none_is_damage_of_its_file(finished, value):
    directory, run_again = finished
    (directory / "result.json").unlink()
    path = directory / "2/progress.json"
    progress = read_json(path)
    progress["accuracies"][1] = json.loads(value)
    write_json(path, progress)
    with pytest.raises(DamagedError, match=r"2/progress.json' is damaged: its 'accuracies' is not"):
        run_again()


def test_a_damaged_result_is_made_again_when_it_is_removed(finished):
    directory, run_again = finished
    expected = run_again()
    assert expected["memory"]["kept_by_method"] > 0
    written_anew = {"network": ANY, "file": ANY}  # digests of model.keras, which has its date
    for content in (b'{"tasks": ', b"{}", b"\xff", None):
        break_file(directory / "result.json", content)
        with pytest.raises(DamagedError, match=r"result.json' is damaged: .*Remove it, and run"):
            run_again()
        path = directory / "result.json"
        path.rmdir() if path.is_dir() else path.unlink()
        assert run_again() | written_anew == expected | written_anew


def test_an_overwritten_run_starts_anew(finished):
    directory, _ = finished
    other = dataclasses.replace(ONE_EPOCH, seed=1)
    result = train(insects(tasks=2), other, directory, overwrite=True)
    assert result["seed"] == 1
    assert train(insects(tasks=2), other, directory) == result
