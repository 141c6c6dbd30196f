"""Importances that the library does not offer, as methods for `--method variants:NAME`.

`MAS_8`, `EWC_1024` and so on take the magnitude or the square after the mean over batches of that
many examples, as the public codes do; `EWC_1` is the exact empirical Fisher. `AbsoluteFisher` is
that of Benzing (AISTATS 2022).
"""

from typing import ClassVar

import keras
import numpy as np
import tensorflow as tf

from keras_mas.importance.compute import run_engine
from keras_mas.importance.definition import squared_norms
from keras_mas.importance.kept import kept_engine
from keras_mas.importance.outputs import LOGITS
from keras_mas.importance.progress import Progress
from keras_mas.importance.rules.slices import SLICE_BYTES
from keras_mas.methods import ewc, mas, quadratic
from keras_mas.weights import weight_names


def _negative_log_likelihoods(logits, y):
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y, tf.int32), logits)


# What is differentiated for every example, and what is made of the mean gradient of a batch.
_SENSITIVITY = (lambda outputs, y: squared_norms(outputs), np.abs)
_LIKELIHOOD = (_negative_log_likelihoods, np.square)


def _batch_summed(method, batch_size, function, magnitude):
    """Return a class of method with Ω = Σ_b n_b/N · magnitude(mean gradient of batch b)."""

    def importance(self, model, x, y=None, *, max_examples=None, on_progress=None):
        weights = {name: weight.value for name, weight in _trainable(model).items()}

        @tf.function(reduce_retracing=True)
        def mean_gradients(inputs, labels):
            with tf.GradientTape() as tape:
                mean = tf.reduce_mean(function(model(inputs, training=False), labels))
            return tape.gradient(mean, list(weights.values()), unconnected_gradients="zero")

        sums, examples = dict.fromkeys(weights, 0.0), 0
        for inputs, labels in _batches(x, batch_size, max_examples):
            gradients = mean_gradients(tf.constant(inputs), tf.constant(labels))
            for name, gradient in zip(weights, gradients, strict=True):
                sums[name] = sums[name] + len(labels) * magnitude(gradient.numpy())
            examples += len(labels)
        return {name: total / examples for name, total in sums.items()}

    return type(f"{method.__module__.rpartition('.')[2]}_{batch_size}", (method,), {
        "__doc__": f"As {method.__module__}, summed over batches of {batch_size} first.",
        "importance": importance,
    })  # fmt: skip


def _trainable(model):
    names = weight_names(model)
    return {names[id(weight)]: weight for weight in model.trainable_weights}


def _batches(data, batch_size, max_examples):
    """Yield batches of another size."""
    parts = [(np.asarray(inputs), np.asarray(labels)) for inputs, labels in data]
    inputs, labels = (np.concatenate(arrays)[:max_examples] for arrays in zip(*parts, strict=True))
    for start in range(0, len(labels), batch_size):
        yield inputs[start : start + batch_size], labels[start : start + batch_size]


class OnTestData(mas.Method):
    """MAS whose Ω is measured on the test data of every task, without labels (the paper's Table 3).

    Attributes:
        test_inputs: Those of every task, in order; whoever starts a run sets them before.
    """

    test_inputs: ClassVar[list[np.ndarray]] = []

    def importance(self, model: keras.Model, x, y=None, **options) -> dict[str, np.ndarray]:
        """Return Ω of the test data of the task that was just learned."""
        return super().importance(model, self.test_inputs[self.memory.tasks], **options)


class AbsoluteFisher(quadratic.QuadraticMethod):
    """Ω = 1/N Σ_k E_y |∂ log p(y | x_k) / ∂θ|, y over all classes; summed over the tasks."""

    def importance(
        self, model: keras.Model, x, y=None, *, max_examples=None, on_progress=None
    ) -> dict[str, np.ndarray]:
        """Return the mean magnitude of the gradient of the log-likelihood."""
        [(inputs, _)] = _batches(x, 10**9, max_examples)
        data = ((tf.constant(inputs[i : i + 256]), ()) for i in range(0, len(inputs), 256))
        with kept_engine(model, LOGITS, SLICE_BYTES, _weighted_log_likelihoods, tf.abs) as engine:
            return run_engine(engine, data, Progress(0, None, on_progress)).mean()


def _weighted_log_likelihoods(outputs, _):
    """Return p(c | x_k) · log p(c | x_k) for every class c, with p(c | x_k) held constant."""
    [logits] = outputs
    log_p = tf.nn.log_softmax(logits)
    p = tf.stop_gradient(tf.exp(log_p))
    return [p[:, c] * log_p[:, c] for c in range(log_p.shape[-1])]


MAS_8, MAS_64, MAS_1024 = (_batch_summed(mas.Method, n, *_SENSITIVITY) for n in (8, 64, 1024))
EWC_1, EWC_8, EWC_64, EWC_128, EWC_1024 = (
    _batch_summed(ewc.Method, n, *_LIKELIHOOD) for n in (1, 8, 64, 128, 1024)
)
