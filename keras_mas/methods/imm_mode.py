"""IMM, incremental moment matching, with the mode: weigh tasks' weights by their Fisher."""

from typing import Any, ClassVar

import keras
import numpy as np

from ..importance import compute_fisher
from . import imm_mean

# The authors' code adds it to F: a weight that matters to no task gets the mean of its values.
_LEAST = 1e-8


class Method(imm_mean.Method):
    """Mode-IMM (Lee, Kim, Jun, Ha and Zhang, NeurIPS 2017, arXiv:1703.08475).

    As `imm_mean`, but the weights that tasks share are, for evaluation, saving and export,

        θ = Σ_k F_k θ_k / Σ_k F_k

    element by element, the mode of the mixture of the tasks' posteriors, with F_k the exact
    diagonal Fisher information of task k, plus 1e-8, and the same share for every task. The
    authors' code squares a sampled gradient after the batch mean.

    Args:
        strength: λ ≥ 0 of the L2-transfer.
        penalty: Where that penalty acts.
    """

    measures_examples: ClassVar[bool] = True

    def precision(
        self, model: keras.Model, x: Any, y: Any = None, **options: Any
    ) -> dict[str, np.ndarray]:
        """Return F of the task; arguments as in `imm_mean`."""
        return {name: f + _LEAST for name, f in compute_fisher(model, x, **options).items()}
