"""Export to TensorFlow Serving: one SavedModel per version, with a signature per task."""

import contextlib
import json
import keyword
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mas.errors import UsageError
from keras_mas.files import check_writable
from keras_mas.importance.outputs import PROBABILITIES
from keras_mas.logs import quiet
from keras_mas.versions import library_versions

from . import warmup
from .answers import different_answer, tolerance_of
from .conventions import (
    DEFAULT_SIGNATURE,
    ENCODED,
    EXAMPLES,
    FEATURES,
    RESIZE_MODES,
    in_one_line,
)
from .manifest import weights_checksum, write_manifest
from .paths import check_model_folder, new_version, parse_version, refuse_existing
from .runtime import LoadedVersion, LoadError, damaged
from .signatures import Shape, Signature, build_signatures

# The end of the name of a variable's value in a checkpoint.
_VALUE = ".ATTRIBUTES/VARIABLE_VALUE"

# SavedModel keeps the attribute `signatures` for itself.
_RESERVED = {DEFAULT_SIGNATURE, FEATURES, ENCODED, EXAMPLES, "signatures"}

_NO_UTF8 = re.compile("[\ud800-\udfff]")

# Of Keras, and of TensorFlow.
_OPERATIONS = ("Softmax", "Sigmoid")

# Operations that change a variable.
_CHANGES = re.compile(r"Assign\w*VariableOp|ResourceScatter|Resource\w*Apply")

# What TensorFlow accepts as a name scope inside another; each layer opens one of its name.
_SCOPE = re.compile(r"[A-Za-z0-9_.\\/>-]+")


Approval = Callable[[Path, LoadedVersion], Mapping[str, Any]]
"""What `export_version` asks before a version appears."""


class ExportError(RuntimeError):
    """The model could not be written, or did not run in the C++ runtime; nothing was published."""


def check_exportable(task_names: Iterable[str], base_path: str | os.PathLike) -> None:
    """Check what can be checked of an export before there is a model, that is before training.

    Args:
        task_names: Names of the tasks, each of which becomes a signature.
        base_path: Folder of the model, `models/NAME`. It need not exist.

    Raises:
        UsageError: If a name cannot be a signature or occurs twice; or if the folder is a file,
            lies below one, cannot be written to or is named as a version.
    """
    _check_task_names(list(task_names))
    check_model_folder(base_path)
    check_writable(base_path)


