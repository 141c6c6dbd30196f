"""Tasks of a user's own: arrays or datasets, checked before anything is trained."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import keras_tuner as kt
import numpy as np
import tensorflow as tf

# Examples that are measured at a time.
_BATCH = 256

_FORM = (
    "Give each task as a pair (training data, validation data), each of them (x, y), or a "
    "`tf.data.Dataset` or `keras.utils.PyDataset` of batches (x, y)"
)


@dataclasses.dataclass(frozen=True)
class Examples:
    """Examples of one task for one purpose.

    Attributes:
        inputs: An array `[N, ...]` or a dict of them; or a `tf.data.Dataset` or
            `keras.utils.PyDataset` of batches of inputs and labels.
        labels: `[N]`, int64; in no certain order if the inputs are a dataset.
    """

    inputs: Any
    labels: np.ndarray

    @property
    def for_fit(self) -> tuple[Any, ...]:
        """The arguments that `model.fit` takes the examples as."""
        return (self.inputs,) if _is_dataset(self.inputs) else (self.inputs, self.labels)

    def batches(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Yield inputs and their labels in batches."""
        if _is_dataset(self.inputs):
            for inputs, labels, *_ in self.inputs:
                yield inputs, np.reshape(labels, -1)
            return
        for start in range(0, len(self.labels), _BATCH):
            part = slice(start, start + _BATCH)
            inputs = keras.tree.map_structure(lambda array, part=part: array[part], self.inputs)
            yield inputs, self.labels[part]


@dataclasses.dataclass(frozen=True)
class OwnTask:
    """A task of a user's own.

    Attributes:
        name: Its name.
        train: What is learned.
        validation: What accuracy is measured on.
    """

    name: str
    train: Examples
    validation: Examples

    @property
    def classes(self) -> int:
        """How many classes there are, numbered from 0."""
        return int(max(self.train.labels.max(), self.validation.labels.max())) + 1

    def check_labels(self, logits: int, head_of_its_own: bool) -> None:
        """Refuse labels that are no numbers of logits.

        Args:
            logits: How many logits the model of the task has.
            head_of_its_own: Whether no other task has them.

        Raises:
            ValueError: If there are such labels, of a kind that ends a search of keras-tuner.
        """
        for role, examples in (("training", self.train), ("validation", self.validation)):
            least, largest = int(examples.labels.min()), int(examples.labels.max())
            if not 0 <= least <= largest < logits:
                raise kt.errors.FatalValueError(
                    f"Expected labels from 0 to {logits - 1}, the numbers of the {logits} logits "
                    f"of the model. Received: {least} to {largest} in the {role} data of task "
                    f"'{self.name}'. Number the classes from 0, or give the model more outputs."
                )
        least = int(self.train.labels.min())
        if head_of_its_own and least > 0:
            raise kt.errors.FatalValueError(
                "Expected labels that number the classes of each task from 0, since each has a "
                f"head of its own. Received: {least} to {int(self.train.labels.max())} in task "
                f"'{self.name}'. Subtract {least} from its labels."
            )


def own_tasks(tasks: Any) -> list[OwnTask]:
    """Return tasks as `ContinualTuner.search` takes them.

    Args:
        tasks: Dict from name to (training data, validation data), or a list of such pairs. Each
            part is (x, y), with integer labels y `[N]`, or a `tf.data.Dataset` or
            `keras.utils.PyDataset` of batches (x, y).

    Raises:
        TypeError: If they are in no such form.
        ValueError: If there is no task, two have one name, or one has no validation data or no
            examples.
    """
    if isinstance(tasks, Mapping):
        pairs = dict(tasks)
    elif isinstance(tasks, Sequence) and not isinstance(tasks, str):
        pairs = {f"task-{number}": pair for number, pair in enumerate(tasks, 1)}
    else:
        raise TypeError(
            "Expected tasks as a dict from name to data, or a list. Received: "
            f"{type(tasks).__name__}. {_FORM}."
        )
    if not pairs:
        raise ValueError(f"Expected at least one task. Received: none. {_FORM}.")
    named = {str(name): pair for name, pair in pairs.items()}
    if len(named) < len(pairs):
        raise ValueError(
            "Expected a name of its own for each task, as text. Received: "
            f"{', '.join(map(repr, pairs))}. Rename those that differ in their type alone."
        )
    return [_own_task(name, pair) for name, pair in named.items()]


