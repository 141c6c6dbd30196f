"""The search: every trial is a run on validation data, which goes on where it was cut off."""

import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_mas.errors import UsageError
from keras_mas.files import remove_unfinished

from ..first_task import digest
from ..learner import Learner, structure_of
from ..run import DivergedError, Listener, TaskResult, describe, finished_result, train
from ..run_directory import (
    MODEL,
    RUN_FILES,
    DamagedError,
    InUseError,
    claimed,
    is_number,
    is_text,
    read_json,
    task_folder,
    write_json,
)
from ..settings import Settings
from ..tasks import TaskStream
from .dimensions import STRENGTH, Choices, Range
from .proposals import Proposals
from .recommend import Recommendation, recommend
from .space import SearchSpace, name_of_values, with_values
from .stopping import CannotWinError, Judge, ceilings_of
from .trial import COMPLETED, FAILED, STOPPED, Trial, best_of

_PROPOSALS, _FIRST_TASKS, _TRIALS = "proposals.json", "first-tasks", "trials"
_FAILURE, _STOP = "failure.json", "stopped.json"
SUMMARY, PICTURE = "search.json", "search.png"
# The path in a search's folder of every file that a search writes, as a regular expression.
SEARCH_FILES = (
    rf"arguments\.json|\.lock(\.json)?|proposals\.json|search\.(json|png)|tensorboard/.+"
    rf"|first-tasks/\w+/(model\.keras|(memory|optimizer)\.npz|progress\.json)"
    rf"|trials/[^/]+/((failure|stopped)\.json|{RUN_FILES})"
)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        trials: All trials, the highest accuracy first, those that failed last.
        dimensions: What was varied, by the name of the option.
        max_forgetting: The bound on forgetting, if there was one.
        folder: The search's own folder.
    """

    trials: Sequence[Trial]
    dimensions: dict[str, Range | Choices]
    max_forgetting: float | None
    folder: Path

    def recommendation(self) -> Recommendation:
        """Return what is recommended; `NoTrialError` if nothing is."""
        return recommend(self.trials, self.dimensions, self.max_forgetting)


class Observer:
    """Base class of what follows the progress of a search; this one ignores it."""

    def search_started(self, trials: int, tasks: int) -> None:
        """So many trials of so many tasks each are to be made, or read."""

    def trial_started(self, name: str) -> Sequence[Listener]:
        """A trial is about to be trained; return the listeners that its runs have."""
        return ()

    def trial_ended(self, trial: Trial) -> None:
        """A trial has ended, or has been read from the search's folder."""


def search(
    stream: TaskStream,
    settings: Settings,
    space: SearchSpace,
    directory: Path,
    *,
    observer: Observer | None = None,
    overwrite: bool = False,
    learner: Learner | None = None,
) -> Found:
    """Try settings, and λ = 0 beside them, on validation data. Test data plays no part.

    The folder of a search is named after everything that decides its outcome, so that a changed
    configuration has a folder of its own. The same search again reads what is there, goes on within
    a trial that was cut off, and adds to it if more trials are asked for. The first task is learned
    once where the trials do not differ in it. What has been tried is never tried again. Of a trial
    that has ended its results are kept, not its models.

    Args:
        stream: The tasks.
        settings: What is varied around; their λ is the first that is tried, if it is in the space.
        space: What is varied, and how.
        directory: Folder of all searches.
        observer: Follows the progress.
        overwrite: Whether to remove what the same search found before, and start again.
        learner: As for `train`.

    Returns:
        The trials.

    Raises:
        UsageError: If there is nothing to vary, or the folder cannot be used.
        InUseError: If another process is at work on this search.
        DamagedError: If a file in the search's folder is damaged.
    """
    dimensions = space.dimensions(settings)
    description = describe(stream, dataclasses.replace(settings, strength=0.0), "validation")
    description |= {"search": space.decides}
    folder = directory / f"{stream.name}-{settings.method_in_paths}-{digest(description)}"
    with claimed(folder, description, SEARCH_FILES, overwrite=overwrite):
        remove_unfinished(folder / _FIRST_TASKS)
        observer = observer or Observer()
        trials = _Trials(stream, settings, space, folder, observer, learner)
        has_baseline = STRENGTH in dimensions and settings.has_strength
        observer.search_started(space.count(dimensions) + has_baseline, len(stream.tasks))
        if has_baseline:
            trials.run(_without_strength(settings, dimensions))
        proposals = Proposals(space, settings, folder / _PROPOSALS)
        while (values := proposals.next()) is not None:
            proposals.tell(trials.score(trials.run(values)))
    return Found(sorted(trials.ended, key=_rank), dimensions, space.max_forgetting, folder)


def _without_strength(settings, dimensions):
    """Return the values of λ = 0, everything else as in the settings."""
    chosen = dataclasses.asdict(settings) | dataclasses.asdict(settings.recipe)
    return {name: 0.0 if name == STRENGTH else chosen[name] for name in dimensions}


