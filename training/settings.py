"""Everything, beside the data, that decides what a run or a search finds."""

import dataclasses

OPTIMIZERS = ("adam", "sgd")
TUNERS = ("bayesian", "random")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How each task of a stream is trained.

    Attributes:
        backbone: Name of the trunk, as `backbones.build_trunk` reads it.
        optimizer: "adam", or "sgd" with momentum 0.9; a new one for every task.
        learning_rate: Of every task.
        epochs: Passes over the training data of every task.
        batch_size: Examples per step.
        first_learning_rate: Of the first task, where it differs; None if it does not.
        first_epochs: Of the first task, where they differ; None if they do not.
    """

    backbone: str = "mlp-256-256"
    optimizer: str = "adam"
    learning_rate: float = 0.001
    epochs: int = 20
    batch_size: int = 64
    first_learning_rate: float | None = None
    first_epochs: int | None = None

    def for_task(self, number: int) -> tuple[float, int]:
        """Return the learning rate and the epochs of a task, counted from 0."""
        if number == 0:
            return self.first_learning_rate or self.learning_rate, self.first_epochs or self.epochs
        return self.learning_rate, self.epochs


# Vectors, and images that fill the network's input: a small convolutional network learns these
# from a thousand examples a task.
DEFAULT_FOR_VECTORS = Recipe()
DEFAULT_FOR_IMAGES = Recipe(backbone="cnn-32-64-128")

RECIPES = {
    "split-digits": Recipe(backbone="mlp-400-400", learning_rate=0.01, epochs=30, batch_size=32),
    # The authors' own demonstration (their notebook): SGD, ten epochs for the first task, and
    # twenty at a tenth of the learning rate for the others. The batch size is ours.
    "split-mnist": Recipe(
        optimizer="sgd",
        learning_rate=0.001,
        epochs=20,
        batch_size=64,
        first_learning_rate=0.01,
        first_epochs=10,
    ),
}


def recipe_for(stream) -> Recipe:
    """Return the recipe of a `TaskStream`: its own, or the default for its kind of input."""
    default = DEFAULT_FOR_IMAGES if len(stream.input_shape) == 3 else DEFAULT_FOR_VECTORS
    return RECIPES.get(stream.name, default) if stream.builtin else default


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run does with a stream of tasks.

    Attributes:
        method: Name out of `keras_mas.methods.METHODS`.
        strength: λ ≥ 0.
        penalty: Name out of `keras_mas.methods.PENALTIES`: where the penalty acts.
        seed: Of the initial weights and the order of the examples.
        recipe: How each task is trained.
    """

    method: str
    strength: float
    penalty: str
    seed: int
    recipe: Recipe


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """What a search tries, and how.

    Attributes:
        tuner: Name out of `TUNERS`.
        trials: How many values of λ are tried, λ = 0 not counted.
        strength_min: Least λ > 0.
        strength_max: Greatest λ.
    """

    tuner: str
    trials: int
    strength_min: float
    strength_max: float
