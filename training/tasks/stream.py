"""The data of a run: splits, tasks, and the stream of tasks."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from keras_mas.errors import UsageError

from ..load_options import SCENARIOS
from ..wording import did_you_mean, one_of
from .errors import DataError
from .inputs import Inputs, JoinedArray, MemoryArray, digest

if TYPE_CHECKING:
    import tensorflow as tf

# What the model multiplies inputs by, and adds: numbers, or for tables a list of one per input.
Rescale = tuple[float | list[float], float | list[float]]

# A task's name becomes a Keras layer's name (no "/", no leading "_" or "-"), a TF Serving signature
# and a part of file names (no leading ".").
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

# The signature of an exported model that answers for all tasks; no task may be named so.
_RESERVED_NAME = "serving_default"

# The folder of a run is named after its stream and its settings; file systems allow 255 bytes.
_LONGEST_NAME = 100


class Split:
    """Examples of one task that are used for one purpose: rows of a source of inputs, and labels.

    Several splits may share a source; none copies it.

    Attributes:
        source: The inputs that the rows are of: uint8 (pixels, kept small and unscaled) or float32.
        labels: `[N]`, int64. In a `Task` they number the task's own classes from 0.
        rows: `[N]`, int64: the row of the source that each example is.

    Args:
        inputs: The source, or an array `[N, ...]`.
        labels: `[N]`.
        rows: `[N]`; by default all rows of the source in their order.
    """

    def __init__(
        self, inputs: Inputs | np.ndarray, labels: np.ndarray, rows: np.ndarray | None = None
    ):
        self.source = inputs if isinstance(inputs, Inputs) else MemoryArray(inputs)
        self.labels = labels
        self.rows = np.arange(len(labels)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def joined(cls, first: "Split", second: "Split") -> "Split":
        """Return the examples of two splits, those of the second after those of the first."""
        labels = np.concatenate([first.labels, second.labels])
        if first.source is second.source:
            return cls(first.source, labels, np.concatenate([first.rows, second.rows]))
        rows = np.concatenate([first.rows, second.rows + len(first.source)])
        return cls(JoinedArray(first.source, second.source), labels, rows)

    @property
    def in_memory(self) -> bool:
        """Whether the inputs are in memory."""
        return self.source.in_memory

    @property
    def inputs(self) -> np.ndarray:
        """All inputs as one array `[N, ...]`, which is made anew each time."""
        return self.read(np.arange(len(self)))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis."""
        return self.source.shape[1:]

    @property
    def dtype(self) -> np.dtype:
        """Type of the inputs."""
        return self.source.dtype

    @property
    def fingerprint(self) -> str:
        """A hash that changes when an input, a label or the order changes."""
        rows, labels = (np.ascontiguousarray(a, np.int64).data for a in (self.rows, self.labels))
        return digest(self.source.fingerprint, rows, labels)

    def read(self, positions: np.ndarray) -> np.ndarray:
        """Return the inputs `[n, ...]` of the examples at `positions`, integers `[n]`."""
        return self.source.read(self.rows[positions])

    def batches(self, batch_size: int) -> Iterator[np.ndarray]:
        """Yield the inputs `[n, ...]` in the split's own order, read as they are asked for."""
        for start in range(0, len(self), batch_size):
            yield self.read(np.arange(start, min(start + batch_size, len(self))))

    def take(self, indices: np.ndarray) -> "Split":
        """Return the examples at `indices` (integers or a boolean mask, `[N]`), in that order."""
        return Split(self.source, self.labels[indices], self.rows[indices])

    def dataset(
        self,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        augment: tuple[str, ...] = (),
        first_epoch: int = 0,
    ) -> "tf.data.Dataset":
        """Return the examples as a dataset of batches, made ahead of their use.

        Every iteration over it is an epoch; `fit` takes it with `shuffle=False`. Errors in reading
        inputs come as TensorFlow's; the context manager `original_errors` puts the sentence in
        their place.

        Args:
            batch_size: Examples in a batch; the last one may be shorter.
            shuffle_seed: Seed of a new order in every epoch, in which each example comes once; None
                for the split's own order.
            augment: Names out of `augmentation.AUGMENTATIONS`. What is changed, and how, depends on
                the seed, the epoch and the batch.
            first_epoch: Number of the epoch that the first iteration is.

        Returns:
            Pairs of inputs `[n, ...]` and labels `[n]`; `batches` yields inputs alone.

        Raises:
            UsageError: If one batch is larger than the memory that data may take, or the inputs
                cannot be augmented.
        """
        from .pipeline import batches

        return batches(
            self,
            batch_size,
            shuffle_seed=shuffle_seed,
            augment=augment,
            first_epoch=first_epoch,
        )


