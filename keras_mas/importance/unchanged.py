"""Running a model for measurement without leaving a trace in it."""

import collections
import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

# Held while the layers of a model are prepared for measurement: two threads that measure models
# with common layers would otherwise restore each other's changes.
MEASURING = threading.RLock()

# The attribute of a model that holds what was traced for it. Another thread may take or put it back
# while this one measures, so it is not restored with the others.
KEPT_ENGINE = "_kept_engine"


def flatten_layers(model: keras.Layer) -> list[keras.Layer]:
    """Return a model or layer and all layers inside it."""
    # Keras offers no public walk over nested layers.
    return list(model._flatten_layers(include_self=True, recursive=True))


@contextlib.contextmanager
def replaced(instance: Any, **attributes: Any) -> Iterator[None]:
    """Set attributes of one instance inside the block, bypassing Keras's attribute tracking."""
    before = {name: vars(instance)[name] for name in attributes if name in vars(instance)}
    for name, value in attributes.items():
        object.__setattr__(instance, name, value)
    try:
        yield
    finally:
        for name in attributes:
            if name in before:
                object.__setattr__(instance, name, before[name])
            else:
                object.__delattr__(instance, name)


@contextlib.contextmanager
def leaving_unchanged(layers: Sequence[keras.Layer]) -> Iterator[None]:
    """Prepare layers for measurement inside the block, and restore them when it ends.

    Inside, they compute in the precision of their variables, since half precision would overflow in
    ∂‖F‖²; and stateful recurrent layers start every example from their initial state, so that an
    example does not depend on those before it. Restored are all attributes of the layers, the
    contents of lists, dicts and sets among them, and TensorFlow variables that an attribute holds.
    (Keras variables are not assigned at all: the model runs in a `keras.StatelessScope`.)
    """
    with MEASURING:
        saved = [_Saved(layer) for layer in layers]
        try:
            for layer in layers:
                vars(layer).update(_for_measurement(layer))
            yield
        finally:
            for state in saved:
                state.restore()


def _for_measurement(layer: keras.Layer) -> dict[str, Any]:
    attributes: dict[str, Any] = {"_losses": [], "_loss_ids": set()}
    if layer.compute_dtype != layer.variable_dtype:
        attributes["_dtype_policy"] = keras.DTypePolicy(layer.variable_dtype)
    if isinstance(layer, keras.layers.RNN | keras.layers.Bidirectional):
        attributes["stateful"] = False
    return attributes


class _Saved:
    """The attributes of a layer, and the contents of those that can change in place."""

    def __init__(self, layer: keras.Layer):
        self.layer = layer
        self.attributes = {k: v for k, v in vars(layer).items() if k != KEPT_ENGINE}
        values = self.attributes.values()
        kinds: Any = map(type, values)
        held = zip(values, map(_container_type, kinds), strict=True)
        self.containers = [(value, kind, kind(value)) for value, kind in held if kind]
        self.variables = [(v, tf.identity(v)) for v in values if isinstance(v, tf.Variable)]

    def restore(self) -> None:
        attributes = vars(self.layer)
        for name in attributes.keys() - self.attributes.keys() - {KEPT_ENGINE}:
            del attributes[name]
        attributes.update(self.attributes)
        for container, kind, contents in self.containers:
            if _identities(container) != _identities(contents):
                # Keras's own lists and dicts would track and untrack what they hold.
                kind.clear(container)
                (kind.extend if kind is list else kind.update)(container, contents)
        for variable, value in self.variables:
            variable.assign(value)


@functools.lru_cache(maxsize=1000)  # a model has few classes of attributes, and is asked per batch
def _container_type(of: type) -> Any:
    """Return the built-in mutable container that a class derives from, or None."""
    types = (list, collections.OrderedDict, dict, set)
    return next((kind for kind in types if issubclass(of, kind)), None)


def _identities(container: Any) -> list:
    """Return what a container holds by `id`: tensors cannot be compared by `==`."""
    if isinstance(container, dict):
        return [(key, id(value)) for key, value in container.items()]
    identities = [id(value) for value in container]
    return sorted(identities) if isinstance(container, set) else identities
