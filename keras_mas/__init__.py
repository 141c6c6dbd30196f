"""Memory Aware Synapses for Keras 3: a model keeps learning without forgetting.

Aljundi, Babiloni, Elhoseiny, Rohrbach and Tuytelaars, "Memory Aware Synapses: Learning what (not)
to forget", ECCV 2018, arXiv:1711.09601.
"""

import sys
from importlib import import_module

# TensorFlow takes seconds to import, and the command line's `--help` needs none of it: each public
# name is imported from its module when it is first asked for (PEP 562).
_HOMES = {
    "Consolidate": "callbacks",
    "MASModel": "model",
    "MASRegularizer": "regularizer",
    "MultiHead": "heads",
    "SynapticMemory": "memory",
    "check_importance": "importance",
    "compute_importance": "importance",
    "importance_one_by_one": "importance",
}
_MODULES = ("callbacks", "heads", "importance", "memory", "methods", "metrics", "model")

__all__ = [*_HOMES, *_MODULES]


def __getattr__(name):
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})


if "keras" in sys.modules:
    # The time is spent already; and Keras can load a saved MASModel only when it knows the class.
    import_module(".model", __name__)
