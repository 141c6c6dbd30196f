"""`check_importance`: the engine against the definition, for a model of the user's own."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from .batches import batches, positive_integer
from .compute import run_engine
from .definition import importance_one_by_one
from .kept import kept_engine
from .outputs import LOGITS
from .progress import Progress
from .rules.slices import SLICE_BYTES


@dataclasses.dataclass(frozen=True)
class WeightCheck:
    """How well the importance of one weight agrees with its definition.

    Attributes:
        error: max |Ω − Ω'| / max |Ω'| over the entries of the weight, where Ω is from
            `compute_importance` and Ω' from `importance_one_by_one`; 0 where both are 0 everywhere,
            infinite where only Ω' is.
        way: How `compute_importance` measured it: "rule", "layer by layer, example by example",
            "whole model, example by example" or "not used by the outputs".
        largest: max |Ω'|. A weight that the outputs do not depend on in exact arithmetic, such as
            the bias of an attention's keys, has rounding here, a millionth of other weights or less
            in float32; `error`, a ratio of two roundings, is then meaningless.
    """

    error: float
    way: str
    largest: float


def check_importance(
    model: keras.Model,
    inputs: Any,
    examples: int = 8,
    *,
    output: str | Callable[[Any], Any] = LOGITS,
    slice_bytes: int = SLICE_BYTES,
) -> dict[str, WeightCheck]:
    """Measure importance as `compute_importance` does and by its definition; compare the two.

    The relative error of a weight in float32 is expected between 1e-7 and 1e-4, which is rounding.
    A larger one is a defect of a rule (`keras_mas.importance.rule`), or a model that treats
    examples differently depending on their values; see `keras_mas/importance/rowwise.py`.

    Args:
        model: As for `compute_importance`.
        inputs: As for `compute_importance`; of an iterator, as many examples as are compared are
            consumed.
        examples: How many of the first examples to measure, in batches of at most so many. By the
            definition each takes a forward and a backward pass that is not compiled.
        output: As for `compute_importance`.
        slice_bytes: As for `compute_importance`.

    Returns:
        Dict from the name of a weight, as in `compute_importance`, to its `WeightCheck`.

    Raises:
        ValueError: As `compute_importance`, or if `examples` is no positive integer.

    Example:
        >>> import keras, numpy as np
        >>> x = keras.Input([1])
        >>> line = keras.Model(x, keras.layers.Dense(1, name="line")(x))
        >>> line.set_weights([np.array([[1.0]]), np.array([0.0])])
        >>> check_importance(line, np.array([[1.0], [-1.0]]))["line/kernel"]
        WeightCheck(error=0.0, way='rule', largest=2.0)
    """
    examples = positive_integer("examples", examples)
    data = list(batches(inputs, examples, examples))
    quiet = Progress(verbose=0, total=None, on_progress=None)
    with kept_engine(model, output, slice_bytes) as engine:
        fast = run_engine(engine, ((batch, ()) for batch in data), quiet).mean()
        ways = engine.ways
    # As tuples of one, because a list would be taken for inputs and labels.
    slow = importance_one_by_one(model, ((batch,) for batch in data), output=output)
    return {
        name: WeightCheck(
            relative_error(fast[name], slow[name]), ways[name], float(slow[name].max())
        )
        for name in slow
    }


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return max |found − expected| / max |expected|, both arrays of one shape.

    0 where both are 0 everywhere, infinite where only `expected` is.
    """
    difference, scale = np.abs(found - expected).max(), np.abs(expected).max()
    if scale == 0:
        return 0.0 if difference == 0 else float("inf")
    return float(difference / scale)
