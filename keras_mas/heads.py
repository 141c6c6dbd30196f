"""A shared trunk with a head, an output layer, for every task; models of one or of all heads."""

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from . import replicas
from .binding import moving_batch_norms
from .distillation import within_head

# What TensorFlow takes for the name of a scope; another name breaks every later model in a process.
_NOT_IN_A_SCOPE = re.compile(r"[^A-Za-z0-9_.-]")

# Whether tasks share the batch normalization layers of the trunk.
_BATCH_NORM = ("shared", "per_task")


class MultiHead:
    """One shared trunk, and for every task a head and a model of its own.

    A Keras model cannot grow after it is built, so each head makes a new functional model around
    the same trunk: its weights are shared, not copied. Protect the trunk; a finished head is in no
    later task's model, so nothing moves it.

        heads = MultiHead(trunk)
        memory.protect(trunk)
        model = heads.add("cats-dogs", units=2)

    Args:
        trunk: Built `keras.Model` with one input and one output `[N, features]`.
        model: What makes a model of `(inputs, outputs, name=...)`: `keras.Model`, or for example
            `functools.partial(MASModel, memory=memory)`.
        batch_norm: `"shared"`: all tasks go through the batch normalization layers of the trunk.
            `"per_task"`: every task has its own copies of them, scale and offset and moving
            statistics, which begin as the trunk's and are part of its head. Then protect the trunk
            with `protect(trunk, batch_norm="update")`, for nothing moves the trunk's own.

    Attributes:
        trunk: The trunk.
        models: The model of every task, by the task's name.

    Raises:
        ValueError: If the trunk is not built, has several inputs or outputs, or, with
            `batch_norm="per_task"`, has batch normalization inside a layer of another class.
    """

    def __init__(
        self,
        trunk: keras.Model,
        model: Callable[..., keras.Model] = keras.Model,
        *,
        batch_norm: str = "shared",
    ):
        if not trunk.built or len(trunk.inputs) != 1 or len(trunk.outputs) != 1:
            raise ValueError(
                f"Expected a built trunk with one input and one output. Received: '{trunk.name}'"
                f"{'' if trunk.built else ', which is not built'}. Make it a functional "
                "`keras.Model(inputs, features)`."
            )
        if batch_norm not in _BATCH_NORM:
            raise ValueError(
                f"Expected batch_norm to be one of {', '.join(map(repr, _BATCH_NORM))}. Received: "
                f"{batch_norm!r}."
            )
        self.trunk = trunk
        self.make_model = model
        self.batch_norm = batch_norm
        self.models: dict[str, keras.Model] = {}
        self._copies: dict[str, dict[keras.Layer, keras.Layer]] = {}
        if batch_norm == "per_task":
            _refuse_hidden_batch_norms(trunk)

    def add(self, task: str, units: int) -> keras.Model:
        """Return a new model from the trunk's input to the logits `[N, units]` of a task.

        Args:
            task: Name of the task, and of its head's layer, in which characters other than letters,
                digits, `_`, `.` and `-` become `_`.
            units: Number of classes.

        Raises:
            ValueError: If the task has a head.
        """
        if task in self.models:
            raise ValueError(f"Expected a new task. Received: '{task}', which has a head already.")
        name = self._scope_name(task)
        self._copies[task] = {}
        inputs, features = self._features(name, self._copies[task])
        self.reset_batch_norm(task)
        logits = keras.layers.Dense(units, name=f"head-{name}")(features)
        self.models[task] = self.make_model(inputs, logits, name=f"model-{name}")
        return self.models[task]

    def reset_batch_norm(self, task: str) -> None:
        """Give a task's own batch normalization layers, if it has any, the trunk's values."""
        for layer, copy in self._copies[task].items():
            copy.set_weights(layer.get_weights())

    def joint(self, tasks: Iterable[str] | None = None) -> keras.Model:
        """Return one model with the logits of several heads, to save them with one trunk.

        Args:
            tasks: Names of the tasks; all of them by default.

        Returns:
            `keras.Model` from the trunk's input to a dict from task to logits.
        """
        names = list(self.models) if tasks is None else list(tasks)
        logits = {task: self.models[task].outputs[0] for task in names}
        return keras.Model(self.trunk.inputs[0], logits, name="multi-head")

    def _scope_name(self, task):
        name = _NOT_IN_A_SCOPE.sub("_", task)
        taken = {model.name for model in self.models.values()}
        numbered = [name, *(f"{name}-{number}" for number in range(2, len(taken) + 3))]
        return next(name for name in numbered if f"model-{name}" not in taken)

    def _features(self, name, copies):
        """Return the trunk's input, and its output through the layers of one task.

        Args:
            name: What the names of its own layers end in.
            copies: Dict that its own layers are added to, by the trunk's.
        """
        inputs = self.trunk.inputs[0]
        if self.batch_norm == "shared":
            return inputs, self.trunk.outputs[0]

        def own(layer):
            if isinstance(layer, keras.layers.BatchNormalization):
                config = {**layer.get_config(), "name": f"{layer.name}-{name}"}
                return copies.setdefault(layer, type(layer).from_config(config))
            # Keras cannot save a layer that models inside a model share, so their layers are
            # applied one by one.
            return functools.partial(_applied, layer, own) if _is_graph(layer) else layer

        return inputs, _applied(self.trunk, own, inputs)


