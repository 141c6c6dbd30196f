"""How the weights of models are bound to what is remembered of them.

A bound weight has three things of ours: a `MASRegularizer`, which brings the penalty into
`model.losses`; an `UpdateCheck`, which refuses a training step that leaves the penalty out; and a
term of a `PenaltyMetric`, which reports the penalty in the logs of `fit`.
"""

import dataclasses
import functools
import gc
import weakref
from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf

from .regularizer import MASRegularizer
from .states import WeightState
from .training_step import PenaltyMetric, UpdateCheck
from .weights import WeightIdentity, find_weights, identities, is_copy, weight_names

# By state that was recognized in a model, the identity there and the weight.
Found = dict[WeightState, tuple[WeightIdentity, keras.Variable]]

# How many weights an error lists.
_LISTED = 5


@dataclasses.dataclass(frozen=True)
class _Protected:
    """A model that `protect` was called with."""

    model: keras.Layer
    batch_norm: str


class Binding:
    """Which weights of which models are bound to the states of a memory.

    Args:
        states: The states of the memory, bound or not; new ones are added to it.
        strength: λ, `keras.Variable`.
        before_fit: Called with a model that holds bound weights whenever a `fit` of it begins.
    """

    def __init__(
        self,
        states: list[WeightState],
        strength: keras.Variable,
        before_fit: Callable[[keras.Model], None],
    ):
        self.states = states
        self.strength = strength
        self.before_fit = before_fit
        self.bound: dict[int, WeightState] = {}  # by `id` of the weight
        self.protected: dict[int, _Protected] = {}  # by number
        self.watched: weakref.WeakSet[keras.Model] = weakref.WeakSet()
        self.metric = PenaltyMetric(on_new_trace=self._watch_all_fits)

    def trace_again(self) -> None:
        """Have every model that holds bound weights trace its steps anew."""
        for model in models_with(state.weight for state in self.bound.values()):
            trace_again(model)

    def states_of(self, model: keras.Layer) -> list[WeightState]:
        """Return the states that are bound to weights of a model, in the model's order."""
        return [self.bound[id(w)] for w in model.weights if id(w) in self.bound]

    def models(self) -> list[keras.Layer]:
        """Return the protected models."""
        return [kept.model for kept in self.protected.values()]

    def refuse_replaced(self) -> None:
        """Refuse to go on if a protected model no longer computes with a bound weight."""
        for number, kept in self.protected.items():
            there = {id(weight) for weight in kept.model.weights}
            for state in self.states_of_number(number):
                if id(state.weight) not in there:
                    raise ValueError(
                        f"The protected weight '{state.name}' is no longer part of "
                        f"'{kept.model.name}', which may have been quantized. Nothing protects "
                        "what took its place: protect the model as it is now with a new memory."
                    )
            for layer in kept.model._flatten_layers():
                frozen = [weight for weight in layer.weights if not weight.trainable]
                held = [weight for weight in frozen if id(weight) in self.bound]
                if getattr(layer, "lora_enabled", False) and held:
                    raise ValueError(
                        f"The layer '{layer.name}' has LoRA, which changes its protected weight "
                        f"'{held[0].path}' without the penalty. Enable LoRA before `protect`, "
                        "which then protects the adapter."
                    )

    def states_of_number(self, number: int) -> list[WeightState]:
        """Return the bound states that were protected with a model of this number."""
        return [state for state in self.bound.values() if state.model == number]

    def waiting(self) -> list[WeightState]:
        """Return the states that are bound to no weight, though nobody asked for that."""
        return [
            state
            for state in self.states
            if state.weight is None and not (state.is_set_aside or state.is_released)
        ]

    def protect(
        self, model: keras.Layer, found: Found, weights: Iterable[keras.Variable], batch_norm: str
    ) -> None:
        """Bind what was recognized in a model, and new states to other weights of it."""
        number = self._number_of(model, found)
        self.protected[number] = _Protected(model, batch_norm)
        self._bind(model, number, found)
        self._add(model, number, weights)

    def bind(self, model: keras.Layer, found: Found) -> None:
        """Bind what was recognized in a model, and no other weights of it."""
        self._bind(model, self._number_of(model, found), found)

    def protect_unfrozen(self) -> None:
        """Bind new states to weights that have become trainable in the protected models."""
        for number, kept in list(self.protected.items()):
            self._add(kept.model, number, kept.model.trainable_weights)

    def release(self, states: Iterable[WeightState]) -> None:
        """Take states off their weights."""
        states = list(states)
        models = models_with(state.weight for state in states)
        for state in states:
            unbind_weight(state.weight)
            del self.bound[id(state.weight)]
            state.weight, state.is_released = None, True
        in_use = {state.model for state in self.bound.values()}
        for number in set(self.protected) - in_use:
            for layer in self.protected.pop(number).model._flatten_layers():
                if has_frozen_statistics(layer):
                    unfreeze_statistics(layer)
        for model in models:
            trace_again(model)
            if not self.states_of(model):
                unreport_penalty(model, self.metric)

    def recognize(self, model: keras.Layer, strict: bool) -> Found:
        """Return the states, of those that are bound to no weight, that a model has weights for.

        Raises:
            ValueError: If there are such states, and the model has a weight for none of them nor
                any bound weight; or, with `strict`, for some weights of a model but not for all.
        """
        unbound: dict[int, list[WeightState]] = {}
        for state in self.states:
            if state.weight is None:
                unbound.setdefault(state.model, []).append(state)
        names = [state.identity.names for state in self.states]
        found: Found = {}
        taken = set(self.bound)
        for states in unbound.values():
            wanted = [state.identity for state in states]
            there = find_weights(wanted, model, names, functools.partial(_is_at_anchor, states))
            there = {k: place for k, place in there.items() if id(place[1]) not in taken}
            if there and strict:
                refuse_missing(states, there, model)
            taken |= {id(weight) for _, weight in there.values()}
            found |= {states[k]: place for k, place in there.items()}
        if unbound and not found and not self.states_of(model):
            refuse_missing([state for states in unbound.values() for state in states], {}, model)
        return found

    def refuse_foreign(self, model: keras.Layer) -> None:
        """Refuse a model with a weight that another memory protects."""
        for weight in model.weights:
            if isinstance(weight.regularizer, MASRegularizer) and id(weight) not in self.bound:
                raise ValueError(
                    f"The weight '{weight.path}' of '{model.name}' is protected by another "
                    "`SynapticMemory` (a `MASModel` has its own). Use that one, or call its "
                    "`release(model)` first."
                )

    def refuse_copy(self, model: keras.Layer) -> None:
        """Refuse a copy of a protected model, which would begin with Ω = 0 though it looks held."""
        if self.states_of(model):
            return
        for number in self.protected:
            states = self.states_of_number(number)
            if states and is_copy([state.identity for state in states], model):
                raise ValueError(
                    f"'{model.name}' looks like a copy of a model that this memory protects, and "
                    "shares no weight with it. Call `memory.release()` first to protect the "
                    "copy in its place, or use a memory of its own for it."
                )

    def watch_fits(self, model: keras.Model) -> None:
        """Have `before_fit` called whenever a `fit` of a model begins; a `MASModel` calls it."""
        if model not in self.watched and not hasattr(model, "shares_memory"):
            self.watched.add(model)
            call_before_fit(model, self._fit_begins)

    def _watch_all_fits(self):
        """Find the models that were not known, one of which may be taking its first step."""
        for model in models_with(state.weight for state in self.bound.values()):
            if model not in self.watched and not hasattr(model, "shares_memory"):
                self.watch_fits(model)
                with tf.init_scope():  # outside the trace
                    self._fit_begins(model)

    def _fit_begins(self, model):
        if self.states_of(model):
            self.before_fit(model)

    def freeze_batch_norms(self, model: keras.Layer) -> None:
        """Freeze what was to be frozen after the first task, in the protected parts of a model."""
        there = set(map(id, model._flatten_layers()))
        for kept in self.protected.values():
            if kept.batch_norm == "freeze":
                layers = [layer for layer in moving_batch_norms(kept.model) if id(layer) in there]
                for layer in layers:
                    freeze_statistics(layer)
                if layers:
                    for holder in models_with(w for layer in layers for w in layer.weights):
                        trace_again(holder)

    def _number_of(self, model, found=()):
        """Return the number of a protected model, or a new one: its own, if all of it was found."""
        for number, kept in self.protected.items():
            if kept.model is model:
                return number
        taken = {state.model for state in self.states if state not in found}
        taken |= set(self.protected)
        return next(number for number in range(len(taken) + 1) if number not in taken)

    def _bind(self, model, number, found):
        """Bind states to the weights in which they were recognized."""
        names = weight_names(model)
        for state, (identity, weight) in found.items():
            state.identity, state.model = identity, number
            self._hold(state, weight, names[id(weight)])
        self._announce(model, [weight for _, weight in found.values()])

    def _add(self, model, number, weights):
        """Remember weights of which nothing is known yet: Ω = 0, θ* = θ."""
        new = {id(weight): weight for weight in weights if id(weight) not in self.bound}
        if not new:
            return
        names = weight_names(model)
        for identity, weight in identities(model):
            if id(weight) in new:
                anchor = weight.numpy()
                state = WeightState.of("", identity, number, np.zeros_like(anchor), anchor)
                self.states.append(state)
                self._hold(state, weight, names[id(weight)])
        self._announce(model, new.values())

    def _hold(self, state, weight, name):
        others = {other.name for other in self.states if other is not state}
        numbered = (f"{name}-{k}" if k else name for k in range(len(others) + 1))
        state.name = next(name for name in numbered if name not in others)
        state.weight = weight
        state.is_set_aside = state.is_released = False
        self.bound[id(weight)] = state
        bind_weight(weight, state, self.strength, self.metric)

    def _announce(self, model, weights):
        """Have every model that holds newly bound weights trace its steps with the penalty."""
        weights = list(weights)
        if not weights:
            return
        report_penalty(model, weights[0], self.metric)
        holders = models_with(weights)
        if isinstance(model, keras.Model) and model not in holders:
            holders.append(model)  # `gc.freeze` hides it
        for holder in holders:
            trace_again(holder)
            self.watch_fits(holder)


