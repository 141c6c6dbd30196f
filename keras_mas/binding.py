"""How the weights of a model are bound to what is remembered of them.

A bound weight has three things of ours: a `MASRegularizer`, which brings the penalty into
`model.losses`; an `UpdateCheck`, which refuses a training step that leaves the penalty out; and a
place in a `PenaltyMetric`, which reports the penalty in the logs of `fit`.
"""

import functools
import gc
import weakref
from collections.abc import Callable, Iterable

import keras
import tensorflow as tf

from .regularizer import MASRegularizer

_EAGER = "eager"


class PenaltyMetric(keras.metrics.Metric):
    """The penalty λ Σ Ω (θ − θ*)² of the last training step, over the weights of the model.

    It stands in the logs of training steps only, so that `evaluate` returns what it returned
    before.

    Args:
        on_new_trace: Called, without arguments, when a training step is being traced.
    """

    def __init__(self, on_new_trace: Callable[[], None] = lambda: None):
        super().__init__(name="penalty")
        self.on_new_trace = on_new_trace
        self._updated_in = _nowhere

    def add_term(self) -> keras.Variable:
        """Return a new scalar variable, one of those that the metric is the sum of."""
        return self.add_variable((), "zeros", aggregation="mean", name="term")

    def weight_updated(self) -> None:
        """Be told that a training step has updated a bound weight."""
        graph = _outermost_graph()
        is_new_trace = graph is not _EAGER and self._updated_in() is not graph
        self._updated_in = _reference(graph)
        if is_new_trace:
            self.on_new_trace()

    def update_state(self, *args, **kwargs):
        """Do nothing: each regularizer writes its own term."""

    def result(self):
        """Return `{"penalty": scalar}` within a training step, and nothing elsewhere."""
        graph = _outermost_graph()
        if self._updated_in() is not graph or not self.variables:
            return {}
        if graph is _EAGER:
            self._updated_in = _nowhere  # until the next update
        return {self.name: tf.add_n([tf.convert_to_tensor(term) for term in self.variables])}


class UpdateCheck(keras.constraints.Constraint):
    """Refuse a training step that updates a bound weight without its penalty.

    Every Keras optimizer calls the constraint of a weight when it has updated it, in whatever
    `train_step`. This one leaves the weight as it is.

    Args:
        name: Name of the weight, for the error.
        metric: Is told of every update.
        base_constraint: The constraint that the weight had before, applied as it was; or None.
    """

    def __init__(self, name: str, metric: PenaltyMetric, base_constraint: Callable | None = None):
        self.name = name
        self.metric = metric
        self.base_constraint = base_constraint
        self._evaluated_in = _nowhere

    def penalty_evaluated(self) -> None:
        """Be told that the penalty has been evaluated, in the step that is being traced or run."""
        self._evaluated_in = _reference(_outermost_graph())

    def __call__(self, weight):
        """Return the weight, after the constraint that it had before."""
        if not self._is_evaluated():
            raise ValueError(
                f"The training step updates the protected weight '{self.name}' without its "
                "penalty: the loss leaves `model.losses` out. Take the loss from "
                "`self.compute_loss(...)`, or add `sum(self.losses)` to it, in the same "
                "`tf.function` as the update."
            )
        self.metric.weight_updated()
        return weight if self.base_constraint is None else self.base_constraint(weight)

    def _is_evaluated(self):
        evaluated_in, now = self._evaluated_in(), _outermost_graph()
        if now is not _EAGER:
            return evaluated_in is now
        if evaluated_in is _EAGER:
            self._evaluated_in = _nowhere  # each step has to evaluate it again
        # A step that runs eagerly may compute its gradients in a graph of its own.
        return evaluated_in is not None


