"""SynapticMemory: what is remembered of a model's weights, and how strongly they are held to it."""

import dataclasses
import json
import numbers
import os
import warnings
import weakref
from collections.abc import Mapping
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from .arrays import load_arrays, save_arrays
from .binding import (
    PenaltyMetric,
    before_fit,
    bind_weight,
    freeze,
    models_with,
    moving_batch_norms,
    no_longer_before_fit,
    report_penalty,
    trace_again,
    unbind_weight,
    unreport_penalty,
)
from .importance import ImportanceSums, compute_importance
from .options import BATCH_NORM
from .penalty import drift_penalty, proximal_step, warn_if_unstable
from .regularizer import MASRegularizer
from .weights import WeightIdentity, find_weights, identities, trainable_weights, weight_names

# The keys of a saved memory. Those of arrays end with the name of the weight.
_STRENGTH, _TASKS, _WEIGHTS = "strength", "tasks", "weights"
_IMPORTANCE, _ANCHOR = "importance/", "anchor/"

# How many weights an error lists.
_LISTED = 5


class BatchNormWarning(UserWarning):
    """A model has batch normalization, whose moving statistics no penalty holds."""


@dataclasses.dataclass(eq=False)
class WeightState:
    """What is remembered of one weight.

    Attributes:
        name: Name of the weight, `variable.path` unless two weights have the same.
        identity: By which it is recognized in another model.
        model: Number of the protected model that the identity belongs to.
        importance: Ω, variable of the weight's shape.
        anchor: θ*, variable of the same shape.
        term: The weight's part of the penalty in the last step, a scalar; None before it is bound.
        weight: θ, the weight itself; None if it is not bound to a model.
        is_set_aside: Whether it is on purpose that it is not bound.
    """

    name: str
    identity: WeightIdentity
    model: int
    importance: keras.Variable
    anchor: keras.Variable
    term: keras.Variable | None = None
    weight: keras.Variable | None = None
    is_set_aside: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        identity: WeightIdentity,
        model: int,
        importance: np.ndarray,
        anchor: np.ndarray,
    ) -> Self:
        """Return the state for given Ω and θ*, arrays of the same shape."""
        dtype = "float64" if anchor.dtype == "float64" else "float32"
        return cls(
            name,
            identity,
            model,
            keras.Variable(importance, trainable=False, dtype=dtype, name="importance"),
            keras.Variable(anchor, trainable=False, dtype=dtype, name="anchor"),
        )


