"""Task-free MAS: consolidate when the loss of a stream is on a plateau, told of no boundary."""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from ..arrays import joined, split
from ..heads import AllHeads, refuse_without_method
from ..importance import compute_importance
from ..model import MASModel
from ..plateau import PlateauDetector
from .base import counted
from .quadratic import QuadraticMethod

# Examples that are kept; the authors' code keeps 30.
HARD_EXAMPLES = 30

# What a saved file holds: beside the memory, the window of losses, the hard examples with what they
# are measured on, and how many tasks there have been, as far as who calls `fit` knows of any.
_GROUPS = ("memory", "plateaus", "hard", "stream")


class NothingProtectedWarning(UserWarning):
    """A task has ended, and the loss has not been on a plateau yet."""


class HardExamples:
    """A small buffer of the recent examples with the largest loss.

    It works in a traced function as it does outside of one.

    Args:
        shape: Shape of one input.
        capacity: How many examples are kept.
    """

    def __init__(self, shape: tuple[int, ...], capacity: int = HARD_EXAMPLES):
        self.capacity = capacity
        self._inputs = tf.Variable(tf.zeros([capacity, *shape]), trainable=False)
        self._labels = tf.Variable(tf.zeros([capacity], tf.int64), trainable=False)
        self.count = tf.Variable(0, trainable=False)

    @property
    def inputs(self) -> tf.Tensor:
        """The inputs, `[n, ...]`."""
        return self._inputs[: self.count]

    @property
    def labels(self) -> tf.Tensor:
        """Their labels, `[n]`."""
        return self._labels[: self.count]

    def keep_hardest(self, inputs: tf.Tensor, labels: tf.Tensor, losses: tf.Tensor) -> None:
        """Keep the examples with the largest losses, in the place of those that were kept.

        Args:
            inputs: `[N, ...]`.
            labels: `[N]`.
            losses: `[N]`.
        """
        count = tf.minimum(self.capacity, tf.size(losses))
        hardest = tf.math.top_k(losses, count).indices
        empty = tf.zeros([self.capacity - count], tf.int32)  # rows that are not looked at
        rows = tf.concat([hardest, empty], axis=0)
        self._inputs.assign(tf.gather(inputs, rows))
        self._labels.assign(tf.gather(labels, rows))
        self.count.assign(count)

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """The state, by name, to save or to assign."""
        return {"inputs": self._inputs, "labels": self._labels, "count": self.count}


@keras.saving.register_keras_serializable("keras_mas")
class OnlineMASModel(AllHeads, MASModel):
    """A `MASModel` that trains on hard examples beside the new ones, and watches their loss.

    Args:
        inputs: As for `AllHeads`, of one input.
        outputs: As for `AllHeads`.
        name: As for `AllHeads`.
        plateaus: Is told of the loss of the new examples of every step. None for a model of no
            method, which is loaded.
        **options: As for `AllHeads` and `MASModel`.

    Attributes:
        hard: The hard examples.
    """

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        name: str | None = None,
        *,
        plateaus: PlateauDetector | None = None,
        **options: Any,
    ):  # pragma: no mutate block
        super().__init__(inputs, outputs, name, **options)
        self._has_method = plateaus is not None
        self._plateaus = PlateauDetector() if plateaus is None else plateaus
        self.hard = HardExamples(self.input_shape[1:])

    def make_train_function(self, force: bool = False) -> Callable:
        """Refuse, when a `fit` begins, to go on after a plateau at which nothing was protected."""
        refuse_without_method(self, self._has_method)
        if bool(self._plateaus.has_met_plateau):
            raise ValueError(
                f"Expected `callbacks=method.callbacks()` in every `fit` of '{self.name}'. "
                "Received: a plateau of the loss after which nothing was consolidated."
            )
        return super().make_train_function(force=force)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Take one step on new and hard examples together; labels are numbers of logits."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        x = tf.concat([tf.cast(x, tf.float32), self.hard.inputs], axis=0)
        y = tf.concat([tf.reshape(tf.cast(y, tf.int64), [-1]), self.hard.labels], axis=0)
        if sample_weight is not None:
            ones = tf.ones([self.hard.count], sample_weight.dtype)
            sample_weight = tf.concat([tf.reshape(sample_weight, [-1]), ones], axis=0)
        return super().train_step((x, y, sample_weight))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Return the loss and the penalty; in training, take note of each example's loss."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if training:
            losses = self._loss_of_each(y, y_pred)
            new = tf.size(losses) - self.hard.count
            self._plateaus.add(tf.reduce_mean(losses[:new]))
            self.hard.keep_hardest(x, y, losses)
        return loss

    def learned_logits(self, logits: tf.Tensor) -> tf.Tensor:
        """Return the logits, 0 for those whose class has not occurred yet."""
        return tf.where(self.labels_met, logits, 0.0)

    def _loss_of_each(self, labels, logits):
        """Return the loss of every example, `[N]`."""
        loss = keras.losses.get(self.loss)
        of_each = loss.call if isinstance(loss, keras.losses.Loss) else loss
        return tf.cast(of_each(labels, self.own_logits(logits, labels)), tf.float32)


