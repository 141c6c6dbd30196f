"""What learns: a network with a method of continual learning, compiled once for many runs."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import cast

import keras
import numpy as np
import tensorflow as tf

from keras_mas.arrays import load_arrays, save_arrays
from keras_mas.binding import moving_batch_norms
from keras_mas.errors import UsageError
from keras_mas.finite import FitDivergedError
from keras_mas.heads import AllHeads
from keras_mas.methods import load_method
from keras_mas.methods.quadratic import QuadraticMethod
from keras_mas.penalty import UnstablePenaltyWarning

from .devices import Devices
from .heads import heads_of
from .loop import CompiledLoop
from .network import Network
from .optimizers import optimizer_of
from .settings import Recipe, Settings
from .stability_decay import margin_of, strength_of_method
from .tasks import Split, Task, TaskStream
from .under_way import TaskUnderWay

# Training examples of a task that its cross-entropy is measured on, at most.
CROSS_ENTROPY_EXAMPLES = 1000


class Learner:
    """Learns the tasks of a stream one after the other, in one run or in many.

    What was built and traced for one run serves the next one, unless the next one has another
    network, optimizer, method or penalty: the seed, λ and the learning rate are values of
    variables.

    Args:
        stream: The tasks.
        devices: What every batch is divided among; None for one device.
    """

    def __init__(self, stream: TaskStream, devices: Devices | None = None):
        self.stream = stream
        self.devices = Devices() if devices is None else devices
        self.head_of = heads_of(stream)
        self._structure: tuple = ()

    def begin(self, settings: Settings, stream: TaskStream | None = None) -> None:
        """Begin a run: initial weights, and nothing remembered.

        Args:
            settings: How the tasks are learned.
            stream: The tasks with other examples, such as those that another seed holds out; None
                for those of the last run.

        Raises:
            ValueError: If the heads or the inputs of the stream are others than before.
        """
        self.devices.check_method(settings.method, load_method(settings.method).needs_one_device)
        if stream is not None:
            self._take(stream)
        structure = structure_of(settings)
        if structure != self._structure:
            keras.backend.clear_session(free_memory=False)
            with self.devices.scope():
                self._build(settings)
            self._structure = structure
        self.settings = settings
        self.network.initialize(settings.seed)
        self.network.load(self._head(0))  # where it is protected, it begins there
        self.method.restart(strength_of_method(settings.strength))
        _reset(self.optimizer)

    def learn(
        self,
        number: int,
        split: Split,
        *,
        earlier: Sequence[Split] = (),
        callbacks: Sequence[keras.callbacks.Callback] = (),
        verbose: int = 0,
        pause_every: int | None = None,
        begun: TaskUnderWay | None = None,
    ) -> dict[str, float]:
        """Learn a task.

        Args:
            number: Number of the task, from 0.
            split: Its training examples.
            earlier: Those of the tasks before it, for a method that learns all tasks together.
            callbacks: As for `model.fit`.
            verbose: As for `model.fit`.
            pause_every: As for `CompiledLoop.fit`.
            begun: The same task after some epochs, to go on from; None to begin it.

        Returns:
            The metrics of the last epoch, by name; none if `begun` had ended it.

        Raises:
            DamagedError: If `begun` is of something else than this task.
            FitDivergedError: If the loss or a weight becomes NaN or infinite.
        """
        recipe, head = self.settings.recipe, self._head(number)
        learning_rate, epochs = recipe.for_task(number)
        seed = _task_seed(self.settings.seed, number)
        examples = self._labelled(number, split)
        if self.method.learns_all_tasks:
            self.network.initialize(self.settings.seed)
            all_splits = map(self._labelled, count(), [*earlier, split])
            examples = functools.reduce(Split.joined, all_splits)
        # Tasks that are learned together, from the initial weights, are one first task.
        self.network.begin_task(0 if self.method.learns_all_tasks else number, seed)
        model = self.network.load(head)
        if recipe.optimizer_state == "fresh" or self.method.learns_all_tasks:
            _reset(self.optimizer)
        self.optimizer.learning_rate = learning_rate
        with self.devices.scope():  # for variables that a method makes
            self.method.before_task(model, _Batches(examples, recipe.batch_size))
        if begun is not None:
            with begun.naming_damage(), self.devices.scope():
                self._go_on(model, begun.arrays)
        logs = self._loop(head).fit(
            examples,
            epochs=epochs,
            batch_size=recipe.batch_size,
            augment=recipe.augmentations,
            # A seed per task, so that a continued run gives what an uninterrupted one would.
            # (`set_random_seed` would have every function compiled anew.)
            seed=seed,
            callbacks=[*callbacks, *self.method.callbacks()],
            verbose=verbose,
            pause_every=pause_every,
            initial_epoch=0 if begun is None else begun.epochs,
        )
        self.network.keep(head)
        return logs

    def under_way(self, number: int) -> dict[str, dict[str, np.ndarray]] | None:
        """Return everything that learning a task changes, as it is between two epochs.

        Args:
            number: Number of the task, from 0.

        Returns:
            Groups of arrays by name; None if the method cannot go on within a task.
        """
        model = self.network.models[self.network.logits(self._head(number))]
        own = self.method.under_way(model)
        if own is None:
            return None
        values = {
            group: {str(k): variable.numpy() for k, variable in enumerate(variables)}
            for group, variables in self._changed_by(model).items()
        }
        return values | {"method": own}

    def _go_on(self, model, arrays):
        for group, variables in self._changed_by(model).items():
            if len(variables) != len(arrays[group]):
                raise ValueError(f"it has {len(arrays[group])} {group} variables")
            for k, variable in enumerate(variables):
                variable.assign(arrays[group][str(k)])
        self.method.go_on(model, arrays["method"])

    def _changed_by(self, model):
        """Return the variables that training a model changes, in groups."""
        met = [model.labels_met] if isinstance(model, AllHeads) else []
        return {"model": [*model.variables, *met], "optimizer": self.optimizer.variables}

    def largest_strength(self, number: int, split: Split) -> float:
        """Return the first λ that stability decay tries for a task, of which λ is to be found.

        Args:
            number: Number of the task, from 0.
            split: Its training examples.
        """
        if not isinstance(self.method.strength, str):
            return self.method.strength  # the one of the task before
        recipe = self.settings.recipe
        self.optimizer.learning_rate, epochs = recipe.for_task(number)
        model = self.network.load(self._head(number))
        steps = epochs * -(-len(split) // recipe.batch_size)
        return self.method.memory.take_strength(model, steps)

    def tried_accuracy(self, number: int, strength: float) -> float:
        """Return the accuracy that a task's validation data has if it is learned with a λ.

        Only the task's own training and validation data are read. What has been learned stays as it
        is, but λ of the method is then the one that was tried.

        Args:
            number: Number of the task, from 0.
            strength: λ.

        Returns:
            A fraction; 0 if the training diverged.
        """
        task = self.stream.tasks[number]
        variables = [*self.network.weights, *self.optimizer.variables]
        before = [variable.numpy() for variable in variables]
        self.method.strength = strength
        try:
            with _without_warning():
                self.learn(number, task.train)
            accuracy = self.accuracy(task, "validation")
            assert accuracy is not None  # no task that is learned lacks validation data
            return accuracy
        except FitDivergedError:
            return 0.0
        finally:
            for variable, value in zip(variables, before, strict=True):
                variable.assign(value)

    def hold_trunk(self, split: Split, on_progress: Callable | None = None) -> None:
        """Have a method that needs inputs alone hold what the trunk computes of some of them."""
        recipe = self.settings.recipe
        total = min(recipe.max_examples, len(split))
        cast(QuadraticMethod, self.method).hold(
            self.network.trunk,
            _Batches(split, recipe.batch_size),
            max_examples=recipe.max_examples,
            on_progress=on_progress and (lambda examples, _: on_progress(examples, total)),
        )

    def after_task(self, number: int, split: Split, on_progress: Callable | None = None) -> None:
        """Have the method take note of the task that was just learned."""
        recipe = self.settings.recipe
        total = min(recipe.max_examples, len(split))
        is_found = margin_of(self.settings.strength) is not None
        quietly = _without_warning() if is_found else contextlib.nullcontext()
        with quietly, self.devices.sharing_importance():
            self.method.after_task(
                self.network.load(self._head(number)),
                _Batches(self._labelled(number, split), recipe.batch_size),
                max_examples=recipe.max_examples,
                on_progress=on_progress and (lambda examples, _: on_progress(examples, total)),
            )

    def accuracy(self, task: Task, split: str) -> float | None:
        """Return the accuracy on a split of a task; None if it has no examples."""
        if not len(task.splits[split]):
            return None
        head = self.head_of[task.name]
        self.network.load(head)
        examples = self._with_labels_of(head, task.splits[split])
        return self._loop(head).accuracy(examples, self.settings.recipe.batch_size)

    def cross_entropy(self, task: Task) -> float:
        """Return the mean cross-entropy over examples of a task, in nats, test data left out.

        They are its validation data and up to `CROSS_ENTROPY_EXAMPLES` of its training data.
        """
        rows = np.random.default_rng(0).permutation(len(task.train))[:CROSS_ENTROPY_EXAMPLES]
        split = Split.joined(task.train.take(np.sort(rows)), task.validation)
        head = self.head_of[task.name]
        self.network.load(head)
        batch_size = self.settings.recipe.batch_size
        return self._loop(head).cross_entropy(self._with_labels_of(head, split), batch_size)

    def save_optimizer(self, path: Path) -> None:
        """Write what the optimizer goes on from, if it is kept, to a `.npz` file."""
        if self.settings.recipe.optimizer_state == "kept":
            arrays = {str(k): v.numpy() for k, v in enumerate(self.optimizer.variables)}
            save_arrays(path, arrays)

    def load_optimizer(self, path: Path) -> None:
        """Take over what `save_optimizer` wrote, if anything; ValueError if it is another one's."""
        if self.settings.recipe.optimizer_state == "kept":
            load_arrays(path, self._set_optimizer, "the state of an optimizer")

    def _set_optimizer(self, arrays):
        # Of heads of another size, which a run that is continued gets, there are none yet: such
        # variables come last, and begin at zero.
        for k, variable in enumerate(self.optimizer.variables[: len(arrays)]):
            variable.assign(arrays[str(k)])

    def accuracies_under_way(self, number: int, split: str) -> list[float | None]:
        """Return the accuracy on every task up to the one that is being learned, in its callback.

        The training goes on from the same weights.

        Args:
            number: Number of the task under way, from 0.
            split: As for `accuracy`.
        """
        self.network.keep(self._head(number))  # heads of one shape take turns in one model
        # The task under way comes last, so that its head is in the model again.
        return [self.accuracy(task, split) for task in self.stream.tasks[: number + 1]]

    def _take(self, stream):
        """Have the run that begins learn from the examples of another stream."""
        if _structure_of(stream) != _structure_of(self.stream):
            raise ValueError(
                f"Expected a stream with the heads and inputs of '{self.stream.name}'. Received: "
                f"'{stream.name}' with others. Make a Learner of this stream."
            )
        self.stream = stream

    def _build(self, settings):
        recipe = settings.recipe
        strength = strength_of_method(settings.strength)
        self.method = load_method(settings.method)(strength, settings.penalty)
        self.network = Network(
            self.stream, recipe, self.method.model, all_heads=self.method.trains_all_heads
        )
        self._check_shared_weights(settings)
        if recipe.batch_norm != Recipe.batch_norm:
            warn_of_batch_norm(recipe, self.network.trunk)
        self.loops = {}
        self.optimizer = optimizer_of(recipe.optimizer)
        for logits, model in self.network.models.items():
            model.compile(
                optimizer=self.optimizer,
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=[self.devices.accuracy()],
            )
            self.loops[logits] = CompiledLoop(model, self.stream.tasks[0].train.dtype, self.devices)
        models = self.network.models.values()
        weights = {id(weight): weight for model in models for weight in model.trainable_variables}
        self.optimizer.build(list(weights.values()))
        # No later task trains the head of a single task; a shared head needs protection too.
        [shared, *_] = models
        protected = self.network.trunk if self.stream.scenario == "task" else shared
        # What becomes of batch normalization is the recipe's to say; the network does it.
        self.method.protect(protected, batch_norm="update")

    def _check_shared_weights(self, settings):
        if (
            self.stream.scenario == "task"
            and settings.has_strength
            and not self.network.trunk.trainable_weights
        ):
            raise UsageError(
                f"Expected weights that tasks share and train, for method '{settings.method}' to "
                "protect. Received: a backbone that is frozen as a whole, so that a task trains "
                "its own head alone. Use `--method finetune`, lower `--freeze`, or save a network "
                "of your own with `trainable = True`."
            )

    def _head(self, number):
        return self.head_of[self.stream.tasks[number].name]

    def _loop(self, head):
        return self.loops[self.network.logits(head)]

    def _labelled(self, number, split):
        """Return examples of a task with labels that are numbers of logits."""
        return self._with_labels_of(self._head(number), split)

    def _with_labels_of(self, head, split):
        first = self.network.first_logit(head) + head.offset
        return Split(split.source, split.labels + first, split.rows)


