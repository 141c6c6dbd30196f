"""Requests that a model server sends to itself before it answers others.

The first request to a signature takes longer: memory is allocated, and kernels are chosen.
TensorFlow Serving replays `assets.extra/tf_serving_warmup_requests` of a version, a TFRecord of
`PredictionLog`, while it loads the version, and refuses a version that fails on one of them.
"""

import itertools
import math
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2

from keras_mas.errors import UsageError

from .conventions import EXTRA_ASSETS
from .logged import array_of
from .runtime import LoadedVersion
from .signatures import Signature

BATCH_SIZES = (1, 32)
"""Batch sizes of the requests, unless others are asked for."""

_PATH = Path(EXTRA_ASSETS) / "tf_serving_warmup_requests"

# The server refuses a version with more.
_MAX_RECORDS = 1000

# float32 inputs of a larger request would take the memory that a server has for its versions.
_MAX_BYTES = 256 * 2**20

# Stands for a dimension of unknown size. 224 is customary for images, and every network of
# keras.applications accepts it.
_UNKNOWN_SIZE = 224


class WarmupError(RuntimeError):
    """A version failed on one of its own requests; the message says which and why."""


def check_batch_sizes(batch_sizes: Collection[int]) -> None:
    """Check the batch sizes of requests.

    Raises:
        UsageError: If there is none, or one is no positive integer.
    """
    if not batch_sizes or any(type(size) is not int or size < 1 for size in batch_sizes):
        raise UsageError(
            "Expected at least one batch size to warm up with, all of them whole numbers from 1. "
            f"Received: {list(batch_sizes)}. Name those that the server will see, such as [1, 32]."
        )


def write_warmup(
    directory: str | os.PathLike,
    model: str,
    signatures: Sequence[Signature],
    batch_sizes: Iterable[int],
) -> None:
    """Write a request to every signature in every batch size, 1,000 of them at most.

    Of batch sizes whose inputs take more than 256 MiB there is none, but for the smallest.

    A request repeats one input, which is written once: the server fills a tensor with the last
    value that the request has. So 32 images take as many bytes as one.

    Args:
        directory: Folder of a version that is not visible yet.
        model: Name that the model will be served by.
        signatures: The signatures.
        batch_sizes: Numbers of inputs, each ≥ 1.
    """
    path = Path(directory) / _PATH
    path.parent.mkdir(exist_ok=True)
    largest_input = max(4 * math.prod(_extents(signature, 1)) for signature in signatures)
    smallest, *others = sorted(set(batch_sizes))
    sizes = [smallest, *(size for size in others if size * largest_input <= _MAX_BYTES)]
    pairs = itertools.product(sizes, signatures)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for size, signature in itertools.islice(pairs, _MAX_RECORDS):
            writer.write(_record(model, signature, size).SerializeToString(deterministic=True))


def has_warmup(directory: str | os.PathLike) -> bool:
    """Return whether a version has requests to warm up with."""
    return (Path(directory) / _PATH).exists()


def replay_warmup(directory: str | os.PathLike, version: LoadedVersion) -> None:
    """Send a version the requests in its folder, if any, as TensorFlow Serving does on loading it.

    Args:
        directory: Folder of the version.
        version: The version in the C++ runtime.

    Raises:
        WarmupError: If a request fails, or the file is damaged.
    """
    path = Path(directory) / _PATH
    if not path.exists():
        return
    for request in _requests(path):
        signature = request.model_spec.signature_name
        try:
            inputs = {name: array_of(proto) for name, proto in request.inputs.items()}
        except ValueError as error:
            raise WarmupError(f"{error} (signature '{signature}')") from error
        try:
            version.run(signature, inputs)
        except tf.errors.OpError as error:
            shapes = ", ".join(f"'{name}' {list(array.shape)}" for name, array in inputs.items())
            raise WarmupError(f"{error.message} (signature '{signature}', {shapes})") from error


def load_warmed_up(directory: str | os.PathLike) -> LoadedVersion:
    """Load a version as a model server does, which replays its warm-up requests first.

    Args:
        directory: Folder of the version.

    Raises:
        LoadError: If it does not load.
        WarmupError: If a request fails, or the file of them is damaged.
    """
    version = LoadedVersion(Path(directory))
    try:
        replay_warmup(directory, version)
    except BaseException:
        version.close()
        raise
    return version


def _requests(path: Path) -> Iterator[predict_pb2.PredictRequest]:
    count = 0
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            log = prediction_log_pb2.PredictionLog.FromString(record)
            count += 1
            yield log.predict_log.request
    except (tf.errors.OpError, DecodeError) as error:
        raise WarmupError(
            f"'{path}' is damaged or cut off, after {count} requests that could be read"
        ) from error


def _record(model: str, signature: Signature, size: int) -> prediction_log_pb2.PredictionLog:
    spec = model_pb2.ModelSpec(name=model, signature_name=signature.name)
    request = predict_pb2.PredictRequest(model_spec=spec)
    request.inputs[signature.input.name].CopyFrom(_repeated(signature, size))
    return prediction_log_pb2.PredictionLog(
        predict_log=prediction_log_pb2.PredictLog(request=request)
    )


def _extents(signature: Signature, size: int) -> list[int]:
    _, *shape = signature.input.shape.as_list()
    return [size, *(extent or _UNKNOWN_SIZE for extent in shape)]


def _repeated(signature: Signature, size: int) -> tensor_pb2.TensorProto:
    """Return a batch of one input, whose values are all `signature.sample`."""
    proto = tf.make_tensor_proto(signature.sample, signature.input.dtype)
    proto.tensor_shape.CopyFrom(tf.TensorShape(_extents(signature, size)).as_proto())
    return proto
