"""Training divided among several devices of one machine, and what is refused."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf

from keras_mas.errors import UsageError
from keras_mas.methods import METHODS, load_method
from keras_mas.training.cli import main
from keras_mas.training.devices import Devices, devices_of
from keras_mas.training.options import count_or
from keras_mas.training.run import train

HERE = Path(__file__).parent


def assert_on_two_devices(*names):
    # The devices of a process are fixed when TensorFlow starts.
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, HERE / "two_devices.py", *names],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_devices_learn_what_one_does():
    assert_on_two_devices("divided", "mas", "decoupled", "si", "ewc", "convolution")


@pytest.mark.slow
def test_two_devices_learn_what_one_does_by_other_methods():
    assert_on_two_devices("auto", "si-decoupled", "lwf", "joint", "imm_mode")


@pytest.mark.slow
def test_a_run_on_two_devices_goes_on_there_or_on_one():
    assert_on_two_devices("resumed")


@pytest.mark.slow
def test_the_command_takes_devices():
    assert_on_two_devices("exported")


no_gpu = pytest.mark.skipif(
    bool(tf.config.list_physical_devices("GPU")), reason="this machine has GPUs"
)


@no_gpu
def test_more_devices_than_there_are_are_refused(capsys):
    assert main(["train", "split-digits", "--devices", "2"]) == 2
    said = capsys.readouterr().err
    assert "`--devices` to be at most 1" in said
    assert "no GPU" in said
    assert "Received: 2" in said


@no_gpu
def test_all_devices_of_a_machine_without_gpus_are_one():
    assert devices_of("all").strategy is None


@pytest.mark.parametrize(("text", "value"), [("all", "all"), ("3", 3)])
def test_a_number_of_devices_is_read(text, value):
    assert count_or("all")(text) == value


@pytest.mark.parametrize("text", ["0", "two", "-1", "1.5", ""])
def test_what_is_no_number_of_devices_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="≥ 1, or all"):
        count_or("all")(text)


def test_methods_that_need_one_device_say_why():
    needing = {name for name in METHODS if load_method(name).needs_one_device}
    assert needing == {"ebll", "online_mas"}
    several = Devices(tf.distribute.OneDeviceStrategy("CPU:0"))
    for name in needing:
        with pytest.raises(UsageError, match=f"Received: '{name}', which (learns|keeps)"):
            several.check_method(name, load_method(name).needs_one_device)


def test_a_method_of_your_own_says_that_it_can_divide_a_step():
    base = load_method("finetune").__bases__[0]
    assert "needs_one_device = None" in base.needs_one_device


def test_any_method_learns_on_one_device():
    Devices().check_method("ebll", load_method("ebll").needs_one_device)


def test_the_scope_of_another_strategy_is_refused(stream, settings, tmp_path):
    with (
        tf.distribute.OneDeviceStrategy("CPU:0").scope(),
        pytest.raises(UsageError, match="Received: one of OneDeviceStrategy.*`--devices N`"),
    ):
        train(stream, settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


class TPUStrategy:
    pass


def test_the_scope_of_a_strategy_that_cannot_work_is_refused_with_the_reason(
    stream, settings, tmp_path, monkeypatch
):
    monkeypatch.setattr(tf.distribute, "has_strategy", lambda: True)
    monkeypatch.setattr(tf.distribute, "get_strategy", TPUStrategy)
    with pytest.raises(UsageError, match="TPUStrategy: a TPU compiles a step for one size"):
        train(stream, settings, tmp_path / "run")


def test_a_tpu_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind] * (kind == "TPU"))
    with pytest.raises(UsageError, match="Received: a TPU: a TPU compiles a step for one size"):
        devices_of(2)
