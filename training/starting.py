"""A user's own trained network as a run of one task, which other tasks can be added to."""

import dataclasses
from pathlib import Path

import numpy as np

from keras_mas.choices import AUTO
from keras_mas.errors import UsageError

from .backbones import saved
from .backbones.weights import digest_of_file
from .settings import Settings
from .tasks import LearnedTask, Split, TaskStream, load_tasks
from .tasks.stream import standard_inputs

# Methods whose importance is computed from inputs alone, without the path of a training.
METHODS = ("mas", "local_mas", "l2")


@dataclasses.dataclass(frozen=True)
class Start:
    """A trained network, and the data that its importance is measured on.

    Attributes:
        path: The `.keras` file that it was saved in.
        unlabelled: Inputs like those that it knows; the labels are not read.
    """

    path: Path
    unlabelled: Split

    @property
    def description(self) -> dict[str, str]:
        """What of a description, as `run.describe` returns it, is of the network and the data."""
        return {"data": self.unlabelled.fingerprint, "start": digest_of_file(self.path)}


def checked_settings(settings: Settings) -> Settings:
    """Return the settings of a run that starts from a network, if its method can.

    Raises:
        UsageError: If the method needs labels, or a training of the network's own task.
    """
    if settings.method not in METHODS:
        raise UsageError(
            f"Expected a method whose importance is computed from unlabelled data, out of "
            f"{', '.join(METHODS)}. Received: '{settings.method}', which needs labels or follows "
            "the training. Choose another `--method`."
        )
    if str(settings.strength).startswith(AUTO):
        raise UsageError(
            f"Expected a number as strength: {AUTO} finds λ by the gradients of the first task, "
            "which was not trained here. Received: no number. Choose `--strength`."
        )
    return settings


def read_unlabelled(source: str) -> Split:
    """Read inputs from an `.npz` file, or the training inputs of all tasks of a stream.

    Args:
        source: An `.npz` file with an array `x`, or `x_train`, or a single array; or as for
            `load_tasks`.

    Raises:
        UsageError: If there is no such file or stream, or no such array.
        DataError: If the inputs are bad.
    """
    if not source.endswith(".npz"):
        tasks = load_tasks(source).tasks
        found = tasks[0].train
        for task in tasks[1:]:
            found = Split.joined(found, task.train)
        return found
    try:
        with np.load(source, allow_pickle=False) as arrays:
            names = list(arrays)
            [name] = [n for n in ("x", "x_train") if n in names][:1] or names
            inputs = arrays[name]
    except (OSError, ValueError) as error:
        raise UsageError(
            "Expected an .npz file with inputs as an array `x`. Received: "
            f"'{source}' ({str(error).splitlines()[0].rstrip('.')}). Save them by "
            "`numpy.savez(file, x=inputs)`."
        ) from error
    inputs = standard_inputs(inputs, f"'{source}'")
    return Split(inputs, np.zeros(len(inputs), np.int64))


def own_task(start: Start, name: str, classes: tuple[str, ...]) -> TaskStream:
    """Return the stream of the one task that a network has learned.

    Args:
        start: The network.
        name: Name of the task, and of the stream.
        classes: Its class names; empty for numbers.

    Raises:
        UsageError: If the network has another number of classes, or cannot be read.
    """
    _, bias = saved.head_weights(start.path)
    named = classes or tuple(str(number) for number in range(len(bias)))
    if len(named) != len(bias):
        raise UsageError(
            f"Expected names of the {len(bias)} classes of the network in '{start.path}'. "
            f"Received: {len(named)}. Name each, in the order of its logits."
        )
    inputs = start.unlabelled
    task = LearnedTask.without_examples(name, named, inputs.input_shape, inputs.dtype)
    return TaskStream(name, "task", (task,), rescale=(1.0, 0.0))
