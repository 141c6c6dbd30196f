"""Everything, apart from the data, that decides the result of a run."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_mas.choices import AUTO, PENALTIES, auto_text, kappa_of
from keras_mas.errors import UsageError
from keras_mas.methods import METHODS, load_method
from keras_mas.plugins import is_own

from .augmentation import AUGMENTATIONS
from .options import (
    AT_LEAST_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    Bounds,
    check_options,
    flag,
    label,
    listed,
    number,
    option,
    option_fields,
)
from .stability_decay import DECAY, decay_text, margin_of
from .tasks import TaskStream, builtin_names


class _MethodNames(tuple[str, ...]):
    """The names of our methods; MODULE:CLASS, of a method of your own, counts as one of them."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (isinstance(name, str) and is_own(name))


OPTIMIZERS = ("adam", "sgd")
OPTIMIZER_STATES = ("fresh", "kept")
# What becomes of batch normalization, whose moving statistics no penalty holds.
BATCH_NORMS = ("frozen", "per-task", "shared")

# NumPy's generators, which Keras seeds too, take no larger ones.
SEEDS = Bounds(at_least=0, at_most=2**32 - 1)
# TensorFlow's kernels count examples in 32 bits.
_BATCH_SIZES = Bounds(at_least=1, at_most=2**31 - 1)
OWN_METHOD = "MODULE:CLASS for a method of your own"
# The method that holds nothing.
FINE_TUNING = "finetune"
# The strengths that are found for each task: by a formula, or by trying.
FOUND = (AUTO, DECAY)
STRENGTHS = f"a number {NOT_NEGATIVE}, {AUTO} or {DECAY}"


def frozen_layers(text: str) -> str:
    """Return `--freeze` as it is, "none" for 0; an argparse type."""
    if text in ("none", "all"):
        return text
    if text.isascii() and text.isdecimal() and len(text) < 10:
        return str(int(text)) if int(text) else "none"
    raise argparse.ArgumentTypeError(
        f"expected a whole number of layers ≥ 0, all or none, received {text!r}"
    )


