"""Which trial is run next, by whom, and what became of those that have ended."""

import dataclasses
import itertools
import threading
from collections.abc import Sequence
from typing import Any

from ..listening import Listener
from .proposals import Proposals
from .trial import FAILED, STOPPED, Trial, bounded_accuracy
from .trials import Trials

# A trial that has taken so many processes with it is not given to another one.
_MOST_DEATHS = 2


class Observer:
    """Base class of what follows the progress of a search; this one ignores it.

    It is told by one thread at a time, which need not be the same.
    """

    def search_started(self, trials: int, tasks: int) -> None:
        """So many trials of so many tasks each are to be made, or read."""

    def trial_started(self, name: str) -> Sequence[Listener]:
        """A trial of such a `name` is about to be trained; return the listeners of its runs.

        Of a trial in another process they are told when a task begins.
        """
        return ()

    def trial_ended(self, trial: Trial) -> None:
        """A trial has ended, or has been read from the search's folder."""

    def said(self, text: str) -> None:
        """Something happened that the user should know, in a line."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A trial that a worker is asked for.

    Attributes:
        number: Which of all that have been asked for it is; a trial may be asked for again.
        name: Name of the trial.
        values: What is varied, by the name of the option.
        ended: The values of all trials that have ended.
        worker: Who is asked.
        listeners: Follow its runs.
    """

    number: int
    name: str
    values: dict[str, Any]
    ended: Sequence[dict[str, Any]]
    worker: str
    listeners: Sequence[Listener]


class Plan:
    """Gives trials to workers until all have ended: λ = 0, and then what is proposed.

    What has ended is read and not given again. Several threads may use it.

    Args:
        trials: Reads them.
        proposals: Proposes them.
        baseline: Values of the first one; None for none but what is proposed.
        observer: Follows the progress.
        expected: How many trials there are at most.
    """

    def __init__(
        self,
        trials: Trials,
        proposals: Proposals,
        baseline: dict[str, Any] | None,
        observer: Observer,
        expected: int,
    ):
        self.trials, self.proposals, self.observer = trials, proposals, observer
        self.expected, self.workers = expected, 1
        self.lock = threading.RLock()
        self._all_proposed = False
        self._numbers = itertools.count()
        self._under_way: dict[int, Asked] = {}
        self._values: dict[str, dict[str, Any]] = {}  # by the name of the trial, in their order
        self._proposed: dict[str, list[str]] = {}  # what to tell of a trial, by its name
        self._to_give: list[str] = []
        self._deaths: dict[str, int] = {}
        self._ended: dict[str, Trial] = {}
        if baseline is not None:
            self._ask_for(baseline)

    @property
    def ended(self) -> list[Trial]:
        """The trials that have ended."""
        return list(self._ended.values())

    @property
    def is_finished(self) -> bool:
        """Whether all trials have ended."""
        with self.lock:
            return self._all_proposed and not self._to_give and not self._under_way

    def next(self, worker: str) -> Asked | None:
        """Return what a worker is asked for; None if there is nothing, or nothing now.

        Nothing now if `is_finished` is false: a trial that is under way may come back.

        Args:
            worker: Its name. One that has a trial under way is asked for that again.
        """
        with self.lock:
            for asked in self._under_way.values():
                if asked.worker == worker:
                    return asked
            while (name := self._following()) is not None:
                values = self._values[name]
                trial = self.trials.read(values)
                if trial is None:
                    return self._give(name, worker)
                self._end(name, trial)
            return None

    def finished(self, number: int, trial: Trial) -> None:
        """Take note of a trial that has ended; of one that was given to another, nothing."""
        with self.lock:
            asked = self._under_way.pop(number, None)
            if asked is not None:
                self._end(asked.name, trial)

    def crashed(self, number: int, kind: str, text: str) -> bool:
        """Take note of a trial that ended by an error; return whether the search goes on.

        It does not if the error is likely to come again: when as many trials as there are workers
        have failed, and none has been completed. A crashed trial is tried again the next time.

        Args:
            number: That of `Asked`.
            kind: Class of the error.
            text: What it says.
        """
        with self.lock:
            asked = self._under_way.pop(number, None)
            if asked is None:
                return True
            crashes = 1 + sum(trial.state == FAILED for trial in self.ended)
            is_early = not any(trial.is_completed for trial in self.ended)
            if is_early and crashes >= self.workers:
                return False
            reason = f"crashed: {kind}: {' '.join(text.split())}"
            self._end(asked.name, self.trials.failed(asked.values, reason))
            return True

    def given_back(self, worker: str, why: str, *, is_to_blame: bool = True) -> None:
        """Give what a worker had under way to another one, since it has ended.

        Args:
            worker: Its name.
            why: What became of it.
            is_to_blame: Whether the trial may have been the cause.
        """
        with self.lock:
            for asked in [a for a in self._under_way.values() if a.worker == worker]:
                del self._under_way[asked.number]
                deaths = self._deaths.get(asked.name, 0) + is_to_blame
                self._deaths[asked.name] = deaths
                if deaths < _MOST_DEATHS:
                    self.observer.said(f"{why} within trial {asked.name}, which is taken up again")
                    self._to_give.insert(0, asked.name)
                else:
                    reason = f"crashed: {deaths} workers ended within it. The last one: {why}"
                    self._end(asked.name, self.trials.failed(asked.values, reason))

    def under_way(self, number: int) -> Asked | None:
        """Return what was asked for under a number, if it has not ended or been given back."""
        with self.lock:
            return self._under_way.get(number)

    def score(self, trial: Trial) -> float:
        """Return a finite number that says how good a trial is, for the choice of the next ones.

        It is the average accuracy, less ten times what exceeds the bound on forgetting. A stopped
        trial counts as the most that was expected of it, and a failed one as the worst of all.
        """
        if trial.state == FAILED:
            return min((self.score(t) for t in self.ended if t.state != FAILED), default=0.0)
        if trial.state == STOPPED:
            return trial.bound
        bound = self.trials.space.max_forgetting
        return bounded_accuracy(trial.accuracy, trial.forgetting, bound)

    def _following(self):
        """Return the name of a trial to be given; None if there is none."""
        while not self._to_give and not self._all_proposed:
            proposal = self.proposals.next()
            if proposal is None:
                self._all_proposed = True
            else:
                self._ask_for(proposal[1], proposal[0])
        return self._to_give.pop(0) if self._to_give else None

    def _ask_for(self, values, proposal=None):
        """Ask for a trial; nothing is to be done for one that has been asked for before."""
        name = self.trials.name(values)
        if name in self._ended:
            if proposal is not None:
                self.proposals.tell(proposal, self.score(self._ended[name]))
            return
        if name not in self._values:
            self._to_give.append(name)
        self._values.setdefault(name, values)
        self._proposed.setdefault(name, []).extend([] if proposal is None else [proposal])

    def _give(self, name, worker):
        ended = [values for other, values in self._values.items() if other in self._ended]
        listeners = self.observer.trial_started(self.trials.shown(self._values[name]))
        number = next(self._numbers)
        asked = Asked(number, name, self._values[name], ended, worker, listeners)
        self._under_way[number] = asked
        return asked

    def _end(self, name, trial):
        self._ended[name] = trial
        self.observer.trial_ended(trial)
        for proposal in self._proposed.pop(name):
            self.proposals.tell(proposal, self.score(trial))
