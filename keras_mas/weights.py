"""Weights by name, and the identity by which a weight is recognized in another model or process."""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras

from . import backend  # noqa: F401

# In a chain of names: a layer that Keras named itself, "dense_3", which tells nothing.
_AUTOMATIC = "*"


@dataclasses.dataclass(frozen=True)
class WeightIdentity:
    """What is known of a weight beside its values.

    Attributes:
        place: Where it stands in the structure of its model: the numbers of the layers that hold
            it, from the outermost inwards, and its own name, as in `"1/0/kernel"`. Layers without
            weights are not counted. The place is the same after `load_model`, in a clone and in a
            model that was built again.
        names: The names of the model and of these layers, `"shop/trunk/*"`, with `*` for one that
            Keras made up.
        path: `variable.path`, which changes when a model is loaded or wrapped.
        shape: Its shape.
        dtype: Name of its dtype.
    """

    place: str
    names: str
    path: str
    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        """Return the weight as an error names it."""
        return f"'{self.path}' {list(self.shape)} {self.dtype}"


def identities(model: keras.Layer) -> list[tuple[WeightIdentity, keras.Variable]]:
    """Return every weight of a built model or layer with its identity, each weight once.

    A weight that several layers share has the first of its places.

    Args:
        model: Built `keras.Model` or `keras.Layer`.
    """
    found = {}
    for place, names, weight in _places(model, "", _given_name(model)):
        if id(weight) not in found:
            identity = WeightIdentity(place, names, weight.path, tuple(weight.shape), weight.dtype)
            found[id(weight)] = identity, weight
    return list(found.values())


def _places(
    layer: keras.Layer, within: str, names: str
) -> Iterator[tuple[str, str, keras.Variable]]:
    # Keras offers no public list of a layer's own weights, nor of the layers inside a layer.
    own = [*layer._trainable_variables, *layer._non_trainable_variables]
    count: Counter[str] = Counter()
    for weight in own:
        repeated = f"-{count[weight.name]}" if count[weight.name] else ""
        count[weight.name] += 1
        yield f"{within}{weight.name}{repeated}", names, weight
    inner = layer._flatten_layers(include_self=False, recursive=False)
    for number, inside in enumerate(part for part in inner if part.weights):
        yield from _places(inside, f"{within}{number}/", f"{names}/{_given_name(inside)}")


def _given_name(layer):
    # Keras names a layer after its class, "lstm_cell_2" for an `LSTMCell`.
    letters = re.sub(r"_\d+$", "", layer.name).replace("_", "").lower()
    return _AUTOMATIC if letters == type(layer).__name__.replace("_", "").lower() else layer.name


def find_weights(
    wanted: Sequence[WeightIdentity],
    model: keras.Layer,
    names_in_use: Iterable[str] = (),
    is_value: Callable[[int, keras.Variable], bool] | None = None,
) -> dict[int, tuple[WeightIdentity, keras.Variable]]:
    """Find weights again in a model, by their identities.

    The places decide: the weights stand in the model as they stood in theirs, or one of the two
    models is a part of the other. Where that does not find all of them, their paths or the names of
    their layers may. A weight is never taken for one of another shape or dtype, nor where the names
    say that layers have changed places.

    Args:
        wanted: Identities of the weights of one model.
        model: Built `keras.Model` or `keras.Layer`.
        names_in_use: `names` of other weights that are remembered.
        is_value: Whether a weight has the value that is remembered for the number in `wanted`;
            decides where the model holds the weights in several ways.

    Returns:
        For the number in `wanted` of each weight that was found, its identity in the model and the
        weight.

    Raises:
        ValueError: If the model holds the weights in several ways.
    """
    there = identities(model)
    is_alike = _Likeness(wanted, there, names_in_use)
    outer = {prefix for identity, _ in there for prefix in _prefixes(identity.place)}
    inner = {prefix for identity in wanted for prefix in _prefixes(identity.place)}
    ways = [
        _by_place(wanted, there, is_alike),
        *(_by_place(wanted, there, is_alike, added=prefix) for prefix in sorted(outer)),
        *(_by_place(wanted, there, is_alike, removed=prefix) for prefix in sorted(inner)),
        _by_key(wanted, there, lambda identity: identity.path),
        _by_key(wanted, there, _given_chain),
    ]
    most = max(map(len, ways))
    best = {
        tuple((k, id(weight)) for k, (_, weight) in way.items()): way
        for way in ways
        if len(way) == most
    }
    first, *others = best.values()
    if others and is_value is not None:
        same = [w for w in best.values() if all(is_value(k, there) for k, (_, there) in w.items())]
        if len(same) == 1:
            return same[0]
    if others:
        k = next(k for k in first if first[k][1] is not others[0].get(k, (None, None))[1])
        raise ValueError(
            f"'{model.name}' holds the remembered weights in several ways: {wanted[k]} may be "
            f"{first[k][0]} at {first[k][0].place} or another one. Protect the part of the model "
            "that is meant, or give its layers the names that they had."
        )
    return first


