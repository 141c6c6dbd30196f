"""From the first task to the third, by way of production, with the command line as users call it.

Two tasks are trained and become two versions; a damaged one is refused; clients get the canary and
the stable one; what they ask is logged, and Ω of it holds the network while it learns a third task.
"""

import contextlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from cases import slow
from insects import replace_model

from keras_mas import MultiHead, SynapticMemory, compute_importance
from keras_mas.serving.gate import Bounds
from keras_mas.serving.paths import list_versions
from keras_mas.serving.publish import publish
from keras_mas.serving.signatures import trunk_of
from keras_mas.serving.standin import LogSettings, ServerOptions, StandIn
from keras_mas.training.cli import main
from keras_mas.training.exporting import held_out_of
from keras_mas.training.saved_tasks import finished_network
from keras_mas.training.tasks import load_tasks

NAMES = ["ants", "bees", "cats"]
TRAIN = ["--backbone", "mlp-16", "--learning-rate", "0.02", "--epochs", "8", "--batch-size", "16"]


def write_tasks(name, tasks):
    """Write the TOML file of a stream, and its data: two classes around opposite points."""
    for number, task in enumerate(tasks):
        rng = np.random.default_rng(number)
        centre = rng.normal(size=4)
        centre *= 1.5 / np.linalg.norm(centre)
        arrays = {}
        for role in ("train", "test"):
            y = np.arange(80) % 2
            x = rng.normal(0, 0.4, [80, 4]) + np.where(y, 1, -1)[:, None] * centre
            arrays |= {f"x_{role}": x.astype("float32"), f"y_{role}": y}
        np.savez(f"{task}.npz", **arrays)
    text = "".join(f'[[task]]\nname = "{task}"\nnpz = "{task}.npz"\n' for task in tasks)
    Path(f"{name}.toml").write_text(f'name = "insects"\n{text}')


@contextlib.contextmanager
def in_this_process(config):
    options = ServerOptions(
        file_system_poll_wait_seconds=0.1,
        allow_version_labels_for_unavailable_models=True,
        request_log=LogSettings("requests/asked"),
    )
    with StandIn(config, grpc_port=0, rest_port=0, options=options) as server:
        yield server.grpc_port, server.rest_port


@contextlib.contextmanager
def as_a_command(config):
    words = ["serve", "--config", config, "--with", "standin", "--port", "0", "--rest-port", "0"]
    words += ["--poll", "0.1", "--log-requests", "requests/asked"]
    script = Path(sys.executable).with_name("keras-mas")
    with subprocess.Popen([script, *words], stderr=subprocess.PIPE, text=True) as server:
        try:
            greeting = next(line for line in server.stderr if "stand-in for" in line)
            yield [int(port) for port in re.findall(r"127\.0\.0\.1:(\d+)", greeting)]
        finally:
            server.terminate()
            server.stderr.read()
    assert server.returncode == 0


def damage(run, copy):
    """Copy a run, in which the weights of the trunk have the wrong sign after the second task."""
    shutil.copytree(run, copy)
    model = keras.models.load_model(copy / "2" / "model.keras")
    layer = model.get_layer("hidden-1")
    layer.kernel.assign(-layer.kernel)
    replace_model(copy / "2", model)


