"""Trains the trials of a search, and reads those that have ended from its folder."""

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_mas.errors import UsageError

from ..divergence import DivergedError
from ..learner import Learner, structure_of
from ..listening import Listener, TaskResult
from ..run import finished_result, train
from ..run_directory import (
    MODEL,
    UNDER_WAY,
    DamagedError,
    InUseError,
    VanishedError,
    is_number,
    is_text,
    read_json,
    task_folder,
    write_json,
)
from ..settings import Settings
from ..tasks import TaskStream
from .dimensions import STRENGTH
from .space import SearchSpace, name_of_values, relevant_values, with_values
from .stopping import CannotWinError, Judge, ceilings_of, recovery_of
from .trial import COMPLETED, FAILED, STOPPED, Trial, best_of

FIRST_TASKS, TRIALS = "first-tasks", "trials"
_FAILURE, _STOP = "failure.json", "stopped.json"

# For so many seconds a worker that has lost its chief may still be at work on a trial.
_LETS_GO = 120.0

# Errors that would come for the next trial too.
NOT_OF_THE_TRIAL = (OSError, UsageError, InUseError, VanishedError, DamagedError)


class Trials:
    """Trains or reads trials, with one learner for each kind of network.

    Args:
        stream: The tasks.
        settings: What is varied around.
        space: What is varied, and how.
        folder: The search's own folder.
        learner: As for `train`.
    """

    def __init__(
        self,
        stream: TaskStream,
        settings: Settings,
        space: SearchSpace,
        folder: Path,
        learner: Learner | None = None,
    ):
        self.stream, self.settings, self.space, self.folder = stream, settings, space, folder
        self._ended: dict[str, Trial] = {}
        self._learners: dict[tuple, Learner] = {(): learner} if learner else {}

    def name(self, values: dict[str, Any]) -> str:
        """Return the name of a trial, the same for values that differ in nothing that matters."""
        return name_of_values(relevant_values(self.settings, values)) or "as-asked"

    def shown(self, values: dict[str, Any]) -> str:
        """Return what is varied in a trial in a line, as `Trial.name` of it."""
        return self.failed(values, "").name

    def failed(self, values: dict[str, Any], reason: str) -> Trial:
        """Return a trial that failed, of which nothing is kept."""
        settings = with_values(self.settings, values)
        return Trial(relevant_values(self.settings, values), settings, FAILED, reason=reason)

    def read(self, values: dict[str, Any]) -> Trial | None:
        """Return a trial that has ended, in this process or another one; None of any other."""
        name = self.name(values)
        if name not in self._ended:
            trial = self._executed(values, self._saved)
            if trial is not None:
                self._ended[name] = trial
        return self._ended.get(name)

    def run(
        self,
        values: dict[str, Any],
        ended: Sequence[dict[str, Any]] = (),
        listeners: Sequence[Listener] = (),
    ) -> Trial:
        """Return a trial, trained.

        Args:
            values: What is varied, by the name of the option.
            ended: The values of other trials that have ended, beside which this one may not be
                expected to win.
            listeners: Follow its runs.
        """
        started, counter = time.perf_counter(), _Counter()
        others = [trial for trial in map(self.read, ended) if trial is not None]

        def trained(seeded, run, execution):
            known = self._saved(seeded, run, execution)
            if known is None:
                judge = (
                    []
                    if self.space.complete_trials
                    else [self._judge(seeded.method, execution, others)]
                )
                known = self._trained(seeded, run, [*listeners, counter, *judge])
            _remove_models(run, len(self.stream.tasks))
            return known

        trial = dataclasses.replace(
            self._executed(values, trained),
            learned=counter.learned,
            is_new=True,
            seconds=time.perf_counter() - started,
        )
        self._ended[self.name(values)] = trial
        return trial

    def _executed(self, values, outcome_of):
        """Return the trial of one seed after the other, as long as it may win.

        Args:
            values: What is varied.
            outcome_of: Returns what became of a run: its result, or the state of the trial with the
                reason; None if it has not ended, and then there is no trial.
        """
        settings = with_values(self.settings, values)
        values = relevant_values(self.settings, values)
        results: list[dict] = []
        several = self.space.executions_per_trial > 1
        for execution in range(self.space.executions_per_trial):
            seeded = dataclasses.replace(settings, seed=settings.seed + execution)
            name = self.name(values) + (f"-seed-{seeded.seed}" if several else "")
            outcome = outcome_of(seeded, self.folder / TRIALS / name, execution)
            if outcome is None:
                return None
            if "result" not in outcome:
                return Trial(values, settings, results=results, is_new=False, **outcome)
            results.append(outcome["result"])
        return Trial(values, settings, COMPLETED, results, is_new=False)

    def _saved(self, settings, run, execution):
        """Return the outcome of a run that has ended; None of any other."""
        known = _read_failure(run) or _read_stop(run)
        if known is None:
            result = finished_result(self.stream, settings, run, "validation")
            known = result and {"result": result}
        return known

    def _trained(self, settings, run, listeners):
        try:
            result = self._when_free(settings, run, listeners)
        except CannotWinError as stop:
            write_json(run / _STOP, dataclasses.asdict(stop.stop))
            return _read_stop(run)
        except DivergedError as error:
            write_json(run / _FAILURE, {"error": str(error)})
            return _read_failure(run)
        except NOT_OF_THE_TRIAL:
            raise
        except Exception:
            self._learners.clear()  # half a network, perhaps
            raise
        return {"result": result}

    def _when_free(self, settings, run, listeners):
        """Train, once a worker that had the run before and was cut off has noticed that."""
        end = time.monotonic() + _LETS_GO
        while True:
            try:
                return train(
                    self.stream,
                    settings,
                    run,
                    evaluate_on="validation",
                    listeners=listeners,
                    learner=self._learner_of(structure_of(settings)),
                    first_tasks=self.folder / FIRST_TASKS,
                    keeps_models=False,
                )
            except InUseError:
                if time.monotonic() > end:
                    raise
                time.sleep(1.0)

    def _learner_of(self, structure):
        if () in self._learners:  # given, and used for the first structure
            self._learners[structure] = self._learners.pop(())
        if structure not in self._learners:
            self._learners[structure] = Learner(self.stream)
        return self._learners[structure]

    def _judge(self, method, execution, ended):
        """Return what stops a run of a method that is not expected to win against what has ended.

        How much old tasks gain by later ones is known of the method's own runs alone: merging, for
        example, lets them gain much. Without any the accuracy stops none.
        """
        matrices = [
            trial.results[execution]["accuracy_matrix"]
            for trial in ended
            if trial.is_completed and trial.settings.method == method
        ]
        best = best_of(ended, self.space.max_forgetting)
        required = None
        if matrices and best is not None:
            accuracy = best.results[execution]["average_accuracy"]
            required = accuracy - best.standard_error
        # Trials that differ in λ alone learn a task no better than the one that holds least; with
        # another learning rate, for example, nothing is known of that.
        ceilings = [1.0] * len(self.stream.tasks)
        if matrices and set(ended[0].values) == {STRENGTH}:
            ceilings = ceilings_of(matrices)
        recovery = recovery_of(matrices) if matrices else 0.0
        return Judge(ceilings, recovery, required, self.space.max_forgetting)


class _Counter(Listener):
    """Counts the tasks that are learned, not read."""

    def __init__(self):
        self.learned = 0

    def task_finished(self, result: TaskResult) -> None:
        self.learned += bool(result.seconds)


def _read_failure(run):
    if not (run / _FAILURE).exists():
        return None
    cure = "Remove it, and run the same `keras-mas search` command again."
    return {
        "state": FAILED,
        "reason": read_json(run / _FAILURE, {"error": is_text}, cure=cure)["error"],
    }


def _read_stop(run):
    if not (run / _STOP).exists():
        return None
    cure = "Remove its folder, and run the same `keras-mas search` command again."
    fields = {"reason": is_text, "bound": is_number, "lost": is_number}
    found = read_json(run / _STOP, fields, cure=cure)
    return {"state": STOPPED} | {name: found[name] for name in fields}


def _remove_models(run, tasks):
    """Remove what a run that has ended would go on from; its results stay."""
    for number in range(1, tasks + 1):
        shutil.rmtree(task_folder(run, number), ignore_errors=True)
    for name in (MODEL, UNDER_WAY):
        (run / name).unlink(missing_ok=True)
