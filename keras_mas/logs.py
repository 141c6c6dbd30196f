"""Silence where TensorFlow's log tells a user nothing."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what TensorFlow and its libraries log from Python, below ERROR, inside the block."""

    def only_errors(record):
        return record.levelno >= logging.ERROR

    loggers = [logging.getLogger("tensorflow"), logging.getLogger("absl")]
    for logger in loggers:
        logger.addFilter(only_errors)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(only_errors)
