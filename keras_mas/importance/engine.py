"""Exact importance from one forward and one backward pass per batch."""

import logging
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from ..weights import trainable_weights
from .batches import batches, count_examples
from .definition import is_finite, not_finite, squared_norms
from .outputs import LOGITS, learned_function
from .rules import rule_for
from .rules.slices import SLICE_BYTES, slices_of, sum_over_examples
from .sums import ImportanceSums
from .watch import flatten_layers, measuring, uses

_log = logging.getLogger(__name__)


def compute_importance(model, inputs, **options):
    """Mean sensitivity of the squared output norm to every weight.

    For inputs x_1 … x_N and network output F,

        Ω = 1/N Σ_k |∂‖F(x_k; θ)‖² / ∂θ|

    which is Eq. 2 of Aljundi et al., "Memory Aware Synapses", ECCV 2018 (arXiv:1711.09601,
    Sec. 4.1, global version). The absolute value is taken per example, before the mean; codes that
    take it after the batch mean let examples cancel and depend on the batch size. No label is read.

    One forward and one backward pass per batch serve the weights of every layer class with a rule
    (`keras_mas.importance.rule` adds one). Others (recurrent layers, layers called several times,
    layers of your own) are measured one example at a time, layer by layer where that is possible:
    as exact, and slower. The log (`keras_mas`, level INFO) names them.

    Args:
        model: Built `keras.Model`, outputs `[N, ...]`; several outputs add their squared norms. It
            runs with `training=False` (dropout is off, batch statistics stay fixed), in the
            precision of its variables, and is left as it was. Its answer to an example must not
            depend on the other examples of a batch.
        inputs: Array `[N, ...]`, a list or dict of arrays, a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or an iterable of batches, scaled as in training, N ≥ 1. Labels
            in it are ignored.
        **options: As for `measure_sums`: `batch_size`, `max_examples`, `output`, `slice_bytes`,
            `verbose`.

    Returns:
        Dict from `variable.path` to an array of the variable's shape, all entries ≥ 0, in squared
        output units per unit of weight; float32, or float64 where the variable is. A key for each
        trainable weight.

    Raises:
        ValueError: If the model is not built, has no trainable weights or gives NaN or infinite
            outputs; if the inputs are empty or of unequal length; if `output` names nothing.

    Example:
        >>> import keras, numpy as np
        >>> x = keras.Input([1])
        >>> line = keras.Model(x, keras.layers.Dense(1, name="line")(x))
        >>> line.set_weights([np.array([[1.0]]), np.array([0.0])])
        >>> omega = compute_importance(line, np.array([[1.0], [-1.0]]))
        >>> {path: values.tolist() for path, values in omega.items()}
        {'line/kernel': [[2.0]], 'line/bias': [2.0]}
    """
    return measure_sums(model, inputs, **options).mean()


def measure_sums(
    model,
    inputs,
    *,
    batch_size=256,
    max_examples=None,
    output=LOGITS,
    slice_bytes=SLICE_BYTES,
    verbose="auto",
):
    """Return the sums that `compute_importance` takes the mean of, to add those of other shards.

    Args:
        model: As for `compute_importance`.
        inputs: As for `compute_importance`.
        batch_size: Examples per pass over arrays; batched data keep their own batches. Changes
            time and memory, not the result.
        max_examples: Stop after so many examples; None for all of them.
        output: Which function was learned. `"logits"`: the outputs, before the softmax or sigmoid
            that a model may end in; `"output"`: the outputs as they are; the name of a layer; a
            function from the model's outputs to one or several tensors; or `"layers"`: every layer
            is a function of its own, of what came into it, as in the paper's local version l-MAS
            (Sec. 4.3): for a ReLU layer y = relu(aW) that is Ω_ij = 2/N Σ_k a_ki y_kj. An
            activation that is the next layer counts as the layer's own.
        slice_bytes: Memory for the largest product of a rule; a layer that needs more takes the
            examples of a batch in slices, of one example at least.
        verbose: 1 shows a progress bar, 0 none, `"auto"` one on a terminal once a pass has taken
            two seconds.

    Returns:
        `ImportanceSums`.

    Raises:
        ValueError: As `compute_importance`.
    """
    data = ((batch, ()) for batch in batches(inputs, batch_size, max_examples))
    return run_engine(Engine(model, output, slice_bytes), data, verbose)


def run_engine(engine, data, verbose):
    """Return the `ImportanceSums` of an engine over pairs of inputs and what its targets need."""
    progress = _Progress(verbose)
    examples = 0
    for number, batch in enumerate(data):
        try:
            finite = engine.add(batch)
        except tf.errors.OpError as error:
            raise _refused(engine.model, batch, number, error) from error
        if not finite:
            raise not_finite(engine.model, number)
        examples += count_examples(batch)
        progress.update(examples)
    progress.update(examples, is_last=True)
    return ImportanceSums(engine.finished(), examples)


def _refused(model, batch, number, error):
    """Return the error of a batch that a model has failed on."""
    taken, _ = batch
    received = tf.nest.map_structure(
        lambda tensor: f"{tuple(tensor.shape)} {tensor.dtype.name}", taken
    )
    return ValueError(
        f"Expected inputs that '{model.name}' can take. Received: {received} in batch {number} "
        f"(counted from 0), and TensorFlow's {type(error).__name__}. Call `model(batch)` on it."
    )


