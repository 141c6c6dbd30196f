"""SynapticMemory: what is remembered of a model's weights, and how strongly they are held to it."""

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from .arrays import load_arrays, save_arrays
from .auto import (
    Pace,
    auto_strength,
    gradient_rms,
    largest_strength,
    mean_of,
    optimizer_steps,
    pull_rate,
    share_free,
    steps_of_fit,
)
from .binding import Binding, listed, moving_batch_norms, refuse_missing
from .choices import AUTO, BATCH_NORM, auto_text, kappa_of
from .finite import check_fit
from .importance import ImportanceSums, compute_importance
from .penalty import drift_penalty, penalty_gradient, proximal_step, warn_if_unstable
from .states import (
    SAVED_BY,
    Auto,
    WeightState,
    check_array,
    check_same,
    checked_anchor,
    checked_importance,
    checked_strength,
    from_arrays,
    to_arrays,
)
from .weights import (
    checked_layer,
    find_by_place,
    identities,
    trainable_weights,
    weight_names,
)

_log = logging.getLogger(__name__)

# From Ω, θ*, Ω_now and θ of one weight to the Ω and θ* that are remembered of it.
Merge = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def _add(importance, anchor, now, weight):
    return importance + now, weight


class BatchNormWarning(UserWarning):
    """A model has batch normalization, whose moving statistics no penalty holds."""


