"""Whether a version in the C++ runtime answers as the Keras models that it was made of."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from .conventions import DEFAULT_SIGNATURE
from .runtime import LoadedVersion
from .signatures import Signature

# The graph of a version is optimised, which rounds otherwise than Keras: in float32 by some 1e-6 of
# a probability, in float16 and bfloat16 by some 1e-3.
_TOLERANCES = {"float16": 2e-2, "bfloat16": 5e-2}
_DEFAULT_TOLERANCE = 1e-4


def tolerance_of(compute_dtypes: Sequence[str]) -> float:
    """Return by how much answers may differ, given the types that the layers compute in."""
    tolerances = (_TOLERANCES.get(dtype, _DEFAULT_TOLERANCE) for dtype in compute_dtypes)
    return max(tolerances, default=_DEFAULT_TOLERANCE)


def different_answer(
    signatures: Sequence[Signature], version: LoadedVersion, inputs: np.ndarray, tolerance: float
) -> str:
    """Ask every signature about the same inputs, in the form that it takes.

    Args:
        signatures: All signatures, with the functions of Keras that they were made of.
        version: The version in the C++ runtime.
        inputs: Inputs of the model, float32 `[n, ...]`.
        tolerance: By how much a probability may differ; features by this part of the largest.

    Returns:
        A description of the first output that differs; empty if none does.
    """
    tensor = tf.constant(inputs, tf.float32)
    [default] = [each for each in signatures if each.name == DEFAULT_SIGNATURE]
    for signature in signatures:
        encoded = signature.encode(inputs)
        try:
            received = version.run(signature.name, {signature.input.name: encoded})
        except tf.errors.OpError as error:
            return f"{error.message} (signature '{signature.name}')"
        # Files and examples that hold these inputs are answered as the inputs are.
        reference = default if signature.input.dtype == tf.string else signature
        expected = {name: value.numpy() for name, value in reference.run(tensor).items()}
        if name := _different(expected, received, tolerance):
            return (
                f"another '{name}' from the signature '{signature.name}' than from Keras: "
                f"{_shown(received.get(name))} instead of {_shown(expected.get(name))}"
            )
    return ""


def _different(
    expected: Mapping[str, np.ndarray], received: Mapping[str, np.ndarray], tolerance: float
) -> str:
    """Return the name of an output that differs, or that only one of them has."""
    for name in sorted({*expected, *received}):
        if name not in expected or name not in received:
            return name
        if expected[name].dtype.kind == "f" and not _are_close(
            expected[name], received[name], tolerance
        ):
            return name
    for name, values in expected.items():
        if values.dtype.kind != "f":
            prefix = name.rpartition("/")[0]
            probabilities = expected[f"{prefix}/probabilities" if prefix else "probabilities"]
            decided = ~_is_tie(probabilities, tolerance)
            if np.any(values[decided] != received[name][decided]):
                return name
    return ""


def _are_close(expected: np.ndarray, received: np.ndarray, tolerance: float) -> bool:
    if expected.shape != received.shape:
        return False
    scale = max(1.0, float(np.max(np.abs(expected[np.isfinite(expected)]), initial=0.0)))
    return np.allclose(received, expected, rtol=0.0, atol=tolerance * scale, equal_nan=True)


def _is_tie(probabilities: np.ndarray, tolerance: float) -> np.ndarray:
    """Return whether rounding may decide between the two classes that are most likely, `[n]`."""
    if probabilities.shape[-1] < 2:
        return np.zeros(len(probabilities), bool)
    highest = np.sort(probabilities, axis=-1)
    return ~(highest[:, -1] - highest[:, -2] > 2 * tolerance)  # NaN is one


def _shown(values: np.ndarray | None) -> str:
    return "none" if values is None else np.array2string(values[:1], threshold=6, precision=6)
