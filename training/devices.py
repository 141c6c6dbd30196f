"""What a training step is divided among: nothing, or devices of this machine, or of several hosts.

Keras adds up the gradients of the replicas, and takes one step with the sum, the same on each.
Every batch is divided as evenly as its number of examples allows, and each example counts as in the
whole batch; so the weights are those of one device, but for rounding.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_mas import replicas
from keras_mas.errors import UsageError

# Strategies in whose scope a user may call us, and why they are refused.
REFUSED_STRATEGIES = {
    "TPUStrategy": "a TPU compiles a step for one size of a batch, and the last one of an epoch is "
    "smaller",
    "ParameterServerStrategy": "Keras 3 does not support it: its workers change the weights each "
    "at its own time, so that there is no step to divide",
}
_OTHERS = "the devices are chosen by `devices`, and the run makes the strategy itself"


class Devices:
    """One device, which TensorFlow chooses, or several that divide the batches.

    Args:
        strategy: What divides them, in step; None for one device.

    Attributes:
        strategy: As given.
        worker: The number of this process among those that learn together, from 0.
        workers: How many these are.
    """

    worker, workers = 0, 1

    def __init__(self, strategy: tf.distribute.Strategy | None = None):
        self.strategy = strategy

    @property
    def replicas(self) -> int:
        """How many parts a batch is divided into."""
        return 1 if self.strategy is None else self.strategy.num_replicas_in_sync

    @property
    def is_chief(self) -> bool:
        """Whether this process, of those that learn together, writes the run and reports on it."""
        return self.worker == 0

    def check_method(self, name: str, needs_one_device: str | None) -> None:
        """Refuse a method that cannot divide a step, if there is more than one device.

        Args:
            name: Name of the method.
            needs_one_device: As of `keras_mas.methods.base.Method`.
        """
        if self.strategy is not None and needs_one_device is not None:
            raise UsageError(
                "Expected a method that can divide a training step among several devices. "
                f"Received: '{name}', which {needs_one_device}. Leave out `--devices` and "
                "TF_CONFIG, or choose another method."
            )

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Make the variables that are created inside the block be kept on every device."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def once(self, function: Callable[[], Any]) -> None:
        """Run a function on every device, for what it does to variables."""
        if self.strategy is None:
            function()
        else:
            run = tf.function(lambda: self.strategy.run(function), autograph=False)
            run.get_concrete_function()()

    @contextlib.contextmanager
    def training(self, model: keras.Model) -> Iterator[None]:
        """Have batch normalization take the statistics of whole batches inside the block."""
        layers = [
            layer
            for layer in model._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized
        ]
        for layer in layers if self.strategy is not None else ():
            layer.synchronized = True
        try:
            yield
        finally:
            for layer in layers:
                layer.synchronized = False

    def accuracy(self) -> str | keras.metrics.Metric:
        """Return the metric of training accuracy, for `compile`, within `scope`."""
        return "accuracy" if self.strategy is None else _Accuracy(name="accuracy")

    def follow_loss(self, model: keras.Model) -> None:
        """Have the loss in the logs of a compiled model be the mean over examples.

        Keras weighs the loss of a replica by the replica's examples. It is the replica's part of
        the mean over the batch, and so weighs n / R on each.
        """
        if self.strategy is None:
            return
        [tracker] = [metric for metric in model.metrics if metric.name == "loss"]
        update = tracker.update_state

        def update_state(values, sample_weight=None):
            return update(values, sample_weight=replicas.mean_batch())

        tracker.update_state = update_state

    def train_step(self, model: keras.Model, inputs: tf.Tensor, labels: tf.Tensor) -> None:
        """Take the model's own training step with a batch, in a function that is being traced.

        Args:
            model: Compiled model, made within `scope`.
            inputs: `[n, ...]`.
            labels: `[n]`.
        """
        if self.strategy is None:
            model.train_step((inputs, labels))
            return
        examples = tf.shape(labels)[0]

        def step():
            with replicas.dividing(examples):
                own = replicas.own_rows(examples)
                # Keras divides the mean over the examples of a replica by R.
                weight = replicas.share(labels[own]) * replicas.count()
                weights = tf.fill(tf.shape(labels[own]), weight)
                model.train_step((inputs[own], labels[own], weights))

        self.strategy.run(step)

    def total(self, function: Callable[..., tf.Tensor], *rows: tf.Tensor) -> tf.Tensor:
        """Return a sum over examples, each device's part of them added up.

        Args:
            function: Returns the sum over some rows of the tensors.
            *rows: Tensors `[n, ...]`.
        """
        if self.strategy is None:
            return function(*rows)
        examples = tf.shape(rows[0])[0]

        def part():
            own = replicas.own_rows(examples)
            return function(*(each[own] for each in rows))

        parts = self.strategy.run(part)
        total = self.strategy.reduce(tf.distribute.ReduceOp.SUM, parts, axis=None)
        copies = tf.cast(replicas.copies(examples, self.replicas), total.dtype)
        return total // copies if total.dtype.is_integer else total / copies

    def sharing_importance(self) -> contextlib.AbstractContextManager[None]:
        """Have the processes that learn together share the measurement of importance.

        Within one process it is measured on one device.
        """
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def own_folder(self, directory: Path) -> Iterator[Path]:
        """Yield the folder that this process writes: the run's own, but for workers."""
        yield directory

    def take_run(self, directory: Path, description: dict) -> None:
        """Have the folder of a worker hold what the chief's does.

        Args:
            directory: As `own_folder` yields it.
            description: Everything that decides the result, as `identity.describe` returns it.

        Raises:
            UsageError: If the processes were to learn something else each.
        """


