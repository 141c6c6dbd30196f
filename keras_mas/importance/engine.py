"""The engine: Σ_k |g_k| from one forward and one backward pass per batch."""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..weights import trainable_weights
from .batches import positive_integer
from .definition import squared_norms
from .failures import is_finite
from .graph_options import optimized_from
from .outputs import learned_function
from .recording import Call, weight_readers
from .rowwise import Trial
from .rules import rule_for
from .rules.slices import sum_over_examples, tracing_rules
from .unchanged import flatten_layers, leaving_unchanged

_log = logging.getLogger(__name__)

_SUM_DTYPES = (tf.float32, tf.float64)

# How a weight is measured, from the fastest way to the slowest.
UNUSED = "not used by the outputs"
BY_RULE = "rule"
BY_LAYER = "layer by layer, example by example"
BY_MODEL = "whole model, example by example"

_WHOLE_MODEL = "the whole model"

# Tensors by the name of a weight.
_Terms = dict[str, tf.Tensor]

# How many traces of one sort are kept: for inputs of several shapes, or of one example and several.
_KEPT_TRACES = 4

# Smaller graphs run as fast without TensorFlow's optimization, which would be a quarter of the time
# of the first call.
_WORTH_OPTIMIZING = 1000


def squared_norm_target(outputs: list[tf.Tensor], _: Any) -> list[tf.Tensor]:
    """Return what MAS differentiates: [‖F(x_k)‖²]."""
    return [squared_norms(outputs)]


@dataclasses.dataclass
class _Step:
    """A function that adds a batch to the sums and returns whether it was finite; how it does so.

    Attributes:
        run: The function.
        ways: As in `Engine`.
        fallbacks: As in `Engine`.
    """

    run: Callable[[Any], Any]
    ways: dict[str, str]
    fallbacks: dict[str, list[str]]