@dataclasses.dataclass(frozen=True)
class _Protected:
    """A model that `protect` was called with."""

    model: weakref.ref
    batch_norm: str


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
        strength: λ ≥ 0, the weight of the penalty beside the loss. 0 is plain fine-tuning.

    Raises:
        ValueError: If `strength` is negative, or not a finite number in float32.
    """

    def __init__(self, strength: float = 1.0):
        self._strength = keras.Variable(
            _checked_strength(strength), trainable=False, dtype="float32", name="strength"
        )
        self._states: list[WeightState] = []
        self._bound: dict[int, WeightState] = {}  # by `id` of the weight
        self._protected: dict[int, _Protected] = {}  # by number
        self._metric = PenaltyMetric(on_new_trace=self._meet_models)
        self._tasks = 0

    @property
    def strength(self) -> float:
        """λ. Setting it acts in the next training step."""
        return float(self._strength.numpy())

    @strength.setter
    def strength(self, value: float) -> None:
        self._strength.assign(_checked_strength(value))

    @property
    def tasks(self) -> int:
        """How many tasks have been consolidated."""
        return self._tasks

    @property
    def importance(self) -> dict[str, np.ndarray]:
        """Ω so far, summed over tasks: dict from weight name to array."""
        return {state.name: state.importance.numpy() for state in self._states}

    @property
    def anchor(self) -> dict[str, np.ndarray]:
        """θ*, the weights when the last task ended: dict from weight name to array."""
        return {state.name: state.anchor.numpy() for state in self._states}

    def __repr__(self) -> str:
        models = [kept.model() for kept in self._protected.values()]
        of = ", ".join(f"'{model.name}'" for model in models if model is not None)
        values = sum(int(np.prod(state.anchor.shape)) for state in self._states)
        parts = [
            f"strength={self.strength:g}",
            f"{self.tasks} task{'' if self.tasks == 1 else 's'}",
            f"{len(self._states)} weights ({values:,} values)",
        ]
        parts += [f"protects {of}"] if of else []
        if len(self._bound) < len(self._states):
            parts.append(f"{len(self._states) - len(self._bound)} weights in no model")
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
                in the model, which no penalty holds. `"freeze"`: when the first task has been
                consolidated these layers are frozen, and go on with the statistics of that moment.
                `"update"`: every task moves them, and old tasks are forgotten through them, unless
                a `MultiHead` keeps them per task. None stands for `"freeze"`, with a
                `BatchNormWarning` if there are such layers.

        Returns:
            The memory itself.

        Raises:
            ValueError: If the model is not built, has no trainable weights, is protected by another
                memory or is a copy of one that this memory protects; if none of the weights that a
                loaded memory remembers is recognized, or with `strict` not all of them. Then
                nothing is changed.
        """
        trainable = trainable_weights(model)
        self._refuse_foreign(model)
        found = self._recognize(model, strict)
        self._refuse_copy(model, found)
        moving = moving_batch_norms(model)
        batch_norm = _checked_batch_norm(batch_norm, model, moving)
        for state in self._states:
            # With `strict=False` what is not recognized is not asked for again.
            state.is_set_aside |= state.weight is None and not strict
        number = self._number_of(model, found)
        self._protected[number] = _Protected(weakref.ref(model), batch_norm)
        self._bind(model, number, found)
        self._add(model, number, trainable.values())
        if self._tasks:
            self._freeze_batch_norms(model)
        return self

    def release(self, model: keras.Layer | None = None) -> None:
        """Let go of a model's weights: no penalty from the next step on; Ω and θ* are kept.

        The memory can then protect another copy of the model.

        Args:
            model: The model, or trunk, that `protect` was called with; None for everything.
        """
        states = self._states_of(model) if model is not None else list(self._bound.values())
        weights = [state.weight for state in states]
        models = models_with(weights)
        for state in states:
            unbind_weight(state.weight)
            del self._bound[id(state.weight)]
            state.weight, state.is_set_aside = None, True
        self._protected = {
            number: kept
            for number, kept in self._protected.items()
            if any(state.model == number for state in self._bound.values())
        }
        for holder in models:
            trace_again(holder)
            if not self._states_of(holder):
                unreport_penalty(holder, self._metric)
                no_longer_before_fit(holder)

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
        self.check(model)
        states = self._states_of(model)
        names = weight_names(model)
        measured = self._measured(model, inputs, options)
        updated = []
        for state in states:
            importance = state.importance.numpy()
            now = measured.get(names[id(state.weight)], 0.0)  # frozen since: nothing to add
            updated.append((state, importance, importance + now))
            if not np.all(np.isfinite(updated[-1][-1])):
                raise ValueError(
                    f"The importance of '{state.name}' is too large for {state.importance.dtype}: "
                    "the sum over tasks is infinite. Scale the outputs or the loss of the model."
                )
        if _has_penalty_in_loss(model):
            importance = {state.name: new for state, _, new in updated}
            self._warn_if_unstable(model, importance)
        self._replace(updated)
        self._tasks += 1
        self._freeze_batch_norms(model)
        self._meet_models()

    def check(self, model: keras.Model) -> None:
        """Check that this memory protects weights of a model, as every `fit` of it does first.

        Args:
            model: The model that is to be fitted.

        Raises:
            ValueError: If it protects none, or remembers weights that no model has been asked for.
        """
        self._protect_unfrozen()
        waiting = [s for s in self._states if s.weight is None and not s.is_set_aside]
        if waiting:
            raise ValueError(
                f"This memory remembers {len(waiting)} weights that it protects in no model: "
                f"{_listed(waiting)}. Call `memory.protect(model)` with the model that they "
                "belong to, or with `strict=False` to leave them unprotected."
            )
        if not self._states_of(model):
            raise ValueError(
                f"This memory protects no weight of '{model.name}'. Call `memory.protect(model)`, "
                "or `memory.protect(trunk)` with the part that is to be protected, first."
            )

    def before_fit(self, model: keras.Model) -> None:
        """Check that the protection of a model acts, and warn if it is unstable.

        Every `fit` of a model that holds protected weights begins with it.
        """
        self.check(model)
        if _has_penalty_in_loss(model):
            self._warn_if_unstable(
                model, {state.name: state.importance.numpy() for state in self._states_of(model)}
            )

    def state_for(self, weight: keras.Variable) -> WeightState | None:
        """Return what is remembered of a weight that is bound to this memory, or None."""
        return self._bound.get(id(weight))

    def penalty(self, model: keras.Layer) -> tf.Tensor:
        """Return λ Σ Ω (θ − θ*)² over a model's trainable weights, a scalar tensor."""
        states = filter(None, map(self.state_for, model.trainable_weights))
        terms = [
            drift_penalty(state.weight, state.importance, state.anchor, self._strength)
            for state in states
        ]
        return tf.add_n([tf.cast(term, keras.config.floatx()) for term in terms or [0.0]])

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
        """Read a memory that `save` wrote; then `protect` the model that has the weights.

        Args:
            path: File to read.

        Returns:
            A `SynapticMemory`.

        Raises:
            ValueError: If the file is not a saved memory.
            FileNotFoundError: If there is no such file.
        """
        memory = cls()
        load_arrays(path, memory.restore, "a memory written by `SynapticMemory.save`")
        return memory

    def state(self, model: keras.Layer | None = None) -> dict[str, np.ndarray]:
        """Return λ, Ω and θ* as a flat dict of arrays, for `restore`.

        Args:
            model: Only what is remembered of this model's weights, identified by their places in
                it; None for everything.
        """
        if model is None:
            described = [(state, state.identity, state.model) for state in self._states]
        else:
            described = [
                (self._bound[id(weight)], identity, 0)
                for identity, weight in identities(model)
                if id(weight) in self._bound
            ]
        weights = [
            {"name": state.name, "model": number, **dataclasses.asdict(identity)}
            for state, identity, number in described
        ]
        arrays = {
            _STRENGTH: self._strength.numpy(),
            _TASKS: np.array(self._tasks),
            _WEIGHTS: np.frombuffer(json.dumps(weights).encode(), "uint8"),
        }
        for state, _, _ in described:
            arrays[_IMPORTANCE + state.name] = state.importance.numpy()
            arrays[_ANCHOR + state.name] = state.anchor.numpy()
        return arrays

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
        strength, tasks, loaded = _parsed(arrays)
        if model is None:
            known = {(state.model, state.identity.place): state for state in self._states}
            same = [known.get((state.model, state.identity.place)) for state in loaded]
        else:
            self._refuse_foreign(model)
            found = find_weights([state.identity for state in loaded], model)
            _refuse_missing(loaded, found, model)
            same = [self.state_for(found[k][1]) for k in range(len(loaded))]
        for new, old in zip(loaded, same, strict=True):
            if old is not None:
                _check_shape(new, old)
        self.strength, self._tasks = strength, tasks
        for new, old in zip(loaded, same, strict=True):
            if old is None:
                self._states.append(new)
            else:
                old.importance.assign(new.importance)
                old.anchor.assign(new.anchor)
        if model is not None:
            number = self._number_of(model, loaded)
            unknown = {loaded[k]: found[k] for k, old in enumerate(same) if old is None}
            self._bind(model, number, unknown)

    def recognize(self, model: keras.Layer) -> None:
        """Protect the weights of a model that a loaded memory remembers, and no others.

        Args:
            model: Built `keras.Model`.

        Raises:
            ValueError: As `protect`.
        """
        self._refuse_foreign(model)
        found = self._recognize(model, strict=True)
        self._bind(model, self._number_of(model, found), found)

    def _states_of(self, model):
        return [self._bound[id(w)] for w in model.weights if id(w) in self._bound]

    def _number_of(self, model, found=()):
        """Return the number of a protected model, or a new one: its own, if all of it was found."""
        for number, kept in self._protected.items():
            if kept.model() is model:
                return number
        taken = {state.model for state in self._states if state not in found}
        taken |= set(self._protected)
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def _recognize(self, model, strict):
        """Return by state, of those in no model, its identity in a model and its weight."""
        unbound: dict[int, list[WeightState]] = {}
        for state in self._states:
            if state.weight is None:
                unbound.setdefault(state.model, []).append(state)
        names = [state.identity.names for state in self._states]
        found, taken = {}, set(self._bound)
        for states in unbound.values():
            there = find_weights([state.identity for state in states], model, names)
            there = {k: place for k, place in there.items() if id(place[1]) not in taken}
            if there and strict:
                _refuse_missing(states, there, model)
            taken |= {id(weight) for _, weight in there.values()}
            found |= {states[k]: place for k, place in there.items()}
        if unbound and not found and not self._states_of(model):
            _refuse_missing([state for states in unbound.values() for state in states], {}, model)
        return found

    def _refuse_foreign(self, model):
        for weight in model.weights:
            if isinstance(weight.regularizer, MASRegularizer) and id(weight) not in self._bound:
                raise ValueError(
                    f"The weight '{weight.path}' of '{model.name}' is protected by another "
                    "`SynapticMemory` (a `MASModel` has its own). Use that one, or call its "
                    "`release(model)` first."
                )

    def _refuse_copy(self, model, found):
        """Refuse a copy of a protected model, which would begin with Ω = 0 though it looks held."""
        if found or not self._tasks or self._states_of(model):
            return
        for number in self._protected:
            states = [state for state in self._bound.values() if state.model == number]
            if len(find_weights([state.identity for state in states], model)) == len(states):
                raise ValueError(
                    f"'{model.name}' looks like a copy of a model that this memory protects, and "
                    "shares no weight with it. Call `memory.release()` first to protect the "
                    "copy in its place, or use a memory of its own for it."
                )

    def _bind(self, model, number, found):
        """Bind states to the weights in which they were recognized."""
        names = weight_names(model)
        for state, (identity, weight) in found.items():
            state.identity, state.model = identity, number
            self._hold(state, weight, names[id(weight)])
        self._announce(model, [weight for _, weight in found.values()])

    def _add(self, model, number, weights):
        """Remember weights of which nothing is known yet: Ω = 0, θ* = θ."""
        new = {id(weight): weight for weight in weights if id(weight) not in self._bound}
        names = weight_names(model)
        for identity, weight in identities(model):
            if id(weight) in new:
                anchor = weight.numpy()
                state = WeightState.of("", identity, number, np.zeros_like(anchor), anchor)
                self._states.append(state)
                self._hold(state, weight, names[id(weight)])
        self._announce(model, new.values())

    def _hold(self, state, weight, name):
        others = {other.name for other in self._states if other is not state}
        numbered = (f"{name}-{k}" if k else name for k in range(len(others) + 1))
        state.name = next(name for name in numbered if name not in others)
        state.weight, state.is_set_aside = weight, False
        state.term = state.term or self._metric.add_term()
        self._bound[id(weight)] = state
        bind_weight(weight, state, self._strength, self._metric)

    def _announce(self, model, weights):
        """Have every model that holds newly bound weights trace its steps with the penalty."""
        weights = list(weights)
        if not weights:
            return
        report_penalty(model, weights[0], self._metric)
        for holder in models_with(weights):
            trace_again(holder)
        self._meet_models()

    def _meet_models(self):
        """Have `before_fit` called for every model that holds protected weights."""
        for model in models_with(state.weight for state in self._bound.values()):
            if getattr(model, "memory", None) is not self:  # a `MASModel` calls it by itself
                before_fit(model, self.before_fit)

    def _protect_unfrozen(self):
        for number, kept in list(self._protected.items()):
            model = kept.model()
            if model is not None:
                self._add(model, number, model.trainable_weights)

    def _freeze_batch_norms(self, model):
        """Freeze what was to be frozen after the first task, in the protected parts of a model."""
        there = set(map(id, model._flatten_layers()))
        for kept in self._protected.values():
            part = kept.model()
            if part is not None and kept.batch_norm == "freeze":
                layers = [layer for layer in moving_batch_norms(part) if id(layer) in there]
                if layers:
                    freeze(layers, models_with(w for layer in layers for w in layer.weights))

    def _replace(self, updated):
        """Replace Ω by its new values and θ* by θ, for all states or for none."""
        anchors = [state.anchor.numpy() for state, _, _ in updated]
        try:
            for state, _, new in updated:
                state.importance.assign(new)
                state.anchor.assign(state.weight.value)
        except BaseException:
            for (state, old, _), anchor in zip(updated, anchors, strict=True):
                state.importance.assign(old)
                state.anchor.assign(anchor)
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
            if id(weight) in self._bound and name not in importance:
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

    def _warn_if_unstable(self, model, importance):
        if getattr(model, "optimizer", None) is not None:
            warn_if_unstable(importance, self.strength, model.optimizer)


