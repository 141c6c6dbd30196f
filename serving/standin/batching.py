"""Requests that arrive together are answered together, as TensorFlow Serving does with batching.

Written after its `batching/batching_session.cc` and TensorFlow's `shared_batch_scheduler.h`.
Requests to one signature, for the same outputs and of the same dtypes, are joined along their first
axis. A batch is run when it is full, or when its first request has waited for
`batch_timeout_micros`. It is padded to the next allowed size with copies of its last request's
first row. If it fails, every request in it does.
"""

import collections
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format

from keras_mas.errors import UsageError

from ..messages import message_classes
from ..runtime import LoadedVersion
from .protocol import failed_precondition, invalid_argument, unavailable

Arrays = dict[str, np.ndarray]

# Of the message in session_bundle_config.proto, which tensorflow-serving-api does not have.
_FIELDS = [
    "1 max_batch_size google.protobuf.Int64Value",
    "2 batch_timeout_micros google.protobuf.Int64Value",
    "3 max_enqueued_batches google.protobuf.Int64Value",
    "4 num_batch_threads google.protobuf.Int64Value",
    "5 thread_pool_name google.protobuf.StringValue",
    "6 allowed_batch_sizes repeated int64",
    "7 pad_variable_length_inputs bool",
    "8 enable_large_batch_splitting google.protobuf.BoolValue",
    "9 max_execution_batch_size google.protobuf.Int64Value",
]


@dataclasses.dataclass(frozen=True)
class BatchingParameters:
    """The fields of TensorFlow Serving's `BatchingParameters`, with its defaults.

    Attributes:
        max_batch_size: Largest number of rows of a batch, and of a request unless requests are
            divided.
        batch_timeout_micros: Microseconds that the first request of a batch waits at most.
        max_enqueued_batches: Batches that may wait; further requests are refused.
        num_batch_threads: Batches that may run at once.
        allowed_batch_sizes: Sizes to pad batches to, in ascending order; the last one is
            `max_batch_size`. Empty: batches are not padded.
        pad_variable_length_inputs: Whether other axes are padded to the longest in the batch.
        enable_large_batch_splitting: Whether large requests are divided over several batches.
        max_execution_batch_size: Largest number of rows of a batch, if requests are divided; 0 for
            `max_batch_size`.

    Raises:
        UsageError: If they are not allowed.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_variable_length_inputs: bool = False
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int = 0

    def __post_init__(self):
        sizes = self.allowed_batch_sizes
        if sizes and sizes[-1] != self.max_batch_size:
            raise UsageError(
                "Last entry in allowed_batch_sizes must match max_batch_size; last entry was "
                f"{sizes[-1]}; expected {self.max_batch_size}"
            )
        if list(sizes) != sorted(set(sizes)) or min(sizes, default=1) < 1:
            raise UsageError(
                "Expected allowed_batch_sizes to be numbers from 1 in increasing order. "
                f"Received: {list(sizes)}."
            )
        for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
            if getattr(self, name) < 1:
                raise UsageError(f"Expected {name} ≥ 1. Received: {getattr(self, name)}.")
        if self.batch_timeout_micros < 0:
            raise UsageError(
                f"Expected batch_timeout_micros ≥ 0. Received: {self.batch_timeout_micros}."
            )

    @property
    def batch_limit(self) -> int:
        """Largest number of rows of a batch."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size:
            return min(self.max_execution_batch_size, self.max_batch_size)
        return self.max_batch_size

    def padded(self, size: int) -> int:
        """Return the size that a batch of `size` rows is padded to."""
        return next((allowed for allowed in self.allowed_batch_sizes if allowed >= size), size)


def read_batching_parameters(path: str | os.PathLike) -> BatchingParameters:
    """Read parameters from a file, a `BatchingParameters` as protobuf text.

    Raises:
        UsageError: If the file cannot be read, or is something else.
    """
    classes = message_classes("tensorflow.serving", {"BatchingParameters": _FIELDS})
    try:
        text = Path(path).read_text(encoding="utf-8")
        message = text_format.Parse(text, classes["BatchingParameters"]())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"Expected '{path}' to hold BatchingParameters as protobuf text. Received: {reason}. "
            "An example: `max_batch_size { value: 32 } batch_timeout_micros { value: 1000 }`."
        ) from error
    given = {field.name: value for field, value in message.ListFields()}
    given.pop("thread_pool_name", None)
    return BatchingParameters(**{name: _value(value) for name, value in given.items()})