class _Likeness:
    """Whether a weight may be taken for a wanted one that stands at the same place."""

    def __init__(self, wanted, there, names_in_use):
        self.present = _ends(identity.names for identity, _ in there)
        self.known = _ends([*names_in_use, *(identity.names for identity in wanted)])

    def __call__(self, wanted, found):
        if (wanted.shape, wanted.dtype) != (found.shape, found.dtype):
            return False
        ours, theirs = wanted.names.split("/"), found.names.split("/")
        pairs = zip(reversed(ours), reversed(theirs), strict=False)
        differ = [a != b and _AUTOMATIC not in (a, b) for a, b in pairs]
        if not any(differ):
            return True
        # Something has another name. It may have been renamed; but where its old name, or its new
        # one, is in use elsewhere too, parts of the model have changed places.
        if len(ours) == len(theirs) and not any(differ[:-1]):  # the model itself
            return wanted.names not in self.present and found.names not in self.known
        return not (_ends([wanted.names]) & self.present or _ends([found.names]) & self.known)


def _ends(chains):
    """Return the chains of names, and each without its model's name."""
    ends = {end for names in chains for end in (names, names.partition("/")[2])}
    return {end for end in ends if set(end) - {_AUTOMATIC, "/"}}


def _by_place(wanted, there, is_alike, added="", removed=""):
    """Return what stands where it stood, after a part of the place has been added or removed."""
    at_place = {identity.place: (identity, weight) for identity, weight in there}
    found = {}
    for k, identity in enumerate(wanted):
        if identity.place.startswith(removed):
            match = at_place.get(added + identity.place.removeprefix(removed))
            if match and is_alike(identity, match[0]):
                found[k] = match
    return found


def _prefixes(place):
    """Return the places of the layers that hold a weight, `"1/"` and `"1/0/"` of `"1/0/kernel"`."""
    return {place[: m.end()] for m in re.finditer("/", place)}


def _by_key(wanted, there, key):
    """Return what a key finds that is unique both among the wanted and in the model."""
    theirs = {key(identity): (identity, w) for identity, w in there}
    count = Counter(key(identity) for identity, _ in there)
    ours = Counter(map(key, wanted))
    found = {}
    for k, identity in enumerate(wanted):
        match = theirs.get(key(identity))
        if match is None or count[key(identity)] > 1 or ours[key(identity)] > 1:
            continue
        if (identity.shape, identity.dtype) == (match[0].shape, match[0].dtype):
            found[k] = match
    return found


def _given_chain(identity):
    """Return the given names around a weight, without its model's; its place if one is missing."""
    names = identity.names.split("/")[1:]
    if not names or _AUTOMATIC in names:
        return identity.place
    return "/".join([*names, identity.place.rsplit("/")[-1]])


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
    names: dict[int, str] = {}
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


def checked_layer(model: keras.Layer) -> keras.Layer:
    """Return a model or layer as it is; ValueError if it is something else."""
    if not isinstance(model, keras.Layer):
        raise ValueError(
            f"Expected a Keras model, or a layer of one. Received: a {type(model).__name__}."
        )
    return model


def trainable_weights(model: keras.Layer) -> dict[str, keras.Variable]:
    """Return the trainable weights of a built model by name.

    Args:
        model: Built `keras.Model` or `keras.Layer`.

    Returns:
        Dict from name, as `weight_names` gives it, to `keras.Variable`, in the model's order.

    Raises:
        ValueError: If it is no model, is not built, or has no trainable weight or float16 weights.
    """
    if not checked_layer(model).built:
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


def find_by_place(
    wanted: Sequence[WeightIdentity], model: keras.Layer
) -> dict[int, tuple[WeightIdentity, keras.Variable]]:
    """Find weights by their places alone, as Keras does when it loads the weights of a model.

    Args:
        wanted: Identities of the weights.
        model: Built `keras.Model` or `keras.Layer`.

    Returns:
        As `find_weights`.
    """
    return _by_place(wanted, identities(model), _is_of_shape)


def _is_of_shape(wanted, found):
    return wanted.shape == found.shape


def is_copy(wanted: Sequence[WeightIdentity], model: keras.Layer) -> bool:
    """Return whether a model has the same weights in the same places, by the same given names."""
    there = find_by_place(wanted, model)
    return len(there) == len(wanted) and all(
        wanted[k].names == identity.names for k, (identity, _) in there.items()
    )