def strength(text: str) -> float | str:
    """Return `--strength` as a number, or as it is if λ is found; an argparse type."""
    if not text.startswith(FOUND):
        try:
            return number(float, NOT_NEGATIVE)(text)
        except argparse.ArgumentTypeError:
            raise argparse.ArgumentTypeError(f"expected {STRENGTHS}, received {text!r}") from None
    try:
        _checked_text(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How each task of a stream is trained, and its importance measured.

    Attributes:
        backbone: Name of the trunk, as `backbones.build_trunk` reads it.
        weights: What the trunk begins with: "imagenet" or the path of a file, as
            `backbones.build_trunk` reads it; None for random weights by the seed.
        freeze: How many of its layers with weights, from the input on, are frozen: neither trained
            nor protected, their importance not measured. A number, "all" or "none".
        batch_norm: Name out of `BATCH_NORMS`. "frozen": the moving statistics of batch
            normalization stay as they are after the first task, or, where `weights` are given,
            as they are from the beginning; scale and offset go on learning. "per-task": each task
            has its own batch normalization. "shared": every task moves the statistics.
        optimizer: Name out of `OPTIMIZERS`.
        optimizer_state: "fresh": each task starts with a new optimizer; "kept": the moments of Adam
            and the momentum of SGD go on from task to task, as in Hsu et al. (arXiv:1810.12488).
            They go on for the output layer too, in which heads of one size take turns.
        learning_rate: Learning rate of every task.
        epochs: Passes over the training data of every task.
        batch_size: Examples per training step.
        first_learning_rate: Learning rate of the first task; None if it is that of the others.
        first_epochs: Epochs of the first task; None if they are those of the others.
        max_examples: Training examples of a task that importance is measured on, at most; a random
            sample. More changed no result, and take longer (results/README.md).
        augment: Names out of `AUGMENTATIONS`, separated by commas: how training images are changed
            at random. Importance and accuracy are measured on images as they are.

    Raises:
        UsageError: If a number is out of range, or the optimizer is unknown.
    """

    backbone: str = option(
        "mlp-256-256",
        "mlp-WIDTH-…, cnn-WIDTH-…, vgg-WIDTH-…, alexnet, alexnet-caffe, caffenet, squeezenet, a "
        "network of keras.applications, such as mobilenet-0.75, or MODULE:FUNCTION",
        metavar="NAME",
        label="",
    )
    weights: str | None = option(
        None,
        "what the backbone begins with: imagenet, or a file (.keras, .h5, .npz, .safetensors, "
        ".caffemodel); random otherwise",
        metavar="FILE",
        label="",
    )
    freeze: str = option(
        "none",
        "how many layers of the backbone are frozen, from the input on; or all, or none",
        metavar="N",
        parse=frozen_layers,
    )
    batch_norm: str = option(
        "frozen",
        "statistics of batch normalization: frozen after the first task (from the start with "
        "--weights), kept per task, or moved by every task",
        choices=BATCH_NORMS,
        label="bn",
    )
    optimizer: str = option("adam", "sgd has momentum 0.9", choices=OPTIMIZERS, label="")
    optimizer_state: str = option(
        "fresh",
        "moments of the optimizer when a task begins: fresh, or kept from the task before",
        choices=OPTIMIZER_STATES,
        label="",
    )
    learning_rate: float = option(
        0.001, "learning rate", bounds=POSITIVE, metavar="RATE", label="rate"
    )
    epochs: int = option(20, "epochs for each task", bounds=AT_LEAST_ONE)
    batch_size: int = option(64, "examples per training step", bounds=_BATCH_SIZES, label="batch")
    first_learning_rate: float | None = option(
        None,
        "learning rate of the first task, if it differs",
        bounds=POSITIVE,
        metavar="RATE",
        label="first-rate",
    )
    first_epochs: int | None = option(
        None, "epochs for the first task, if they differ", bounds=AT_LEAST_ONE, label="first-epochs"
    )
    max_examples: int = option(
        1000,
        "examples of each task that importance is measured on, at most; a random sample",
        bounds=AT_LEAST_ONE,
        metavar="N",
        label="importance",
    )
    augment: str = option(
        "",
        "random changes of training images, out of flip (left to right) and crop, as in flip,crop",
        choices=AUGMENTATIONS,
        several=True,
        metavar="NAMES",
    )

    def __post_init__(self):
        check_options(self)
        try:
            frozen_layers(self.freeze)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"In `freeze`, {error}.") from None

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The names in `augment`."""
        return listed(self.augment)

    def for_task(self, number: int) -> tuple[float, int]:
        """Return the learning rate and the epochs of a task, counted from 0."""
        if number == 0:
            return self.first_learning_rate or self.learning_rate, self.first_epochs or self.epochs
        return self.learning_rate, self.epochs


DEFAULT_FOR_VECTORS = Recipe()
# A small convolutional network learns small images from a thousand examples a task.
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
    "permuted-digits": Recipe(backbone="mlp-400-400", epochs=10, batch_size=32),
    "rotated-digits": Recipe(backbone="mlp-400-400", epochs=10, batch_size=32),
    # Hsu et al., "Re-evaluating Continual Learning Scenarios" (arXiv:1810.12488).
    "split-mnist-hsu": Recipe(
        backbone="mlp-400-400", optimizer_state="kept", epochs=4, batch_size=128
    ),
    # No convolution finds anything in permuted pixels.
    "permuted-mnist": Recipe(backbone="mlp-400-400", epochs=5, batch_size=128),
    "rotated-mnist": Recipe(backbone="mlp-400-400", epochs=5, batch_size=128),
    # The paper's AlexNet begins with weights learned on ImageNet: a file, given by `--weights`. The
    # learning rate is ours.
    **dict.fromkeys(
        (name for name in builtin_names() if name.startswith("paper-")),
        Recipe(
            backbone="alexnet", optimizer="sgd", learning_rate=0.001, epochs=100, batch_size=200
        ),
    ),
}


def recipe_for(stream: TaskStream) -> Recipe:
    """Return the recipe of a stream: its own, or the default for its kind of input."""
    default = DEFAULT_FOR_IMAGES if len(stream.input_shape) == 3 else DEFAULT_FOR_VECTORS
    return RECIPES.get(stream.name, default) if stream.builtin else default


