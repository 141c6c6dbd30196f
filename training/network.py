"""The network of a run: a trunk, and heads that take turns in one model for each shape."""

from collections.abc import Callable
from itertools import takewhile

import keras
import numpy as np

from keras_mas.binding import (
    freeze_statistics,
    has_frozen_statistics,
    moving_batch_norms,
    unfreeze_statistics,
)
from keras_mas.errors import UsageError
from keras_mas.heads import MultiHead

from .backbones import build_trunk, check_pixels
from .heads import Head, build_heads, unique_heads
from .settings import Recipe
from .tasks import TaskStream


class Network:
    """A trunk with a head for every task, and a model for every number of classes to learn in.

    A Keras model has one set of weights, and traces its training step with them. Heads of one shape
    therefore take turns in one model: `load` copies the weights of a head into it, and `keep`
    copies them back. So the step is traced once for each shape, not once for each task. With batch
    normalization per task, that of a task is part of its head.

    Args:
        stream: The tasks.
        recipe: Names the trunk and its weights, and says how much of it is frozen and what becomes
            of batch normalization.
        model: What makes a model to learn in of `(inputs, outputs, name=...)`.
        all_heads: Whether that is one model of the logits of all heads, a list of outputs.

    Attributes:
        trunk: What all tasks share.
        models: The model to learn in, by the number of its logits.

    Raises:
        UsageError: If the stream and the recipe do not go together, or as `build_trunk`.
    """

    def __init__(
        self,
        stream: TaskStream,
        recipe: Recipe,
        model: Callable[..., keras.Model],
        *,
        all_heads: bool = False,
    ):
        check_pixels(recipe.backbone, stream.tasks[0].train.dtype)
        self.stream, self.recipe = stream, recipe
        self.trunk = self._build_trunk(weights=None)
        freeze_layers(self.trunk, recipe.freeze)
        batch_norm = _batch_norm_of_heads(stream, recipe)
        self._heads = build_heads(stream, self.trunk, batch_norm)
        self._learned = MultiHead(self.trunk, batch_norm=batch_norm)
        self.all_heads = all_heads
        self.models: dict[int, keras.Model] = {}
        for head in unique_heads(stream):
            if self.logits(head) not in self.models:
                outputs = self._all_outputs() if all_heads else self._outputs(head)
                self.models[self.logits(head)] = model(
                    self.trunk.inputs[0], outputs, name=self.model_of(head).name
                )

    def initialize(self, seed: int) -> None:
        """Give all weights the initial values of a seed, but those that the recipe names a file of.

        Raises:
            UsageError: As `build_trunk`.
        """
        keras.utils.set_random_seed(seed)
        self.trunk.set_weights(self._build_trunk(self.recipe.weights).get_weights())
        for head in unique_heads(self.stream):
            fresh = keras.layers.Dense(len(head.classes))
            fresh.build(self.trunk.output_shape)
            self.layer_of(head).set_weights(fresh.get_weights())
            self._heads.reset_batch_norm(head.name)

    def begin_task(self, number: int, seed: int) -> None:
        """Prepare the layers of the trunk for learning a task.

        Args:
            number: Number of the task, from 0.
            seed: Of dropout.
        """
        for k, layer in enumerate(self.trunk._flatten_layers()):
            generator = getattr(layer, "seed_generator", None)
            if generator is not None:
                state = np.random.SeedSequence([seed, k]).generate_state(2)
                generator.state.assign(state.astype(generator.state.dtype))
        first = 0 if self.recipe.weights is not None else 1  # those of a file are of much more data
        if self.recipe.batch_norm == "frozen" and number >= first:
            for layer in moving_batch_norms(self.trunk):
                freeze_statistics(layer)
        else:
            for layer in filter(has_frozen_statistics, self.trunk._flatten_layers()):
                unfreeze_statistics(layer)

    @property
    def weights(self) -> list[keras.Variable]:
        """All weights of the trunk, the heads and the models to learn in, each once."""
        models = [*self._heads.models.values(), *self.models.values()]
        return list({id(w): w for model in models for w in model.weights}.values())

    def load(self, head: Head) -> keras.Model:
        """Return the model to learn in, or to evaluate, with the weights of a head."""
        model = self.models[self.logits(head)]
        if not self.all_heads:
            self._copy_own_weights(self.model_of(head), model)
        return model

    def keep(self, head: Head) -> None:
        """Take over the weights of a head from the model that it was learned in."""
        if not self.all_heads:
            self._copy_own_weights(self.models[self.logits(head)], self.model_of(head))

    def logits(self, head: Head) -> int:
        """Return how many logits the model has that a head is learned in."""
        heads = unique_heads(self.stream) if self.all_heads else [head]
        return sum(len(each.classes) for each in heads)

    def first_logit(self, head: Head) -> int:
        """Return which logit of that model is the first one of the head."""
        if not self.all_heads:
            return 0
        before = takewhile(lambda each: each.name != head.name, unique_heads(self.stream))
        return sum(len(each.classes) for each in before)

    def joint(self, heads: list[Head]) -> keras.Model:
        """Return one model with the logits of several heads, by name, to save or restore them."""
        return self._heads.joint([head.name for head in heads])

    def model_of(self, head: Head) -> keras.Model:
        """Return a model of the trunk and one head, which shares their weights."""
        return self._heads.models[head.name]

    def layer_of(self, head: Head) -> keras.layers.Dense:
        """Return the output layer that keeps the weights of a head."""
        return self.model_of(head).layers[-1]

    def _outputs(self, head):
        """Return the logits of a model for heads of one shape."""
        shapes = [len(each.classes) for each in unique_heads(self.stream)]
        if shapes.count(len(head.classes)) == 1:  # it takes turns with no other
            return self.model_of(head).outputs[0]
        # A memory that holds the head recognizes it in the saved network by this name.
        return self._learned.add(head.name, len(head.classes)).outputs[0]

    def _all_outputs(self):
        return [self.model_of(head).outputs[0] for head in unique_heads(self.stream)]

    def _build_trunk(self, weights):
        stream = self.stream
        return build_trunk(self.recipe.backbone, stream.input_shape, stream.rescale, weights)

    def _copy_own_weights(self, model, other):
        """Copy what is not part of the trunk from a model to another one of the same structure."""
        shared = set(map(id, self.trunk.weights))
        own = ([w for w in each.weights if id(w) not in shared] for each in (model, other))
        for weight, copy in zip(*own, strict=True):
            if copy is not weight:
                copy.assign(weight)


def freeze_layers(trunk: keras.Model, freeze: str) -> None:
    """Freeze the first layers of a trunk that have weights to train.

    Args:
        trunk: The trunk.
        freeze: How many: a number, "all" or "none".

    Raises:
        UsageError: If it has fewer.
    """
    layers = [layer for layer in trunk.layers if layer.trainable_weights]
    count = {"all": len(layers), "none": 0}.get(freeze)
    count = int(freeze) if count is None else count
    if count > len(layers):
        raise UsageError(
            f"Expected at most {len(layers)} layers to freeze, which is how many of the backbone "
            f"have weights. Received: {count}. Correct `--freeze`, or freeze `all`."
        )
    for layer in layers[:count]:
        layer.trainable = False


def _batch_norm_of_heads(stream, recipe):
    """Return how a `MultiHead` shares batch normalization."""
    if recipe.batch_norm != "per-task":
        return "shared"
    if stream.scenario != "task":
        raise UsageError(
            "Expected a task-incremental stream for batch normalization per task, since the task "
            f"of an input has to be known. Received: '{stream.name}', which is "
            f"{stream.scenario}-incremental. Choose '--batch-norm frozen'."
        )
    return "per_task"