class _Progress:
    """Keras's progress bar over examples, whose number is not known before the end."""

    def __init__(self, verbose):
        self.bar = keras.utils.Progbar(None, unit_name="example") if verbose else None
        self.waits = 2.0 if verbose == "auto" else 0.0
        self.is_wanted = verbose != "auto" or sys.stdout.isatty()
        self.started = time.monotonic()

    def update(self, examples, is_last=False):
        if self.bar and self.is_wanted and time.monotonic() - self.started >= self.waits:
            self.bar.update(examples, finalize=is_last)


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
        self.signature = None
        self.step = None
        self.slow_ways = {}  # where weights are measured example by example: their paths

    def add(self, batch):
        """Add the examples of a batch to the sums; return whether all of it was finite."""
        signature = _signature(batch)
        if signature != self.signature:
            signature = _common_signature(self.signature, signature)
        if signature != self.signature:
            self.signature = signature
            self.slow_ways = {}
            self.step = self._prepared(batch, signature)
            for where, paths in self.slow_ways.items():
                _log.info("importance example by example in %s: %s", where, ", ".join(paths))
        return bool(self.step(batch))

    def finished(self):
        """Return the sums by path, as arrays."""
        return {path: sums.numpy() for path, sums in self.sums.items()}

    def _prepared(self, batch, signature):
        """Return the step for batches of a signature."""
        if self.model.run_eagerly:  # its layers may not be traceable
            self.slow_ways["the whole model, eagerly"] = list(self.weights)
            return self._step
        # Other shapes are tried again: the model may refuse them, or take them in another way.
        separable = self._find_separable(batch)
        self.separable = separable if self.separable is None else self.separable & separable
        return tf.function(self._step, autograph=False).get_concrete_function(signature)

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
        return call.tensors and call.has_outputs_apart and call.layer in self.separable

    def _find_separable(self, batch):
        """Return the layers to which the k-th example brings the k-th row, alone or in a batch.

        Tried with one example and with two: a layer that sees several rows per example (a reshape,
        a concatenation along the first axis), examples in another order or time before examples, is
        not separable; and none is if the model's answer to an example depends on the other.
        """
        called = []

        def look(batch):
            tape = tf.GradientTape(watch_accessed_variables=False)
            with tape, measuring(self.layers):
                targets, calls = self._forward(batch, tape)
            graph = targets[0].graph
            own = [call for call in calls if call.graph is graph and call.tensors]
            called[:] = [call.layer for call in own]
            return targets, [call.tensors for call in own]

        look = tf.function(look, autograph=False).get_concrete_function(_signature(batch))
        alone, together = (
            look(tf.nest.map_structure(lambda tensor, rows=rows: tf.gather(tensor, rows), batch))
            for rows in ([0], [0, min(1, count_examples(batch) - 1)])
        )
        if not all(map(_is_first_of_two, alone[0], together[0])):
            return set()
        strange = {
            layer
            for layer, ones, twos in zip(called, alone[1], together[1], strict=True)
            if not all(map(_is_first_of_two, ones, twos))
        }
        return set(called) - strange

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
            if apply is None or not call.has_only_inputs:
                continue
            sums = apply(call.layer, call.inputs, deltas[call], self.magnitude)
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
        examples = [(call.tensors, tf.nest.flatten(deltas[call])) for call in group]

        def term(*example):
            example = tf.nest.pack_sequence_as(examples, [tensor[None] for tensor in example])
            with tf.GradientTape() as tape:
                product = 0.0
                for call, (tensors, delta) in zip(group, example, strict=True):
                    z = tf.nest.flatten(call.repeated(tensors))
                    for d, part in zip(delta, z, strict=True):
                        product += tf.reduce_sum(d * part)
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


def _is_first_of_two(one, two):
    """Return whether `[1, ...]` is the first row of `[2, ...]`, to rounding."""
    one, two = np.asarray(one), np.asarray(two)
    if one.shape[:1] != (1,) or two.shape[:1] != (2,) or one.shape[1:] != two.shape[1:]:
        return False
    if not np.issubdtype(one.dtype, np.number):
        return np.array_equal(one, two[:1])
    scale = np.abs(one[np.isfinite(one)]).max(initial=0.0)
    return np.allclose(one, two[:1], rtol=1e-3, atol=1e-5 * scale, equal_nan=True)


def _deltas(tape, target, calls):
    """Return by call the gradient of the sum of a target `[n]` at its pre-activations.

    Examples do not mix, so row k of it is δ_k.
    """
    deltas = tape.gradient(
        target,
        [call.preactivation for call in calls],
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
    return dict(zip(calls, deltas, strict=True))


def _signature(batch):
    # Any number of examples: a last, shorter batch is not traced again.
    return tf.nest.map_structure(
        lambda tensor: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype), batch
    )


def _common_signature(known, new):
    if known is None:
        return new
    return tf.nest.map_structure(lambda a, b: a.most_specific_common_supertype([b]), known, new)


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
