"""LwF, Learning without Forgetting: hold what earlier tasks' heads answer to new inputs."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from .. import replicas
from ..distillation import distillation_loss
from ..heads import AllHeadsModel, list_of_heads, refuse_without_method
from ..training_step import LossPartMetric
from . import base
from .base import counted

# T, the paper's choice.
TEMPERATURE = 2.0


@dataclasses.dataclass
class Learned:
    """What has been learned so far.

    Attributes:
        tasks: How many tasks.
        logits: `[C]`, bool: whether a logit's class has occurred in one of them.
    """

    tasks: int = 0
    logits: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, bool))


class AsItWas:
    """What a functional model answered when `take` was called last.

    It holds copies of the weights, not of the model, so that nothing is traced again.

    Args:
        model: The model, with one output or several.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self._copies = {id(w): tf.Variable(w.value, trainable=False) for w in model.variables}

    def take(self) -> None:
        """Copy the weights as they are."""
        for weight in self.model.variables:
            self._copies[id(weight)].assign(weight.value)

    def __call__(self, x: Any) -> Any:
        """Return the outputs as they were, as in `model(x, training=False)`."""
        outputs, _ = self.model.stateless_call(
            [self._copies[id(weight)] for weight in self.model.trainable_variables],
            [self._copies[id(weight)] for weight in self.model.non_trainable_variables],
            x,
            training=False,
        )
        return outputs


