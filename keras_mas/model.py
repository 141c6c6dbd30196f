"""MASModel: a Keras model whose own train_step protects what it has learned."""

import contextlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

import keras
import numpy as np
import tensorflow as tf

from . import replicas
from .binding import freeze_statistics, has_frozen_statistics, trace_again
from .choices import checked_penalty
from .memory import SynapticMemory
from .regularizer import penalty_outside_loss
from .training_step import proximal_step_follows

_MEMORY = "memory:"  # what the keys of the memory begin with among a model's own variables
_SHARED = "shared"  # there if other weights of the model are free
_FROZEN = "frozen"  # which layers have frozen statistics


@keras.saving.register_keras_serializable("keras_mas")
class MASModel(keras.Model):
    """A `keras.Model` that protects what it has learned by λ Σ Ω (θ − θ*)².

    The same mathematics as `SynapticMemory.protect` on a stock model, and the same weights to
    float32 rounding; here Ω, θ* and λ are part of the model and come back with `model.save`, and
    the penalty may be decoupled from the loss.

        model = MASModel(inputs, outputs, strength=1.0)
        model.compile(...)
        model.fit(a, ...)
        model.consolidate(inputs_of_a)
        model.fit(b, ...)

    A `fit` whose loss or weights become NaN or infinite ends with a `finite.FitDivergedError`, and
    what is remembered stays as it was.

    `keras.models.clone_model` gives a model that remembers nothing, with λ = 1. `train_step` does
    what Keras's own does, and so do metrics, sample weights, gradient clipping, gradient
    accumulation, loss scaling and distribution.

    A network that defines its own `call` is protected as one layer of it,
    `MASModel(inputs, network(inputs))`.

    Args:
        inputs: As for a functional `keras.Model`.
        outputs: As for a functional `keras.Model`.
        name: Name of the model.
        strength: λ ≥ 0, the weight of the penalty beside the loss. 0 is plain fine-tuning. "auto",
            for which `penalty="decoupled"` suits every optimizer: see `SynapticMemory`.
        penalty: `"in_loss"`, the paper's; or `"decoupled"`: the optimizer steps on the task's loss
            alone, and then θ ← θ* + (θ − θ*) / (1 + 2 η λ Ω) with the learning rate η, the proximal
            step of the same penalty, as AdamW treats weight decay. It is stable for every λ. The
            same λ holds less than in the loss: with momentum m like λ (1 − m), and under Adam,
            which enlarges small gradients, like a thousandth in our experiments. Start from 10.
        memory: A `SynapticMemory` that several models share, heads on one trunk for example: the
            weights that it protects are held, and `strength` is its own. A loaded memory protects
            the weights that it recognizes in the model. None for a memory of this model, of all its
            trainable weights.
        batch_norm: As for `SynapticMemory.protect`, for a memory of this model.
        **kwargs: Passed to `keras.Model`.

    Attributes:
        memory: The `SynapticMemory` that holds λ, Ω and θ*.

    Raises:
        ValueError: If `strength` is negative or not finite, `penalty` is neither, or a loaded
            memory does not fit the model.
    """

    # Keras takes a class for a functional model, and so for one it can save, by this signature,
    # which mutmut's wrapper would hide.
    def __init__(
        self,
        *args: Any,
        strength: float | str = 1.0,
        penalty: str = "in_loss",
        memory: SynapticMemory | None = None,
        batch_norm: str | None = None,
        **kwargs: Any,
    ):  # pragma: no mutate block
        if not args and "inputs" not in kwargs:
            raise ValueError(
                "Expected the inputs and outputs of a functional model. Received: none. Protect a "
                "network that defines its own `call` as a layer: `MASModel(inputs, net(inputs))`."
            )
        checked_penalty(penalty)
        super().__init__(*args, **kwargs)
        self._penalty = penalty
        self.batch_norm = batch_norm
        self.memory = SynapticMemory(strength) if memory is None else memory
        self.shares_memory = memory is not None
        if self.shares_memory:
            self.memory.recognize(self)
        elif self.trainable_weights:
            self.memory.protect(self, batch_norm=batch_norm)

    @property
    def strength(self) -> float:
        """λ as it is now; see `SynapticMemory.strength`."""
        return self.memory.strength

    @strength.setter
    def strength(self, value: float | str) -> None:
        self.memory.strength = value

    @property
    def penalty(self) -> str:
        """Where the penalty acts. Setting it traces the next `fit` again."""
        return self._penalty

    @penalty.setter
    def penalty(self, value: str) -> None:
        checked_penalty(value)
        self._penalty = value
        trace_again(self)

    def consolidate(self, inputs: Any, **options: Any) -> None:
        """Protect what the model knows now, too; see `SynapticMemory.consolidate`."""
        self._protect_own()
        self.memory.consolidate(self, inputs, **options)

    def make_train_function(self, force: bool = False) -> Callable:
        """Check that the protection acts, and warn if it is unstable, when a `fit` begins."""
        self._protect_own()
        self.memory.before_fit(self)
        if self.penalty == "decoupled" and getattr(self.optimizer, "use_ema", False):
            raise ValueError(
                "A decoupled penalty needs an optimizer without `use_ema`: the moving average is "
                "taken before the proximal step, and would undo it. Use "
                'penalty="in_loss" with it.'
            )
        return super().make_train_function(force=force)

    def _protect_own(self):
        """Protect a model whose weights were all frozen when it was made."""
        if not self.shares_memory and not self.memory.importance:
            self.memory.protect(self, batch_norm=self.batch_norm)

    def train_step(self, data: Any) -> dict[str, Any]:
        """Take one step on the task's loss and the penalty; `data` as `fit` passes it."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x, y, y_pred, sample_weight, training=True)
            scaled_loss = self.optimizer.scale_loss(loss)
        weights = self.trainable_weights
        gradients = tape.gradient(scaled_loss, weights)
        self._track_loss(loss * replicas.count(), x)  # Keras adds up the losses of replicas
        self.update_weights(weights, gradients)
        return self.compute_metrics(x, y, y_pred, sample_weight)

    def update_weights(self, weights: list[keras.Variable], gradients: list[Any]) -> None:
        """Take the optimizer's step, and the proximal step of a decoupled penalty after it.

        Args:
            weights: The trainable weights.
            gradients: ∂/∂θ of the loss that `compute_loss` returned, as the optimizer scales it;
                None for a weight that the loss does not depend on.
        """
        rate, steps = self.optimizer.learning_rate, self._optimizer_steps()
        with proximal_step_follows() if self.penalty == "decoupled" else contextlib.nullcontext():
            self.optimizer.apply_gradients(zip(gradients, weights, strict=True))
        if self.penalty == "decoupled":
            self._take_proximal_step(weights, rate, self._optimizer_steps() > steps)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Return the task's loss and, unless it is decoupled, the penalty."""
        decoupled = self.penalty == "decoupled"
        with penalty_outside_loss() if decoupled else contextlib.nullcontext():
            return super().compute_loss(x, y, y_pred, sample_weight, training)

    def save(self, filepath: Any, *args: Any, **kwargs: Any) -> None:
        """Save the model with λ, Ω and θ*, as `keras.Model.save` does; `.keras` files only."""
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                f"A {type(self).__name__} is saved as a '.keras' file. Received: '{filepath}', a "
                "format that would leave out what the model remembers."
            )
        super().save(filepath, *args, **kwargs)

    def save_own_variables(self, store: Any) -> None:
        """Write λ, Ω and θ* beside the model's own variables (called by `save`)."""
        super().save_own_variables(store)
        for key, array in self.memory.state(self).items():
            store[_MEMORY + quote(key, safe="")] = array  # HDF5 would take "/" for a folder
        if self.shares_memory:
            store[_MEMORY + _SHARED] = np.array(1)
        # Where the statistics of batch normalization are frozen, by the numbers of the layers.
        layers = self._flatten_layers()
        frozen = [k for k, layer in enumerate(layers) if has_frozen_statistics(layer)]
        store[_MEMORY + _FROZEN] = np.array(frozen, "int64")

    def load_own_variables(self, store: Any) -> None:
        """Read λ, Ω and θ* back (called when a model or its weights are loaded)."""
        arrays = {key: np.asarray(store[key]) for key in store.keys()}  # noqa: SIM118 (HDF5)
        remembered = {
            unquote(key.removeprefix(_MEMORY)): arrays.pop(key)
            for key in list(arrays)
            if key.startswith(_MEMORY)
        }
        super().load_own_variables(arrays)
        if not remembered:  # the weights of a stock model
            return
        is_shared, frozen = remembered.pop(_SHARED, None), remembered.pop(_FROZEN, ())
        if is_shared is not None and not self.shares_memory:
            self.memory.release()
            self.memory, self.shares_memory = SynapticMemory(), True
        self.memory.restore(remembered, self)
        layers = self._flatten_layers()
        for layer in (layers[k] for k in frozen):
            if not has_frozen_statistics(layer):
                freeze_statistics(layer)

    def get_config(self) -> dict[str, Any]:
        """Return the model's config with λ; Ω and θ* travel with the variables."""
        own = {
            "strength": self.memory.asked_strength,
            "penalty": self.penalty,
            "batch_norm": self.batch_norm or "freeze",  # which has been said
        }
        return {**super().get_config(), **own}

    def _optimizer_steps(self):
        """Return how often the optimizer has moved the weights.

        It does not with every batch that it accumulates gradients of, nor where a scaled loss was
        infinite.
        """
        optimizer: Any = self.optimizer
        return tf.identity(getattr(optimizer, "inner_optimizer", optimizer).iterations)

    def _steps_always(self):
        optimizer: Any = self.optimizer
        return not (hasattr(optimizer, "inner_optimizer") or optimizer.gradient_accumulation_steps)

    def _take_proximal_step(self, weights, rate, has_stepped):
        for weight in weights:
            pulled = self.memory.proximal_step(weight, rate)
            if pulled is not None:
                pulled = tf.cast(pulled, weight.dtype)
                if not self._steps_always():
                    pulled = tf.where(has_stepped, pulled, weight)
                weight.assign(pulled)

    def _track_loss(self, loss, x):
        examples = tf.shape(tf.nest.flatten(x)[0])[0]
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss, sample_weight=examples)