def checked_split(
    inputs: np.ndarray, labels: np.ndarray, where: str, fingerprint: str | None = None
) -> Split:
    """Check arrays from an unknown source and make a `Split` of them.

    Args:
        inputs: Array `[N, ...]`, N ≥ 1, uint8 or floating. Floats become float32; pixels without a
            channel axis, uint8 `[N, H, W]`, become `[N, H, W, 1]`.
        labels: Integer array `[N]`; becomes int64.
        where: Description of the arrays for an error message.
        fingerprint: As for `MemoryArray`.

    Returns:
        The split: one label per input, every input finite.

    Raises:
        DataError: If the arrays are empty, differ in length, or have another rank or dtype, or if
            an input is NaN or infinite.
    """
    labels = checked_labels(labels, where)
    if inputs.ndim < 2:
        raise DataError(
            f"Expected inputs of shape [N, ...]. Received: shape {inputs.shape} in {where}. "
            "Reshape single features with x.reshape(-1, 1)."
        )
    if len(inputs) != len(labels):
        raise DataError(
            f"Expected one label for each input. Received: {len(inputs)} inputs and "
            f"{len(labels)} labels in {where}."
        )
    if inputs.size == 0:
        raise DataError(
            f"Expected at least one example. Received: inputs of shape {inputs.shape} in {where}."
        )
    return Split(MemoryArray(standard_inputs(inputs, where), fingerprint), labels)


def checked_labels(labels: np.ndarray, where: str) -> np.ndarray:
    """Return labels of an unknown source as int64.

    Args:
        labels: Integer array `[N]`.
        where: Description of the labels for an error message.

    Raises:
        DataError: If the array has another rank or dtype.
    """
    if labels.ndim != 1:
        raise DataError(
            f"Expected labels of shape [N]. Received: shape {labels.shape} in {where}. "
            "Flatten a column with y.reshape(-1); turn one-hot rows into numbers with y.argmax(-1)."
        )
    if labels.dtype.kind not in "iu":
        raise DataError(
            f"Expected whole numbers as labels. Received: dtype {labels.dtype} in {where}. "
            'Number the classes from 0 and convert with y.astype("int64").'
        )
    return labels.astype(np.int64)


def standard_inputs(inputs: np.ndarray, where: str) -> np.ndarray:
    """Return uint8 inputs with a channel axis, and floats as float32.

    Args:
        inputs: Array `[N, ...]`.
        where: Description of the inputs for an error message.

    Raises:
        DataError: If the dtype is another one, or an input is NaN or infinite.
    """
    if inputs.dtype == np.uint8:
        return inputs[..., np.newaxis] if inputs.ndim == 3 else inputs
    if inputs.dtype.kind != "f":
        raise DataError(
            "Expected inputs of dtype uint8 (pixels, 0 to 255) or float (features, used as they "
            f"are). Received: dtype {inputs.dtype} in {where}. Convert them with "
            'x.astype("uint8") or x.astype("float32").'
        )
    with np.errstate(over="ignore"):  # reported below as infinite
        inputs = inputs.astype(np.float32)
    bad = np.count_nonzero(~np.isfinite(inputs))
    if bad:
        raise DataError(
            f"Expected finite inputs. Received: {bad} values that are NaN or infinite (as float32) "
            f"in {where}. Repair or remove these examples."
        )
    return inputs


