"""The JSON of TensorFlow Serving's REST interface, read into arrays and written from them.

A request has its tensors in one of two formats, and the response has the same:

    row        {"instances": [{"x": 1, "y": 2}, …]}   →  {"predictions": [{"p": 3, "q": 4}, …]}
    column     {"inputs": {"x": [1, …], "y": [2, …]}}  →  {"outputs": {"p": [3, …], "q": [4, …]}}

A single input or output may be given by its value, without the object `{"x": …}`. Bytes are
written as `{"b64": "…"}`, and NaN and Infinity as bare words, an extension of JSON.

Every error is a `RequestError` with the message of TensorFlow Serving
(`tensorflow_serving/util/json_tensor.cc`). This module does not import TensorFlow.
"""

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, Protocol

import numpy as np

from ..messages import DATA_TYPES, TYPES
from . import json_text
from .json_text import excerpt
from .protocol import RequestError, invalid_argument, unimplemented


class _TensorInfo(Protocol):
    """What is used of a `TensorInfo`: the number of its type."""

    @property
    def dtype(self) -> int: ...


_Infos = Mapping[str, _TensorInfo]
_Arrays = dict[str, np.ndarray]


# By number: what TensorFlow calls a type in messages.
_NAMES = {number: name.removeprefix("DT_").lower() for number, name in DATA_TYPES.items()}
_STRING, _ = TYPES["object"]

# Types of which JSON can give no value, but an empty list.
_EMPTY_TYPES = {8: "complex64", 17: "uint16", 18: "complex128", 19: "float16"}

# NumPy's types of the numbers, and of true and false, that JSON can give.
_NUMPY_TYPES = {
    number: np.dtype(name)
    for name, (number, _) in TYPES.items()
    if number not in _EMPTY_TYPES and number != _STRING
}
_WRITABLE = {dtype.name for dtype in _NUMPY_TYPES.values()}

