"""SI: Ω is what a weight contributed to the fall of the loss, added up during training."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from .. import replicas
from ..model import MASModel
from ..states import WeightState
from ..weights import trainable_weights
from .quadratic import QuadraticMethod


class PathIntegral:
    """ω = −Σ g Δθ of remembered weights, over the training steps of a task.

    g is the gradient of the task's loss without the penalty, other regularizers included, and Δθ
    what the whole step, with the penalty, changed.
    """

    def __init__(self):
        self._sums: dict[WeightState, tf.Variable] = {}

    def start(self, states: Iterable[WeightState]) -> None:
        """Make a variable for those that have none, outside any trace."""
        for state in states:
            if state not in self._sums:
                self._sums[state] = tf.Variable(tf.zeros_like(state.anchor), trainable=False)

    def reset(self) -> None:
        """Begin at 0."""
        for total in self._sums.values():
            total.assign(tf.zeros_like(total))

    def add(self, state: WeightState, gradient: tf.Tensor, before: tf.Tensor) -> None:
        """Add a step: ω ← ω − g (θ − θ_before)."""
        total = self._sums[state]
        change = tf.cast(state.weight, total.dtype) - tf.cast(before, total.dtype)
        total.assign_sub(tf.cast(gradient, total.dtype) * change)

    def assign(self, state: WeightState, total: np.ndarray) -> None:
        """Have a weight, which need not have taken a step, begin at ω = `total`."""
        self.start([state])
        self._sums[state].assign(total)

    def of(self, state: WeightState) -> np.ndarray:
        """Return ω of a weight; 0 if it has taken no step."""
        total = self._sums.get(state)
        return np.zeros(state.anchor.shape, "float32") if total is None else total.numpy()


@keras.saving.register_keras_serializable("keras_mas")
class PathModel(MASModel):
    """A `MASModel` whose training steps add to a path integral.

    Args:
        inputs: As for `MASModel`.
        outputs: As for `MASModel`.
        path_integral: The `PathIntegral` that several models share; None for one of this model.
        **kwargs: As for `MASModel`.
    """

    def __init__(
        self, *args: Any, path_integral: PathIntegral | None = None, **kwargs: Any
    ):  # pragma: no mutate block
        super().__init__(*args, **kwargs)
        self.path_integral = PathIntegral() if path_integral is None else path_integral

    def make_train_function(self, force: bool = False) -> Callable:
        """Check, when a `fit` begins, that every step will have one gradient and one update."""
        function = super().make_train_function(force=force)
        self._refuse_unknown_gradients()
        self.path_integral.start(filter(None, map(self.memory.state_for, self.trainable_weights)))
        return function

    def update_weights(self, weights: list[keras.Variable], gradients: list[Any]) -> None:
        """Take the step, and add it to the path integral."""
        steps = [
            (state, self._of_task(weight, gradient), tf.identity(weight.value))
            for weight, gradient in zip(weights, gradients, strict=True)
            if gradient is not None and (state := self.memory.state_for(weight)) is not None
        ]
        super().update_weights(weights, gradients)
        for state, gradient, before in steps:
            self.path_integral.add(state, gradient, before)

    def _of_task(self, weight, gradient):
        """Return the gradient of the loss without the penalty, on the whole batch."""
        gradient = replicas.total(tf.convert_to_tensor(gradient))
        if self.penalty == "decoupled":
            return gradient
        return gradient - tf.cast(self.memory.penalty_gradient(weight), gradient.dtype)

    def _refuse_unknown_gradients(self):
        optimizer = self.optimizer
        cause = None
        if hasattr(optimizer, "inner_optimizer"):
            cause = "an optimizer that scales the loss, as with the dtype policy 'mixed_float16'"
        elif optimizer.gradient_accumulation_steps:
            cause = f"gradient_accumulation_steps={optimizer.gradient_accumulation_steps}"
        if cause is not None:
            raise ValueError(
                "Expected an optimizer that takes a step with the gradient of every batch, whose "
                f"product with the step is what SI adds up. Received: {cause}. Train without it "
                "(the dtype policy 'mixed_bfloat16' needs no scaling), or choose another method."
            )


class Method(QuadraticMethod):
    """Synaptic Intelligence: Ω ← max(0, Ω + ω / (Δ² + ξ)), with ω = −Σ g Δθ over the task's steps.

    Eq. 4 and 5 of Zenke, Poole and Ganguli, "Continual Learning Through Synaptic Intelligence",
    ICML 2017, arXiv:1703.04200. Δ = θ − θ* is how far a weight moved in the whole task. Noisy
    gradients may make ω negative; the sum is clipped at 0, as in the authors' code.

    No data are read, but the model's own `train_step` is needed: learn in `method.model(...)`.

    Attributes:
        damping: ξ, which bounds Ω where a weight hardly moved; 0.1 is the authors' for permuted
            MNIST, and for split MNIST they take 0.001. A class of your own may choose another.
    """

    damping: ClassVar[float] = 0.1
    measures_examples: ClassVar[bool] = False
    default_strength: ClassVar[float] = 100.0

    def __init__(self, strength: float | str | None = None, penalty: str = "in_loss"):
        super().__init__(strength, penalty)
        self.path_integral = PathIntegral()

    def model(self, inputs: Any, outputs: Any, name: str | None = None) -> keras.Model:
        """Return a `PathModel` around the one memory of all tasks."""
        return PathModel(
            inputs,
            outputs,
            name=name,
            memory=self.memory,
            penalty=self.penalty,
            path_integral=self.path_integral,
        )

    def restart(self, strength: float | str) -> None:
        """Forget every task, and the path so far."""
        super().restart(strength)
        self.path_integral.reset()

    def before_task(self, model: keras.Model, x: Any, y: Any = None) -> None:
        """Begin a path at the weights as they are."""
        super().before_task(model, x, y)
        if not self.memory.tasks:
            self.memory.forget()  # weights may have been loaded since `protect`
        self.path_integral.reset()

    def under_way(self, model: keras.Model) -> dict[str, np.ndarray]:
        """Return ω so far."""
        return {name: self.path_integral.of(state) for name, state in self._states(model).items()}

    def go_on(self, model: keras.Model, arrays: dict[str, np.ndarray]) -> None:
        """Take over ω."""
        for name, state in self._states(model).items():
            self.path_integral.assign(state, arrays[name])

    def importance(
        self, model: keras.Model, x: Any, y: Any = None, **options: Any
    ) -> dict[str, np.ndarray]:
        """Return ω of the task; the data are not read."""
        return self.under_way(model)

    def _states(self, model):
        """Return what is remembered of every weight that is, by its name in the model."""
        states = {
            name: self.memory.state_for(weight) for name, weight in trainable_weights(model).items()
        }
        return {name: state for name, state in states.items() if state is not None}

    def merged(
        self, importance: np.ndarray, anchor: np.ndarray, now: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return max(0, Ω + ω / (Δ² + ξ)) and θ."""
        drift = weight - anchor
        return np.maximum(importance + now / (drift**2 + self.damping), 0.0), weight

    def after_task(self, model: keras.Model, x: Any, y: Any = None, **options: Any) -> None:
        """Merge the importance of the task, and begin a new path."""
        super().after_task(model, x, y, **options)
        self.path_integral.reset()