class _Trials:
    """Runs trials one after the other with one learner for each kind of network."""

    def __init__(self, stream, settings, space, folder, observer, learner):
        self.stream, self.settings, self.space = stream, settings, space
        self.folder, self.observer = folder, observer
        self.ended: list[Trial] = []
        self._by_name: dict[str, Trial] = {}
        self._learners: dict[tuple, Learner] = {(): learner} if learner else {}

    def run(self, values: dict[str, Any]) -> Trial:
        """Return a trial, trained or read; the same again if it has been asked for before."""
        settings = with_values(self.settings, values)
        # λ that makes no difference makes no other trial.
        values = {k: v for k, v in values.items() if k != STRENGTH or settings.has_strength}
        name = name_of_values(values) or "as-asked"
        if name not in self._by_name:
            listeners = self.observer.trial_started(name)
            started = time.perf_counter()
            trial = self._executed(values, settings, name, listeners)
            trial = dataclasses.replace(trial, seconds=time.perf_counter() - started)
            self._by_name[name] = trial
            self.ended.append(trial)
            self.observer.trial_ended(trial)
        return self._by_name[name]

    def score(self, trial: Trial) -> float:
        """Return a finite number that says how good a trial is, for the choice of the next ones.

        It is the average accuracy, less ten times what exceeds the bound on forgetting. A stopped
        trial counts as what it could have reached at most, and a failed one as the worst of all.
        """
        if trial.state == FAILED:
            return min((self.score(t) for t in self.ended if t.state != FAILED), default=0.0)
        if trial.state == STOPPED:
            assert trial.bound is not None
            return trial.bound
        bound = self.space.max_forgetting
        excess = 0.0 if bound is None else max(0.0, trial.forgetting - bound)
        return trial.accuracy - 10 * excess

    def _executed(self, values, settings, name, listeners):
        """Run a trial with one seed after the other, as long as it may win."""
        results: list[dict] = []
        learned, is_new = 0, False
        several = self.space.executions_per_trial > 1
        for execution in range(self.space.executions_per_trial):
            seeded = dataclasses.replace(settings, seed=settings.seed + execution)
            run = self.folder / _TRIALS / (f"{name}-seed-{seeded.seed}" if several else name)
            counter = _Counter()
            outcome = self._outcome(seeded, run, execution, [*listeners, counter])
            learned += counter.learned
            is_new |= outcome.pop("is_new")
            result = outcome.pop("result", None)
            if result is None:
                own = {"results": results, "learned": learned, "is_new": is_new}
                return Trial(values, settings, **own, **outcome)
            results.append(result)
        return Trial(values, settings, COMPLETED, results, learned=learned, is_new=is_new)

    def _outcome(self, settings, run, execution, listeners):
        """Return what became of a run: its result, or the state of the trial with the reason."""
        known = _read_failure(run) or _read_stop(run)
        if known is None:
            result = finished_result(self.stream, settings, run, "validation")
            known = result and {"result": result}
        is_new = known is None
        if known is None:
            known = self._trained(settings, run, execution, listeners)
        _remove_models(run, len(self.stream.tasks))
        return {**known, "is_new": is_new}

    def _trained(self, settings, run, execution, listeners):
        judge = [] if self.space.complete_trials else [self._judge(execution)]
        try:
            result = train(
                self.stream,
                settings,
                run,
                evaluate_on="validation",
                listeners=[*listeners, *judge],
                learner=self._learner_of(structure_of(settings)),
                first_tasks=self.folder / _FIRST_TASKS,
            )
        except CannotWinError as stop:
            write_json(run / _STOP, dataclasses.asdict(stop.stop))
            return _read_stop(run)
        except DivergedError as error:
            write_json(run / _FAILURE, {"error": str(error)})
            return _read_failure(run)
        except (OSError, UsageError, InUseError, DamagedError):
            raise  # it would come for the next trial too
        except Exception as error:
            self._learners.clear()  # half a network, perhaps
            if not any(trial.is_completed for trial in self.ended):
                raise
            text = " ".join(str(error).split())
            return {"state": FAILED, "reason": f"crashed: {type(error).__name__}: {text}"}
        return {"result": result}

    def _learner_of(self, structure):
        if () in self._learners:  # given, and used for the first structure
            self._learners[structure] = self._learners.pop(())
        if structure not in self._learners:
            self._learners[structure] = Learner(self.stream)
        return self._learners[structure]

    def _judge(self, execution):
        """Return what stops a run that cannot win against the trials that have ended."""
        best = best_of(self.ended, self.space.max_forgetting)
        required = None
        if best is not None:
            accuracy = best.results[execution]["average_accuracy"]
            required = accuracy - best.standard_error
        # Trials that differ in λ alone learn a task no better than the one that holds least; with
        # another learning rate, for example, nothing is known of that.
        completed = [t.results[execution] for t in self.ended if t.is_completed]
        only_strength = completed and set(self.ended[0].values) == {STRENGTH}
        ceilings = [1.0] * len(self.stream.tasks)
        if only_strength:
            ceilings = ceilings_of([result["accuracy_matrix"] for result in completed])
        return Judge(ceilings, required, self.space.max_forgetting)


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
    (run / MODEL).unlink(missing_ok=True)


def _rank(trial):
    order = (COMPLETED, STOPPED, FAILED).index(trial.state)
    best = trial.accuracy if trial.is_completed else trial.bound
    return order, -best, trial.strength or 0.0