def _value(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    return value.value if hasattr(value, "value") else tuple(value)


class _Task:
    """A request, or a part of one, that waits for its outputs."""

    def __init__(self, inputs: Mapping[str, np.ndarray], size: int):
        self.inputs = inputs
        self.size = size
        self.done = threading.Event()
        self.outputs: Arrays = {}
        self.error: Exception | None = None

    def result(self) -> Arrays:
        self.done.wait()
        if self.error is not None:
            raise self.error
        return self.outputs


class _Batch:
    """Requests that will run together."""

    def __init__(self):
        self.tasks: list[_Task] = []
        self.size = 0
        self.since = 0.0

    def add(self, task: _Task) -> None:
        if not self.tasks:
            self.since = time.monotonic()
        self.tasks.append(task)
        self.size += task.size


class _Queue:
    """Batches of one kind of request; the last one takes further requests."""

    def __init__(self, run: Callable[[Mapping[str, np.ndarray]], Arrays]):
        self.run = run
        self.batches = collections.deque([_Batch()])

    def due(self, parameters: BatchingParameters) -> float | None:
        """Return when a batch may run, as time of the monotonic clock; None if there is none."""
        first = self.batches[0]
        if not first.tasks:
            return None
        if len(self.batches) > 1 or first.size >= parameters.batch_limit:
            return first.since
        return first.since + parameters.batch_timeout_micros / 1e6

    def take(self) -> _Batch:
        batch = self.batches.popleft()
        if not self.batches:
            self.batches.append(_Batch())
        return batch


class Batcher:
    """Threads that run batches, which requests to all versions share.

    Args:
        parameters: When a batch is run, and of which size.
    """

    def __init__(self, parameters: BatchingParameters):
        self._parameters = parameters
        self._changed = threading.Condition()
        self._waiting: list[_Queue] = []  # queues with requests
        self._closing = False
        self._threads = [
            threading.Thread(target=self._work, name=f"batches-{number}", daemon=True)
            for number in range(parameters.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def batched(self, version: LoadedVersion) -> Callable[..., Arrays]:
        """Return a function like `version.run` that gathers requests into batches."""
        queues: dict[Any, _Queue] = {}

        def run(
            signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] = ()
        ) -> Arrays:
            version.check(signature, inputs, outputs)
            size = _size(inputs)
            dtypes = tuple((name, inputs[name].dtype.str) for name in sorted(inputs))
            kind = (signature, tuple(outputs), dtypes)
            with self._changed:
                if kind not in queues:
                    queues[kind] = _Queue(lambda joined: version.run(signature, joined, outputs))
                tasks = self._enqueue(queues[kind], inputs, size)
            return _joined([task.result() for task in tasks])

        return run

    def close(self) -> None:
        """Stop the threads; nothing waits for them any more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _enqueue(self, queue: _Queue, inputs: Mapping[str, np.ndarray], size: int) -> list[_Task]:
        self._check_capacity(queue, size)
        limit, start = self._parameters.batch_limit, 0
        tasks: list[_Task] = []
        while not tasks or start < size:
            if queue.batches[-1].size + min(size - start, 1 if self._splits else size) > limit:
                queue.batches.append(_Batch())
            stop = min(size, start + limit - queue.batches[-1].size)
            task = _Task({name: array[start:stop] for name, array in inputs.items()}, stop - start)
            queue.batches[-1].add(task)
            tasks.append(task)
            start = stop
        if queue not in self._waiting:
            self._waiting.append(queue)
        self._changed.notify_all()
        return tasks

    @property
    def _splits(self) -> bool:
        return self._parameters.enable_large_batch_splitting

    def _check_capacity(self, queue: _Queue, size: int) -> None:
        """Refuse what is too large, or too much (`Queue::ValidateBatchTaskQueueCapacity`)."""
        parameters, count = self._parameters, len(queue.batches)
        if size > parameters.max_batch_size:
            raise invalid_argument(
                f"Task size {size} is larger than maximum input batch size "
                f"{parameters.max_batch_size}"
            )
        full = "The batch scheduling queue to which this task was submitted is full; "
        open_size = queue.batches[-1].size
        if self._splits:
            free = parameters.max_enqueued_batches - count
            capacity = free * parameters.batch_limit + parameters.batch_limit - open_size
            if size > capacity:
                raise unavailable(
                    f"{full}task size is {size} but scheduling capacity is only {capacity} "
                    f"(num_enqueued_batches={count}, "
                    f"max_enqueued_batches={parameters.max_enqueued_batches}, "
                    f"open_batch_size={open_size}, "
                    f"max_execution_batch_size={parameters.batch_limit})"
                )
        elif open_size + size > parameters.max_batch_size and (
            count >= parameters.max_enqueued_batches
        ):
            raise unavailable(
                f"{full}currently {count} batches enqueued and max_enqueued_batches is "
                f"{parameters.max_enqueued_batches}"
            )

    def _work(self) -> None:
        while (work := self._next()) is not None:
            self._run(*work)

    def _next(self) -> tuple[_Queue, _Batch] | None:
        """Wait for a batch that may run; return None when the batcher is closed."""
        with self._changed:
            while True:
                due = {queue.due(self._parameters): queue for queue in self._waiting}
                due.pop(None, None)
                first = min((time for time in due if time is not None), default=None)
                if first is not None and (first <= time.monotonic() or self._closing):
                    queue = due[first]
                    batch = queue.take()
                    if not queue.batches[0].tasks:
                        self._waiting.remove(queue)
                    return queue, batch
                if self._closing:
                    return None
                self._changed.wait(None if first is None else first - time.monotonic())

    def _run(self, queue: _Queue, batch: _Batch) -> None:
        error: Exception | None = None
        try:
            outputs = queue.run(self._merged(batch))
            _divide(outputs, batch, self._parameters.padded(batch.size))
        except Exception as caught:
            error = caught
        for task in batch.tasks:
            task.error = error
            task.done.set()

    def _merged(self, batch: _Batch) -> Arrays:
        """Join the inputs of a batch, and pad them (`BatchingSession::MergeInputTensors`)."""
        padding = self._parameters.padded(batch.size) - batch.size if batch.size else 0
        merged = {}
        for name in batch.tasks[0].inputs:
            arrays = [task.inputs[name] for task in batch.tasks]
            if self._parameters.pad_variable_length_inputs:
                arrays = _of_one_shape(arrays)
            if len({array.shape[1:] for array in arrays}) > 1:
                raise failed_precondition(
                    f"Tensors with name '{name}' from different tasks have different shapes and "
                    "padding is turned off. Set pad_variable_length_inputs to true, or ensure "
                    "that all tensors with the same name have equal dimensions starting with the "
                    "first dim."
                )
            row = next(array for array in reversed(arrays) if len(array) or not padding)[:1]
            merged[name] = np.concatenate([*arrays, *[row] * padding])
        return merged


def _size(inputs: Mapping[str, np.ndarray]) -> int:
    """Return the number of rows of a request (`ComputeTensorBatchSize`)."""
    if not inputs:
        raise invalid_argument("Batching Run() must have at least one input tensor")
    if any(not array.ndim for array in inputs.values()):
        raise invalid_argument("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in inputs.values()}
    if len(sizes) > 1:
        raise invalid_argument("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()


def _of_one_shape(arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Pad the axes but the first with each array's first value."""
    if len({array.ndim for array in arrays}) > 1:
        return arrays
    shape = np.max([array.shape for array in arrays], axis=0)
    shape[0] = 0
    return [_padded(array, shape) for array in arrays]


def _padded(array: np.ndarray, shape: np.ndarray) -> np.ndarray:
    missing = np.maximum(shape - array.shape, 0)
    if not missing.any():
        return array
    if not array.size:
        raise invalid_argument("Got empty tensor in batch of non-empty tensors.")
    padded = np.full(array.shape + missing, array.flat[0], array.dtype)
    padded[tuple(map(slice, array.shape))] = array
    return padded


def _divide(outputs: Arrays, batch: _Batch, rows: int) -> None:
    """Give each request its rows (`BatchingSession::SplitOutputTensors`)."""
    for array in outputs.values():
        if not array.ndim:
            raise failed_precondition("Batched output tensor has 0 dimensions")
        if len(array) != (rows if batch.size else 0):
            raise failed_precondition(
                "Batched output tensor's 0th dimension does not equal the sum of the 0th "
                "dimension sizes of the input tensors"
            )
    start = 0
    for task in batch.tasks:
        stop = start + task.size
        task.outputs = {name: array[start:stop] for name, array in outputs.items()}
        start = stop


def _joined(parts: list[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