@dataclass(frozen=True, eq=False)
class Task:
    """A classification task: its classes, and disjoint examples to train, tune and test on.

    Attributes:
        name: Letters, digits, `.`, `_`, `-`, beginning with a letter or digit, so that it can name
            a Keras layer, a TF Serving signature and a file.
        classes: The names of the C classes, in the order of their labels.
        train: Training examples; every class occurs.
        validation: Examples held out from training, to choose hyperparameters by.
        test: The source's own test examples, to evaluate on.

    Raises:
        UsageError: If the name cannot be used.
        DataError: If a split is empty, a label is not in 0..C-1, a class has no training example,
            or the splits differ in shape or dtype of their inputs.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

    def __post_init__(self):
        check_name(self.name, "task")
        for role, split in self.splits.items():
            self._check_split(role, split)
        missing = np.setdiff1d(np.arange(len(self.classes)), self.train.labels)
        if missing.size:
            names = one_of(self.classes[label] for label in missing)
            raise DataError(
                "Expected training examples of every class. Received: none of class "
                f"{names} in task '{self.name}'. Add examples, or leave the class out "
                "with the key `classes`."
            )

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name: `train`, `validation`, `test`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis."""
        return self.train.input_shape

    @property
    def fingerprint(self) -> str:
        """A hash that changes when an example of any split changes, or moves."""
        return digest(*(split.fingerprint for split in self.splits.values()))

    @property
    def data_fingerprint(self) -> str:
        """A hash that changes with the examples, but not with the seed that divides them."""
        learned = Split.joined(self.train, self.validation)
        in_order = learned.take(np.argsort(learned.rows, kind="stable"))
        return digest(in_order.fingerprint, self.test.fingerprint)

    def _check_split(self, role: str, split: Split) -> None:
        where = f"the {role} split of task '{self.name}'"
        if len(split) == 0:
            raise DataError(
                f"Expected at least one example in {where}. Received: none. Give it more examples "
                "of its classes."
            )
        check_labels(split.labels, self.classes, where)
        if _describe(split) != _describe(self.train):
            raise DataError(
                f"Expected inputs like the training data's, {_describe(self.train)}. Received: "
                f"{_describe(split)} in {where}. Bring both to one shape and dtype (for images in "
                "a folder or from TFDS, set `image_size`)."
            )


@dataclass(frozen=True, eq=False)
class LearnedTask(Task):
    """A task that was learned earlier, and of which no examples are left: its splits are empty."""

    @classmethod
    def without_examples(
        cls, name: str, classes: tuple[str, ...], input_shape: tuple[int, ...], dtype: np.dtype
    ) -> "LearnedTask":
        """Return a task of which its classes and the kind of its inputs are known.

        Args:
            name: As for `Task`.
            classes: As for `Task`.
            input_shape: Shape of one input.
            dtype: Type of the inputs.

        Raises:
            UsageError: If the name cannot be used.
        """
        none = Split(np.empty((0, *input_shape), dtype), np.empty(0, np.int64))
        return cls(name, classes, none, none, none)

    def __post_init__(self):
        check_name(self.name, "task")


