"""One line per task on standard error, and on a terminal a bar of the epochs under way."""

import keras
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from .console import stderr_console
from .run import Listener, TaskResult
from .tasks import Task, TaskStream


class TaskLines(Listener):
    """Print a line when a task has been learned; use it as a context manager.

    Args:
        stream: The tasks of the run.
        title: What the lines begin with: the method, usually.
        verbose: As for `model.fit`; from 1 on Keras shows its own bars, and this one is off.
    """

    def __init__(self, stream: TaskStream, title: str, verbose: int = 0, *, epochs=None):
        self.title = title
        self.total = len(stream.tasks)
        self.width = max(len(task.name) for task in stream.tasks)
        self.console = stderr_console()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("epoch {task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=bool(verbose) or not self.console.is_terminal,
        )
        self.callbacks = (_EpochBar(self.bar),)

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *exception):
        self.bar.stop()

    def task_started(self, number: int, task: Task, epochs: int) -> None:
        """Start a bar of epochs."""
        for finished in self.bar.task_ids:
            self.bar.remove_task(finished)
        self.bar.add_task(f"{self.title} task {number}/{self.total} {task.name}", total=epochs)

    def task_finished(self, result: TaskResult) -> None:
        """Print the task's accuracy, and what is left of all tasks so far."""
        so_far = result.accuracies[: result.number]
        when = f"{result.seconds:.1f} s" if result.seconds else "as saved"
        self.console.print(
            f"{self.title}  task {result.number}/{self.total}  {result.task.name:{self.width}}  "
            f"accuracy {so_far[-1]:.3f}  of all so far {sum(so_far) / len(so_far):.3f}  {when}",
            soft_wrap=True,
        )


class _EpochBar(keras.callbacks.Callback):
    def __init__(self, bar):
        super().__init__()
        self.bar = bar

    def on_epoch_end(self, epoch, logs=None):
        for task in self.bar.task_ids:
            self.bar.advance(task)
