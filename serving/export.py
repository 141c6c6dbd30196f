"""Export to TensorFlow Serving: one SavedModel per version, with a signature per task."""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_mas.errors import UsageError
from keras_mas.files import check_writable
from keras_mas.logs import quiet
from keras_mas.versions import library_versions

from . import warmup
from .answers import different_answer, tolerance_of
from .conventions import (
    in_one_line,
)
from .head_checks import (
    check_examples,
    check_heads,
    check_names,
    check_resize,
    check_task_names,
    class_names_of,
    input_shape_of,
)
from .manifest import weights_checksum, write_manifest
from .paths import check_model_folder, new_version, parse_version, refuse_existing
from .runtime import LoadedVersion, LoadError, damaged
from .signatures import Signature, build_signatures

# The end of the name of a variable's value in a checkpoint.
_VALUE = ".ATTRIBUTES/VARIABLE_VALUE"

# Operations that change a variable.
_CHANGES = re.compile(r"Assign\w*VariableOp|ResourceScatter|Resource\w*Apply")

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
    check_task_names(list(task_names))
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
            Default: "0", "1", …. Two for a head of one logit, whose sigmoid is the probability of
            the second.
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
    check_names(heads, input_name)
    input_shape = input_shape_of(heads)
    check_resize(resize, input_shape)
    warmup.check_batch_sizes(warmup_batch_sizes)
    run = dict(manifest or {})
    _check_manifest(run)
    labels = class_names_of(heads, classes or {})
    check_exportable(heads, directory.parent)
    if examples is not None:
        examples = np.asarray(examples, np.float32)
        check_examples(heads, examples, resize)
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
        "classes": class_names_of(heads, classes or {}),
        "input": {"name": input_name, "shape": list(input_shape_of(heads))},
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
