"""Consolidate when `fit` ends."""

import keras


class Consolidate(keras.callbacks.Callback):
    """Make what was learned the thing to protect, at the end of each `fit`.

    Put it last in `callbacks`, so that callbacks which change the weights when training ends
    (`EarlyStopping(restore_best_weights=True)`) have done so.

    Args:
        inputs: Unlabelled inputs of the task being fitted, as for `compute_importance`.
        memory: The `SynapticMemory` that protects the model; None for a `MASModel`, which has its
            own.
        batch_size: As for `compute_importance`.

    Raises:
        ValueError: When training starts, if `memory` is None and the model is not a `MASModel`;
            when it ends, as `SynapticMemory.consolidate`.
    """

    def __init__(self, inputs, memory=None, *, batch_size=256):
        super().__init__()
        self.inputs = inputs
        self.memory = memory
        self.batch_size = batch_size

    def on_train_begin(self, logs=None):
        """Check, before anything is learned, that there is a memory to consolidate."""
        if self.memory is None and not hasattr(self.model, "consolidate"):
            raise ValueError(
                f"Expected a memory, or a `MASModel`. Received: '{self.model.name}', a "
                f"{type(self.model).__name__}. Pass `Consolidate(inputs, memory)`."
            )

    def on_train_end(self, logs=None):
        """Consolidate."""
        if self.memory is None:
            self.model.consolidate(self.inputs, batch_size=self.batch_size)
        else:
            self.memory.consolidate(self.model, self.inputs, batch_size=self.batch_size)