class _Accuracy(keras.metrics.SparseCategoricalAccuracy):
    """Training accuracy in which an example counts once, whatever replicas have it."""

    def update_state(self, y_true, y_pred, sample_weight=None):
        weights = tf.fill(tf.shape(y_true), replicas.weight_of_copy())
        return super().update_state(y_true, y_pred, weights)


def describe_role(devices: Devices) -> str:
    """Return a sentence on what a worker does, for whoever looks at its output."""
    return (
        f"host {devices.worker + 1} of {devices.workers}: takes part in the steps of the chief, "
        "which writes the run and reports on it."
    )


def devices_of(count: int | str) -> Devices:
    """Return the devices that were asked for: those of this machine, or of all hosts in TF_CONFIG.

    Several hosts have to be joined before TensorFlow computes anything.

    Args:
        count: How many of each machine, or "all".

    Raises:
        UsageError: If there are fewer, or they cannot learn in step.
    """
    refuse_scope()
    from . import hosts

    cluster = hosts.cluster_of_environment()
    if cluster is not None:
        return hosts.join(cluster, count)
    if count == 1:
        return Devices()
    names = _names_of(count)
    return Devices(_mirrored(names)) if len(names) > 1 else Devices()


@functools.cache
def _mirrored(names):
    # A process has one for the same devices: a second one would number its exchanges anew, and
    # TensorFlow would take them for those of the first.
    return tf.distribute.MirroredStrategy(names)


def refuse_scope() -> None:
    """Refuse to learn within the scope of a strategy that somebody else has made."""
    if tf.distribute.has_strategy():
        name = type(tf.distribute.get_strategy()).__name__.removesuffix("V1").removesuffix("V2")
        raise UsageError(
            "Expected no scope of a `tf.distribute` strategy around a run. Received: one of "
            f"{name}: {REFUSED_STRATEGIES.get(name, _OTHERS)}. Leave the scope, and give "
            "`--devices N`."
        )


def _names_of(count):
    """Return the names of the first devices of this machine, GPUs where there are any."""
    if tf.config.list_physical_devices("TPU"):
        raise UsageError(
            f"Expected GPUs for `--devices {count}`. Received: a TPU: "
            f"{REFUSED_STRATEGIES['TPUStrategy']}. Leave `--devices` out, or use a machine with "
            "GPUs."
        )
    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    number = len(tf.config.list_logical_devices(kind))
    count = number if count == "all" else count
    if count > number:
        there = (
            f"{number} {'GPU' if number == 1 else 'GPUs'}"
            if kind == "GPU"
            else "no GPU that TensorFlow sees, and its CPU, all cores of it, is one device"
        )
        raise UsageError(
            f"Expected `--devices` to be at most {number} on this machine, which has {there}. "
            f"Received: {count}. Leave it out, or give `--devices all`."
        )
    return tuple(f"{kind}:{number}" for number in range(count))
