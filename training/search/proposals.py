"""Which settings are tried next: keras-tuner's oracles, whose proposals outlive the process."""

import itertools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras_tuner as kt
import numpy as np

from ..run_directory import are, read_json, write_json
from ..settings import Settings
from .dimensions import STRENGTH, Choices, Range, values_of
from .space import SearchSpace, nearest_values, relevant_values

_OBJECTIVE = "score"
_STOPPED = {"status": "STOPPED", "values": None}

# Starts of the fit of a Gaussian process to at most a few dozen trials. Keras-tuner has 20, which
# takes it longer than a small network to learn a stream of tasks.
_STARTS = 2


class Proposals:
    """Proposes settings one after the other, being told how good they were.

    Keras-tuner's own files are not written: from them its grid does not go on after a restart, and
    a trial that was cut off begins anew. Instead every proposal is noted in a file, and a search
    that goes on is given those again. A new one depends on the seed, its number, the scores told
    so far and what is under way alone, so that it is the same in a search that was never
    interrupted, if there is one worker.

    Args:
        space: How they are chosen.
        settings: What is varied; the first proposal is settings as they are, or the nearest to
            them in the space, except in a grid and if their λ is outside its range.
        path: File of the proposals so far, which need not exist.

    Raises:
        UsageError: If nothing is varied.
        DamagedError: If the file is damaged.
    """

    def __init__(self, space: SearchSpace, settings: Settings, path: Path):
        self.dimensions = space.dimensions(settings)
        self.path = path
        kinds = {"bayesian": _Bayesian, "random": _Random, "grid": _Grid}
        self._oracle = kinds[space.tuner](
            objective=kt.Objective(_OBJECTIVE, "max"),
            max_trials=space.trials,
            hyperparameters=_hyperparameters(self.dimensions),
            seed=settings.seed + 1,  # it takes 0 for none
        )
        self._oracle.verbose = 0
        self._oracle.dimensions, self._oracle.settings = self.dimensions, settings
        self._oracle.first = _first(settings, self.dimensions)
        self._oracle.noted = self._read()

    def next(self) -> tuple[str, dict[str, Any]] | None:
        """Return a name of its own and values by the names of options; None after the last one.

        Those before it need not have been told of.
        """
        trial = self._oracle.create_trial(f"tuner-{len(self._oracle.start_order)}")
        if trial.status != "RUNNING":
            return None
        values = {name: trial.hyperparameters.values[name] for name in self.dimensions}
        number = len(self._oracle.start_order)
        if number > len(self._oracle.noted):
            self._oracle.noted.append(values)
            write_json(self.path, {"proposals": self._oracle.noted})
        return trial.trial_id, values

    @property
    def left_out(self) -> int:
        """How many proposals of an earlier search of more trials have not been made again."""
        return len(self._oracle.noted) - min(len(self._oracle.noted), len(self._oracle.start_order))

    def tell(self, name: str, score: float) -> None:
        """Say how good a proposal was.

        Args:
            name: As `next` returned it.
            score: A finite number; more is better.
        """
        self._oracle.update_trial(name, {_OBJECTIVE: score})
        trial = self._oracle.get_trial(name)
        trial.status = "COMPLETED"
        self._oracle.end_trial(trial)

    def _read(self):
        if not self.path.exists():
            return []

        def is_proposal(value):
            return isinstance(value, dict) and set(value) == set(self.dimensions)

        cure = (
            "Remove it, and run the same `keras-mas search` command again: it reads the trials "
            "that it proposes again."
        )
        return read_json(self.path, {"proposals": are(is_proposal)}, cure=cure)["proposals"]


class _Oracle(kt.Oracle):
    """What all our oracles have: no files of their own, and proposals in few digits."""

    dimensions: Mapping[str, Range | Choices]
    settings: Settings
    first: dict[str, Any] | None
    noted: list[dict[str, Any]]

    def save(self):
        """Write nothing."""

    def _save_trial(self, trial):
        """Write nothing."""

    def _plain(self, values):
        """Return values in few digits, and the first there is of what makes no difference."""
        rounded = {
            name: each.value(values[name]) if isinstance(each, Range) else values[name]
            for name, each in self.dimensions.items()
        }
        relevant = relevant_values(self.settings, rounded)
        return {
            name: relevant.get(name, values_of(each)[0]) for name, each in self.dimensions.items()
        }

    def _duplicate(self, values):
        return super()._duplicate(self._plain(values))


class _Seeded(_Oracle):
    """An oracle whose proposal depends on the seed, its number and what it was told alone."""

    def populate_space(self, trial_id):
        """Propose what has been proposed before a restart, or something new."""
        number = len(self.start_order)
        if number < len(self.noted):
            return _running(self.noted[number])
        if number == 0 and self.first is not None:
            return _running(self._plain(self.first))
        sequence = np.random.SeedSequence([self.seed, number])
        self._seed_state = int(sequence.generate_state(1)[0] // 2)  # it adds to it
        self._random_state = np.random.RandomState(self._seed_state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a Gaussian process that fits few trials badly
            values = super().populate_space(trial_id)["values"]
        if values is not None and self._duplicate(values):
            values = self._random_values()
        if values is None:  # all combinations have been tried
            return _STOPPED
        return _running(self._plain(values))


class _Random(_Seeded, kt.oracles.RandomSearchOracle):
    """Random values."""


class _Bayesian(_Seeded, kt.oracles.BayesianOptimizationOracle):
    """A Gaussian process, after three random values for each option that is varied."""

    def _make_gpr(self):
        process = super()._make_gpr()
        process.n_restarts_optimizer = _STARTS
        return process

    def _vectorize_trials(self):
        """Return values and scores, for trials under way those that the ended ones predict.

        Keras-tuner predicts them by the process that it fitted for the last proposal, which after a
        restart is none.
        """
        vectors, scores = super()._vectorize_trials()
        ended = [trial.status == "COMPLETED" for trial in self.trials.values()]
        if not all(ended):
            self.gpr.fit(vectors[ended], scores[ended])
            vectors, scores = super()._vectorize_trials()
        return vectors, scores


class _Grid(_Oracle):
    """All combinations of the values of a grid, the last option's next to each other.

    Keras-tuner's grid waits for a trial to end before it proposes the next, in case the trial comes
    up with options of its own, so that several workers would wait for each other.
    """

    def populate_space(self, trial_id):
        """Propose the next combination."""
        values = [values_of(each) for each in self.dimensions.values()]
        for combination in itertools.product(*values):
            proposal = self._plain(dict(zip(self.dimensions, combination, strict=True)))
            if not self._duplicate(proposal):
                return _running(proposal)
        return _STOPPED


def _running(values):
    return {"status": "RUNNING", "values": values}


def _hyperparameters(dimensions):
    space = kt.HyperParameters()
    for name, each in dimensions.items():
        if isinstance(each, Choices):
            space.Choice(name, list(each.values))
        else:
            kind = space.Int if each.is_whole else space.Float
            kind(name, each.least, each.largest, sampling="log" if each.is_log else "linear")
    return space


def _first(settings, dimensions):
    """Return the values nearest to the settings; None if λ is outside its range."""
    if STRENGTH in dimensions and settings.strength not in dimensions[STRENGTH]:
        return None  # at an end of its wide range training may fail
    return nearest_values(settings, dimensions)
