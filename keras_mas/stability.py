"""How strong a penalty in the loss may be before gradient descent on it blows up."""

import warnings

import keras
import numpy as np


class UnstablePenaltyWarning(UserWarning):
    """λ is beyond what the optimizer can follow with the penalty in the loss."""


def stable_curvature(optimizer):
    """Return the largest curvature h of a quadratic ½ h θ² that an optimizer descends on.

    Gradient descent multiplies θ by 1 − ηh, which shrinks it for ηh < 2. With momentum m the limit
    is ηh < 2 (1 + m), and with Nesterov's ηh < 2 (1 + m) / (1 + 2m). Optimizers that normalize
    their steps, as Adam does, do not diverge in this way.

    Args:
        optimizer: A compiled model's `keras.optimizers.Optimizer`.

    Returns:
        h, a float; infinite for an optimizer other than SGD.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
    if not isinstance(optimizer, keras.optimizers.SGD):
        return np.inf
    momentum = optimizer.momentum
    limit = 2 * (1 + momentum)
    if optimizer.nesterov:
        limit /= 1 + 2 * momentum
    return limit / float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def warn_if_unstable(importance, strength, optimizer):
    """Warn if λ Ω (θ − θ*)², of curvature 2 λ Ω, is too steep for an optimizer.

    The task's own loss adds to the curvature, so a λ just below the limit may diverge too.

    Args:
        importance: Ω by weight path.
        strength: λ.
        optimizer: The optimizer of the next `fit`.
    """
    if not importance:
        return
    path = max(importance, key=lambda path: importance[path].max())
    steepest = float(importance[path].max())
    limit = stable_curvature(optimizer)
    if 2 * strength * steepest > limit:
        warnings.warn(
            f"Expected a strength λ below {limit / (2 * steepest):.3g}, where 2 λ max Ω reaches "
            f"{limit:.3g}, the limit of this optimizer and learning rate. Received: λ = "
            f"{strength:.3g}, with max Ω = {steepest:.3g} in '{path}': training is likely to "
            'diverge. Lower λ or the learning rate, or use a `MASModel` with penalty="decoupled".',
            UnstablePenaltyWarning,
            stacklevel=3,
        )
