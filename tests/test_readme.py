"""Every command and every snippet of the README is run here, or by CI itself (`make test`)."""

import dataclasses
import re
import subprocess
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_mas
from keras_mas.serving.paths import list_versions
from keras_mas.training import demo
from keras_mas.training.cli import main
from keras_mas.training.settings import RECIPES
from keras_mas.training.tasks import load_tasks, toml_file
from keras_mas.training.tasks.files import read_folder

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    lines = "".join(blocks("sh")).splitlines()
    return [line.split("#")[0].split() for line in lines if line.strip()]


@pytest.mark.slow
def test_the_monthly_job_runs_in_a_process_each(tmp_path):
    january, february, *_ = blocks("python")
    for script in (january, february):
        assert len([line for line in script.splitlines() if line]) <= 13
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
    memory = keras_mas.SynapticMemory.load(tmp_path / "memory.npz")
    assert memory.tasks == 2
    assert max(values.max() for values in memory.importance.values()) > 0


def test_the_model_with_a_memory_of_its_own_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, snippet, *_ = blocks("python")
    exec(snippet, {})
    loaded = keras.models.load_model("model.keras")
    assert loaded.penalty == "decoupled"
    assert loaded.memory.importance["dense_1/kernel"].max() > 0


def test_a_method_runs_around_fit():
    *_, snippet, _ = blocks("python")
    names = {}
    exec(snippet, names)
    memory = names["method"].memory
    assert memory.tasks == 2
    assert max(values.max() for values in memory.importance.values()) > 0


class Recorded(types.ModuleType):
    """Stands in for MLflow, and takes note of what it is told."""

    def __init__(self):
        super().__init__("mlflow")
        self.told = []
        self.keras = types.ModuleType("mlflow.keras")
        self.keras.MlflowCallback = keras.callbacks.History

    def start_run(self, run_name, nested=False):
        self.told.append(f"start {run_name}" if nested else "start the run")

    def end_run(self):
        self.told.append("end")

    def log_metrics(self, metrics, step):
        self.told.append((step, sorted(metrics)))


def test_a_run_is_followed_by_mlflow(tmp_path, monkeypatch):
    mlflow = Recorded()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "mlflow.keras", mlflow.keras)
    monkeypatch.chdir(tmp_path)
    *_, snippet = blocks("python")
    (tmp_path / "my_mlflow.py").write_text(snippet)
    try:
        quick = ["--epochs", "1", "--backbone", "mlp-8"]
        assert main(["train", "split-digits", *quick, "--callback", "my_mlflow:follow"]) == 0
    finally:
        sys.modules.pop("my_mlflow", None)
    assert mlflow.told[:5] == ["end", "start the run", "start 0-1", "end", (1, ["task_1"])]
    assert mlflow.told[5:8] == ["start 2-3", "end", (2, ["task_1", "task_2"])]
    assert len(mlflow.told) == 2 + 5 * 3


def test_the_diff_runs_and_without_its_lines_is_a_keras_script():
    (diff,) = blocks("diff")
    script = [line[1:] for line in diff.splitlines()]
    inputs = keras.Input([4])
    x = np.random.default_rng(0).normal(size=[16, 4])
    names = {
        "model": keras.Model(inputs, keras.layers.Dense(2)(inputs)),
        "loss": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "january": x,
        "february": x,
        "january_labels": np.arange(16) % 2,
        "february_labels": np.arange(16) % 2,
        "keras_mas": keras_mas,
    }
    exec("\n".join(script), names)
    assert len(names["memory"].importance) == 2
    plain = [line[1:] for line in diff.splitlines() if not line.startswith("+")]
    exec("\n".join(plain), {**names, "keras_mas": None})


def test_the_commands_that_make_runs():
    made = [words for words in commands() if words[0] == "make"]
    assert made == [["make", "demo"], ["make", "test"]]
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    for _, target in made:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


@pytest.mark.slow
def test_the_demo(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert demo.main() == 0
    out, err = capfd.readouterr()
    assert out.count("of 20 right") == 2
    assert err.count("task 10/10") == 2
    assert "the server has been stopped" in err
    assert (tmp_path / "runs/demo.png").exists()
    assert list(list_versions(tmp_path / "models/rotated-digits")) == list(range(1, 11))


@pytest.mark.slow
def test_the_commands_of_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    ours = [words[1:] for words in commands() if words[0] == "keras-mas"]
    ours = [words for words in ours if "shop.toml" not in words]  # see below
    served, moved = {"serve", "status", "predict"}, {"promote", "rollback"}
    others = {"train", "report", "search", "compare", "export"}
    assert {words[0] for words in ours} == others | served | moved
    # Quicker than the recipe; everything else as it stands.
    quick = dataclasses.replace(RECIPES["split-digits"], epochs=1)
    monkeypatch.setitem(RECIPES, "split-digits", quick)
    for words in ours:
        # The server with the labels is not running, and so short a training may forget more.
        offline = ["--offline"] * (words[0] in moved and "--offline" not in words)
        more = offline + ["--force", "a test"] * (words[0] == "export")
        if words[0] not in served:
            assert main([*words, *more]) == 0, capsys.readouterr().err
    assert "digits: stable is version 5, previous is version 4\n" in capsys.readouterr().out
    serve, with_labels = (words for words in ours if words[0] == "serve")
    run_served(serve, [words for words in ours if words[0] in served - {"serve"}])
    run_served(with_labels, [["status", "digits"]])


def run_served(serve, others):
    """Run `serve` in the background and then the others: the README's words, on free ports."""
    script = Path(sys.executable).with_name("keras-mas")
    serve = [script, *serve, "--port", "0", "--rest-port", "0"]
    with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as server:
        try:
            greeting = server.stderr.readline()
            _, rest = re.findall(r"127\.0\.0\.1:\d+", greeting)
            for words in others:
                assert main([*words, "--server", rest]) == 0
        finally:
            server.terminate()
    assert server.returncode == 0


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """The README's `shop.toml` with its data, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (toml,) = blocks("toml")
    (tmp_path / "shop.toml").write_text(toml)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (90, 70)).save(folder / f"{number}.jpg")
    x, y = np.zeros([12, 64, 64, 3], "uint8"), np.arange(12) % 3
    np.savez(tmp_path / "parts.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    # No download in a test: the pets stand in for the flowers.
    monkeypatch.setattr(
        toml_file,
        "read_tfds",
        lambda _, size, folder, store, fraction: read_folder(tmp_path / "photos", size, store),
    )
    return tmp_path / "shop.toml"


def test_the_file_of_tasks_is_read(shop):
    stream = load_tasks(shop)
    assert [task.name for task in stream.tasks] == ["flowers", "pets", "parts"]
    assert stream.input_shape == (64, 64, 3)
    assert len(stream.tasks[2].classes) == 2


@pytest.mark.slow
def test_the_command_for_large_data(shop, capsys):
    (words,) = [words[1:] for words in commands() if "shop.toml" in words]
    quick = ["--epochs", "1", "--backbone", "cnn-2"]
    assert main([*words, *quick]) == 0, capsys.readouterr().err
    assert not (shop.parent / "cache").exists()  # it fits into memory
    words[words.index("--cache-memory") + 1] = "200kB"  # 16 photographs take 196,608 bytes
    assert main([*words, *quick, "--batch-size", "8", "--overwrite"]) == 0
    assert list((shop.parent / "cache").rglob("*.npy"))
