"""What a model has to be to be exported: checks that are made before anything is written."""

import keyword
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mas.errors import UsageError
from keras_mas.importance.outputs import PROBABILITIES

from .conventions import DEFAULT_SIGNATURE, ENCODED, EXAMPLES, FEATURES, RESIZE_MODES
from .signatures import Shape

# SavedModel keeps the attribute `signatures` for itself.
_RESERVED = {DEFAULT_SIGNATURE, FEATURES, ENCODED, EXAMPLES, "signatures"}

_NO_UTF8 = re.compile("[\ud800-\udfff]")

# Of Keras, and of TensorFlow.
_OPERATIONS = ("Softmax", "Sigmoid")

# What TensorFlow accepts as a name scope inside another; each layer opens one of its name.
_SCOPE = re.compile(r"[A-Za-z0-9_.\\/>-]+")

# float32 holds all integers up to this one.
_MAX_EXACT = 2**24

# By how much a sum of probabilities in half precision may miss 1.
_ROUNDING = 1e-2


def check_task_names(names: Sequence[str]) -> None:
    """Raise a UsageError if a name cannot be that of a signature, or occurs twice."""
    for name in names:
        if not _can_name_signature(name):
            raise UsageError(
                "Expected every task to have a string as its name that can also name a signature: "
                f"not empty, no underscore in front, none of {sorted(_RESERVED)}. "
                f"Received: {name!r}. Rename the task."
            )
    if repeated := _repeated(names):
        raise UsageError(
            f"Expected tasks of different names. Received: {repeated} more than once. "
            "Rename all but one."
        )


def _can_name_signature(name: object) -> bool:
    # ExportArchive and SavedModel keep names that begin with an underscore for themselves.
    return (
        isinstance(name, str)
        and name[:1] not in ("", "_")
        and name not in _RESERVED
        and not _NO_UTF8.search(name)
    )


def _repeated(names: Iterable[str]) -> str:
    """List the names that occur more than once."""
    return ", ".join(repr(name) for name, count in Counter(names).items() if count > 1)


def check_heads(heads: object) -> None:
    """Raise a UsageError if the heads of a version are no mapping, or an empty one."""
    if not isinstance(heads, Mapping) or not heads:
        received = "no heads" if isinstance(heads, Mapping) else type(heads).__name__
        raise UsageError(
            "Expected a mapping from task name to model, with at least one task. "
            f"Received: {received}. Pass the heads to serve, as in `{{'flowers': model}}`."
        )


def check_names(heads: Mapping[str, keras.Model], input_name: str) -> None:
    """Raise a UsageError if TensorFlow or SavedModel takes a name for something else.

    Args:
        heads: Model of every task.
        input_name: Name of the input in every signature.
    """
    check_task_names(list(heads))
    if not input_name.isidentifier() or keyword.iskeyword(input_name) or input_name == "self":
        raise UsageError(
            "Expected `input_name` to be a Python identifier other than 'self'. Received: "
            f"{input_name!r}. TensorFlow makes it the name of an argument; choose one such as "
            "'inputs' or 'image'."
        )
    for task, head in heads.items():
        _check_layer_names(task, head)


def _check_layer_names(task: str, head: keras.Model) -> None:
    """Refuse names that TensorFlow refuses, after which Keras would leave a name scope open."""
    for layer in head._flatten_layers(include_self=True, recursive=True):
        # The model's own scope is the outermost, for which the rule is stricter.
        if not _SCOPE.fullmatch(layer.name) or (layer is head and layer.name[0] in "\\/>_-"):
            raise UsageError(
                f"Expected every layer of '{task}' to have a name of ASCII letters, digits and "
                "'_.-', the model itself one that begins with a letter or digit. "
                f"Received: {layer.name!r}. TensorFlow cannot trace the layer; rename it."
            )


def input_shape_of(heads: Mapping[str, keras.Model]) -> Shape:
    """Return the shape of one input, without the batch, on which all heads agree.

    Raises:
        UsageError: If they do not, or a head has no single input of numbers.
    """
    shapes = {task: _input_shape(task, head) for task, head in heads.items()}
    (first_task, expected), *others = shapes.items()
    for task, shape in others:
        if shape != expected:
            raise UsageError(
                f"Expected every head to take inputs of shape {expected}, as '{first_task}' does. "
                f"Received: shape {shape} from '{task}'. "
                "Export heads of one trunk together, and other models under another name."
            )
    return expected


