"""The Fisher information of EWC, by the same engine with squares."""

import numpy as np
import tensorflow as tf

from .batches import batches, count_examples
from .engine import Engine
from .measure import run_engine
from .outputs import LOGITS
from .rules.slices import SLICE_BYTES


def compute_fisher(
    model,
    inputs,
    labels="exact",
    *,
    seed=0,
    batch_size=256,
    max_examples=None,
    output=LOGITS,
    slice_bytes=SLICE_BYTES,
    verbose="auto",
):
    """Diagonal of the Fisher information of a classifier's weights.

    For inputs x_1 … x_N and p(y | x) = softmax F(x),

        F_ij = 1/N Σ_k E_y [(∂ log p(y | x_k) / ∂θ_ij)²]

    (Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017,
    arXiv:1612.00796). The square is taken per example, before the mean.

    Args:
        model: As for `compute_importance`, with one output of logits `[N, C]`, or their softmax.
        inputs: As for `compute_importance`.
        labels: What y is. `"exact"`: all C classes, weighed by p(y | x_k), in C backward passes;
            `"sampled"`: one y drawn from p(y | x_k); `"given"`: the labels of a dataset of batches
            `(x, y)`, or an array of them `[N]` beside arrays: the "empirical" Fisher.
        seed: Of the draw; the same for every batch size.
        batch_size: As for `measure_sums`, and so are the others.
        max_examples: As for `measure_sums`.
        output: As for `measure_sums`.
        slice_bytes: As for `measure_sums`.
        verbose: As for `measure_sums`.

    Returns:
        Dict from `variable.path` to an array of the variable's shape, all entries ≥ 0.

    Raises:
        ValueError: As `compute_importance`, or if `labels` is none of these.
    """
    if isinstance(labels, str) and labels not in _TARGETS:
        raise ValueError(
            f"Expected labels out of {', '.join(_TARGETS)}, or an array. Received: '{labels}'."
        )
    way = labels if isinstance(labels, str) else "given"
    engine = Engine(model, output, slice_bytes, _TARGETS[way], tf.square)
    asked = labels if way == "given" else None
    data = batches(inputs, batch_size, max_examples, asked)
    if way != "given":
        data = _with_draws(data, seed)
    return run_engine(engine, data, verbose).mean()


def _with_draws(data, seed):
    """Yield the inputs beside a uniform number per example, the same for every batch size."""
    random = np.random.default_rng(seed)
    for batch in data:
        yield batch, tf.constant(random.random(count_examples(batch)), tf.float32)


def _exact(outputs, _):
    """Return √p(c | x_k) · log p(c | x_k) for every class c: squared, its gradient is weighed."""
    log_p = tf.nn.log_softmax(_logits(outputs))
    root_p = tf.stop_gradient(tf.exp(log_p / 2))
    return [root_p[:, c] * log_p[:, c] for c in range(log_p.shape[-1])]


def _sampled(outputs, draws):
    """Return log p(y_k | x_k), y_k where the cumulated probability passes the draw."""
    logits = _logits(outputs)
    cumulated = tf.cumsum(tf.nn.softmax(logits), axis=-1)
    y = tf.reduce_sum(tf.cast(cumulated < tf.cast(draws, logits.dtype)[:, None], tf.int32), axis=-1)
    return _given(outputs, tf.minimum(y, logits.shape[-1] - 1))


def _given(outputs, labels):
    """Return log p(y_k | x_k) for labels y_k, `[n]` or `[n, 1]`."""
    logits = _logits(outputs)
    labels = tf.reshape(tf.cast(labels, tf.int32), [-1])
    return [-tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)]


def _logits(outputs):
    if len(outputs) != 1 or outputs[0].shape.rank != 2 or outputs[0].shape[-1] is None:
        raise ValueError(
            "Expected one output of logits [N, C]. Received: "
            f"{[tuple(tensor.shape) for tensor in outputs]}. Choose it with `output`."
        )
    return outputs[0]


_TARGETS = {"exact": _exact, "sampled": _sampled, "given": _given}
