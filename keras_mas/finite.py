"""A `fit` that ends where its loss or its weights become NaN or infinite."""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from .errors import NotFiniteError

# The attribute of a `History` that has been given a check.
_OURS = "check_finite"

# What a callback is told, in the course of a `fit`.
_TOLD = ("on_epoch_begin", "on_train_batch_end", "on_epoch_end")


class FitDivergedError(NotFiniteError):
    """The loss or a weight became NaN or infinite in a `fit`, which ended there.

    Attributes:
        found: What was expected and received, and in which epoch, counted from 1.
    """

    def __init__(self, found: str, model: keras.Model):
        super().__init__(
            f"{found} in the `fit` of '{model.name}'. Lower the learning rate or λ, or look for "
            "NaN in the inputs and labels. What is remembered stays as it was; the weights are "
            "spoiled: load those that you have saved."
        )
        self.found = found


class CheckFinite(keras.callbacks.Callback):
    """Ends a `fit` whose loss or weights become NaN or infinite.

    The loss is looked at where Keras has it for its progress bar, which costs no time on a device;
    the weights after every epoch. The loss of the last step is that of the weights before it, which
    a gradient that is not finite spoils; and a ReLU may hide a NaN.

    Raises:
        FitDivergedError: With the epoch.
    """

    async_safe = True  # it reads the logs alone, so that Keras need not wait for it

    def __init__(self):
        super().__init__()
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Refuse the loss, the mean over the epoch so far."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            found = f"Expected a finite loss. Received: {loss} in epoch {self._epoch + 1}"
            raise FitDivergedError(found, self.model)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Refuse the weights."""
        for weight in self.model.weights:
            if "float" in weight.dtype and not tf.reduce_all(tf.math.is_finite(weight.value)):
                raise FitDivergedError(
                    f"Expected finite weights. Received: NaN or infinity in '{weight.path}' after "
                    f"epoch {epoch + 1}",
                    self.model,
                )


def check_fit(model: keras.Model) -> None:
    """Have the `fit` of a model that is beginning end where it diverges.

    Keras tells nobody its callbacks, but for `model.history`, which is one of them.

    Args:
        model: The model, whose `fit` has made its callbacks.
    """
    history = getattr(model, "history", None)
    if not isinstance(history, keras.callbacks.History):
        return
    check = vars(history).get(_OURS)
    if check is None:
        check = CheckFinite()
        setattr(history, _OURS, check)
        for name in _TOLD:
            both = functools.partial(_tell, getattr(check, name), getattr(history, name))
            setattr(history, name, both)
    check.set_model(model)


def _tell(first: Callable, second: Callable, *args: Any, **kwargs: Any) -> None:
    first(*args, **kwargs)
    second(*args, **kwargs)
