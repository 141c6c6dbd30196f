"""Experiments and the command line: streams of tasks, runs over them, and the search for λ."""

from importlib import import_module
from typing import Any

# Imported when they are first asked for, since the command line's `--help` needs no TensorFlow.
__all__ = ["ContinualHyperModel", "ContinualTuner"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".search.tuner", __name__), name)
