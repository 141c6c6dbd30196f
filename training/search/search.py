"""The search: every trial is a run on validation data, which goes on where it was cut off."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keras_mas.files import remove_unfinished

from ..first_task import digest
from ..identity import describe
from ..learner import Learner
from ..run_directory import RUN_FILES, claimed
from ..settings import FINE_TUNING, Settings
from ..tasks import TaskStream
from .dimensions import STRENGTH, Choices, Range, values_of
from .plan import Observer, Plan
from .proposals import Proposals
from .recommend import Recommendation, recommend
from .space import SearchSpace, nearest_values, with_values
from .trial import COMPLETED, FAILED, STOPPED, Trial
from .trials import FIRST_TASKS, NOT_OF_THE_TRIAL, Trials

_PROPOSALS = "proposals.json"
SUMMARY, PICTURE = "search.json", "search.png"
# The path in a search's folder of every file that a search writes, as a regular expression.
SEARCH_FILES = (
    rf"arguments\.json|\.lock(\.json)?|proposals\.json|search\.(json|png)|tensorboard/.+"
    rf"|first-tasks/\w+(\.lock|/(model\.keras|(memory|optimizer)\.npz|progress\.json))"
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


# What makes the trials of a plan be run: `here`, or `chief.with_workers`.
Way = Callable[[Plan, Trials], None]


def search(
    stream: TaskStream,
    settings: Settings,
    space: SearchSpace,
    directory: Path,
    *,
    observer: Observer | None = None,
    overwrite: bool = False,
    learner: Learner | None = None,
    way: Way | None = None,
) -> Found:
    """Try settings, and λ = 0 beside them, on validation data. Test data plays no part.

    The folder of a search is named after everything that decides its outcome, so that a changed
    configuration has a folder of its own. The same search again reads what is there, goes on within
    a trial that was cut off, and adds to it if more trials are asked for. The first task is learned
    once where the trials do not differ in it. What has been tried is never tried again. Of a trial
    that has ended its results are kept, not its models.

    Args:
        stream: The tasks.
        settings: What is varied around: λ = 0, and then their own λ if it is in its range, are
            tried with the values nearest to theirs that the space holds.
        space: What is varied, and how.
        directory: Folder of all searches.
        observer: Follows the progress.
        overwrite: Whether to remove what the same search found before, and start again.
        learner: As for `train`.
        way: What runs the trials: None for this process, one after the other, or
            `chief.with_workers` for several processes.

    Returns:
        The trials.

    Raises:
        UsageError: If there is nothing to vary, or the folder cannot be used.
        InUseError: If another process is at work on this search.
        DamagedError: If a file in the search's folder is damaged.
    """
    dimensions = space.dimensions(settings)
    folder, description = folder_of(stream, settings, space, directory)
    with claimed(folder, description, SEARCH_FILES, overwrite=overwrite):
        remove_unfinished(folder / FIRST_TASKS)
        observer = observer or Observer()
        trials = Trials(stream, settings, space, folder, learner)
        has_baseline = STRENGTH in dimensions
        baseline = _without_strength(settings, dimensions) if has_baseline else None
        expected = space.count(dimensions) + has_baseline
        observer.search_started(expected, len(stream.tasks))
        proposals = Proposals(space, settings, folder / _PROPOSALS)
        plan = Plan(trials, proposals, baseline, observer, expected)
        (way or here)(plan, trials)
        if plan.is_finished and len(plan.ended) < expected:
            observer.said(f"{len(plan.ended)} trials are all: others would differ in nothing used")
        if plan.is_finished and proposals.left_out:
            observer.said(
                f"{proposals.left_out} more were proposed by an earlier search of more --trials, "
                "and are left out"
            )
    return Found(sorted(plan.ended, key=_rank), dimensions, space.max_forgetting, folder)


def folder_of(
    stream: TaskStream, settings: Settings, space: SearchSpace, directory: Path
) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a search, and the description of all that decides its outcome."""
    description = describe(stream, dataclasses.replace(settings, strength=0.0), "validation")
    description |= {"search": space.decides}
    name = f"{stream.name}-{settings.method_in_paths}-{digest(description)}"
    return directory / name, description


def here(plan: Plan, trials: Trials) -> None:
    """Run the trials of a plan in this process, one after the other."""
    while (asked := plan.next("this process")) is not None:
        try:
            trial = trials.run(asked.values, asked.ended, asked.listeners)
        except NOT_OF_THE_TRIAL:
            raise
        except Exception as error:
            if not plan.crashed(asked.number, type(error).__name__, str(error)):
                raise
        else:
            plan.finished(asked.number, trial)


def _without_strength(settings, dimensions):
    """Return the values of λ = 0, all others as near to the settings as the space allows.

    The method is one that has a λ; where fine-tuning is tried anyway, and is the same, it takes
    that place.
    """
    values = nearest_values(settings, dimensions) | {STRENGTH: 0.0}
    if "method" not in dimensions:
        return values
    methods = (values["method"], *values_of(dimensions["method"]))
    tried = (with_values(settings, values | {"method": method}) for method in methods)
    without = next(each for each in tried if each.has_strength)
    is_fine_tuning = FINE_TUNING in methods and without.holds_nothing
    return values | {"method": FINE_TUNING if is_fine_tuning else without.method}


def _rank(trial):
    order = (COMPLETED, STOPPED, FAILED).index(trial.state)
    best = trial.accuracy if trial.is_completed else trial.bound
    return order, -best, trial.strength or 0.0
