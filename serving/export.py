"""Export to TensorFlow Serving: one SavedModel per version, with a signature per task."""

import contextlib
import keyword
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_mas.errors import UsageError
from keras_mas.files import atomic_folder, check_writable
from keras_mas.logs import quiet

from .paths import list_versions, parse_version
from .runtime import DEFAULT_SIGNATURE, LoadedVersion, LoadError

_Shape = tuple[int | None, ...]
_Endpoint = Callable[[tf.Tensor], dict[str, tf.Tensor]]

# Stands for a dimension of unknown size in the test run of a version. 224 is customary for images,
# and every network of keras.applications accepts it.
_UNKNOWN_SIZE = 224

# The end of the name of a variable's value in a checkpoint.
_VALUE = ".ATTRIBUTES/VARIABLE_VALUE"

# SavedModel keeps the attribute `signatures` for itself.
_RESERVED = {DEFAULT_SIGNATURE, "signatures"}

# What TensorFlow accepts as a name scope inside another; each layer opens one of its name.
_SCOPE = re.compile(r"[A-Za-z0-9_.\\/>-]+")


class ExportError(RuntimeError):
    """The model could not be written, or did not run in the C++ runtime; nothing was published."""


def check_exportable(task_names: Iterable[str], directory: str | os.PathLike) -> None:
    """Check what can be checked of an export before there is a model, that is before training.

    Args:
        task_names: Names of the tasks, each of which becomes a signature.
        directory: Folder of the model, `models/NAME`, or of one version. It need not exist.

    Raises:
        UsageError: If a name cannot be a signature or occurs twice; or if `directory` is a file,
            lies below one, or cannot be written to.
    """
    _check_task_names(list(task_names))
    check_writable(directory)


def export_version(
    heads: Mapping[str, keras.Model],
    directory: str | os.PathLike,
    *,
    input_name: str = "inputs",
    classes: Mapping[str, Sequence[object]] | None = None,
) -> Path:
    """Write one version of a model for TensorFlow Serving, with a signature per task.

    Each task's signature takes `{input_name: float32 [N, *input_shape]}` and returns

        probabilities   float32 [N, C]   softmax of the head's logits
        class           int64 [N]        index of the largest
        label           string [N]       its class name

    The signature `serving_default` returns the outputs of every task in one request, as
    `<task>/probabilities`, `<task>/class` and `<task>/label`. The graph itself refuses inputs of
    another shape, because no server compares a request with the signature.

    Only the variables that inference reads are stored, each once, even if the heads share them: no
    optimizer, no importance Ω, no anchor θ*.

    The version is written to a hidden folder beside `directory`, loaded, run once per signature and
    renamed. Other processes see a complete version or none.

    Args:
        heads: Non-empty mapping from task name to a built Keras model with one input and logits
            `[N, C]`. The input shapes are equal; C may differ. Runs with `training=False`.
        directory: Folder of the version, `models/NAME/<integer>`. It must not exist; its parents
            are made.
        input_name: Name of the input in every signature, a Python identifier.
        classes: Mapping from task name to its C class names, all different, for some or all tasks.
            Default: "0", "1", ….

    Returns:
        `directory` as a `Path`.

    Raises:
        UsageError: If the version exists or cannot be written, or a name, a head or a list of
            classes is not as above. Nothing has been written then.
        ExportError: If a head has a lookup table, the disk is full, or the written model does not
            load or run. What was written has been removed.
    """
    directory = Path(directory)
    _refuse_existing(directory)
    _check_names(heads, input_name)
    input_shape = _shared_input_shape(heads)
    labels = _labels(heads, classes or {})
    check_exportable(heads, directory)
    archive = _build_archive(heads, labels, input_shape, input_name)
    try:
        with atomic_folder(directory) as unfinished:
            _write(archive, unfinished)
            _check_runs(unfinished, [*heads, DEFAULT_SIGNATURE], input_name, input_shape)
            _refuse_existing(directory)  # another process may have published it meanwhile
    except OSError as error:
        _refuse_existing(directory)  # or just now
        raise ExportError(
            f"Expected to write '{directory}'. Received: {error}. Nothing was published."
        ) from error
    return directory


