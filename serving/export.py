"""One SavedModel per version: a signature per task, and nothing but the function that is served."""

import contextlib
import keyword
import os
import secrets
import shutil
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_mas.errors import UsageError
from keras_mas.logs import quiet

from .paths import list_versions, parse_version
from .runtime import DEFAULT_SIGNATURE, LoadedVersion, LoadError

# The check before publishing needs a size where the model leaves one open. 224 is customary for
# images, and every network of keras.applications accepts it.
_SIZE_WHERE_OPEN = 224

# What the name of a variable's value ends with in a checkpoint.
_VALUE = ".ATTRIBUTES/VARIABLE_VALUE"


class ExportError(RuntimeError):
    """The model could not be written, or did not run in the C++ runtime; nothing was published."""


def export_version(heads, directory, *, input_name="inputs", classes=None):
    """Write one version of a model for TensorFlow Serving, with a signature per task.

    Each task's signature takes `{input_name: float32 [N, *input_shape]}` and returns

        probabilities   float32 [N, C]   softmax of the head's logits
        class           int64 [N]        index of the largest
        label           string [N]       its class name

    The signature `serving_default` answers for every task in one request; its outputs are named
    `<task>/probabilities`, `<task>/class` and `<task>/label`. An input of another shape is refused
    by the graph itself, because no server compares a request with the signature.

    Only variables that the heads' inference reads are stored, each once, even if the heads share
    them: no optimizer, no importance Ω, no anchor θ*.

    The version is written to a hidden folder beside `directory`, loaded and run once per signature,
    and renamed. Other processes see a complete version or none.

    Args:
        heads: Non-empty mapping from task name to a built Keras model with one input and logits
            `[N, C]`. The input shapes are equal; C may differ. Runs with `training=False`.
        directory: Folder of the version, `models/NAME/<integer>`. It must not exist; its parents
            are made.
        input_name: Name of the input in every signature, a Python identifier.
        classes: Mapping from task name to its C class names, for some or all tasks. Default: "0",
            "1", ….

    Returns:
        `directory` as a `Path`.

    Raises:
        UsageError: If the version exists, or a name, a head or a list of classes is not as above.
            Nothing has been written then.
        ExportError: If a head has a lookup table, or the written model does not load or run. What
            was written has been removed.
    """
    directory = Path(directory)
    _refuse_existing(directory)
    _check_names(heads, input_name)
    input_shape = _shared_input_shape(heads)
    labels = _labels(heads, classes or {})
    archive = _build_archive(heads, labels, input_shape, input_name)
    with _appearing_at_once(directory) as hidden:
        _write(archive, hidden)
        _check_runs(hidden, [*heads, DEFAULT_SIGNATURE], input_name, input_shape)
    return directory


def check_exportable(task_names, directory):
    """Refuse an export that would fail whatever the models are.

    Args:
        task_names: Names of the heads that will be exported.
        directory: Folder of the served model, `models/NAME`; it need not exist.

    Raises:
        UsageError: If a name cannot name a signature, or `directory` cannot be a folder.
    """
    _check_names(task_names, "inputs")
    directory = Path(directory)
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir():
        raise UsageError(
            f"Expected a folder for the served model. Received: '{directory}', where '{existing}' "
            "is a file. Choose another folder."
        )


def is_exported(heads, directory):
    """Return whether a version holds the weights of these heads, and none but theirs.

    Args:
        heads: As for `export_version`.
        directory: Folder of a version, which need not exist.
    """
    prefix = Path(directory) / "variables" / "variables"
    if not prefix.with_suffix(".index").exists():
        return False
    reader = tf.train.load_checkpoint(str(prefix))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith(_VALUE)]
    stored = Counter(_content(reader.get_tensor(name)) for name in names)
    weights = {id(weight): weight for head in heads.values() for weight in head.weights}
    return stored == Counter(_content(weight.numpy()) for weight in weights.values())


def _content(array):
    return array.dtype.name, array.shape, array.tobytes()


def _refuse_existing(directory):
    version = parse_version(directory)
    # The folder '03' is version 3 too.
    taken = list_versions(directory.parent).get(version, directory)
    if taken.exists():
        raise UsageError(
            f"Expected version {version} of '{directory.parent.name}' not to exist. Received: "
            f"'{taken}', which does. A version is never overwritten, since a server may be "
            "answering from it; export under a higher number."
        )


