"""A map over shards by Ray: a local cluster of two workers, of which some are killed."""

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import sys
import textwrap
import threading
import time
from concurrent import futures
from pathlib import Path

import grpc
import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from keras_mas import SynapticMemory
from keras_mas.errors import UsageError
from keras_mas.training import distributed
from keras_mas.training.cli import main
from keras_mas.training.commands.importance import _shards
from keras_mas.training.distributed import Cluster, ShardError, distributed_importance
from keras_mas.training.run import train
from keras_mas.training.settings import Recipe, Settings
from keras_mas.training.tasks import Split, Task, TaskStream

needs_ray = pytest.mark.skipif(
    not distributed.is_installed(), reason="Ray, of the extra `distributed`, is not installed"
)
slow = pytest.mark.slow
GUIDE = Path(__file__).parents[2] / "docs/importance-on-many-machines.md"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers on this machine, in a folder; all tests share them, and what they import."""
    import ray

    folder = tmp_path_factory.mktemp("workers")
    with pytest.MonkeyPatch.context() as environment:
        environment.chdir(folder)
        environment.setenv("RAY_AUTH_TOKEN", secrets.token_hex())  # or Ray keeps one in the home
        environment.setenv("RAY_AUTH_MODE", "")  # Ray sets it, and does not take it back
        environment.delenv("RAY_AUTH_MODE")
        with distributed._signals_kept():
            ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield folder
        ray.shutdown()


def test_the_extra_is_named_where_ray_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"'ray'.* not installed.*keras-mas\[distributed\]"):
        Cluster()


@needs_ray
@pytest.mark.parametrize("address", ["here", "here:port", "10.0.0.1:", ":6379"])
def test_what_is_no_address_is_refused(address):
    with (
        pytest.raises(UsageError, match=f"as HOST:PORT, .* Received: '{address}'"),
        Cluster(address),
    ):
        pass


@needs_ray
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_at_which_nothing_answers_is_refused_soon(monkeypatch, scheme):
    monkeypatch.setattr(distributed, "_SECONDS", 0.3)
    start = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        # It accepts connections, and is silent.
        with pytest.raises(UsageError, match=f"at '{address}'.*another server"), Cluster(address):
            pass
    with pytest.raises(UsageError, match=f"at '{address}'.*refused"), Cluster(address):
        pass
    assert time.monotonic() - start < 5


@needs_ray
def test_a_cluster_that_cannot_be_joined_is_refused_in_time(monkeypatch):
    monkeypatch.setattr(distributed, "_SECONDS_TO_JOIN", 1.0)
    server = grpc.server(futures.ThreadPoolExecutor(1))  # which knows nothing of Ray
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with pytest.raises(UsageError, match="no answer of Ray within 1 seconds"), Cluster(address):
            pass
    finally:
        server.stop(0).wait()


def test_a_signal_while_ray_starts_is_handled_as_before():
    def of_ray(number, frame):
        sys.exit(number)

    told = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        with distributed._signals_kept():
            signal.signal(signal.SIGTERM, of_ray)
            signal.raise_signal(signal.SIGTERM)
        assert told == [signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)
        assert told == [signal.SIGTERM] * 2
    finally:
        signal.signal(signal.SIGTERM, before)


@needs_ray
def test_the_workers_of_a_cluster_are_divided_by_ray():
    with pytest.raises(UsageError, match="'local' alone. Received: 2 with 'auto'"):
        Cluster("auto", workers=2)


def test_no_shard_is_refused():
    with pytest.raises(ValueError, match="at least one shard. Received: none"):
        distributed_importance("model.keras", [])


def test_folders_of_images_are_shards_of_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr("keras_mas.training.commands.importance._IMAGES", 2)
    for name in ("a.jpg", "b.png", "c.JPEG", "notes.txt"):
        (tmp_path / name).touch()
    log = tmp_path / "d.tfrecord"
    shards = _shards([tmp_path, log])
    assert [[path.name for path in shard] for shard in shards] == [
        ["a.jpg", "b.png"],
        ["c.JPEG"],
        ["d.tfrecord"],
    ]


# With workers.


def line():
    x = keras.Input([1])
    model = keras.Model(x, keras.layers.Dense(1)(x))
    model.set_weights([np.array([[1.0]]), np.array([0.0])])
    return model


def reader():
    """Return a function that a worker needs no test's module for."""

    def read(shard):
        what, inputs = shard
        if what == "fatal":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "broken":
            raise OSError("this shard is broken\nand has a long story")
        if what != "good" and not os.path.exists(what):  # a flag: the first time
            open(what, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return np.array(inputs, np.float32)[:, None]

    return read


@needs_ray
@slow
def test_the_sum_is_that_of_all_shards_though_a_worker_was_killed(cluster, tmp_path):
    # F = wx + b with w = 1, b = 0: |∂F²/∂w| = 2x² and |∂F²/∂b| = |2x|. Over 1, −1, 2 and 4, in
    # shards of different sizes, the means are 2 · 22/4 = 11 and 2 · 8/4 = 4. The mean of the
    # shards' means would be 2 · (6/3 + 16)/2 = 18.
    flag = str(tmp_path / "killed")
    told = []
    model = line()
    omega = distributed_importance(
        model,
        [(flag, [1, -1, 2]), ("good", [4])],
        reader(),
        on_progress=lambda *numbers: told.append(numbers),
    )
    assert os.path.exists(flag)
    [kernel, bias] = (weight.path for weight in model.trainable_weights)
    assert {name: values.tolist() for name, values in omega.items()} == {
        kernel: [[11.0]],
        bias: [4.0],
    }
    assert omega[kernel].dtype == np.float32
    assert told == [(1, 2), (2, 2)]


@needs_ray
@slow
def test_a_shard_that_cannot_be_measured_is_named(cluster):
    with pytest.raises(ShardError, match="shard '.'broken'.*OSError: this shard is broken. Corr"):
        distributed_importance(line(), [("broken", [])], reader())
    with pytest.raises(ShardError, match="shard '.'fatal'.* died .*This happened 2 times") as error:
        distributed_importance(line(), [("fatal", [2])], reader(), retries=1)
    assert error.value.shard == ("fatal", [2])


@needs_ray
@slow
def test_the_examples_of_the_docstring_and_of_the_guide_run(cluster, monkeypatch):
    monkeypatch.chdir(cluster)
    line().save("model.keras")
    np.save("1.npy", np.array([[1.0], [-1.0], [2.0]]))
    np.save("2.npy", np.array([[4.0]]))
    example = distributed_importance.__doc__.partition("Example:\n")[2]
    (script,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    for code in (textwrap.dedent(example), script):
        names = {"distributed_importance": distributed_importance, "np": np}
        exec(code, names)
        assert sorted(float(values.sum()) for values in names["omega"].values()) == [4.0, 11.0]


@pytest.fixture(scope="module")
def later():
    return np.random.default_rng(5).normal(size=(400, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished run of two tasks of four inputs."""

    def task(name, seed):
        x = np.random.default_rng(seed).normal(size=(60, 4)).astype(np.float32)
        return Task(name, ("low", "high"), *[Split(x, (x[:, 0] > 0).astype(np.int64))] * 3)

    stream = TaskStream("insects", "task", (task("ants", 0), task("bees", 1)), rescale=(1.0, 0.0))
    recipe = Recipe(backbone="mlp-8", epochs=2, batch_size=16)
    folder = tmp_path_factory.mktemp("runs") / "mas"
    train(stream, Settings(method="mas", strength=1.0, seed=0, recipe=recipe), folder)
    return folder


def write(path, records):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def example(row):
    values = tf.train.Feature(float_list=tf.train.FloatList(value=row))
    features = tf.train.Features(feature={"inputs": values})
    return tf.train.Example(features=features).SerializeToString()


def request(rows, signature):
    log = prediction_log_pb2.PredictionLog()
    spec = log.predict_log.request.model_spec
    spec.name, spec.signature_name = "insects", signature
    log.predict_log.request.inputs["inputs"].CopyFrom(tf.make_tensor_proto(rows))
    return log.SerializeToString()


@contextlib.contextmanager
def first_worker_killed(at):
    """Kill the first worker that is seen at some work, and wait until it is dead."""
    killed, over = [], threading.Event()

    def watch():
        while not over.is_set() and not killed:
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if any(f"ray::{at}" in word for word in process.cmdline()):
                        process.kill()
                        process.wait(10)
                        killed.append(process.pid)
                        break
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def added(finished, file):
    before = SynapticMemory.load(finished / "2/memory.npz").importance
    after = SynapticMemory.load(file).importance
    return {name: values - before[name] for name, values in after.items()}


def run(capsys, *words):
    assert main(["importance", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@needs_ray
@slow
def test_sharded_examples_give_what_one_process_does_though_a_worker_was_killed(
    cluster, finished, later, tmp_path, capsys
):
    # Parts of different sizes, that share inputs.
    for number, part in enumerate([later[:150], later[140:300], later[300:], later[:10]]):
        write(tmp_path / f"part-{number}.tfrecord", map(example, part))
    words = [finished, "--from-data", tmp_path / "part-*.tfrecord", "--max-examples", "350"]
    one = run(capsys, *words, "--output", tmp_path / "one.npz")
    with first_worker_killed("measure") as killed:
        many = run(capsys, *words, "--output", tmp_path / "many.npz", "--ray", "local")
    assert len(killed) == 1
    run(capsys, *words, "--output", tmp_path / "again.npz", "--ray", "local")

    assert (one["read"], one["duplicates"], one["measured"]) == (420, 20, 350)
    approximate = {"output": many["output"], "mean_importance": many["mean_importance"]}
    assert one | approximate == many
    omega, again = added(finished, tmp_path / "many.npz"), added(finished, tmp_path / "again.npz")
    for name, values in added(finished, tmp_path / "one.npz").items():
        np.testing.assert_allclose(omega[name], values, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(omega[name], again[name])  # whoever measured it when
    assert max(values.max() for values in omega.values()) > 0.01


@needs_ray
@slow
def test_sharded_requests_are_counted_as_in_one_process(cluster, finished, later, tmp_path, capsys):
    logs = [tmp_path / f"requests-{number}" for number in range(3)]
    write(logs[0], [request(later[:20], "bees"), request(3e38 * np.sign(later[:2]), "")])
    write(logs[1], [request(later[:25], ""), request(later[10:30], "bees"), b"\xff\xff"])
    write(logs[2], [request(row[None], "ants") for row in later[:40]])
    logs[2].write_bytes(logs[2].read_bytes()[:-100])
    words = [finished, "--from-requests", *logs]
    one = run(capsys, *words, "--output", tmp_path / "one.npz")
    many = run(capsys, *words, "--output", tmp_path / "many.npz", "--ray", "local")
    assert len(one["left_out"]) == 3 and one["duplicates"] == 10
    approximate = {"output": many["output"], "mean_importance": many["mean_importance"]}
    assert one | approximate == many
    omega = added(finished, tmp_path / "many.npz")
    for name, values in added(finished, tmp_path / "one.npz").items():
        np.testing.assert_allclose(omega[name], values, rtol=1e-5, atol=1e-6)

    words = [finished, "--from-requests", logs[0], tmp_path / "gone", "--ray", "local"]
    assert main(["importance", *map(str, words), "--output", str(tmp_path / "n.npz")]) == 2
    assert f"a log of requests in '{tmp_path}/gone'. Received: no such" in capsys.readouterr().err