def bind_weight(weight: keras.Variable, state, strength, metric: PenaltyMetric) -> None:
    """Have a weight's penalty in the losses of every model that the weight is in.

    Args:
        weight: θ.
        state: The weight's `WeightState`, with its name, Ω, θ* and the term that reports the
            penalty.
        strength: λ, `keras.Variable`.
        metric: Reports the penalty.
    """
    check = UpdateCheck(state.name, metric, weight.constraint)

    def report(penalty):
        check.penalty_evaluated()
        state.term.assign(tf.cast(penalty, state.term.dtype))

    weight.regularizer = MASRegularizer(
        state.importance, state.anchor, strength, weight.regularizer, report
    )
    weight.constraint = check


def unbind_weight(weight: keras.Variable) -> None:
    """Give a bound weight back the regularizer and the constraint that it had before."""
    weight.regularizer = weight.regularizer.base_regularizer
    weight.constraint = weight.constraint.base_constraint


def report_penalty(layer: keras.Layer, weight: keras.Variable, metric: PenaltyMetric) -> None:
    """Have a metric in the logs of every model that holds a weight of a layer."""
    # Keras leaves out the metrics of models inside a model, but not those of layers.
    owner = _owner_of(weight, layer)
    if metric not in owner._metrics:
        owner._metrics.append(metric)  # not as an attribute, which `save` would store


def _owner_of(weight, layer):
    for inside in reversed(layer._flatten_layers()):
        own = [*inside._trainable_variables, *inside._non_trainable_variables]
        if any(variable is weight for variable in own):
            return inside
    return layer


def unreport_penalty(layer: keras.Layer, metric: PenaltyMetric) -> None:
    """Take a metric out of all layers inside a layer."""
    for inside in layer._flatten_layers():
        if metric in inside._metrics:
            inside._metrics.remove(metric)


def models_with(weights: Iterable[keras.Variable]) -> list[keras.Model]:
    """Return every living model that holds any of the weights.

    A model around a trunk is known to nobody but its owner, and Keras keeps no list of models.
    """
    wanted = {id(weight) for weight in weights}
    models = [thing for thing in gc.get_objects() if issubclass(type(thing), keras.Model)]
    return [
        model
        for model in models
        if getattr(model, "built", False) and any(id(weight) in wanted for weight in model.weights)
    ]


def trace_again(model: keras.Model) -> None:
    """Drop the traced steps of a model: the next `fit` or `evaluate` traces them as things are."""
    model.train_function = None
    model.test_function = None


def before_fit(model: keras.Model, check: Callable[[keras.Model], None]) -> None:
    """Have a function called with the model whenever one of its `fit`s begins."""
    if "make_train_function" in vars(model):
        return
    make_train_function = model.make_train_function

    @functools.wraps(make_train_function)
    def checked(force=False):
        check(model)
        return make_train_function(force=force)

    object.__setattr__(model, "make_train_function", checked)


def no_longer_before_fit(model: keras.Model) -> None:
    """Undo `before_fit`."""
    vars(model).pop("make_train_function", None)


def moving_batch_norms(layer: keras.Layer) -> list[keras.layers.BatchNormalization]:
    """Return the batch normalizations inside a layer whose moving statistics training moves."""
    return [
        inside
        for inside in layer._flatten_layers()
        if isinstance(inside, keras.layers.BatchNormalization) and inside.trainable
    ]


def freeze(layers: Iterable[keras.Layer], models: Iterable[keras.Model]) -> None:
    """Freeze layers that are in compiled models, as compiling these again would."""
    for layer in layers:
        layer.trainable = False
    for model in models:
        trace_again(model)
        if hasattr(model, "_compiled_trainable_state"):
            # What Keras compares with before it asks to compile again.
            model._compiled_trainable_state = {
                inside: inside.trainable for inside in model._flatten_layers()
            }


def _nowhere():
    return None


def _outermost_graph():
    """Return the graph of the `tf.function` that is being traced, the outermost of nested ones."""
    if tf.executing_eagerly():
        return _EAGER
    graph = tf.compat.v1.get_default_graph()
    while hasattr(getattr(graph, "outer_graph", None), "outer_graph"):  # a function, or its branch
        graph = graph.outer_graph
    return graph


def _reference(graph):
    # A trace that is no longer used must not be kept alive.
    return (lambda: _EAGER) if graph is _EAGER else weakref.ref(graph)