def _input_shape(task: str, head: keras.Model) -> Shape:
    shape = getattr(head, "input_shape", None) if getattr(head, "built", False) else None
    if shape is None:
        raise UsageError(
            f"Expected the head of '{task}' to be a built Keras model with a known input shape. "
            f"Received: {type(head).__name__} without one. "
            "Give it a `keras.Input`, or make it a functional model."
        )
    if not _is_shape(shape):
        raise UsageError(
            f"Expected the head of '{task}' to take one input of shape [N, ...]. "
            f"Received: input shape {shape}. Export a model with a single input."
        )
    if head.inputs[0].dtype == "string":
        raise UsageError(
            f"Expected the head of '{task}' to take numbers. Received: an input of strings. Look "
            "words and categories up before the model, and export what is behind that."
        )
    return shape[1:]


def class_names_of(
    heads: Mapping[str, keras.Model], classes: Mapping[str, Sequence[object]]
) -> dict[str, list[str]]:
    """Return the class names of every head: those given, or else "0", "1", ….

    A head of one logit may have two: its sigmoid is the probability of the second.

    Args:
        heads: Model of every task.
        classes: Class names of some or all tasks.

    Raises:
        UsageError: If there is another number of them than of logits, or the outputs of a head are
            no logits `[N, C]`.
    """
    for task in classes:
        if task not in heads:
            raise UsageError(
                f"Expected `classes` to name tasks among {sorted(heads)}. Received: '{task}'. "
                "Correct the name, or add its head."
            )
    labels = {}
    for task, head in heads.items():
        count = _count_logits(task, head)
        if isinstance(classes.get(task), str | Set):
            raise UsageError(
                f"Expected the class names of '{task}' as a list, in the order of the logits. "
                f"Received: {type(classes[task]).__name__} in `classes`. Name every class, in "
                "training order."
            )
        labels[task] = [_class_name(task, name) for name in classes.get(task, range(count))]
        is_binary = count == 1 and len(labels[task]) == 2
        if len(labels[task]) != count and not is_binary:
            raise UsageError(
                f"Expected {count} class names for '{task}', one per logit. "
                f"Received: {len(labels[task])} in `classes`. Name every class, in training order."
            )
        if count == 1 and task not in classes:
            raise UsageError(
                f"Expected the head of '{task}' to return a logit for each of its classes. "
                "Received: a single one, whose softmax is 1 whatever it is. Name both classes in "
                "`classes`, such as ['no', 'yes'], if its sigmoid is the probability of the "
                "second; or the class, if there is but one."
            )
        if repeated := _repeated(labels[task]):
            raise UsageError(
                f"Expected different class names for '{task}', which identify a class. "
                f"Received: {repeated} more than once in `classes`. Make them different, for "
                "example by the name of the task in front, as in 'flowers/0'."
            )
    return labels


def _class_name(task: str, name: object) -> str:
    # `str` would make "b'cat'" of bytes, as HDF5 files have them.
    if isinstance(name, bytes) or _NO_UTF8.search(str(name)):
        raise UsageError(
            f"Expected class names of '{task}' that are text, which clients read as UTF-8. "
            f"Received: {name!r} in `classes`. Decode it, or name the class otherwise."
        )
    return str(name)


def _count_logits(task: str, head: keras.Model) -> int:
    shape = head.output_shape
    if not _is_shape(shape) or len(shape) != 2 or shape[1] is None:
        raise UsageError(
            f"Expected the head of '{task}' to return logits of shape [N, C]. "
            f"Received: output shape {shape}. End it with a Dense layer of one unit per class."
        )
    if last := _layer_of_probabilities(head):
        raise UsageError(
            f"Expected the head of '{task}' to return logits, of which the version computes the "
            f"softmax. Received: probabilities, from the layer '{last}', which would be "
            "flattened by a second one. End it before its activation: set "
            "`activation=None`, or pass `keras.Model(model.input, logits)`."
        )
    if isinstance(getattr(head, "output", None), dict):
        raise UsageError(
            f"Expected the head of '{task}' to return a tensor of logits. Received: a dict with "
            "one. Pass `keras.Model(model.input, logits)`."
        )
    return shape[1]


def _layer_of_probabilities(head: keras.Model) -> str:
    """Return the name of the last layer if it makes probabilities of logits; empty if not."""
    last: Any = head
    while isinstance(last, keras.Model) and getattr(last, "outputs", None):
        last = last.outputs[0]._keras_history.operation
    # Of `keras.layers` or of `keras.ops`.
    makes = type(last).__name__ in _OPERATIONS or getattr(last, "activation", None) in PROBABILITIES
    is_of_keras = type(last).__module__.startswith("keras.")
    return last.name if makes or (not is_of_keras and _computes_probabilities(head)) else ""


