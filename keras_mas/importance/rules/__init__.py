"""A rule per layer class: from its inputs and the gradient at its pre-activation to Σ_k |g_k|.

Letters, in every rule: N examples; I, O features in and out; T positions; a_k `[..., I]` is what
example k brought to the layer, z_k `[..., O]` its pre-activation (the output of a layer that has no
activation), δ_k = ∂‖F(x_k)‖² / ∂z_k, and g_k = ∂‖F(x_k)‖² / ∂w what is wanted of a weight w.

`magnitude` is |·| for MAS and (·)² for a Fisher information. Both hold
magnitude(a ⊗ δ) = magnitude(a) ⊗ magnitude(δ), on which the rules for single positions rest.
"""

from . import convolution, dense, elementwise, embedding
from .registry import rule, rule_for

__all__ = ["convolution", "dense", "elementwise", "embedding", "rule", "rule_for"]