def _has_penalty_in_loss(model):
    """Return whether gradients carry the penalty; a `MASModel` may apply it by proximal steps."""
    return getattr(model, "penalty", "in_loss") == "in_loss"


def _checked_strength(value):
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with np.errstate(over="ignore"):
            held = np.float32(value)
        if np.isfinite(held) and held >= 0 and (held > 0 or value == 0):
            return value
    raise ValueError(
        f"Expected a strength λ ≥ 0 that float32 can hold. Received: {value!r}. 0 is plain "
        "fine-tuning."
    )


def _checked_batch_norm(choice, model, moving):
    if choice not in (None, *BATCH_NORM):
        raise ValueError(
            f"Expected batch_norm to be one of {', '.join(map(repr, BATCH_NORM))}. Received: "
            f"{choice!r}."
        )
    if choice is None and moving:
        warnings.warn(
            f"'{model.name}' has {len(moving)} BatchNormalization layers ('{moving[0].name}', …). "
            "No penalty holds their moving mean and variance, through which old tasks are "
            'forgotten. They will be frozen after the first task: pass batch_norm="freeze" to say '
            'so, or batch_norm="update" to let every task move them, for example where a '
            "`MultiHead` keeps them per task.",
            BatchNormWarning,
            stacklevel=3,
        )
    return choice or "freeze"


