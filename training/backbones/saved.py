"""A trained network of the user, saved by Keras, as a backbone: all but its last Dense layer."""

import functools
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_mas.errors import UsageError

from .backbone import Backbone

SUFFIX = ".keras"

# Layers without weights that may stand behind the last Dense layer: they do not say which logit is
# the largest, but how they are shown.
_BEHIND_LOGITS = (keras.layers.Activation, keras.layers.Softmax)


def find(name: str) -> Backbone:
    """Return what a saved network computes before its last Dense layer, with its own weights.

    It takes inputs as they are, neither rescaled nor prepared.

    Args:
        name: Path of a `.keras` file.

    Raises:
        UsageError: When it is built: if there is no such file, or no such network in it.
    """
    return Backbone(name, functools.partial(_features, Path(name)), takes_raw=True)


def read_network(path: Path) -> keras.Model:
    """Read a network that Keras saved; nothing of the file is executed.

    Raises:
        UsageError: If it cannot be read, has layers of code of its own, or is no functional model
            with one input and one output `[N, classes]` of a Dense layer with features `[N, F]`.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise _refusal(path, "no file that `model.save` wrote" if path.is_file() else "no file")
    try:
        _check_classes(path)
        network = keras.models.load_model(path, compile=False, safe_mode=True)
    except UsageError:
        raise
    except Exception as error:  # whatever a damaged or foreign file leads to
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise _refusal(path, f"a file that cannot be read as one ({reason})") from error
    if not isinstance(network, keras.Model) or not hasattr(network, "inputs"):
        raise _refusal(path, f"a {type(network).__name__}")
    if len(network.inputs or ()) != 1 or len(network.outputs) != 1:
        raise _refusal(path, "a network with several inputs or outputs, or none that are known")
    output_layer(network, path)
    return network


def output_layer(network: keras.Model, path: Path) -> keras.layers.Dense:
    """Return the last Dense layer of a network, whose output, but for an activation, is its own.

    Raises:
        UsageError: If there is none, or its input is not `[N, F]`.
    """
    *_, last = [layer for layer in network.layers if not isinstance(layer, _BEHIND_LOGITS)]
    if not isinstance(last, keras.layers.Dense):
        raise _refusal(path, f"a network that ends in a {type(last).__name__}, '{last.name}'")
    if len(last.input.shape) != 2 or last.units < 2:
        raise _refusal(
            path, f"one whose last layer has {last.units} units on inputs {last.input.shape}"
        )
    return last


def head_weights(path: Path) -> list[np.ndarray]:
    """Return kernel `[F, C]` and bias `[C]` of a saved network's last Dense layer."""
    head = output_layer(read_network(path), path)
    kernel, *bias = head.get_weights()
    return [kernel, *(bias or [np.zeros(head.units, kernel.dtype)])]


def _features(path, x) -> Any:
    network = read_network(path)
    if (
        tuple(network.inputs[0].shape[1:]) != tuple(x.shape[1:])
        and None not in (network.inputs[0].shape[1:])
    ):
        raise UsageError(
            f"Expected inputs of shape {list(network.inputs[0].shape[1:])}, as the network in "
            f"'{path}' takes them. Received: shape {list(x.shape[1:])}. Bring the data to that "
            "shape (for images, set `image_size`)."
        )
    trunk = keras.Model(network.inputs[0], output_layer(network, path).input)
    copy = keras.models.clone_model(trunk)
    copy.set_weights(trunk.get_weights())
    # Layer by layer, so that they can be frozen, and found in what a run saves, by their own names.
    return copy._run_through_graph(x, operation_fn=lambda layer: layer)


def _check_classes(path) -> None:
    """Refuse layers that are not Keras's own, of which a file holds a name or code."""
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
    for module, name in _classes(config):
        if name in ("Lambda", "__lambda__") or not (module or "keras").startswith("keras"):
            raise _refusal(
                path,
                f"one with a {name.strip('_')} of "
                f"{'code in the file' if 'ambda' in name else repr(module)}, which is not executed",
            )


def _classes(config) -> Iterator[tuple[str | None, str]]:
    """Yield module and name of every class in a saved configuration."""
    if isinstance(config, dict):
        if isinstance(config.get("class_name"), str):
            # Keras names what is registered by another package there.
            registered = config.get("registered_name") or ""
            module = registered.split(">")[0] if ">" in registered else config.get("module")
            yield module, config["class_name"]
        for value in config.values():
            yield from _classes(value)
    elif isinstance(config, list):
        for value in config:
            yield from _classes(value)


def _refusal(path, received) -> UsageError:
    return UsageError(
        "Expected a functional Keras model of Keras's own layers, saved by `model.save`, whose "
        "last layer is a Dense layer with a unit for each of two classes or more. Received: "
        f"{received} in '{path}'. Put what prepares its inputs into layers of Keras, and its "
        "classifier at its end."
    )
