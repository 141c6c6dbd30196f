"""λ without a search: what `strength="auto"` stands for.

A training step pulls a weight back by the share 2 η λ Ω of its drift, which so decays with a time
constant of 1/(2 η λ Ω) steps. λ is chosen such that over the S steps of a task the pulls on the
mean weight add up to κ for each of the t tasks that are remembered:

    2 η S λ · mean Ω = κ t

A weight whose own pulls add up to less than 1, because its Ω is small, has a time constant longer
than the task, and is free to learn it.
"""

import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from . import backend  # noqa: F401
from .choices import AUTO
from .penalty import stable_curvature

# Of the largest λ that an optimizer can follow, since the task's own loss adds to the curvature.
_SAFETY = 0.5

# How far what a task has had may be from what λ was found for, as a factor.
_TOLERANCE = 2.0

# A schedule is looked at so many times over a task, at even distances.
_LOOKS = 200

# Divide a gradient by the root of the mean of its squares, and by nothing else.
_ADAPTIVE = (keras.optimizers.Adam, keras.optimizers.Nadam, keras.optimizers.RMSprop)


def auto_strength(kappa: float, tasks: int, mean: float, rate: float, steps: int) -> float:
    """Return λ = κ t / (2 η S mean Ω).

    Args:
        kappa: κ, how strongly each task is held.
        tasks: t, how many tasks are remembered.
        mean: Mean of Ω over all protected weights, > 0.
        rate: η, mean share of 2 λ Ω by which a step pulls a weight back, as `pull_rate` returns it.
        steps: S, steps of the coming task.

    Example:
        >>> auto_strength(kappa=30.0, tasks=2, mean=0.5, rate=0.001, steps=300)
        200.0
    """
    return kappa * tasks / (2.0 * rate * steps * mean)


def largest_strength(optimizer: keras.optimizers.Optimizer, largest: float) -> float:
    """Return the largest λ to take for a penalty in the loss: half of what the optimizer follows.

    Args:
        optimizer: The optimizer.
        largest: Largest Ω of a protected weight, > 0.
    """
    return _SAFETY * stable_curvature(optimizer) / (2.0 * largest)


def share_free(importance: Sequence[np.ndarray], pulls: float) -> float:
    """Return the share of weights with a time constant longer than a task.

    Args:
        importance: Ω of every protected weight.
        pulls: What the pulls on the mean weight add up to, κ t; all are free if no Ω is above 0.
    """
    mean = mean_of(importance)
    count = sum(omega.size for omega in importance)
    free = sum(np.count_nonzero(pulls * omega < mean) for omega in importance) if mean else count
    return free / count


def mean_of(importance: Iterable[np.ndarray]) -> float:
    """Return the mean of Ω over all values of all weights."""
    sums = [(omega.sum(dtype="float64"), omega.size) for omega in importance]
    total, count = map(sum, zip(*sums, strict=True))
    return float(total / count)


def pull_rate(
    optimizer: keras.optimizers.Optimizer, steps: int, in_loss: bool, gradient_rms: float
) -> float:
    """Return η such that 2 η λ Ω is the share of its drift by which a step pulls a weight back.

    Decoupled, that is the learning rate. In the loss, SGD with momentum m adds a gradient to
    1/(1 − m) steps, and optimizers of Adam's kind divide it by the root mean square of gradients.

    Args:
        optimizer: The optimizer; of a learning rate schedule the mean over the steps is taken.
        steps: Steps of the coming task.
        in_loss: Whether the penalty is in the loss.
        gradient_rms: As `gradient_rms` returned it when the first task ended, without a penalty.

    Raises:
        ValueError: If the learning rate is 0 over the steps, or the momentum 1; if the penalty is
            in the loss of another kind of optimizer, or of one of Adam's kind that has seen no
            gradient.
    """
    optimizer = _inner(optimizer)
    rate = _mean_rate(optimizer, steps)
    if not rate > 0:
        raise ValueError(
            f"Expected a learning rate above 0 for strength='{AUTO}'. Received: {rate:g} over the "
            f"coming {steps} steps. If its schedule has ended with an earlier task, compile the "
            "model with a new optimizer for this one."
        )
    if not in_loss:
        return rate
    if isinstance(optimizer, keras.optimizers.SGD):
        if not optimizer.momentum < 1:
            raise ValueError(
                f"Expected a momentum below 1 for strength='{AUTO}' with the penalty in the loss. "
                f"Received: {optimizer.momentum:g}."
            )
        return rate / (1.0 - optimizer.momentum)
    name = type(optimizer).__name__
    instead = 'Use a `MASModel` with penalty="decoupled", or give a number as strength.'
    if not isinstance(optimizer, _ADAPTIVE):
        kinds = ", ".join(["SGD", *(kind.__name__ for kind in _ADAPTIVE)])
        raise ValueError(
            f"Expected an optimizer out of {kinds} for strength='{AUTO}' with the penalty in the "
            f"loss. Received: {name}, of which it is not known how strongly it follows the "
            f"penalty. {instead}"
        )
    if not gradient_rms > 0:
        raise ValueError(
            "Expected an optimizer that had taken steps before the first task was consolidated, "
            f"for strength='{AUTO}' with the penalty in the loss. Received: {name}, which divides "
            f"the penalty by the size of gradients, and had seen none. {instead}"
        )
    return rate / gradient_rms


