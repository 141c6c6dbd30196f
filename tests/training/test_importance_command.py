"""`keras-mas importance`: Ω of inputs that came after a run."""

import json
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from keras_mas import SynapticMemory, compute_importance, importance_one_by_one
from keras_mas.methods import load_method
from keras_mas.training.cli import main
from keras_mas.training.later_inputs import measure_drift
from keras_mas.training.run import train
from keras_mas.training.run_directory import read_json, write_json
from keras_mas.training.saved_tasks import finished_network
from keras_mas.training.settings import Recipe, Settings
from keras_mas.training.tasks import Split, Task, TaskStream

RECIPE = Recipe(backbone="mlp-8", epochs=2, batch_size=16)


def task_of(name, seed):
    """Two classes of four inputs, told apart by the sign of the first."""
    x = np.random.default_rng(seed).normal(size=(60, 4)).astype(np.float32)
    split = Split(x, (x[:, 0] > 0).astype(np.int64))
    return Task(name, ("low", "high"), *[split] * 3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder of a finished run of two tasks of four inputs, and its result."""
    tasks = tuple(task_of(name, seed) for seed, name in enumerate(["ants", "bees"]))
    stream = TaskStream("insects", "task", tasks, rescale=(1.0, 0.0))
    folder = tmp_path_factory.mktemp("runs") / "mas"
    train(stream, Settings(method="mas", strength=1.0, seed=0, recipe=RECIPE), folder)
    return folder


@pytest.fixture
def later():
    return np.random.default_rng(5).normal(size=(12, 4)).astype(np.float32)


@pytest.fixture
def log(tmp_path):
    """A function that writes a log of requests, as pairs of a signature and inputs."""

    def log(*requests, model="insects"):
        path = tmp_path / "requests"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for signature, inputs in requests:
                record = prediction_log_pb2.PredictionLog()
                request = record.predict_log.request
                request.model_spec.name, request.model_spec.signature_name = model, signature
                request.inputs["inputs"].CopyFrom(tf.make_tensor_proto(inputs))
                writer.write(record.SerializeToString())
        return path

    return log


@pytest.fixture
def examples(tmp_path):
    """A function that writes inputs to a TFRecord file of `tf.Example`s."""

    def examples(name, inputs):
        with tf.io.TFRecordWriter(str(tmp_path / name)) as writer:
            for row in inputs:
                values = tf.train.Feature(float_list=tf.train.FloatList(value=row))
                features = tf.train.Features(feature={"inputs": values})
                writer.write(tf.train.Example(features=features).SerializeToString())

    return examples


def run(capsys, *words):
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_importance_of_logged_requests_is_that_of_the_same_inputs(
    finished, later, log, tmp_path, capsys
):
    files = snapshot(finished)
    requests = log(("serving_default", later[:5]), ("bees", later[5:]), ("", later[:5]))
    to = tmp_path / "memory.npz"
    report = run(capsys, "importance", finished, "--from-requests", requests, "--output", to)

    assert (report["read"], report["duplicates"], report["measured"]) == (17, 5, 12)
    before = SynapticMemory.load(finished / "2/memory.npz")
    after = SynapticMemory.load(to)
    network = finished_network(finished)
    bees = keras.Model(network.input, network.output["bees"])
    # What all heads answer is measured on all logits, and what one head answers on its own.
    of_all = importance_one_by_one(network, later[:5])
    of_bees = importance_one_by_one(bees, later[5:])
    for name, omega in before.importance.items():
        expected = omega + (5 * of_all[name] + 7 * of_bees[name]) / 12
        np.testing.assert_allclose(after.importance[name], expected, rtol=1e-5)
        np.testing.assert_array_equal(after.anchor[name], before.anchor[name])
    assert (after.tasks, after.strength) == (2, 1.0)
    assert snapshot(finished) == files


@pytest.mark.slow
def test_importance_of_a_thousand_requests_is_that_of_the_same_inputs(
    finished, log, tmp_path, capsys
):
    asked = np.random.default_rng(6).normal(size=(1000, 1, 4)).astype(np.float32)
    to = tmp_path / "memory.npz"
    requests = log(*(("serving_default", each) for each in asked))
    report = run(capsys, "importance", finished, "--from-requests", requests, "--output", to)
    assert (report["read"], report["duplicates"], report["measured"]) == (1000, 0, 1000)
    before = SynapticMemory.load(finished / "2/memory.npz").importance
    after = SynapticMemory.load(to).importance
    direct = compute_importance(finished_network(finished), asked[:, 0])
    for name, omega in before.items():
        # The log is read in random order, and float32 sums depend on it in the last digits.
        np.testing.assert_allclose(after[name], omega + direct[name], rtol=2e-6)


def test_the_next_training_takes_the_memory(finished, later, log, tmp_path, capsys):
    to = tmp_path / "memory.npz"
    requests = log(("", later))
    run(capsys, "importance", finished, "--from-requests", requests, "--output", to)
    load_method("mas")().load(to, 2)  # as a run of this method does after two tasks
    network = finished_network(finished)
    memory = SynapticMemory.load(to)
    memory.recognize(network)
    network.trainable_weights[0].assign_add(np.ones_like(network.trainable_weights[0]))
    drifted = float(memory.penalty(network))
    total = memory.importance["hidden-1/kernel"].sum()
    assert drifted == pytest.approx(total, rel=1e-4)  # λ Σ Ω · 1²


def test_one_file_is_said_to_be_one(finished, later, tmp_path, capsys):
    np.save(tmp_path / "later.npy", later)
    words = ["--from-data", tmp_path / "later.npy", "--output", tmp_path / "memory.npz"]
    assert main(["importance", *map(str, [finished, *words])]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "inputs: 12 read from 1 file, 0 equal to another, 12 measured"
    assert lines[1].startswith("mean Ω of 2 tasks: ")


def test_of_inputs_of_which_some_are_drawn_the_numbers_add_up(finished, later, tmp_path, capsys):
    np.save(tmp_path / "later.npy", np.concatenate([later, later[:3]]))
    words = ["--from-data", tmp_path / "later.npy", "--output", tmp_path / "memory.npz"]
    assert main(["importance", *map(str, [finished, *words, "--max-examples", 10])]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    assert line == "inputs: 15 read from 1 file, 3 equal to another, 10 of the other 12 measured"


def test_an_input_that_overflows_is_left_out_and_counted(finished, later, log, tmp_path, capsys):
    # At 3e38 the outputs overflow, and at 1e20 their squares do.
    requests = log(("", later), ("bees", 3e38 * np.sign(later[:2])), ("", 1e20 * later[:1]))
    to = tmp_path / "memory.npz"
    report = run(capsys, "importance", finished, "--from-requests", requests, "--output", to)
    assert report["left_out"] == {"inputs on which outputs or gradients are not finite": 3}
    assert (report["read"], report["measured"]) == (15, 12)
    before = SynapticMemory.load(finished / "2/memory.npz").importance
    omega = compute_importance(finished_network(finished), later)
    for name, values in SynapticMemory.load(to).importance.items():
        np.testing.assert_allclose(values, before[name] + omega[name], rtol=1e-5)

    requests = log(("", 3e38 * np.sign(later[:2])))
    words = ["importance", finished, "--from-requests", requests, "--output", tmp_path / "n.npz"]
    assert main([*map(str, words)]) == 1
    assert "none that can be used; left out: 2 inputs on which out" in capsys.readouterr().err


def test_requests_to_other_models_are_left_out_or_said(finished, later, log, tmp_path, capsys):
    to = tmp_path / "memory.npz"
    words = ["importance", finished, "--from-requests", log(("", later), ("wasps", later))]
    report = run(capsys, *words, "--output", to)
    assert report["left_out"] == {"requests to another signature, 'wasps'": 1}
    words = ["importance", finished, "--from-requests", log(("", later), model="shoes")]
    assert main([*map(str, words), "--output", str(to), "--overwrite"]) == 0
    assert "to 'shoes', while the run is of 'insects'" in capsys.readouterr().err


def test_a_folder_named_as_an_image_is_none(finished, tmp_path, capsys):
    (tmp_path / "photos" / "a.png").mkdir(parents=True)
    words = ["--from-data", tmp_path / "photos", "--output", tmp_path / "m.npz"]
    assert main(["importance", str(finished), *map(str, words)]) == 1
    assert "none that can be used; left out: nothing." in capsys.readouterr().err


def test_data_without_labels_take_the_place_of_requests(finished, later, tmp_path, capsys):
    np.savez(tmp_path / "later.npz", x=later)
    to = tmp_path / "memory.npz"
    data = [tmp_path / "later.npz"]
    run(capsys, "importance", finished, "--from-data", *data, "--output", to)
    name = "hidden-1/kernel"
    added = (
        SynapticMemory.load(to).importance[name]
        - SynapticMemory.load(finished / "2/memory.npz").importance[name]
    )
    expected = compute_importance(finished_network(finished), later)[name]
    np.testing.assert_allclose(added, expected, rtol=1e-3, atol=1e-5)


def test_sharded_examples_take_the_place_of_requests(
    finished, later, examples, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    examples("part-1.tfrecord", later[:5])
    examples("part-2.tfrecord", later[3:])
    words = ["importance", finished, "--output", "m.npz", "--from-data"]
    report = run(capsys, *words, "part-*.tfrecord")
    assert (report["files"], report["read"], report["duplicates"]) == (2, 14, 2)
    before = SynapticMemory.load(finished / "2/memory.npz").importance
    omega = compute_importance(finished_network(finished), later)
    for name, values in SynapticMemory.load("m.npz").importance.items():
        np.testing.assert_allclose(values, before[name] + omega[name], rtol=1e-5)


def test_all_inputs_are_measured_where_all_are_asked_for(finished, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(1100, 4)))
    words = ["importance", finished, "--from-data", tmp_path / "x.npy", "--overwrite"]
    words += ["--output", tmp_path / "m.npz"]
    assert run(capsys, *words)["measured"] == 1000
    assert run(capsys, *words, "--max-examples", "all")["measured"] == 1100


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["gone", "--from-requests", "log"], 2, "not the folder of a finished run"),
        (["RUN", "--from-requests", "gone"], 2, "'gone'. Received: no such file or directory"),
        (["RUN", "--from-requests", "text"], 2, "Expected logs of requests"),
        (["RUN", "--from-requests", "asked"], 2, "but 1 that `keras-mas serve --log-requests as"),
        (["RUN", "--from-requests", "log", "--model", "cars"], 1, "4 requests to the model"),
        (["RUN", "--from-data", "text"], 2, "an array in 'text'"),
        (["RUN", "--from-data", "gone.tfrecord"], 2, "'gone.tfrecord'. Received: no such file"),
        (["RUN", "--from-data", "text.tfrecord"], 1, "1 'text.tfrecord', which is no TFRecord"),
        (["RUN", "--from-data", "part-*"], 2, "files that match 'part-*'. Received: none"),
        (["RUN", "--from-data", "wide.npy", "--workers", "2"], 2, "--workers with --ray local"),
        (["RUN", "--from-data", "wide.npy"], 1, "3 inputs of shape [7]"),
        (["RUN", "--from-requests", "log", "--resize", "crop"], 2, "a model of images"),
        (["RUN"], 2, "one of --from-requests and --from-data. Received: none of them"),
        (["RUN", "--from-data", "a", "--output", "taken.npz"], 2, "'taken.npz', which exists"),
        (["RUN", "--from-data", "pickle.npy"], 2, "Python objects, which are not read"),
        (["RUN", "--from-data", "a", "--output", "gone/m.npz"], 2, "in a folder that exists"),
        (["RUN", "--from-data", "a", "--output", "memory.txt"], 2, "name ends in .npz"),
        (["RUN", "--from-data", "a", "--output", "RUN/x.npz"], 2, "outside of the run's folder"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    finished, later, log, tmp_path, monkeypatch, capsys, words, code, sentence
):
    monkeypatch.chdir(tmp_path)
    log(*[("", later)] * 4).rename("log")
    (tmp_path / "text").write_text("hello, this is no log of anything")
    (tmp_path / "asked-20260101-7-00000.tfrecord").touch()
    (tmp_path / "text.tfrecord").write_text("hello, this is no log of anything")
    (tmp_path / "taken.npz").write_bytes(b"mine")
    np.save("wide.npy", np.zeros([3, 7]))
    np.save("pickle.npy", np.array([None]), allow_pickle=True)
    words = [word.replace("RUN", str(finished)) for word in words]
    output = [] if "--output" in words else ["--output", "new.npz"]
    assert main(["importance", *words, *output]) == code
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "new.npz").exists()
    assert (tmp_path / "taken.npz").read_bytes() == b"mine"


def test_a_method_that_needs_labels_is_refused(finished, later, log, tmp_path, capsys):
    copy = tmp_path / "run"
    copy.mkdir()
    write_json(copy / "result.json", read_json(finished / "result.json") | {"method": "si"})
    words = [
        "importance",
        copy,
        "--from-requests",
        log(("", later)),
        "--output",
        tmp_path / "m.npz",
    ]
    assert main([*map(str, words)]) == 2
    assert "inputs alone: mas, local_mas. Received: a run of 'si'" in capsys.readouterr().err


# Drift.


def network_of(weights):
    """A trunk of as many features as columns of weights, and a head."""
    inputs = keras.Input((len(weights),))
    trunk = keras.layers.Dense(len(weights[0]), use_bias=False)
    head = keras.layers.Dense(2, name="a")
    model = keras.Model(inputs, {"a": head(trunk(inputs))})
    trunk.set_weights([np.array(weights, np.float32)])
    return model


def test_the_distance_is_that_of_the_distribution_functions():
    # Features 1, 2, 3, 4 and 3, 4, 5, 6: up to 2 lies half of the first sample, and none of the
    # second, so D = 1/2. A feature that is always 0 is not tested.
    drift = measure_drift(
        network_of([[1.0, 0.0]]), np.array([[1.0], [2], [3], [4]]), np.array([[3.0], [4], [5], [6]])
    )
    assert (drift.features, drift.largest, drift.examples) == (1, 0.5, (4, 4))
    assert not drift  # four examples show nothing


def test_inputs_of_the_same_kind_have_not_drifted_and_moved_ones_have():
    # One feature of ten moves by one standard deviation.
    weights = np.eye(10)
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 1000, 10)).astype(np.float32)
    assert not measure_drift(network_of(weights), first, second)
    second[:, 3] += 1.0
    drift = measure_drift(network_of(weights), first, second)
    assert drift.drifted == 1 and drift.features == 10
    # For N(0, 1) and N(1, 1) the distance is 2Φ(1/2) − 1 = 0.383.
    assert drift.largest == pytest.approx(0.383, abs=0.06)


def test_p_values_are_those_of_all_tests_together():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, 100, 1)).astype(np.float32)
    second += 0.4
    one = measure_drift(network_of([[1.0]]), first, second)
    ten = measure_drift(network_of([[1.0] * 10]), first, second)  # the same feature ten times
    assert ten.p == pytest.approx(10 * one.p, rel=1e-3)


@pytest.mark.parametrize("examples", [1, 100])
def test_a_single_input_beyond_all_others_is_no_drift(examples):
    # It is the largest, or the smallest, of n + 1 with a probability of 2 / (n + 1).
    first, second = np.arange(float(examples))[:, None], np.array([[200.0]])
    drift = measure_drift(network_of([[1.0]]), first, second)
    assert drift.largest == 1.0 and drift.p == pytest.approx(2 / (examples + 1))
    assert not drift


def test_the_command_warns_of_drift_with_numbers(finished, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("ants", "bees"):
        labels = np.arange(60) % 2
        x = rng.normal(size=(60, 4)).astype(np.float32)
        np.savez(f"{name}.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
    tasks = "".join(f'[[task]]\nname = "{n}"\nnpz = "{n}.npz"\n' for n in ("ants", "bees"))
    (tmp_path / "insects.toml").write_text(f'name = "insects"\n{tasks}')
    np.save("same.npy", rng.normal(size=(90, 4)).astype(np.float32))
    np.save("moved.npy", rng.normal(2.0, size=(90, 4)).astype(np.float32))
    words = ["importance", str(finished), "--trained-on", "insects.toml", "--output", "m.npz"]
    words += ["--overwrite"]
    assert main([*words, "--from-data", "same.npy"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and "drift: 0 of " in captured.out
    assert main([*words, "--from-data", "moved.npy"]) == 0
    error = capsys.readouterr().err
    assert "warning: the inputs have drifted from the training data: " in error
    assert "Kolmogorov-Smirnov, largest distance 0." in error
    # Few are compared with as many of the training as there are.
    assert main([*words, "--from-data", "moved.npy", "--max-examples", "5"]) == 0
    assert re.search(r"\d\d+ training and 5 later examples", capsys.readouterr().err)
