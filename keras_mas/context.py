"""Context variables that have a value inside a block."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TypeVar

_Value = TypeVar("_Value")


@contextlib.contextmanager
def holding(variable: ContextVar[_Value], value: _Value) -> Iterator[None]:
    """Give a context variable a value inside a block, and then the one that it had before.

    Args:
        variable: The variable.
        value: Its value inside the block.
    """
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