def fingerprint(tasks: Sequence[OwnTask]) -> str:
    """Return a hash that changes when a name, a label or an array of inputs does.

    Of a dataset, whose order may change, the shapes count, and how many examples each class has.
    """
    known = hashlib.sha256()
    for task in tasks:
        known.update(task.name.encode())
        for examples in (task.train, task.validation):
            if _is_dataset(examples.inputs):
                known.update(str(_spec_of(examples.inputs)).encode())
                known.update(np.bincount(examples.labels).tobytes())
                continue
            known.update(examples.labels.tobytes())
            for array in keras.tree.flatten(examples.inputs):
                array = np.ascontiguousarray(array)
                known.update(f"{array.shape} {array.dtype}".encode())
                known.update(array.data)
    return known.hexdigest()[:16]


def _own_task(name, pair):
    if _is_dataset(pair) or (_is_data(pair) and not any(map(_is_data, pair))):
        pair = (pair, None)
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        kind = f"{len(pair)} parts" if isinstance(pair, tuple | list) else type(pair).__name__
        raise TypeError(f"Expected two parts of task '{name}'. Received: {kind}. {_FORM}.")
    train, validation = pair
    if validation is None:
        raise ValueError(
            f"Expected validation data for task '{name}', which every λ is judged by. Received: "
            f"training data alone. {_FORM}."
        )
    return OwnTask(
        name, _examples(name, "training", train), _examples(name, "validation", validation)
    )


def _is_dataset(part):
    return isinstance(part, tf.data.Dataset | keras.utils.PyDataset)


def _spec_of(dataset):
    """Return what a batch of a dataset is made of."""
    if isinstance(dataset, tf.data.Dataset):
        return dataset.element_spec
    return keras.tree.map_structure(_shape_and_type, next(iter(dataset), ()))


def _shape_and_type(array):
    array = np.asarray(array)
    return f"{array.shape[1:]} {array.dtype}"


def _is_endless(dataset):
    if isinstance(dataset, tf.data.Dataset):
        return dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    try:
        return dataset.num_batches is None
    except NotImplementedError:  # a PyDataset that says nothing of its length
        return True


def _is_data(part):
    """Return whether something is a dataset, or inputs with labels."""
    if _is_dataset(part):
        return True
    if not isinstance(part, tuple | list) or len(part) != 2:
        return False
    labels = part[1]
    return hasattr(labels, "shape") or (isinstance(labels, list) and all(map(np.isscalar, labels)))


def _examples(name, role, part):
    where = f"the {role} data of task '{name}'"
    if _is_dataset(part):
        return Examples(part, _checked_labels(_labels_of(part, where), where))
    if not isinstance(part, tuple | list) or len(part) != 2:
        raise TypeError(
            f"Expected (x, y) or a dataset as {where}. Received: {type(part).__name__}. {_FORM}."
        )
    inputs = part[0]
    if not isinstance(inputs, dict):
        inputs = np.asarray(inputs)
    labels = _checked_labels(part[1], where)
    for array in keras.tree.flatten(inputs):
        if len(array) != len(labels):
            raise ValueError(
                f"Expected as many inputs as labels in {where}. Received: {len(array)} inputs and "
                f"{len(labels)} labels."
            )
    return Examples(inputs, labels)


def _labels_of(dataset, where):
    if _is_endless(dataset):
        raise ValueError(
            f"Expected a dataset with an end as {where}. Received: one that repeats for ever. "
            "Leave out `repeat()`, and give a PyDataset a length: every epoch begins it anew."
        )
    spec = _spec_of(dataset)
    if not isinstance(spec, tuple) or len(spec) < 2:
        raise TypeError(
            f"Expected batches (x, y) in {where}. Received: a dataset of {spec}. Have it yield "
            "inputs and labels."
        )
    labels = [np.asarray(batch[1]) for batch in dataset]
    if labels and labels[0].ndim == 0:
        raise ValueError(
            f"Expected batches in {where}. Received: a dataset of single examples. Call "
            "`dataset.batch(32)`."
        )
    return np.concatenate(labels) if labels else np.zeros([0], "int64")


def _checked_labels(labels, where):
    """Return labels as `[N]`, int64."""
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    is_whole = labels.dtype.kind in "iub" or (
        labels.dtype.kind == "f" and np.array_equal(labels, np.round(labels))
    )
    if labels.ndim != 1 or not is_whole:
        raise ValueError(
            f"Expected labels [N], whole numbers, in {where}. Received: shape "
            f"{labels.shape} of {labels.dtype}. Give the number of each example's class, as for a "
            "sparse cross-entropy; `np.argmax(y, axis=-1)` makes it of one-hot labels."
        )
    if not len(labels):
        raise ValueError(f"Expected examples in {where}. Received: none.")
    return labels.astype("int64")
