"""The doors: Ω of a model over data of any kind."""

import sys
import time

import keras

from .batches import batches, count_examples
from .definition import FAILURES, not_finite, refused
from .engine import Engine
from .outputs import LOGITS
from .rules.slices import SLICE_BYTES
from .sums import ImportanceSums


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
    on_progress=None,
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
        on_progress: Function told after every batch how many examples have been measured, and of
            how many, or None where that is not known. It takes the place of the progress bar.

    Returns:
        `ImportanceSums`.

    Raises:
        ValueError: As `compute_importance`.
    """
    data = ((batch, ()) for batch in batches(inputs, batch_size, max_examples))
    return run_engine(Engine(model, output, slice_bytes), data, verbose, on_progress)


def run_engine(engine, data, verbose, on_progress=None):
    """Return the `ImportanceSums` of an engine over pairs of inputs and what its targets need."""
    progress = _Progress(0 if on_progress else verbose)
    examples = 0
    for number, batch in enumerate(data):
        try:
            finite = engine.add(batch)
        except FAILURES as error:
            raise refused(engine.model, batch[0], number, error) from error
        if not finite:
            raise not_finite(engine.model, number)
        examples += count_examples(batch)
        progress.update(examples)
        if on_progress:
            on_progress(examples, None)
    progress.update(examples, is_last=True)
    return ImportanceSums(engine.finished(), examples)


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
