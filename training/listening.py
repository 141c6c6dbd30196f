"""What follows the progress of a run, and what it is told."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras

from .tasks import Task


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What is known when a task has been learned.

    Attributes:
        number: How many tasks have been learned, this one included.
        task: The task.
        accuracies: Row of the accuracy matrix `[T]`; None for a task without examples, here and
            in `Evaluation`.
        models: The model of every task learned so far, by the name of its head.
        classes: The class names of every such model.
        seconds: Time the task took; 0 if it was read from the run's folder.
        folder: Folder of what was saved after the task.
        history: The metrics of each epoch, by name.
        evaluations: What was measured while the task was being learned.
        strength: λ that was found for the task; None if it was given.
        free: Share of the weights that are free to learn the next task, with strength "auto".
    """

    number: int
    task: Task
    accuracies: list[float | None]
    models: dict[str, keras.Model]
    classes: dict[str, tuple[str, ...]]
    seconds: float
    folder: Path = Path()
    history: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    evaluations: Sequence["Evaluation"] = ()
    strength: float | None = None
    free: float | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured while a task was being learned.

    Attributes:
        task: Number of the task under way, from 1.
        step: How many training steps of it had been taken.
        steps: Of how many.
        accuracies: Accuracy on the tasks up to it, its own the last `[task]`.
    """

    task: int
    step: int
    steps: int
    accuracies: list[float | None]


class Listener:
    """Base class of what follows the progress of a run; this one ignores it.

    Attributes:
        callbacks: Keras callbacks that follow the training of every task as they follow `fit`, such
            as those of Weights & Biases or MLflow.
    """

    callbacks: tuple[keras.callbacks.Callback, ...] = ()

    def task_started(self, number: int, task: Task, epochs: int) -> None:
        """Task `number`, counted from 1, is about to be learned in so many epochs."""

    def task_resumed(
        self, history: Mapping[str, Sequence[float]], evaluations: Sequence["Evaluation"]
    ) -> None:
        """The task that has just started goes on after epochs that another process learned.

        Args:
            history: The metrics of each of these epochs, by name.
            evaluations: What was measured in them.
        """

    def strength_tried(self, strength: float, accuracy: float) -> None:
        """The task has been learned with a λ, as a try.

        Args:
            strength: λ.
            accuracy: On the validation data of the task.
        """

    def evaluated(self, evaluation: Evaluation) -> None:
        """The tasks so far have been measured while another one is being learned."""

    def importance_measured(self, examples: int, total: int | None) -> None:
        """So many examples of the task have been measured; of how many, if that is known."""

    def task_finished(self, result: TaskResult) -> None:
        """A task has been learned, or has been read from the run's folder."""
