"""Requests that the stand-in answered, kept as TFRecord files of `PredictionLog`.

A record holds the request, the response, and the model version and sampling rate that it was logged
with. Which requests are kept is drawn at random. TensorFlow Serving's `LoggingConfig` of a model
configuration asks for the same; the open-source server has no collector for it.
"""

import contextlib
import dataclasses
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf
from tensorflow_serving.apis.logging_pb2 import LogMetadata
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog, PredictLog

from keras_mas.errors import UsageError

from .model_config import ModelServerConfig, models_of

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LogSettings:
    """Where and how many requests are kept.

    Attributes:
        prefix: How the names of the files begin, with their folder; they are
            `PREFIX-<time>-<process>-<number>.tfrecord`.
        sampling_rate: Fraction of the requests, from 0 to 1.
        max_file_bytes: Size after which another file is begun.
        max_files: Files that are kept; the oldest of this process are removed.

    Raises:
        UsageError: If the rate is no fraction or the folder cannot be written to.
    """

    prefix: str
    sampling_rate: float = 1.0
    max_file_bytes: int = 64 * 2**20
    max_files: int = 16

    def __post_init__(self):
        if not 0 <= self.sampling_rate <= 1:
            raise UsageError(
                f"Expected a sampling rate from 0 to 1. Received: {self.sampling_rate}."
            )
        folder = Path(self.prefix).absolute().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(
                f"Expected the folder of '{self.prefix}' to exist and to be writable, to log "
                f"requests to. Received: '{folder}'. Make it, or name another."
            )


def log_settings_of(config: ModelServerConfig) -> dict[str, LogSettings]:
    """Return the settings of the models whose configuration asks for a log.

    Raises:
        UsageError: If they are not allowed.
    """
    return {
        model.name: LogSettings(
            model.logging_config.log_collector_config.filename_prefix,
            model.logging_config.sampling_config.sampling_rate,
        )
        for model in models_of(config)
        if model.HasField("logging_config")
    }


class RequestLog:
    """Writes a sample of requests; what cannot be written is counted and dropped.

    Args:
        settings: Where, and how many.
        seed: Seed of the sample; drawn by default.

    Attributes:
        failed: Number of records that could not be written.
    """

    def __init__(self, settings: LogSettings, seed: int | None = None):
        self.failed = 0
        self._settings = settings
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._files: list[Path] = []
        self._writer: tf.io.TFRecordWriter | None = None
        self._written = 0
        # The names sort by time, also among several servers.
        self._stem = f"{settings.prefix}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"

    def offer(self, make: Callable[[], PredictLog]) -> None:
        """Keep a request, or not.

        Args:
            make: Returns the record; it is only called for the requests that are kept.
        """
        with self._lock:
            if self._random.random() >= self._settings.sampling_rate:
                return
        predict_log = make()
        metadata = LogMetadata(model_spec=predict_log.response.model_spec)
        metadata.sampling_config.sampling_rate = self._settings.sampling_rate
        log = PredictionLog(predict_log=predict_log, log_metadata=metadata)
        with self._lock:
            self._write(log.SerializeToString())

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._end_file()

    def _write(self, record: bytes) -> None:
        try:
            if self._writer is None or self._written + len(record) > self._settings.max_file_bytes:
                self._begin_file()
            assert self._writer is not None
            self._writer.write(record)
            self._writer.flush()
            self._written += len(record)
        except (tf.errors.OpError, OSError) as error:
            # A full disk must not keep requests from being answered.
            self.failed += 1
            if self.failed == 1:
                _LOG.error("Requests are not logged until there is room: %s", error)
            self._give_up_file()

    def _begin_file(self) -> None:
        self._end_file()
        path = Path(f"{self._stem}-{len(self._files):05d}.tfrecord")
        self._writer = tf.io.TFRecordWriter(str(path))
        self._files.append(path)
        self._written = 0
        for old in self._files[: -self._settings.max_files]:
            old.unlink(missing_ok=True)

    def _give_up_file(self) -> None:
        """End a file that cannot be written on: what follows half a record could not be read.

        Without a whole record it is removed, for an earlier one would have to go for it.
        """
        is_empty = self._writer is not None and not self._written
        self._end_file()
        if is_empty:
            with contextlib.suppress(OSError):
                self._files.pop().unlink(missing_ok=True)

    def _end_file(self) -> None:
        if self._writer is not None:
            with contextlib.suppress(tf.errors.OpError):  # the disk is full, which was said
                self._writer.close()
        self._writer = None


class RequestLogs:
    """The logs of all models: those that the configuration asks for, or else a common one.

    Args:
        common: Settings of the common log; none by default.
    """

    def __init__(self, common: LogSettings | None = None):
        self._common = RequestLog(common) if common else None
        self._logs: dict[str, RequestLog] = {}
        self._settings: dict[str, LogSettings] = {}

    def update(self, settings: dict[str, LogSettings]) -> None:
        """Replace the settings of models; a log whose settings stay goes on."""
        kept = {
            name: self._logs[name]
            for name, each in settings.items()
            if self._settings.get(name) == each
        }
        ended = [log for name, log in self._logs.items() if name not in kept]
        self._logs = {name: kept.get(name) or RequestLog(each) for name, each in settings.items()}
        self._settings = dict(settings)
        for log in ended:
            log.close()

    def offer(self, model: str, make: Callable[[], PredictLog]) -> None:
        """Offer a request to the log of a model; see `RequestLog.offer`."""
        log = self._logs.get(model, self._common)
        if log is not None:
            log.offer(make)

    def close(self) -> None:
        """Close all logs."""
        self.update({})
        if self._common is not None:
            self._common.close()
