"""A trained network of the user, saved by Keras, as a backbone: what precedes its classifier.

That is all but its last Dense layer; or, for a name `FILE.keras/LAYER`, all up to a layer.
"""

import functools
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_mas.errors import UsageError

from ..wording import did_you_mean, one_of
from .backbone import Backbone

SUFFIX = ".keras"

# Layers without weights that may stand behind the last Dense layer: they do not say which logit is
# the largest, but how they are shown.
_BEHIND_LOGITS = (keras.layers.Activation, keras.layers.Softmax)


def parts(name: str) -> tuple[Path, str | None] | None:
    """Return the file and the layer that the name of a backbone is of; None if it is of no file.

    Names of layers have no slash, so that a layer is told from a file in a folder.
    """
    if name.endswith(SUFFIX):
        return Path(name), None
    path, _, layer = name.rpartition("/")
    return (Path(path), layer) if path.endswith(SUFFIX) else None


def named(path: Path, layer: str | None) -> str:
    """Return the name of a backbone, of which `parts` are these."""
    return str(path) if layer is None else f"{path}/{layer}"


def find(name: str) -> Backbone:
    """Return what a saved network computes before its classifier, with its own weights.

    It takes inputs as they are, neither rescaled nor prepared.

    Args:
        name: Path of a `.keras` file, and perhaps a slash and the layer that the features are the
            output of; by default they are the input of its last Dense layer.

    Raises:
        UsageError: When it is built: if there is no such file, or no such network in it.
    """
    return Backbone(name, functools.partial(_features, name), takes_raw=True)


