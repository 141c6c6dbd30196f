"""What a `ContinualTuner` refuses before it tries anything."""

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import keras_tuner as kt

from keras_mas.callbacks import Consolidate
from keras_mas.errors import UsageError

from ..options import AT_LEAST_ONE, NOT_NEGATIVE, check_options, option, option_fields
from ..settings import SEEDS
from ..wording import did_you_mean
from .dimensions import STRENGTH
from .hypermodel import PENALTY, ContinualHyperModel, check_penalty
from .tuner_folder import described_space


@dataclasses.dataclass(frozen=True)
class TunerNumbers:
    """The numbers that a `ContinualTuner` is made with, as there; ValueError for wrong ones."""

    max_forgetting: float | None = option(None, "bound on forgetting", bounds=NOT_NEGATIVE)
    keep_models: int = option(1, "trials whose weights are kept", bounds=NOT_NEGATIVE)
    seed: int = option(0, "seed of the first execution of each trial", bounds=SEEDS)
    executions_per_trial: int = option(1, "executions, with a seed each", bounds=AT_LEAST_ONE)

    def __post_init__(self):
        check_options(self)
        if self.seed + self.executions_per_trial - 1 not in SEEDS:
            raise UsageError(
                f"Expected the seeds of all executions {SEEDS}. Received: {self.seed} for the "
                f"first of {self.executions_per_trial}. Choose a smaller `seed`."
            )


@dataclasses.dataclass(frozen=True)
class _Counts:
    """The numbers among the arguments of `fit`."""

    epochs: int = option(1, "epochs of each task", bounds=AT_LEAST_ONE)
    initial_epoch: int = option(0, "epoch to begin with", bounds=NOT_NEGATIVE)
    batch_size: int | None = option(None, "examples of a step", bounds=AT_LEAST_ONE)
    steps_per_epoch: int | None = option(None, "steps of an epoch", bounds=AT_LEAST_ONE)
    validation_steps: int | None = option(None, "steps of validation", bounds=AT_LEAST_ONE)

    def __post_init__(self):
        check_options(self)


def check_oracle(oracle: Any, objective: str) -> None:
    """Refuse an oracle that is none, Hyperband's, or one of another objective."""
    if not isinstance(oracle, kt.Oracle):
        raise TypeError(
            "Expected an oracle of keras-tuner, such as "
            f"`kt.oracles.RandomSearchOracle(max_trials=10)`. Received: {type(oracle).__name__}."
        )
    if isinstance(oracle, kt.oracles.HyperbandOracle):
        raise ValueError(
            "Expected a random, grid or Bayesian oracle. Received: Hyperband's, whose budget "
            "cannot be kept: it begins a trial with the weights that another one had after "
            "`initial_epoch`, and in a sequence of tasks these are those of the last task alone."
        )
    if type(oracle.objective).__name__ == "DefaultObjective":  # none was given
        oracle.objective = kt.Objective(objective, "max")
    given = oracle.objective
    if (getattr(given, "name", None), getattr(given, "direction", None)) != (objective, "max"):
        shown = getattr(given, "name", given)
        raise ValueError(
            f"Expected no objective, or `kt.Objective('{objective}', 'max')`, which is what "
            f"max_forgetting stands for if it is given. Received: {shown!r}, "
            f"{getattr(given, 'direction', 'several')}."
        )


def check_fit(arguments: Mapping[str, Any], hypermodel: Any, built: Any) -> None:
    """Refuse what `fit` would train nothing with, or fail at in the middle of a trial.

    Args:
        arguments: The arguments of `fit`.
        hypermodel: What fits.
        built: What its `build` returned.
    """
    counts = _Counts(**{k: v for k, v in arguments.items() if k in option_fields(_Counts)})
    for name in ("x", "y", "validation_data"):
        if name in arguments:
            raise UsageError(
                f"Expected no `{name}`, which each task has of its own. Received: one. Leave it "
                "out."
            )
    if getattr(hypermodel.fit, "__func__", None) is not kt.HyperModel.fit:
        return  # one's own, which may have other arguments and epochs
    if counts.initial_epoch >= counts.epochs:
        raise UsageError(
            f"Expected `initial_epoch` below `epochs`. Received: {counts.initial_epoch} and "
            f"{counts.epochs}, with which nothing is trained."
        )
    model = type(built) if isinstance(built, keras.Model) else keras.Model
    known = inspect.signature(model.fit).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in known.values())
    for name in arguments:
        if name not in known and not takes_any:
            raise UsageError(
                f"Expected arguments of `fit`. Received: `{name}`, which is none."
                f"{did_you_mean(name, known)}"
            )


def check_strengths(hypermodel: ContinualHyperModel, space: kt.HyperParameters) -> None:
    """Refuse values of λ that the method does not take, the ends of a range among them."""
    for hp in _each(STRENGTH, space):
        try:
            hypermodel.method(hp)
        except ValueError as error:
            raise ValueError(
                f"Expected values of '{STRENGTH}' that the method takes. Received: "
                f"{hp.values[STRENGTH]!r} of {described_space(space)[STRENGTH]}. {error}"
            ) from error


def check_penalties(hypermodel: ContinualHyperModel, space: kt.HyperParameters) -> None:
    """Refuse a penalty that the models of `build` do not have."""
    for hp in _each(PENALTY, space):
        check_penalty(hypermodel.build(hp), hypermodel.method(hp))


def _each(name, space):
    """Yield the hyperparameters with each value that one of them has, or each end of its range."""
    for each in space.space:
        if each.name == name:
            for value in _ends(each):
                hp = space.copy()
                hp.values[name] = value
                yield hp


def _ends(each):
    if isinstance(each, kt.engine.hyperparameters.Fixed):
        return [each.value]
    if isinstance(each, kt.engine.hyperparameters.Choice):
        return each.values
    return [each.min_value, each.max_value]


def check_callbacks(callbacks: Iterable[keras.callbacks.Callback]) -> None:
    """Refuse callbacks that cannot be used for one task after the other."""
    for callback in callbacks:
        if isinstance(callback, Consolidate | keras.callbacks.BackupAndRestore):
            reason = (
                "which would consolidate each task twice"
                if isinstance(callback, Consolidate)
                else "whose one folder makes it skip every task after the first"
            )
            raise ValueError(
                f"Expected callbacks that suit every task. Received: a {type(callback).__name__}, "
                f"{reason}. Leave it out."
            )


def check_unused(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of a `keras_tuner.Tuner` that would make no difference."""
    names = ("optimizer", "loss", "metrics", "max_model_size", "distribution_strategy")
    for name in names:
        if arguments.get(name) is not None:
            raise ValueError(
                f"Expected no `{name}`, which this tuner does not use. Received: one. Compile the "
                "model in `build`, or in `compile` of a ContinualHyperModel."
            )