# The integers that are accepted for a type; the server stores the narrow ones in 32 bits, and what
# does not fit then loses its upper bits.
_RANGES = {
    **dict.fromkeys(("int32", "int16", "int8", "uint8"), range(-(2**31), 2**31)),
    "int64": range(-(2**63), 2**63),
    "uint32": range(2**32),
    "uint64": range(2**64),
}
_MAX_RANK = 64 if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else 32  # of an array


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse the body of a request.

    Args:
        body: `bytes` of a JSON object.

    Returns:
        The object as a dict.

    Raises:
        RequestError: If `body` is not a JSON object.
    """
    document = json_text.parse(body)
    if not isinstance(document, dict):
        raise invalid_argument(f"JSON Value: {excerpt(document)} Is not object")
    return document


def read_signature_name(document: Mapping[str, Any]) -> str:
    """Return the signature that a parsed request names, or "" if it names none.

    Raises:
        RequestError: If the name is not a string.
    """
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid_argument(
            f"JSON Value: {excerpt(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name


def is_row_format(document: Mapping[str, Any]) -> bool:
    """Whether a parsed request is in row format, with `instances`, or in column format.

    Raises:
        RequestError: If it has neither `instances` nor `inputs`, or both.
    """
    if "instances" in document and "inputs" in document:
        raise invalid_argument(
            f"JSON Value: {excerpt(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if "instances" not in document and "inputs" not in document:
        raise invalid_argument("Missing 'inputs' or 'instances' key")
    return "instances" in document


def read_tensors(document: Mapping[str, Any], signature_inputs: _Infos) -> _Arrays:
    """Read the tensors of a parsed request.

    Args:
        document: Dict from `parse_object`.
        signature_inputs: Non-empty mapping from input name to `TensorInfo`; only the dtypes are
            used.

    Returns:
        Dict from input name to array of the signature's dtype and of the shape that was sent;
        strings are object arrays of `bytes`. In row format the first axis counts the instances.

    Raises:
        RequestError: If names or types do not fit, or a list is ragged.
    """
    dtypes = {name: info.dtype for name, info in signature_inputs.items()}
    if not is_row_format(document):
        return _read_columns(document["inputs"], dtypes)
    instances = document["instances"]
    if not isinstance(instances, list):
        raise invalid_argument(
            f"JSON Value: {excerpt(document)} Expecting 'instances' to be an list/array"
        )
    if not instances:
        raise invalid_argument(f"JSON Value: {excerpt(document)} No values in 'instances' array")
    return _read_rows(instances, dtypes)


def write_tensors(outputs: Mapping[str, np.ndarray], *, row_format: bool) -> str:
    """Write the outputs of a model as the body of a response.

    Args:
        outputs: Non-empty dict from output name to array.
        row_format: Whether the request was in row format; then all outputs have one first axis.

    Returns:
        JSON text. A string tensor whose name ends in `_bytes` is written in base64; what is not
        UTF-8 in another one comes as lone surrogates, as in Python's "surrogateescape".

    Raises:
        RequestError: If a dtype cannot be written, such as float16, or if row format is asked of
            outputs that are not batches of one size.
    """
    if row_format:
        _check_batches(outputs)
    columns = {name: _to_json(name, array) for name, array in sorted(outputs.items())}
    if row_format:
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return _text({"predictions": [_without_single_name(row) for row in rows]})
    return _text({"outputs": _without_single_name(columns)})


def _text(document: dict[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False)


def _read_rows(instances: list[Any], dtypes: Mapping[str, int]) -> _Arrays:
    if not isinstance(instances[0], dict) and len(dtypes) > 1:
        raise invalid_argument(
            "instances is a plain list, but expecting list of objects as multiple "
            "input tensors required as per tensorinfo_map"
        )
    columns = _columns_of(instances, dtypes)
    if columns is not None:
        tensors = {name: _dense(column, dtypes[name]) for name, column in columns.items()}
        if all(tensor is not None for tensor in tensors.values()):
            # Of an input given twice in a row there are too many values; the last are left out.
            size = len(instances)
            return {name: tensor[:size] for name, tensor in tensors.items() if tensor is not None}
    raise _refused_row(instances, dtypes)


def _columns_of(instances: list[Any], dtypes: Mapping[str, int]) -> Mapping[str, list[Any]] | None:
    """Return a list of values for each input, one per instance; None if the instances differ."""
    if not _is_named(instances[0]):
        # Bytes in base64 get here for several inputs too, and are taken for the first one.
        return None if any(map(_is_named, instances)) else {min(dtypes): instances}
    if any(not _is_named(row) or row.keys() != dtypes.keys() for row in instances):
        return None
    if any(isinstance(row, json_text.RepeatedMembers) for row in instances):
        return {name: _values_named(name, instances) for name in dtypes}
    return {name: [row[name] for row in instances] for name in dtypes}


def _values_named(name: str, rows: list[dict[str, Any]]) -> list[Any]:
    """Return the values of one input, of which rows may have several."""
    return [value for row in rows for key, value in json_text.members(row) if key == name]


def _is_named(value: Any) -> bool:
    """Whether a value is an object of named tensors."""
    return isinstance(value, dict) and not _is_base64(value)


def _refused_row(instances: list[Any], dtypes: Mapping[str, int]) -> RequestError:
    """Return the error of the first instance that is wrong by itself or differs from the first."""
    reader = _RowReader(dtypes)
    named = _is_named(instances[0])
    for index, row in enumerate(instances):
        try:
            reader.read(index, row, named)
        except RequestError as error:
            return error
    return invalid_argument(f"Encountered lists nested more than {_MAX_RANK} deep")


class _RowReader:
    """Reads one instance after the other, for its error alone."""

    def __init__(self, dtypes: Mapping[str, int]):
        self._dtypes = dtypes
        self._shapes: dict[str, list[int]] = {}

    def read(self, index: int, row: Any, named: bool) -> None:
        where = f"Failed to process element: {index}"
        if not named:
            if _is_named(row):
                raise invalid_argument(
                    f"Expecting value/list but got object at item {index} of input list"
                )
            self._add(where, min(self._dtypes), row)
            return
        if not _is_named(row):
            raise invalid_argument(f"Expecting object but got list at item {index} of input list")
        for name, value in json_text.members(row):
            self._add(f"{where} key: {name}", name, value)
        if row.keys() != self._dtypes.keys():
            raise invalid_argument(
                f"{where} of 'instances' list. JSON object: {excerpt(row)} keys must be equal to: "
                f"{_join(self._dtypes)}"
            )

    def _add(self, where: str, name: str, value: Any) -> None:
        try:
            self._add_item(name, value)
        except RequestError as error:
            raise invalid_argument(
                f"{where} of 'instances' list. Error: {error.code.name}: {error.message}"
            ) from error

    def _add_item(self, name: str, value: Any) -> None:
        if name not in self._dtypes:
            raise invalid_argument(f"JSON object: does not have named input: {name}")
        shape = _dense_shape(value)
        size = _check_leaves(value, shape, 0, self._dtypes[name])
        first = self._shapes.setdefault(name, shape)
        if _size(first) != size:
            raise invalid_argument(f"Expecting tensor size: {_size(first)} but got: {size}")
        if first != shape:
            raise invalid_argument(f"Expecting shape {_shape(first)} but got: {_shape(shape)}")


def _read_columns(value: Any, dtypes: Mapping[str, int]) -> _Arrays:
    """Read an object of named tensors, or the bare value of the only one."""
    if not _is_named(value):
        if len(dtypes) > 1:
            raise invalid_argument(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        value = dict.fromkeys(dtypes, value)
    for name in dtypes:
        if name not in value:
            raise invalid_argument(f"Missing named input: {name} in 'inputs' object.")
    return {name: _read_tensor(value[name], dtype) for name, dtype in dtypes.items()}


def _read_tensor(value: Any, dtype: int) -> np.ndarray:
    array = _dense(value, dtype)
    if array is None:
        _check_leaves(value, _dense_shape(value), 0, dtype)
        raise invalid_argument(f"Encountered lists nested more than {_MAX_RANK} deep")
    return array


def _dense(value: Any, dtype: int) -> np.ndarray | None:
    """Return nested lists as an array; None if they are ragged or a leaf is of another type."""
    shape = _dense_shape(value)
    if len(shape) > _MAX_RANK:
        return None
    level = [value]
    for size in shape:
        if set(map(type, level)) != {list} or set(map(len, level)) != {size}:
            return None
        level = list(chain.from_iterable(level))
    leaves = _leaves(level, dtype)
    return None if leaves is None else leaves.reshape(shape)


def _leaves(values: list[Any], dtype: int) -> np.ndarray | None:
    if dtype == _STRING:
        return _bytes_array(values)
    if dtype not in _NUMPY_TYPES:
        return None if values else np.zeros(0, _EMPTY_TYPES.get(dtype))
    of, types = _NUMPY_TYPES[dtype], set(map(type, values))
    if of.kind == "f":
        if not types <= {int, float}:
            return None
        with np.errstate(over="ignore"):  # as in the server, a double too large becomes infinite
            return np.array(values, np.float64).astype(of)
    if not types <= ({bool} if of.kind == "b" else {int}):
        return None
    if of.kind != "b" and values:
        accepted = _RANGES[of.name]
        if min(values) not in accepted or max(values) not in accepted:
            return None
        return np.array(values, np.uint64 if accepted[0] == 0 else np.int64).astype(of)
    return np.array(values, of)


def _bytes_array(values: list[Any]) -> np.ndarray | None:
    array = np.empty(len(values), object)
    for index, value in enumerate(values):
        array[index] = _bytes_of(value)
        if array[index] is None:
            return None
    return array


def _dense_shape(value: Any) -> list[int]:
    """Return the shape that nested lists have if they are not ragged."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _check_leaves(value: Any, shape: list[int], level: int, dtype: int) -> int:
    """Refuse nested lists that are not of `shape`, or a leaf of another type; count the leaves."""
    if not isinstance(value, list):
        if level != len(shape):
            raise invalid_argument(
                f"JSON Value: {excerpt(value)} found at incorrect level: {level + 1} "
                f"in the JSON DOM. Expected at level: {len(shape)}"
            )
        _check_leaf(value, dtype)
        return 1
    if level >= len(shape):
        raise invalid_argument(
            f"Encountered list at unexpected level: {level} expected < {len(shape)}"
        )
    if len(value) != shape[level]:
        raise invalid_argument(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    if level > _MAX_RANK:
        return 0
    return sum(_check_leaves(item, shape, level + 1, dtype) for item in value)


def _check_leaf(value: Any, dtype: int) -> None:
    is_known = dtype in _NUMPY_TYPES or dtype == _STRING
    if isinstance(value, dict) and dtype == _STRING:
        if not _is_base64(value):
            raise invalid_argument(
                f"JSON Value: {excerpt(value)} not formatted correctly for base64 data"
            )
        if _bytes_of(value) is None:
            raise invalid_argument("Unable to base64 decode")
    elif isinstance(value, dict) or (is_known and _leaves([value], dtype) is None):
        raise invalid_argument(
            f"JSON Value: {excerpt(value)} Type: {_json_type(value)} "
            f"is not of expected type: {_NAMES.get(dtype, dtype)}"
        )
    elif not is_known:
        raise unimplemented(
            f"Conversion of JSON Value: {excerpt(value)} to type: {_NAMES.get(dtype, dtype)}"
        )


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, dict):
        return "Object"
    names = {list: "Array", str: "String", int: "Number", float: "Number"}
    return names.get(type(value), "Null")


