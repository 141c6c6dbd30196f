"""A rule per layer class: from its inputs and the gradient at its pre-activation to Σ_k |g_k|.

Notation of all rules: N examples; I input and O output features; T positions; a_k `[..., I]` is the
input of the layer for example k, z_k `[..., O]` its pre-activation (its output, if it has no
activation), δ_k = ∂‖F(x_k)‖² / ∂z_k, and g_k = ∂‖F(x_k)‖² / ∂w the gradient of a weight w.

`magnitude` is |·| for MAS and (·)² for a Fisher information. For both,
magnitude(a ⊗ δ) = magnitude(a) ⊗ magnitude(δ), which the rules for single positions use.
"""

from . import convolution, dense, elementwise, embedding
from .registry import rule, rule_for

__all__ = ["convolution", "dense", "elementwise", "embedding", "rule", "rule_for"]