def batch_size_for(tasks: str | Path) -> int:
    """Return the batch size of a stream's recipe before it is loaded, whatever its inputs are.

    Args:
        tasks: What it is loaded from, as for `load_tasks`.
    """
    return RECIPES.get(str(tasks), DEFAULT_FOR_IMAGES).batch_size


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a run does with a stream of tasks.

    Attributes:
        method: Name out of `keras_mas.methods.METHODS`, or MODULE:CLASS, as `load_method` reads it.
        strength: λ ≥ 0, or "auto", as for `SynapticMemory`; or "decay", to find it for each task on
            its own validation data, as `stability_decay` says; the method's own default if it is
            not given.
        penalty: Name out of `keras_mas.choices.PENALTIES`: where the penalty acts.
        seed: Seed of the initial weights, the order of the examples and the held-out ones.
        recipe: How each task is trained.
        evaluate_every: Steps after which the tasks so far are measured while another one is being
            learned; None for at the end of each task alone. It changes nothing that is learned,
            except with `online_mas`: that consolidates where a call of several steps ends, and
            every measurement ends one.
        deterministic: Whether TensorFlow takes only kernels whose result is the same to the last
            bit each time, on a GPU too; see `tf.config.experimental.enable_op_determinism`, which
            then stays enabled in the process.

    Raises:
        UsageError: If a number is out of range, a name is unknown, or the method cannot have batch
            normalization per task.
    """

    method: str = option(
        "mas",
        f"{', '.join(METHODS)}; or {OWN_METHOD}",
        choices=_MethodNames(METHODS),
        besides=OWN_METHOD,
        metavar="NAME",
    )
    strength: float | str = option(
        None,
        "weight of the penalty beside the loss, ≥ 0; or auto, to find it for each task from the "
        "learning rate, the steps and the importance; or decay, to lower it until the task is "
        "learned, by its own validation data (default: the method's own, 0.1 for mas, "
        "10 if it is decoupled)",
        metavar="λ",
        parse=strength,
    )
    penalty: str = option(
        "in_loss",
        "in_loss is the paper's; decoupled is stable for every λ",
        choices=PENALTIES,
    )
    seed: int = option(
        0,
        "seed of the initial weights, the order of the examples and the held-out ones",
        bounds=SEEDS,
    )
    recipe: Recipe = Recipe()
    evaluate_every: int | None = option(
        None,
        "also measure the tasks so far after every STEPS training steps",
        bounds=AT_LEAST_ONE,
        metavar="STEPS",
    )
    deterministic: bool = option(
        False,
        "take only kernels that compute the same to the last bit each time, on a GPU too, where "
        "they may be slower",
    )

    def __post_init__(self):
        check_options(self)
        object.__setattr__(self, "strength", _strength_of(self.method, self.penalty, self.strength))
        if self.recipe.batch_norm == "per-task" and load_method(self.method).trains_all_heads:
            raise UsageError(
                f"Expected batch normalization that tasks share for method '{self.method}', which "
                "passes the examples of one task through the heads of all. Received: "
                "--batch-norm per-task. Choose `--batch-norm frozen` or another method."
            )

    @property
    def idle_options(self) -> frozenset[str]:
        """The names of options that make no difference to the method."""
        return _idle_options(self.method)

    @property
    def has_strength(self) -> bool:
        """Whether λ makes a difference to the method."""
        return load_method(self.method).has_strength

    @property
    def has_penalty(self) -> bool:
        """Whether `penalty` makes a difference to the method."""
        return load_method(self.method).has_penalty

    @property
    def shares_first_task(self) -> bool:
        """Whether runs that differ in λ alone have the same first task."""
        return not (self.has_strength and load_method(self.method).first_task_depends_on_strength)

    @property
    def holds_nothing(self) -> bool:
        """Whether the method does nothing but hold weights, and by λ = 0 not even that.

        Then every task is learned as by `FINE_TUNING`, and all accuracies are the same.
        """
        method = load_method(self.method)
        does_more = (
            method.first_task_depends_on_strength
            or method.answers_depend_on_after_task
            or method.trains_all_heads
        )
        return self.strength == 0 and method.has_penalty and not does_more

    @property
    def of_method(self) -> dict[str, str | float | None]:
        """Method, λ and penalty as results record them: None where the method has none."""
        return {
            "method": self.method,
            "strength": self.strength if self.has_strength else None,
            "penalty": self.penalty if self.has_penalty else None,
        }

    @property
    def method_in_paths(self) -> str:
        """The name of the method as folders are named after it."""
        return in_paths(self.method)

    @property
    def learns_all_tasks(self) -> bool:
        """Whether the method learns every task together with the data of all earlier ones."""
        return load_method(self.method).learns_all_tasks


# What an option makes a difference to: as the class of a method has it, and in words.
_ACTS_ON = {
    "strength": ("has_strength", "λ"),
    "search": ("has_strength", "λ"),
    "penalty": ("has_penalty", "penalty on weights"),
    "max_examples": ("measures_examples", "importance to measure on examples"),
}


def check_options_act(given: Mapping[str, Any], methods: Sequence[str]) -> None:
    """Refuse options that make a difference to none of the methods that they were given for.

    Args:
        given: Values by the names of options of any kind; None, False and a field's default are not
            given.
        methods: Names of methods.

    Raises:
        UsageError: If there is such an option.
    """
    idle = frozenset.intersection(*map(_idle_options, methods))
    defaults = {name: field.default for name, field in option_fields(Settings).items()}
    for name in _ACTS_ON:
        value = given.get(name)
        if name in idle and value not in (None, False, defaults.get(name)):
            word = flag(name) if value is True else f"{flag(name)} {value}"
            named = ", ".join(f"'{method}'" for method in methods)
            have = "has" if len(methods) == 1 else "have"
            raise UsageError(
                f"Expected no {flag(name)} for {named}, which {have} no {_ACTS_ON[name][1]}. "
                f"Received: {word}. Leave it out, or choose another method."
            )


def _idle_options(method):
    found = load_method(method)
    return frozenset(name for name, (part, _) in _ACTS_ON.items() if not getattr(found, part))


def _strength_of(name, penalty, strength):
    """Return λ as results record it, if the method of a name can have it."""
    method = load_method(name)
    if strength is None:
        return method.default_strength_with(penalty)
    try:
        text = _checked_text(strength)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if text is None:
        if strength not in NOT_NEGATIVE:
            raise UsageError(f"Expected `strength` to be {STRENGTHS}. Received: {strength!r}.")
        return _held(strength)
    check_options_act({"strength": text}, (name,))
    from keras_mas.methods.base import check_finds_strength

    check_finds_strength(method, text)
    return text


def _held(strength):
    """Return a number ≥ 0 as it is, if a method can have it as λ."""
    from keras_mas.states import checked_strength

    try:
        return checked_strength(strength)
    except ValueError as error:
        raise UsageError(f"{error} Correct `--strength`.") from None


def is_found(strength: object) -> bool:
    """Return whether a strength says how λ is found, and is no number.

    Example:
        >>> [is_found(each) for each in ("auto:30", "decay", 0.5, "much", "auto:much")]
        [True, True, False, False, False]
    """
    try:
        return isinstance(strength, str) and _checked_text(strength) is not None
    except ValueError:
        return False


def _checked_text(strength):
    """Return a strength that is found as results record it; None for a number."""
    margin = margin_of(strength)
    if margin is not None:
        return decay_text(margin)
    kappa = kappa_of(strength)
    return None if kappa is None else auto_text(kappa)


def run_name(stream: TaskStream, settings: Settings) -> str:
    """Return a short name for a run: the stream, the method, and what differs from its recipe.

    For example `split-digits-mas-0.1-epochs5-seed0`.
    """
    is_usual = stream.usual_scenario in (None, stream.scenario)
    scenario = [] if is_usual else [stream.scenario]
    parts = [stream.name, *scenario, settings.method_in_paths]
    if settings.has_strength:
        parts.append(_short(settings.strength))
    if settings.has_penalty and settings.penalty != Settings.penalty:
        parts.append(settings.penalty)
    usual = recipe_for(stream)
    for name, field in option_fields(Recipe).items():
        value = getattr(settings.recipe, name)
        if value != getattr(usual, name):
            parts.append(f"{label(field)}{_short(value)}")
    if settings.evaluate_every is not None:
        parts.append(f"every{settings.evaluate_every}")
    if settings.deterministic:
        parts.append("deterministic")
    return "-".join([*parts, f"seed{settings.seed}"])


def _short(value):
    """Return a value as text; a number in the fewest digits that tell it from all others."""
    if isinstance(value, float) and float(f"{value:g}") == value:
        return f"{value:g}"
    # A path is no part of the name of a folder.
    return in_paths(Path(value).name) if isinstance(value, str) else str(value)


def in_paths(name: str) -> str:
    """Return the name of a method or a backbone as folders are named after it."""
    return name.replace(":", ".")