def is_exported(heads: Mapping[str, keras.Model], directory: str | os.PathLike) -> bool:
    """Return whether a version holds the weights of these heads, and none but theirs.

    Args:
        heads: As for `export_version`.
        directory: Folder of a version, which need not exist.
    """
    prefix = Path(directory) / "variables" / "variables"
    if not prefix.with_suffix(".index").exists():
        return False
    try:
        reader = tf.train.load_checkpoint(str(prefix))
    except tf.errors.OpError:  # a damaged index
        return False
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith(_VALUE)]
    stored = Counter(_content(reader.get_tensor(name)) for name in names)
    weights = {id(weight): weight for head in heads.values() for weight in head.weights}
    return stored == Counter(_content(weight.numpy()) for weight in weights.values())


def _content(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return array.dtype.name, array.shape, array.tobytes()


def _refuse_existing(directory: Path) -> None:
    version = parse_version(directory)
    # The folder '03' is version 3 too.
    taken = list_versions(directory.parent).get(version, directory)
    if taken.exists():
        raise UsageError(
            f"Expected version {version} of '{directory.parent.name}' not to exist. Received: "
            f"'{taken}', which does. A version is never overwritten, since a server may be "
            "answering from it; export under a higher number."
        )


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
        and not re.search("[\ud800-\udfff]", name)  # no UTF-8
    )


def _repeated(names: Iterable[str]) -> str:
    """List the names that occur more than once."""
    return ", ".join(repr(name) for name, count in Counter(names).items() if count > 1)


