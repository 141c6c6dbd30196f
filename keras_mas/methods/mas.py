"""MAS, the global version: Ω is the mean sensitivity of the squared output norm (Eq. 2)."""

from typing import Any, ClassVar

import keras
import numpy as np

from ..importance import compute_importance
from . import quadratic


class Method(quadratic.QuadraticMethod):
    """Memory Aware Synapses; Ω needs no labels, and is summed over the tasks."""

    needs_inputs_alone: ClassVar[bool] = True

    def importance(
        self, model: keras.Model, x: Any, y: Any = None, **options: Any
    ) -> dict[str, np.ndarray]:
        """Return 1/N Σ_k |∂‖F(x_k)‖² / ∂θ|."""
        return compute_importance(model, x, **options)