def _is_at_anchor(states, k, weight):
    return np.array_equal(weight.numpy(), states[k].anchor.numpy())


def refuse_missing(states: Sequence[WeightState], found: dict, model: keras.Layer) -> None:
    """Raise a ValueError if not all states were found in a model."""
    missing = [state for k, state in enumerate(states) if k not in found]
    missing = [state for state in missing if not (found and state.is_set_aside)]
    if not missing:
        return
    there = [str(identity) for identity, _ in identities(model)]
    raise ValueError(
        f"'{model.name}' does not have {'any' if not found else len(missing)} of the {len(states)} "
        f"remembered weights{'' if not found else ' in their places'}: {listed(missing)}. It has "
        f"{', '.join(there[:_LISTED])}{', …' if len(there) > _LISTED else ''}. Protect a model "
        "with the same layers in the same order"
        f"{', or pass `strict=False` to protect only what was recognized' if found else ''}."
    )


def listed(states: Sequence[WeightState]) -> str:
    """Return the first of the weights that are remembered, as an error names them."""
    shown = [f"{state.identity} at {state.identity.place}" for state in states[:_LISTED]]
    return ", ".join(shown) + (", …" if len(states) > _LISTED else "")


def bind_weight(
    weight: keras.Variable, state: WeightState, strength: keras.Variable, metric: PenaltyMetric
) -> None:
    """Have a weight's penalty in the losses of every model that the weight is in.

    Args:
        weight: θ.
        state: The weight's `WeightState`, with its name, Ω, θ* and the term that reports the
            penalty.
        strength: λ, `keras.Variable`.
        metric: Reports the penalty.
    """
    if state.term is None:
        state.term = metric.add_term()
    check = UpdateCheck(state.name, state.term, metric, weight.constraint)
    weight.regularizer = MASRegularizer(
        state.importance, state.anchor, strength, weight.regularizer, check.penalty_evaluated
    )
    weight.constraint = check


