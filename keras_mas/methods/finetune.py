"""Fine-tuning: learn the next task and protect nothing. The lower bound of every comparison."""

import keras
import numpy as np

from . import base


class Method(base.Method):
    """Fine-tuning: a plain `keras.Model`, and nothing around its training."""

    def under_way(self, model: keras.Model) -> dict[str, np.ndarray]:
        """Return nothing: the model and its optimizer are all that changes."""
        return {}
