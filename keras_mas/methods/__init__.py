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

# What the names of our modules begin with.
_PACKAGE = "keras_mas."


def load_method(name: str) -> type[Any]:
    """Return the class of a method: one of ours, or one of your own.

    Args:
        name: Name out of `METHODS`, also of its file here; or `MODULE:CLASS`, such as
            `my_module:MyMethod`, in a module that can be imported from the current folder. The
            class has all that `keras_mas.methods.base.Method` has, most simply by being derived
            from it, and what another base of ours asks of it, as `QuadraticMethod` does for
            `importance`.

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
    for base, parts in _declared(found, Method).items():
        _check_parts(found, base, parts, name)
    _check_constructor(found, name)
    for base, parts in _declared(found, Method).items():
        for part in parts:
            _check_signature(found, part, base, name)
    return found


def _declared(found, method):
    """Return the parts of a method by the classes of ours that first declare them.

    These are `method`, of which a class need not be derived, and the bases of ours that it has: a
    quadratic method, for example, is also asked for its importance.
    """
    ours = [base for base in reversed(found.__mro__) if base.__module__.startswith(_PACKAGE)]
    declared: dict[type, list[str]] = {}
    seen: set[str] = set()
    for base in dict.fromkeys([method, *(base for base in ours if issubclass(base, method))]):
        public = [part for part in vars(base) if not part.startswith("_")]
        declared[base] = [part for part in public if part not in seen]
        seen.update(public)
    return declared


def _check_parts(found, base, parts, name):
    """Refuse a class without parts that a class of ours declares, or that this leaves to others."""
    left = getattr(found, "__abstractmethods__", ())
    missing = [part for part in parts if not hasattr(found, part) or part in left]
    if missing:
        path = f"{base.__module__}.{base.__qualname__}"
        advice = f"Derive it from `{path}`, which has them."
        if issubclass(found, base):
            advice = f"Write what is missing, as the docstrings of `{path}` say."
        raise UsageError(
            f"Expected the method '{name}' to have {', '.join(parts)}. Received: a class without "
            f"{', '.join(missing)}. {advice}"
        )


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


def _check_signature(found, part, base, name):
    """Refuse a function that cannot be called as that of a class of ours is."""
    ours = getattr(base, part)
    if not inspect.isfunction(ours):
        return
    expected = inspect.signature(ours)
    _, *parameters = expected.parameters.values()  # without self
    named = dict.fromkeys(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
    positional = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    required = [p.name for p in positional if p.default is p.empty]
    optional = [p.name for p in positional if p.default is not p.empty]
    own = getattr(object.__new__(found), part)
    try:
        if not callable(own):
            raise TypeError(f"'{type(own).__name__}' object is not callable")
        signature = inspect.signature(own)
        signature.bind(*required, **named)
        _bind_all(signature, required, optional, named)
    except TypeError as error:
        raise UsageError(
            f"Expected `{part}` of the method '{name}' to take what that of "
            f"`{base.__module__}.{base.__qualname__}` takes: {expected}. Received: one that cannot "
            f"be called so ({error})."
        ) from None


def _bind_all(signature, required, optional, named):
    """Bind what need not be given too: by its place, or by its name, as to `**options`."""
    try:
        signature.bind(*required, *optional, **named)
    except TypeError:
        signature.bind(*required, **dict.fromkeys(optional), **named)
