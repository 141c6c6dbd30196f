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
    given: list  # the tensors that came to it
    args: tuple  # what it was called with: these tensors, or copies that hold them fixed
    kwargs: dict
    preactivation: object  # tensor, or a structure of tensors
    output: object
    is_apart: bool  # whether the layer is a function of its own: its inputs are held fixed

    @property
    def tensors(self):
        """All tensors that it was called with."""
        return _tensors((self.args, self.kwargs))

    @property
    def results(self):
        """All tensors of its pre-activation."""
        return _tensors(self.preactivation)

    @property
    def answers(self):
        """The tensors of its pre-activation through which a gradient can flow."""
        return _answers(self.preactivation)

    @property
    def has_a_rules_form(self):
        """Whether one tensor, its first argument, goes in, and one comes out."""
        one = len(self.tensors) == len(self.results) == len(self.answers) == 1
        return one and bool(self.args) and _is_plain(self.args[0])

    @property
    def has_outputs_apart(self):
        """Whether no tensor of its output is made of another: those of an inner model may be."""
        return len(self.results) == 1 or not isinstance(self.layer, keras.Model)

    def is_closed(self):
        """Return whether only its tensors and variables go in, and only its output comes out.

        A layer may read what another has left in an attribute, use a mask that a tensor carries, or
        leave something itself; and a gradient taken inside a model reads its numbers again. To be
        asked before any gradient is taken of the graph.
        """
        captured = {tensor.ref() for tensor in self.graph.internal_captures}
        may_enter = captured | {tensor.ref() for tensor in self.tensors}
        may_leave = captured | {tensor.ref() for tensor in self.results}
        return not any(
            self._takes(operation, may_enter) or self._leaves(operation, may_leave)
            for operation in map(self.graph.get_operation_by_name, self.operations)
        )

    def _takes(self, operation, may_enter):
        return any(
            tensor.op.name not in self.operations
            and tensor.op.type != "Const"
            and tensor.ref() not in may_enter
            for tensor in operation.inputs
        )

    def _leaves(self, operation, may_leave):
        return operation.type != "Const" and any(
            reader.name not in self.operations
            for tensor in operation.outputs
            if tensor.ref() not in may_leave
            for reader in tensor.consumers()
        )

    def repeated(self, tensors):
        """Call the layer as it was called, with other tensors; return its answers to them."""
        tensors = iter(tensors)
        args, kwargs = tf.nest.map_structure(
            lambda value: next(tensors) if _is_plain(value) else value, (self.args, self.kwargs)
        )
        activation = own_activation(self.layer)
        without = replaced(self.layer, **({"activation": None} if activation else {}))
        with without, keras.StatelessScope():
            return _answers(_own_call(self.layer)(*args, **kwargs))


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
            recorded = _recording(layer, calls.append, tape, layer in apart)
            stack.enter_context(replaced(layer, call=recorded))
        yield calls


def _recording(layer, record, tape, is_apart):
    call = _own_call(layer)

    def recorded(*args, **kwargs):
        given = _tensors((args, kwargs))
        if is_apart:
            args, kwargs = tf.nest.map_structure(_held_fixed, (args, kwargs))
        graph = tf.compat.v1.get_default_graph()
        before = len(graph.get_operations())
        activation = own_activation(layer)
        with replaced(layer, **({"activation": None} if activation else {})):
            preactivation = call(*args, **kwargs)
        if len(_tensors(preactivation)) > 1 and not isinstance(layer, keras.Model):
            # Copies: the gradient at a state must not hold what flows through an output made of it.
            preactivation = tf.nest.map_structure(_copied, preactivation)
        for tensor in _answers(preactivation):
            tape.watch(tensor)
        made = frozenset(operation.name for operation in graph.get_operations()[before:])
        output = activation(preactivation) if activation else preactivation
        record(Call(layer, graph, made, given, args, kwargs, preactivation, output, is_apart))
        return output

    return recorded


def _is_plain(value):
    return isinstance(value, tf.Tensor)


def _own_call(layer):
    # Not a `tf.function` itself, which would keep what is traced while the layer is watched.
    return getattr(layer.call, "python_function", layer.call)


def _tensors(structure):
    return [value for value in tf.nest.flatten(structure) if _is_plain(value)]


def _answers(structure):
    return [tensor for tensor in _tensors(structure) if tensor.dtype.is_floating]


def _copied(value):
    return _masked_as(value, tf.identity(value)) if _is_plain(value) else value


def _held_fixed(value):
    if not (_is_plain(value) and value.dtype.is_floating):
        return value
    return _masked_as(value, tf.stop_gradient(value))


def _masked_as(tensor, copy):
    """Give a copy the mask that Keras hangs on a tensor."""
    mask = getattr(tensor, "_keras_mask", None)
    if mask is not None:
        copy._keras_mask = mask
    return copy


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
    """Compute in the precision of the variables, and leave no loss in the layers.

    Half precision would overflow in ∂‖F‖².
    """
    with contextlib.ExitStack() as stack:
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
