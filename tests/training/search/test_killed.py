"""A search that is killed, in processes of its own."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(sys.executable).with_name("keras-mas")
OPTIONS = ["--trials", "3", "--complete-trials", "--backbone", "mlp-8", "--json"]


@pytest.fixture
def here(tmp_path, stream):
    text = 'name = "insects"\n'
    for task in stream.tasks:
        train, test = task.train, task.test
        arrays = {"x_train": train.inputs, "y_train": train.labels}
        arrays |= {"x_test": test.inputs, "y_test": test.labels}
        np.savez(tmp_path / f"{task.name}.npz", **arrays)
        text += f'[[task]]\nname = "{task.name}"\nnpz = "{task.name}.npz"\n'
    (tmp_path / "insects.toml").write_text(text)
    return tmp_path


def command(epochs, directory):
    words = [SCRIPT, "search", "insects.toml", "--epochs", epochs, "--directory", directory]
    return [*map(str, words), *OPTIONS]


def searched(here, epochs, directory):
    done = subprocess.run(
        command(epochs, directory), cwd=here, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def kill_within_a_trial(here, epochs):
    """Kill a search when its second trial has learned its second task, and is at the third."""
    words = command(epochs, "cut")
    with subprocess.Popen(words, cwd=here, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not list(here.glob("cut/*/trials/strength-1.0/2")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert not list(here.glob("cut/*/trials/strength-1.0/result.json"))


@pytest.mark.slow
def test_a_search_that_is_killed_within_a_trial_loses_and_repeats_nothing(here):
    # So many epochs that the third task takes a while.
    kill_within_a_trial(here, epochs=400)
    rest = searched(here, 400, "cut")
    # Of 1 + 4·2 tasks in all, λ = 0 had learned three and λ = 1 one more.
    assert (rest["trained_now"], rest["tasks_learned_now"]) == (3, 1 + 2 * 2)
    whole = searched(here, 400, "whole")
    assert whole["tasks_learned_now"] == 9
    assert rest["trials"] == whole["trials"]
    assert rest["recommended"] == whole["recommended"]