@keras.saving.register_keras_serializable("keras_mas")
class SideBySide(keras.layers.Concatenate):
    """Puts the logits of several heads side by side, `[N, C]`; by it a model knows its heads."""


# It is mixed with a class of functional models. Keras puts another class into the bases of these
# when the first of them is made, so that what they share must not be such a class itself.
_Base: Any = object


class AllHeads(_Base):
    """What makes a functional model one in which several heads are trained together.

    Their logits are side by side. A label is the number of a logit, and so says which head answers
    for its example: the loss and the metrics see the logits of this head alone. An example of the
    second class of the second of two heads with two logits each has the label 3.

        model = AllHeadsModel(trunk.inputs[0], [m.outputs[0] for m in heads.models.values()])

    To save the heads, save `MultiHead.joint`, which shares their weights; or the model, which knows
    its heads again when it is loaded, as does a copy by `keras.models.clone_model`.

    Args:
        inputs: As for a functional `keras.Model`.
        outputs: Logits `[N, units]` of every head; or a tensor, for a model of one head, or of the
            heads that `SideBySide` has put into it.
        name: Name of the model.
        **options: Passed to the class of model that this one is mixed with.

    Attributes:
        heads: The logits of every head, to make another model of: tensors `[N, units]`.
        head_of_logit: `[C]`, int32: the number of the head that a logit belongs to.
        labels_met: `[C]`, a bool variable: which labels training steps have met.

    Raises:
        ValueError: If a head has one logit.
    """

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        name: str | None = None,
        **options: Any,
    ):  # pragma: no mutate block
        heads = list_of_heads(outputs)
        if any(head.shape[-1] == 1 for head in heads):
            raise ValueError(
                "Expected heads of two logits or more: labels are numbers of logits. Received: a "
                "head with one. Give it two, and a sparse cross-entropy as loss."
            )
        if isinstance(outputs, Sequence):
            outputs = SideBySide()(heads) if len(heads) > 1 else heads[0]
        super().__init__(inputs=inputs, outputs=outputs, name=name, **options)
        self.heads = heads
        units = [head.shape[-1] for head in heads]
        self.head_of_logit = np.repeat(np.arange(len(heads), dtype="int32"), units)
        self.labels_met = tf.Variable(np.zeros(sum(units), bool), trainable=False)

    def own_logits(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        """Return logits `[N, C]` of which only those of the label's head can be chosen."""
        return within_head(logits, labels, tf.constant(self.head_of_logit))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Return the loss within the heads of the labels."""
        if training:
            occurring = replicas.any_of(_occurring(y, len(self.head_of_logit)))
            self.labels_met.assign(self.labels_met | occurring)
        own = self.own_logits(y_pred, y)
        return super().compute_loss(x, y, own, sample_weight, training)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Return the metrics within the heads of the labels."""
        return super().compute_metrics(x, y, self.own_logits(y_pred, y), sample_weight)


@keras.saving.register_keras_serializable("keras_mas")
class AllHeadsModel(AllHeads, keras.Model):
    """A `keras.Model` of all heads; see `AllHeads`."""


def refuse_without_method(model: AllHeads, has_method: bool) -> None:
    """Refuse to train a loaded model that needs what the method remembers beside it.

    Raises:
        ValueError: If it has no method.
    """
    if not has_method:
        raise ValueError(
            "Expected a model that its method has made, to train. Received: "
            f"'{model.name}', which was loaded or copied, and of which no method knows. Train "
            "`method.model(loaded.inputs[0], loaded.heads)`, which shares its weights."
        )


def list_of_heads(outputs: Any) -> list[Any]:
    """Return the logits of every head, of outputs as `AllHeads` takes them."""
    if isinstance(outputs, Sequence):
        return list(outputs)
    layer, node, _ = outputs._keras_history
    if isinstance(layer, SideBySide):
        return list(layer._inbound_nodes[node].input_tensors)
    return [outputs]


def _occurring(labels, classes):
    """Return for every class, `[classes]`, whether it is among labels `[N]` or `[N, 1]`."""
    labels = tf.reshape(tf.cast(labels, tf.int32), [-1, 1])
    return tf.reduce_any(labels == tf.range(classes), axis=0)


def _is_graph(layer):
    return type(layer).__name__ in ("Functional", "Sequential") and moving_batch_norms(layer)


def _applied(model, replace, inputs, **_):
    """Apply the layers of a functional or sequential model, each after `replace`, to its inputs."""
    graph = model._functional if isinstance(model, keras.Sequential) else model
    return graph._run_through_graph(inputs, operation_fn=replace)


def _refuse_hidden_batch_norms(trunk):
    for layer in trunk.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            continue
        if type(layer).__name__ in ("Functional", "Sequential"):
            _refuse_hidden_batch_norms(layer)
        elif moving_batch_norms(layer):
            raise ValueError(
                f"The trunk has batch normalization inside '{layer.name}', a "
                f'{type(layer).__name__}, of which batch_norm="per_task" can make no copy alone. '
                "Make the trunk a functional model of Keras's own layers."
            )
