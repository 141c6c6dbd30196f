"""Initial weights of backbones: from files of several formats, checked, and what tells them apart.

A file holds the weights of layers, by the layer's name and in the layer's order:

    .keras          a saved model, such as the model.keras of a run
    .h5, .hdf5      Keras's HDF5 format of weights by layer, as published for many networks
    .npz            arrays named LAYER/WEIGHT, or LAYER.weight and LAYER.bias as in PyTorch
    .safetensors    the same names, as published for many networks of PyTorch
    .caffemodel     a network that Caffe saved

Nothing is unpickled, and models are loaded in Keras's safe mode. Layers that the trunk does not
have, such as a classifier, are passed over.
"""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from keras_mas.errors import UsageError

from .backbone import Backbone
from .caffemodel import read_caffemodel

IMAGENET = "imagenet"

# How many layers or files an error lists.
_LISTED = 5

# The order of the weights in Keras's layers, by Keras's names and PyTorch's.
_ORDER = (
    ("kernel", "depthwise_kernel", "gamma", "weight"),
    ("pointwise_kernel",),
    ("bias", "beta"),
    ("moving_mean", "running_mean"),
    ("moving_variance", "running_var"),
)
_RANKS = {name: rank for rank, names in enumerate(_ORDER) for name in names}

LayerWeights = dict[str, list[np.ndarray]]


def check_weights(backbone: Backbone, weights: str) -> None:
    """Refuse weights that cannot be those of a backbone, before anything is built.

    Raises:
        UsageError: If they are neither a readable file of a known format nor, for a network of
            `keras.applications`, "imagenet".
    """
    if weights == IMAGENET:
        if backbone.imagenet is None:
            raise UsageError(
                f"Expected a file with weights for backbone '{backbone.name}'. Received: "
                f"'{IMAGENET}', which Keras has for the networks of keras.applications only. Name "
                "a file with `--weights`."
            )
        return
    path = Path(weights)
    if path.suffix.lower() not in _READERS:
        raise UsageError(
            f"Expected '{IMAGENET}' or a file of weights that ends in {', '.join(_READERS)}. "
            f"Received: '{weights}'. Convert PyTorch's weights with "
            '`safetensors.torch.save_file(model.state_dict(), "weights.safetensors")`.'
        )
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise UsageError(
            f"Expected a file of weights. Received: '{weights}', which cannot be read "
            f"({(error.strerror or str(error)).lower()}). Correct its path."
        ) from error


def load_weights(trunk: keras.Model, path: Path, backbone: Backbone) -> None:
    """Give a trunk the weights in a file.

    Args:
        trunk: The trunk of the backbone.
        path: The file.
        backbone: The backbone, which knows what its layers are called elsewhere.

    Raises:
        UsageError: If the file is damaged or of another format, or lacks a layer of the trunk, or
            has other shapes, or values that are not finite. Then the trunk may have some of them.
    """
    found = _read(path, backbone)
    _check_order(found, backbone, path)
    wanted = [layer for layer in trunk.layers if layer.weights]
    missing = [layer.name for layer in wanted if layer.name not in found]
    if missing:
        raise UsageError(
            f"Expected weights of every layer of backbone '{backbone.name}'. Received: none for "
            f"{_listed(missing)} in '{path}', which has {_listed(found)}. Name a file of this "
            "backbone with `--weights`."
        )
    for layer in wanted:
        _check_layer(layer, found[layer.name], path)
        layer.set_weights(found[layer.name])


def digest_of_file(path: Path) -> str:
    """Return a hash of a file's content."""
    with path.open("rb") as file:
        return _short(hashlib.file_digest(file, "sha256"))


