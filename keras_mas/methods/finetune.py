"""Fine-tuning: learn the next task and protect nothing. The lower bound of every comparison."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras


class Method:
    """What every method does around the training of a task; here: nothing.

    Args:
        strength: λ ≥ 0, unused here.
        penalty: Name out of `keras_mas.choices.PENALTIES`, unused here.
    """

    def __init__(self, strength: float, penalty: str):
        self.strength = strength
        self.penalty = penalty

    def model(self, inputs: Any, outputs: Any, name: str) -> keras.Model:
        """Return the `keras.Model` in which a task is learned; arguments as for `keras.Model`."""
        return keras.Model(inputs, outputs, name=name)

    def protect(self, model: keras.Model) -> None:
        """Be told, before the first task, what all tasks share: a trunk or a whole model."""

    def restart(self, strength: float) -> None:
        """Forget every task and take another λ: a run begins, with the weights as they are."""
        self.strength = strength

    def after_task(
        self,
        model: keras.Model,
        inputs: Any,
        *,
        max_examples: int | None = None,
        on_progress: Callable | None = None,
    ) -> None:
        """Take note of what was learned.

        Args:
            model: Model of the task, trunk and head, just fitted.
            inputs: The task's training inputs, without labels, in random order.
            max_examples: How many of them importance is measured on; None for all.
            on_progress: As for `measure_sums`.
        """

    def save(self, path: Path) -> None:
        """Write what the method remembers to a `.npz` file, if it remembers anything."""

    def load(self, path: Path, tasks: int) -> None:
        """Take over what `save` wrote.

        Args:
            path: The file.
            tasks: How many tasks had been learned then.

        Raises:
            ValueError: If the file is of another number of tasks or another method.
        """
