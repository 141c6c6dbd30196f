"""Online EWC: one Fisher information for all tasks, which may fade, around the latest weights."""

from typing import ClassVar

import numpy as np

from . import ewc


class Method(ewc.Method):
    """The penalty is λ Ω (θ − θ*)² with Ω ← γΩ + F_t and θ* ← θ after every task t.

    Eq. 8 and 9 of Schwarz et al., "Progress & Compress", ICML 2018, arXiv:1805.06370, without the
    factor γ/2 of their penalty, and without normalizing the Fisher information of every task, so
    that a task counts by its size.

    Attributes:
        decay: γ, from 0 to 1: what is left of the importance of earlier tasks after each new one.
            At 1, nothing fades. A class of your own may choose another.
    """

    decay: ClassVar[float] = 1.0

    def merged(
        self, importance: np.ndarray, anchor: np.ndarray, now: np.ndarray, weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return γΩ + F and θ."""
        return self.decay * importance + now, weight