class SynapticMemory:
    """Ω, θ* and λ of a model's weights, and the penalty λ Σ Ω (θ − θ*)² that protects them.

    For any Keras model and its stock `train_step`:

        memory = SynapticMemory(strength=1.0)
        memory.protect(model)
        model.fit(a, ...)
        memory.consolidate(model, inputs_of_a)
        model.fit(b, ...)

    The penalty is part of `loss` and `val_loss`, as Keras's own regularizers are, and stands in the
    logs of `fit` as `penalty`. λ, Ω and θ* are variables outside the model: they are not exported
    with it, and changing them traces nothing again. `save` writes them, and in another process
    `SynapticMemory.load(path).protect(model)` recognizes the weights of a loaded or rebuilt model.

    Args:
        strength: λ ≥ 0, the weight of the penalty beside the loss. 0 is plain fine-tuning. "auto":
            λ is found when a `fit` begins, from the learning rate, the steps of the fit and Ω, and
            stands in its logs as `strength`:

                λ = κ t / (2 η S mean Ω)

            for t tasks and S steps. η is the learning rate, or the mean that a schedule has over
            the steps; with the penalty in the loss, it is divided by 1 − m under SGD with momentum
            m, and under Adam, Nadam and RMSprop by the root mean square that gradients had in the
            first task. κ is 30, or another number as in "auto:100". The steps are those of all
            epochs, also of those before `initial_epoch`, since a fit that is resumed is to go on
            with the same λ. So early stopping makes the hold weaker than intended, and a task
            learned in several fits is held by each of them. A rate that callbacks change counts as
            it is when the fit begins. When the task ends, a warning in the log says so.
            Where the penalty acts is said to a model, not to the memory: it is in the loss, but for
            a `MASModel` with `penalty="decoupled"`, which suits "auto" better:
            `MASModel(…, memory=memory, penalty="decoupled")`.

    Raises:
        ValueError: If `strength` is negative, not a finite number in float32, or another text.
    """

    def __init__(self, strength: float | str = 1.0):
        self._strength = keras.Variable(0.0, trainable=False, dtype="float32", name="strength")
        self._states: list[WeightState] = []
        self._binding = Binding(self._states, self._strength, self.before_fit)
        self._tasks = 0
        self._auto: Auto | None = None
        self._is_taken = False  # whether λ has been found for the task under way
        self._pace = Pace()
        self._fit: Any = None  # the last one that λ was found for
        self.strength = strength

    @property
    def strength(self) -> float:
        """λ as it is now. Setting it, to a number, acts in the next training step.

        Set to "auto", it is found when the next `fit` begins, whose steps are traced anew.
        """
        return float(self._strength.numpy())

    @strength.setter
    def strength(self, value: float | str) -> None:
        kappa = kappa_of(value)
        if kappa is None:
            self._strength.assign(checked_strength(value))  # type: ignore[arg-type]
        self._set_auto(None if kappa is None else Auto(kappa))

    @property
    def asked_strength(self) -> float | str:
        """λ as it was asked for: "auto", or a number."""
        return self.strength if self._auto is None else auto_text(self._auto.kappa)

    @property
    def tasks(self) -> int:
        """How many tasks have been consolidated."""
        return self._tasks

    @property
    def importance(self) -> dict[str, np.ndarray]:
        """Ω so far: dict from weight name to array."""
        return {state.name: state.importance.numpy() for state in self._states}

    @property
    def anchor(self) -> dict[str, np.ndarray]:
        """θ*, which the weights are held to: dict from weight name to array."""
        return {state.name: state.anchor.numpy() for state in self._states}

    def __reduce__(self):
        # A copy, or what was pickled, remembers the same and is bound to no model.
        return _restored, (self.state(),)

    def __repr__(self) -> str:
        values = sum(int(np.prod(state.anchor.shape)) for state in self._states)
        unbound = sum(state.weight is None for state in self._states)
        names = ", ".join(f"'{model.name}'" for model in self._binding.models())
        auto = "" if self._auto is None else f"{self.asked_strength!r}, now "
        parts = [
            f"strength={auto}{self.strength:g}",
            f"{self.tasks} task{'' if self.tasks == 1 else 's'}",
            f"{len(self._states)} weights ({values:,} values)",
            *([f"protects {names}"] if names else []),
            *([f"{unbound} weights in no model"] if unbound else []),
        ]
        return f"<SynapticMemory: {', '.join(parts)}>"

    def protect(
        self,
        model: keras.Layer,
        *,
        strict: bool = True,
        batch_norm: str | None = None,
    ) -> Self:
        """Hold every trainable weight of a model, in all models that it is in.

        Call it before or after `compile` and before or after the first `fit`: until the first
        `consolidate` Ω is 0, and so is the penalty. A regularizer that a weight already has stays
        active beside the penalty. Weights that are unfrozen later are protected from their next
        `fit` on.

        A loaded or released memory recognizes the weights by their place in the model's structure:
        after `load_model`, in a clone, in a model that was built again.

        Args:
            model: Built `keras.Model`; or a layer or inner model (a trunk) of the models that will
                be fitted: weights outside it (heads) stay free.
            strict: Whether every weight that a loaded memory remembers of a model must be
                recognized. False leaves those that are not unprotected.
            batch_norm: What becomes of the moving mean and variance of batch normalization layers
                in the model, which no penalty holds. `"freeze"`: once the first task has been
                consolidated these layers normalize with the statistics of that moment, in training
                too; their scale and offset go on learning. `"update"`: every task moves them, and
                old tasks are forgotten through them, unless a `MultiHead` keeps them per task. None
                stands for `"freeze"`, with a `BatchNormWarning` if there are such layers.

        Returns:
            The memory itself.

        Raises:
            ValueError: If the model is not built, has no trainable weights, is protected by another
                memory or is a copy of one that this memory protects; if none of the weights that a
                loaded memory remembers is recognized, or with `strict` not all of them. Then
                nothing is changed.
        """
        trainable = trainable_weights(model)
        self._binding.refuse_foreign(model)
        found = self._binding.recognize(model, strict)
        if not found:
            self._binding.refuse_copy(model)
        batch_norm = _checked_batch_norm(batch_norm, model)
        for state in self._binding.waiting():
            state.is_set_aside = not strict  # what is not recognized is not asked for again
        self._binding.protect(model, found, trainable.values(), batch_norm)
        if self._tasks:
            self._binding.freeze_batch_norms(model)
        return self

    def release(self, model: keras.Layer | None = None) -> None:
        """Let go of a model's weights: no penalty from the next step on; Ω and θ* are kept.

        The memory can then protect another copy of the model.

        Args:
            model: The model, or trunk, that `protect` was called with; None for everything.

        Raises:
            ValueError: If the memory protects no weight of the model.
        """
        bound = self._binding
        states = (
            bound.states_of(checked_layer(model)) if model is not None else [*bound.bound.values()]
        )
        if model is not None and not states:
            raise ValueError(
                f"This memory protects no weight of '{model.name}': nothing to release."
            )
        bound.release(states)

    def consolidate(self, model: keras.Model, inputs: Any, **options: Any) -> None:
        """Protect what the model knows now, too: Ω ← Ω + Ω_now, θ* ← θ.

        Args:
            model: The model that was just fitted; its output is the function to protect.
            inputs: Unlabelled inputs, as for `compute_importance`; or `ImportanceSums` of this
                model, measured elsewhere.
            **options: As for `compute_importance`: `batch_size`, `max_examples`, `output`, ….

        Raises:
            ValueError: If nothing of the model is protected, if sums are of another model, or as
                `compute_importance`; then the memory is left as it was.
        """
        self.check(checked_layer(model))
        self.remember(model, self._measured(model, inputs, options))

    def remember(
        self,
        model: keras.Model,
        importance: Mapping[str, np.ndarray],
        merge: Merge = _add,
        *,
        new_task: bool = True,
    ) -> None:
        """Protect what the model knows now by an importance that was computed elsewhere.

        Args:
            model: The model that was just fitted.
            importance: Ω_now by the names of the model's weights, as `compute_importance` returns
                it; 0 for a weight that it does not name.
            merge: Function from Ω, θ*, Ω_now and θ of one weight, arrays of one shape, to the new Ω
                and θ*; by default Ω + Ω_now and θ.
            new_task: Whether this is the importance of one more task, rather than of more inputs of
                those that have been consolidated.

        Raises:
            ValueError: If nothing of the model is protected, the importance names what is no weight
                of the model, or a new Ω or θ* is not of the weight's shape, not real or not finite
                in the dtype that holds it, or a new Ω is negative; then the memory is left as it
                was.
        """
        self.check(checked_layer(model))
        states = self._binding.states_of(model)
        self._warn_if_blind(states)
        names = weight_names(model)
        _refuse_unknown(importance, names.values(), model)
        updated = {}
        for state in states:
            before = state.importance.numpy(), state.anchor.numpy()
            weight = keras.ops.convert_to_numpy(state.weight).astype(before[1].dtype)
            now = np.asarray(importance.get(names[id(state.weight)], np.zeros_like(weight)))
            check_array(state, now)
            omega, anchor = merge(*before, now, weight)
            updated[state] = checked_importance(state, omega), checked_anchor(state, anchor)
        if _has_penalty_in_loss(model) and self._auto is None:
            self._warn_if_unstable(model, {s.name: new for s, (new, _) in updated.items()})
        if self._auto is not None and new_task:
            self._task_ended(self._auto, model, states)
        self._replace(updated)
        self._tasks += new_task
        self._binding.freeze_batch_norms(model)
        self._binding.watch_fits(model)
        _warn_if_zero(model, [omega for omega, _ in updated.values()])

    def check(self, model: keras.Model) -> None:
        """Check that this memory protects weights of a model, as every `fit` of it does first.

        Args:
            model: The model that is to be fitted.

        Raises:
            ValueError: If it protects none, or remembers weights that no model has been asked for.
        """
        self._binding.protect_unfrozen()
        self._binding.refuse_replaced()
        waiting = self._binding.waiting()
        if waiting:
            raise ValueError(
                f"This memory remembers {len(waiting)} weights that it protects in no model: "
                f"{listed(waiting)}. Call `memory.protect(model)` with the model that they "
                "belong to, or with `strict=False` to leave them unprotected."
            )
        if not self._binding.states_of(model):
            raise ValueError(
                f"This memory protects no weight of '{model.name}'. Call `memory.protect(model)`, "
                "or `memory.protect(trunk)` with the part that is to be protected, first."
            )

    def before_fit(self, model: keras.Model) -> None:
        """Check that the protection of a model acts, and warn if it is unstable.

        Every `fit` of a model that holds protected weights begins with it, and here takes its λ if
        that is to be found. The fit ends with a `FitDivergedError` if its loss or its weights
        become NaN or infinite.
        """
        self.check(model)
        check_fit(model)
        if self._auto is not None:
            self._take_for_fit(model)
        elif _has_penalty_in_loss(model):
            states = self._binding.states_of(model)
            importance = {state.name: state.importance.numpy() for state in states}
            self._warn_if_unstable(model, importance)

    def take_strength(self, model: keras.Model, batches: int | None) -> float:
        """Find λ for the next task, if `strength="auto"`; every `fit` does this when it begins.

        Around a training loop of your own, call it before the first step of every task.

        Args:
            model: The compiled model that is to be trained.
            batches: Over how many batches, those of all epochs; None if that is not known.

        Returns:
            λ; 0 if nothing is remembered.

        Raises:
            ValueError: If λ was given; if the number of batches or how strongly the optimizer
                follows the penalty is not known, though something is remembered.
        """
        if self._auto is None:
            raise ValueError(
                f"Expected a memory with strength='{AUTO}'. Received: one with λ = "
                f"{self.strength:g}, which was given. Set `memory.strength` instead."
            )
        states = self._binding.states_of(model)
        importance = [state.importance.numpy() for state in states]
        mean = mean_of(importance) if states else 0.0
        found = self._found(self._auto, model, batches, mean, importance) if mean else 0.0
        self._strength.assign(checked_strength(found))
        self._is_taken = True
        return self.strength

    def free_share(self) -> float | None:
        """Return the share of weights that are free to learn the next task, with "auto".

        Those whose time constant 1/(2 η λ Ω) is longer than the task: t κ Ω is below the mean Ω.
        That depends on κ, the number t of tasks and how unequal Ω is alone. In the loss λ stays
        below what the optimizer can follow, which is logged, and then more weights are free.

        Returns:
            A fraction; None if λ was given, or no weights are protected. 0 says that no Ω is as
            small as that, not that nothing can be learned: each weight is pulled back within the
            task, and moves as far as the task's loss outweighs that. If new tasks are learned too
            little, take a smaller κ, as in "auto:10", or a wider network.
        """
        importance = list(self.importance.values())
        if self._auto is None or not importance:
            return None
        return share_free(importance, self._auto.kappa * self._tasks)

    def state_for(self, weight: keras.Variable) -> WeightState | None:
        """Return what is remembered of a weight that is bound to this memory, or None."""
        return self._binding.bound.get(id(weight))

    def penalty(self, model: keras.Layer) -> tf.Tensor:
        """Return λ Σ Ω (θ − θ*)² over a model's trainable weights, a scalar tensor."""
        states = filter(None, map(self.state_for, model.trainable_weights))
        terms = [
            drift_penalty(state.weight, state.importance, state.anchor, self._strength)
            for state in states
        ]
        return tf.add_n([tf.cast(term, keras.config.floatx()) for term in terms or [0.0]])

    def penalty_gradient(self, weight: keras.Variable) -> tf.Tensor | None:
        """Return the gradient 2 λ Ω (θ − θ*) of a weight's penalty, or None if it is free."""
        state = self.state_for(weight)
        if state is None:
            return None
        return penalty_gradient(weight, state.importance, state.anchor, self._strength)

    def proximal_step(self, weight: keras.Variable, rate: tf.Tensor) -> tf.Tensor | None:
        """Return a weight after a proximal step at a learning rate, or None if it is free."""
        state = self.state_for(weight)
        if state is None:
            return None
        return proximal_step(weight, state.importance, state.anchor, self._strength, rate)

    def save(self, path: str | os.PathLike) -> None:
        """Write λ, Ω and θ* to one `.npz` file; a crash leaves the old file or the new one.

        Args:
            path: File to write, ending in `.npz`.

        Raises:
            ValueError: If the path does not end in `.npz`.
        """
        save_arrays(path, self.state())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read a memory that `save` or a method with a memory wrote; then `protect` its model.

        Args:
            path: File to read.

        Returns:
            A `SynapticMemory`.

        Raises:
            ValueError: If the file is not a saved memory.
            FileNotFoundError: If there is no such file.
        """
        memory = cls()

        def restore(arrays):
            memory.restore({key: array for key, array in arrays.items() if key != SAVED_BY})

        load_arrays(path, restore, "a memory written by `SynapticMemory.save`")
        return memory

    def state(self, model: keras.Layer | None = None) -> dict[str, np.ndarray]:
        """Return λ, Ω and θ* as a flat dict of arrays, for `restore`.

        Args:
            model: Only what is remembered of this model's weights, identified by their places in
                it; None for everything.
        """
        if model is None:
            states = [(state, state.identity, state.model) for state in self._states]
        else:
            known = [(self.state_for(weight), identity) for identity, weight in identities(model)]
            states = [(state, identity, 0) for state, identity in known if state is not None]
        return to_arrays(self._strength.numpy(), self._tasks, states, self._auto)

    def restore(self, arrays: Mapping[str, np.ndarray], model: keras.Layer | None = None) -> None:
        """Take over a `state`, in place: nothing is traced again.

        Args:
            arrays: Dict as `state` returns it.
            model: The model whose weights they are, which are protected then; None for weights that
                are protected already, or will be.

        Raises:
            ValueError: If arrays are missing, of other shapes than the weights they belong to, or
                not finite, or an importance is negative; or if the model has not all of the
                weights. Then nothing is changed.
        """
        strength, tasks, loaded, auto = from_arrays(arrays)
        found = {}
        if model is None:
            known = {(state.model, state.identity.place): state for state in self._states}
            same = [known.get((state.model, state.identity.place)) for state in loaded]
        else:
            self._binding.refuse_foreign(model)
            found = find_by_place([state.identity for state in loaded], model)
            refuse_missing(loaded, found, model)
            same = [self.state_for(found[k][1]) for k in range(len(loaded))]
        pairs = list(zip(loaded, same, strict=True))
        for new, old in pairs:
            if old is not None and model is None:
                check_same(new, old)
        if tasks < self._tasks:
            _log.warning("what is remembered goes back from %d tasks to %d", self._tasks, tasks)
        self._strength.assign(strength)
        self._tasks = tasks
        self._set_auto(auto)
        for state in set(self._states) - set(same):  # unknown to what is restored
            state.forget()
        for new, old in pairs:
            if old is None:
                self._states.append(new)
            else:
                old.replace(new.importance, new.anchor)
        if model is not None:
            self._binding.bind(
                model, {new: found[k] for k, (new, old) in enumerate(pairs) if old is None}
            )

    def forget(self) -> None:
        """Forget every task, and go on protecting the same weights: Ω ← 0, θ* ← θ.

        Nothing is traced again. Statistics of batch normalization that were frozen stay frozen.
        """
        for state in self._states:
            state.forget()
        self._tasks = 0
        self._is_taken, self._pace = False, Pace()

    def recognize(self, model: keras.Layer) -> None:
        """Protect the weights of a model that a loaded memory remembers, and no others.

        Args:
            model: Built `keras.Model`.

        Raises:
            ValueError: As `protect`.
        """
        self._binding.refuse_foreign(model)
        self._binding.bind(model, self._binding.recognize(model, strict=True))

    def _set_auto(self, auto):
        """Say how λ is found, or that it was given; λ stays as it is."""
        has_changed = (self._auto is None) != (auto is None)
        self._auto, self._is_taken, self._pace = auto, False, Pace()
        self._binding.metric.strength = None if auto is None else lambda: self._strength
        if has_changed:
            self._binding.trace_again()

    def _take_for_fit(self, model):
        fit, batches = steps_of_fit(model)
        if fit is not None and fit is not self._fit:  # or a step without `fit` after one
            self._fit = fit
            self.take_strength(model, batches)
        elif not self._is_taken and any(state.importance.numpy().any() for state in self._states):
            raise ValueError(
                f"Expected a `fit`, which says how many steps it has, for strength='{AUTO}'. "
                f"Received: another way to train '{model.name}'. Call "
                "`memory.take_strength(model, batches)` before the first step of a task."
            )

    def _found(self, auto: Auto, model, batches, mean, importance):
        """Return λ = κ t / (2 η S mean Ω), or the largest that the optimizer is sure to follow."""
        if batches is None:
            raise ValueError(
                f"Expected data of a known length for strength='{AUTO}', whose λ depends on how "
                f"many steps '{model.name}' is trained for. Received: data whose length is not "
                "known. Pass `steps_per_epoch` to `fit`, or give a number as strength."
            )
        optimizer, in_loss = model.optimizer, _has_penalty_in_loss(model)
        steps = optimizer_steps(optimizer, batches)
        rate = pull_rate(optimizer, steps, in_loss, auto.gradient_rms)
        found = auto_strength(auto.kappa, self._tasks, mean, rate, steps)
        self._pace.begin(optimizer, steps)
        if not in_loss:
            return found
        largest = largest_strength(optimizer, max(omega.max() for omega in importance))
        if found > largest:
            _log.warning(
                "λ is %.4g in place of %.4g for strength='%s': the optimizer may not follow more "
                "of a penalty in the loss, and earlier tasks are held that much less. Take a "
                '`MASModel` with penalty="decoupled".',
                largest,
                found,
                self.asked_strength,
            )
        return min(found, largest)

    def _task_ended(self, auto: Auto, model, states):
        """Note how large gradients were, and say so if weights moved before λ was found."""
        if not any(state.importance.numpy().any() for state in states):
            # Later ones are those of the penalty, too, and λ would grow with itself.
            weights = [state.weight for state in states]
            auto.gradient_rms = gradient_rms(getattr(model, "optimizer", None), weights)
        if not self._is_taken and any(state.has_moved() for state in states):
            _log.warning(
                "Weights that hold earlier tasks have changed, and λ was not found for the task "
                "that changed them: it was %g. In a training loop of your own, call "
                "`memory.take_strength(model, batches)` before the first step of a task.",
                self.strength,
            )
        elif otherwise := self._pace.otherwise():
            _log.warning(
                "The task was held more or less than strength='%s' says: %s.",
                self.asked_strength,
                otherwise,
            )
        self._is_taken, self._pace = False, Pace()

    def _replace(self, updated):
        """Replace Ω and θ* by their new values, for all states or for none."""
        before = [(state.importance.numpy(), state.anchor.numpy()) for state in updated]
        try:
            for state, new in updated.items():
                state.replace(*new)
        except BaseException:
            for state, old in zip(updated, before, strict=True):
                state.replace(*old)
            raise

    def _measured(self, model, inputs, options):
        """Return Ω_now by name of the model's trainable weights."""
        if not isinstance(inputs, ImportanceSums):
            return compute_importance(model, inputs, **options)
        if options:
            raise ValueError(
                f"`consolidate` takes no options beside sums, which were measured with their own. "
                f"Received: {', '.join(options)}. Pass them to `measure_sums`."
            )
        importance = inputs.mean()
        for name, weight in trainable_weights(model).items():
            if self.state_for(weight) is not None and name not in importance:
                raise ValueError(
                    f"Expected sums over the weights of '{model.name}'. Received: none for "
                    f"'{name}'. Measure the sums with this model, its weights as they are now."
                )
            if name in importance and importance[name].shape != tuple(weight.shape):
                raise ValueError(
                    f"Expected sums of shape {tuple(weight.shape)} for the weight '{name}' of "
                    f"'{model.name}'. Received: shape {importance[name].shape}. Measure the sums "
                    "with this model."
                )
        return importance

    def _warn_if_blind(self, states):
        """Warn if weights have moved though their penalty was never evaluated."""
        moved = [
            state.name
            for state in states
            if not getattr(state.weight.constraint, "was_evaluated", True) and state.has_moved()
        ]
        if moved:
            # Not a warning of Python's: weights may have been set by hand.
            _log.warning(
                "%d protected weights ('%s', …) have changed, and their penalty was never computed "
                "meanwhile. If a `tf.function` of your own trains them, it was traced before "
                "`protect`: make it anew.",
                len(moved),
                moved[0],
            )

    def _warn_if_unstable(self, model, importance):
        if getattr(model, "optimizer", None) is not None:
            warn_if_unstable(importance, self.strength, model.optimizer)


