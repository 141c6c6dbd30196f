"""Watching layers: what went into each call of a layer, and what came out of it.

A watched layer's `call` is replaced on the instance, and put back whatever happens.
"""

import contextlib
import dataclasses

import keras
import tensorflow as tf

from .rules import rule_for


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One call of a watched layer while a graph was traced."""

    layer: keras.Layer
    graph: tf.Graph
    operations: frozenset  # names of the operations of the call, its activation left out
    args: tuple
    kwargs: dict
    preactivation: object  # tensor, or a structure of tensors
    output: object
    is_apart: bool  # whether the layer is a function of its own: its inputs are held fixed

    @property
    def inputs(self):
        """What the layer was called with first; None if everything was given by name."""
        return self.args[0] if self.args else None

    @property
    def tensors(self):
        """All tensors that the layer was given."""
        return [value for value in tf.nest.flatten((self.args, self.kwargs)) if _is_plain(value)]

    @property
    def has_only_inputs(self):
        """Whether the first argument is the one tensor that the layer was given."""
        return _is_plain(self.inputs) and len(self.tensors) == 1

    @property
    def has_outputs_apart(self):
        """Whether no tensor of its output is made of another: those of an inner model may be."""
        single = len(tf.nest.flatten(self.preactivation)) == 1
        return single or not isinstance(self.layer, keras.Model)

    def repeated(self, tensors):
        """Call the layer as it was called, with other tensors; return its pre-activation."""
        tensors = iter(tensors)
        args, kwargs = tf.nest.map_structure(
            lambda value: next(tensors) if _is_plain(value) else value, (self.args, self.kwargs)
        )
        activation = own_activation(self.layer)
        with replaced(self.layer, **({"activation": None} if activation else {})):
            return self.layer.call(*args, **kwargs)


@contextlib.contextmanager
def watching(layers, tape, apart=()):
    """Record the calls of `layers` inside the `with` block.

    Args:
        layers: The layers of a model.
        tape: The tape that watches what comes out of each call.
        apart: Those of them into which no gradient may flow from the layers behind.

    Yields:
        List of `Call`s in the order in which they ended.
    """
    calls = []
    with contextlib.ExitStack() as stack:
        for layer in layers:
            recorded = _recording(layer, layer.call, calls.append, tape, layer in apart)
            stack.enter_context(replaced(layer, call=recorded))
        yield calls


def _recording(layer, call, record, tape, is_apart):
    def recorded(*args, **kwargs):
        if is_apart:
            args, kwargs = tf.nest.map_structure(_held_fixed, (args, kwargs))
        graph = tf.compat.v1.get_default_graph()
        before = len(graph.get_operations())
        activation = own_activation(layer)
        with replaced(layer, **({"activation": None} if activation else {})):
            preactivation = call(*args, **kwargs)
        if len(tf.nest.flatten(preactivation)) > 1 and not isinstance(layer, keras.Model):
            # Copies: the gradient at a state must not hold what flows through an output made of it.
            preactivation = tf.nest.map_structure(_copied, preactivation)
        for tensor in tf.nest.flatten(preactivation):
            if tf.is_tensor(tensor) and tensor.dtype.is_floating:
                tape.watch(tensor)
        made = frozenset(operation.name for operation in graph.get_operations()[before:])
        output = activation(preactivation) if activation else preactivation
        record(Call(layer, graph, made, args, kwargs, preactivation, output, is_apart))
        return output

    return recorded


def _is_plain(value):
    return isinstance(value, tf.Tensor)


def _copied(value):
    return tf.identity(value) if _is_plain(value) else value


def _held_fixed(value):
    return tf.stop_gradient(value) if _is_plain(value) and value.dtype.is_floating else value


def own_activation(layer):
    """Return the activation that ends a layer's call, or None.

    Only a class with a rule is known to apply its `activation` last: a recurrent cell has one too,
    and applies it inside.
    """
    return vars(layer).get("activation") if rule_for(layer) else None


@contextlib.contextmanager
def replaced(instance, **attributes):
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


@contextlib.contextmanager
def measuring(layers):
    """Compute in the precision of the variables, and leave no update and no loss in the layers.

    Half precision would overflow in ∂‖F‖².
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(keras.StatelessScope())
        for layer in layers:
            stack.enter_context(replaced(layer, _losses=[]))
            if layer.compute_dtype != layer.variable_dtype:
                policy = keras.DTypePolicy(layer.variable_dtype)
                stack.enter_context(replaced(layer, _dtype_policy=policy))
        yield


def uses(weights, graph):
    """Return by path the names of the operations of a graph that read a weight."""
    inside = {id(outer): inner for outer, inner in graph.captures}
    handles = {path: inside.get(id(_handle(weight))) for path, weight in weights.items()}
    return {
        path: set() if handle is None else {user.name for user in handle.consumers()}
        for path, handle in handles.items()
    }


def _handle(weight):
    # Inside a strategy's scope a weight is a variable per device, of which the first is read.
    return tf.distribute.get_strategy().experimental_local_results(weight.value)[0].handle


def flatten_layers(model):
    """Return a model or layer and all layers inside it."""
    # Keras offers no public walk over nested layers.
    return list(model._flatten_layers(include_self=True, recursive=True))
