"""Errors inside a pipeline, which TensorFlow would turn into many lines of text."""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

_kept: dict[str, Exception] = {}
_numbers = itertools.count()
_NAME = re.compile(r"keras_mas error \d+\b")


def keeping_errors(function: Callable) -> Callable:
    """Return the function with every error replaced by one that `original_errors` recognizes."""

    def guarded(*args: Any) -> Any:
        try:
            return function(*args)
        except Exception as error:
            name = f"keras_mas error {next(_numbers)}"
            _kept[name] = error
            raise RuntimeError(name) from error

    return guarded


@contextlib.contextmanager
def original_errors() -> Iterator[None]:
    """Raise the error of a pipeline itself, in place of TensorFlow's text about it.

    Whatever reads the batches of `Split.dataset` belongs into the block: fit, importance, accuracy.
    """
    try:
        yield
    except Exception as error:
        for cause in _chain(error):  # what measures importance puts a sentence around TensorFlow's
            match = _NAME.search(str(cause))
            if match and match[0] in _kept:
                raise _kept.pop(match[0]) from None
        raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
