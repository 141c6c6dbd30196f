"""The progress of a search on standard error: a line per trial and, on a terminal, live bars."""

import dataclasses
import time
from collections.abc import Sequence

from rich.progress import TaskID

from ..console import result_console
from ..listening import Listener
from ..progress import Bars, left
from .plan import Observer
from .trial import Trial, trial_line


class TrialLines(Bars, Observer):
    """Prints a line when a trial has ended, and shows live bars on a terminal.

    One bar is for all trials, with the time left at the mean speed so far; others for the trials
    that are under way. Use it as a context manager.
    """

    def __init__(self) -> None:
        super().__init__(True)
        self.all = self.bars.add_task("all trials", total=None, status="")
        self.under_way: dict[str, _Bar] = {}
        self.count, self.ended, self.tasks = 0, 0, 0
        self.at_once = 1  # how many trials are run side by side
        self.trained: list[float] = []  # seconds of each trial that was not read

    def search_started(self, trials: int, tasks: int) -> None:
        """Take note of how much is to be done."""
        self.count, self.tasks = trials, tasks

    def trial_started(self, name: str) -> Sequence[Listener]:
        """Show a trial in a bar of its own."""
        if name not in self.under_way:  # it may be begun anew by another worker
            bar = self.bars.add_task(f"  {name}", total=self.tasks, status="")
            self.under_way[name] = _Bar(bar, time.perf_counter())
        self.at_once = max(self.at_once, len(self.under_way))
        return [_TaskBar(self, self.under_way[name])]

    def task_shown(self, bar: "_Bar", number: int, name: str) -> None:
        """Show which task of a trial is being learned, counted from 1."""
        status = f"task {number}/{self.tasks} {name}"
        self.bars.update(bar.number, completed=number - 1, total=self.tasks, status=status)
        self._show_time_left()

    def trial_ended(self, trial: Trial) -> None:
        """Print what a trial found, and the time left."""
        self.ended += 1
        bar = self.under_way.pop(trial.name, None)
        if bar is not None:
            self.bars.remove_task(bar.number)
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
        now = time.perf_counter()
        elapsed = sum(min(mean, now - bar.started) for bar in self.under_way.values())
        return left((mean * to_come - elapsed) / self.at_once)

    def said(self, text: str) -> None:
        """Print what happened."""
        self.console.print(text, soft_wrap=True, markup=False)

    def _show_time_left(self):
        status = f"{self.ended}/{self.count}  {self.time_left()}".rstrip()
        self.bars.update(self.all, completed=self.ended, total=self.count, status=status)


class WorkerLines(Observer):
    """Prints a line on standard output for every trial that a worker has run."""

    def __init__(self) -> None:
        self.console = result_console()

    def trial_ended(self, trial: Trial) -> None:
        """Print what a trial found."""
        self.said(f"{trial_line(trial)}  {trial.seconds:.1f} s")

    def said(self, text: str) -> None:
        """Print what happened."""
        self.console.print(text, soft_wrap=True, markup=False)


@dataclasses.dataclass(frozen=True)
class _Bar:
    """The bar of a trial that is under way, and when it started."""

    number: TaskID
    started: float


class _TaskBar(Listener):
    """Passes on which task of a trial is under way."""

    def __init__(self, lines: TrialLines, bar: "_Bar"):
        self.lines, self.bar = lines, bar

    def task_started(self, number, task, epochs):
        self.lines.task_shown(self.bar, number, task.name)
