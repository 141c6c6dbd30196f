"""Joint training: learn every task together with all earlier ones. The upper bound."""

from typing import Any, ClassVar

import keras
import numpy as np

from ..heads import AllHeadsModel
from . import base


class Method(base.Method):
    """Learn tasks 0 … n from all their data, anew: nothing can be forgotten.

    Since it keeps all data, it does not learn continually; the others are measured against it
    ("offline" in Hsu et al., arXiv:1810.12488). The command line begins every task with the initial
    weights of the run, and adds the data of all earlier tasks, so that row n of the accuracy matrix
    is that of a network which learned the tasks 0 … n at once; T tasks of one size take (T + 1) / 2
    times as long as with other methods. Around `model.fit` you do both, as below: `fit` of one task
    after the other would be plain fine-tuning. Labels are the numbers of logits, of all heads side
    by side, as for `AllHeadsModel`.

        >>> import keras, numpy as np
        >>> from keras_mas.methods import load_method
        >>> method = load_method("joint")()
        >>> inputs = keras.Input([4])
        >>> features = keras.layers.Dense(3, "relu")(inputs)
        >>> model = method.model(inputs, [keras.layers.Dense(2)(features) for _ in range(2)])
        >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> x = np.eye(4, dtype="float32")
        >>> _ = model.fit(x, np.array([0, 1, 2, 3]), verbose=0)  # 0 and 1 are of the first task
        >>> model.output_shape
        (None, 4)

    Args:
        strength: Unused.
        penalty: Unused.
    """

    trains_all_heads: ClassVar[bool] = True
    measures_examples: ClassVar[bool] = False
    learns_all_tasks: ClassVar[bool] = True
    needs_one_device: ClassVar[str | None] = None

    def model(self, inputs: Any, outputs: Any, name: str | None = None) -> keras.Model:
        """Return a model of the logits of all heads, or of one that tasks share."""
        return AllHeadsModel(inputs, outputs, name)

    def under_way(self, model: keras.Model) -> dict[str, np.ndarray]:
        """Return nothing: the model and its optimizer are all that changes."""
        return {}