def _computes_probabilities(head: keras.Model) -> bool:
    """Return whether a head whose last layer has a `call` of its own ends in probabilities."""
    traced = tf.function(lambda inputs: head(inputs, training=False), autograph=False)
    inputs = tf.TensorSpec([None, *head.input_shape[1:]], tf.float32)
    operation = traced.get_concrete_function(inputs).outputs[0].op
    while operation.type == "Identity":
        operation = operation.inputs[0].op
    return operation.type in _OPERATIONS


def _is_shape(shape: object) -> bool:
    """Whether `shape` is one shape, not a list or dict of several."""
    return isinstance(shape, tuple) and all(size is None or isinstance(size, int) for size in shape)


def check_resize(resize: str | None, input_shape: Shape) -> None:
    """Raise a UsageError if inputs of a shape cannot be images that are resized in this way."""
    if resize is None:
        return
    if resize not in RESIZE_MODES:
        raise UsageError(
            f"Expected `resize` to be None or one of {', '.join(map(repr, RESIZE_MODES))}. "
            f"Received: {resize!r}."
        )
    if len(input_shape) != 3 or input_shape[-1] not in (1, 3):
        raise UsageError(
            "Expected inputs of shape [H, W, 1] or [H, W, 3], to decode images. Received: heads "
            f"that take {list(input_shape)}. Pass `resize=None` for inputs that are no images."
        )


def check_examples(
    heads: Mapping[str, keras.Model], examples: np.ndarray, resize: str | None
) -> None:
    """Check examples, and what the heads answer to them.

    Args:
        heads: Model of every task.
        examples: float32 `[N, *input_shape]`.
        resize: How images get the size of inputs; None if inputs are no images.

    Raises:
        UsageError: If they are no inputs of the heads, or a head answers probabilities, or NaN.
    """
    input_shape = input_shape_of(heads)
    expected = tf.TensorShape([None, *input_shape])
    if not expected.is_compatible_with(examples.shape):
        raise UsageError(
            f"Expected examples of shape {[None, *input_shape]}, as the heads take them. Received: "
            f"{list(examples.shape)}."
        )
    if resize is not None and np.any(examples != np.clip(np.round(examples), 0, 255)):
        raise UsageError(
            "Expected examples of pixels, whole numbers from 0 to 255, for heads that answer files "
            "of images. Received: other numbers. Pass them as they are before any preprocessing, "
            "or `resize=None`."
        )
    for task, head in heads.items():
        _check_exact(task, head, examples)
        logits = np.asarray(head(examples, training=False), np.float32)
        _check_logits(task, logits[np.isfinite(examples).reshape(len(examples), -1).all(axis=1)])


def _check_exact(task: str, head: keras.Model, examples: np.ndarray) -> None:
    """Refuse numbers of words, say, that float32, the type of all inputs, does not hold exactly."""
    dtype = head.inputs[0].dtype
    if "int" in dtype and np.any(np.abs(examples) > _MAX_EXACT):
        raise UsageError(
            f"Expected {dtype} inputs of '{task}' up to {_MAX_EXACT:,}: signatures take float32, "
            f"which holds no larger ones exactly. Received: {np.abs(examples).max():,.0f} among "
            "the examples. Number them from 0."
        )


def _check_logits(task: str, logits: np.ndarray) -> None:
    """Check the logits `[N, C]` of examples that are finite."""
    # Minus infinity is the logit of a class that cannot be.
    if wrong := int(np.sum(np.isnan(logits).any(axis=1) | ~np.isfinite(logits.max(axis=1)))):
        raise UsageError(
            f"Expected finite logits of '{task}'. Received: NaN or infinity for {wrong} of "
            f"{len(logits)} examples. The training diverged, or a layer overflows: export a model "
            "from before it."
        )
    sums_to_one = np.allclose(logits.sum(axis=1), 1.0, atol=_ROUNDING)
    if len(logits) and logits.shape[1] > 1 and sums_to_one and logits.min() >= 0.0:
        raise UsageError(
            f"Expected the head of '{task}' to return logits, of which the version computes the "
            f"softmax. Received: probabilities, which sum to 1 for each of {len(logits)} "
            "examples and would be flattened by a second softmax. Pass the model without its "
            "softmax: `keras.Model(model.input, logits)`."
        )
