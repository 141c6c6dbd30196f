"""The JSON of TensorFlow Serving's REST interface, read into arrays and written from them.

A request has its tensors in one of two formats, and the response has the same:

    row        {"instances": [{"x": 1, "y": 2}, …]}   →  {"predictions": [{"p": 3, "q": 4}, …]}
    column     {"inputs": {"x": [1, …], "y": [2, …]}}  →  {"outputs": {"p": [3, …], "q": [4, …]}}

A single input or output may be given by its value, without the object `{"x": …}`. Bytes are
written as `{"b64": "…"}`, and NaN and Infinity as bare words, an extension of JSON.

Every error is a `tf.errors.InvalidArgumentError` with the message of TensorFlow Serving.
"""

import base64
import itertools
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from .protocol import invalid_argument

_Infos = Mapping[str, meta_graph_pb2.TensorInfo]
_Arrays = dict[str, np.ndarray]

_JSON_TYPES = {
    dict: "Object",
    list: "Array",
    str: "String",
    int: "Number",
    float: "Number",
    bool: "Boolean",
    type(None): "Null",
}
# By numpy's `dtype.kind`. Types are compared exactly: Python's bool is an int, JSON's is not.
_ACCEPTED: dict[str, set[type]] = {"f": {int, float}, "i": {int}, "u": {int}, "b": {bool}}
_WRITABLE = {"float32", "float64", "bool"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_MAX_RANK = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32  # of an array


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse the body of a request.

    Args:
        body: `bytes` of a JSON object.

    Returns:
        The object as a dict.

    Raises:
        tf.errors.InvalidArgumentError: If `body` is not a JSON object.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid_argument(f"JSON Parse error: {error}") from error
    if not isinstance(document, dict):
        raise invalid_argument(f"JSON Value: {_excerpt(document)} Is not object")
    return document


def read_signature_name(document: Mapping[str, Any]) -> str:
    """Return the signature that a parsed request names, or "" if it names none.

    Raises:
        tf.errors.InvalidArgumentError: If the name is not a string, or holds half a surrogate pair.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str) or not _is_utf8(name):
        raise invalid_argument(
            f"JSON Value: {_excerpt(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name


def is_row_format(document: Mapping[str, Any]) -> bool:
    """Whether a parsed request is in row format, with `instances`, or in column format.

    Raises:
        tf.errors.InvalidArgumentError: If it has neither `instances` nor `inputs`, or both.
    """
    if "instances" in document and "inputs" in document:
        raise invalid_argument(
            f"JSON Value: {_excerpt(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist"
        )
    if "instances" not in document and "inputs" not in document:
        raise invalid_argument("Missing 'inputs' or 'instances' key")
    return "instances" in document


def read_tensors(document: Mapping[str, Any], signature_inputs: _Infos) -> _Arrays:
    """Read the tensors of a parsed request.

    Args:
        document: Dict from `parse_object`.
        signature_inputs: Mapping from input name to `TensorInfo`; only the dtypes are used.

    Returns:
        Dict from input name to array of the signature's dtype and of the shape that was sent;
        strings are object arrays of `bytes`. In row format the first axis counts the instances.

    Raises:
        tf.errors.InvalidArgumentError: If names or types do not fit, or a list is ragged.
    """
    dtypes = {name: tf.as_dtype(info.dtype) for name, info in signature_inputs.items()}
    if is_row_format(document):
        return _read_rows(document["instances"], dtypes)
    return _read_columns(document["inputs"], dtypes)


def read_outputs(document: Mapping[str, Any], signature_outputs: _Infos) -> _Arrays:
    """Read the tensors of a parsed response in column format.

    Args:
        document: The response as a dict.
        signature_outputs: Mapping from output name to `TensorInfo`; only the dtypes are used.

    Returns:
        Dict from output name to array of the signature's dtype; strings are object arrays of
        `bytes`.

    Raises:
        tf.errors.InvalidArgumentError: If there is no key `outputs`, names or types do not fit, or
            a list is ragged.
    """
    if "outputs" not in document:
        raise invalid_argument("Missing 'outputs' key")
    dtypes = {name: tf.as_dtype(info.dtype) for name, info in signature_outputs.items()}
    return _read_columns(document["outputs"], dtypes)


def write_tensors(outputs: Mapping[str, np.ndarray], *, row_format: bool) -> str:
    """Write the outputs of a model as the body of a response.

    Args:
        outputs: Non-empty dict from output name to array.
        row_format: Whether the request was in row format; then all outputs have one first axis.

    Returns:
        JSON text. A string tensor whose name ends in `_bytes` is written in base64.

    Raises:
        tf.errors.InvalidArgumentError: If a dtype cannot be written, such as float16, or if row
            format is asked of outputs that are not batches of one size.
    """
    columns = {name: _to_json(name, array) for name, array in sorted(outputs.items())}
    if row_format:
        _check_batches(outputs)
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return json.dumps({"predictions": [_without_single_name(row) for row in rows]})
    return json.dumps({"outputs": _without_single_name(columns)})


def _read_rows(instances: Any, dtypes: Mapping[str, tf.DType]) -> _Arrays:
    if not isinstance(instances, list):
        raise invalid_argument(
            f"JSON Value: {_excerpt(instances)} Expecting 'instances' to be an list/array"
        )
    if not instances:
        raise invalid_argument("JSON Value: [] No values in 'instances' array")
    rows = [_read_row(index, instance, dtypes) for index, instance in enumerate(instances)]
    for index, row in enumerate(rows):
        _check_same_shapes(index, row, rows[0])
    for array in rows[0].values():
        _check_rank(array.ndim + 1)
    return {name: np.stack([row[name] for row in rows]) for name in dtypes}


def _read_row(index: int, instance: Any, dtypes: Mapping[str, tf.DType]) -> _Arrays:
    try:
        return _read_columns(instance, dtypes)
    except tf.errors.InvalidArgumentError as error:
        raise invalid_argument(
            f"Failed to process element: {index} of 'instances' list. "
            f"Error: INVALID_ARGUMENT: {error.message}"
        ) from error


def _check_same_shapes(index: int, row: _Arrays, first: _Arrays) -> None:
    for name, array in row.items():
        if array.shape != first[name].shape:
            raise invalid_argument(
                f"Failed to process element: {index} key: {name} of 'instances' list. "
                f"Error: INVALID_ARGUMENT: Expecting shape {_shape(first[name].shape)} "
                f"but got: {_shape(array.shape)}"
            )


def _read_columns(value: Any, dtypes: Mapping[str, tf.DType]) -> _Arrays:
    """Read an object of named tensors, or the bare value of the only one."""
    if not isinstance(value, dict) or _is_base64(value):
        if len(dtypes) > 1:
            raise invalid_argument(
                f"JSON Value: {_excerpt(value)} is a plain value/list, but expecting an object "
                f"with the keys: {','.join(sorted(dtypes))}"
            )
        value = dict.fromkeys(dtypes, value)
    if value.keys() != dtypes.keys():
        raise invalid_argument(
            f"JSON object: {_excerpt(value)} keys must be equal to: {','.join(sorted(dtypes))}"
        )
    return {name: _read_tensor(value[name], dtype) for name, dtype in dtypes.items()}


def _read_tensor(value: Any, dtype: tf.DType) -> np.ndarray:
    shape = _dense_shape(value)
    leaves: list[Any] = []
    _check_rank(len(shape))
    _collect(value, shape, 0, _leaf_reader(dtype), leaves)
    try:
        with np.errstate(over="ignore"):  # as in the server, a double too large becomes infinite
            return np.array(leaves, dtype.as_numpy_dtype).reshape(shape)
    except OverflowError as error:
        raise invalid_argument(
            f"JSON Value is out of range for type: {dtype.name}. {error}"
        ) from error


def _check_rank(rank: int) -> None:
    if rank > _MAX_RANK:
        raise invalid_argument(f"Encountered lists nested {rank} deep, expected <= {_MAX_RANK}")


def _dense_shape(value: Any) -> list[int]:
    """Return the shape that nested lists have if they are not ragged."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _collect(
    value: Any,
    shape: list[int],
    level: int,
    read_leaf: Callable[[Any], Any],
    leaves: list[Any],
) -> None:
    """Append the leaves of nested lists to `leaves`, refusing those that are not of `shape`."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid_argument(
                f"JSON Value: {_excerpt(value)} found at incorrect level: {level + 1} "
                f"in the JSON DOM. Expected at level: {len(shape)}"
            )
        leaves.append(read_leaf(value))
        return
    if level >= len(shape):
        raise invalid_argument(
            f"Encountered list at unexpected level: {level} expected < {len(shape)}"
        )
    if len(value) != shape[level]:
        raise invalid_argument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for item in value:
        _collect(item, shape, level + 1, read_leaf, leaves)


def _leaf_reader(dtype: tf.DType) -> Callable[[Any], Any]:
    """Return a function that checks one JSON value and returns it for an array of `dtype`."""
    if dtype == tf.string:
        return _read_bytes
    accepted = _ACCEPTED.get(np.dtype(dtype.as_numpy_dtype).kind, set())

    def read(value: Any) -> Any:
        if type(value) not in accepted:
            raise _type_error(value, dtype)
        return value

    return read


def _read_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode(errors="surrogatepass")
    if not _is_base64(value):
        raise _type_error(value, tf.string)
    try:
        return base64.b64decode(value["b64"], validate=True)
    except ValueError as error:
        raise invalid_argument("Unable to base64 decode") from error


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _to_json(name: str, array: np.ndarray) -> Any:
    if array.dtype == object:
        return _map_nested(_encode_bytes if name.endswith("_bytes") else _decode, array.tolist())
    if array.dtype.name not in _WRITABLE:
        dtype = tf.as_dtype(array.dtype).name
        raise invalid_argument(f"Failed to write JSON value for tensor type: {dtype}")
    if array.dtype == np.float32:
        # Through text 0.2 stays 0.2; widened to a double it would be 0.20000000298023224.
        array = array.astype(str).astype(np.float64)
    return array.tolist()


def _map_nested(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, list):
        return [_map_nested(function, item) for item in value]
    return function(value)


def _decode(value: bytes) -> str:
    return value.decode(errors="replace")


def _encode_bytes(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


def _without_single_name(named: dict[str, Any]) -> Any:
    """Return the value alone if there is only one."""
    return named if len(named) > 1 else next(iter(named.values()))


def _check_batches(outputs: Mapping[str, np.ndarray]) -> None:
    sizes = {name: array.shape[:1] for name, array in outputs.items()}
    (expected, *_) = sizes.values()
    for name, size in sizes.items():
        if not size:
            raise invalid_argument(f"Tensor name: {name} has no shape information")
        if size != expected:
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {size[0]} "
                f"expecting: {expected[0]}"
            )


def _type_error(value: Any, dtype: tf.DType) -> tf.errors.OpError:
    expected = "float" if dtype == tf.float32 else dtype.name
    return invalid_argument(
        f"JSON Value: {_excerpt(value)} Type: {_JSON_TYPES[type(value)]} "
        f"is not of expected type: {expected}"
    )


def _excerpt(value: Any) -> str:
    """Return the first 256 characters of a value's JSON, without writing the rest."""
    pieces = json.JSONEncoder().iterencode(value)
    return "".join(itertools.islice(pieces, 256))[:256]


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shape(shape: tuple[int, ...]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