def read_network(path: Path, layer: str | None = None) -> keras.Model:
    """Read a network that Keras saved; nothing of the file is executed.

    Args:
        path: The file.
        layer: Layer to cut it behind, so that what follows does not matter; None for the last Dense
            layer, whose input are its features `[N, F]`.

    Returns:
        The network, uncompiled.

    Raises:
        UsageError: If it cannot be read, has layers of code of its own, is no functional model with
            one input, or has no such layer with features `[N, F]`.
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
        unbuilt = isinstance(network, keras.Sequential) and not network.built
        more = " without the shape of its inputs (begin it with `keras.Input`)" if unbuilt else ""
        raise _refusal(path, f"a {type(network).__name__}{more}")
    if len(network.inputs or ()) != 1 or (layer is None and len(network.outputs) != 1):
        raise _refusal(path, "a network with several inputs or outputs, or none that are known")
    network = _with_constants(network, path)
    _features_of(network, path, layer)
    return network


def _with_constants(network, path):
    """Return a network whose layers of `adapt` have what they found as constants.

    Those numbers are no weights that could be trained, and in some layers none at all, so that a
    copy of the layers and their weights would not have them.
    """
    if not any(map(_is_adapted, network._flatten_layers())):
        return network
    copy = keras.models.clone_model(network, clone_function=_constant_copy, recursive=True)
    for layer in copy._flatten_layers():
        if _is_adapted(layer):
            raise UsageError(
                f"Expected layers with `adapt` in the network itself. Received: '{layer.name}' in "
                f"'{path}', inside of another layer. Put the {type(layer).__name__} before that "
                "layer, and save the network again."
            )
    adapted = filter(_is_adapted, network._flatten_layers())
    found = {id(weight) for layer in adapted for weight in layer.weights}
    copy.set_weights([w.numpy() for w in network.weights if id(w) not in found])
    return copy


def _is_adapted(layer):
    if isinstance(layer, keras.layers.Normalization):
        return layer.input_mean is None
    return isinstance(layer, keras.layers.IntegerLookup) and layer.input_vocabulary is None


def _constant_copy(layer):
    """Return a copy of a layer without its weights, but with what `adapt` has found."""
    config = layer.get_config()
    if isinstance(layer, keras.layers.Normalization):
        found = {"mean": layer.adapt_mean, "variance": layer.adapt_variance}
        config |= {name: weight.numpy() for name, weight in found.items()}
    elif isinstance(layer, keras.layers.IntegerLookup):
        config |= {"vocabulary": layer.get_vocabulary(include_special_tokens=False)}
    return type(layer).from_config(config)


def _features_of(network, path, layer):
    """Return the symbolic features `[N, F]` of a network: a layer's output, or the last's input."""
    return output_layer(network, path).input if layer is None else _output(network, path, layer)


def _output(network, path, name):
    """Return the output `[N, F]` of a layer of a network."""
    if name not in {layer.name for layer in network.layers}:
        raise UsageError(
            f"Expected a layer of the network in '{path}', for `--features`. Received: '{name}'."
            f"{did_you_mean(name, [layer.name for layer in network.layers])} It can be cut behind "
            f"{_able(network)}."
        )
    outputs = _outputs(network, name)
    if not _are_features(outputs):
        shown = " and ".join(_shown(tensor.shape) for tensor in outputs)
        raise UsageError(
            "Expected a layer that has one output, features of shape [N, F], for `--features`. "
            f"Received: '{name}' of '{path}', with {shown}. The network can be cut behind "
            f"{_able(network)}."
        )
    [features] = outputs
    if not keras.Model(network.inputs[0], features).trainable_weights:
        raise UsageError(
            f"Expected a layer with weights before it, for `--features`. Received: '{name}' of "
            f"'{path}', without any to hold. It can be cut behind {_able(network)}."
        )
    return features


def _outputs(network, name):
    """Return the tensors that a layer makes in a network, in each place where it stands."""
    graph = getattr(network, "_functional", network)  # of a Sequential, that
    nodes = [node for depth in graph._nodes_by_depth.values() for node in depth]
    return [tensor for n in nodes if n.operation.name == name for tensor in n.outputs]


def _are_features(outputs):
    return len(outputs) == 1 and len(outputs[0].shape) == 2 and outputs[0].shape[1] is not None


def _able(network):
    """Return, for a message, the layers that a network can be cut behind, the last ones first."""
    inner = [each for each in network.layers if not isinstance(each, keras.layers.InputLayer)]
    able = [each.name for each in inner if _are_features(_outputs(network, each.name))]
    return one_of(reversed(able)) or (
        "none of its layers; end what is to be held in a GlobalAveragePooling2D or Flatten layer"
    )


def _shown(shape):
    return f"[{', '.join(['N', *(str(size or '?') for size in shape[1:])])}]"


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


def _features(name, x) -> Any:
    path, layer = parts(name) or (Path(name), None)
    network = read_network(path, layer)
    if (
        tuple(network.inputs[0].shape[1:]) != tuple(x.shape[1:])
        and None not in (network.inputs[0].shape[1:])
    ):
        raise UsageError(
            f"Expected inputs of shape {list(network.inputs[0].shape[1:])}, as the network in "
            f"'{path}' takes them. Received: shape {list(x.shape[1:])}. Bring the data to that "
            "shape (for images, set `image_size`)."
        )
    trunk = keras.Model(network.inputs[0], _features_of(network, path, layer))
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
                " A network with classes of yours is protected from a script: load it where they "
                "have the decorator `@keras.saving.register_keras_serializable()`, and give it to "
                "`SynapticMemory.protect` and `consolidate`.",
            )


def _classes(config) -> Iterator[tuple[str | None, str]]:
    """Yield module and name of every class in a saved configuration."""
    if isinstance(config, dict):
        if isinstance(config.get("class_name"), str):
            # Keras names what is registered by another package there.
            registered = config.get("registered_name") or ""
            module = registered.split(">")[0] if ">" in registered else config.get("module")
            # A class of a script has a registered name, and no module.
            yield module or (registered and "__main__") or None, config["class_name"]
        for value in config.values():
            yield from _classes(value)
    elif isinstance(config, list):
        for value in config:
            yield from _classes(value)


def _refusal(path, received, more="") -> UsageError:
    return UsageError(
        "Expected a functional Keras model of Keras's own layers, saved by `model.save`, whose "
        "last layer is a Dense layer with a unit for each of two classes or more. Received: "
        f"{received} in '{path}'. Put what prepares its inputs into layers of Keras, and its "
        "classifier at its end; or, if it has none, say with `--features LAYER` where its features "
        f"are.{more}"
    )
