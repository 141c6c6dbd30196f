"""From a source of labelled arrays to a task: choose classes, hold out validation data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_mas.errors import UsageError

from .errors import DataError, did_you_mean, one_of
from .stream import Split, Task

# What folders and TFDS call a split that serves for validation.
VALIDATION_NAMES = ("validation", "val")


@dataclass(frozen=True)
class LoadOptions:
    """What the caller of `load_tasks` chose, for every source alike.

    Attributes:
        seed: Orders the training data and so decides what is held out; ≥ 0.
        validation_fraction: Share of the training data of each class to hold out; between 0 and 1.
        data_dir: Where TFDS looks for prepared data; None for its default, which is the environment
            variable `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Raises:
        UsageError: If the seed is negative or the fraction not between 0 and 1.
    """

    seed: int = 0
    validation_fraction: float = 0.1
    data_dir: str | Path | None = None

    def __post_init__(self):
        if self.seed < 0:
            raise UsageError(f"Expected a seed of at least 0. Received: {self.seed}.")
        if not 0 < self.validation_fraction < 1:
            raise UsageError(
                "Expected a validation fraction between 0 and 1, both excluded. Received: "
                f"{self.validation_fraction}."
            )


@dataclass(frozen=True, eq=False)
class Source:
    """All that one file, folder or data set holds, before classes are chosen.

    Attributes:
        classes: Names of the classes, in the order of their labels.
        train: Training examples.
        test: Test examples.
        validation: The source's own validation examples, or None if it has none.
    """

    classes: tuple[str, ...]
    train: Split
    test: Split
    validation: Split | None = None


def numbered_classes(train: Split, where: str) -> tuple[str, ...]:
    """Name the classes of a source that only numbers them: "0", "1", … up to the largest label.

    Args:
        train: The training examples.
        where: What to call the labels in an error message.

    Returns:
        The names.

    Raises:
        DataError: If a label is larger than the number of examples allows: it is something else
            (a year, an identifier) than the number of a class.
    """
    largest = train.labels.max()
    if largest >= len(train):
        raise DataError(
            f"Expected labels that number the classes 0, 1, 2, …. Received: label {largest} among "
            f"{len(train)} training examples in {where}. Renumber them, for example with "
            "np.unique(y, return_inverse=True)."
        )
    return tuple(str(label) for label in range(largest + 1))


def make_task(
    name: str, source: Source, classes: Sequence[int | str] | None, options: LoadOptions
) -> Task:
    """Make a task of some or all classes of a source.

    Training examples come in a random order that depends on the seed only, so that their first
    few are a fair sample even where the source is sorted by class. Test examples keep their order.

    Args:
        name: The task's name.
        source: Where its examples come from.
        classes: Classes to keep, by index (int) or name (str), labelled 0, 1, … in this order; None
            for all, as the source numbers them.
        options: Seed and validation fraction; the latter is unused if the source has validation
            data of its own.

    Returns:
        The task.

    Raises:
        UsageError: If a class is unknown or chosen twice, or the name cannot be used.
        DataError: If the examples do not make a task; see `Task`.
    """
    if classes is not None:
        source = _select_classes(source, classes, name)
    train, validation = shuffled(source.train, options.seed), source.validation
    if validation is None:
        train, validation = hold_out(train, options.validation_fraction)
    return Task(name, source.classes, train, validation, source.test)


def shuffled(split: Split, seed: int) -> Split:
    """Return the same examples in a random order that depends on `seed` only."""
    return split.take(np.random.default_rng(seed).permutation(len(split)))


def hold_out(split: Split, fraction: float) -> tuple[Split, Split]:
    """Divide a split in two, in the same proportion for every class.

    Args:
        split: Examples in random order; the first of each class are held out.
        fraction: Share to hold out, between 0 and 1. It is rounded per class, but each class keeps
            at least one example, and gives at least one if it has two.

    Returns:
        The examples that stay and the ones held out, both in the order of `split`.
    """
    held = np.zeros(len(split), dtype=bool)
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held[members[:count]] = True
    return split.take(~held), split.take(held)


def _select_classes(source, wanted, task_name):
    """Keep the examples of the classes `wanted`, relabelled in that order."""
    indices = [_class_index(source.classes, choice, task_name) for choice in wanted]
    if len(set(indices)) != len(indices) or not indices:
        raise UsageError(
            "Expected at least one class, and none twice. Received: "
            f"classes = {list(wanted)} in task '{task_name}'."
        )

    def select(split):
        # Compared one by one, not looked up by label: labels that no class has are left out too.
        labels = np.full(len(split), -1)
        for new, old in enumerate(indices):
            labels[split.labels == old] = new
        kept = labels >= 0
        return Split(split.inputs[kept], labels[kept])

    return Source(
        classes=tuple(source.classes[index] for index in indices),
        train=select(source.train),
        test=select(source.test),
        validation=None if source.validation is None else select(source.validation),
    )


def _class_index(classes, choice, task_name):
    if isinstance(choice, str):
        if choice in classes:
            return classes.index(choice)
        raise UsageError(
            f"Expected the name of one of {len(classes)} classes ({one_of(classes)}). Received: "
            f"{choice!r} in task '{task_name}'.{did_you_mean(choice, classes)}"
        )
    if 0 <= choice < len(classes):
        return choice
    raise UsageError(
        f"Expected class indices from 0 to {len(classes) - 1}. Received: {choice} in task "
        f"'{task_name}'."
    )
