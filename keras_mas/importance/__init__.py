"""Ω: how much each weight matters to what the network has learned.

`definition.py` is the equation, one example at a time. `engine.py` gives the same numbers from one
forward and one backward pass per batch, by a rule per layer class (`rules/`). `fisher.py` is the
same engine with squares.
"""

from .definition import importance_one_by_one
from .engine import compute_importance, measure_sums
from .fisher import compute_fisher
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
