"""What is seen of a training step: the penalty that it adds, and an update that leaves it out."""

import contextlib
import contextvars
import weakref
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from .context import holding

_EAGER = "eager"

# What a term of the penalty holds between an update of its weight and the next evaluation.
_NOT_EVALUATED = -1.0

_STEP_FOLLOWS = contextvars.ContextVar("step_follows", default=False)


def proximal_step_follows() -> contextlib.AbstractContextManager[None]:
    """Say that weights updated inside the block will take a proximal step of the penalty."""
    return holding(_STEP_FOLLOWS, True)


class PenaltyMetric(keras.metrics.Metric):
    """The penalty λ Σ Ω (θ − θ*)² of the last training step, over the weights of the model.

    It stands in the logs of training steps only, so that `evaluate` returns what it returned
    before.

    Args:
        on_new_trace: Called, without arguments, when a training step is being traced.

    Attributes:
        strength: Returns λ, if that is to stand beside the penalty; a step that was traced stays as
            it is. (A variable would be taken for one of the metric's own.)
    """

    def __init__(self, on_new_trace: Callable[[], None] = lambda: None):
        super().__init__(name="penalty")
        self.on_new_trace = on_new_trace
        self.strength: Callable[[], keras.Variable] | None = None
        self._updated_in: Callable = _nowhere
        self._eager_sum = 0.0

    def add_term(self) -> keras.Variable:
        """Return a new scalar variable, one of those that the metric is the sum of."""
        start = keras.initializers.Constant(_NOT_EVALUATED)
        # Replicas have the same weights, and so the same penalty.
        return self.add_variable((), start, aggregation="only_first_replica", name="term")

    def weight_updated(self, penalty: float = 0.0) -> None:
        """Be told that a training step has updated a bound weight.

        Args:
            penalty: The weight's part of the penalty, in a step that runs eagerly.
        """
        graph = _outermost_graph()
        is_new_trace = graph is not _EAGER and self._updated_in() is not graph
        self._updated_in = _reference(graph)
        self._eager_sum += penalty
        if is_new_trace:
            self.on_new_trace()

    def reset_state(self) -> None:
        """Forget the last step; called when an epoch, or an evaluation, begins."""
        self._eager_sum = 0.0
        for term in self.variables:
            term.assign(_NOT_EVALUATED)

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: each regularizer writes its own term."""

    def result(self) -> dict[str, Any]:
        """Return `{"penalty": scalar}`, and λ, within a training step, and nothing elsewhere."""
        graph = _outermost_graph()
        if self._updated_in() is not graph or not self.variables:
            return {}
        if graph is _EAGER:
            self._updated_in = _nowhere  # until the next update
            penalty, self._eager_sum = self._eager_sum, 0.0
            return {self.name: penalty, **self._strength()}
        terms = tf.stack([tf.convert_to_tensor(term) for term in self.variables])
        return {self.name: tf.reduce_sum(tf.maximum(terms, 0.0)), **self._strength()}

    def _strength(self):
        return {} if self.strength is None else {"strength": tf.convert_to_tensor(self.strength())}


class LossPartMetric(keras.metrics.Metric):
    """A part of the loss of the last training step, which a model tells it of.

    As a `PenaltyMetric`, it stands in the logs of training steps only.

    Args:
        name: Its name in the logs.
    """

    def __init__(self, name: str):
        super().__init__(name=name)
        # Each replica is told of the sum over all of them.
        self._part = self.add_variable((), "zeros", aggregation="only_first_replica", name="part")
        self._updated_in: Callable = _nowhere

    def update_state(self, part: tf.Tensor) -> None:
        """Be told of the part, a scalar, in the step that is being traced or run."""
        self._part.assign(tf.cast(part, self._part.dtype))
        self._updated_in = _reference(_outermost_graph())

    def result(self) -> dict[str, Any]:
        """Return `{name: scalar}` within a training step, and nothing elsewhere."""
        graph = _outermost_graph()
        if self._updated_in() is not graph:
            return {}
        if graph is _EAGER:
            self._updated_in = _nowhere  # until the next step
        return {self.name: tf.convert_to_tensor(self._part)}


class UpdateCheck(keras.constraints.Constraint):
    """Refuse a training step that updates a bound weight without its penalty.

    Every Keras optimizer calls the constraint of a weight when it has updated it, in whatever
    `train_step`. This one leaves the weight as it is. In a traced step the penalty has to be in the
    same trace; a step that runs eagerly may compute its gradients in a function, and is judged by
    the value that the penalty left.

    Args:
        name: Name of the weight, for the error.
        term: The weight's term of the metric.
        metric: Is told of every update.
        base_constraint: The constraint that the weight had before, applied as it was; or None.

    Attributes:
        was_evaluated: Whether the penalty has ever been evaluated.
    """

    def __init__(
        self,
        name: str,
        term: keras.Variable,
        metric: PenaltyMetric,
        base_constraint: Callable | None = None,
    ):
        self.name = name
        self.term = term
        self.metric = metric
        self.base_constraint = base_constraint
        self.was_evaluated = False
        self._evaluated_in: Callable = _nowhere
        self._in_loss = True

    def penalty_evaluated(self, penalty: tf.Tensor, in_loss: bool) -> None:
        """Be told that the penalty has been evaluated, in the step that is being traced or run."""
        self.term.assign(tf.cast(penalty, self.term.dtype))
        self._evaluated_in = _reference(_outermost_graph())
        self._in_loss = in_loss
        self.was_evaluated = True

    def __call__(self, weight: keras.Variable) -> Any:
        """Return the weight, after the constraint that it had before."""
        is_eager = _outermost_graph() is _EAGER
        if not (self._is_in_step(is_eager) and (self._in_loss or _STEP_FOLLOWS.get())):
            raise ValueError(
                f"The training step updates the protected weight '{self.name}' without its "
                "penalty: the loss leaves `model.losses` out. Take the loss from "
                "`self.compute_loss(...)`, or add `sum(self.losses)` to it, in the same "
                "`tf.function` as the update. A decoupled penalty needs `MASModel.train_step`."
            )
        if is_eager:
            self.metric.weight_updated(float(self.term.numpy()))
            self.term.assign(_NOT_EVALUATED)
        else:
            self.metric.weight_updated()
        return weight if self.base_constraint is None else self.base_constraint(weight)

    def _is_in_step(self, is_eager):
        if is_eager:
            return float(self.term.numpy()) != _NOT_EVALUATED
        return self._evaluated_in() is _outermost_graph()


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
