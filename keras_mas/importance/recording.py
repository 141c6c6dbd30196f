"""Recording the calls of layers: what went into each call, and what came out of it.

While a layer is recorded its `call` is replaced on the instance, and restored whatever happens.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from .rules import rule_for
from .unchanged import replaced


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """One recorded call of a layer.

    Attributes:
        layer: The layer.
        graph: The graph that the call was traced into.
        operations: Names of the operations that the call added to it, without its activation's.
        given: The tensors that the layer was called with.
        args: Its positional arguments: these tensors, or copies without gradient.
        kwargs: Its keyword arguments, likewise.
        preactivation: Tensor, or structure of tensors: its output before its activation.
        output: Its output.
        detached: Whether no gradient flows into its inputs.
    """

    layer: keras.Layer
    graph: tf.Graph
    operations: frozenset[str]
    given: list[tf.Tensor]
    args: tuple
    kwargs: dict[str, Any]
    preactivation: Any
    output: Any
    detached: bool

    @property
    def tensors(self) -> list[tf.Tensor]:
        """All tensors among its arguments."""
        return _tensors((self.args, self.kwargs))

    @property
    def results(self) -> list[tf.Tensor]:
        """All tensors of its pre-activation."""
        return _tensors(self.preactivation)

    @property
    def differentiable_outputs(self) -> list[tf.Tensor]:
        """The tensors of its pre-activation through which a gradient can flow."""
        return _differentiable(self.preactivation)

    @property
    def fits_rules(self) -> bool:
        """Whether one tensor, its first argument, goes in, and one comes out."""
        one = len(self.tensors) == len(self.results) == len(self.differentiable_outputs) == 1
        return one and bool(self.args) and _is_tensor(self.args[0])

    @property
    def has_independent_outputs(self) -> bool:
        """Whether no tensor of its output is computed from another: an inner model's may be."""
        return len(self.results) == 1 or not isinstance(self.layer, keras.Model)

    def is_closed(self) -> bool:
        """Return whether only its tensors and variables go in, and only its output comes out.

        Not closed is a layer that reads what another has stored in an attribute, that uses a mask
        attached to a tensor, whose attribute another one reads, or inside which a gradient is
        taken. To be called before any gradient is taken of the graph, which would read its tensors
        too.
        """
        captured = {tensor.ref() for tensor in self.graph.internal_captures}
        may_enter = captured | {tensor.ref() for tensor in self.tensors}
        may_leave = captured | {tensor.ref() for tensor in self.results}
        return not any(
            self._reads_others(operation, may_enter) or self._is_read(operation, may_leave)
            for operation in map(self.graph.get_operation_by_name, self.operations)
        )

    def _reads_others(self, operation, may_enter):
        return any(
            tensor.op.name not in self.operations
            and tensor.op.type != "Const"
            and tensor.ref() not in may_enter
            for tensor in operation.inputs
        )

    def _is_read(self, operation, may_leave):
        return operation.type != "Const" and any(
            reader.name not in self.operations
            for tensor in operation.outputs
            if tensor.ref() not in may_leave
            for reader in tensor.consumers()
        )

    def repeated(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Call the layer in the same way with other tensors; return its differentiable outputs."""
        remaining = iter(tensors)
        args, kwargs = tf.nest.map_structure(
            lambda value: next(remaining) if _is_tensor(value) else value, (self.args, self.kwargs)
        )
        with _without_activation(self.layer), keras.StatelessScope():
            return _differentiable(_plain_call(self.layer)(*args, **kwargs))


@contextlib.contextmanager
def recording_calls(
    layers: Sequence[keras.Layer], tape: tf.GradientTape, detached: Collection[keras.Layer] = ()
) -> Iterator[list[Call]]:
    """Record the calls of layers inside the block.

    Args:
        layers: The layers of a model.
        tape: The tape that watches what comes out of each call.
        detached: Those of them that no gradient may flow through to the layers before.

    Yields:
        List of `Call`s, to which each call is added when it ends.
    """
    calls: list[Call] = []
    with contextlib.ExitStack() as stack:
        for layer in layers:
            recorder = _recorder(layer, calls.append, tape, layer in detached)
            stack.enter_context(replaced(layer, call=recorder))
        yield calls


def _recorder(
    layer: keras.Layer, record: Callable[[Call], None], tape: tf.GradientTape, detached: bool
) -> Callable[..., Any]:
    """Return a `call` for a layer that does what its own does, and records it."""
    call = _plain_call(layer)

    def recorder(*args, **kwargs):
        given = _tensors((args, kwargs))
        if detached:
            args, kwargs = tf.nest.map_structure(_detached, (args, kwargs))
        graph = tf.compat.v1.get_default_graph()
        before = len(graph.get_operations())
        with _without_activation(layer) as activation:
            preactivation = call(*args, **kwargs)
        if len(_tensors(preactivation)) > 1 and not isinstance(layer, keras.Model):
            # The gradient at a copy leaves out what flows through another output made of the same
            # tensor, as the output of a recurrent layer is made of its state.
            preactivation = tf.nest.map_structure(_copied, preactivation)
        for tensor in _differentiable(preactivation):
            tape.watch(tensor)
        added = frozenset(operation.name for operation in graph.get_operations()[before:])
        output = activation(preactivation) if activation else preactivation
        record(Call(layer, graph, added, given, args, kwargs, preactivation, output, detached))
        return output

    vars(recorder)["calls_instead_of"] = layer.call  # see `rule_for`
    return recorder


def own_activation(layer: keras.Layer) -> Callable | None:
    """Return the activation that ends a layer's call, or None.

    Only classes with a rule are known to apply their `activation` last: a recurrent cell has one
    too, and applies it inside.
    """
    return vars(layer).get("activation") if rule_for(layer) else None


@contextlib.contextmanager
def _without_activation(layer):
    """Let a layer's call end before its own activation inside the block; yield the activation."""
    activation = own_activation(layer)
    with replaced(layer, **({"activation": None} if activation else {})):
        yield activation


def _plain_call(layer):
    # A `tf.function` would keep a trace of the recorded call.
    return getattr(layer.call, "python_function", layer.call)


def _is_tensor(value):
    return isinstance(value, tf.Tensor)


def _tensors(structure):
    return [value for value in tf.nest.flatten(structure) if _is_tensor(value)]


def _differentiable(structure):
    return [tensor for tensor in _tensors(structure) if tensor.dtype.is_floating]


def _copied(value):
    return _with_mask_of(value, tf.identity(value)) if _is_tensor(value) else value


def _detached(value):
    if not (_is_tensor(value) and value.dtype.is_floating):
        return value
    return _with_mask_of(value, tf.stop_gradient(value))


def _with_mask_of(tensor, copy):
    """Give a copy the mask that Keras attaches to a tensor."""
    mask = getattr(tensor, "_keras_mask", None)
    if mask is not None:
        copy._keras_mask = mask
    return copy


def weight_readers(
    weights: dict[str, keras.Variable], graph: tf.Graph
) -> dict[str, frozenset[str]]:
    """Return, by the name of each weight, the names of the operations in a graph that read it."""
    inside = {id(outer): inner for outer, inner in graph.captures}
    handles = {name: inside.get(id(_handle(weight))) for name, weight in weights.items()}
    return {
        name: frozenset(() if handle is None else (reader.name for reader in handle.consumers()))
        for name, handle in handles.items()
    }


def _handle(weight):
    # Inside a strategy's scope a weight is a variable per device, of which the first is read.
    return tf.distribute.get_strategy().experimental_local_results(weight.value)[0].handle