def unbind_weight(weight: keras.Variable) -> None:
    """Give a bound weight back the regularizer and the constraint that it had before."""
    if isinstance(weight.regularizer, MASRegularizer):  # not replaced since
        weight.regularizer = weight.regularizer.base_regularizer
    if isinstance(weight.constraint, UpdateCheck):
        weight.constraint = weight.constraint.base_constraint


def report_penalty(layer: keras.Layer, weight: keras.Variable, metric: PenaltyMetric) -> None:
    """Have a metric in the logs of every model that holds a weight of a layer."""
    # Keras leaves out the metrics of models inside a model, but not those of layers.
    owner = _owner_of(weight, layer)
    if metric not in owner._metrics:
        owner._metrics.append(metric)  # not as an attribute, which `save` would store


def _owner_of(weight, layer):
    for inside in reversed(layer._flatten_layers()):
        own = [*inside._trainable_variables, *inside._non_trainable_variables]
        if any(variable is weight for variable in own):
            return inside
    return layer


def unreport_penalty(layer: keras.Layer, metric: PenaltyMetric) -> None:
    """Take a metric out of all layers inside a layer."""
    for inside in layer._flatten_layers():
        if metric in inside._metrics:
            inside._metrics.remove(metric)


def models_with(weights: Iterable[keras.Variable]) -> list[keras.Model]:
    """Return every living model that holds any of the weights.

    A model around a trunk is known to nobody but its owner, and Keras keeps no list of models.
    """
    wanted = {id(weight) for weight in weights}
    models = _living_models()
    return [model for model in models if any(id(weight) in wanted for weight in _weights_of(model))]


