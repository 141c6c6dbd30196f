"""What is remembered of weights: Ω and θ* of each, as variables and as arrays in a file."""

import contextlib
import dataclasses
import json
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, Self

import keras
import numpy as np

from .errors import NotFiniteError
from .weights import WeightIdentity

# The keys of a saved memory. Those of arrays end with the name of the weight.
_STRENGTH, _TASKS, _WEIGHTS, _AUTO = "strength", "tasks", "weights", "auto"
_IMPORTANCE, _ANCHOR = "importance/", "anchor/"

# The key of the name of the method that saved a memory; a memory itself knows of none.
SAVED_BY = "method"


@dataclasses.dataclass(eq=False)
class WeightState:
    """What is remembered of one weight.

    Attributes:
        name: Name of the weight, `variable.path` unless two weights have the same.
        identity: By which it is recognized in another model.
        model: Number of the protected model that the identity belongs to.
        importance: Ω, variable of the weight's shape.
        anchor: θ*, variable of the same shape.
        term: The weight's part of the penalty in the last step, a scalar; None before it is bound.
        weight: θ, the weight itself; None if it is not bound to a model.
        is_set_aside: Whether it was left out with `strict=False`.
        is_released: Whether its weight was released.
    """

    name: str
    identity: WeightIdentity
    model: int
    importance: keras.Variable
    anchor: keras.Variable
    term: keras.Variable | None = None
    weight: keras.Variable | None = None
    is_set_aside: bool = False
    is_released: bool = False

    @classmethod
    def of(
        cls,
        name: str,
        identity: WeightIdentity,
        model: int,
        importance: np.ndarray,
        anchor: np.ndarray,
    ) -> Self:
        """Return the state for given Ω and θ*, arrays of the same shape."""
        dtype = "float64" if anchor.dtype == "float64" else "float32"
        return cls(
            name,
            identity,
            model,
            keras.Variable(importance, trainable=False, dtype=dtype, name="importance"),
            keras.Variable(anchor, trainable=False, dtype=dtype, name="anchor"),
        )

    def replace(self, importance: Any, anchor: Any) -> None:
        """Replace Ω and θ* by arrays or variables of their shape."""
        self.importance.assign(importance)
        self.anchor.assign(anchor)

    def forget(self) -> None:
        """Ω ← 0, and θ* ← θ if the weight is known."""
        anchor = self.anchor if self.weight is None else self.weight
        self.replace(keras.ops.zeros_like(self.importance), anchor)

    def has_moved(self) -> bool:
        """Return whether the weight has left its anchor, though it matters."""
        if self.weight is None or not self.importance.numpy().any():
            return False
        return not np.array_equal(self.weight.numpy(), self.anchor.numpy())


@dataclasses.dataclass
class Auto:
    """What λ is found by when a `fit` begins; see `keras_mas.auto`.

    Attributes:
        kappa: κ, how strongly each task is held.
        gradient_rms: Root mean square of the gradients of the first task; NaN if unknown.
    """

    kappa: float
    gradient_rms: float = np.nan


def to_arrays(
    strength: np.ndarray,
    tasks: int,
    states: Iterable[tuple[WeightState, WeightIdentity, int]],
    auto: Auto | None = None,
) -> dict[str, np.ndarray]:
    """Return what is remembered as a flat dict of arrays, the inverse of `from_arrays`.

    Args:
        strength: λ.
        tasks: How many tasks have been consolidated.
        states: Each state with the identity of its weight, and the number of the model that the
            identity belongs to.
        auto: What λ is found by; None for a λ that was given.
    """
    arrays, weights = {_STRENGTH: strength, _TASKS: np.array(tasks)}, []
    if auto is not None:
        arrays[_AUTO] = np.array(dataclasses.astuple(auto))
    for state, identity, model in states:
        weights.append({"name": state.name, "model": model, **dataclasses.asdict(identity)})
        arrays[_IMPORTANCE + state.name] = state.importance.numpy()
        arrays[_ANCHOR + state.name] = state.anchor.numpy()
    arrays[_WEIGHTS] = np.frombuffer(json.dumps(weights).encode(), "uint8")
    return arrays


def from_arrays(
    arrays: Mapping[str, np.ndarray],
) -> tuple[float, int, list[WeightState], Auto | None]:
    """Check arrays that `to_arrays` made and return λ, the number of tasks, the states and `auto`.

    Raises:
        ValueError: If arrays are missing, of other shapes than their weights or not finite, or an
            importance is negative.
    """
    try:
        weights = json.loads(np.asarray(arrays[_WEIGHTS]).tobytes().decode())
        states = [_parsed_state(arrays, dict(weight)) for weight in weights]
        strength, tasks = np.asarray(arrays[_STRENGTH]).item(), np.asarray(arrays[_TASKS]).item()
    except KeyError as error:
        raise ValueError(f"Expected an array {error}. Received: none.") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"Expected arrays of a memory. Received: others ({error}).") from error
    names = {state.name for state in states}
    expected = {kind + name for kind in (_IMPORTANCE, _ANCHOR) for name in names}
    if len(names) != len(states) or set(arrays) - {_AUTO} != expected | {
        _STRENGTH,
        _TASKS,
        _WEIGHTS,
    }:
        raise ValueError("Expected two arrays for each weight of a saved memory. Received: others.")
    if not isinstance(tasks, int) or tasks < 0:
        raise ValueError(f"Expected a number of tasks. Received: {tasks}.")
    return checked_strength(strength), tasks, states, _parsed_auto(arrays)


