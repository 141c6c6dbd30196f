"""MAS, the global version: Ω is the mean sensitivity of the squared output norm (Eq. 2)."""

from typing import Any, ClassVar

import keras
import numpy as np

from ..importance import compute_importance
from . import quadratic


class Method(quadratic.QuadraticMethod):
    """Memory Aware Synapses (Aljundi et al., ECCV 2018, arXiv:1711.09601).

    With Ω = 1/N Σ_k |∂‖F(x_k)‖² / ∂θ| over the inputs x_k of a task, the next ones are learned with

        L_new + λ Σ Ω (θ − θ*)²

    Ω is Eq. 2, for the squared norm of the output, of which the paper takes the gradient where F
    has several; the loss is Eq. 3, without a ½. Ω needs no labels, and is summed over the tasks; θ*
    are the weights when the last one ended.
    """

    needs_inputs_alone: ClassVar[bool] = True
    # On average the nearest to the best λ of eight cases (results/auto-strength.md). With λ = 1 in
    # the loss, training diverges under SGD at a usual rate.
    default_strength: ClassVar[float] = 0.1
    default_decoupled_strength: ClassVar[float | None] = 10.0

    def importance(
        self, model: keras.Model, x: Any, y: Any = None, **options: Any
    ) -> dict[str, np.ndarray]:
        """Return 1/N Σ_k |∂‖F(x_k)‖² / ∂θ|."""
        return compute_importance(model, x, **options)
