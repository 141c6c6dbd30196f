"""Weights by name, and the identity by which a weight is recognized in another model or process."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator

import keras


@dataclasses.dataclass(frozen=True)
class WeightIdentity:
    """What is known of a weight beside its values.

    Attributes:
        place: Where it stands in the structure of its model: the numbers of the layers that hold
            it, from the outermost inwards, and its own name, as in `"1/0/kernel"`. Layers without
            weights are not counted. Names of models and layers play no part, so that the place is
            the same after `load_model`, in a clone and in a model that was built again.
        path: `variable.path`, which changes when a model is loaded or wrapped.
        shape: Its shape.
        dtype: Name of its dtype.
    """

    place: str
    path: str
    shape: tuple[int, ...]
    dtype: str


def identities(model: keras.Layer) -> list[tuple[WeightIdentity, keras.Variable]]:
    """Return every weight of a built model or layer with its identity, each weight once.

    A weight that several layers share has the first of its places.

    Args:
        model: Built `keras.Model` or `keras.Layer`.
    """
    found = {}
    for place, weight in _places(model):
        if id(weight) not in found:
            identity = WeightIdentity(place, weight.path, tuple(weight.shape), weight.dtype)
            found[id(weight)] = identity, weight
    return list(found.values())


def _places(layer: keras.Layer, within: str = "") -> Iterator[tuple[str, keras.Variable]]:
    # Keras offers no public list of a layer's own weights, nor of the layers inside a layer.
    own = [*layer._trainable_variables, *layer._non_trainable_variables]
    names: Counter[str] = Counter()
    for weight in own:
        repeated = f"-{names[weight.name]}" if names[weight.name] else ""
        names[weight.name] += 1
        yield f"{within}{weight.name}{repeated}", weight
    inner = layer._flatten_layers(include_self=False, recursive=False)
    for number, inside in enumerate(part for part in inner if part.weights):
        yield from _places(inside, f"{within}{number}/")


def weight_names(model: keras.Layer) -> dict[int, str]:
    """Return a name for every weight of a model, by the weight's `id`.

    The name is the weight's path. Two towers of one application hold equal paths: there the name
    begins with the names of the layers around it, `"left/Conv1/kernel"`, and where these are equal
    too it ends with a number.

    Args:
        model: Built `keras.Model` or `keras.Layer`.
    """
    weights = [weight for _, weight in identities(model)]
    chains = _layer_names(model)
    names = _told_apart(
        [weight.path for weight in weights], [chains[id(weight)] for weight in weights]
    )
    return {id(weight): name for weight, name in zip(weights, names, strict=True)}


def _layer_names(layer: keras.Layer, within: str = "") -> dict[int, str]:
    """Return by `id` of every weight the names of the layers around it, and its own."""
    names = {}
    for inside in layer._flatten_layers(include_self=False, recursive=False):
        for key, name in _layer_names(inside, f"{within}{inside.name}/").items():
            names.setdefault(key, name)
    for weight in [*layer._trainable_variables, *layer._non_trainable_variables]:
        names.setdefault(id(weight), f"{within}{weight.name}")
    return names


def _told_apart(paths: list[str], chains: list[str]) -> list[str]:
    count = Counter(paths)
    names: list[str] = []
    taken = {path for path, number in count.items() if number == 1}
    for path, chain in zip(paths, chains, strict=True):
        name = path
        if count[path] > 1:
            numbered = (f"{chain}-{number}" for number in itertools.count(1))
            name = next(name for name in itertools.chain([chain], numbered) if name not in taken)
            taken.add(name)
        names.append(name)
    return names


def trainable_weights(model: keras.Layer) -> dict[str, keras.Variable]:
    """Return the trainable weights of a built model by name.

    Args:
        model: Built `keras.Model` or `keras.Layer`.

    Returns:
        Dict from name, as `weight_names` gives it, to `keras.Variable`, in the model's order.

    Raises:
        ValueError: If the model is not built, has no trainable weight, or has weights in float16.
    """
    if not model.built:
        raise ValueError(
            f"Expected a built model. Received: '{model.name}', which has no weights yet. "
            "Call it on one batch, or `build` it with an input shape, first."
        )
    names = weight_names(model)
    weights = {names[id(weight)]: weight for weight in model.trainable_weights}
    if not weights:
        raise ValueError(
            f"Expected a model with trainable weights. Received: '{model.name}' with none. "
            "Set `trainable = True` on the layers that are to learn."
        )
    for name, weight in weights.items():
        if weight.dtype == "float16":
            raise ValueError(
                f"Expected weights in float32, float64 or bfloat16. Received: '{name}' in float16, "
                "whose range is too small for importance. Keep the weights in float32 and compute "
                "in float16 with the dtype policy 'mixed_float16'."
            )
    return weights
