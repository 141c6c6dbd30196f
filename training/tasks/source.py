"""Making tasks from sources of labelled data: class selection and validation split."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_mas.errors import UsageError

from ..load_options import LoadOptions
from ..wording import did_you_mean, one_of
from .changes import Change
from .errors import DataError
from .inputs import ChangedArray
from .stream import Split, Task, check_labels

# Names of a validation split in folders and TFDS data sets.
VALIDATION_NAMES = ("validation", "val")


@dataclass(frozen=True, eq=False)
class Source:
    """The content of one file, folder or data set, before classes are selected.

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

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that the source has, by the names of its attributes."""
        splits = {"train": self.train, "test": self.test, "validation": self.validation}
        return {role: split for role, split in splits.items() if split is not None}

    def changed(self, change: Change) -> "Source":
        """Return a source of the same examples whose inputs are changed when they are read."""
        splits = {
            role: Split(ChangedArray(split.source, change), split.labels, split.rows)
            for role, split in self.splits.items()
        }
        return Source(self.classes, **splits)


def numbered_classes(train: Split, where: str) -> tuple[str, ...]:
    """Return the class names "0", "1", … up to the largest label, for a source without names.

    Args:
        train: The training examples.
        where: Description of the labels for an error message.

    Returns:
        The names.

    Raises:
        DataError: If a label is negative, or the largest is not below the number of examples, so
            that the labels cannot be class numbers (but years, or identifiers).
    """
    smallest, largest = train.labels.min(), train.labels.max()
    if smallest < 0 or largest >= len(train):
        wrong = smallest if smallest < 0 else largest
        raise DataError(
            f"Expected labels that number the classes 0, 1, 2, …. Received: label {wrong} among "
            f"{len(train)} training examples in {where}. Renumber them, for example with "
            "np.unique(y, return_inverse=True)."
        )
    return tuple(str(label) for label in range(largest + 1))


def make_task(
    name: str, source: Source, classes: Sequence[int | str] | None, options: LoadOptions
) -> Task:
    """Make a task of some or all classes of a source.

    Training examples are shuffled with the seed, so that any first few of them are a random sample
    even if the source is sorted by class. Test examples keep their order.

    Args:
        name: The task's name.
        source: The source of its examples.
        classes: Classes to select, by index (int) or name (str), relabelled 0, 1, … in this order;
            None for all classes with the source's labels.
        options: Seed and validation fraction; the latter is unused if the source has validation
            data of its own.

    Returns:
        The task.

    Raises:
        UsageError: If a class is unknown or selected twice, or the name cannot be used.
        DataError: If a label of the source is not the number of one of its classes, a selected
            class has no training or no test examples, or the examples do not make a task; see
            `Task`.
    """
    for role, split in source.splits.items():
        check_labels(split.labels, source.classes, f"the {role} split of task '{name}'")
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
        fraction: Share to hold out, between 0 and 1. The number is rounded for each class; at least
            one example is not held out, and at least one is if the class has two.

    Returns:
        The remaining examples and the held-out ones, both in the order of `split`.
    """
    held = np.zeros(len(split), dtype=bool)
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held[members[:count]] = True
    return split.take(~held), split.take(held)


def divided(split: Split, test_fraction: float) -> tuple[Split, Split]:
    """Return training and test data of a source that is not divided, the same for every seed."""
    return hold_out(shuffled(split, seed=0), test_fraction)


def _select_classes(source, wanted, task_name):
    """Return a source of the classes `wanted` only, relabelled in that order."""
    indices = [_class_index(source.classes, choice, task_name) for choice in wanted]
    if len(set(indices)) != len(indices) or not indices:
        raise UsageError(
            "Expected at least one class, and none twice. Received: "
            f"classes = {list(wanted)} in task '{task_name}'."
        )

    new_label = np.full(len(source.classes), -1)
    new_label[indices] = np.arange(len(indices))

    def select(split):
        labels = new_label[split.labels]
        selected = labels >= 0
        return Split(split.source, labels[selected], split.rows[selected])

    for role, split in (("training", source.train), ("test", source.test)):
        empty = [source.classes[i] for i in np.setdiff1d(indices, split.labels)]
        if empty:
            raise DataError(
                f"Expected {role} examples of every class that `classes` names. Received: none of "
                f"class {one_of(empty)} in task '{task_name}'. Add examples, or remove the class "
                "from `classes`."
            )
    return Source(
        classes=tuple(source.classes[index] for index in indices),
        **{role: select(split) for role, split in source.splits.items()},
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
