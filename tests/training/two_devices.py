"""Runs on two devices end like runs on one, but for rounding; run by test_devices.py.

The devices are two of the CPU. A batch has 9 examples, 4 and 5 for them, and the last one of an
epoch a single example, which leaves one device without any.
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf
from conftest import RECIPE, task

from keras_mas.training.devices import devices_of
from keras_mas.training.run import saved_heads, train
from keras_mas.training.run_directory import MEMORY, PROGRESS, read_json, task_folder
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

SMALL = dataclasses.replace(RECIPE, epochs=3, batch_size=9)  # of 64 examples
CASES = {
    "mas": {"method": "mas", "strength": 10.0},
    "decoupled": {"method": "mas", "strength": 10.0, "penalty": "decoupled"},
    "auto": {"method": "mas", "strength": "auto", "penalty": "decoupled"},
    "si": {"method": "si", "strength": 10.0},
    "si-decoupled": {"method": "si", "strength": 10.0, "penalty": "decoupled"},
    "ewc": {"method": "ewc", "strength": 10.0},
    "lwf": {"method": "lwf", "strength": 1.0},
    "joint": {"method": "joint"},
    "imm_mode": {"method": "imm_mode", "strength": 0.1},
    "convolution": {
        "method": "mas",
        "strength": 10.0,
        "recipe": {"backbone": "convolution:features"},
    },
}


def insects():
    tasks = tuple(task(name, first) for first, name in enumerate(["ants", "bees"]))
    return TaskStream("insects", "task", tasks, rescale=(1.0, 0.0))


def settings_of(case):
    given = dict(CASES[case])
    recipe = dataclasses.replace(SMALL, **{"optimizer": "sgd"} | given.pop("recipe", {}))
    return Settings(**given, recipe=recipe, evaluate_every=5)


def learned(folder, result):
    """Return what a run ended with, numbers by name."""
    models, _ = saved_heads(folder, 2)
    found = {"accuracy": result["accuracy_matrix"]}
    found["evaluations"] = [each["accuracies"][0] for each in result["evaluations"]]
    for name, model in models.items():
        for weight in model.weights:
            found[f"{name} {weight.path}"] = weight.numpy()
    for number in (1, 2):
        saved = task_folder(folder, number)
        for name, values in read_json(saved / PROGRESS)["history"].items():
            found[f"{name} {number}"] = values
        if (saved / MEMORY).exists():
            with np.load(saved / MEMORY) as arrays:
                found |= {
                    f"{name} {number}": arrays[name]
                    for name in arrays.files
                    if arrays[name].dtype.kind == "f"
                }
    return found


def main(names):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "convolution.py").write_text(CONVOLUTION)
        sys.path.insert(0, folder)
        for case in names or CASES:
            found = []
            for count in (1, 2):
                run = Path(folder, f"{case}-{count}")
                result = train(
                    insects(),
                    settings_of(case),
                    run,
                    evaluate_on="validation",
                    devices=devices_of(count),
                )
                assert result["devices"] == count
                found.append(learned(run, result))
            compare(case, *found)


def compare(case, one, two):
    assert one.keys() == two.keys()
    for name in one:
        try:
            np.testing.assert_allclose(two[name], one[name], rtol=1e-4, atol=1e-5)
        except AssertionError as error:
            print(json.dumps({"case": case, "of": name}), str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