def _refuse_missing(states, found, model):
    """Raise if not all states were found in a model."""
    missing = [state for k, state in enumerate(states) if k not in found]
    missing = [state for state in missing if not (found and state.is_set_aside)]
    if not missing:
        return
    there = [str(identity) for identity, _ in identities(model)]
    raise ValueError(
        f"'{model.name}' does not have {'any' if not found else len(missing)} of the {len(states)} "
        f"remembered weights{'' if not found else ' in their places'}: {_listed(missing)}. It has "
        f"{', '.join(there[:_LISTED])}{', …' if len(there) > _LISTED else ''}. Protect a model "
        "with the same layers in the same order"
        f"{', or pass `strict=False` to protect only what was recognized' if found else ''}."
    )


def _listed(states):
    shown = [f"{state.identity} at {state.identity.place}" for state in states[:_LISTED]]
    return ", ".join(shown) + (", …" if len(states) > _LISTED else "")


def _check_shape(new, old):
    if tuple(new.importance.shape) != tuple(old.importance.shape):
        raise ValueError(
            f"Expected a memory of shape {tuple(old.importance.shape)} for the weight "
            f"'{old.name}'. Received: shape {tuple(new.importance.shape)}. The memory was made "
            "with another architecture; build the model with the same layers."
        )


def _parsed(arrays) -> tuple[float, int, list[WeightState]]:
    """Check a `state` and return λ, the number of tasks and the states of the weights."""
    missing = {_STRENGTH, _TASKS, _WEIGHTS} - set(arrays)
    if missing:
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    weights = json.loads(np.asarray(arrays[_WEIGHTS]).tobytes().decode())
    states = [_parsed_state(arrays, dict(weight)) for weight in weights]
    tasks = int(arrays[_TASKS])
    if tasks < 0:
        raise ValueError(f"it counts {tasks} tasks")
    return _checked_strength(float(arrays[_STRENGTH])), tasks, states


def _parsed_state(arrays, weight):
    name, number = weight.pop("name"), weight.pop("model")
    identity = WeightIdentity(**{**weight, "shape": tuple(weight["shape"])})
    for kind in (_IMPORTANCE, _ANCHOR):
        if kind + name not in arrays:
            raise ValueError(f"it has no '{kind}{name}'")
        if arrays[kind + name].shape != identity.shape:
            raise ValueError(
                f"Expected shape {identity.shape} for '{kind}{name}'. Received: shape "
                f"{arrays[kind + name].shape}. The file is damaged; take an older one."
            )
    importance, anchor = arrays[_IMPORTANCE + name], arrays[_ANCHOR + name]
    if not np.all(np.isfinite(anchor) & np.isfinite(importance) & (importance >= 0)):
        raise ValueError(
            f"Expected finite anchors, and finite importance ≥ 0. Received: others for '{name}'. "
            "The file is damaged; take an older one."
        )
    return WeightState.of(name, identity, number, importance, anchor)
