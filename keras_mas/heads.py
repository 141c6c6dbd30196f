"""A trunk with a head per task: heads come and go, the trunk stays."""

import keras


class MultiHead:
    """One shared trunk, and for every task an output layer and a model of its own.

    A Keras model cannot grow after it is built, so each head makes a new functional model around
    the same trunk: its weights are shared, not copied. Protect the trunk; a finished head is in no
    later task's model, so nothing moves it.

        heads = MultiHead(trunk)
        memory.protect(trunk)
        model = heads.add("cats-dogs", units=2)

    Args:
        trunk: Built `keras.Model` with one input and one output `[N, features]`.
        model: What makes a model of `(inputs, outputs, name=...)`: `keras.Model`, or for example
            `functools.partial(MASModel, memory=memory)`.

    Raises:
        ValueError: If the trunk is not built, or has several inputs or outputs.
    """

    def __init__(self, trunk, model=keras.Model):
        if not trunk.built or len(trunk.inputs) != 1 or len(trunk.outputs) != 1:
            raise ValueError(
                f"Expected a built trunk with one input and one output. Received: '{trunk.name}'"
                f"{'' if trunk.built else ', which is not built'}. Make it a functional "
                "`keras.Model(inputs, features)`."
            )
        self.trunk = trunk
        self.make_model = model
        self.models = {}

    def add(self, task, units):
        """Return a new model from the trunk's input to the logits `[N, units]` of a task.

        Args:
            task: Name of the task, also of the head's layer.
            units: Number of classes.

        Raises:
            ValueError: If the task has a head.
        """
        if task in self.models:
            raise ValueError(f"Expected a new task. Received: '{task}', which has a head already.")
        logits = keras.layers.Dense(units, name=f"head-{task}")(self.trunk.outputs[0])
        self.models[task] = self.make_model(self.trunk.inputs[0], logits, name=f"model-{task}")
        return self.models[task]

    def joint(self, tasks=None):
        """Return one model with the logits of several heads, to save them with one trunk.

        Args:
            tasks: Names of the tasks; all of them by default.

        Returns:
            `keras.Model` from the trunk's input to a dict from task to logits.
        """
        names = list(self.models) if tasks is None else list(tasks)
        logits = {task: self.models[task].outputs[0] for task in names}
        return keras.Model(self.trunk.inputs[0], logits, name="multi-head")
