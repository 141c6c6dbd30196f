"""The search for λ: keras-tuner over a log scale, with λ = 0 beside it, on validation data."""

import contextlib
import dataclasses
import hashlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import keras_tuner as kt

from .run import DivergedError, Listener, describe, is_finished, read_json, train, write_json
from .settings import SearchSpace, Settings
from .tasks import TaskStream

_OBJECTIVE = "average_accuracy"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One value of λ that was tried.

    Attributes:
        strength: λ.
        result: As `run.train` returns it, on validation data; None if the trial failed.
        error: Why it failed, in one line; empty if it did not.
        is_new: Whether it was trained now, rather than read from the search's folder.
    """

    strength: float
    result: dict | None
    error: str
    is_new: bool


def search(
    stream: TaskStream,
    settings: Settings,
    space: SearchSpace,
    directory: Path,
    *,
    listeners: Sequence[Listener] = (),
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> tuple[list[Trial], Path]:
    """Try values of λ, and λ = 0 beside them, and return all of them, the best first.

    The folder of a search is named after all that decides its outcome: the same search again reads
    what is there and trains only what is missing. Test data is not looked at.

    Args:
        stream: The tasks.
        settings: What each trial does; its strength is not used.
        space: What is searched.
        directory: Folder of all searches.
        listeners: Are told about every task of every trial.
        on_trial: Is told about every trial when it ends.

    Returns:
        The trials sorted by their average accuracy on validation data, failed ones last; and the
        search's own folder.
    """
    description = describe(stream, dataclasses.replace(settings, strength=0.0), "validation")
    # Not the number of trials: a longer search goes on from a shorter one.
    description |= {k: v for k, v in dataclasses.asdict(space).items() if k != "trials"}
    project = f"{stream.name}-{settings.method}-{_digest(description)}"
    folder = directory / project
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "arguments.json", description)

    def attempt(strength, run):
        is_new = not is_finished(run)
        asked = dataclasses.replace(settings, strength=strength)
        result = train(stream, asked, run, evaluate_on="validation", listeners=listeners)
        trial = Trial(strength, result, "", is_new)
        on_trial(trial)
        return trial

    with contextlib.redirect_stdout(sys.stderr):  # where keras-tuner says that it goes on
        tuner = _Tuner(attempt, on_trial, space, settings.seed, directory, project)
    trials = [_without_protection(attempt, on_trial, folder), *tuner.trials()]
    return sorted(trials, key=_rank), folder


class _Tuner(kt.Tuner):
    """Keras-tuner proposes and remembers; every trial is a whole run over the stream of tasks."""

    def __init__(self, attempt, on_trial, space, seed, directory, project):
        self.attempt, self.on_trial = attempt, on_trial
        super().__init__(
            oracle=_oracle(space, seed),
            directory=directory,
            project_name=project,
            overwrite=False,
        )

    def trials(self):
        """Run what is missing and return every trial of the search."""
        known = set(self.oracle.end_order)
        with warnings.catch_warnings():  # it takes the maximum of a failed trial's NaN
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)
            self.search(verbose=0)
        ended = [self.oracle.trials[name] for name in self.oracle.end_order]
        return [self._ended(trial, trial.trial_id not in known) for trial in ended]

    def run_trial(self, trial, verbose):
        """Train one λ; called by keras-tuner, which takes NaN for a failure."""
        run = self._run_folder(trial)
        try:
            trained = self.attempt(trial.hyperparameters.get("strength"), run)
        except Exception as error:
            write_json(run / "failure.json", {"error": _first_line(error)})
            self.on_trial(self._ended(trial, is_new=True))
            return {_OBJECTIVE: float("nan")}
        return {_OBJECTIVE: trained.result[_OBJECTIVE]}

    def _run_folder(self, trial):
        return Path(self.project_dir) / f"run-{trial.trial_id}"

    def _ended(self, trial, is_new):
        # Keras-tuner itself would offer the values of a failed trial as the best ones.
        strength, run = trial.hyperparameters.get("strength"), self._run_folder(trial)
        if is_finished(run):
            return Trial(strength, read_json(run / "result.json"), "", is_new)
        error = read_json(run / "failure.json")["error"]
        return Trial(strength, None, error, is_new)


def _without_protection(attempt, on_trial, folder):
    try:
        return attempt(0.0, folder / "strength-0")
    except DivergedError as error:
        failed = Trial(0.0, None, _first_line(error), True)
        on_trial(failed)
        return failed


def _oracle(space, seed):
    hyperparameters = kt.HyperParameters()
    hyperparameters.Float("strength", space.strength_min, space.strength_max, sampling="log")
    oracles = {
        "bayesian": kt.oracles.BayesianOptimizationOracle,
        "random": kt.oracles.RandomSearchOracle,
    }
    return oracles[space.tuner](
        objective=kt.Objective(_OBJECTIVE, "max"),
        max_trials=space.trials,
        hyperparameters=hyperparameters,
        seed=seed + 1,  # it takes 0 for none
        # A λ too strong for its learning rate diverges; others are still worth trying.
        max_consecutive_failed_trials=space.trials + 1,
    )


def _rank(trial):
    failed = trial.result is None
    return failed, 0.0 if failed else -trial.result[_OBJECTIVE], trial.strength


def _digest(description):
    text = json.dumps(description, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _first_line(error):
    return (str(error) or type(error).__name__).splitlines()[0]
