"""L2 to the previous weights: every weight is equally important, Ω = 1 and θ* ← θ."""

from typing import Any, ClassVar

import keras
import numpy as np

from ..weights import trainable_weights
from .quadratic import QuadraticMethod


class Method(QuadraticMethod):
    """The control of every comparison of importances: λ Σ (θ − θ*)².

    Ω is 1 after any number of tasks, and θ* are the weights when the last one ended, as in the
    comparison of Hsu et al., "Re-evaluating Continual Learning Scenarios" (arXiv:1810.12488).
    """

    measures_examples: ClassVar[bool] = False
    default_strength: ClassVar[float] = 0.01

    def importance(
        self, model: keras.Model, x: Any, y: Any = None, **options: Any
    ) -> dict[str, np.ndarray]:
        """Return 1 for every weight; the data are not read."""
        return {name: np.ones(w.shape, "float32") for name, w in trainable_weights(model).items()}

    def merged(
        self, importance: np.ndarray, anchor: np.ndarray, now: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return 1, once a weight has been learned, and θ."""
        return np.maximum(importance, now), weight