def export_version(
    heads: Mapping[str, keras.Model],
    directory: str | os.PathLike,
    *,
    input_name: str = "inputs",
    classes: Mapping[str, Sequence[object]] | None = None,
    resize: str | None = None,
    manifest: Mapping[str, Any] | None = None,
    warmup_batch_sizes: Sequence[int] = warmup.BATCH_SIZES,
    examples: np.ndarray | None = None,
    approve: Approval | None = None,
) -> Path:
    """Write one version of a model for TensorFlow Serving, with a signature per task.

    Each task's signature takes `{input_name: float32 [N, *input_shape]}` and returns

        probabilities   float32 [N, C]   softmax of the head's logits
        class           int64 [N]        index of the largest
        label           string [N]       its class name

    Four signatures answer for all tasks:

        serving_default   takes the same, and returns the outputs of every task in one request, as
                          `<task>/probabilities`, `<task>/class` and `<task>/label`
        features          takes the same, and returns `features`, float32 [N, F]: what the last
                          layer of every head reads. Only if this is one tensor, as in functional
                          models on one trunk
        encoded           takes `{"image_bytes": string [N]}`, files of JPEG or PNG images, which
                          are decoded and resized as in training; returns as `serving_default`.
                          Only if inputs are images
        examples          takes `{"examples": string [N]}`, serialized `tf.Example`s with a feature
                          named as the input of `encoded`, or else `input_name`; returns as
                          `serving_default`

    The last two need inputs of a known size. The graph itself refuses inputs of another shape and
    what is no image, because no server compares a request with the signature. NaN is an input like
    any other.

    Only the variables that inference reads are stored, each once, even if the heads share them: no
    optimizer, no importance Ω, no anchor θ*. Beside them are the requests with which a server
    warms up, see `warmup`, and a manifest, see `manifest.read_manifest`:

        format     number of this format
        classes    the class names of every task
        input      the `name` and `shape` of an input, without N; None for an unknown size
        resize     as below
        weights    `weights_checksum` of the stored weights
        versions   of Python, TensorFlow, Keras and NumPy
        run        what the caller adds: where the version comes from

    The version is written to a hidden folder beside `directory`, loaded in the C++ runtime, sent
    its own warm-up requests and renamed. Other processes see a complete version or none. Where
    several make versions of one model, they take turns.

    Args:
        heads: Non-empty mapping from task name to a built Keras model with one input and logits
            `[N, C]`, no probabilities. The input shapes are equal; C may differ. Runs with
            `training=False`.
        directory: Folder of the version, `models/NAME/<integer>`. It must not exist; its parents
            are made.
        input_name: Name of the input in every signature, a Python identifier.
        classes: Mapping from task name to its C class names, all different, for some or all tasks.
            Default: "0", "1", ….
        resize: If inputs are images `[N, H, W, 1 or 3]` of values from 0 to 255, how others get
            this size, one of `conventions.RESIZE_MODES`; None if they are none.
        manifest: The entry `run` of the manifest, of what JSON can hold.
        warmup_batch_sizes: Batch sizes of the requests with which a server warms up.
        examples: Inputs `[n, *input_shape]`, to which every signature has to answer as the heads
            do before the version is renamed; pixels from 0 to 255 if `resize` is given.
        approve: Called before the version is renamed, with its folder and with the version in the
            C++ runtime. It returns what it adds to the manifest; what it raises refuses the
            version.

    Returns:
        `directory` as a `Path`.

    Raises:
        UsageError: If the version exists or cannot be written, or a name, a head, a list of
            classes or an option is not as above. Nothing has been written then.
        ExportError: If a head has a lookup table, cannot be traced with a batch of any size, or
            changes a variable with a request; if the disk is full; or if the written model does not
            load or run, or answers something else than the heads. What was written has been
            removed.
    """
    directory = Path(directory)
    refuse_existing(directory)
    check_heads(heads)
    _check_names(heads, input_name)
    input_shape = _shared_input_shape(heads)
    _check_resize(resize, input_shape)
    warmup.check_batch_sizes(warmup_batch_sizes)
    run = dict(manifest or {})
    _check_manifest(run)
    labels = _labels(heads, classes or {})
    check_exportable(heads, directory.parent)
    if examples is not None:
        examples = np.asarray(examples, np.float32)
        _check_examples(examples, input_shape, resize)
    signatures = build_signatures(heads, labels, input_shape, input_name, resize)
    try:
        with new_version(directory) as unfinished:
            _write(signatures, unfinished, directory)
            warmup.write_warmup(unfinished, directory.parent.name, signatures, warmup_batch_sizes)
            with contextlib.closing(_load(unfinished)) as version:
                if examples is not None:
                    _check_answers(signatures, version, examples, heads)
                judged = approve(unfinished, version) if approve else {}
            content = {
                **description_of(heads, input_name=input_name, classes=classes, resize=resize),
                "weights": weights_checksum(_stored_weights(unfinished)),
                "versions": library_versions(),
                "run": run,
                **judged,
            }
            write_manifest(unfinished, content)
            refuse_existing(directory)  # from a machine that does not see the lock
    except OSError as error:
        refuse_existing(directory)  # or just now
        raise ExportError(
            f"Expected to write '{directory}'. Received: {error.strerror or error}. "
            f"{_not_published(directory)}."
        ) from error
    return directory


def is_exported(heads: Mapping[str, keras.Model], directory: str | os.PathLike) -> bool:
    """Return whether a version holds the weights of these heads, and none but theirs.

    Args:
        heads: As for `export_version`.
        directory: Folder of a version, which need not exist.

    Raises:
        LoadError: If there is one whose weights cannot be read.
    """
    if not Path(directory).exists():
        return False
    weights = {id(weight): weight for head in heads.values() for weight in head.weights}
    try:
        stored = weights_checksum(_stored_weights(directory))
    except Exception as error:  # reading raises errors of many classes
        reason = f"Its weights cannot be read: {in_one_line(error).rstrip('.')}."
        raise damaged(directory, reason) from error
    return stored == weights_checksum(weight.numpy() for weight in weights.values())


def description_of(
    heads: Mapping[str, keras.Model],
    *,
    input_name: str = "inputs",
    classes: Mapping[str, Sequence[object]] | None = None,
    resize: str | None = None,
) -> dict[str, Any]:
    """Return what the manifest of a version says of what it takes and answers.

    Args:
        heads: As for `export_version`.
        input_name: Name of the input.
        classes: Class names of tasks.
        resize: How images get the size of inputs.

    Returns:
        The entries `classes`, `input` and `resize`.
    """
    return {
        "classes": _labels(heads, classes or {}),
        "input": {"name": input_name, "shape": list(_shared_input_shape(heads))},
        "resize": resize,
    }


def _stored_weights(directory: str | os.PathLike) -> Iterator[np.ndarray]:
    """Yield the weights of a version."""
    reader = tf.train.load_checkpoint(str(Path(directory) / "variables" / "variables"))
    for name in reader.get_variable_to_shape_map():
        if name.endswith(_VALUE):
            yield reader.get_tensor(name)


