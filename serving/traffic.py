"""What users ask a served model: the inputs in logs of its requests, without labels.

TensorFlow Serving and the stand-in log requests as TFRecords of `PredictionLog`. Logs are made to
be collected from many machines, so a part that cannot be read is counted and left out.
"""

import gzip
import heapq
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from keras_mas.errors import UsageError

from . import images
from .conventions import DEFAULT_SIGNATURE, ENCODED, EXAMPLES, FEATURES, IMAGE_BYTES
from .logged import array_of

# Signatures that no head has for itself; a request that names none means the first.
_OF_ALL_HEADS = (DEFAULT_SIGNATURE, "", FEATURES, ENCODED, EXAMPLES)

_GZIP = b"\x1f\x8b"

# Bytes of a record in a file besides its content: its length, and two checksums.
_FRAME = 8 + 4 + 4


@dataclass(frozen=True)
class InputForm:
    """What the inputs of a model are.

    Attributes:
        shape: Shape of one input, without N; None for a size that may differ.
        heads: The heads, which are signatures.
        name: Name of the input in the signatures that take inputs as they are.
        resize: How files of images get this size, one of `conventions.RESIZE_MODES`; None if none
            are taken.
    """

    shape: tuple[int | None, ...]
    heads: tuple[str, ...]
    name: str = "inputs"
    resize: str | None = None


@dataclass(frozen=True)
class Asked:
    """Inputs that users sent, in random order.

    Attributes:
        inputs: float32 `[N, …]`.
        heads: Head that each input was sent to, `[N]`; None for one that all heads answer.
    """

    inputs: np.ndarray
    heads: list[str | None]

    def by_head(self) -> Iterator[tuple[str | None, np.ndarray]]:
        """Yield every head, or None, with the inputs that were sent to it."""
        for head, rows in self.rows_by_head():
            yield head, self.inputs[rows]

    def rows_by_head(self) -> Iterator[tuple[str | None, list[int]]]:
        """Yield every head, or None, with the places of the inputs that were sent to it."""
        for head in dict.fromkeys(self.heads):
            yield head, [k for k, each in enumerate(self.heads) if each == head]

    def only(self, kept: np.ndarray) -> "Asked":
        """Return the inputs where `kept`, `[N]`, is true."""
        heads = [head for head, keep in zip(self.heads, kept, strict=True) if keep]
        return Asked(self.inputs[kept], heads)


@dataclass(kw_only=True)
class Counts:
    """How much has been read.

    Attributes:
        examples: Inputs that could be read, equal ones included.
        duplicates: Those that equal an earlier one.
        records: Records of logs, of any kind.
        files: Files that were read.
        left_out: How many of everything that could not be used, by what it is, in the plural.
        models: How many requests were to each model, by name.
    """

    examples: int = 0
    duplicates: int = 0
    records: int = 0
    files: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)

    def count(self, other: "Counts") -> None:
        """Add what was read elsewhere."""
        for each in fields(Counts):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def counted(self) -> "Counts":
        """Return the numbers alone."""
        return Counts(**{each.name: getattr(self, each.name) for each in fields(Counts)})


