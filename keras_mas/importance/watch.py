"""Watching layers: what went into a layer, and its pre-activation for a tape to differentiate by.

A watched layer's `call` is replaced on the instance, and put back whatever happens.
"""

import contextlib
import dataclasses

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a watched layer while a graph was traced."""

    graph: tf.Graph
    operations: frozenset  # names of the operations of the call, its activation left out
    inputs: tf.Tensor
    preactivation: tf.Tensor


@contextlib.contextmanager
def watching(layers, tape):
    """Record the calls of `layers` inside the `with` block.

    Yields:
        List of the same length: per layer the list of its `Call`s.
    """
    calls = [[] for _ in layers]
    with contextlib.ExitStack() as stack:
        for layer, record in zip(layers, calls, strict=True):
            stack.enter_context(
                _replaced(layer, call=_recording(layer, layer.call, record.append, tape))
            )
        yield calls


def _recording(layer, call, record, tape):
    def recorded(inputs, *args, **kwargs):
        graph = tf.compat.v1.get_default_graph()
        before = len(graph.get_operations())
        activation = getattr(layer, "activation", None)
        with _replaced(layer, activation=None):
            preactivation = call(inputs, *args, **kwargs)
        tape.watch(preactivation)
        made = frozenset(operation.name for operation in graph.get_operations()[before:])
        record(Call(graph, made, inputs, preactivation))
        return activation(preactivation) if activation is not None else preactivation

    return recorded


@contextlib.contextmanager
def _replaced(instance, **attributes):
    """Set attributes on the instance alone, past Keras's tracking, which would refuse them back."""
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


def is_used_outside(weight, call):
    """Return whether anything in the call's graph but the call itself reads the weight."""
    handle = weight.value.handle
    for outer, inner in call.graph.captures:
        if outer is handle:
            return any(user.name not in call.operations for user in inner.consumers())
    return False
