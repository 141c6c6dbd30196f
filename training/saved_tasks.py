"""What a run has saved after each of its tasks: models and what was recorded."""

import functools
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_mas.arrays import load_arrays

from .backbones.weights import digest_of_file
from .run_directory import (
    MEMORY,
    MODEL,
    OPTIMIZER,
    PROGRESS,
    RESULT,
    are,
    is_measured_or_not,
    is_number,
    is_text,
    maps_to,
    naming_damage,
    read_json,
    read_result,
    task_folder,
)

_PROGRESS = {
    "accuracies": are(is_measured_or_not),
    "seconds": maps_to(is_number),
    "classes": maps_to(are(is_text)),
}

# The files of a task that belong together, and to what was recorded of it.
_FILES = (MODEL, MEMORY, OPTIMIZER)

# What precedes the name of a weight in what `SynapticMemory.save` writes, and that again in what a
# method writes that keeps more than a memory.
_IMPORTANCE, _MEMORY_PART = "importance/", "memory:"


def saved_heads(
    directory: Path, number: int
) -> tuple[dict[str, keras.Model], dict[str, tuple[str, ...]]]:
    """Read the models of a run after so many tasks.

    Args:
        directory: Folder of the run.
        number: How many tasks had been learned, from 1.

    Returns:
        The model of every head, and its class names, both by the head's name.

    Raises:
        DamagedError: If a file is missing or damaged.
    """
    folder = task_folder(directory, number)
    classes = read_progress(folder)["classes"]
    with naming_damage(folder / PROGRESS, cure_of(folder)):
        if not classes:
            raise ValueError("it names no head")
    names = list(classes)[:number]
    network = _saved_network(folder, names[-1])
    models = _models_of_heads(network)
    # The folder of a task holds the heads that it changed. Of a head that is in several folders the
    # newest one has the weights as they are.
    for task in range(number - 1, 0, -1):
        if len(models) < len(names):
            folder = task_folder(directory, task)
            older = _saved_network(folder, names[min(task, len(names)) - 1])
            with naming_damage(folder / MODEL, cure_of(folder)):
                models = _models_of_heads(_on_trunk_of(network, older)) | models
    return {name: models[name] for name in names}, {name: tuple(classes[name]) for name in names}


def finished_network(directory: Path) -> keras.Model:
    """Read the network of a finished run: one model from inputs to the logits of every head.

    Args:
        directory: Folder of the run.

    Raises:
        DamagedError: If the file is missing or damaged.
    """
    path = directory / MODEL
    cure = f"Remove '{directory / RESULT}', and run the same `keras-mas train` command again."
    recorded = read_result(directory).get("network")  # earlier versions did not record it
    with naming_damage(path, cure):
        if recorded not in (None, digest_of_file(path)):
            raise ValueError("its content is not what was saved with the result")
        return load_network(path)


def load_network(path: Path) -> keras.Model:
    """Read a network from its file, with the layers of this package, which its import registers."""
    return keras.models.load_model(path)


def _saved_network(folder, head):
    """Return the network that was saved after a task, which changed a head."""
    network = load_model(folder)
    with naming_damage(folder / MODEL, cure_of(folder)):
        if head not in network.output:
            raise ValueError(f"it holds the head of {', '.join(network.output)}, not of '{head}'")
    return network


def _models_of_heads(network):
    return {name: keras.Model(network.input, logits) for name, logits in network.output.items()}


def _on_trunk_of(later, network):
    """Return a network with the heads that were saved with it, on the trunk of a later one.

    What is not of the trunk, the output layer and the task's own batch normalization, stays as it
    was when the task was learned. Where a layer of the trunk has been applied to the same tensors
    already, its outputs are taken, so that all heads read one tensor and an export runs the trunk
    once.
    """
    trunk = {operation.name: operation for operation in later.operations}

    def on_trunk(operation):
        return functools.partial(_applied_once, trunk.get(operation.name, operation))

    return keras.Model(later.input, network._run_through_graph(later.input, operation_fn=on_trunk))


def _applied_once(operation, *args, **kwargs):
    """Apply a layer, or return the outputs that it has for these symbolic tensors already."""
    given = keras.tree.flatten((args, kwargs))
    for node in operation._inbound_nodes:
        before = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
        if len(before) == len(given) and all(map(_same, before, given)):
            return node.outputs
    return operation(*args, **kwargs)


def _same(one, other):
    # Tensors and arrays have no truth value to compare by.
    return one is other or (isinstance(one, str | int | float) and one == other)


def load_model(folder: Path) -> keras.Model:
    """Read the network that was saved after a task, with the heads that the task changed.

    Raises:
        DamagedError: If the file is missing or damaged.
    """
    path = saved_file(folder, MODEL)
    with naming_damage(path, cure_of(folder)):
        return keras.models.load_model(path)


def saved_importance(folder: Path) -> dict[str, np.ndarray]:
    """Read Ω of every weight as it was saved after a task, by the name of the weight.

    Args:
        folder: Folder of what was saved after the task.

    Returns:
        Ω so far; empty if the method keeps none.

    Raises:
        DamagedError: If the file is damaged.
    """
    path = saved_file(folder, MEMORY)
    if not path.exists():
        return {}
    with naming_damage(path, "Remove the folder of this task and those after it."):
        arrays = load_arrays(path, dict, "what a method remembers")
    # A method that keeps more than a memory names each part before a colon.
    return {
        name.removeprefix(_MEMORY_PART).removeprefix(_IMPORTANCE): array
        for name, array in arrays.items()
        if name.removeprefix(_MEMORY_PART).startswith(_IMPORTANCE)
    }


def digests_of(folder: Path) -> dict[str, str]:
    """Return a hash of each file that was saved after a task, by its name, for `saved_file`."""
    return {name: digest_of_file(folder / name) for name in _FILES if (folder / name).exists()}


def saved_file(folder: Path, name: str) -> Path:
    """Return the path of a file that was saved after a task, if it is still the same file.

    One of another run may be as whole as the right one, and have other numbers.

    Args:
        folder: Folder of what was saved after the task.
        name: Name of the file in it, which need not exist.

    Raises:
        DamagedError: If it is another file than was saved with the others.
    """
    path = folder / name
    if path.exists() and (folder / PROGRESS).exists():
        recorded = read_progress(folder).get("files", {})  # earlier versions did not record them
        with naming_damage(path, cure_of(folder)):
            if recorded.get(name) not in (None, digest_of_file(path)):
                raise ValueError("its content is not what was saved with the files beside it")
    return path


def read_progress(folder: Path) -> dict[str, Any]:
    """Read what was recorded after a task: accuracies, seconds, the classes of all heads.

    Raises:
        DamagedError: If the file is missing or damaged.
    """
    later = {"files": maps_to(is_text)}
    return read_json(folder / PROGRESS, _PROGRESS, later=later, cure=cure_of(folder))


def saved_baseline(folder: Path) -> list[float | None] | None:
    """Return the accuracies before training, if they have been saved with the first task."""
    if not folder.exists():
        return None
    return read_progress(folder).get("baseline")  # earlier versions did not record it


def cure_of(folder: Path) -> str:
    """Return what to do if a file in the folder of a task is damaged."""
    return (
        f"Remove '{folder}' and the folders with higher numbers beside it, and run the "
        "`keras-mas train` command of that run again: it learns these tasks again."
    )
