"""The progress of decoding and of a run on standard error: lines and, on a terminal, live bars."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Self

import keras
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
from rich.progress import Task as Bar
from rich.text import Text

from .console import stderr_console
from .listening import Evaluation, Listener, TaskResult
from .summary import mean_of_known, measure_text
from .tasks import Task, TaskStream

# Fewer inputs than this are decoded in a moment.
_MANY = 1000


class Bars:
    """Live bars on a terminal, with a status beside each; a context manager that removes them.

    Args:
        is_live: Whether there are bars, on a terminal.
        *columns: What stands beside the status of a bar.
    """

    def __init__(self, is_live: bool, *columns: ProgressColumn):
        self.console = stderr_console()
        self.live = self.console.is_terminal and is_live
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[status]}"),
            *columns,
            console=self.console,
            transient=True,
            redirect_stdout=False,
            disable=not self.live,
        )

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()


class TaskLines(Bars, Listener):
    """Prints a line when a task has been learned, and shows live bars on a terminal.

    One bar is for the whole run, with the time left; another for what is under way: the epochs of
    a task, then the measurement of its importance. Use it as a context manager, so that the bars
    are removed however the run ends.

    Args:
        stream: The tasks of the run.
        title: Name of the run at the beginning of each line, such as its method.
        verbose: As for `train`. From 1 on Keras shows bars of its own, and there are no live bars.
        epochs: Epochs of each task, for an even progress of the whole run; None if every task has
            as many as the one under way.
    """

    def __init__(
        self,
        stream: TaskStream,
        title: str,
        verbose: int = 0,
        *,
        epochs: Sequence[int] | None = None,
    ):
        super().__init__(not verbose, _TimeLeft())
        self.stream = stream
        self.title = title
        self.epochs = epochs
        self.width = max(len(task.name) for task in stream.tasks)
        self.run = self.bars.add_task(
            title, start=False, total=self._work(len(stream.tasks)), status="", skipped=0.0
        )
        self.now = self.bars.add_task("", visible=False, status="")
        self.callbacks = (_Epochs(self),) if self.live else ()
        self.number = 0

    def task_started(self, number: int, task: Task, epochs: int) -> None:
        """Show the epochs of a task."""
        self.number = number
        if self.epochs is None:
            self.epochs = [epochs] * len(self.stream.tasks)
            self.bars.update(self.run, total=self._work(len(self.stream.tasks)))
        self.bars.start_task(self.run)  # the clock; once started, it goes on
        self.bars.update(self.run, status=f"task {number}/{len(self.stream.tasks)}")
        self.epochs_done(0.0)

    def task_resumed(
        self, history: Mapping[str, Sequence[float]], evaluations: Sequence[Evaluation]
    ) -> None:
        """Say after which epoch the task goes on."""
        done, name = len(history["loss"]), self.stream.tasks[self.number - 1].name
        self.console.print(
            f"{self.title}  task {self.number}/{len(self.stream.tasks)}  {name:{self.width}}  "
            f"goes on after epoch {done} of {self._epochs(self.number)}",
            soft_wrap=True,
        )
        self.epochs_done(float(done))

    def epochs_done(self, epochs: float) -> None:
        """Show that so many epochs of the task under way, in fractions, have been done."""
        total = self._epochs(self.number)
        task = self.stream.tasks[self.number - 1]
        status = f"epoch {min(int(epochs) + 1, total)}/{total}"
        self._show(task.name, status, epochs, total, done=epochs * _examples(task))

    def strength_tried(self, strength: float, accuracy: float) -> None:
        """Print what the task under way is learned to with a λ."""
        task = self.stream.tasks[self.number - 1]
        self.console.print(
            f"{self.title}  task {self.number}/{len(self.stream.tasks)}  {task.name:{self.width}}  "
            f"tried λ {strength:.3g}  accuracy {accuracy:.3f} on its validation data",
            soft_wrap=True,
        )

    def importance_measured(self, examples: int, total: int | None) -> None:
        """Show how many examples of the task's importance have been measured."""
        task = self.stream.tasks[self.number - 1]
        known = total or _examples(task)
        part = min(1.0, examples / known)  # of the task's examples if there is no total
        status = f"importance {examples}/{total}" if total else f"importance {examples}"
        done = (self._epochs(self.number) + part) * _examples(task)
        self._show(task.name, status, part, 1, done=done)

    def task_finished(self, result: TaskResult) -> None:
        """Print the accuracy on a task and the mean accuracy on all tasks so far."""
        done = self._work(result.number)
        if not result.seconds:  # read from disk: no measure of how fast the run is
            self.bars.update(self.run, skipped=done)
        self.bars.update(self.run, completed=done)
        self.bars.update(self.now, visible=False)
        so_far = result.accuracies[: result.number]
        when = f"{result.seconds:.1f} s" if result.seconds else "as saved"
        if result.free is not None:
            when = f"{result.free:.0%} free  {when}"
        if result.strength is not None:
            when = f"λ {result.strength:.3g}  {when}"
        self.console.print(
            f"{self.title}  task {result.number}/{len(self.stream.tasks)}  "
            f"{result.task.name:{self.width}}  accuracy {measure_text(so_far[-1], '.3f')}  "
            f"mean so far {measure_text(mean_of_known(so_far), '.3f')}  {when}",
            soft_wrap=True,
        )

    def _show(self, name: str, status: str, completed: float, total: float, *, done: float) -> None:
        """Show the state of the task under way, and `done` of its work in the run's bar."""
        self.bars.update(self.run, completed=self._work(self.number - 1) + done)
        self.bars.update(
            self.now,
            description=f"  {name}",
            status=status,
            completed=completed,
            total=total,
            visible=True,
        )

    def _work(self, tasks: int) -> float:
        """Return the work of the first so many tasks, in passes of one example.

        Measuring importance is counted as one epoch.
        """
        return float(
            sum(
                _examples(task) * (self._epochs(number) + 1)
                for number, task in enumerate(self.stream.tasks[:tasks], 1)
            )
        )

    def _epochs(self, number: int) -> int:
        return self.epochs[number - 1] if self.epochs else 1


