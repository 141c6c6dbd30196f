"""What all methods with a quadratic penalty λ Σ Ω (θ − θ*)² share; they differ in Ω and θ*."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np

from ..memory import SynapticMemory
from ..model import MASModel
from . import base
from .base import counted


class QuadraticMethod(base.RememberingMethod):
    """A method that holds what tasks share by λ Σ Ω (θ − θ*)², in the loss or decoupled from it.

    A method of this kind says what Ω of one task is (`importance`), and where it is not plainly
    added to that of earlier tasks, how both become one (`merged`). Arguments as for `base.Method`.

    Attributes:
        memory: The `SynapticMemory` of all tasks.
    """

    has_strength: ClassVar[bool] = True
    takes_auto: ClassVar[bool] = True
    has_penalty: ClassVar[bool] = True
    needs_one_device: ClassVar[str | None] = None
    first_task_depends_on_strength: ClassVar[bool] = False  # Ω = 0 in it
    answers_depend_on_after_task: ClassVar[bool] = False  # Ω and θ* are for the next task

    def __init__(self, strength: float | str | None = None, penalty: str = "in_loss"):
        self.memory = SynapticMemory()
        super().__init__(strength, penalty)

    @property
    def strength(self) -> float | str:
        """λ of the memory as it was asked for; see `SynapticMemory.strength`."""
        return self.memory.asked_strength

    @strength.setter
    def strength(self, value: float | str) -> None:
        self.memory.strength = value

    @property
    def free_share(self) -> float | None:
        """The share of weights that are free to learn the next task, if λ is "auto"."""
        return self.memory.free_share()

    @abc.abstractmethod
    def importance(
        self,
        model: keras.Model,
        x: Any,
        y: Any = None,
        *,
        max_examples: int | None = None,
        on_progress: Callable | None = None,
    ) -> dict[str, np.ndarray]:
        """Return Ω of the task that was just learned, by the names of the model's weights.

        Args:
            model: The model.
            x: As for `after_task`.
            y: As for `after_task`.
            max_examples: As for `compute_importance`.
            on_progress: As for `compute_importance`.
        """

    def merged(
        self, importance: np.ndarray, anchor: np.ndarray, now: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return Ω and θ* of one weight after a task; here, Ω + Ω_now and θ.

        Args:
            importance: Ω before the task.
            anchor: θ* before the task, of Ω's shape as all of these.
            now: Ω_now, of this task alone; 0 for a weight that is frozen now.
            weight: θ, the weight as it is now.
        """
        return importance + now, weight

    def model(self, inputs: Any, outputs: Any, name: str | None = None) -> keras.Model:
        """Return a `MASModel` around the one memory of all tasks."""
        return MASModel(inputs, outputs, name=name, memory=self.memory, penalty=self.penalty)

    def protect(self, shared: keras.Model, *, batch_norm: str | None = None) -> None:
        """Protect the trainable weights of a model from now on."""
        self.memory.protect(shared, batch_norm=batch_norm)

    def restart(self, strength: float | str) -> None:
        """Forget every task: Ω = 0, and θ* are the weights as they are.

        Statistics of batch normalization that were frozen stay frozen, as after `memory.forget`.
        """
        super().restart(strength)
        self.memory.forget()

    def before_task(self, model: keras.Model, x: Any, y: Any = None) -> None:
        """Refuse a model in which the penalty would act in another way than was asked for."""
        self._check_penalty_of(model)

    def under_way(self, model: keras.Model) -> dict[str, np.ndarray]:
        """Return nothing: Ω, θ* and λ stay as they are during a task."""
        return {}

    def after_task(
        self,
        model: keras.Model,
        x: Any,
        y: Any = None,
        *,
        max_examples: int | None = None,
        on_progress: Callable | None = None,
    ) -> None:
        """Merge the importance of the held weights for this task with that of earlier ones."""
        self._check_penalty_of(model)
        self.memory.check(model)  # before measuring takes its time
        now = self.importance(model, x, y, max_examples=max_examples, on_progress=on_progress)
        self.memory.remember(model, now, self.merged)

    def hold(self, model: keras.Model, x: Any, **options: Any) -> None:
        """Merge the importance of weights for what they have learned elsewhere; it is no task.

        Args:
            model: A model of weights that are protected.
            x: As for `after_task`.
            **options: As for `importance`.
        """
        self.memory.check(model)
        self.memory.remember(
            model, self.importance(model, x, **options), self.merged, new_task=False
        )

    def _check_penalty_of(self, model):
        if self.penalty == "decoupled" and getattr(model, "penalty", None) != "decoupled":
            raise ValueError(
                'Expected a model of `method.model(inputs, outputs)` for penalty="decoupled", '
                f"whose own training step pulls weights back. Received: '{model.name}', a "
                f"{type(model).__name__}, in which the penalty would be in the loss."
            )

    def state(self) -> dict[str, np.ndarray]:
        """Return Ω, θ* and λ."""
        return self.memory.state()

    def restore(self, arrays: dict[str, np.ndarray], tasks: int) -> None:
        """Take over Ω and θ*, and keep λ; ValueError if they are of other tasks."""
        saved = SynapticMemory()
        saved.restore(arrays)
        if saved.tasks != tasks:
            raise ValueError(f"it is a memory of {counted(saved.tasks, 'task')}, not of {tasks}")
        asked = self.strength
        self.memory.restore(arrays)
        if self.strength != asked:
            self.strength = asked
