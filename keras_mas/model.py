"""MASModel: a Keras model whose own train_step protects what it has learned."""

import keras
import numpy as np
import tensorflow as tf

from .memory import SynapticMemory
from .methods import PENALTIES

_MEMORY = "memory:"  # what the keys of λ, Ω and θ* begin with among a model's own variables


@keras.saving.register_keras_serializable("keras_mas")
class MASModel(keras.Model):
    """A `keras.Model` that adds λ Σ Ω (θ − θ*)² to its loss, with the gradient in closed form.

    The same mathematics as `SynapticMemory.protect` on a stock model, and the same weights to
    float32 rounding; here Ω, θ* and λ are part of the model and come back with `model.save`. The
    reported `loss` holds the penalty where it is in the loss; `val_loss` is the task's loss alone.

        model = MASModel(inputs, outputs, strength=1.0)
        model.compile(...)
        model.fit(a, ...)
        model.consolidate(inputs_of_a)
        model.fit(b, ...)

    `keras.models.load_model` finds the class once `keras_mas.MASModel` has been named, or
    `keras_mas` imported after Keras. `keras.models.clone_model` gives a model that remembers
    nothing, with λ = 1. `train_step` does what Keras's own does, and so do metrics, sample weights,
    gradient clipping, loss scaling and distribution.

    A network that defines its own `call` is protected as one layer of it,
    `MASModel(inputs, network(inputs))`.

    Args:
        inputs: As for a functional `keras.Model`.
        outputs: As for a functional `keras.Model`.
        name: Name of the model.
        strength: λ ≥ 0, the weight of the penalty beside the loss. 0 is plain fine-tuning.
        penalty: `"in_loss"`, the paper's; or `"decoupled"`: the optimizer steps on the task's loss
            alone, and then θ ← θ* + (θ − θ*) / (1 + 2 η λ Ω) with the learning rate η, the proximal
            step of the same penalty, as AdamW treats weight decay. It is stable for every λ. The
            same λ holds less than in the loss: with momentum m like λ (1 − m), and under Adam,
            which enlarges small gradients, like a thousandth in our experiments. Start from 10.
        memory: A `SynapticMemory` that several models share, heads on one trunk for example: the
            weights that it attends to are held, and `strength` is its own. None for a memory of
            this model, of all its trainable weights.
        **kwargs: Passed to `keras.Model`.

    Attributes:
        memory: The `SynapticMemory` that holds λ, Ω and θ*.

    Raises:
        ValueError: If `strength` is negative or not finite, or `penalty` is neither.
    """

    # Keras takes a class for a functional model, and so for one it can save, by this signature.
    def __init__(self, *args, strength=1.0, penalty="in_loss", memory=None, **kwargs):
        if penalty not in PENALTIES:
            raise ValueError(
                f"Expected a penalty out of {', '.join(PENALTIES)}. Received: {penalty!r}."
            )
        if not args and "inputs" not in kwargs:
            raise ValueError(
                "Expected the inputs and outputs of a functional model. Received: none. Protect a "
                "network that defines its own `call` as a layer: `MASModel(inputs, net(inputs))`."
            )
        super().__init__(*args, **kwargs)
        self.penalty = penalty
        self.memory = SynapticMemory(strength) if memory is None else memory
        self.shares_memory = memory is not None

    @property
    def strength(self):
        """λ, a float. Setting it acts in the next training step."""
        return self.memory.strength

    @strength.setter
    def strength(self, value):
        self.memory.strength = value

    def consolidate(self, inputs, **options):
        """Make what the model knows now the thing to protect; see `SynapticMemory.consolidate`."""
        self._attend()
        self.memory.consolidate(self, inputs, **options)

    def make_train_function(self, force=False):
        """Attend to every trainable weight, and warn, before a `fit` takes its first step."""
        new = self._attend()
        if self.penalty == "in_loss":
            self.memory.warn_if_unstable(self)
        return super().make_train_function(force=force or bool(new))

    def _attend(self):
        return [] if self.shares_memory else self.memory.attend(self)

    def train_step(self, data):
        """Take one step on the task's loss and the penalty; `data` as `fit` passes it."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred, sample_weight, training=True)
            if self.penalty == "in_loss":
                loss += tf.cast(self.memory.penalty(self), loss.dtype) / _replicas()
            scaled_loss = self.optimizer.scale_loss(loss)
        weights = self.trainable_weights
        gradients = tape.gradient(scaled_loss, weights)
        self._track(loss * _replicas(), x)
        self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        if self.penalty == "decoupled":
            self._draw_to_anchor(weights)
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def save_own_variables(self, store):
        """Write λ, Ω and θ* beside the model's own variables (called by `save`)."""
        super().save_own_variables(store)
        for key, array in self.memory.state().items():
            store[_to_store(key)] = array

    def load_own_variables(self, store):
        """Read λ, Ω and θ* back (called when a model or its weights are loaded)."""
        arrays = {key: np.asarray(store[key]) for key in store.keys()}  # noqa: SIM118 (HDF5)
        remembered = {key: arrays.pop(key) for key in list(arrays) if key.startswith(_MEMORY)}
        super().load_own_variables(arrays)
        if remembered:  # a stock model's weights file has none
            self.memory.restore({_from_store(key): array for key, array in remembered.items()})

    def get_config(self):
        """Return the model's config with λ; Ω and θ* travel with the variables."""
        own = {"strength": self.strength, "penalty": self.penalty}
        return {**super().get_config(), **own}

    def _draw_to_anchor(self, weights):
        for weight in weights:
            drawn = self.memory.drawn(weight, self.optimizer.learning_rate)
            if drawn is not None:
                weight.assign(tf.cast(drawn, weight.dtype))

    def _track(self, loss, x):
        examples = tf.shape(tf.nest.flatten(x)[0])[0]
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss, sample_weight=examples)


def _replicas():
    """Return among how many replicas a batch is split: Keras adds their losses and gradients up."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def _to_store(key):
    # HDF5 would take "/" for a folder.
    return _MEMORY + key.replace("/", "|")


def _from_store(key):
    return key.removeprefix(_MEMORY).replace("|", "/")