@pytest.mark.parametrize("serving", [in_this_process, slow(as_a_command)])
def test_a_model_goes_from_task_to_task_by_way_of_production(
    serving, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    write_tasks("two", NAMES[:2])
    write_tasks("three", NAMES)
    Path("requests").mkdir()

    def run(*words, code=0):
        found = main([*map(str, words)])
        captured = capsys.readouterr()
        assert found == code, captured.err
        return json.loads(captured.out) if "--json" in words else captured.err

    # Two tasks, and the first version, which becomes the stable one.
    run("train", "two.toml", *TRAIN, "--output", "run")
    export = ["--to", "models/insects", "--max-forgetting", "0.1", "--min-accuracy", "0.7"]
    run("export", "run", "--version", 1, *export)
    run("promote", "models/insects", "--offline")

    with serving("models/models.config") as (grpc_port, rest_port):
        server = ["--server", f"127.0.0.1:{grpc_port}"]

        def ask(inputs, *which):
            """Return the answers about ants; each goes through the log."""
            np.save("asked.npy", inputs)
            where = ["--server", f"127.0.0.1:{rest_port}", "--via", "rest"]
            words = ["--input", "asked.npy", "--task", "ants", *which, *where]
            return [row["probability"] for row in run("predict", "insects", *words, "--json")]

        def states():
            where = ["--via", "grpc", *server]
            rows = run("status", "models/insects", *where, "--json")
            return {row["version"]: (row["state"], row["labels"]) for row in rows}

        asked = np.random.default_rng(9).normal(size=(4, 8, 4)).astype(np.float32)
        first = ask(asked[0], "--label", "stable")

        # A damaged second version is refused, and what is served stays served.
        damage(tmp_path / "run", tmp_path / "damaged")
        error = run("export", "damaged", "--version", 2, *export, code=1)
        assert "Version 2 of 'insects' was not published: task 'ants' lost" in error
        assert list(list_versions("models/insects")) == [1]
        assert not json.loads(Path("models/insects/blessing.json").read_text())["blessed"]
        assert ask(asked[0], "--label", "stable") == first

        # The second version: a canary, then stable, then back.
        run("export", "run", "--version", 2, *export)
        promoted = run("promote", "models/insects", "--label", "canary", *server, "--json")
        assert promoted == {"stable": 1, "canary": 2}
        assert states() == {1: ("AVAILABLE", ["stable"]), 2: ("AVAILABLE", ["canary"])}
        second = ask(asked[1], "--label", "canary")
        assert second != ask(asked[1], "--label", "stable")
        promoted = run("promote", "models/insects", *server, "--json")
        assert promoted == {"stable": 2, "previous": 1}
        assert ask(asked[1], "--label", "stable") == second
        assert run("rollback", "models/insects", *server, "--json") == {"stable": 1}
        assert ask(asked[0], "--label", "stable") == first == ask(asked[0])
        # Version 2 is unloaded when its last request has been answered.
        assert states()[1] == ("AVAILABLE", ["stable"])
        assert states()[2][0] in ("UNLOADING", "END")
        ask(asked[2], "--label", "stable")

    # Ω of everything that was asked, to rounding that of the same inputs.
    logs = sorted(Path("requests").iterdir())
    words = ["--from-requests", *logs, "--output", "memory.npz", "--json"]
    report = run("importance", "run", *words)
    assert (report["read"], report["measured"], report["left_out"]) == (8 * 8, 3 * 8, {})
    network = finished_network(tmp_path / "run")
    ants = keras.Model(network.input, network.output["ants"])
    before, after = (SynapticMemory.load(path) for path in ("run/2/memory.npz", "memory.npz"))
    direct = compute_importance(ants, np.concatenate(asked[:3]))
    for name, omega in before.importance.items():
        np.testing.assert_allclose(after.importance[name], omega + direct[name], rtol=1e-5)

    # The third task, held by it, is published beside the stable version.
    heads = with_third_task(network, after)
    stream = load_tasks("three.toml")
    options = {"version": 3, "bounds": Bounds(0.1, 0.7)}
    folder = publish(heads, "models/insects", held_out_of(stream, 3), **options)
    assert list(list_versions("models/insects")) == [1, 2, 3]
    judged = json.loads((folder / "assets.extra" / "blessing.json").read_text())
    assert judged["compared_with"] == {"version": 1, "label": "stable"}
    # Without the memory, what users rely on would have moved further.
    free = with_third_task(finished_network(tmp_path / "run"), None)
    assert 0 < moved(heads, after) < moved(free, after) / 2


def moved(heads, memory):
    """Return Σ Ω (θ − θ*)² over the trunk's weights."""
    layer = heads["ants"].get_layer("hidden-1")
    return sum(
        np.sum(memory.importance[name] * (weight.numpy() - memory.anchor[name]) ** 2)
        for name, weight in [("hidden-1/kernel", layer.kernel), ("hidden-1/bias", layer.bias)]
    )


def with_third_task(network, memory):
    """Learn the cats on the trunk of a network; return the models of all heads."""
    old = {name: keras.Model(network.input, logits) for name, logits in network.output.items()}
    trunk = trunk_of(old)
    if memory is not None:
        memory.protect(trunk)
    keras.utils.set_random_seed(0)
    cats = MultiHead(trunk).add("cats", units=2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    cats.compile(keras.optimizers.Adam(0.02), loss)
    with np.load("cats.npz") as arrays:
        cats.fit(arrays["x_train"], arrays["y_train"], epochs=30, batch_size=16, verbose=0)
    return old | {"cats": cats}
