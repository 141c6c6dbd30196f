"""A user's own trained network as a run of one task, which other tasks can be added to.

Or, where its classes do not matter any more, as the trunk that a run begins with, which is held
from the first task on.
"""

import dataclasses
import functools
from pathlib import Path

import numpy as np

from keras_mas.arrays import read_archive
from keras_mas.choices import AUTO
from keras_mas.errors import UsageError

from .backbones import saved
from .backbones.weights import digest_of_file
from .load_options import LoadOptions
from .settings import Settings
from .tasks import LearnedTask, Split, TaskStream, builtin_names, load_tasks
from .tasks.files import UNREADABLE, read_images
from .tasks.images import ImageSize
from .tasks.stream import standard_inputs
from .wording import one_of

# Methods whose importance is computed from inputs alone, without the path of a training.
METHODS = ("mas", "local_mas", "l2")

# That of a network whose output is one of several heads.
SCENARIO = "task"


@dataclasses.dataclass(frozen=True)
class Start:
    """A trained network, and the data that its importance is measured on.

    Attributes:
        path: The `.keras` file that it was saved in.
        unlabelled: Inputs like those that it knows; the labels are not read.
        layer: Layer whose output are the features that are held, in the place of the network's
            answers; None for these.
    """

    path: Path
    unlabelled: Split
    layer: str | None = None

    @property
    def description(self) -> dict[str, str]:
        """What in a description by `identity.describe` is of the network and the data."""
        data = {"data" if self.layer is None else "unlabelled": self.unlabelled.fingerprint}
        return data | {"start": digest_of_file(self.path)}

    @property
    def backbone(self) -> str:
        """The name of the trunk."""
        return saved.named(self.path, self.layer)


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


def read_unlabelled(
    source: str, network: Path, layer: str | None, limit: int, options: LoadOptions
) -> Split:
    """Read inputs for a network from a folder of images, an `.npz` file, or a stream.

    Args:
        source: A folder that holds images at any depth, which get the size that the network takes;
            an `.npz` file with an array `x`, or `x_train`, or a single array; or, as for
            `load_tasks`, a stream, of which the training inputs of all tasks are taken.
        network: The `.keras` file of the network.
        layer: As for `Start`.
        limit: How many images of a folder are read at most.
        options: Where data lie and how they are read.

    Returns:
        The inputs, in random order.

    Raises:
        UsageError: If there is no such file or stream, or no such array, or the network does not
            take images.
        DataError: If the inputs are bad.
    """
    if source not in builtin_names() and Path(source).is_dir():
        shape = tuple(saved.read_network(network, layer).inputs[0].shape[1:])
        return read_images(Path(source), _image_size(shape, source), limit, options.store)
    found = _read_arrays(source) if source.endswith(".npz") else _read_stream(source, options)
    # Data are often sorted by class, and importance may be measured on the first of them alone.
    return found.take(np.random.default_rng(0).permutation(len(found)))


def _image_size(shape, source):
    """Return the size of images for inputs of a shape; None if it takes those of any one size."""
    if len(shape) != 3 or shape[-1] != 3 or shape[0] != shape[1]:
        raise UsageError(
            "Expected a network of square RGB images, [side, side, 3], for a folder of images. "
            f"Received: inputs of shape {list(shape)} and the folder '{source}'. Save the inputs "
            "as an array `x` in an .npz file."
        )
    return None if shape[0] is None else ImageSize(shape[0])


def _read_stream(source, options):
    tasks = load_tasks(
        source,
        seed=options.seed,
        data_dir=options.data_dir,
        cache_memory=options.cache_memory,
        cache_dir=options.cache_dir,
        skip_broken=options.skip_broken,
        on_decoded=options.on_decoded,
    ).tasks
    return functools.reduce(Split.joined, (task.train for task in tasks))


def _read_arrays(source):
    try:
        with open(source, "rb") as file:
            arrays = read_archive(file)
        names = list(arrays)
        [name] = [n for n in ("x", "x_train") if n in names][:1] or names
        inputs = arrays[name]
    except (*UNREADABLE, KeyError) as error:
        raise UsageError(
            "Expected an .npz file with inputs as an array `x`. Received: "
            f"'{source}' ({str(error).splitlines()[0].rstrip('.')}). Save them by "
            "`numpy.savez(file, x=inputs)`."
        ) from error
    if inputs.ndim < 2 or not inputs.size:
        raise UsageError(
            f"Expected inputs of shape [N, ...], N ≥ 1. Received: shape {list(inputs.shape)} in "
            f"'{source}'. Save them by `numpy.savez(file, x=inputs)`."
        )
    inputs = standard_inputs(inputs, f"'{source}'")
    return Split(inputs, np.zeros(len(inputs), np.int64))


def _check_hidden(path):
    """Refuse a network whose only weights are those of its output layer."""
    network = saved.read_network(path)
    if len(network.weights) > len(saved.output_layer(network, path).weights):
        return
    raise UsageError(
        f"Expected weights before the last layer of the network in '{path}', which new tasks would "
        "share with it. Received: a linear network, all weights of which are its head's. Nothing "
        "of it can be forgotten, and no task learns from it: train the tasks without it."
    )


def own_task(start: Start, name: str, classes: tuple[str, ...]) -> TaskStream:
    """Return the stream of the one task that a network has learned.

    Args:
        start: The network.
        name: Name of the task, and of the stream.
        classes: Its class names; empty for numbers.

    Raises:
        UsageError: If the network has another number of classes, or cannot be read.
    """
    _check_hidden(start.path)
    _, bias = saved.head_weights(start.path)
    named = classes or tuple(str(number) for number in range(len(bias)))
    if len(named) != len(bias):
        raise UsageError(
            f"Expected names of the {len(bias)} classes of the network in '{start.path}'. "
            f"Received: {len(named)}. Name each, in the order of its logits."
        )
    if len(set(named)) != len(named) or "" in named:
        raise UsageError(
            f"Expected a name of its own for each class of the network in '{start.path}'. "
            f"Received: {one_of(named)}. Rename those that are alike or empty."
        )
    inputs = start.unlabelled
    task = LearnedTask.without_examples(name, named, inputs.input_shape, inputs.dtype)
    return TaskStream(name, SCENARIO, (task,), rescale=(1.0, 0.0))
