"""The engine: Σ_k |g_k| from one forward and one backward pass per batch."""

import logging

import tensorflow as tf

from ..weights import trainable_weights
from .definition import is_finite, squared_norms
from .outputs import learned_function
from .rules import rule_for
from .rules.slices import slices_of, sum_over_examples
from .separable import find_separable
from .watch import flatten_layers, measuring, uses

_log = logging.getLogger(__name__)


def squared_norm_target(outputs, _):
    """Return what MAS differentiates: [‖F(x_k)‖²]."""
    return [squared_norms(outputs)]


class Engine:
    """Running sums Σ_k |g_k| by weight path, batch after batch.

    Args:
        model: Built `keras.Model`.
        output: As for `measure_sums`.
        slice_bytes: As for `measure_sums`.
        targets: Function from the tensors of F and the second part of a batch to a list of tensors
            `[n]`, each of which is differentiated; their magnitudes add up.
        magnitude: Function of g_k: |·|, or (·)² for a Fisher information.
    """

    def __init__(self, model, output, slice_bytes, targets=squared_norm_target, magnitude=tf.abs):
        self.model, self.output, self.slice_bytes = model, output, slice_bytes
        self.targets, self.magnitude = targets, magnitude
        self.weights = trainable_weights(model)
        self.layers = flatten_layers(model)
        self.sums = {
            path: tf.Variable(tf.zeros(weight.shape, _sum_dtype(weight)), trainable=False)
            for path, weight in self.weights.items()
        }
        self.separable = None
        self.kinds = set()  # of batches met so far
        self.signature = None  # of the batches that `step` takes
        self.only_ones = None  # whether they are batches of one, which tell nothing of larger ones
        self.step = None
        self.slow_ways = {}  # where weights are measured example by example: their paths

    def add(self, batch):
        """Add the examples of a batch to the sums; return whether all of it was finite."""
        kind = _kind(batch)
        if kind not in self.kinds:
            self.kinds.add(kind)
            self._prepare(batch)
        return bool(self.step(batch))

    def finished(self):
        """Return the sums by path, as arrays."""
        return {path: sums.numpy() for path, sums in self.sums.items()}

    def _prepare(self, batch):
        """Have a step for all kinds of batches met so far, of which this is one."""
        signature = _common_signature(self.signature, _signature(batch))
        only_ones = all(is_one for is_one, *_ in self.kinds)
        if (signature, only_ones) == (self.signature, self.only_ones):
            return
        self.signature, self.only_ones = signature, only_ones
        self.slow_ways = {}
        self.step = self._traced(batch)
        for where, paths in self.slow_ways.items():
            _log.info("importance example by example in %s: %s", where, ", ".join(paths))

    def _traced(self, batch):
        """Return the step for batches of the signature, having tried it on one."""
        if self.model.run_eagerly:  # its layers may not be traceable
            self.slow_ways["the whole model, eagerly"] = list(self.weights)
            return self._step
        # Other shapes are tried again: the model may refuse them, or take them in another way.
        with measuring(self.layers):
            separable = find_separable(self._forward, batch, _signature(batch))
        self.separable = separable if self.separable is None else self.separable & separable
        return tf.function(self._step, autograph=False).get_concrete_function(self.signature)

    def _step(self, batch):
        terms_of = self._terms_by_model if self.model.run_eagerly else self._terms
        finite = []
        with measuring(self.layers), slices_of(self.slice_bytes):
            # A target after the other: the deltas of all of them need not be held at once.
            for target, terms in terms_of(batch):
                finite.append(is_finite(target, *terms.values()))
                for path, term in terms.items():
                    self.sums[path].assign_add(tf.cast(term, self.sums[path].dtype))
        return tf.reduce_all(finite)

    def _terms_by_model(self, batch):
        """Yield each target and, by path, its Σ_k |g_k|: by whole model."""
        with tf.GradientTape() as tape:
            targets, _ = self._forward(batch, tape)
        for number, target in enumerate(targets):
            yield target, self._by_model(batch, self.weights, number)

    def _terms(self, batch):
        """Yield each target and, by path, its Σ_k |g_k|: by rule, by layer, or by whole model."""
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            targets, calls = self._forward(batch, tape)
        graph = targets[0].graph
        # Taken now, before a rule itself reads a weight.
        used_by = uses(self.weights, graph)
        # Calls inside a loop or a branch have a graph of their own, and no gradient out here.
        calls = [call for call in calls if call.graph is graph and self._is_separable(call)]
        for number, target in enumerate(targets):
            deltas = _deltas(tape, target, calls)
            terms = self._unused(used_by)
            terms |= self._by_rules(calls, deltas, used_by)
            for group, weights in self._groups(calls, terms, used_by):
                self.slow_ways[group[0].layer.path] = list(weights)
                terms |= self._by_layer(group, deltas, weights)
            rest = {path: weight for path, weight in self.weights.items() if path not in terms}
            if rest:
                self.slow_ways["the whole model"] = list(rest)
                terms |= self._by_model(batch, rest, number)
            yield target, terms

    def _is_separable(self, call):
        return call.tensors and call.layer in self.separable

    def _forward(self, batch, tape):
        inputs, extra = batch
        tensors, calls = learned_function(self.model, inputs, tape, self.output)
        return self.targets(tensors, extra), calls

    def _unused(self, used_by):
        """Return 0 for the weights that F does not read."""
        return {
            path: tf.zeros_like(self.sums[path]) for path, users in used_by.items() if not users
        }

    def _by_rules(self, calls, deltas, used_by):
        """Return Σ_k |g_k| by path of the weights whose one use is a call that a rule serves."""
        terms = {}
        for call in calls:
            apply = rule_for(call.layer)
            if apply is None or not call.has_a_rules_form:
                continue
            sums = apply(call.layer, call.tensors[0], *deltas[call], self.magnitude)
            for name, term in sums.items():
                weight = getattr(call.layer, name)  # None without a bias, a tensor with LoRA
                if self._is_measured(weight) and used_by[weight.path] <= call.operations:
                    terms[weight.path] = _checked(term, call.layer, weight)
        return terms

    def _groups(self, calls, terms, used_by):
        """Yield the calls of one layer with the weights, by path, that only these calls read.

        The innermost layer that holds all uses of a weight is the cheapest to differentiate.
        """
        served = set(terms)
        for layer in sorted(self.layers, key=lambda layer: len(flatten_layers(layer))):
            group = [call for call in calls if call.layer is layer]
            if layer is self.model or not group:
                continue
            inside = frozenset().union(*(call.operations for call in group))
            weights = {
                weight.path: weight
                for weight in layer.trainable_weights
                if self._is_measured(weight)
                and weight.path not in served
                and used_by[weight.path] <= inside
            }
            served |= weights.keys()
            if weights:
                yield group, weights

    def _is_measured(self, weight):
        path = getattr(weight, "path", None)
        return path is not None and self.weights.get(path) is weight

    def _by_model(self, batch, weights, number):
        """Return Σ_k |g_k| by path, from a forward and a backward pass per example."""

        def term(*example):
            example = tf.nest.pack_sequence_as(batch, [tensor[None] for tensor in example])
            with tf.GradientTape() as tape:
                target = self._forward(example, tape)[0][number]
            return self._magnitudes(tape, target, weights)

        sums = sum_over_examples(term, tuple(tf.nest.flatten(batch)))
        return dict(zip(weights, sums, strict=True))

    def _by_layer(self, group, deltas, weights):
        """Return Σ_k |g_k| by path, from a pass through one layer per example.

        With δ_k held fixed, ∂‖F‖²/∂w = ∂⟨δ_k, z_k⟩/∂w, added up over the calls of the layer.
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

        sums = sum_over_examples(term, tuple(tf.nest.flatten(examples)))
        return dict(zip(weights, sums, strict=True))

    def _magnitudes(self, tape, target, weights):
        gradients = tape.gradient(
            target,
            [weight.value for weight in weights.values()],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [self.magnitude(tf.convert_to_tensor(gradient)) for gradient in gradients]


def _deltas(tape, target, calls):
    """Return by call the gradients of the sum of a target `[n]` at its answers.

    Examples do not mix, so row k of them is δ_k.
    """
    deltas = tape.gradient(
        target,
        [call.answers for call in calls],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return {
        call: [tf.convert_to_tensor(delta) for delta in parts]  # a gather leaves slices of it
        for call, parts in zip(calls, deltas, strict=True)
    }


def _kind(batch):
    """Return what two batches for which the same step will do have in common."""
    tensors = tf.nest.flatten(batch)
    parts = [(tuple(tensor.shape)[1:], tensor.dtype) for tensor in tensors]
    return tensors[0].shape[0] == 1, type(batch[0]), *parts


def _signature(batch):
    # Any number of examples: a last, shorter batch is not traced again.
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


def _sum_dtype(weight):
    return tf.float64 if weight.dtype == "float64" else tf.float32


def _checked(term, layer, weight):
    if tuple(term.shape) != tuple(weight.shape):
        raise ValueError(
            f"Expected the rule of {type(layer).__name__} to return shape {tuple(weight.shape)} "
            f"for weight '{weight.path}'. Received: shape {tuple(term.shape)} for layer "
            f"'{layer.name}'. Sum over the examples' axis, and over no other."
        )
    return term
