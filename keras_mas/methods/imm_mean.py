"""IMM, incremental moment matching, with the mean: evaluate the mean of the tasks' weights."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import keras
import numpy as np

from ..arrays import joined, split
from ..weights import identities, trainable_weights, weight_names
from . import l2

# What a saved file holds: the memory of the L2 penalty, Σ_k s_k and Σ_k s_k θ_k.
_GROUPS = ("memory", "sum", "scaled")


class Method(l2.Method):
    """Mean-IMM (Lee, Kim, Jun, Ha and Zhang, NeurIPS 2017, arXiv:1703.08475).

    Every task goes on from the weights θ_k that the one before it ended with (weight-transfer), and
    is held to them by λ ‖θ − θ_k‖² (L2-transfer; λ = 0 leaves it out). The paper's
    drop-transfer, a dropout towards θ_k, is left out. After task K the weights that tasks share
    are, for evaluation, saving and export,

        θ = 1/K Σ_k θ_k

    with the same share for every task. Heads that are a task's own are not merged: they answer to
    the merged trunk as they are. Nor are the moving statistics of batch normalization.

        >>> import keras, numpy as np
        >>> from keras_mas.methods import load_method
        >>> method = load_method("imm_mean")(strength=0.01)
        >>> inputs = keras.Input([1])
        >>> model = method.model(inputs, keras.layers.Dense(1, use_bias=False)(inputs))
        >>> method.protect(model)
        >>> x = np.ones([2, 1], "float32")
        >>> for weight in (1.0, 4.0):
        ...     model.set_weights([np.array([[weight]])])  # as `fit` would
        ...     method.after_task(model, x)
        >>> with method.evaluated():
        ...     model.get_weights()[0].tolist()
        [[2.5]]
        >>> model.get_weights()[0].tolist()
        [[4.0]]

    Args:
        strength: λ ≥ 0 of the L2-transfer.
        penalty: Where that penalty acts.
    """

    default_strength: ClassVar[float] = 0.01

    answers_depend_on_after_task: ClassVar[bool] = True  # the last weights are merged too

    def __init__(self, strength: float | str | None = None, penalty: str = "in_loss"):
        super().__init__(strength, penalty)
        # Σ_k s_k and Σ_k s_k θ_k, s being the precision, by the places of the merged weights.
        self._sums: dict[str, np.ndarray] = {}
        self._scaled_sums: dict[str, np.ndarray] = {}

    def precision(
        self,
        model: keras.Model,
        x: Any,
        y: Any = None,
        *,
        max_examples: int | None = None,
        on_progress: Callable | None = None,
    ) -> dict[str, np.ndarray]:
        """Return what the weights of a task are weighted by, by the names of the model's weights.

        Args:
            model: The model, after the task.
            x: As for `after_task`.
            y: As for `after_task`.
            max_examples: As for `compute_fisher`.
            on_progress: As for `compute_fisher`.
        """
        return {name: np.ones(w.shape, w.dtype) for name, w in trainable_weights(model).items()}

    def restart(self, strength: float | str) -> None:
        """Forget every task, and take another λ."""
        super().restart(strength)
        self._sums, self._scaled_sums = {}, {}

    def protect(self, shared: keras.Model, *, batch_norm: str | None = None) -> None:
        """Merge the trainable weights of what tasks share."""
        super().protect(shared, batch_norm=batch_norm)
        self._shared = shared

    def after_task(
        self,
        model: keras.Model,
        x: Any,
        y: Any = None,
        *,
        max_examples: int | None = None,
        on_progress: Callable | None = None,
    ) -> None:
        """Add the weights that the task ended with to those of the tasks before it."""
        now = self.precision(model, x, y, max_examples=max_examples, on_progress=on_progress)
        names = weight_names(model)
        super().after_task(model, x, y, max_examples=max_examples)
        for place, weight in self._shared_weights().items():
            # Not those that are frozen now, nor batch normalization of the trunk, in whose place
            # the task has its own.
            if names.get(id(weight)) not in now:
                continue
            precision = now[names[id(weight)]].astype("float64")
            self._sums[place] = self._sums.get(place, 0) + precision
            self._scaled_sums[place] = self._scaled_sums.get(place, 0) + precision * weight.numpy()

    @contextlib.contextmanager
    def evaluated(self) -> Iterator[None]:
        """Put the merged weights in place, within the block."""
        weights = self._shared_weights()
        own = {place: weights[place].numpy() for place in self._sums}
        try:
            for place, total in self._sums.items():
                weights[place].assign(self._scaled_sums[place] / total)
            yield
        finally:
            for place, value in own.items():
                weights[place].assign(value)

    def state(self) -> dict[str, np.ndarray]:
        """Return the sums over tasks, and the memory of the penalty with the last weights."""
        groups = [super().state(), self._sums, self._scaled_sums]
        return joined(dict(zip(_GROUPS, groups, strict=True)))

    def restore(self, arrays: dict[str, np.ndarray], tasks: int) -> None:
        """Take over a `state`, and put the weights in place that training goes on from."""
        saved = split(arrays, _GROUPS)
        super().restore(saved["memory"], tasks)
        self._sums, self._scaled_sums = saved["sum"], saved["scaled"]
        for weight in self._shared_weights().values():
            state = self.memory.state_for(weight)
            if state is not None:
                weight.assign(state.anchor)

    def _shared_weights(self):
        """Return the weights that tasks share, frozen ones too, by their places."""
        return {identity.place: weight for identity, weight in identities(self._shared)}
