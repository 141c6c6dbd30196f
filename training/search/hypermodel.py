"""What a trial of a `ContinualTuner` builds: a user's network, and the method that protects it."""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import keras_tuner as kt

from keras_mas import BatchNormWarning, MASModel, MultiHead
from keras_mas.binding import moving_batch_norms
from keras_mas.choices import PENALTIES
from keras_mas.methods import load_method
from keras_mas.methods.base import Method
from keras_mas.methods.quadratic import QuadraticMethod

from .dimensions import STRENGTH
from .own_tasks import OwnTask

METHOD, PENALTY, LEARNING_RATE = "method", "penalty", "learning_rate"

# What `build` may return to have batch normalization otherwise, or to have it so without a word.
_COPIES = (
    "For copies of them per task, return `keras_mas.MultiHead(trunk, batch_norm='per_task')` from "
    "`build`."
)
_OWN_CHOICE = (
    "Return a `keras_mas.MASModel` with batch_norm='freeze' from `build` to say so, or with "
    "'update' to let every task move them."
)


class ContinualHyperModel(kt.HyperModel):
    """What is built, compiled and fitted in a trial; derive from it for more than `build`.

    Args:
        build: Function from `keras_tuner.HyperParameters` to what `build` returns.
        name: As for `keras_tuner.HyperModel`.
        tunable: As for `keras_tuner.HyperModel`.
    """

    def __init__(self, build: Any = None, name: str | None = None, tunable: bool = True):
        if build is not None:
            self.build = build  # type: ignore[method-assign]
        super().__init__(name, tunable)

    def build(self, hp: kt.HyperParameters) -> keras.Model | MultiHead:
        """Return the network, and declare λ as `hp.Float("strength", …, sampling="log")`.

        A `keras.Model` or `keras_mas.MASModel` has one output `[N, classes]` for all tasks. A
        `keras_mas.MultiHead(trunk)` without heads is given a head for every task.

        Args:
            hp: The hyperparameters.
        """
        raise NotImplementedError

    def compile(self, hp: kt.HyperParameters, model: keras.Model) -> None:
        """Compile a model that `build` did not compile, or that of a head.

        Here: Adam with the hyperparameter "learning_rate", 0.001 if it is not declared, and a
        sparse cross-entropy from logits.

        Args:
            hp: The hyperparameters.
            model: The model.
        """
        rate = hp.values.get(LEARNING_RATE, 0.001)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])

    def method(self, hp: kt.HyperParameters) -> Method:
        """Return the method of continual learning.

        Here: the hyperparameter "method", "mas" if it is not declared, with "strength" and, if it
        is declared, "penalty".

        Args:
            hp: The hyperparameters.
        """
        kind = load_method(hp.values.get(METHOD, "mas"))
        return kind(hp.values[STRENGTH], hp.values.get(PENALTY, PENALTIES[0]))


class TrialNetwork:
    """The models of all tasks, with the method that protects what they share.

    Args:
        hypermodel: What builds them.
        hp: The hyperparameters.
        tasks: The tasks.
    """

    def __init__(
        self, hypermodel: ContinualHyperModel, hp: kt.HyperParameters, tasks: Sequence[OwnTask]
    ):
        built = hypermodel.build(hp)
        self.method: Any = hypermodel.method(hp)
        self.heads = built if isinstance(built, MultiHead) else None
        _check_method(self.method, self.heads)
        self.models = self._models(hypermodel, hp, tasks, built)

    def whole(self) -> keras.Model:
        """Return one model of all that was learned."""
        return self.models[0] if self.heads is None else self.heads.joint()

    def release(self) -> None:
        """Let go of the weights: what is returned is a plain model."""
        memory = getattr(self.method, "memory", None)
        if memory is not None:
            memory.release()

    def _models(self, hypermodel, hp, tasks, built):
        if self.heads is None:
            self._protect(built, hp)
            _compile(hypermodel, hp, built)
            logits = _logits(built)
            for task in tasks:
                task.check_labels(logits, head_of_its_own=False)
            return [built] * len(tasks)
        built.make_model = self.method.model
        per_task = built.batch_norm == "per_task"
        batch_norm = "update" if per_task else _frozen(built.trunk, _COPIES)
        self.method.protect(built.trunk, batch_norm=batch_norm)
        for task in tasks:
            task.check_labels(task.classes, head_of_its_own=True)
            _compile(hypermodel, hp, built.add(task.name, max(2, task.classes)))
        return list(built.models.values())

    def _protect(self, model, hp):
        """Protect a whole model; a `MASModel` by its own memory, with λ of the trial."""
        check_penalty(model, self.method)
        if not isinstance(model, MASModel):
            self.method.protect(model, batch_norm=_frozen(model, _OWN_CHOICE))
            return
        strength = self.method.strength
        self.method.memory = model.memory
        self.method.strength = strength
        if PENALTY in hp.values:
            model.penalty = self.method.penalty
        self.method.penalty = model.penalty


