"""The progress of a search on standard error: a line per trial and, on a terminal, live bars."""

import time
from collections.abc import Sequence

from ..progress import Bars, left
from ..run import Listener
from .search import Observer
from .trial import Trial, trial_line


class TrialLines(Bars, Observer):
    """Prints a line when a trial has ended, and shows live bars on a terminal.

    One bar is for all trials, with the time left at the mean speed so far; another for the trial
    that is under way. Use it as a context manager.
    """

    def __init__(self) -> None:
        super().__init__(True)
        self.all = self.bars.add_task("all trials", total=None, status="")
        self.now = self.bars.add_task("", visible=False, status="")
        self.count, self.ended, self.tasks = 0, 0, 0
        self.trained: list[float] = []  # seconds of each trial that was not read
        self.started: float | None = None

    def search_started(self, trials: int, tasks: int) -> None:
        """Take note of how much is to be done."""
        self.count, self.tasks = trials, tasks

    def trial_started(self, name: str) -> Sequence[Listener]:
        """Show a trial in the bar for the one that is under way."""
        self.started = time.perf_counter()
        self.bars.update(self.now, description=f"  {name}", completed=0, status="", visible=True)
        return [_TaskBar(self)]

    def task_shown(self, number: int, name: str) -> None:
        """Show which task of the trial under way is being learned, counted from 1."""
        status = f"task {number}/{self.tasks} {name}"
        self.bars.update(self.now, completed=number - 1, total=self.tasks, status=status)
        self._show_time_left()

    def trial_ended(self, trial: Trial) -> None:
        """Print what a trial found, and the time left."""
        self.ended += 1
        self.started = None
        self.bars.update(self.now, visible=False)
        took = "as saved"
        if trial.is_new:
            self.trained.append(trial.seconds)
            took = f"{trial.seconds:.1f} s"
        remaining = self.time_left()
        self.console.print(
            f"{self.ended:>{len(str(self.count))}}/{self.count}  {trial_line(trial)}  {took}"
            + (f"  ({remaining})" if remaining else ""),
            soft_wrap=True,
        )
        self._show_time_left()

    def time_left(self) -> str:
        """Return the time left as text; empty until a trial has been trained, and in the end."""
        to_come = self.count - self.ended
        if not self.trained or not to_come:
            return ""
        mean = sum(self.trained) / len(self.trained)
        elapsed = 0.0 if self.started is None else time.perf_counter() - self.started
        return left(mean * to_come - min(mean, elapsed))

    def _show_time_left(self):
        status = f"{self.ended}/{self.count}  {self.time_left()}".rstrip()
        self.bars.update(self.all, completed=self.ended, total=self.count, status=status)


class _TaskBar(Listener):
    """Passes on which task of a trial is under way."""

    def __init__(self, lines: TrialLines):
        self.lines = lines

    def task_started(self, number, task, epochs):
        self.lines.task_shown(number, task.name)
