"""Experiments and the command line: streams of tasks, runs over them, and the search for λ."""

from importlib import import_module
from typing import Any

__all__ = ["ContinualHyperModel", "ContinualTuner"]

# Imported when they are first asked for, since the command line's `--help` needs no TensorFlow.
_MODULES = {"ContinualHyperModel": ".search.hypermodel", "ContinualTuner": ".search.tuner"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name], __name__), name)