@keras.saving.register_keras_serializable("keras_mas")
class DistillingModel(AllHeadsModel):
    """A model of all heads that holds the answers of those learned before.

    Its loss is that of the new task and λ times the `distillation_loss` on the same inputs. `fit`
    logs this second part alone, as `distillation`, for the last step of the epoch.

    A loaded one answers as it did, and learns in a model that its method makes of it.

    Args:
        inputs: As for `AllHeadsModel`.
        outputs: As for `AllHeadsModel`.
        name: As for `AllHeadsModel`.
        learned: What had been learned when the model was made; the method keeps it up to date. None
            for a model of no method, which is loaded.
        **options: As for `AllHeadsModel`.
    """

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        name: str | None = None,
        *,
        learned: Learned | None = None,
        **options: Any,
    ):  # pragma: no mutate block
        super().__init__(inputs, outputs, name, **options)
        self._has_method = learned is not None
        self._learned = Learned() if learned is None else learned
        self._holds_tasks = 0
        self._before = AsItWas(keras.Model(inputs, self.held_tensors()))
        self._strength = tf.Variable(0.0, trainable=False)
        self._held_part = LossPartMetric("distillation")
        self._held = tf.Variable(tf.zeros_like(self.labels_met), trainable=False)

    def held_tensors(self) -> Any:
        """Return the tensors of the model that are held."""
        return self.outputs[0]

    def hold(self, strength: float) -> None:
        """Hold what the model answers now, with λ = `strength`, in all later steps."""
        held = np.zeros(len(self.head_of_logit), bool)
        known = self._learned.logits[: len(held)]
        held[: len(known)] = known
        self._before.take()
        self._strength.assign(strength)
        self._held.assign(held)
        self.labels_met.assign(np.zeros_like(held))
        self._holds_tasks = self._learned.tasks

    def make_train_function(self, force: bool = False) -> Callable:
        """Refuse, when a `fit` begins, to learn a task without holding the ones before it."""
        refuse_without_method(self, self._has_method)
        if self._holds_tasks != self._learned.tasks:
            raise ValueError(
                f"Expected `method.before_task(model, x)` before the `fit` of '{self.name}', since "
                f"the method has learned {counted(self._learned.tasks, 'task')}. Received: a model "
                f"that holds {self._holds_tasks}."
            )
        return super().make_train_function(force=force)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Return the loss of the task and, in training, λ times that of what is held."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        held = self._strength * self.held_loss(x, y_pred) * replicas.share(y_pred)
        self._held_part.update_state(replicas.total(tf.stop_gradient(held)))
        return loss + tf.cast(held, loss.dtype)

    def held_loss(self, x: Any, logits: tf.Tensor) -> tf.Tensor:
        """Return how far the model is, for inputs `x`, from what it is held to; a scalar."""
        return self.distance(logits, self._before(x))

    def distance(self, logits: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
        """Return the `distillation_loss` of logits `[N, C]` that were learned before."""
        heads = tf.constant(self.head_of_logit)
        return distillation_loss(logits, before, self._held, heads, TEMPERATURE)


class Method(base.RememberingMethod):
    """Learning without Forgetting (Li and Hoiem, ECCV 2016, arXiv:1606.09282).

    A task is learned with the loss

        L_new + λ Σ_old heads KL(p* ‖ p)        (softmax of logits / 2, before and now)

    on its own inputs, augmented as they may be: no old data, no labels of old tasks. The heads of
    earlier tasks are trained with the trunk, and are then the trained ones. Answers before are
    those of the network as it was when the task began, its dropout off, its statistics fixed. The
    paper's warm-up, in which the new head learns alone at first, is left out.

    A head that tasks share is held in the classes that have occurred: all of them in a domain-
    incremental stream, the earlier tasks' in a class-incremental one.

    Every task's model has the heads of all tasks so far, in the same order, and labels are the
    numbers of their logits, side by side:

        >>> import keras, numpy as np
        >>> from keras_mas.methods import load_method
        >>> method = load_method("lwf")(strength=1.0)
        >>> x, y = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
        >>> inputs = keras.Input([4])
        >>> features = keras.layers.Dense(3, "relu")(inputs)
        >>> heads = []
        >>> for task in range(2):
        ...     heads.append(keras.layers.Dense(2)(features))
        ...     model = method.model(inputs, heads)
        ...     model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        ...     method.before_task(model, x)
        ...     _ = model.fit(x, y + 2 * task, verbose=0)
        ...     method.after_task(model, x)
        >>> model.output_shape
        (None, 4)

    Args:
        strength: λ ≥ 0, the weight of what is held beside the task's loss; the paper's is 1.
        penalty: Unused.
    """

    has_strength: ClassVar[bool] = True
    measures_examples: ClassVar[bool] = False
    first_task_depends_on_strength: ClassVar[bool] = False  # there is nothing to hold in it
    answers_depend_on_after_task: ClassVar[bool] = False
    trains_all_heads: ClassVar[bool] = True
    needs_one_device: ClassVar[str | None] = None

    def __init__(self, strength: float | str | None = None, penalty: str = "in_loss"):
        super().__init__(strength, penalty)
        self.learned = Learned()
        self._heads: list = []

    def model(self, inputs: Any, outputs: Any, name: str | None = None) -> keras.Model:
        """Return a `DistillingModel` of the logits of all heads, or of one that tasks share.

        Raises:
            ValueError: If the heads of the last model are not the first ones of this one.
        """
        self._refuse_other_heads(outputs)
        model = self._made_model(inputs, outputs, name)
        self._heads = list_of_heads(outputs)
        return model

    def restart(self, strength: float | str) -> None:
        """Forget every task and take another λ."""
        super().restart(strength)
        self._note(0, Learned().logits)

    def before_task(self, model: keras.Model, x: Any, y: Any = None) -> None:
        """Have the model hold what it answers now.

        Raises:
            ValueError: If it is no model that `model` returned.
        """
        if not isinstance(model, DistillingModel):
            raise ValueError(
                "Expected a model of `method.model(inputs, heads)`, which holds what it answers. "
                f"Received: '{model.name}', a {type(model).__name__}."
            )
        model.hold(self.strength)

    def under_way(self, model: keras.Model) -> dict[str, np.ndarray]:
        """Return nothing: what is held stays as it is during a task."""
        return {}

    def after_task(
        self,
        model: keras.Model,
        x: Any,
        y: Any = None,
        *,
        max_examples: int | None = None,
        on_progress: Callable | None = None,
    ) -> None:
        """Note which logits have been learned; nothing is measured."""
        logits = model.labels_met.numpy()
        known = self.learned.logits
        logits[: len(known)] |= known[: len(logits)]
        self._note(self.learned.tasks + 1, logits)

    def state(self) -> dict[str, np.ndarray]:
        """Return what has been learned; the answers before are those of the saved network."""
        return {"tasks": np.array(self.learned.tasks), "learned": self.learned.logits}

    def restore(self, arrays: dict[str, np.ndarray], tasks: int) -> None:
        """Take over a `state` after a number of tasks; ValueError if it is of another."""
        if arrays["tasks"] != tasks:
            raise ValueError(f"it is of {counted(int(arrays['tasks']), 'task')}, not of {tasks}")
        self._note(tasks, arrays["learned"])

    def _made_model(self, inputs, outputs, name):
        return DistillingModel(inputs, outputs, name, learned=self.learned)

    def _refuse_other_heads(self, outputs):
        """Refuse a model that lacks the heads which have been learned."""
        heads = list_of_heads(outputs)
        same = [old is new for old, new in zip(self._heads, heads, strict=False)]
        if self.learned.tasks and not (all(same) and len(same) == len(self._heads)):
            raise ValueError(
                "Expected the logits of all heads, first those of the last model "
                f"({len(self._heads)}). Received: {counted(len(heads), 'output')}, not these and "
                "new ones. Pass `[head_of_task_0, head_of_task_1, …]`."
            )

    def _note(self, tasks, logits):
        """Have all models know what has been learned."""
        self.learned.tasks, self.learned.logits = tasks, logits
