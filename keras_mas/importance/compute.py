"""Ω of a model over data of any kind: `compute_importance` and `measure_sums`."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from .batches import batches, count_examples, total_examples
from .engine import Engine
from .failures import naming_batch, not_finite, refuse_complex
from .kept import kept_engine
from .outputs import LOGITS
from .progress import OnProgress, Progress
from .rules.slices import SLICE_BYTES
from .shared_pass import current
from .sums import ImportanceSums


def compute_importance(
    model: keras.Model,
    inputs: Any,
    *,
    batch_size: int = 256,
    max_examples: int | None = None,
    output: str | Callable[[Any], Any] = LOGITS,
    slice_bytes: int = SLICE_BYTES,
    verbose: int | str = "auto",
    on_progress: OnProgress | None = None,
) -> dict[str, np.ndarray]:
    """Mean sensitivity of the squared output norm to every weight.

    For inputs x_1 … x_N and network output F,

        Ω = 1/N Σ_k |∂‖F(x_k; θ)‖² / ∂θ|

    which is Eq. 2 of Aljundi et al., "Memory Aware Synapses", ECCV 2018 (arXiv:1711.09601,
    Sec. 4.1, global version). The absolute value is taken per example, before the mean; codes that
    take it after the batch mean let examples cancel and depend on the batch size. No label is read.

    One forward and one backward pass per batch serve the weights of every layer class with a rule
    (`keras_mas.importance.rule` adds one). Others (recurrent layers, layers called several times,
    layers of your own) are measured one example at a time, layer by layer where that is possible:
    as exact, and slower. The log (`keras_mas`, level INFO) names them, and `check_importance` says
    for each weight how it was measured.

    The first call traces the model, which takes longer than its first gradient. What it has traced
    stays with the model, as long as that lives, for the next call with the same `output` and
    `slice_bytes`: graphs, and copies of nothing as large as the weights. Other values of weights
    and other data of the same shapes need no new trace. A change of the model is noticed, and the
    model traced anew: layers frozen or replaced, attributes and classes of layers, functions,
    arrays and objects that attributes hold. Not noticed are a global name that a `call` of yours
    reads, and an object within an object of yours; after such a change call
    `keras_mas.importance.forget_traces(model)`, which also frees what is kept.

    Args:
        model: Built `keras.Model`, outputs `[N, ...]`; several outputs add their squared norms. It
            runs with `training=False` (dropout is off, batch statistics stay fixed), in the
            precision of its variables, and is left as it was. Its output for an example must not
            depend on the other examples of a batch; stateful recurrent layers start every example
            from their initial state, as after `reset_states`.
        inputs: Array `[N, ...]`, a list or dict of arrays, a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or an iterable of batches, scaled as in training, N ≥ 1. Labels
            in it are ignored.
        batch_size: Examples per pass over arrays; data that are batched already keep their
            batches. Changes time and memory, not the result.
        max_examples: Stop after so many examples; None for all of them.
        output: Which function was learned. `"logits"`: the outputs, before the softmax or sigmoid
            that a model may end in; `"output"`: the outputs as they are; the name of a layer; a
            function from the model's outputs to one or several tensors; or `"layers"`: every layer
            is a function of its own inputs, as in the paper's local version l-MAS (Sec. 4.3): for
            a ReLU layer y = relu(aW) that is Ω_ij = 2/N Σ_k a_ki y_kj. An activation that is the
            next layer counts as the layer's own.
        slice_bytes: Memory for the largest product of a rule; a layer that needs more takes the
            examples of a batch in slices, of one example at least.
        verbose: 1 shows a progress bar, 0 none, `"auto"` one on a terminal once a pass has taken
            two seconds.
        on_progress: Called after every batch with the number of examples measured so far, and that
            of all examples, or None where only iterating over the data can tell. It takes the place
            of the progress bar.

    Returns:
        Dict from the name of a weight to an array of the weight's shape, all entries ≥ 0, in
        squared output units per unit of weight; float32, or float64 where the weight is. A key for
        each trainable weight: its `path`, unless two weights of the model have equal paths (see
        `keras_mas.weights.weight_names`).

    Raises:
        ValueError: If the model is not built, has no trainable weights or weights in float16, or
            gives NaN or infinite outputs; if the inputs are empty or of unequal length; if an
            option has no such value.

    Example:
        >>> import keras, numpy as np
        >>> x = keras.Input([1])
        >>> line = keras.Model(x, keras.layers.Dense(1, name="line")(x))
        >>> line.set_weights([np.array([[1.0]]), np.array([0.0])])
        >>> omega = compute_importance(line, np.array([[1.0], [-1.0]]))
        >>> {name: values.tolist() for name, values in omega.items()}
        {'line/kernel': [[2.0]], 'line/bias': [2.0]}
    """
    return measure_sums(
        model,
        inputs,
        batch_size=batch_size,
        max_examples=max_examples,
        output=output,
        slice_bytes=slice_bytes,
        verbose=verbose,
        on_progress=on_progress,
    ).mean()


def measure_sums(
    model: keras.Model,
    inputs: Any,
    *,
    batch_size: int = 256,
    max_examples: int | None = None,
    output: str | Callable[[Any], Any] = LOGITS,
    slice_bytes: int = SLICE_BYTES,
    verbose: int | str = "auto",
    on_progress: OnProgress | None = None,
) -> ImportanceSums:
    """Return the sums that `compute_importance` takes the mean of, to add those of other shards.

    Args:
        model: As for `compute_importance`.
        inputs: As for `compute_importance`.
        batch_size: As for `compute_importance`.
        max_examples: As for `compute_importance`.
        output: As for `compute_importance`.
        slice_bytes: As for `compute_importance`.
        verbose: As for `compute_importance`.
        on_progress: As for `compute_importance`.

    Returns:
        Σ_k |g_k| for every weight, and N.

    Raises:
        ValueError: As `compute_importance`.
    """
    progress = Progress(verbose, total_examples(inputs, max_examples), on_progress)
    data = ((batch, ()) for batch in batches(inputs, batch_size, max_examples))
    with kept_engine(model, output, slice_bytes) as engine:
        return run_engine(engine, data, progress)


def run_engine(
    engine: Engine, data: Iterable[tuple[Any, Any]], progress: Progress
) -> ImportanceSums:
    """Return the sums of an engine over its batches: pairs of inputs and data for its targets."""
    examples, part = 0, current()
    for number, batch in enumerate(data):
        if part.has(number):
            _add(engine, batch, number)
        examples += count_examples(batch)
        progress.add(count_examples(batch))
    progress.end()
    return ImportanceSums(part.totals(engine.results()), examples)


def _add(engine, batch, number):
    refuse_complex(engine.model, batch[0], number)
    with naming_batch(engine.model, batch[0], number):
        finite = engine.add(batch)
    if not finite:
        raise not_finite(engine.model, number)
