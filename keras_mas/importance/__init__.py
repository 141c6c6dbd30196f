"""Ω: how much each weight matters to what the network has learned.

`definition.py` is the equation, one example at a time. `measure.py` gives the same numbers by an
engine (`engine.py`) that takes one forward and one backward pass per batch, with a rule per layer
class (`rules/`). `fisher.py` is the same engine with squares.
"""

from .definition import importance_one_by_one
from .fisher import compute_fisher
from .measure import compute_importance, measure_sums
from .rules import rule
from .sums import ImportanceSums

__all__ = [
    "ImportanceSums",
    "compute_fisher",
    "compute_importance",
    "importance_one_by_one",
    "measure_sums",
    "rule",
]
