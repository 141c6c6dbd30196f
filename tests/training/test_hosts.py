"""Several hosts that learn together: what TF_CONFIG says, and two processes on loopback."""

import json
import multiprocessing.pool
import os
import signal
import socket
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import tensorflow as tf
from insects import task

from keras_mas.errors import UsageError
from keras_mas.training import hosts
from keras_mas.training.cli import main
from keras_mas.training.hosts import Cluster, cluster_of_environment
from keras_mas.training.rendezvous import MissingHostError
from keras_mas.training.run_directory import read_result
from keras_mas.training.saved_tasks import saved_heads
from keras_mas.training.under_way import TaskUnderWay


def config(cluster, kind, index):
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


TWO = {"worker": ["a:1", "b:1"]}
WITH_CHIEF = {"worker": ["b:1"], "chief": ["a:1"]}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        (config(TWO, "worker", 0), Cluster(("a:1", "b:1"), 0)),
        (config(TWO, "worker", 1), Cluster(("a:1", "b:1"), 1)),
        (config(WITH_CHIEF, "chief", 0), Cluster(("a:1", "b:1"), 0)),
        (config(WITH_CHIEF, "worker", 0), Cluster(("a:1", "b:1"), 1)),
        (config({"worker": ["a:1"]}, "worker", 0), None),  # which is one process
    ],
)
def test_the_hosts_are_those_of_the_environment(monkeypatch, text, found):
    monkeypatch.setenv("TF_CONFIG", text)
    assert cluster_of_environment() == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Received: '{'"),
        ("[]", "Expected TF_CONFIG as"),
        (json.dumps({"cluster": TWO}), "Expected TF_CONFIG as"),
        (config(TWO, "worker", 2), "the task 'worker' 2, which its cluster has not"),
        (config(TWO, "worker", -1), "the task 'worker' -1"),
        (config({"worker": "a:1"}, "worker", 0), "the address 'a'"),  # a list is needed
        (config({"worker": ["a", "b:1"]}, "worker", 0), "Received: the address 'a'"),
        (config({"worker": ["a:1", "b:x"]}, "worker", 0), "Received: the address 'b:x'"),
        (config({"worker": ["a:1", 7]}, "worker", 0), "Received: the address 7"),
        (config({"worker": ["a:1", "b:0"]}, "worker", 0), "Received: the address 'b:0'"),
        (config({"worker": ["a:1", "b:99999"]}, "worker", 0), "Received: the address 'b:99999'"),
        (config({"worker": ["a:1", "b..c:1"]}, "worker", 0), "Received: the address 'b..c:1'"),
        (config({"worker": ["a:1", "b:1", "a:1"]}, "worker", 0), "the address 'a:1' twice"),
        (config({**WITH_CHIEF, "worker": ["a:1"]}, "chief", 0), "the address 'a:1' twice"),
        (config({**TWO, "ps": ["c:1"]}, "ps", 0), "Received: 'ps': Keras 3 does not support it"),
        (config({**TWO, "evaluator": ["c:1"]}, "worker", 0), "Received: 'evaluator'. Make every"),
    ],
)
def test_what_names_no_hosts_that_learn_in_step_is_refused(monkeypatch, text, said):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match=said):
        cluster_of_environment()