class Method(QuadraticMethod):
    """Task-free MAS (Aljundi, Kelchtermans and Tuytelaars, CVPR 2019, arXiv:1812.03596).

    Nobody says where a task ends. Every step learns from the new examples and from a small buffer
    of the hardest of the recent ones. Where the loss of the new examples is on a plateau after a
    peak (`PlateauDetector`), what was learned is protected: at the n-th plateau

        Ω ← Ω_hard / n + (1 − 1/n) Ω,    θ* ← θ

    with Ω_hard the importance on the hard examples, whose logits are those of all classes seen.

    Unlike the authors' code, the penalty has no factor ½; Ω is of the squared output norm, as in
    MAS, and its mean over the hard examples, not of the norm and their sum; the loss that is
    watched is the mean cross-entropy of new examples, not the sum with that of the hard ones; and a
    batch is learned from in one step, not in five. The thresholds, mean 0.2 and variance 0.1 over 5
    steps, are theirs. Where the loss never falls below them nothing is protected, which a
    warning says. A plateau is noticed when it is met, and acted on when the callback is next told
    of a batch, in the command line up to 32 steps later.

        >>> import keras, numpy as np
        >>> from keras_mas.methods import load_method
        >>> method = load_method("online_mas")(strength=0.1)
        >>> inputs = keras.Input([2])
        >>> model = method.model(inputs, keras.layers.Dense(2)(inputs))
        >>> method.protect(model)
        >>> loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        >>> model.compile(keras.optimizers.SGD(1.0), loss)
        >>> x, y = np.eye(2, dtype="float32").repeat(64, axis=0), np.repeat([0, 1], 64)
        >>> _ = model.fit(x, y, epochs=5, callbacks=method.callbacks(), verbose=0)
        >>> method.memory.tasks  # how often it has consolidated
        1

    Args:
        strength: λ ≥ 0.
        penalty: Where the penalty acts.
    """

    first_task_depends_on_strength: ClassVar[bool] = True  # a plateau may be within it
    trains_all_heads: ClassVar[bool] = True
    measures_examples: ClassVar[bool] = False  # but those that it keeps
    takes_auto: ClassVar[bool] = False  # it consolidates in the middle of a fit
    needs_one_device: ClassVar[str | None] = (
        "keeps the hardest examples of whole batches, and consolidates in the middle of an epoch"
    )

    def __init__(self, strength: float | str | None = None, penalty: str = "in_loss"):
        super().__init__(strength, penalty)
        self.plateaus = PlateauDetector()
        self._model: Any = None
        self._tasks = 0

    def model(self, inputs: Any, outputs: Any, name: str | None = None) -> keras.Model:
        """Return the one `OnlineMASModel` of the whole stream."""
        self._model = OnlineMASModel(
            inputs,
            outputs,
            name,
            plateaus=self.plateaus,
            memory=self.memory,
            penalty=self.penalty,
        )
        return self._model

    def restart(self, strength: float | str) -> None:
        """Forget everything, and take another λ."""
        super().restart(strength)
        self.plateaus.restart()
        self._tasks = 0
        if self._model is not None:
            self._model.hard.count.assign(0)
            self._model.labels_met.assign(tf.zeros_like(self._model.labels_met))

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Return what consolidates at a plateau; every `fit` needs it."""
        return [_ConsolidateAtPlateau(self)]

    def importance(
        self, model: keras.Model, x: Any, y: Any = None, **options: Any
    ) -> dict[str, np.ndarray]:
        """Return Ω of the logits of all classes that have occurred."""
        return compute_importance(model, x, output=model.learned_logits, verbose=0)

    def merged(
        self, importance: np.ndarray, anchor: np.ndarray, now: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the running average of Ω over plateaus, and θ."""
        n = self.memory.tasks + 1
        return now / n + (1 - 1 / n) * importance, weight

    def consolidate(self, model: keras.Model) -> None:
        """Protect what the model knows of its hard examples."""
        super().after_task(model, model.hard.inputs.numpy())
        self.plateaus.has_met_plateau.assign(False)

    def after_task(
        self,
        model: keras.Model,
        x: Any,
        y: Any = None,
        *,
        max_examples: int | None = None,
        on_progress: Callable | None = None,
    ) -> None:
        """Do nothing with the end of a task, but say if nothing is protected so far."""
        self._tasks += 1
        if self.memory.tasks == 0:
            warnings.warn(
                "The loss has not been on a plateau yet: no "
                f"{self.plateaus.losses.shape[0]} steps had a mean loss below "
                f"{self.plateaus.mean_threshold:g} and a variance below "
                f"{self.plateaus.variance_threshold:g}. Nothing is protected. Learn longer, or "
                "with another learning rate.",
                NothingProtectedWarning,
                stacklevel=2,
            )

    def under_way(self, model: keras.Model) -> dict[str, np.ndarray]:
        """Return the whole state: it may consolidate at any step."""
        return self.state()

    def go_on(self, model: keras.Model, arrays: dict[str, np.ndarray]) -> None:
        """Take over a state of the same task."""
        self.restore(arrays, self._tasks)

    def state(self) -> dict[str, np.ndarray]:
        """Return Ω, θ* and λ, the window of losses and the hard examples."""
        values = {
            group: {name: variable.numpy() for name, variable in part.items()}
            for group, part in self._variables().items()
        }
        stream = {"tasks": np.array(self._tasks)}
        return joined({"memory": super().state(), **values, "stream": stream})

    def restore(self, arrays: dict[str, np.ndarray], tasks: int) -> None:
        """Take over a `state`; ValueError if it is of other tasks."""
        saved = split(arrays, _GROUPS)
        ended = saved["stream"].get("tasks", tasks)  # earlier versions did not save it
        if ended != tasks:
            raise ValueError(f"it is of {counted(int(ended), 'task')}, not of {tasks}")
        # A model with more heads than then has met none of their labels.
        met = saved["hard"]["labels_met"]
        more = max(0, self._model.labels_met.shape[0] - len(met))
        saved["hard"]["labels_met"] = np.pad(met, (0, more))
        found = [
            (variable, _of_shape(variable, name, saved[group][name]))
            for group, part in self._variables().items()
            for name, variable in part.items()
        ]
        plateaus = int(saved["memory"]["tasks"])  # whose number is not that of tasks
        super().restore(saved["memory"], plateaus)
        for variable, values in found:
            variable.assign(values)
        self._tasks = tasks

    def _variables(self):
        met = {"labels_met": self._model.labels_met}
        return {"plateaus": self.plateaus.variables, "hard": self._model.hard.variables | met}


def _of_shape(variable, name, values):
    if values.shape != tuple(variable.shape):
        raise ValueError(f"its '{name}' are {values.shape}, not {tuple(variable.shape)}")
    return values


class _ConsolidateAtPlateau(keras.callbacks.Callback):
    """Consolidates after a batch if there was a plateau since the last one it was told of."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Consolidate, if there was a plateau."""
        if bool(self.method.plateaus.has_met_plateau):
            self.method.consolidate(self.model)
