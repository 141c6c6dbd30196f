"""The start of TensorFlow in a command, without what it prints."""

import contextlib
import os
import sys
from collections.abc import Iterator
from importlib import import_module


def import_tensorflow(debug: bool = False) -> None:
    """Import Keras on TensorFlow.

    Args:
        debug: Whether TensorFlow may say what it says when it starts.
    """
    # The commands are a process of their own, whatever Keras uses elsewhere.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if debug else "3")
    with contextlib.nullcontext() if debug else _native_errors_dropped():
        import_module("keras")


@contextlib.contextmanager
def _native_errors_dropped() -> Iterator[None]:
    """Drop what C++ writes to standard error: TensorFlow's greeting, which no setting silences."""
    sys.stderr.flush()
    original, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(original, 2)
        os.close(original)
        os.close(nowhere)