class Engine:
    """Running sums Σ_k |g_k| of every weight, batch after batch.

    An engine serves one pass over data after the other: `start`, `add` for each batch, `results`.
    It keeps what it has traced. Which layers are row-wise is tried in each pass anew, for that may
    change with the values of the weights.

    Args:
        model: Built `keras.Model`.
        output: As for `compute_importance`.
        slice_bytes: As for `compute_importance`.
        targets: Function from the tensors of F and the second part of a batch to a list of tensors
            `[n]`, each of which is differentiated; their magnitudes add up.
        magnitude: Function of g_k: |·|, or (·)² for a Fisher information.

    Attributes:
        ways: How each weight is measured, by name: `UNUSED`, `BY_RULE`, `BY_LAYER` or
            `BY_MODEL`. Known after the first batch, and for all batches since.
        fallbacks: Names of the weights measured one example at a time, by the path of the layer
            whose calls are differentiated, or "the whole model".
    """

    def __init__(
        self,
        model: keras.Model,
        output: str | Callable[[Any], Any],
        slice_bytes: int,
        targets: Callable[[list[tf.Tensor], Any], list[tf.Tensor]] = squared_norm_target,
        magnitude: Callable[[tf.Tensor], tf.Tensor] = tf.abs,
    ):
        self.model, self.output = model, output
        self.slice_bytes = positive_integer("slice_bytes", slice_bytes)
        self.targets, self.magnitude = targets, magnitude
        self.weights = trainable_weights(model)
        self.names = {id(weight): name for name, weight in self.weights.items()}
        self.layers = flatten_layers(model)
        # Of any shape, so that between two passes they take no memory.
        self.sums = {
            name: tf.Variable(_nothing(weight), trainable=False, shape=tf.TensorShape(None))
            for name, weight in self.weights.items()
        }
        self._trials: dict[tuple, Trial] = {}
        self._steps: dict[tuple, _Step] = {}
        self.before_kind: Callable[[], None] = lambda: None  # called before the first of its kind
        self.start()

    def start(self) -> None:
        """Begin a pass over data: set the sums to 0."""
        for name, weight in self.weights.items():
            # Like the weight's value, which takes half as long as zeros of its shape do.
            zeros = tf.zeros_like(weight.value, _sum_dtype(weight))
            self.sums[name].assign(zeros, read_value=False)
        self.ways: dict[str, str] = {}
        self.fallbacks: dict[str, list[str]] = {}
        self._rowwise: frozenset[keras.Layer] | None = None
        self._kinds: set[tuple] = set()  # of the batches so far
        self._signature: Any = None  # of the batches that the step takes
        # Whether all batches so far were of one example, which shows nothing of larger ones.
        self._only_ones: bool | None = None
        self._step: Any = None

    def forget(self) -> None:
        """Drop all traces."""
        self._trials.clear()
        self._steps.clear()

    def free(self) -> None:
        """Give back the memory of the sums, until the next pass starts."""
        nothing = {dtype: tf.zeros([0], dtype) for dtype in _SUM_DTYPES}
        for sums in self.sums.values():
            sums.assign(nothing[sums.dtype], read_value=False)

    def add(self, batch: tuple[Any, Any]) -> bool:
        """Add the examples of a batch to the sums; return whether all of it was finite."""
        kind = _kind(batch)
        if kind not in self._kinds:
            self.before_kind()
        with leaving_unchanged(self.layers), optimized_from(_WORTH_OPTIMIZING):
            if kind not in self._kinds:
                self._kinds.add(kind)
                self._prepare(batch)
            return bool(self._step(batch))

    def results(self) -> dict[str, np.ndarray]:
        """Return the sums by the names of the weights, as arrays that cannot be written to."""
        # Unlike `numpy()`, this copies nothing; the next pass has memory of its own.
        return {name: np.asarray(sums.value()) for name, sums in self.sums.items()}

    def _prepare(self, batch):
        """Have a step for all kinds of batches so far, of which this is one."""
        signature = _common_signature(self._signature, _signature(batch))
        only_ones = all(is_one for is_one, *_ in self._kinds)
        if (signature, only_ones) == (self._signature, self._only_ones):
            return
        self._signature, self._only_ones = signature, only_ones
        if self.model.run_eagerly:
            step = self._eager_step()
        else:
            self._try(batch)
            key = _key(signature), self._rowwise
            step = _kept(self._steps, key, lambda: self._traced_step(signature))
        self._step, self.ways, self.fallbacks = step.run, step.ways, step.fallbacks
        for where, names in self.fallbacks.items():
            _log.info("importance example by example in %s: %s", where, ", ".join(names))

    def _try(self, batch):
        """Leave out of the row-wise layers those that this batch shows not to be."""
        # Batches of another shape need a trial too: the model may treat them in another way.
        signature = _signature(batch)
        trial = _kept(self._trials, _key(signature), lambda: Trial(self._forward, signature))
        rowwise = trial.rowwise_layers(batch)
        self._rowwise = rowwise if self._rowwise is None else self._rowwise & rowwise

    def _traced_step(self, signature):
        """Return the step for batches of a signature, with the layers that are row-wise now."""
        self.ways, self.fallbacks = {}, {}

        def step(batch):
            return self._added(self._terms(batch))

        traced = tf.function(step, autograph=False).get_concrete_function(signature)
        return _Step(traced, self.ways, self.fallbacks)

    def _eager_step(self):
        """Return the step for a model that runs eagerly: its layers may not be traceable."""
        self.ways, self.fallbacks = {}, {}
        self._note(BY_MODEL, self.weights, where=f"{_WHOLE_MODEL}, eagerly")
        return _Step(lambda batch: self._added(self._eager_terms(batch)), self.ways, self.fallbacks)

    def _added(self, terms_by_target):
        """Add the terms of each target to the sums; return whether they were finite."""
        finite = []
        with tracing_rules(self.slice_bytes):
            # One target after the other, so that the deltas of only one are in memory.
            for target, terms in terms_by_target:
                finite.append(is_finite(target, *terms.values()))
                for name, term in terms.items():
                    self.sums[name].assign_add(tf.cast(term, self.sums[name].dtype))
        return tf.reduce_all(finite)

    def _eager_terms(self, batch) -> Iterator[tuple[tf.Tensor, _Terms]]:
        """Yield each target and the Σ_k |g_k| of all weights, by passes through the model."""
        with tf.GradientTape() as tape:
            targets, _ = self._forward(batch, tape)
        for number, target in enumerate(targets):
            yield target, self._by_model(batch, self.weights, number)

    def _terms(self, batch) -> Iterator[tuple[tf.Tensor, _Terms]]:
        """Yield each target and the Σ_k |g_k| of all weights, each in the fastest exact way."""
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            targets, calls = self._forward(batch, tape)
        graph = targets[0].graph
        # Taken now, before a rule itself reads a weight.
        readers = weight_readers(self.weights, graph)
        # Calls inside a loop or a branch have a graph of their own, without gradients out here.
        calls = [call for call in calls if call.graph is graph and self._is_rowwise(call)]
        for number, target in enumerate(targets):
            deltas = _deltas(tape, target, calls)
            terms = self._unused(readers)
            terms |= self._by_rules(calls, deltas, readers)
            for group, weights in self._groups(calls, terms, readers):
                terms |= self._by_layer(group, deltas, weights)
            rest = {name: weight for name, weight in self.weights.items() if name not in terms}
            if rest:
                self._note(BY_MODEL, rest, where=_WHOLE_MODEL)
                terms |= self._by_model(batch, rest, number)
            yield target, terms

    def _note(self, way, names, where=None):
        self.ways.update(dict.fromkeys(names, way))
        if where is not None:
            self.fallbacks[where] = list(names)

    def _is_rowwise(self, call):
        return bool(call.tensors) and call.layer in (self._rowwise or ())

    def _forward(self, batch, tape):
        inputs, extra = batch
        tensors, calls = learned_function(self.model, inputs, tape, self.output)
        return self.targets(tensors, extra), calls

    def _unused(self, readers) -> _Terms:
        """Return 0 for the weights that F does not read."""
        unused = [name for name, operations in readers.items() if not operations]
        self._note(UNUSED, unused)
        return {name: _zeros(self.weights[name]) for name in unused}

    def _by_rules(self, calls, deltas, readers) -> _Terms:
        """Return Σ_k |g_k| of the weights that only one call reads, of a layer with a rule."""
        terms: _Terms = {}
        for call in calls:
            apply = rule_for(call.layer)
            if apply is None or not call.fits_rules:
                continue
            [inputs], [delta] = call.tensors, deltas[call]
            sums = apply(call.layer, inputs, delta, self.magnitude)
            for attribute, term in sums.items():
                weight = getattr(call.layer, attribute)  # None without a bias, a tensor with LoRA
                name = self.names.get(id(weight))
                if name is not None and readers[name] <= call.operations:
                    terms[name] = _checked(term, call.layer, name, weight)
        self._note(BY_RULE, terms)
        return terms

    def _groups(
        self, calls, terms, readers
    ) -> Iterator[tuple[list[Call], dict[str, keras.Variable]]]:
        """Yield the calls of one layer with the weights, by name, that only these calls read.

        The innermost layer that holds all reads of a weight is the cheapest to differentiate.
        """
        measured = set(terms)
        for layer in sorted(self.layers, key=lambda layer: len(flatten_layers(layer))):
            group = [call for call in calls if call.layer is layer]
            if layer is self.model or not group:
                continue
            inside = frozenset().union(*(call.operations for call in group))
            named = ((self.names.get(id(weight)), weight) for weight in layer.trainable_weights)
            weights = {
                name: weight
                for name, weight in named
                if name is not None and name not in measured and readers[name] <= inside
            }
            measured |= weights.keys()
            if weights:
                self._note(BY_LAYER, weights, where=layer.path)
                yield group, weights

    def _by_model(self, batch, weights, number) -> _Terms:
        """Return Σ_k |g_k| from a forward and a backward pass per example."""

        def term(*example):
            example = tf.nest.pack_sequence_as(batch, [tensor[None] for tensor in example])
            with tf.GradientTape() as tape:
                target = self._forward(example, tape)[0][number]
            return self._magnitudes(tape, target, weights)

        sums = sum_over_examples(term, tuple(tf.nest.flatten(batch)), _zeros_of(weights))
        return dict(zip(weights, sums, strict=True))

    def _by_layer(self, group, deltas, weights) -> _Terms:
        """Return Σ_k |g_k| from a pass through one layer per example.

        With δ_k constant, ∂‖F‖²/∂w = ∂⟨δ_k, z_k⟩/∂w, added up over the calls of the layer.
        """
        examples = [(call.tensors, deltas[call]) for call in group]

        def term(*example):
            example = tf.nest.pack_sequence_as(examples, [tensor[None] for tensor in example])
            with tf.GradientTape() as tape:
                product = 0.0
                for call, (tensors, delta) in zip(group, example, strict=True):
                    for d, z in zip(delta, call.repeated(tensors), strict=True):
                        product += tf.cast(tf.reduce_sum(d * z), tf.float64)
            return self._magnitudes(tape, product, weights)

        sums = sum_over_examples(term, tuple(tf.nest.flatten(examples)), _zeros_of(weights))
        return dict(zip(weights, sums, strict=True))

    def _magnitudes(self, tape, target, weights):
        gradients = tape.gradient(
            target,
            [weight.value for weight in weights.values()],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [self.magnitude(tf.convert_to_tensor(gradient)) for gradient in gradients]


def _deltas(tape, target, calls):
    """Return by call the gradients of the sum of a target `[n]` at its differentiable outputs.

    Examples do not mix, so row k of them is δ_k.
    """
    deltas = tape.gradient(
        target,
        [call.differentiable_outputs for call in calls],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return {
        call: [tf.convert_to_tensor(delta) for delta in parts]  # a gather leaves slices of it
        for call, parts in zip(calls, deltas, strict=True)
    }


def _kind(batch):
    """Return what batches have in common that the same step can take."""
    is_one = tf.nest.flatten(batch)[0].shape[0] == 1
    return is_one, *_key(_signature(batch))


def _key(signature):
    """Return a key for a signature, which a dict or list in it keeps from being one."""
    structure = tf.nest.map_structure(lambda _: None, signature)
    return repr(structure), *tf.nest.flatten(signature)


def _kept(traces, key, trace):
    """Return the trace of a key, made if there is none; the oldest one is dropped for it."""
    if key not in traces:
        if len(traces) == _KEPT_TRACES:
            del traces[next(iter(traces))]
        traces[key] = trace()
    return traces[key]


def _signature(batch):
    # Any number of examples, so that a last, shorter batch is not traced again.
    return tf.nest.map_structure(
        lambda tensor: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype), batch
    )


def _common_signature(known, new):
    if known is None:
        return new
    try:
        common = tf.nest.map_structure(
            lambda a, b: a.most_specific_common_supertype([b]), known, new
        )
    except (TypeError, ValueError):
        common = None
    if common is None or None in tf.nest.flatten(common):
        raise ValueError(
            f"Expected every batch of one structure, and of one dtype and rank in each part. "
            f"Received: {known[0]}, and then {new[0]}."
        )
    return common


def _zeros(weight):
    """Return the sum over no examples."""
    return tf.zeros(weight.shape, _sum_dtype(weight))


def _zeros_of(weights):
    """Return the sums of gradients over no examples."""
    return [tf.zeros(weight.shape, weight.dtype) for weight in weights.values()]


def _nothing(weight):
    return np.zeros([0], _sum_dtype(weight).as_numpy_dtype)


def _sum_dtype(weight):
    return tf.float64 if weight.dtype == "float64" else tf.float32


def _checked(term, layer, name, weight):
    if tuple(term.shape) != tuple(weight.shape):
        raise ValueError(
            f"Expected the rule of {type(layer).__name__} to return shape {tuple(weight.shape)} "
            f"for weight '{name}'. Received: shape {tuple(term.shape)} for layer "
            f"'{layer.name}'. Sum over the examples' axis, and over no other."
        )
    return term
