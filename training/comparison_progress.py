"""The progress of a comparison on standard error: a line per run and, on a terminal, live bars."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .compare import Entry, Observer, name_of
from .listening import Listener
from .progress import Bars, left
from .search.recommend import Recommendation
from .search.search import Found
from .search.trial import Trial, trial_line
from .settings import Settings


class ComparisonLines(Bars, Observer):
    """Prints a line when a run of a comparison has ended, and shows live bars on a terminal.

    One bar is for all runs, with the time left; another for the run that is under way. Use it as a
    context manager.

    Args:
        contestants: The settings of each method.
        seeds: The seeds of each.
        tasks: How many tasks a run has.
        follow: Returns what else follows a run, of its settings and its folder.
        searches: Whether λ of each method that has one is searched for first.

    Attributes:
        found: What the search for each method found, and what is recommended of it.
    """

    def __init__(
        self,
        contestants: Sequence[Settings],
        seeds: Sequence[int],
        tasks: int,
        follow: Callable[[Settings, Path], Sequence[Listener]] = lambda *_: (),
        searches: bool = False,
    ):
        super().__init__(True)
        self.follow = follow
        self.tasks = tasks
        self.left = [settings.method for settings in contestants for _ in seeds]
        self.to_search = {c.method for c in contestants if searches and c.has_strength}
        self.found: dict[str, tuple[Found, Recommendation]] = {}
        self.count = len(self.left)
        self.seconds: dict[str, list[float]] = {}
        self.started: float | None = None
        self.all = self.bars.add_task("all runs", total=self.count, status="")
        self.now = self.bars.add_task("", visible=False, status="")

    def run_started(self, settings: Settings, directory: Path) -> Sequence[Listener]:
        """Show a run in the bar for the one that is under way."""
        self.started = time.perf_counter()
        self.bars.update(
            self.now, description=f"  {name_of(settings)}", completed=0, status="", visible=True
        )
        self._show_time_left()
        return [_TaskBar(self), *self.follow(settings, directory)]

    def task_shown(self, number: int, name: str) -> None:
        """Show which task of the run under way is being learned, counted from 1."""
        status = f"task {number}/{self.tasks} {name}"
        self.bars.update(self.now, completed=number - 1, total=self.tasks, status=status)
        self._show_time_left()

    def run_ended(self, entry: Entry) -> None:
        """Print what a run found, or why it failed, and the time left."""
        self.left.remove(entry.settings.method)
        self.to_search.discard(entry.settings.method)
        self.started = None
        self.bars.update(self.now, visible=False)
        outcome = entry.error
        if entry.result:
            outcome = f"average accuracy {entry.result['average_accuracy']:.4f}"
            took = sum(entry.result["seconds"].values())
            self.seconds.setdefault(entry.settings.method, []).append(took)
            outcome += f"  {took:.1f} s" if entry.is_new else "  as saved"
        left = self.time_left()
        self.console.print(
            f"{self.count - len(self.left)}/{self.count}  {entry.name}  {outcome}"
            + (f"  ({left})" if left and self.left else ""),
            soft_wrap=True,
        )
        self._show_time_left()

    def trial_ended(self, settings: Settings, trial: Trial) -> None:
        """Print what a λ of a search found."""
        self.console.print(f"search {settings.method}  {trial_line(trial)}", soft_wrap=True)

    def search_ended(
        self, settings: Settings, found: Found, recommendation: Recommendation
    ) -> None:
        """Keep what a search found, of which more is said in the end."""
        self.found[settings.method] = found, recommendation

    def time_left(self) -> str:
        """Return the time left as text; empty until a run is finished and every search is over.

        A run takes the mean of the finished ones of its method; those of a method without any take
        the mean over the methods.
        """
        if not self.seconds or self.to_search:
            return ""
        means = {method: statistics.mean(seconds) for method, seconds in self.seconds.items()}
        other = statistics.mean(means.values())
        elapsed = 0.0 if self.started is None else time.perf_counter() - self.started
        under_way = means.get(self.left[0], other) if self.left and elapsed else 0.0
        expected = sum(means.get(method, other) for method in self.left)
        return left(expected - min(elapsed, under_way))

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Take the bars away while the block shows others."""
        self.bars.stop()
        yield
        self.bars.start()

    def _show_time_left(self):
        done = self.count - len(self.left)
        status = f"{done}/{self.count}  {self.time_left()}".rstrip()
        self.bars.update(self.all, completed=done, status=status)


class _TaskBar(Listener):
    """Passes on which task of a run is under way."""

    def __init__(self, lines: ComparisonLines):
        self.lines = lines

    def task_started(self, number, task, epochs):
        self.lines.task_shown(number, task.name)
