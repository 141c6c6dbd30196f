"""Consolidate when `fit` ends."""

import inspect
from typing import Any

import keras

from .importance import measure_sums
from .memory import SynapticMemory


class Consolidate(keras.callbacks.Callback):
    """Protect what was learned when each `fit` ends.

    Put it last in `callbacks`, so that callbacks which change the weights when training ends
    (`EarlyStopping(restore_best_weights=True)`) have done so.

    Args:
        inputs: Unlabelled inputs of the task being fitted, as for `compute_importance`.
        memory: The `SynapticMemory` that protects the model; None for a `MASModel`, which has its
            own.
        **options: As for `compute_importance`: `batch_size`, `max_examples`, `output`, ….

    Raises:
        TypeError: If there is no such option.
        ValueError: When training starts, if `memory` is None and the model is not a `MASModel`, or
            if the memory protects no weight of it; when training ends, as
            `SynapticMemory.consolidate`.
    """

    def __init__(self, inputs: Any, memory: SynapticMemory | None = None, **options: Any):
        super().__init__()
        # A misspelt option is told now, not when hours of training are over.
        inspect.signature(measure_sums).bind(None, inputs, **options)
        if memory is not None and not isinstance(memory, SynapticMemory):
            raise ValueError(
                "Expected `Consolidate(inputs, memory)` with a `SynapticMemory`. Received: a "
                f"{type(memory).__name__} as `memory`."
            )
        self.inputs = inputs
        self.memory = memory
        self.options = options

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Check, before anything is learned, that a memory protects the model."""
        if self.memory is not None:
            self.memory.check(self.model)
        elif not hasattr(self.model, "consolidate"):
            raise ValueError(
                f"Expected a memory, or a `MASModel`. Received: '{self.model.name}', a "
                f"{type(self.model).__name__}. Pass `Consolidate(inputs, memory)`."
            )

    def on_train_end(self, logs: dict | None = None) -> None:
        """Consolidate."""
        if self.memory is None:
            self.model.consolidate(self.inputs, **self.options)
        else:
            self.memory.consolidate(self.model, self.inputs, **self.options)
