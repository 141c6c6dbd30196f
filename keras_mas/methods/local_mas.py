"""l-MAS, the local version of MAS: every layer is a function of its own inputs (Sec. 4.3)."""

from typing import Any, ClassVar

import keras
import numpy as np

from ..importance import compute_importance
from .quadratic import QuadraticMethod


class Method(QuadraticMethod):
    """MAS by layers, a Hebbian rule: for a ReLU layer y = relu(aW), Ω_ij = 2/N Σ_k |a_ki| y_kj.

    Aljundi et al., "Memory Aware Synapses", ECCV 2018, arXiv:1711.09601, Sec. 4.3. Ω needs no
    labels, and is summed over the tasks.
    """

    needs_inputs_alone: ClassVar[bool] = True

    def importance(
        self, model: keras.Model, x: Any, y: Any = None, **options: Any
    ) -> dict[str, np.ndarray]:
        """Return the sensitivity of every layer's own squared output norm."""
        return compute_importance(model, x, output="layers", **options)