class DecodingLines(Bars):
    """Says what is being decoded, where that takes a while, with a live bar on a terminal."""

    def __init__(self) -> None:
        super().__init__(True)
        self.bar = self.bars.add_task("decoding", visible=False, status="")
        self.where = ""

    def decoded(self, where: str, folder: Path | None, done: int, count: int) -> None:
        """Show that so many inputs have been decoded; arguments as `load_tasks` passes them."""
        if count < _MANY:
            return
        if where != self.where:
            self.where = where
            kept = f"to '{folder}'" if folder else "into memory"
            self.console.print(f"decoding {count:,} inputs of {where} {kept}", soft_wrap=True)
        status = f"{done:,}/{count:,}"
        self.bars.update(self.bar, completed=done, total=count, status=status, visible=done < count)


class _Epochs(keras.callbacks.Callback):
    """Passes on how far `fit` is, after every batch."""

    def __init__(self, lines: TaskLines):
        super().__init__()
        self.lines = lines
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        steps = self.params.get("steps")
        if steps:
            self.lines.epochs_done(self.epoch + (batch + 1) / steps)

    def on_epoch_end(self, epoch, logs=None):
        self.lines.epochs_done(epoch + 1.0)


class _TimeLeft(ProgressColumn):
    """The time left at the mean speed since the first task was started, for the run's bar only."""

    def render(self, task: Bar) -> Text:
        """Return the text of one bar."""
        if "skipped" not in task.fields:
            return Text()
        return Text(time_left(task.elapsed, task.completed, task.total, task.fields["skipped"]))


def time_left(
    elapsed: float | None, completed: float, total: float | None, skipped: float = 0.0
) -> str:
    """Return the time left as text, at the mean speed so far; empty if it is not known yet.

    Args:
        elapsed: Seconds since work started.
        completed: Work done.
        total: All work.
        skipped: Part of `completed` that took no time, since it was read from disk.

    Example:
        >>> time_left(elapsed=10.0, completed=30.0, total=90.0, skipped=20.0)
        '0:01:00 left'
    """
    worked = completed - skipped
    if not elapsed or not total or worked <= 0:
        return ""
    return left(elapsed * (total - completed) / worked)


def left(seconds: float) -> str:
    """Return a time left as text."""
    return f"{timedelta(seconds=round(seconds))} left"


def _examples(task: Task) -> int:
    return len(task.train) + len(task.validation)