def warn_of_batch_norm(recipe: Recipe, trunk: keras.Model) -> None:
    """Warn if something is to become of moving statistics, and there are none.

    Args:
        recipe: What was asked for; its default is for whoever knows that it was given.
        trunk: The backbone.
    """
    if not moving_batch_norms(trunk):
        warnings.warn(
            f"--batch-norm {recipe.batch_norm} makes no difference: nothing in the backbone "
            f"'{recipe.backbone}' has moving statistics",
            stacklevel=2,
        )


def structure_of(settings: Settings) -> tuple[str | None, ...]:
    """Return what is built and traced anew if it differs between two runs."""
    recipe = settings.recipe
    return (
        recipe.backbone,
        recipe.weights,
        recipe.freeze,
        recipe.batch_norm,
        recipe.optimizer,
        settings.method,
        settings.penalty,
    )


class _Batches:
    """The examples of a split in batches (inputs, labels), as often as they are asked for."""

    def __init__(self, split: Split, batch_size: int):
        self.split, self.batch_size = split, batch_size

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        starts = range(0, len(self.split), self.batch_size)
        labels = np.split(self.split.labels, starts[1:])
        return zip(self.split.batches(self.batch_size), labels, strict=True)


def _structure_of(stream):
    """Return what a network is built by; the heads in their order, in which they get weights."""
    heads = list(heads_of(stream).items())
    return stream.scenario, heads, stream.input_shape, stream.tasks[0].train.dtype, stream.rescale


@contextlib.contextmanager
def _without_warning():
    """Say nothing of a λ that is too large for the optimizer: it is going to be lowered."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnstablePenaltyWarning)
        yield


def _reset(optimizer):
    """Make an optimizer as good as new: Adam's moments and a momentum begin at zero."""
    for variable in optimizer.variables:
        variable.assign(tf.zeros_like(variable))


def _task_seed(seed, number):
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
