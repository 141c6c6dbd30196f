"""Fine-tuning: learn the next task and protect nothing. The lower bound of every comparison."""


class Method:
    """What every method does around the training of a task; here: nothing.

    Args:
        trunk: Built `keras.Model` shared by all tasks.
        strength: λ ≥ 0, unused here.
    """

    def __init__(self, trunk, strength):
        self.trunk = trunk
        self.strength = strength

    def task_ends(self, model, inputs):
        """Take note of what was learned.

        Args:
            model: Model of the task, trunk and head, just fitted.
            inputs: The task's training inputs, without labels.
        """

    def save(self, path):
        """Write what the method remembers to a `.npz` file, if it remembers anything."""

    def load(self, path):
        """Take over what `save` wrote."""
