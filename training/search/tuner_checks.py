"""What a `ContinualTuner` refuses before it tries anything."""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import keras_tuner as kt

from keras_mas.callbacks import Consolidate

from .dimensions import STRENGTH
from .hypermodel import ContinualHyperModel


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


def check_count(name: str, count: Any) -> None:
    """Refuse a number that is not an integer of at least 1."""
    if isinstance(count, bool) or not isinstance(count, numbers.Integral) or count < 1:
        raise ValueError(f"Expected `{name}` to be an integer ≥ 1. Received: {count!r}.")


def check_counts(fit_arguments: Mapping[str, Any]) -> None:
    """Refuse what `fit` would train nothing with, or fail at in the middle of a trial."""
    for name in ("epochs", "batch_size"):
        if fit_arguments.get(name) is not None:
            check_count(name, fit_arguments[name])


def check_strengths(hypermodel: ContinualHyperModel, space: kt.HyperParameters) -> None:
    """Refuse values of λ that the method does not take, the ends of a range among them."""
    for each in space.space:
        if each.name == STRENGTH:
            for value in _ends(each):
                hp = space.copy()
                hp.values[STRENGTH] = value
                hypermodel.method(hp)


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
