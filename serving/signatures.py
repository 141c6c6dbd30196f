"""The functions of a served model, each with the name and the type of its input.

`keras_mas.serving.export` describes what they take and return.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf

from . import images
from .conventions import DEFAULT_SIGNATURE, ENCODED, EXAMPLES, FEATURES, IMAGE_BYTES

Shape = tuple[int | None, ...]
"""Shape of one input, without the batch; None for an unknown size."""

_Outputs = dict[str, tf.Tensor]
_Endpoint = Callable[[tf.Tensor], _Outputs]


@dataclass(frozen=True)
class Signature:
    """A function of a served model.

    Attributes:
        name: What requests call it.
        input: Name, type and shape `[None, ...]` of its input.
        run: From the input to its outputs by name.
        sample: A value that any input may be filled with, for a test.
        encode: From inputs of the model, float32 `[N, ...]`, to this signature's.
    """

    name: str
    input: tf.TensorSpec
    run: _Endpoint
    sample: float | bytes
    encode: Callable[[np.ndarray], np.ndarray] = np.asarray


def build_signatures(
    heads: Mapping[str, keras.Model],
    labels: Mapping[str, Sequence[str]],
    input_shape: Shape,
    input_name: str,
    resize: str | None,
) -> list[Signature]:
    """Return all signatures of a version, as `export_version` describes them.

    Args:
        heads: Model of every task.
        labels: Class names of every task.
        input_shape: Shape of one input.
        input_name: Name of the input.
        resize: How images get the size of inputs, one of `conventions.RESIZE_MODES`; None if inputs
            are no images.
    """
    joint = _joint(heads)
    classify = _classify_all(joint, heads, labels)
    functions = {task: _classify_one(head, labels[task]) for task, head in heads.items()}
    functions[DEFAULT_SIGNATURE] = classify
    if trunk := _trunk(joint, heads):
        functions[FEATURES] = _features(trunk)
    spec = tf.TensorSpec([None, *input_shape], tf.float32, name=input_name)
    signatures = [
        Signature(name, spec, _checked(function, spec), 0.0) for name, function in functions.items()
    ]
    known = [size for size in input_shape if size is not None]
    if len(known) < len(input_shape):  # one batch cannot hold examples of several sizes
        return signatures
    answers_all = Signature(DEFAULT_SIGNATURE, spec, classify, 0.0)
    if resize is not None:
        answers_all = _of_images(classify, known, resize)
        signatures.append(answers_all)
    return [*signatures, _of_examples(answers_all)]


def _of_images(classify: _Endpoint, input_shape: Sequence[int], resize: str) -> Signature:
    height, width, channels = input_shape

    def run(contents: tf.Tensor) -> _Outputs:
        return classify(images.decode(contents, (height, width, channels), resize))

    black = np.zeros((1, height, width, channels))
    spec = tf.TensorSpec([None], tf.string, name=IMAGE_BYTES)
    return Signature(ENCODED, spec, _checked(run, spec), _png_files(black)[0], _png_files)


def _png_files(pixels: np.ndarray) -> np.ndarray:
    return np.array([tf.io.encode_png(image.astype(np.uint8)).numpy() for image in pixels], object)


def _of_examples(of: Signature) -> Signature:
    """Return a signature for serialized `tf.Example`s that hold the input of another signature."""
    name, (_, *shape), dtype = of.input.name, of.input.shape.as_list(), of.input.dtype
    features = {name: tf.io.FixedLenFeature(shape, dtype)}

    def run(examples: tf.Tensor) -> _Outputs:
        return of.run(tf.io.parse_example(examples, features)[name])

    def example(value: np.ndarray) -> bytes:
        values = np.ravel(value)
        feature = tf.train.Feature(
            bytes_list=tf.train.BytesList(value=values) if dtype == tf.string else None,
            float_list=tf.train.FloatList(value=values) if dtype == tf.float32 else None,
        )
        content = tf.train.Example(features=tf.train.Features(feature={name: feature}))
        return content.SerializeToString(deterministic=True)

    def encode(inputs: np.ndarray) -> np.ndarray:
        return np.array([example(value) for value in of.encode(inputs)], object)

    sample = np.full(shape, of.sample, object if dtype == tf.string else None)
    spec = tf.TensorSpec([None], tf.string, name=EXAMPLES)
    return Signature(EXAMPLES, spec, _checked(run, spec), example(sample), encode)


def _classify_one(head: keras.Model, labels: Sequence[str]) -> _Endpoint:
    def classify(inputs: tf.Tensor) -> _Outputs:
        return _classification(head(inputs, training=False), labels)

    return classify


def _classify_all(
    joint: keras.Model | None,
    heads: Mapping[str, keras.Model],
    labels: Mapping[str, Sequence[str]],
) -> _Endpoint:
    def logits_of(inputs: tf.Tensor) -> Mapping[str, tf.Tensor]:
        if joint is not None:
            return joint(inputs, training=False)
        return {task: head(inputs, training=False) for task, head in heads.items()}

    def classify(inputs: tf.Tensor) -> _Outputs:
        return {
            f"{task}/{name}": value
            for task, logits in logits_of(inputs).items()
            for name, value in _classification(logits, labels[task]).items()
        }

    return classify


def trunk_of(heads: Mapping[str, keras.Model]) -> keras.Model | None:
    """Return the model from inputs to what the last layer of every head reads.

    Args:
        heads: Model of every task.

    Returns:
        The model; None if the heads are no functional models on one trunk.
    """
    return _trunk(_joint(heads), heads)


def _joint(heads: Mapping[str, keras.Model]) -> keras.Model | None:
    """Return one model from inputs to the logits of every task, in which the trunk runs once.

    None for heads that are no functional models on one input tensor: they run one after the other,
    each with the trunk.
    """
    first = next(iter(heads.values()))
    try:
        outputs = {task: head.outputs[0] for task, head in heads.items()}
        joint = keras.Model(first.inputs[0], outputs)
    except ValueError:  # several input tensors, or two layers of one name
        return None
    # A head with a `call` of its own is more than its graph of layers.
    functional = all(type(head).call is type(joint).call for head in heads.values())
    return joint if functional else None


def _trunk(joint: keras.Model | None, heads: Mapping[str, keras.Model]) -> keras.Model | None:
    """Return the model up to what the last layer of every head reads.

    None if the last layers read different tensors, or the inputs themselves.
    """
    if joint is None:
        return None
    read = [_read_by_last_layer(head.outputs[0]) for head in heads.values()]
    features = read[0][0]
    if any(len(tensors) != 1 or tensors[0] is not features for tensors in read):
        return None
    return None if features is joint.inputs[0] else keras.Model(joint.inputs[0], features)


def _read_by_last_layer(logits: keras.KerasTensor) -> Sequence[keras.KerasTensor]:
    layer, node, _ = logits._keras_history
    return layer._inbound_nodes[node].input_tensors or [logits]


def _features(trunk: keras.Model) -> _Endpoint:
    def features(inputs: tf.Tensor) -> _Outputs:
        return {FEATURES: tf.cast(trunk(inputs, training=False), tf.float32)}

    return features


def _classification(logits: tf.Tensor, labels: Sequence[str]) -> _Outputs:
    # Under mixed precision the logits are float16, which REST cannot carry.
    logits = tf.cast(logits, tf.float32)
    if logits.shape[-1] == 1 < len(labels):  # σ(z) is the second entry of the softmax of [0, z]
        logits = tf.pad(logits, [[0, 0], [1, 0]])
    index = tf.argmax(logits, axis=-1, output_type=tf.int64)
    label = tf.gather(tf.constant(labels), index)
    # Without an order TensorFlow hands what could run beside the other to a second thread, which
    # takes longer than it does.
    with tf.control_dependencies([label]):
        # Softmax itself is computed by oneDNN, which took 0.2 ms for 32 inputs of ten classes, more
        # than a dense layer does. Its logarithm is not.
        probabilities = tf.exp(tf.nn.log_softmax(logits))
    return {"probabilities": probabilities, "class": index, "label": label}


def _checked(function: _Endpoint, spec: tf.TensorSpec) -> _Endpoint:
    def endpoint(inputs: tf.Tensor) -> _Outputs:
        # The shape in the signature is only metadata. Without this operation an image of the wrong
        # size fails deep in the graph or, under global pooling, is classified all the same.
        return function(tf.ensure_shape(inputs, spec.shape, name="check_input_shape"))

    return endpoint