def _check_names(heads, input_name):
    if not heads:
        raise UsageError(
            "Expected a mapping from task name to model, with at least one task. "
            "Received: no heads. Pass the heads to serve, as in `{'flowers': model}`."
        )
    for task in heads:
        if not _can_name_signature(task):
            raise UsageError(
                "Expected every task name to be a string that can name a signature: not empty, not "
                f"'{DEFAULT_SIGNATURE}', no underscore in front. Received: {task!r}. "
                "Rename the task."
            )
    if not input_name.isidentifier() or keyword.iskeyword(input_name):
        raise UsageError(
            f"Expected `input_name` to be a Python identifier. Received: {input_name!r}. "
            "TensorFlow makes it an argument's name; choose one such as 'inputs' or 'image'."
        )


def _can_name_signature(task):
    # ExportArchive and SavedModel keep names that begin with an underscore for themselves.
    return isinstance(task, str) and task[:1] not in ("", "_") and task != DEFAULT_SIGNATURE


def _shared_input_shape(heads):
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


def _input_shape(task, head):
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


def _labels(heads, classes):
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
    return labels


def _count_logits(task, head):
    shape = head.output_shape
    if not _is_shape(shape) or len(shape) != 2 or shape[1] is None:
        raise UsageError(
            f"Expected the head of '{task}' to return logits of shape [N, C]. "
            f"Received: output shape {shape}. End it with a Dense layer of one unit per class."
        )
    return shape[1]


def _is_shape(shape):
    """Whether `shape` is one shape, not a list or dict of several."""
    return isinstance(shape, tuple) and all(size is None or isinstance(size, int) for size in shape)


def _build_archive(heads, labels, input_shape, input_name):
    signature = [tf.TensorSpec([None, *input_shape], tf.float32, name=input_name)]
    # Endpoints find the variables they read. `track` would store every weight a second time, and
    # with them whatever else a model holds: Ω, θ* and the optimizer.
    archive = keras.export.ExportArchive()
    for task, head in heads.items():
        answer = _answer_one(head, labels[task])
        archive.add_endpoint(task, _endpoint(answer, input_shape), signature)
    answer = _answer_all(heads, labels)
    archive.add_endpoint(DEFAULT_SIGNATURE, _endpoint(answer, input_shape), signature)
    return archive


def _answer_one(head, labels):
    def answer(inputs):
        return _describe(head(inputs, training=False), labels)

    return answer


def _answer_all(heads, labels):
    logits_of = _joint(heads)

    def answer(inputs):
        return {
            f"{task}/{name}": value
            for task, logits in logits_of(inputs, training=False).items()
            for name, value in _describe(logits, labels[task]).items()
        }

    return answer


def _joint(heads):
    """Return a function from inputs to the logits of every task.

    Functional heads on one input tensor become one model, in which the trunk runs once. Heads that
    cannot be joined run one after the other, each with the trunk.
    """

    def one_by_one(inputs, training):
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


def _describe(logits, labels):
    # Under mixed precision the logits are float16, which REST cannot carry.
    logits = tf.cast(logits, tf.float32)
    index = tf.argmax(logits, axis=-1, output_type=tf.int64)
    return {
        "probabilities": tf.nn.softmax(logits),
        "class": index,
        "label": tf.gather(tf.constant(labels), index),
    }


def _endpoint(answer, input_shape):
    def endpoint(inputs):
        # The signature's shape is only metadata. Without this operation a wrong image size fails
        # deep in the graph, or under global pooling gives an answer to a question not asked.
        return answer(tf.ensure_shape(inputs, [None, *input_shape], name="check_input_shape"))

    return endpoint


@contextlib.contextmanager
def _appearing_at_once(directory):
    """Yield a hidden path on the same file system; rename it after success, remove it otherwise."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    hidden = directory.with_name(f".tmp-{directory.name}-{secrets.token_hex(4)}")
    try:
        yield hidden
        _refuse_existing(directory)  # another process may have published meanwhile
        os.rename(hidden, directory)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _write(archive, directory):
    try:
        with quiet():
            archive.write_out(str(directory), verbose=False)
    except AssertionError as error:  # how TensorFlow refuses what an endpoint reads but not owns
        raise ExportError(
            "Expected the heads to read nothing but variables. Received: a layer with a resource "
            f"of another kind, such as a lookup table, for '{directory.parent}'. Nothing was "
            "published; look words and categories up before the model."
        ) from error


def _check_runs(directory, signature_names, input_name, input_shape):
    """Load a version as a server would, and send every signature one input of zeros."""
    zeros = np.zeros([1, *(size or _SIZE_WHERE_OPEN for size in input_shape)], np.float32)
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
