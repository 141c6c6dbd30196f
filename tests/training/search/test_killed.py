"""A search that is killed, in processes of its own."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
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


@contextlib.contextmanager
def running(here, *words, log):
    """Run a search, whose standard error goes to a file, within the block."""
    with (
        open(here / log, "w") as file,
        subprocess.Popen(
            words, cwd=here, stdout=subprocess.PIPE, stderr=file, text=True
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def wait_for(what, process):
    """Wait until a function returns something, while a process runs."""
    deadline = time.monotonic() + 300
    while not (found := what()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return found


def holder(here, trial, but=None):
    """Return the process that is at work on a trial."""
    for path in here.glob(f"cut/*/trials/{trial}/.lock.json"):
        with contextlib.suppress(ValueError, FileNotFoundError):
            pid = json.loads(path.read_text())["pid"]
            return pid if pid != but else None
    return None


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
        while not list(here.glob("cut/*/trials/strength-0.1/2")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert not list(here.glob("cut/*/trials/strength-0.1/result.json"))


@pytest.mark.slow
def test_a_search_that_is_killed_within_a_trial_loses_and_repeats_nothing(here):
    # So many epochs that the third task takes a while.
    kill_within_a_trial(here, epochs=400)
    rest = searched(here, 400, "cut")
    # Of 1 + 4·2 tasks in all, λ = 0 had learned three and λ = 0.1 one more.
    assert (rest["trained_now"], rest["tasks_learned_now"]) == (3, 1 + 2 * 2)
    whole = searched(here, 400, "whole")
    assert whole["tasks_learned_now"] == 9
    assert rest["trials"] == whole["trials"]
    assert rest["recommended"] == whole["recommended"]


@pytest.mark.slow
def test_workers_and_their_chief_are_killed_and_nothing_is_lost_or_repeated(here):
    words = [*command(400, "cut"), "--tuner", "random"]
    with running(here, *words, "--workers", "2", log="first.txt") as chief:
        wait_for(lambda: list(here.glob("cut/*/trials/strength-0.1/2")), chief)
        killed = wait_for(lambda: holder(here, "strength-0.1"), chief)
        psutil.Process(killed).kill()
        wait_for(lambda: holder(here, "strength-0.1", but=killed), chief)
        workers = psutil.Process(chief.pid).children()
        chief.kill()
    said = "was ended by signal 9 within trial strength-0.1, which is taken up again"
    assert said in (here / "first.txt").read_text()
    assert psutil.wait_procs(workers, timeout=120)[1] == []  # they notice
    ended = {path: path.stat().st_mtime_ns for path in here.glob("cut/*/trials/*/result.json")}

    # Now the workers are on machines of their own.
    listen = ["--workers", "0", "--listen", "127.0.0.1:0"]
    with running(here, *words, *listen, log="second.txt") as chief:
        log = here / "second.txt"
        where = wait_for(lambda: log.read_text().rpartition("--join ")[2].strip(), chief)
        joining = [*(word for word in words if word != "--json"), "--join", where]
        with (
            running(here, *joining, log="a.txt") as a,
            running(here, *joining, log="b.txt") as b,
        ):
            rest = json.loads(chief.communicate(timeout=300)[0])
            # One may have come when all was done, and finds no chief.
            ends = [(each.communicate(timeout=300)[0], each.returncode) for each in (a, b)]
    assert sorted(code for _, code in ends) in ([0, 0], [0, 1])
    assert all(("the search has ended" in text) == (code == 0) for text, code in ends)
    assert {path: path.stat().st_mtime_ns for path in ended} == ended
    assert rest["trained_now"] == 4 - len(ended)
    alone = [*command(400, "whole"), "--tuner", "random"]
    whole = json.loads(subprocess.run(alone, cwd=here, stdout=-1, text=True, check=True).stdout)
    assert whole["tasks_learned_now"] == 9
    assert rest["trials"] == whole["trials"]
    assert rest["recommended"] == whole["recommended"]