def _restored(arrays):
    memory = SynapticMemory()
    memory.restore(arrays)
    return memory


def _refuse_unknown(importance, names, model):
    unknown = sorted(set(importance) - set(names))
    if unknown:
        raise ValueError(
            f"Expected importance by the names of the weights of '{model.name}', as "
            f"`compute_importance` gives it. Received: {len(unknown)} that it does not have, such "
            f"as '{unknown[0]}'. Compute the importance of this model, or take the names from "
            "`keras_mas.weights.weight_names`."
        )


def _warn_if_zero(model, importance):
    if not any(omega.any() for omega in importance):
        _log.warning(
            "The importance of every protected weight of '%s' is 0: nothing holds what it has "
            "learned. Look whether its outputs depend on these weights for the given inputs.",
            model.name,
        )


def _has_penalty_in_loss(model):
    """Return whether gradients carry the penalty; a `MASModel` may apply it by proximal steps."""
    return getattr(model, "penalty", "in_loss") == "in_loss"


def _checked_batch_norm(choice, model):
    if choice not in (None, *BATCH_NORM):
        raise ValueError(
            f"Expected batch_norm to be one of {', '.join(map(repr, BATCH_NORM))}. Received: "
            f"{choice!r}."
        )
    moving = moving_batch_norms(model)
    if choice is None and moving:
        warnings.warn(
            f"'{model.name}' has {len(moving)} BatchNormalization layers ('{moving[0].name}', …). "
            "No penalty holds their moving mean and variance, through which old tasks are "
            'forgotten. These will be frozen after the first task: pass batch_norm="freeze" to say '
            'so, or batch_norm="update" to let every task move them, for example where a '
            "`MultiHead` keeps them per task.",
            BatchNormWarning,
            stacklevel=3,
        )
    return choice or "freeze"
