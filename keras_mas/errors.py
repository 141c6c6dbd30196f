"""Errors that callers tell apart from others, and what TensorFlow's say in words."""

import re

# The nodes of the graph, and the operation, that TensorFlow writes around what it says.
_OPERATIONS = re.compile(r"{{\w*node .*?}} *| *\[Op:\w+\].*")


def without_operations(message: str) -> str:
    """Return what TensorFlow says went wrong, without the operation in which it did."""
    return _OPERATIONS.sub("", message).strip()


class UsageError(ValueError):
    """What was asked for is wrong, and only the person who asked can mend it.

    Raised for an unknown name, a missing file, a wrong key in a TOML file, an output folder that is
    taken. The command line answers it with exit code 2, and every other error with exit code 1.
    """


class NotFiniteError(ValueError):
    """An importance or an anchor is NaN or infinite, as after a training that diverged."""