def test_a_trained_network_starts_in_one_process(monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", config(TWO, "worker", 0))
    given = "train split-digits --start-from m.keras --unlabelled x.npz"
    assert main(given.split()) == 2
    assert "Received: TF_CONFIG with several hosts" in capsys.readouterr().err


def test_hosts_meet_before_tensorflow_waits_for_them(monkeypatch, capsys):
    def meet(*asked):
        raise MissingHostError(f"{asked}")

    monkeypatch.setattr(hosts, "meet", meet)
    with pytest.raises(MissingHostError, match=r"\('a:1', 'b:1'\), 1, 600"):
        hosts.join(Cluster(("a:1", "b:1"), 1), 1)
    assert capsys.readouterr().err == "keras-mas: waiting for a:1, up to 600 seconds\n"


LEFT_ALONE = """
import sys
from keras_mas.training import hosts

hosts.meet = lambda *_: None  # the other one was there, and has ended
hosts.CONNECTION_TIMEOUT = 3
hosts.join(hosts.cluster_of_environment(), 1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_host_that_is_left_alone_while_it_connects_ends(index):
    workers = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
    process = subprocess.run(
        [sys.executable, "-c", LEFT_ALONE],
        env=os.environ | {"TF_CONFIG": config(workers, "worker", index)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == -signal.SIGALRM
    assert "if another host ends now, this one does in 3 seconds" in process.stderr


@pytest.mark.parametrize("error", [tf.errors.UnavailableError, tf.errors.AbortedError])
def test_a_lost_host_is_told_in_a_sentence(error):
    said = "cannot be reached: reset by peer. See"
    with pytest.raises(hosts.LostHostError, match=said), hosts.reporting_losses():
        raise error(None, None, "reset by peer\nmore")


@pytest.mark.filterwarnings("ignore:unclosed running:ResourceWarning")
def test_a_lost_host_leaves_no_threads_to_the_end_of_the_process():
    pools = []

    def reduce():  # as TensorFlow does: it closes its pool only where nothing was raised
        pool = multiprocessing.pool.ThreadPool(1)
        pools.append(weakref.ref(pool))

        def thread():
            raise tf.errors.UnavailableError(None, None, "reset by peer")

        pool.map(lambda _: thread(), [0])

    with pytest.raises(hosts.LostHostError) as kept, hosts.reporting_losses():
        reduce()
    assert kept.value.__cause__ is not None
    assert pools[0]() is None


PAUSING = """
import time
import keras

class Pausing(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        time.sleep(0.3)

def follow(settings, folder):
    return Pausing()
"""

SETTINGS = "--epochs 12 --batch-size 9 --backbone mlp-16 --optimizer sgd --learning-rate 0.02"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with three small tasks, and the run of one process over them."""
    folder = tmp_path_factory.mktemp("hosts")
    lines = ['name = "insects"', 'scenario = "task"']
    for first, name in enumerate(["ants", "bees", "cats"]):
        splits = task(name, first).splits
        arrays = {}
        for role in ("train", "test"):
            arrays |= {f"x_{role}": splits[role].inputs, f"y_{role}": splits[role].labels}
        np.savez(folder / f"{name}.npz", **arrays)
        lines += ["[[task]]", f'name = "{name}"', f'npz = "{name}.npz"']
    (folder / "insects.toml").write_text("\n".join(lines))
    (folder / "pausing.py").write_text(PAUSING)
    assert main(f"train {folder}/insects.toml {SETTINGS} --output {folder}/one".split()) == 0
    return folder


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def start(folder):
    """Return a function that starts the command on two hosts; what still runs in the end goes."""
    started = []

    def start_two(output, more=()):
        workers = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}
        words = f"train {folder}/insects.toml {SETTINGS} --output {output}".split()
        for index in range(2):
            extra = more[index] if more else []
            process = subprocess.Popen(
                [sys.executable, "-m", "keras_mas.training.cli", *words, *extra],
                env=os.environ | {"TF_CONFIG": config(workers, "worker", index)},
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            started.append(process)
        return started[-2:]

    yield start_two
    for process in started:
        process.kill()
        process.communicate()


def ended(processes):
    """Return what processes wrote to standard error, which have to end with code 0."""
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    return said


def assert_like_one(folder, output):
    one, two = read_result(folder / "one"), read_result(output)
    assert (one["devices"], one["hosts"], two["devices"], two["hosts"]) == (1, 1, 2, 2)
    np.testing.assert_allclose(two["accuracy_matrix"], one["accuracy_matrix"], atol=1e-6)
    models = [saved_heads(run, 3)[0] for run in (folder / "one", output)]
    for name in models[0]:
        for mine, theirs in zip(models[1][name].weights, models[0][name].weights, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5, err_msg=mine.path)


@pytest.mark.slow
def test_two_hosts_learn_what_one_process_does(folder, start):
    chief, worker = ended(start(folder / "two"))
    assert_like_one(folder, folder / "two")
    assert "host 2 of 2: takes part" in worker
    assert "cats" in chief
    assert "cats" not in worker


def in_third_task(start, output):
    """Return two hosts in the middle of the last task."""
    processes = start(output, [["--callback", "pausing:follow"], []])
    until(lambda: (output / "2").exists() and under_way(output) == 2, 240)
    return processes


def under_way(output):
    """Return the number, from 0, of the task of which an epoch was saved."""
    begun = TaskUnderWay.read(output)
    return None if begun is None else begun.number


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_host_ends_all_and_the_same_commands_go_on(folder, start, victim):
    output = folder / f"killed-{victim}"
    processes = in_third_task(start, output)
    processes[victim].send_signal(signal.SIGKILL)
    survivor = processes[1 - victim]
    said = survivor.communicate(timeout=120)[1]
    assert survivor.returncode == 1
    assert "keras-mas: Another host has ended or cannot be reached: " in said
    assert "Traceback" not in said
    assert not (output / "3").exists()
    ended(start(output))
    assert_like_one(folder, output)


@pytest.mark.slow
def test_hosts_that_are_told_to_end_do_and_the_same_commands_go_on(folder, start):
    output = folder / "terminated"
    processes = in_third_task(start, output)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=120)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert 143 in codes, said
    # One waits for the other's part of a step, and may hear first that it has gone.
    reasons = {
        143: "keras-mas: terminated. The same command continues",
        1: "keras-mas: Another host has ended or cannot be reached: ",
    }
    for code, text in zip(codes, said, strict=True):
        assert reasons[code] in text
        assert "Traceback" not in text
    assert not (output / "3").exists()
    saved_heads(output, 2)
    assert under_way(output) == 2
    ended(start(output))
    assert_like_one(folder, output)


@pytest.mark.slow
def test_hosts_with_other_commands_are_refused(folder, start):
    processes = start(folder / "other", [[], ["--seed", "1"]])
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], said
    assert "others than the chief's on worker 1" in said[0]
    assert "on worker 1 (here in data, seed)" in said[1]


def until(happened, seconds):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)