def _check_manifest(run: Mapping[str, Any]) -> None:
    try:
        json.dumps(run, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UsageError(
            "Expected `manifest` to hold what JSON can hold: strings, finite numbers, booleans, "
            f"None, and lists and dicts of them. Received: something else ({error})."
        ) from error


def _check_task_names(names: Sequence[str]) -> None:
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


def _check_names(heads: Mapping[str, keras.Model], input_name: str) -> None:
    _check_task_names(list(heads))
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


def _shared_input_shape(heads: Mapping[str, keras.Model]) -> Shape:
    """Return the shape of one input, without the batch, on which all heads agree."""
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
    return shape[1:]


def _labels(
    heads: Mapping[str, keras.Model], classes: Mapping[str, Sequence[object]]
) -> dict[str, list[str]]:
    """Return the class names of every head, checked against its number of logits."""
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
        if len(labels[task]) != count:
            raise UsageError(
                f"Expected {count} class names for '{task}', one per logit. "
                f"Received: {len(labels[task])} in `classes`. Name every class, in training order."
            )
        if count == 1 and task not in classes:
            raise UsageError(
                f"Expected the head of '{task}' to return a logit for each of its classes. "
                "Received: a single one, whose softmax is 1 whatever it is. Where a sigmoid tells "
                "two classes apart, put a zero before its logit: `keras.Model(model.input, "
                "keras.ops.pad(logit, [[0, 0], [1, 0]]))`. Name the class in `classes` if there is "
                "but one."
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


def _check_resize(resize: str | None, input_shape: Shape) -> None:
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


def _check_examples(examples: np.ndarray, input_shape: Shape, resize: str | None) -> None:
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


def _not_published(directory: Path) -> str:
    return f"Version {parse_version(directory)} was not published"


def _write(signatures: Iterable[Signature], unfinished: Path, directory: Path) -> None:
    # Endpoints find the variables they read. `track` would store every weight a second time, and
    # with them whatever else a model holds: Ω, θ* and the optimizer.
    archive = keras.export.ExportArchive()
    for signature in signatures:
        endpoint = archive.add_endpoint(signature.name, signature.run, [signature.input])
        _check_depends_on_input_alone(endpoint, signature, directory)
    try:
        with quiet():
            archive.write_out(str(unfinished), verbose=False)
    except tf.errors.OpError as error:
        # The path of the file, in a folder that has been removed, would help nobody.
        said = re.sub(rf"{re.escape(str(unfinished))}\S*; ", "", in_one_line(error.message))
        raise ExportError(
            f"Expected to write '{directory}'. Received: {said.rstrip('.')}. "
            f"{_not_published(directory)}."
        ) from error
    except AssertionError as error:  # how TensorFlow refuses a resource that is not tracked
        raise ExportError(
            "Expected the heads to read nothing but variables. Received: a layer with a resource "
            f"of another kind, such as a lookup table, for '{directory}'. "
            f"{_not_published(directory)}; look words and categories up before the model."
        ) from error


def _check_depends_on_input_alone(endpoint: Any, signature: Signature, directory: Path) -> None:
    """Trace a signature; refuse one that changes a variable, which the next request would see.

    So do recurrent layers with a state, layers that draw random numbers and statistics of the
    batch: whatever is compared with the Keras model once answers otherwise later.
    """
    try:
        with quiet():
            graph = endpoint.get_concrete_function().graph.as_graph_def()
    except Exception as error:  # layers raise errors of many classes
        raise ExportError(
            f"Expected the heads to take {signature.input.dtype.name} inputs of shape "
            f"{signature.input.shape.as_list()}, in a graph. Received: "
            f"{in_one_line(error).rstrip('.')} (signature '{signature.name}'). "
            f"{_not_published(directory)}."
        ) from error
    nodes = [*graph.node, *(node for each in graph.library.function for node in each.node_def)]
    if changes := sorted({node.name for node in nodes if _CHANGES.match(node.op)}):
        raise ExportError(
            "Expected answers that depend on the input alone. Received: a layer that changes a "
            "variable with every request, as of a recurrent state or of random numbers, in "
            f"'{changes[0]}' (signature '{signature.name}'). {_not_published(directory)}; pass "
            "`training=False` to the layer, or make it one without a state."
        )


def _load(directory: Path) -> LoadedVersion:
    try:
        return warmup.load_warmed_up(directory)
    except (LoadError, warmup.WarmupError) as error:
        raise ExportError(
            "Expected the exported model to answer its warm-up requests in the C++ runtime. "
            f"Received: {error}. It was not published; a layer of the model may use an operation "
            "or a resource that cannot be served."
        ) from error


def _check_answers(
    signatures: Sequence[Signature],
    version: LoadedVersion,
    examples: np.ndarray,
    heads: Mapping[str, keras.Model],
) -> None:
    layers = [layer for head in heads.values() for layer in head._flatten_layers(recursive=True)]
    tolerance = tolerance_of([str(layer.compute_dtype) for layer in layers])
    if difference := different_answer(signatures, version, examples, tolerance):
        raise ExportError(
            f"Expected the exported model to answer {len(examples)} examples as the Keras model "
            f"does. Received: {difference}. It was not published; a layer may compute otherwise "
            "in a graph, or draw random numbers."
        )