def gradient_rms(
    optimizer: keras.optimizers.Optimizer | None, weights: Iterable[keras.Variable]
) -> float:
    """Return the root mean square of the gradients of weights, as an optimizer has averaged it.

    Args:
        optimizer: The optimizer; None for none.
        weights: The weights.

    Returns:
        The root; NaN of an optimizer that keeps no mean of squares, or has taken no step.
    """
    optimizer = _inner(optimizer)
    steps = int(optimizer.iterations.numpy()) if isinstance(optimizer, _ADAPTIVE) else 0
    if not steps:
        return np.nan
    known = {id(weight): k for k, weight in enumerate(optimizer._trainable_variables)}
    moments = [optimizer._velocities[known[id(w)]].numpy() for w in weights if id(w) in known]
    decay = optimizer.rho if hasattr(optimizer, "rho") else optimizer.beta_2
    # The mean began at 0, which Adam corrects for, too.
    return float(np.sqrt(mean_of(moments) / (1.0 - decay**steps))) if moments else np.nan


def steps_of_fit(model: keras.Model) -> tuple[Any, int | None]:
    """Return what tells one `fit` from another, and how many steps the last one that began has.

    `fit` makes its callbacks, of which `model.history` is one, before it asks for its steps.

    Returns:
        An object that every `fit` has its own of, None if there was none; and the number of
        batches in all its epochs, None if that is not known.
    """
    params = getattr(getattr(model, "history", None), "params", None)
    if not params:
        return None, None
    batches = params.get("steps")
    return params, None if batches is None else batches * params["epochs"]


def optimizer_steps(optimizer: keras.optimizers.Optimizer, batches: int) -> int:
    """Return how often an optimizer moves the weights for so many batches, at least once."""
    accumulated = _inner(optimizer).gradient_accumulation_steps or 1
    return max(1, batches // accumulated)


class Pace:
    """Whether a task goes as λ was found for it: over so many steps, at such a learning rate."""

    def __init__(self) -> None:
        self._optimizer: Any = None  # a weak reference to that of the last `fit`
        self._share = 0.0  # of the steps of a `fit` that were made, added up over earlier ones

    def begin(self, optimizer: keras.optimizers.Optimizer, steps: int) -> None:
        """Note what λ is found for: the next steps of an optimizer."""
        self._share += self._share_made()
        self._optimizer, self._planned = weakref.ref(optimizer), steps
        self._first, self._rate = _steps_made(optimizer), _constant_rate(optimizer)

    def otherwise(self) -> str | None:
        """Return in what the task that ends now went otherwise; None if in nothing of weight.

        It is not known for an optimizer that is gone.
        """
        share = self._share + self._share_made()
        optimizer = self._optimizer and self._optimizer()
        now, before = (_constant_rate(optimizer), self._rate) if optimizer else (None, None)
        if share and not 1 / _TOLERANCE <= share <= _TOLERANCE:
            return (
                f"it has had {share:.3g} times the steps that λ was found for. Each `fit` is "
                "taken for a task that is learned in all of its epochs"
            )
        if now and before and not 1 / _TOLERANCE <= now / before <= _TOLERANCE:
            return (
                f"its learning rate went from {before:.3g} to {now:.3g}. Only a "
                "`LearningRateSchedule` is known when a `fit` begins, not what a callback does"
            )
        return None

    def _share_made(self):
        optimizer = self._optimizer and self._optimizer()
        return (_steps_made(optimizer) - self._first) / self._planned if optimizer else 0.0


def _steps_made(optimizer):
    return int(keras.ops.convert_to_numpy(_inner(optimizer).iterations))


def _constant_rate(optimizer):
    """Return the learning rate; None if it is a schedule."""
    optimizer = _inner(optimizer)
    has_schedule = isinstance(
        optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule
    )
    return None if has_schedule else float(keras.ops.convert_to_numpy(optimizer.learning_rate))


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer


def _mean_rate(optimizer, steps):
    constant = _constant_rate(optimizer)
    if constant is not None:
        return constant
    schedule = optimizer._learning_rate
    now = int(keras.ops.convert_to_numpy(optimizer._iterations))
    looks = min(steps, _LOOKS)
    ahead = ((2 * look + 1) * steps // (2 * looks) for look in range(looks))
    return float(np.mean([keras.ops.convert_to_numpy(schedule(now + step)) for step in ahead]))
