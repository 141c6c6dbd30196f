"""Which head of a network answers for a task, and which class each of its logits stands for."""

import dataclasses
from collections import Counter

import keras

from keras_mas.heads import MultiHead

from .load_options import SHARED_HEADS
from .tasks import TaskStream


@dataclasses.dataclass(frozen=True)
class Head:
    """The head that answers for a task.

    Attributes:
        name: Name of the head: the task's own name, or that of the head which all tasks share.
        offset: Logit of the task's first class.
        classes: Name of every class of the head, each different.
    """

    name: str
    offset: int
    classes: tuple[str, ...]


def heads_of(stream: TaskStream) -> dict[str, Head]:
    """Return the head of every task of a stream, by the task's name.

    In a task-incremental stream each task has a head of its own. In a domain-incremental one all
    tasks share a head; a class that is not named alike in all of them has all its names, as in
    `"0/2/4"`. In a class-incremental one they share a head with all classes of all tasks, the first
    task's first; a class name that occurs in several tasks is qualified by the task's name, as in
    `"flowers/0"`.
    """
    if stream.scenario == "task":
        return {task.name: Head(task.name, 0, task.classes) for task in stream.tasks}
    name = SHARED_HEADS[stream.scenario]
    if stream.scenario == "domain":
        shared = tuple(
            map(_shared_name, zip(*(task.classes for task in stream.tasks), strict=True))
        )
        return {task.name: Head(name, 0, shared) for task in stream.tasks}
    classes = _unambiguous_classes(stream)
    heads, offset = {}, 0
    for task in stream.tasks:
        heads[task.name] = Head(name, offset, classes)
        offset += len(task.classes)
    return heads


def _shared_name(names: tuple[str, ...]) -> str:
    return "/".join(dict.fromkeys(names))


def _unambiguous_classes(stream: TaskStream) -> tuple[str, ...]:
    pairs = [(task.name, name) for task in stream.tasks for name in task.classes]
    count = Counter(name for _, name in pairs)
    names = [name if count[name] == 1 else f"{task}/{name}" for task, name in pairs]
    if len(set(names)) < len(names):  # a class is named like a qualified one
        names = [f"{task}/{name}" for task, name in pairs]
    return tuple(names)


def build_heads(stream: TaskStream, trunk: keras.Model, batch_norm: str = "shared") -> MultiHead:
    """Build the heads of a stream on a built trunk; `batch_norm` as for `MultiHead`."""
    heads = MultiHead(trunk, batch_norm=batch_norm)
    for head in unique_heads(stream):
        heads.add(head.name, len(head.classes))
    return heads


def unique_heads(stream: TaskStream, tasks: int | None = None) -> list[Head]:
    """Return the heads of the first tasks of a stream, each once, in the order of the tasks.

    Args:
        stream: The tasks.
        tasks: How many tasks; all by default.
    """
    of_task = heads_of(stream)
    heads = {of_task[task.name].name: of_task[task.name] for task in stream.tasks[:tasks]}
    return list(heads.values())