def _living_models():
    found: dict[int, keras.Model] = {}
    # By generation, the youngest first, since objects move up. Another thread cannot finish a tuple
    # that a list of all objects refers to, and tuples that are being made are young: the lists of
    # the young are short and gone at once.
    for generation in range(len(gc.get_threshold())):
        things = gc.get_objects(generation)
        found |= {id(thing): thing for thing in things if issubclass(type(thing), keras.Model)}
        del things
    return list(found.values())


def _weights_of(model):
    try:
        return model.weights
    except Exception:  # its constructor failed half-way
        return []


def trace_again(model: keras.Model) -> None:
    """Drop the traced steps of a model: the next `fit` or `evaluate` traces them as things are."""
    model.train_function = None
    model.test_function = None


def call_before_fit(model: keras.Model, check: Callable[[keras.Model], None]) -> None:
    """Have a function called with the model whenever one of its `fit`s begins."""
    make_train_function = model.make_train_function

    @functools.wraps(make_train_function)
    def checked(force=False):
        check(model)
        return make_train_function(force=force)

    object.__setattr__(model, "make_train_function", checked)  # nothing for Keras to track


def moving_batch_norms(layer: keras.Layer) -> list[keras.layers.BatchNormalization]:
    """Return the batch normalizations inside a layer whose statistics training moves."""
    return [
        inside
        for inside in layer._flatten_layers()
        if isinstance(inside, keras.layers.BatchNormalization)
        and inside.trainable
        and not has_frozen_statistics(inside)
    ]


def freeze_statistics(layer: keras.layers.BatchNormalization) -> None:
    """Have a batch normalization use its moving statistics in training, too, and move them no more.

    Its scale and offset go on learning. (`trainable = False` would freeze these as well, and change
    which variables the optimizer of a compiled model has.)
    """
    call = layer.call

    def call_in_inference(inputs, training=None, mask=None):
        return call(inputs, training=False, mask=mask)

    vars(call_in_inference)["calls_instead_of"] = call  # the rule of the layer still holds
    object.__setattr__(layer, "call", call_in_inference)  # nothing for Keras to track


def unfreeze_statistics(layer: keras.layers.BatchNormalization) -> None:
    """Undo `freeze_statistics`."""
    object.__delattr__(layer, "call")


def has_frozen_statistics(layer: keras.Layer) -> bool:
    """Return whether `freeze_statistics` has been called with a layer."""
    return getattr(vars(layer).get("call"), "__name__", "") == "call_in_inference"
