"""The penalty on one weight, as a Keras regularizer."""

import keras
import tensorflow as tf


def drift_penalty(weight, importance, anchor, strength):
    """Return λ Σ_ij Ω_ij (θ_ij − θ*_ij)², without a ½ (Eq. 3 of arXiv:1711.09601).

    Args:
        weight: θ, tensor or variable of any shape.
        importance: Ω, of the same shape.
        anchor: θ*, of the same shape.
        strength: λ, scalar.

    Returns:
        Scalar tensor of Ω's dtype, in units of the loss.
    """
    dtype = tf.as_dtype(importance.dtype)
    return _drift_penalty(
        *(tf.cast(term, dtype) for term in (weight, importance, anchor, strength))
    )


@tf.custom_gradient
def _drift_penalty(weight, importance, anchor, strength):
    """Return λ Σ Ω (θ − θ*)², and ∂/∂θ = 2 λ Ω (θ − θ*): both are made of Ω (θ − θ*), once."""
    drift = weight - anchor
    pull = importance * drift

    def gradient(upstream):
        return 2.0 * upstream * strength * pull, None, None, None

    return strength * tf.reduce_sum(pull * drift), gradient


def drawn_to_anchor(weight, importance, anchor, strength, rate):
    """Return the weight after a step of the penalty alone, θ* + (θ − θ*) / (1 + 2 η λ Ω).

    The proximal step argmin_ϑ λ Ω (ϑ − θ*)² + (ϑ − θ)² / 2η: between θ and θ* for every λ, where a
    gradient step would overshoot.

    Args:
        weight: θ; the others as in `drift_penalty`.
        importance: Ω.
        anchor: θ*.
        strength: λ.
        rate: η, the learning rate, scalar.
    """
    dtype = tf.as_dtype(importance.dtype)
    anchor, strength, rate = (tf.cast(term, dtype) for term in (anchor, strength, rate))
    drift = tf.cast(weight, dtype) - anchor
    return anchor + drift / (1.0 + 2.0 * rate * strength * importance)


class MASRegularizer(keras.regularizers.Regularizer):
    """Pull one weight towards its anchor, as strongly as it is important.

    `SynapticMemory.protect` sets it on every weight it protects. It reads λ, Ω and θ* from
    variables, so that a change of any of them acts in the next step without a new trace. The arrays
    travel in the memory's own file; a layer's config does not hold them.

    Args:
        importance: Ω, variable or tensor of the weight's shape.
        anchor: θ*, variable or tensor of the weight's shape.
        strength: λ, scalar variable or tensor.
        also: The regularizer that the weight had before, added to the penalty; or None.

    Example:
        >>> regularizer = MASRegularizer(tf.constant([1.0, 0.0]), tf.zeros(2), tf.constant(0.5))
        >>> float(regularizer(tf.constant([2.0, 9.0])))  # 0.5 · (1 · 2² + 0 · 9²)
        2.0
    """

    def __init__(self, importance, anchor, strength, also=None):
        self.importance = importance
        self.anchor = anchor
        self.strength = strength
        self.also = also

    def __call__(self, weight):
        """Return the penalty on `weight`, a scalar tensor."""
        penalty = drift_penalty(weight, self.importance, self.anchor, self.strength)
        return penalty if self.also is None else penalty + tf.cast(self.also(weight), penalty.dtype)