def _is_base64(value: Any) -> bool:
    # Without a repeated name, for the only member must be "b64".
    return type(value) is dict and value.keys() == {"b64"} and isinstance(value["b64"], str)


def _bytes_of(value: Any) -> bytes | None:
    """Return the bytes of a text or of an object with base64; None if it is neither."""
    if isinstance(value, str):
        return json_text.encoded(value)
    return _base64_decoded(value["b64"]) if _is_base64(value) else None


def _base64_decoded(text: str) -> bytes | None:
    """Decode base64 as absl does: ASCII's white space is skipped, and padding may be left out."""
    data = b"".join(json_text.encoded(text).split())
    digits = data.rstrip(b"=.")
    padding = len(data) - len(digits)
    missing = -len(digits) % 4
    if missing == 3 or padding not in (0, missing):
        return None
    try:
        return base64.b64decode(digits + b"=" * missing, validate=True)
    except ValueError:
        return None


def _to_json(name: str, array: np.ndarray) -> Any:
    if array.dtype == object:
        return _map_nested(_encode_bytes if name.endswith("_bytes") else _decode, array.tolist())
    if array.dtype.name not in _WRITABLE and array.size:
        dtype = {"float16": "half"}.get(array.dtype.name, array.dtype.name)
        raise invalid_argument(f"Failed to write JSON value for tensor type: {dtype}")
    if array.dtype == np.float32:
        array = _few_digits(array)
    return array.tolist()


