"""Fine-tuning: learn the next task and protect nothing. The lower bound of every comparison."""

from typing import ClassVar

import keras
import numpy as np

from . import base


class Method(base.Method):
    """Fine-tuning: a plain `keras.Model`, and nothing around its training: the loss is L_new.

    The lower bound of the comparison of Hsu et al. (arXiv:1810.12488).
    """

    measures_examples: ClassVar[bool] = False
    needs_one_device: ClassVar[str | None] = None

    def under_way(self, model: keras.Model) -> dict[str, np.ndarray]:
        """Return nothing: the model and its optimizer are all that changes."""
        return {}
