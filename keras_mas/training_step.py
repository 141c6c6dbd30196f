"""What is seen of a training step: the penalty that it adds, and an update that leaves it out."""

import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

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

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: each regularizer writes its own term."""

    def result(self) -> dict[str, tf.Tensor]:
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

    def __call__(self, weight: keras.Variable) -> Any:
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
