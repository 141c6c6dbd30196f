"""Exact importance from one forward and one backward pass per batch."""

import logging

import tensorflow as tf

from ..weights import trainable_weights
from .batches import batches, count_examples
from .definition import is_finite, not_finite, squared_norms
from .rules import rule_for, sum_over_examples
from .watch import is_used_outside, watching

_log = logging.getLogger(__name__)


def compute_importance(model, inputs, *, batch_size=256):
    """Mean sensitivity of the squared output norm to every weight.

    For inputs x_1 … x_N and network output F,

        Ω = 1/N Σ_k |∂‖F(x_k; θ)‖² / ∂θ|

    which is Eq. 2 of Aljundi et al., "Memory Aware Synapses", ECCV 2018 (arXiv:1711.09601,
    Sec. 4.1, global version). The absolute value is taken per example, before the mean; codes that
    take it after the batch mean let examples cancel and depend on the batch size. No label is read.

    The weights of Dense layers come from one forward and one backward pass per batch. Every other
    weight is measured one example at a time: as exact, and slower.

    Args:
        model: Built `keras.Model`, outputs `[N, ...]`; several outputs add their squared norms. It
            runs with `training=False` (dropout is off, batch statistics stay fixed) and is left as
            it was.
        inputs: Array `[N, ...]`, a list or dict of arrays, a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or an iterable of batches, scaled as in training, N ≥ 1. Labels
            in it are ignored.
        batch_size: Examples per pass over arrays; batched data keep their own batches. Changes
            time and memory, not the result.

    Returns:
        Dict from `variable.path` to a float32 array of the variable's shape, all entries ≥ 0, in
        squared output units per unit of weight. A key for each trainable weight.

    Raises:
        ValueError: If the model is not built, has no trainable weights or gives NaN or infinite
            outputs, or if the inputs are empty or of unequal length.

    Example:
        >>> import keras, numpy as np
        >>> x = keras.Input([1])
        >>> line = keras.Model(x, keras.layers.Dense(1, name="line")(x))
        >>> line.set_weights([np.array([[1.0]]), np.array([0.0])])
        >>> omega = compute_importance(line, np.array([[1.0], [-1.0]]))
        >>> {path: values.tolist() for path, values in omega.items()}
        {'line/kernel': [[2.0]], 'line/bias': [2.0]}
    """
    engine = _Engine(model)
    examples = 0
    for number, batch in enumerate(batches(inputs, batch_size)):
        if not engine.add(batch):
            raise not_finite(model, number)
        examples += count_examples(batch)
    return engine.mean(examples)


class _Engine:
    """Running sums Σ_k |g_k| by weight path, batch after batch."""

    def __init__(self, model):
        self.model = model
        self.weights = trainable_weights(model)
        self.layers = [layer for layer in _flatten(model) if rule_for(layer)]
        self.sums = {
            path: tf.Variable(tf.zeros(weight.shape, _sum_dtype(weight)), trainable=False)
            for path, weight in self.weights.items()
        }
        self.signature = None
        self.traced_step = None

    def add(self, batch):
        """Add the examples of a batch to the sums; return whether all of it was finite."""
        signature = _common_signature(self.signature, _signature(batch))
        if signature != self.signature:
            self.signature = signature
            self.traced_step = tf.function(self._step).get_concrete_function(signature)
        return bool(self.traced_step(batch))

    def _step(self, batch):
        with (
            tf.GradientTape(watch_accessed_variables=False) as tape,
            watching(self.layers, tape) as calls,
        ):
            norms = squared_norms(self.model(batch, training=False))
        terms = self._by_rules(tape, norms, calls)
        terms |= self._one_by_one(batch, [path for path in self.weights if path not in terms])
        for path, term in terms.items():
            self.sums[path].assign_add(tf.cast(term, self.sums[path].dtype))
        return is_finite(norms, *terms.values())

    def mean(self, examples):
        """Return Ω by path, the sums over `examples` divided by their number."""
        return {path: (sums / examples).numpy() for path, sums in self.sums.items()}

    def _by_rules(self, tape, norms, calls):
        """Return Σ_k |g_k| of the weights whose one use is one call of a layer with a rule."""
        once = [
            (layer, *layer_calls)
            for layer, layer_calls in zip(self.layers, calls, strict=True)
            if len(layer_calls) == 1 and layer_calls[0].graph is norms.graph
        ]
        # Examples do not mix, so the gradient of Σ_k ‖F(x_k)‖² at z_k is δ_k.
        deltas = tape.gradient(
            norms,
            [call.preactivation for _, call in once],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        terms = {}
        for (layer, call), delta in zip(once, deltas, strict=True):
            for name, term in rule_for(layer)(layer, call.inputs, delta).items():
                weight = getattr(layer, name)  # None without a bias, a tensor with LoRA
                if self._is_measured(weight) and not is_used_outside(weight, call):
                    terms[weight.path] = _checked(term, layer, weight)
        return terms

    def _is_measured(self, weight):
        path = getattr(weight, "path", None)
        return path is not None and self.weights.get(path) is weight

    def _one_by_one(self, batch, paths):
        """Return Σ_k |g_k| of the weights at `paths`, by a tape per example."""
        if not paths:
            return {}
        _log.info("importance one example at a time: %s", ", ".join(paths))
        variables = [self.weights[path].value for path in paths]

        def term(*example):
            example = tf.nest.pack_sequence_as(batch, [tensor[None] for tensor in example])
            with tf.GradientTape() as tape:
                norm = squared_norms(self.model(example, training=False))
            gradients = tape.gradient(
                norm, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO
            )
            return [tf.abs(tf.convert_to_tensor(gradient)) for gradient in gradients]

        sums = sum_over_examples(term, tuple(tf.nest.flatten(batch)))
        return dict(zip(paths, sums, strict=True))


def _flatten(model):
    # Keras offers no public walk over nested layers.
    return model._flatten_layers(include_self=True, recursive=True)


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
