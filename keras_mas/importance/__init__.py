"""Ω: how much each weight matters to what the network has learned.

`definition.py` is the equation, computed one example at a time. `compute.py` has the public
functions that give the same numbers faster, by the engine in `engine.py`: one forward and one
backward pass per batch, with a rule per layer class (`rules/`). `rowwise.py` decides for which
layers that is exact, `check.py` compares engine and definition for any model, and `fisher.py` is
the same engine with squares. `kept.py` keeps an engine with its model for the next measurement, and
`fingerprint.py` notices that the model has changed since.
"""

from .check import WeightCheck, check_importance
from .compute import compute_importance, measure_sums
from .definition import importance_one_by_one
from .fisher import compute_fisher
from .kept import forget_traces
from .rules import rule
from .sums import ImportanceSums

__all__ = [
    "ImportanceSums",
    "WeightCheck",
    "check_importance",
    "compute_fisher",
    "compute_importance",
    "forget_traces",
    "importance_one_by_one",
    "measure_sums",
    "rule",
]