def _check_names(heads: Mapping[str, keras.Model], input_name: str) -> None:
    if not heads:
        raise UsageError(
            "Expected a mapping from task name to model, with at least one task. "
            "Received: no heads. Pass the heads to serve, as in `{'flowers': model}`."
        )
    _check_task_names(list(heads))
    if not input_name.isidentifier() or keyword.iskeyword(input_name):
        raise UsageError(
            f"Expected `input_name` to be a Python identifier. Received: {input_name!r}. "
            "TensorFlow makes it the name of an argument; choose one such as 'inputs' or 'image'."
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


def _shared_input_shape(heads: Mapping[str, keras.Model]) -> _Shape:
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


def _input_shape(task: str, head: keras.Model) -> _Shape:
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
        labels[task] = [str(name) for name in classes.get(task, range(count))]
        if len(labels[task]) != count:
            raise UsageError(
                f"Expected {count} class names for '{task}', one per logit. "
                f"Received: {len(labels[task])} in `classes`. Name every class, in training order."
            )
        if repeated := _repeated(labels[task]):
            raise UsageError(
                f"Expected different class names for '{task}', which identify a class. "
                f"Received: {repeated} more than once in `classes`. Make them different, for "
                "example by the name of the task in front, as in 'flowers/0'."
            )
    return labels


def _count_logits(task: str, head: keras.Model) -> int:
    shape = head.output_shape
    if not _is_shape(shape) or len(shape) != 2 or shape[1] is None:
        raise UsageError(
            f"Expected the head of '{task}' to return logits of shape [N, C]. "
            f"Received: output shape {shape}. End it with a Dense layer of one unit per class."
        )
    return shape[1]


def _is_shape(shape: object) -> bool:
    """Whether `shape` is one shape, not a list or dict of several."""
    return isinstance(shape, tuple) and all(size is None or isinstance(size, int) for size in shape)


def _build_archive(
    heads: Mapping[str, keras.Model],
    labels: Mapping[str, Sequence[str]],
    input_shape: _Shape,
    input_name: str,
) -> keras.export.ExportArchive:
    signature = [tf.TensorSpec([None, *input_shape], tf.float32, name=input_name)]
    # Endpoints find the variables they read. `track` would store every weight a second time, and
    # with them whatever else a model holds: Ω, θ* and the optimizer.
    archive = keras.export.ExportArchive()
    for task, head in heads.items():
        classify = _classify_one(head, labels[task])
        archive.add_endpoint(task, _endpoint(classify, input_shape), signature)
    classify = _classify_all(heads, labels)
    archive.add_endpoint(DEFAULT_SIGNATURE, _endpoint(classify, input_shape), signature)
    return archive


def _classify_one(head: keras.Model, labels: Sequence[str]) -> _Endpoint:
    def classify(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return _classification(head(inputs, training=False), labels)

    return classify


def _classify_all(
    heads: Mapping[str, keras.Model], labels: Mapping[str, Sequence[str]]
) -> _Endpoint:
    logits_of = _joint(heads)

    def classify(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return {
            f"{task}/{name}": value
            for task, logits in logits_of(inputs, training=False).items()
            for name, value in _classification(logits, labels[task]).items()
        }

    return classify


def _joint(heads: Mapping[str, keras.Model]) -> Callable[..., Mapping[str, tf.Tensor]]:
    """Return a function from inputs to the logits of every task.

    Functional heads on one input tensor become one model, in which the trunk runs once. Heads that
    cannot be joined run one after the other, each with the trunk.
    """

    def one_by_one(inputs: tf.Tensor, training: bool) -> dict[str, tf.Tensor]:
        return {task: head(inputs, training=training) for task, head in heads.items()}

    first = next(iter(heads.values()))
    try:
        outputs = {task: head.outputs[0] for task, head in heads.items()}
        joint = keras.Model(first.inputs[0], outputs)
    except ValueError:  # several input tensors, or two layers of one name
        return one_by_one
    # A head with a `call` of its own is more than its graph of layers.
    functional = all(type(head).call is type(joint).call for head in heads.values())
    return joint if functional else one_by_one


def _classification(logits: tf.Tensor, labels: Sequence[str]) -> dict[str, tf.Tensor]:
    # Under mixed precision the logits are float16, which REST cannot carry.
    logits = tf.cast(logits, tf.float32)
    index = tf.argmax(logits, axis=-1, output_type=tf.int64)
    return {
        "probabilities": tf.nn.softmax(logits),
        "class": index,
        "label": tf.gather(tf.constant(labels), index),
    }


def _endpoint(classify: _Endpoint, input_shape: _Shape) -> _Endpoint:
    def endpoint(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        # The shape in the signature is only metadata. Without this operation an image of the wrong
        # size fails deep in the graph or, under global pooling, is classified all the same.
        return classify(tf.ensure_shape(inputs, [None, *input_shape], name="check_input_shape"))

    return endpoint


def _write(archive: keras.export.ExportArchive, directory: Path) -> None:
    try:
        with quiet():
            archive.write_out(str(directory), verbose=False)
    except tf.errors.OpError as error:
        raise ExportError(
            f"Expected to write '{directory.parent}'. Received: {error.message}. "
            "Nothing was published."
        ) from error
    except AssertionError as error:  # how TensorFlow refuses a resource that is not tracked
        raise ExportError(
            "Expected the heads to read nothing but variables. Received: a layer with a resource "
            f"of another kind, such as a lookup table, for '{directory.parent}'. Nothing was "
            "published; look words and categories up before the model."
        ) from error


def _check_runs(
    directory: Path, signature_names: Collection[str], input_name: str, input_shape: _Shape
) -> None:
    """Load a version as a server would, and send every signature one input of zeros."""
    zeros = np.zeros([1, *(size or _UNKNOWN_SIZE for size in input_shape)], np.float32)
    try:
        with contextlib.closing(LoadedVersion(directory)) as version:
            for name in signature_names:
                version.run(name, {input_name: zeros})
    except (LoadError, tf.errors.OpError) as error:
        raise ExportError(
            f"Expected the exported model to answer an input of zeros of shape {list(zeros.shape)} "
            f"in the C++ runtime. Received: {error}. Nothing was published; a layer of the model "
            "may use an operation or a resource that cannot be served."
        ) from error