def _parsed_auto(arrays):
    if _AUTO not in arrays:
        return None
    values = np.asarray(arrays[_AUTO])
    if values.shape != (2,) or values.dtype.kind != "f" or not 0 < values[0] < np.inf:
        raise ValueError(
            f"Expected two numbers, the first one > 0, for '{_AUTO}'. Received: {values}. The file "
            "is damaged; take an older one."
        )
    return Auto(*values.tolist())


def _parsed_state(arrays, weight):
    name, number = weight.pop("name"), weight.pop("model")
    identity = WeightIdentity(**{**weight, "shape": tuple(weight["shape"])})
    for kind in (_IMPORTANCE, _ANCHOR):
        if arrays[kind + name].dtype.kind != "f":
            raise ValueError(
                f"Expected real numbers for '{kind}{name}'. Received: {arrays[kind + name].dtype}."
            )
        if arrays[kind + name].shape != identity.shape:
            raise ValueError(
                f"Expected shape {identity.shape} for '{kind}{name}'. Received: shape "
                f"{arrays[kind + name].shape}. The file is damaged; take an older one."
            )
    dtype = "float64" if arrays[_ANCHOR + name].dtype == "float64" else "float32"
    with np.errstate(over="ignore"):
        importance, anchor = (arrays[k + name].astype(dtype) for k in (_IMPORTANCE, _ANCHOR))
    if not np.all(np.isfinite(anchor) & np.isfinite(importance) & (importance >= 0)):
        raise ValueError(
            f"Expected finite anchors, and finite importance ≥ 0. Received: others for '{name}'. "
            "The file is damaged; take an older one."
        )
    return WeightState.of(name, identity, number, importance, anchor)


def checked_strength(value: float) -> float:
    """Return λ as it is; ValueError if it is negative, or no finite number in float32."""
    held = np.float32("nan")
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with np.errstate(over="ignore"), contextlib.suppress(OverflowError):
            held = np.float32(float(value))
        if np.isfinite(held) and held >= 0 and (held > 0 or value == 0):
            return float(value)
    raise ValueError(
        f"Expected a strength λ ≥ 0 that float32 can hold. Received: {value!r}. 0 is plain "
        "fine-tuning."
    )


def check_array(state: WeightState, importance: np.ndarray) -> None:
    """Refuse an importance that is not of the weight's shape, or not real."""
    if importance.shape != tuple(state.importance.shape):
        raise ValueError(
            f"Expected an importance of shape {tuple(state.importance.shape)} for '{state.name}'. "
            f"Received: shape {importance.shape}. Compute a number for every weight of the model."
        )
    if np.iscomplexobj(importance):
        raise ValueError(
            f"Expected real numbers as importance of '{state.name}'. Received: "
            f"{importance.dtype}. Take their absolute values, or the squares of these."
        )


def checked_importance(state: WeightState, importance: Any) -> np.ndarray:
    """Return a new Ω in the dtype that holds it; ValueError if it is not one of the weight."""
    importance = np.asarray(importance)
    check_array(state, importance)
    importance = _held(state, importance)
    if np.any(np.isnan(importance)):
        raise NotFiniteError(
            f"Expected finite numbers as importance of '{state.name}'. Received: NaN. Look for NaN "
            "in the inputs, or for a root or a division in what computes it."
        )
    if not np.all(np.isfinite(importance)):
        raise NotFiniteError(
            f"The importance of '{state.name}' is too large for {state.importance.dtype}: "
            "it is infinite. Scale the outputs or the loss of the model."
        )
    if np.any(importance < 0):
        raise ValueError(
            f"Expected an importance ≥ 0 for '{state.name}'. Received: {np.min(importance):g}. "
            "Clip what may be negative at 0."
        )
    return importance


def checked_anchor(state: WeightState, anchor: Any) -> np.ndarray:
    """Return a new θ* in the dtype that holds it; ValueError if it is not one of the weight."""
    anchor = np.asarray(anchor)
    if anchor.shape != tuple(state.anchor.shape):
        raise ValueError(
            f"Expected an anchor θ* of shape {tuple(state.anchor.shape)} for '{state.name}'. "
            f"Received: shape {anchor.shape}. Have `merge` return Ω and θ*, in this order."
        )
    if np.iscomplexobj(anchor) or not np.all(np.isfinite(_held(state, anchor))):
        raise NotFiniteError(
            f"Expected finite real numbers as θ* of '{state.name}'. Received: others. Look whether "
            "the training of the model diverged, for then its weights are NaN."
        )
    return _held(state, anchor)


def _held(state, values):
    """Return values in the dtype that the state holds them in."""
    with np.errstate(over="ignore"):
        return values.astype(state.importance.dtype)


def check_same(new: WeightState, old: WeightState) -> None:
    """Refuse a state that was saved of another weight than the one it is to be taken over for."""
    ours, theirs = old.identity.names, new.identity.names
    if ours != theirs and "*" not in ours + theirs:
        raise ValueError(
            f"Expected a memory of '{ours}' in place '{old.identity.place}'. Received: one of "
            f"'{theirs}'. Call `protect` on a memory that was loaded, which recognizes weights."
        )
    if tuple(new.importance.shape) != tuple(old.importance.shape):
        raise ValueError(
            f"Expected a memory of shape {tuple(old.importance.shape)} for the weight "
            f"'{old.name}'. Received: shape {tuple(new.importance.shape)}. The memory was made "
            "with another architecture; build the model with the same layers."
        )