@dataclass
class Collector(Counts):
    """Draws distinct inputs from a stream of any length: each is as likely to be drawn.

    An input has a key, a hash of its numbers that depends on the seed. Those with the smallest keys
    are drawn (bottom-k sampling), so that the same inputs are drawn in whatever order they are
    read, and by whichever process.

    Args:
        form: What inputs are.
        limit: How many are drawn at most; None for all.
        seed: Of the drawing.
        on_read: Called after every input with the number of those that have been read.
    """

    form: InputForm
    limit: int | None = None
    seed: int = 0
    on_read: Callable[[int], None] = lambda examples: None

    def __post_init__(self):
        self._seen: dict[int, None] = {}  # in the order of reading
        self._files: set[int] = set()  # those whose images have been seen
        self._drawn: list[tuple[int, np.ndarray, str | None]] = []  # a heap, by minus the key

    def add(self, value: np.ndarray, head: str | None = None) -> None:
        """Take note of one input, or count it among those that cannot be used.

        Args:
            value: The input, without N.
            head: The head that it was sent to; None for all of them.
        """
        if value.dtype.kind not in "fiub":
            self.left_out["inputs that are no numbers"] += 1
            return
        if not _has_shape(value, self.form.shape):
            self.left_out[f"inputs of shape {list(value.shape)}"] += 1
            return
        value = np.ascontiguousarray(value, np.float32)
        if not np.isfinite(value).all():
            self.left_out["inputs with NaN or infinity"] += 1
            return
        self._count_one()
        key = self._key(value.tobytes(), value.shape, head)
        if key in self._seen:
            self.duplicates += 1
            return
        self._seen[key] = None
        self.take(key, value, head)

    def take(self, key: int, value: np.ndarray, head: str | None) -> None:
        """Draw an input that has not been seen before if its key is among the smallest so far."""
        heapq.heappush(self._drawn, (-key, value, head))
        if self.limit is not None and len(self._drawn) > self.limit:
            heapq.heappop(self._drawn)

    def add_file(self, content: bytes, head: str | None = None) -> None:
        """Decode a file of an image as the graph of a served model does, and add it."""
        resize = self.form.resize
        if resize is None:
            self.left_out["files of images, which `--resize` would give the size of inputs"] += 1
            return
        shape = cast(tuple[int, int, int], self.form.shape)  # known where there is a `resize`
        key = self._key(content, head)
        if key in self._files:  # need not be decoded to be known as equal to another
            self._count_one()
            self.duplicates += 1
            return
        try:
            self.add(images.decode(tf.constant([content]), shape, resize).numpy()[0], head)
        except tf.errors.InvalidArgumentError:
            self.left_out["images that cannot be decoded"] += 1
        else:
            self._files.add(key)

    def add_example(self, serialized: bytes) -> None:
        """Read a serialized `tf.Example` as the graph of a served model does, and add its input."""
        is_image = self.form.resize is not None
        name = IMAGE_BYTES if is_image else self.form.name
        shape = () if is_image else self.form.shape
        dtype = tf.string if is_image else tf.float32
        try:
            features = {name: tf.io.FixedLenFeature(shape, dtype)}
            value = tf.io.parse_single_example(serialized, features)[name].numpy()
        except (tf.errors.OpError, ValueError):
            self.left_out[f"examples without a feature '{name}' of the right size"] += 1
            return
        if is_image:
            self.add_file(value)
        else:
            self.add(value)

    @property
    def asked(self) -> Asked:
        """What was drawn, in random order, which is that of the keys."""
        drawn = sorted(self._drawn, key=lambda each: -each[0])
        return Asked(np.stack([value for _, value, _ in drawn]), [head for *_, head in drawn])

    @property
    def keys(self) -> np.ndarray:
        """The keys of all distinct inputs, uint64 `[N]`, in the order in which they were read."""
        return np.fromiter(self._seen, np.uint64, len(self._seen))

    def __len__(self) -> int:
        return len(self._drawn)

    def _count_one(self) -> None:
        self.examples += 1
        self.on_read(self.examples)

    def _key(self, content: bytes, *more: object) -> int:
        content = content + repr(more).encode()
        digest = blake2b(content, digest_size=8, key=repr(self.seed).encode()).digest()
        return int.from_bytes(digest, "big")


def _has_shape(value: np.ndarray, shape: Sequence[int | None]) -> bool:
    return value.ndim == len(shape) and all(
        expected in (None, size) for expected, size in zip(shape, value.shape, strict=True)
    )


def read_requests(
    paths: Iterable[str | os.PathLike], collector: Collector, *, model: str | None = None
) -> None:
    """Collect the inputs of logged requests.

    Args:
        paths: Files of `PredictionLog` records, in TFRecord format, perhaps compressed by gzip.
        collector: Takes the inputs.
        model: Name of the model whose requests are taken; None for the only one in the logs.

    Raises:
        UsageError: If a file cannot be opened, none holds a record, or several models have been
            asked and none is named.
    """
    for path in map(Path, paths):
        read_log(path, collector, model=model)
    check_requests(collector, model=model)


def read_log(path: Path, collector: Collector, *, model: str | None = None) -> None:
    """Collect the inputs of one file of several, which `check_requests` is called after.

    Args:
        path: A file, as for `read_requests`.
        collector: Takes the inputs.
        model: Name of the model.

    Raises:
        UsageError: If the file cannot be opened.
    """
    collector.files += 1
    for record in _records(path, collector, "a log of requests"):
        collector.records += 1
        _add_record(record, collector, model)