def digest_of_values(arrays: list[np.ndarray]) -> str:
    """Return a hash of arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return _short(digest)


def _short(digest):
    return f"sha256:{digest.hexdigest()[:16]}"


def _check_order(found, backbone, path):
    """Refuse a file that tells the order of its layers, and has another one."""
    order = [name for name in found if name in backbone.order]
    if len(order) == len(backbone.order) and order != list(backbone.order):
        raise UsageError(
            f"Expected weights of backbone '{backbone.name}', in which {backbone.order[0]} comes "
            f"before {backbone.order[1]}. Received: '{path}', in which {order[0]} comes first, as "
            "in another network. Correct `--weights` or `--backbone`."
        )


def _check_layer(layer, arrays, path):
    expected = [tuple(weight.shape) for weight in layer.weights]
    shapes = [array.shape for array in arrays]
    if shapes != expected:
        raise UsageError(
            f"Expected weights of shapes {_listed(expected)} for the layer '{layer.name}'. "
            f"Received: {_listed(shapes)} in '{path}'. Name a file of this backbone with "
            "`--weights`."
        )
    if not all(array.dtype.kind == "f" and np.all(np.isfinite(array)) for array in arrays):
        raise UsageError(
            f"Expected finite real numbers for the layer '{layer.name}'. Received: others in "
            f"'{path}'. The file is damaged; take another one."
        )


def _read(path: Path, backbone: Backbone) -> LayerWeights:
    """Return the weights of every layer in a file, by our names of the layers."""
    reader, kind = _READERS[path.suffix.lower()]
    try:
        found = reader(path)
    except Exception as error:  # whatever a damaged or foreign file leads to
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise UsageError(
            f"Expected {kind}. Received: '{path}', which cannot be read as one ({reason}). Correct "
            "`--weights`."
        ) from error
    names = backbone.published
    ours = {names.get(name, name.replace("/", "-")): arrays for name, arrays in found.items()}
    for whole, parts in backbone.halves.items():
        ours |= _divided(ours.pop(whole, []), parts)
    return ours


def _divided(arrays, names) -> LayerWeights:
    """Return the weights of layers whose outputs stand side by side in one layer, if there are."""
    shares = [np.array_split(array, len(names), axis=-1) for array in arrays]
    return {name: [share[i] for share in shares] for i, name in enumerate(names) if shares}


def _read_model(path):
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no zip archive")
    return _layers_of(keras.models.load_model(path, compile=False))


def _layers_of(model):
    found: LayerWeights = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found |= _layers_of(layer)
        found[layer.name] = layer.get_weights()
    return found


def _read_hdf5(path):
    with h5py.File(path, "r") as file:
        root: Any = file.get("model_weights", file)
        if "layer_names" not in root.attrs:
            raise ValueError("it does not list the names of layers")
        return {
            _text(name): [root[name][weight][()] for weight in root[name].attrs["weight_names"]]
            for name in root.attrs["layer_names"]
        }


def _text(name):
    return name.decode() if isinstance(name, bytes) else str(name)


def _read_arrays(path):
    with np.load(path, allow_pickle=False) as file:
        return _by_layer({name: file[name] for name in file.files})


def _read_safetensors(path):
    from safetensors.numpy import load_file

    return _by_layer(load_file(path))


def _read_caffe(path):
    found = read_caffemodel(path)
    return {name: [_as_keras(array) for array in arrays] for name, arrays in found.items()}


def _by_layer(arrays) -> LayerWeights:
    """Return the weights of layers out of arrays by name, each layer's in the order of Keras."""
    named = {_split(name): array for name, array in arrays.items()}
    found: LayerWeights = {}
    for layer, name in sorted(named, key=lambda key: _RANKS.get(key[1], len(_ORDER))):
        if name in _RANKS:
            array = named[layer, name]
            found.setdefault(layer, []).append(_as_keras(array) if name == "weight" else array)
    return found


def _split(name):
    layer, _, weight = name.rpartition("/" if "/" in name else ".")
    return layer, weight


def _as_keras(weight):
    """Return a kernel of PyTorch or Caffe, whose output axis comes first, as Keras has it."""
    return weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T


_READERS = {
    ".keras": (_read_model, "a model that Keras saved"),
    ".h5": (_read_hdf5, "Keras's HDF5 format of weights by layer"),
    ".hdf5": (_read_hdf5, "Keras's HDF5 format of weights by layer"),
    ".npz": (_read_arrays, "arrays that `numpy.savez` wrote"),
    ".safetensors": (_read_safetensors, "tensors in the format of safetensors"),
    ".caffemodel": (_read_caffe, "a network that Caffe saved"),
}


def _listed(things):
    shown = [str(thing) if isinstance(thing, tuple) else f"'{thing}'" for thing in things]
    return ", ".join(shown[:_LISTED] + ["…"] * (len(shown) > _LISTED)) or "nothing"
