"""Tasks made of one source, each of a group of its classes."""

from collections.abc import Mapping, Sequence

import numpy as np

from keras_mas.errors import UsageError

from ..load_options import LoadOptions
from .source import Source, make_task
from .stream import Task


def class_groups(
    classes: int, tasks: int, where: str, order_seed: int | None = None
) -> dict[str, tuple[int, ...]]:
    """Divide classes into groups of equal size, in their order or in a random one.

    Args:
        classes: Number of classes C.
        tasks: Number of groups.
        where: What the classes belong to, for an error message.
        order_seed: Seed of the order: `np.random.default_rng(order_seed).permutation(C)`; None for
            the classes' own.

    Returns:
        The classes of every group, by a name for it: the first and the last class, as in "20-29",
        or "group-3" if the order is random.

    Raises:
        UsageError: If the groups cannot have equal size.

    Examples:
        >>> class_groups(6, 3, "a data set")
        {'0-1': (0, 1), '2-3': (2, 3), '4-5': (4, 5)}
    """
    if not 1 <= tasks <= classes or classes % tasks:
        fitting = [str(number) for number in range(1, classes + 1) if classes % number == 0]
        raise UsageError(
            f"Expected a number of tasks that divides the {classes} classes of {where}: "
            f"{', '.join(fitting)}. Received: tasks = {tasks}. Choose one of these, or list the "
            "classes of each task in a [[task]]."
        )
    order = np.arange(classes) if order_seed is None else _permutation(classes, order_seed)
    groups = [tuple(group.tolist()) for group in np.split(order, tasks)]
    if order_seed is not None:
        return {f"group-{number}": group for number, group in enumerate(groups, 1)}
    return {_name(group): group for group in groups}


def tasks_of_groups(
    source: Source, groups: Mapping[str, Sequence[int]], options: LoadOptions
) -> tuple[Task, ...]:
    """Make a task of every group of classes; arguments as for `make_task`."""
    return tuple(make_task(name, source, group, options) for name, group in groups.items())


def _permutation(count, seed):
    return np.random.default_rng(seed).permutation(count)


def _name(group):
    return f"{group[0]}-{group[-1]}" if len(group) > 1 else str(group[0])
