"""A `fit` that ends where its loss or its weights become NaN or infinite."""

import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from .errors import NotFiniteError

# The attribute of a `History` that holds its check.
_ATTRIBUTE = "check_finite"

# The methods of a callback that `fit` calls, and that the check has too.
_HOOKS = ("on_epoch_begin", "on_train_batch_end", "on_epoch_end")


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

    The loss is checked where Keras has it for its progress bar, which costs no time on a device,
    and the weights after the last step of every epoch, before other callbacks are told of its end,
    such as one that saves the model. The loss alone would not do: that of the last step is computed
    before the weights change, and a ReLU may hide a NaN. A state that is not trained, such as a
    mask, may begin with infinity, and is then not checked.

    The error leaves `fit` at once, so that no callback's `on_train_end` is called:
    `EarlyStopping(restore_best_weights=True)` restores nothing.

    Raises:
        FitDivergedError: With the epoch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._epoch = 0
        self._is_checked = False
        self._weights: list[keras.Variable] = []

    def begin(self, model: keras.Model, params: dict | None) -> None:
        """Follow a `fit` that begins.

        Args:
            model: The model.
            params: As Keras tells its callbacks; "steps" are those of an epoch, if they are known.
        """
        self.set_model(model)
        self.set_params(params or {})
        floats = [weight for weight in model.weights if "float" in weight.dtype]
        self._weights = [each for each in floats if each.trainable or _is_finite(each)]

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Note the epoch."""
        self._epoch, self._is_checked = epoch, False

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Refuse the loss, the mean over the epoch so far, and after the last step the weights."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            found = f"Expected a finite loss. Received: {loss} in epoch {self._epoch + 1}"
            raise FitDivergedError(found, self.model)
        if batch + 1 == self.params.get("steps"):
            self._check_weights()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Refuse the weights where it was not known which step would be the last."""
        if not self._is_checked:
            self._check_weights()

    def _check_weights(self) -> None:
        self._is_checked = True
        for weight in self._weights:
            if not _is_finite(weight):
                raise FitDivergedError(
                    f"Expected finite weights. Received: NaN or infinity in '{weight.path}' after "
                    f"epoch {self._epoch + 1}",
                    self.model,
                )


def _is_finite(weight: keras.Variable) -> bool:
    return bool(tf.reduce_all(tf.math.is_finite(weight.value)))


def check_fit(model: keras.Model) -> None:
    """Have the `fit` of a model that is beginning end where it diverges.

    Keras gives no access to the callbacks of a `fit` except `model.history`, one of them, to which
    the check is therefore attached.

    Args:
        model: The model, whose `fit` has made its callbacks.
    """
    history = getattr(model, "history", None)
    if not isinstance(history, keras.callbacks.History):
        return
    check = vars(history).get(_ATTRIBUTE)
    if check is None:
        check = CheckFinite()
        setattr(history, _ATTRIBUTE, check)
        for name in _HOOKS:
            both = functools.partial(_call_both, getattr(check, name), getattr(history, name))
            setattr(history, name, both)
    check.begin(model, history.params)


def _call_both(first: Callable, second: Callable, *args: Any, **kwargs: Any) -> None:
    first(*args, **kwargs)
    second(*args, **kwargs)
