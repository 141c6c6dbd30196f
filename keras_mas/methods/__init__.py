"""Methods of continual learning, one file each: what happens around the training of a task."""

import inspect
from importlib import import_module
from typing import Any

from ..errors import UsageError
from ..plugins import is_own, load_named

# Names only: importing a method imports TensorFlow.
METHODS = (
    "mas",
    "local_mas",
    "ewc",
    "online_ewc",
    "ewc_dr",
    "sqrt_fisher",
    "si",
    "l2",
    "lwf",
    "ebll",
    "imm_mean",
    "imm_mode",
    "online_mas",
    "finetune",
    "joint",
)


def load_method(name: str) -> type[Any]:
    """Return the class of a method: one of ours, or one of your own.

    Args:
        name: Name out of `METHODS`, also of its file here; or `MODULE:CLASS`, such as
            `my_module:MyMethod`, in a module that can be imported from the current folder. The
            class has all that `keras_mas.methods.base.Method` has, most simply by being derived
            from it.

    Raises:
        UsageError: If there is no such method, or it lacks a part of a method.

    Example:
        >>> import keras, numpy as np
        >>> method = load_method("mas")(strength=0.5)
        >>> inputs = keras.Input([1])
        >>> outputs = keras.layers.Dense(1, kernel_initializer="ones", use_bias=False)(inputs)
        >>> model = method.model(inputs, outputs)
        >>> method.protect(model)
        >>> method.after_task(model, np.array([[3.0], [1.0]]))  # after `model.fit(x, y)`
        >>> [omega.tolist() for omega in method.memory.importance.values()]  # mean of 2wx²
        [[[10.0]]]
    """
    if name in METHODS:
        return import_module(f".{name}", __name__).Method
    if not is_own(name):
        raise UsageError(
            f"Expected a method out of {', '.join(METHODS)}, or MODULE:CLASS. Received: '{name}'. "
            "Choose one of them."
        )
    return _checked(load_named(name, "method"), name)


def _checked(found, name):
    from .base import Method

    if not inspect.isclass(found):
        raise UsageError(
            f"Expected '{name}' to be a class. Received: {type(found).__name__}. Name the class "
            "itself, which is called with λ and the kind of penalty."
        )
    parts = [part for part in vars(Method) if not part.startswith("_")]
    missing = [part for part in parts if not hasattr(found, part)]
    if missing:
        raise UsageError(
            f"Expected the method '{name}' to have {', '.join(parts)}. Received: a class without "
            f"{', '.join(missing)}. Derive it from `keras_mas.methods.base.Method`, which has them."
        )
    _check_constructor(found, name)
    for part in parts:
        _check_signature(found, part, getattr(Method, part), name)
    return found


def _check_constructor(found, name):
    """Refuse a class that cannot be called with λ and a penalty."""
    try:
        inspect.signature(found).bind("strength", "penalty")
    except TypeError as error:
        raise UsageError(
            f"Expected the constructor of the method '{name}' to take what that of "
            "`keras_mas.methods.base.Method` takes: (strength=None, penalty='in_loss'). Received: "
            f"one that cannot be called so ({error})."
        ) from None


def _check_signature(found, part, ours, name):
    """Refuse a function that cannot be called as ours is: with what is required, and by name."""
    if not inspect.isfunction(ours):
        return
    expected = inspect.signature(ours)
    _, *parameters = expected.parameters.values()  # without self
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    required = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY and p.default is p.empty]
    own = getattr(object.__new__(found), part)
    try:
        if not callable(own):
            raise TypeError(f"'{type(own).__name__}' object is not callable")
        inspect.signature(own).bind(*required, **dict.fromkeys(named))
    except TypeError as error:
        raise UsageError(
            f"Expected `{part}` of the method '{name}' to take what that of "
            f"`keras_mas.methods.base.Method` takes: {expected}. Received: one that cannot be "
            f"called so ({error})."
        ) from None
