"""The penalty on one weight, as a Keras regularizer."""

import contextlib
import contextvars
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from .context import holding
from .penalty import drift_penalty

_IN_LOSS = contextvars.ContextVar("in_loss", default=True)


def penalty_outside_loss() -> contextlib.AbstractContextManager[None]:
    """Leave the penalties of all `MASRegularizer`s out of the loss inside the block.

    For a training step that applies them in a way of its own.
    """
    return holding(_IN_LOSS, False)


class MASRegularizer(keras.regularizers.Regularizer):
    """Pull one weight towards its anchor, as strongly as it is important: λ Σ Ω (θ − θ*)².

    `SynapticMemory.protect` sets it on every weight that it protects. It reads λ, Ω and θ* from
    variables, so that a change of any of them acts in the next step without a new trace. The arrays
    are saved by `SynapticMemory.save`, not in a config.

    Args:
        importance: Ω, variable or tensor of the weight's shape.
        anchor: θ*, of the same shape.
        strength: λ, scalar variable or tensor.
        base_regularizer: The regularizer that the weight had before, added to the penalty; or None.
        report: Called whenever the penalty is computed, with it, a scalar tensor, and whether it is
            in the loss; or None.

    Example:
        >>> regularizer = MASRegularizer(tf.constant([1.0, 0.0]), tf.zeros(2), tf.constant(0.5))
        >>> float(regularizer(tf.constant([2.0, 9.0])))  # 0.5 · (1 · 2² + 0 · 9²)
        2.0
    """

    def __init__(
        self,
        importance: Any,
        anchor: Any,
        strength: Any,
        base_regularizer: Callable | None = None,
        report: Callable | None = None,
    ):
        self.importance = importance
        self.anchor = anchor
        self.strength = strength
        self.base_regularizer = base_regularizer
        self.report = report

    def __call__(self, weight: Any) -> tf.Tensor:
        """Return the penalty on `weight`, a scalar tensor."""
        penalty = drift_penalty(weight, self.importance, self.anchor, self.strength)
        in_loss = _IN_LOSS.get()
        if self.report is not None:
            self.report(penalty, in_loss)
        if not in_loss:
            penalty = tf.zeros_like(penalty)
        if self.base_regularizer is None:
            return penalty
        return penalty + tf.cast(self.base_regularizer(weight), penalty.dtype)
