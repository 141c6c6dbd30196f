"""The Fisher information of EWC, and of EWC-DR, by the same engine with squares."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .batches import batches, count_examples, total_examples
from .compute import run_engine
from .kept import kept_engine
from .outputs import LOGITS
from .progress import OnProgress, Progress
from .rules.slices import SLICE_BYTES


def compute_fisher(
    model: keras.Model,
    inputs: Any,
    labels: Any = "exact",
    *,
    reverse: bool = False,
    seed: int = 0,
    batch_size: int = 256,
    max_examples: int | None = None,
    output: str | Callable[[Any], Any] = LOGITS,
    slice_bytes: int = SLICE_BYTES,
    verbose: int | str = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, np.ndarray]:
    """Diagonal of the Fisher information of a classifier's weights.

    For inputs x_1 … x_N and p(y | x) = softmax F(x),

        F_ij = 1/N Σ_k E_y [(∂ log p(y | x_k) / ∂θ_ij)²]

    (Kirkpatrick et al., "Overcoming catastrophic forgetting in neural networks", PNAS 2017,
    arXiv:1612.00796). The square is taken per example, before the mean.

    Args:
        model: As for `compute_importance`, with one output of logits `[N, C]`, or their softmax. A
            single logit `[N, 1]`, or its sigmoid, tells class 1 from class 0.
        inputs: As for `compute_importance`.
        labels: Which y. `"exact"`: all C classes, weighted by p(y | x_k), in C backward passes;
            `"sampled"`: one y drawn from p(y | x_k); `"given"`: the labels of a dataset of batches
            `(x, y)`; or an array of labels `[N]` for inputs in arrays. Given labels make it the
            "empirical" Fisher.
        reverse: Whether the logits are reversed, p(y | x) = softmax(−F(x)). With given labels that
            is the importance of EWC-DR (arXiv:2603.18596), to which examples that were learned well
            matter most: their log p(y | x) has a gradient near 0, and a large one when reversed.
        seed: Seed of the draws, which are the same for every batch size.
        batch_size: As for `compute_importance`.
        max_examples: As for `compute_importance`.
        output: As for `compute_importance`.
        slice_bytes: As for `compute_importance`.
        verbose: As for `compute_importance`.
        on_progress: As for `compute_importance`.

    Returns:
        Dict from the name of a weight, as in `compute_importance`, to an array of the weight's
        shape, all entries ≥ 0.

    Raises:
        ValueError: As `compute_importance`, or if `labels` is none of these, or the model ends in
            several sigmoids, which choose none out of C classes.
    """
    if labels is None or (isinstance(labels, str) and labels not in _TARGETS):
        raise ValueError(
            f"Expected labels out of {', '.join(_TARGETS)}, or an array. Received: {labels!r}."
        )
    kind = labels if isinstance(labels, str) else "given"
    progress = Progress(verbose, total_examples(inputs, max_examples), on_progress)
    data = batches(inputs, batch_size, max_examples, labels if kind == "given" else None)
    if kind != "given":
        data = _with_draws(data, seed)
    targets = (_REVERSED if reverse else _TARGETS)[kind]
    with kept_engine(model, output, slice_bytes, targets, tf.square) as engine:
        return run_engine(engine, data, progress).mean()


def _with_draws(data: Iterator[Any], seed: int) -> Iterator[tuple[Any, tf.Tensor]]:
    """Yield pairs of inputs and a uniform number per example, the same for every batch size."""
    random = np.random.default_rng(seed)
    for batch in data:
        yield batch, tf.constant(random.random(count_examples(batch)), tf.float32)


def _exact(outputs, _):
    """Return √p(c | x_k) · log p(c | x_k) for every class c, with √p(c | x_k) held constant.

    The square of its gradient is that of log p(c | x_k), weighted by p(c | x_k).
    """
    log_p = tf.nn.log_softmax(_logits(outputs))
    root_p = tf.stop_gradient(tf.exp(log_p / 2))
    return [root_p[:, c] * log_p[:, c] for c in range(log_p.shape[-1])]


def _sampled(outputs, draws):
    """Return log p(y_k | x_k), y_k being the class whose cumulative probability passes the draw."""
    logits = _logits(outputs)
    cumulative = tf.cumsum(tf.nn.softmax(logits), axis=-1)
    y = tf.reduce_sum(
        tf.cast(cumulative < tf.cast(draws, logits.dtype)[:, None], tf.int32), axis=-1
    )
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
    [logits] = outputs
    if logits.shape[-1] == 1:
        return tf.concat([tf.zeros_like(logits), logits], axis=-1)  # whose softmax is the sigmoid
    if any(operation.type == "Sigmoid" for operation in logits.consumers()):
        raise ValueError(
            "Expected a softmax, which chooses one class. Received: a model that ends in "
            f"{logits.shape[-1]} sigmoids, each a choice of its own. Take `compute_importance`, "
            "which needs no probabilities."
        )
    return logits


def _reversed(target):
    """Return a target of the logits that is another target of the negative logits."""
    return lambda outputs, given: target([-_logits(outputs)], given)


_TARGETS = {"exact": _exact, "sampled": _sampled, "given": _given}
_REVERSED = {kind: _reversed(target) for kind, target in _TARGETS.items()}