def architecture(built: keras.Model | MultiHead) -> tuple[list[Any], Any]:
    """Return what a network is made of, the same in every process that builds it."""
    model = built.trunk if isinstance(built, MultiHead) else built
    shapes = [weight.shape for weight in model.weights]
    # A model of one's own class need not say how it is made.
    with contextlib.suppress(NotImplementedError, TypeError, ValueError):
        return shapes, model.to_json()
    return shapes, [type(layer).__name__ for layer in model._flatten_layers()]


def adapted(hypermodel: Any) -> ContinualHyperModel:
    """Return a hypermodel, of our class, that builds and fits as the one that was given."""
    if isinstance(hypermodel, ContinualHyperModel):
        return hypermodel
    if isinstance(hypermodel, kt.HyperModel):
        ours = ContinualHyperModel(hypermodel.build, hypermodel.name, hypermodel.tunable)
        ours.fit = hypermodel.fit
        return ours
    if not callable(hypermodel):
        raise TypeError(
            "Expected a function of hyperparameters that returns a model, or a "
            f"ContinualHyperModel. Received: {type(hypermodel).__name__}."
        )
    return ContinualHyperModel(hypermodel)


def checked_build(build: Callable[..., Any]) -> Callable[..., keras.Model | MultiHead]:
    """Return a function that builds what another one builds, and refuses what is no network."""

    def checked(hp, *args, **kwargs):
        built = build(hp, *args, **kwargs)
        if isinstance(built, MultiHead):
            if built.models or built.make_model is not keras.Model:
                raise kt.errors.FatalValueError(
                    "Expected `MultiHead(trunk)` from `build`, to which the tuner adds heads. "
                    f"Received: one with {len(built.models)} heads and models of its own kind. "
                    "Leave both out; `hp.Choice('penalty', …)` says where the penalty acts."
                )
        elif not isinstance(built, keras.Model):
            raise kt.errors.FatalTypeError(
                "Expected a `keras.Model`, or a `keras_mas.MultiHead(trunk)`, from `build`. "
                f"Received: {built!r}, a {type(built).__name__}. Does it `return` the model?"
            )
        return built

    return checked


def check_penalty(built: keras.Model | MultiHead, method: Method) -> None:
    """Refuse a network whose training step does not do what a decoupled penalty needs."""
    is_plain = isinstance(built, keras.Model) and not isinstance(built, MASModel)
    if is_plain and getattr(method, "penalty", None) == "decoupled":
        raise kt.errors.FatalValueError(
            "Expected a `keras_mas.MASModel(…, penalty=hp.get('penalty'))`, or a "
            "`keras_mas.MultiHead(trunk)`, from `build` for the penalty 'decoupled', which acts in "
            f"their training step. Received: '{built.name}', a {type(built).__name__}. Return one "
            "of them, or leave out 'decoupled'."
        )


def _frozen(model, instead):
    """Return what becomes of the statistics of batch normalization; say it if a model has any."""
    moving = moving_batch_norms(model)
    if moving:
        warnings.warn(
            f"'{model.name}' has {len(moving)} BatchNormalization layers ('{moving[0].name}', …), "
            "whose moving mean and variance no penalty holds. In every trial they are frozen after "
            f"the first task. {instead}",
            BatchNormWarning,
            stacklevel=2,
        )
    return "freeze"


def _compile(hypermodel, hp, model):
    if not model.compiled:
        hypermodel.compile(hp, model)


def _logits(model):
    shape = model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 2 or (shape[-1] or 0) < 2:
        raise kt.errors.FatalValueError(
            "Expected a model with one output [N, classes] of two classes or more. Received: "
            f"'{model.name}' with outputs {shape}. Return a `keras_mas.MultiHead(trunk)` from "
            "`build` for a head for each task; give two classes two outputs, and a sparse "
            "cross-entropy as loss."
        )
    return shape[-1]


def _check_method(method, heads):
    """Refuse a method that cannot learn in the models that were built."""
    needs_data = method.trains_all_heads or method.learns_all_tasks
    own_models = type(method).model not in (Method.model, QuadraticMethod.model)
    if needs_data or (own_models and heads is None):
        name = type(method).__module__.rpartition(".")[2]
        cure = "Choose another method" if needs_data else "Return `keras_mas.MultiHead(trunk)`"
        raise kt.errors.FatalValueError(
            f"Expected a method that learns in the models of `build`. Received: '{name}', which "
            f"{'trains the heads of all tasks together' if needs_data else 'has its own'}. {cure}."
        )