def check_requests(read: Counts, *, model: str | None = None) -> None:
    """Check what was read of all files together.

    Args:
        read: The numbers.
        model: As for `read_requests`.

    Raises:
        UsageError: If no file holds a record, or several models have been asked and none is named.
    """
    if not read.records:
        raise UsageError(
            "Expected logs of requests: TFRecord files of `PredictionLog`, as TensorFlow Serving "
            "and `keras-mas serve` write them. Received: "
            f"{', '.join(read.left_out) or 'empty files'}. Name other files."
        )
    if model is None and len(read.models) > 1:
        raise UsageError(
            "Expected requests to one model. Received: requests to "
            f"{', '.join(f'{name} ({count})' for name, count in read.models.most_common())}. "
            "Name the model that is meant with `--model`."
        )


def read_examples(path: Path, collector: Collector) -> None:
    """Collect the inputs of a TFRecord file of `tf.Example`s, perhaps compressed by gzip.

    Args:
        path: The file.
        collector: Takes the inputs, which have the names that the signature `examples` of a served
            model has for them: `inputs`, or `image_bytes` for files of images.

    Raises:
        UsageError: If the file cannot be opened.
    """
    collector.files += 1
    for record in _records(path, collector, "a TFRecord file of `tf.Example`s"):
        collector.add_example(record)


def _records(path: Path, collector: Collector, what: str) -> Iterator[bytes]:
    """Yield the records of a file up to its end, or to where it is damaged."""
    try:
        with open(path, "rb") as file:
            compressed = file.read(2) == _GZIP
            size = os.fstat(file.fileno()).st_size  # a server may go on writing meanwhile
    except OSError as error:
        raise UsageError(
            f"Expected {what} in '{path}'. Received: "
            f"{(error.strerror or str(error)).lower()}. Correct the path."
        ) from error
    count = read = 0
    try:
        dataset = tf.data.TFRecordDataset(str(path), compression_type="GZIP" if compressed else "")
        for record in dataset.as_numpy_iterator():
            count += 1
            read += _FRAME + len(record)
            yield record
        # TensorFlow takes a compressed file that is cut off, and the beginning of a record's
        # length, for the end.
        if read < (_uncompressed_size(path) if compressed else size):
            raise EOFError
    except (tf.errors.OpError, EOFError, OSError, zlib.error):
        kind = f"'{path}' from record {count + 1} on, where it is damaged or cut off"
        if not count:
            kind = f"'{path}', which is no TFRecord file, or damaged or cut off in its first record"
        collector.left_out[kind] += 1


def _uncompressed_size(path: Path) -> int:
    """Return the size of what is in a compressed file; EOFError if that is cut off."""
    with gzip.open(path) as file:
        return sum(len(part) for part in iter(lambda: file.read(2**20), b""))


def _add_record(record: bytes, collector: Collector, model: str | None) -> None:
    try:
        log = prediction_log_pb2.PredictionLog.FromString(record)
    except DecodeError:
        collector.left_out["records that are no PredictionLog"] += 1
        return
    kind = log.WhichOneof("log_type")
    if kind != "predict_log":
        what = kind.removesuffix("_log") if kind else "no"
        collector.left_out[f"records of {what} requests"] += 1
        return
    request = log.predict_log.request
    name = request.model_spec.name
    collector.models[name] += 1
    if model is not None and name != model:
        collector.left_out[f"requests to the model '{name}'"] += 1
        return
    _add_request(request, collector)


def _add_request(request: predict_pb2.PredictRequest, collector: Collector) -> None:
    signature = request.model_spec.signature_name
    head = signature if signature in collector.form.heads else None
    if head is None and signature not in _OF_ALL_HEADS:
        collector.left_out[f"requests to another signature, '{signature}'"] += 1
        return
    if len(request.inputs) != 1:
        collector.left_out["requests with several inputs or none"] += 1
        return
    [(name, proto)] = request.inputs.items()
    adders: dict[str, Callable[[Any], None]] = {
        collector.form.name: lambda value: collector.add(value, head),
        IMAGE_BYTES: lambda value: collector.add_file(value, head),
        EXAMPLES: collector.add_example,
    }
    if name not in adders:
        collector.left_out[f"requests with another input, '{name}'"] += 1
        return
    try:
        values = array_of(proto)
    except ValueError:
        values = np.zeros([])
    if not values.ndim or (values.dtype == object) == (name == collector.form.name):
        collector.left_out["requests whose tensor is damaged or of another type"] += 1
        return
    for value in values:
        adders[name](value)
