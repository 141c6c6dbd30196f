"""Logs in the folder of a run, written while it goes on: a CSV file, and TensorBoard's."""

import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_mas.errors import UsageError

from .following import Following, load_callback
from .listening import Evaluation, Listener, TaskResult
from .run_directory import CSV_LOG, TENSORBOARD
from .saved_tasks import saved_importance
from .settings import Settings
from .summary import known, mean_of_known
from .tasks import Task


def followers(following: Following, settings: Settings, directory: Path) -> list[Listener]:
    """Return the listeners that were asked for, for one run.

    Args:
        following: Which.
        settings: Those of the run.
        directory: Its folder.

    Raises:
        UsageError: If the function that makes callbacks returns something else.
    """
    kinds = {"csv": CsvLog, "tensorboard": TensorBoardLog}
    listeners: list[Listener] = [kinds[name](directory, settings) for name in following.logs]
    if following.callback is not None:
        made = load_callback(following.callback)(settings, directory)
        several = made if isinstance(made, list | tuple) else [made]
        listeners += [_as_listener(one, following.callback) for one in several]
    return listeners


def _as_listener(made: Any, name: str) -> Listener:
    """Return what a function of the user's made, a Keras callback as a listener that has it."""
    if isinstance(made, Listener):
        return made
    if not isinstance(made, keras.callbacks.Callback):
        raise UsageError(
            f"Expected `{name}` to return a `keras.callbacks.Callback`, a "
            "`keras_mas.training.listening.Listener`, or a list of them. Received: "
            f"{type(made).__name__}."
        )
    listener = Listener()
    listener.callbacks = (made,)
    return listener


class _EpochLog(Listener):
    """Base class of what writes down every epoch: of tasks that were read from the folder too.

    Args:
        directory: Folder of the run.
        settings: Those of the run.
    """

    def __init__(self, directory: Path, settings: Settings):
        self.directory, self.settings = directory, settings
        self.callbacks = (_Epochs(self),)
        self.task: Task | None = None
        self.number = 0

    def epoch_ended(self, number: int, task: Task, epoch: int, logs: Mapping[str, float]) -> None:
        """An epoch of task `number`, both counted from 1, has ended with these logs."""

    def task_started(self, number: int, task: Task, epochs: int) -> None:
        """Remember which task its epochs will be of."""
        self.number, self.task = number, task

    def task_resumed(
        self, history: Mapping[str, Sequence[float]], evaluations: Sequence[Evaluation]
    ) -> None:
        """Write down the epochs of the task that were learned before."""
        self._write_again(self.number, self.task, history, evaluations)

    def task_finished(self, result: TaskResult) -> None:
        """Write down the epochs of a task that was not learned now."""
        if result.number != self.number:
            self._write_again(result.number, result.task, result.history, result.evaluations)

    def _write_again(self, number, task, history, evaluations):
        for epoch, values in enumerate(zip(*history.values(), strict=True), 1):
            self.epoch_ended(number, task, epoch, dict(zip(history, values, strict=True)))
        for evaluation in evaluations:
            self.evaluated(evaluation)


class _Epochs(keras.callbacks.Callback):
    """Passes on the metrics of every epoch."""

    def __init__(self, log: _EpochLog):
        super().__init__()
        self.log = log

    def on_epoch_end(self, epoch, logs=None):
        assert self.log.task is not None
        self.log.epoch_ended(self.log.number, self.log.task, epoch + 1, logs or {})


class CsvLog(_EpochLog):
    """Writes a line per epoch: number and name of the task, epoch, and the metrics of training."""

    def __init__(self, directory: Path, settings: Settings):
        super().__init__(directory, settings)
        self.rows: list[dict[str, Any]] = []
        self.columns: list[str] = []

    def epoch_ended(self, number: int, task: Task, epoch: int, logs: Mapping[str, float]) -> None:
        """Add a line; a metric that is new becomes a column."""
        self.rows.append({"task": number, "name": task.name, "epoch": epoch, **logs})
        columns = list(dict.fromkeys([*self.columns, *self.rows[-1]]))
        has_new = columns != self.columns
        self.columns = columns
        with open(self.directory / CSV_LOG, "w" if has_new else "a", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            if has_new:
                writer.writeheader()
            writer.writerows(self.rows if has_new else self.rows[-1:])


class TensorBoardLog(_EpochLog):
    """Writes losses, accuracies, importance and settings for TensorBoard, in `tensorboard/`.

    Metrics of training are drawn against the number of epochs, accuracies against the number of
    tasks learned, and those measured while a task is learned against thousandths of tasks.
    """

    def __init__(self, directory: Path, settings: Settings):
        super().__init__(directory, settings)
        self._writer: Any = None
        self._epochs = 0

    @property
    def writer(self) -> Any:
        """The writer, made when it is first used, in place of the log of an interrupted run."""
        if self._writer is None:
            shutil.rmtree(self.directory / TENSORBOARD, ignore_errors=True)
            self._writer = tf.summary.create_file_writer(str(self.directory / TENSORBOARD))
            self._write_settings()
        return self._writer

    def epoch_ended(self, number: int, task: Task, epoch: int, logs: Mapping[str, float]) -> None:
        """Write the metrics of training."""
        self._epochs += 1
        with self.writer.as_default(self._epochs):
            for name, value in logs.items():
                tf.summary.scalar(f"training/{name}", value)
        self.writer.flush()

    def evaluated(self, evaluation: Evaluation) -> None:
        """Write the accuracies measured while a task is learned."""
        learned = evaluation.task - 1 + evaluation.step / evaluation.steps
        with self.writer.as_default(round(1000 * learned)):
            for number, accuracy in enumerate(evaluation.accuracies, 1):
                if accuracy is not None:
                    tf.summary.scalar(f"while_learning/task_{number}", accuracy)

    def task_finished(self, result: TaskResult) -> None:
        """Write the accuracies after a task, and histograms of the importance."""
        super().task_finished(result)
        so_far = result.accuracies[: result.number]
        with self.writer.as_default(result.number):
            for number, accuracy in enumerate(so_far, 1):
                if accuracy is not None:
                    tf.summary.scalar(f"accuracy/task_{number}", accuracy)
            if known(so_far):
                tf.summary.scalar("accuracy/mean_so_far", mean_of_known(so_far))
            for name, values in saved_importance(result.folder).items():
                tf.summary.histogram(f"importance/{name}", values)
        self.writer.flush()

    def _write_settings(self):
        """Write the settings where TensorBoard's HParams plugin finds them."""
        from tensorboard.plugins.hparams import api

        settings = vars(self.settings) | self.settings.of_method | vars(self.settings.recipe)
        del settings["recipe"]
        with self._writer.as_default(0):
            api.hparams({k: v for k, v in settings.items() if v is not None})
