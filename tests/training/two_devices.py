"""Runs on two devices end like runs on one, but for rounding; run by test_devices.py.

The devices are two of the CPU. A batch has 9 examples, 4 and 5 for them, and the last one of an
epoch a single example, fewer than there are devices.
"""

import dataclasses
import itertools
import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from insects import RECIPE, task
from interrupting import Follower

from keras_mas import replicas
from keras_mas.training import under_way
from keras_mas.training.cli import main as keras_mas
from keras_mas.training.devices import devices_of
from keras_mas.training.run import train
from keras_mas.training.run_directory import MEMORY, PROGRESS, read_json, task_folder
from keras_mas.training.saved_tasks import saved_heads
from keras_mas.training.settings import Settings
from keras_mas.training.tasks import TaskStream

CONVOLUTION = """
import keras

def features(inputs):
    x = keras.layers.Reshape([2, 2, 1])(inputs)
    x = keras.layers.Conv2D(6, 2, padding="same")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.MaxPooling2D(2)(keras.layers.ReLU()(x))
    return keras.layers.Flatten()(x)
"""

SMALL = dataclasses.replace(RECIPE, epochs=3, batch_size=9, optimizer="sgd")  # of 64 examples
CASES = {
    "mas": {"method": "mas", "strength": 1.0},
    "decoupled": {"method": "mas", "strength": 10.0, "penalty": "decoupled"},
    "auto": {"method": "mas", "strength": "auto", "penalty": "decoupled"},
    "si": {"method": "si", "strength": 10.0},
    "si-decoupled": {"method": "si", "strength": 10.0, "penalty": "decoupled"},
    "ewc": {"method": "ewc", "strength": 10.0},
    "lwf": {"method": "lwf", "strength": 1.0},
    "joint": {"method": "joint"},
    "imm_mode": {"method": "imm_mode", "strength": 0.1},
    "convolution": {"method": "mas", "strength": 1.0},
}


def insects():
    tasks = tuple(task(name, first) for first, name in enumerate(["ants", "bees"]))
    return TaskStream("insects", "task", tasks, rescale=(1.0, 0.0))


def settings_of(case):
    backbone = "convolution:features" if case == "convolution" else SMALL.backbone
    recipe = dataclasses.replace(SMALL, backbone=backbone)
    return Settings(**CASES[case], recipe=recipe, evaluate_every=5)


def learned(folder, result):
    """Return what a run ended with, numbers by name."""
    models, _ = saved_heads(folder, 2)
    found = {
        "accuracies": result["accuracy_matrix"],
        "evaluations": [each["accuracies"][0] for each in result["evaluations"]],
    }
    for name, model in models.items():
        found |= {f"{name}: {weight.path}": weight.numpy() for weight in model.weights}
    for number in (1, 2):
        saved = task_folder(folder, number)
        history = read_json(saved / PROGRESS)["history"]
        found |= {f"{name} of task {number}": values for name, values in history.items()}
        if (saved / MEMORY).exists():
            with np.load(saved / MEMORY) as arrays:
                numbers = [name for name in arrays.files if arrays[name].dtype.kind == "f"]
                found |= {f"{name} after task {number}": arrays[name] for name in numbers}
    return found


def assert_the_same(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def learn(case, folder, count, listeners=()):
    result = train(
        insects(),
        settings_of(case),
        folder,
        evaluate_on="validation",
        devices=devices_of(count),
        listeners=listeners,
    )
    assert result["devices"] == count
    return learned(folder, result)


def like_one(case, folder):
    assert_the_same(learn(case, folder / "two", 2), learn(case, folder / "one", 1))


def resumed(folder):
    """An interrupted run goes on, and ends with the same bits; on one device, but for rounding."""
    under_way.EVERY = 0.0
    tf.config.experimental.enable_op_determinism()
    whole = learn("si", folder / "whole", 2)
    for count, assert_equal in ((2, np.testing.assert_equal), (1, assert_the_same)):
        cut = folder / f"cut-{count}"
        try:
            learn("si", cut, 2, [Follower((2, 2))])
        except KeyboardInterrupt:
            assert_equal(learn("si", cut, count), whole)
        else:
            raise AssertionError("the run was not interrupted")


def exported(folder):
    """The command takes `--devices`, and exports what it has learned."""
    given = f"train split-digits --epochs 1 --devices all --output {folder}/run"
    assert keras_mas([*given.split(), "--export", f"{folder}/models"]) == 0
    serving = tf.saved_model.load(f"{folder}/models/5")
    assert serving.signatures


def divided(folder):
    """Each replica has its rows of a batch, or all of them if these are too few."""
    strategy = devices_of(2).strategy
    for count, expected in {1: [[0], [0]], 2: [[0], [1]], 5: [[0, 1], [2, 3, 4]]}.items():

        def step(examples):
            with replicas.dividing(examples):
                own = tf.range(examples)[replicas.own_rows(examples)]
                is_third = replicas.any_of(tf.reduce_any(own == 2))
                return own, replicas.share(own), is_third

        own, shares, third = map(strategy.experimental_local_results, strategy.run(step, (count,)))
        assert [each.numpy().tolist() for each in own] == expected
        np.testing.assert_allclose(sum(shares), 1.0)
        assert [bool(each) for each in third] == [count == 5] * 2


def main(names):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    with tempfile.TemporaryDirectory() as directory:
        sys.path.insert(0, directory)
        Path(directory, "convolution.py").write_text(CONVOLUTION)
        numbered = (Path(directory, str(number)) for number in itertools.count())
        for name, folder in zip(names, numbered, strict=False):
            folder.mkdir()
            others = {"resumed": resumed, "exported": exported, "divided": divided}
            others[name](folder) if name in others else like_one(name, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