def _few_digits(array: np.ndarray) -> np.ndarray:
    """Return doubles with six decimal digits, or nine where six would be another float32.

    Merely widened to a double, 0.2 would be 0.20000000298023224.
    """
    exact = array.astype(np.float64).ravel()
    doubles = exact.copy()
    is_short = (exact == np.rint(exact)) & (np.abs(exact) < 1e6)
    rest = np.flatnonzero(np.isfinite(exact) & ~is_short)
    exponents = np.floor(np.log10(np.abs(exact[rest])))
    # Powers of ten up to 10^22 are exact in a double, so a quotient is rounded just once.
    usual = (exponents <= 5) & (exponents >= -14)
    doubles[rest[~usual]] = [_rounded(value) for value in array.ravel()[rest[~usual]]]
    rest, exponents = rest[usual], exponents[usual]
    for digits in (9, 6):
        scale = 10.0 ** (digits - 1 - exponents)
        rounded = np.rint(exact[rest] * scale) / scale
        same = rounded.astype(np.float32) == exact[rest]
        doubles[rest[same]] = rounded[same]
    return doubles.reshape(array.shape)


def _rounded(value: np.float32) -> float:
    """Return what `_few_digits` does, for one value that is very large or small."""
    six = float(f"{value:.6g}")
    return six if np.float32(six) == value else float(f"{value:.9g}")


def _map_nested(function: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, list):
        return [_map_nested(function, item) for item in value]
    return function(value)


def _decode(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


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
            raise invalid_argument(f"Tensor name: {name} has no shape information ")
        if size != expected:
            raise invalid_argument(
                f"Tensor name: {name} has inconsistent batch size: {size[0]} "
                f"expecting: {expected[0]}"
            )


def _join(names: Iterable[str]) -> str:
    return ",".join(sorted(names))


def _size(shape: list[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _shape(shape: list[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