@dataclass(frozen=True, eq=False)
class TaskStream:
    """Tasks in the order in which one network learns them.

    Attributes:
        name: Name of the stream, also of its results; the same characters as in a task's name.
        scenario: "task" if the task is known at test time, "domain" if it is unknown and all tasks
            share the same classes, "class" if it is unknown and all classes of all tasks are told
            apart. Labels are 0..C-1 within each task in every scenario.
        tasks: At least one task, with different names.
        rescale: `(scale, offset)`: the model's first layer computes `scale * inputs + offset`, so
            that a served model takes raw inputs. Both are numbers, or for tables lists of one for
            each input.
        builtin: Whether this is one of the streams of `builtin_names()`, which have training
            recipes of their own. A user's stream of the same name is not.
        left_out: What could not be decoded and was left out, by its path or name.
        usual_scenario: The scenario that the stream's definition names; None if it is `scenario`.
        columns: What the inputs of tables are, in their order; empty for other inputs.
        resize: How images were resized, one of `images.RESIZE_MODES`; None if none were.

    Raises:
        UsageError: If there is no task, a name cannot be used or is used twice, the scenario is
            unknown, the tasks' inputs differ in shape or dtype, a task of a stream that is not
            class-incremental has a single class, or the tasks of a domain-incremental stream have
            different numbers of classes.
    """

    name: str
    scenario: str
    tasks: tuple[Task, ...]
    rescale: Rescale
    builtin: bool = False
    left_out: tuple[str, ...] = ()
    usual_scenario: str | None = None
    columns: tuple[str, ...] = ()
    resize: str | None = None

    def __post_init__(self):
        check_name(self.name, "stream")
        check_scenario(self.scenario)
        check_task_names([task.name for task in self.tasks])
        self._check_inputs()
        self._check_classes()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, without the batch axis; the same in all tasks."""
        return self.tasks[0].input_shape

    @property
    def fingerprint(self) -> str:
        """A hash that changes when an example of any task changes, or moves."""
        return digest(*(task.fingerprint for task in self.tasks))

    @property
    def data_fingerprint(self) -> str:
        """A hash that changes with the examples, but not with the seed that divides them."""
        return digest(*(task.data_fingerprint for task in self.tasks))

    @property
    def resize_of_files(self) -> str | None:
        """How files of images become inputs, as `export_version` takes it; None if inputs are none.

        "none" are images that were not resized: other sizes are refused. Of a network that was
        trained elsewhere it is unknown, and None too.
        """
        if all(isinstance(task, LearnedTask) for task in self.tasks):
            return None
        shape, dtype = self.input_shape, self.tasks[0].train.dtype
        if dtype != np.uint8 or len(shape) != 3 or shape[-1] not in (1, 3):
            return None
        return self.resize or "none"

    def _check_inputs(self):
        first = self.tasks[0]
        for task in self.tasks[1:]:
            if _describe(task.train) != _describe(first.train):
                raise UsageError(
                    "Expected inputs of one shape and dtype in all tasks, for one network. "
                    f"Received: {_describe(first.train)} in task '{first.name}' and "
                    f"{_describe(task.train)} in task '{task.name}'. Set `image_size` for "
                    "folders and TFDS images, or convert the arrays."
                )

    def _check_classes(self):
        counts = {task.name: len(task.classes) for task in self.tasks}
        for name, count in counts.items():
            if count < 2 and self.scenario != "class":
                raise UsageError(
                    f"Expected at least 2 classes in each task. Received: {count} in task "
                    f"'{name}'. Every prediction for a task with one class is right; add a class."
                )
        if self.scenario == "domain" and len(set(counts.values())) > 1:
            raise UsageError(
                "Expected the same number of classes in all tasks of a domain-incremental "
                f"stream. Received: {counts} in stream '{self.name}'. Choose classes with the key "
                '`classes`, or use scenario = "task" (`--scenario task`).'
            )


def _describe(split):
    """Return shape and dtype of one input, for comparison and for error messages."""
    return f"{split.dtype} of shape {list(split.input_shape)}"


def check_name(name: str, what: str, where: str = "") -> None:
    """Check that a name can also name a Keras layer, a TF Serving signature and a file.

    Args:
        name: The name.
        what: "task" or "stream", for the error message.
        where: Where the name stands, for the error message.

    Raises:
        UsageError: If another character than letters, digits, `.`, `_` and `-` occurs, the first
            one is not a letter or digit, it has more than 100 characters, or it is
            `serving_default`.
    """
    place = f" in {where}" if where else ""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"Expected a {what} name of letters, digits, '.', '_' and '-' that begins with a "
            f"letter or digit. Received: {name!r}{place}. Rename the {what}: it also names a "
            "layer, a served signature and files."
        )
    if len(name) > _LONGEST_NAME:
        raise UsageError(
            f"Expected a {what} name of at most {_LONGEST_NAME} characters. Received: {len(name)} "
            f"characters, '{name[:10]}…'{place}. Shorten it: it also names folders."
        )
    if name == _RESERVED_NAME:
        raise UsageError(
            f"Expected another {what} name than '{_RESERVED_NAME}', the signature of an exported "
            f"model that answers for all tasks. Rename the {what}."
        )


def check_labels(labels: np.ndarray, classes: Sequence[str], where: str) -> None:
    """Check that every label is the number of a class.

    Args:
        labels: Integers `[N]`.
        classes: Names of the classes.
        where: Description of the labels for the error message.

    Raises:
        DataError: If there is no class, or a label is not in 0..C-1.
    """
    if not classes:
        raise DataError(
            f"Expected at least one class. Received: none in {where}. Name the class of every "
            "label."
        )
    unknown = labels[(labels < 0) | (labels >= len(classes))]
    if unknown.size:
        raise DataError(
            f"Expected labels from 0 to {len(classes) - 1}, one for each class. "
            f"Received: label {unknown[0]} in {where}. Correct the labels, or remove "
            "these examples."
        )


def check_task_names(names: Iterable[str]) -> None:
    """Check the names of a stream's tasks.

    Raises:
        UsageError: If there is no task, or a name cannot be used or is used twice.
    """
    counts = Counter(names)
    if not counts:
        raise UsageError("Expected at least one task. Received: none. Add a [[task]].")
    for name, count in counts.items():
        check_name(name, "task")
        if count > 1:
            raise UsageError(
                f"Expected different task names. Received: '{name}' {count} times. Rename all "
                "but one."
            )


def check_scenario(scenario: str) -> None:
    """Check the name of a scenario.

    Raises:
        UsageError: If `scenario` is not one of `SCENARIOS`.
    """
    if scenario not in SCENARIOS:
        raise UsageError(
            f"Expected a scenario among {one_of(SCENARIOS)}. Received: {scenario!r}."
            f"{did_you_mean(scenario, SCENARIOS)}"
        )
