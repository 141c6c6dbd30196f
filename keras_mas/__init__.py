"""Memory Aware Synapses for Keras 3: a model keeps learning without forgetting.

Aljundi, Babiloni, Elhoseiny, Rohrbach and Tuytelaars, "Memory Aware Synapses: Learning what (not)
to forget", ECCV 2018, arXiv:1711.09601.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

# TensorFlow takes seconds to import, and the command line's `--help` needs none of it: each public
# name is imported from its module when it is first asked for (PEP 562).
_MODULE_OF = {
    "BatchNormWarning": "memory",
    "Consolidate": "callbacks",
    "FitDivergedError": "finite",
    "MASModel": "model",
    "MASRegularizer": "regularizer",
    "MultiHead": "heads",
    "SynapticMemory": "memory",
    "UnstablePenaltyWarning": "penalty",
    "check_importance": "importance",
    "compute_importance": "importance",
    "importance_one_by_one": "importance",
}
_MODULES = ("callbacks", "heads", "importance", "memory", "methods", "metrics", "model")
# The modules of the classes of models that users may have saved.
_OF_SAVED_MODELS = ("model", "methods.si")
_NEED_NO_BACKEND = ("methods", "metrics")

__all__ = [*_MODULE_OF, *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _NEED_NO_BACKEND:
        import_module(".backend", __name__)
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    dunders = [name for name in globals() if name.startswith("__")]
    return sorted([*dunders, *__all__])


def _make_loadable(keras):
    """Let Keras know the classes of models that it may load."""
    if keras.config.backend() == "tensorflow":
        for module in _OF_SAVED_MODELS:
            import_module(f".{module}", __name__)


def _when_keras_is_imported():
    # To run something after an import is easy to get wrong; wrapt does it, which TensorFlow needs.
    import wrapt

    wrapt.register_post_import_hook(_make_loadable, "keras")


class _FinderOfKeras:
    """Finds nothing itself: wrapt takes half of the start-up of a client, which needs no Keras."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "keras":
            return None
        sys.meta_path.remove(cls)
        _when_keras_is_imported()
        return find_spec(name)  # by wrapt, which now comes first


if "keras" in sys.modules:
    _when_keras_is_imported()
else:
    sys.meta_path.insert(0, _FinderOfKeras)
