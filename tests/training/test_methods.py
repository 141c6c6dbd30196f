"""Every method learns a whole stream through the command line's own machinery."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
from cases import slow_but
from interrupting import Follower

from keras_mas.methods import METHODS, load_method
from keras_mas.methods.online_mas import NothingProtectedWarning
from keras_mas.training import under_way
from keras_mas.training.cli import main
from keras_mas.training.divergence import naming_unprotected
from keras_mas.training.run import train
from keras_mas.training.saved_tasks import saved_heads
from keras_mas.training.settings import Settings, run_name
from keras_mas.training.tasks import TaskStream

# The runs are short: `online_mas` finds no plateau in some.
pytestmark = pytest.mark.filterwarnings(
    "ignore::keras_mas.methods.online_mas.NothingProtectedWarning"
)

OWN = """
import numpy as np
from keras_mas.methods.quadratic import QuadraticMethod
from keras_mas.weights import trainable_weights

class Magnitude(QuadraticMethod):
    default_strength = 0.25

    def importance(self, model, x, y=None, **options):
        return {name: np.abs(w.numpy()) for name, w in trainable_weights(model).items()}
"""


@pytest.fixture(autouse=True)
def every_epoch(monkeypatch):
    monkeypatch.setattr(under_way, "EVERY", 0.0)


@pytest.fixture
def two_tasks(stream):
    return TaskStream("insects", "task", stream.tasks[:2], stream.rescale)


def quick(settings, **recipe):
    return dataclasses.replace(
        settings, recipe=dataclasses.replace(settings.recipe, epochs=2, **recipe)
    )


def final_weights(folder, tasks):
    models, _ = saved_heads(folder, tasks)
    return [weight for model in models.values() for weight in model.get_weights()]


def remembered(folder, tasks):
    """What the method saved after the last task, if it remembers anything."""
    path = folder / str(tasks) / "memory.npz"
    return dict(np.load(path)) if path.exists() else {}


def assert_resumes(stream, settings, tmp_path):
    """Check that a run that was interrupted in its last task ends as one that was not."""
    whole = train(stream, settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(stream, settings, tmp_path / "cut", listeners=[Follower((len(stream.tasks), 2))])
    resumed = train(stream, settings, tmp_path / "cut", listeners=[follower := Follower()])
    assert follower.epochs == [(len(stream.tasks), 2)]
    assert resumed["accuracy_matrix"] == whole["accuracy_matrix"]
    pairs = zip(
        *(final_weights(tmp_path / name, len(stream.tasks)) for name in ("whole", "cut")),
        strict=True,
    )
    assert all(np.array_equal(a, b) for a, b in pairs)
    mine, theirs = (remembered(tmp_path / name, len(stream.tasks)) for name in ("cut", "whole"))
    assert mine.keys() == theirs.keys()
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    return whole


@pytest.mark.parametrize("name", slow_but("mas", METHODS))
def test_every_method_learns_a_stream_and_resumes(two_tasks, settings, tmp_path, name):
    asked = quick(Settings(method=name, recipe=settings.recipe), learning_rate=0.05)
    result = assert_resumes(two_tasks, asked, tmp_path)
    assert (result["method"], asked.strength) == (name, load_method(name).default_strength)
    assert result["strength"] == (asked.strength if asked.has_strength else None)
    assert result["accuracy_matrix"][1][1] > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_moments_that_are_kept_are_kept_by_a_resumed_run(two_tasks, settings, tmp_path, optimizer):
    fresh = train(two_tasks, quick(settings, optimizer=optimizer), tmp_path / "fresh")
    asked = quick(settings, optimizer=optimizer, optimizer_state="kept")
    kept = assert_resumes(two_tasks, asked, tmp_path)
    assert (tmp_path / "cut/1/optimizer.npz").exists()
    assert not (tmp_path / "fresh/1/optimizer.npz").exists()
    # The first task is learned alike, and the second one is not.
    assert kept["accuracy_matrix"][0] == fresh["accuracy_matrix"][0]
    trunks = [final_weights(tmp_path / name, 2)[0] for name in ("fresh", "whole")]
    assert not np.array_equal(*trunks)


@pytest.fixture
def own(tmp_path, monkeypatch, stream):
    """A folder with a method of one's own and `insects.toml`, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "magnitude.py").write_text(OWN)
    text = 'name = "insects"\n'
    for task in stream.tasks[:2]:
        parts = {"train": task.train, "val": task.validation, "test": task.test}
        arrays = {f"x_{role}": split.inputs for role, split in parts.items()}
        arrays |= {f"y_{role}": split.labels for role, split in parts.items()}
        np.savez(tmp_path / f"{task.name}.npz", **arrays)
        text += f'[[task]]\nname = "{task.name}"\nnpz = "{task.name}.npz"\n'
    (tmp_path / "insects.toml").write_text(text)
    return tmp_path


def test_a_method_of_your_own_is_trained_and_searched(own, stream, capsys):
    words = ["insects.toml", "--method", "magnitude:Magnitude", "--backbone", "mlp-8", "--json"]
    assert main(["train", *words, "--epochs", "1"]) == 0, capsys.readouterr().err
    result = json.loads(capsys.readouterr().out)
    assert (result["method"], result["strength"]) == ("magnitude:Magnitude", 0.25)
    folder = own / "runs/insects-magnitude.Magnitude-0.25-mlp-8-epochs1-seed0"
    assert json.loads((folder / "result.json").read_text())["method"] == "magnitude:Magnitude"
    settings = Settings(method="magnitude:Magnitude")
    assert run_name(stream, settings) == "insects-magnitude.Magnitude-0.25-seed0"
    words += ["--epochs", "5", "--learning-rate", "0.03"]
    assert main(["search", *words, "--trials", "1"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert "--method magnitude:Magnitude" in found["command"]
    assert found["folder"].startswith("search/insects-magnitude.Magnitude-")
    assert main(["report", str(folder)]) == 0
    assert "magnitude:Magnitude λ=0.25" in capsys.readouterr().out


def test_a_method_of_your_own_is_checked_before_data_are_loaded(own, capsys):
    for command in ("train", "search"):
        assert main([command, "split-digits", "--method", "magnitude:Magnitud"]) == 2
        assert "without 'Magnitud'" in capsys.readouterr().err


def test_what_protects_nothing_names_its_run(stream, settings, tmp_path):
    recipe = dataclasses.replace(settings.recipe, epochs=1)
    asked = dataclasses.replace(settings, method="online_mas", seed=3, recipe=recipe)
    with pytest.warns(
        NothingProtectedWarning, match="^After task 'ants' with online_mas λ=1 seed 3: The"
    ):
        train(stream, asked, tmp_path)


def test_what_was_said_before_an_error_is_said(settings):
    with (
        pytest.warns(UserWarning, match="^something else$"),
        pytest.raises(OSError, match="full"),
        naming_unprotected("ants", settings),
    ):
        warnings.warn("something else", stacklevel=1)
        raise OSError("full")
