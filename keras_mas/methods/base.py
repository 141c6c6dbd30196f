"""What every method of continual learning has: the class that the command line calls."""

import abc
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np

from ..arrays import load_arrays, save_arrays
from ..choices import checked_penalty, kappa_of
from ..errors import UsageError
from ..states import SAVED_BY, checked_strength


class Method:
    """What a method does around the training of a task; here: nothing.

    With the command line, which calls all of this itself, or around `model.fit`:

        method = load_method("ewc")(strength=100.0)
        model = method.model(inputs, outputs)
        method.protect(model)
        model.compile(...)
        for x, y in tasks:
            method.before_task(model, x, y)
            model.fit(x, y, callbacks=method.callbacks())
            method.after_task(model, x, y)
        with method.evaluated():
            model.evaluate(...)

    `model.save("model.keras")` keeps the network, and `method.save(path)` what the method
    remembers. In another process a model is made of the loaded one, with its weights:

        loaded = keras.models.load_model("model.keras")
        method = load_method("lwf")(strength=1.0)
        model = method.model(loaded.inputs[0], loaded.heads)
        method.protect(model)
        model.compile(...)
        method.load(path, tasks=1)

    `heads` are those of a model with `trains_all_heads`, to which new ones can be added; for others
    it is `loaded.outputs[0]`. Where the loaded model is a `MASModel`, which holds its weights by a
    memory of its own, `loaded.memory.release()` comes first.

    Tasks with heads of their own have a model each around one trunk, which is then what is
    protected: `MultiHead(trunk, method.model)` makes them. With `trains_all_heads` a model has the
    heads of all tasks so far, and `MultiHead(trunk)` makes these.

    Args:
        strength: λ ≥ 0, or "auto", as for `SynapticMemory`; None for the default.
        penalty: Name out of `keras_mas.choices.PENALTIES`: where a quadratic penalty acts.

    Raises:
        ValueError: If λ is negative or no finite number, or there is no such penalty.
        UsageError: If λ is "auto", and the method cannot find it.

    Attributes:
        has_strength: Whether λ makes a difference. If not, it is neither searched for nor reported.
        takes_auto: Whether λ may be "auto".
        has_penalty: Whether `penalty` makes a difference.
        measures_examples: Whether `after_task` reads examples, so that `max_examples` makes a
            difference.
        first_task_depends_on_strength: Whether λ makes a difference to the first task already. If
            not, runs that differ in λ alone share what was learned of it.
        answers_depend_on_after_task: Whether `after_task` makes a difference to what the models
            answer, and not only to what is learned after it. If not, a run from which nothing goes
            on leaves it out after the last task.
        default_strength: λ unless another one is given.
        default_decoupled_strength: The same with a decoupled penalty; None if that is no other.
        trains_all_heads: Whether the heads of earlier tasks are trained with a new one. `model`
            then takes the logits of all heads, as an `AllHeadsModel` does, and labels are numbers
            of these logits.
        needs_inputs_alone: Whether `importance` needs a model and inputs alone, no labels and
            nothing of the training, so that Ω of inputs that come later can be added.
        needs_one_device: Why a training step cannot be divided among several devices, as the end of
            a sentence "…, which"; None if it can: the losses that the model has for the parts of a
            batch add up to that of the whole (see `keras_mas.replicas`).
        learns_all_tasks: Whether every task is learned together with the data of all earlier ones,
            from the initial weights: who calls `fit` gives it these data and these weights.
    """

    has_strength: ClassVar[bool] = False
    takes_auto: ClassVar[bool] = False
    has_penalty: ClassVar[bool] = False
    measures_examples: ClassVar[bool] = True
    first_task_depends_on_strength: ClassVar[bool] = True
    answers_depend_on_after_task: ClassVar[bool] = True
    default_strength: ClassVar[float] = 1.0
    default_decoupled_strength: ClassVar[float | None] = None
    trains_all_heads: ClassVar[bool] = False
    learns_all_tasks: ClassVar[bool] = False
    needs_inputs_alone: ClassVar[bool] = False
    needs_one_device: ClassVar[str | None] = (
        "does not say that it can divide a training step (`needs_one_device = None` in its class)"
    )

    def __init__(self, strength: float | str | None = None, penalty: str = "in_loss"):
        given = self.default_strength_with(penalty) if strength is None else strength
        self.strength = checked_strength_of(type(self), given)
        self.penalty = checked_penalty(penalty)

    @classmethod
    def default_strength_with(cls, penalty: str) -> float:
        """Return λ unless another one is given, where the penalty acts as given."""
        decoupled = cls.default_decoupled_strength if penalty == "decoupled" else None
        return cls.default_strength if decoupled is None else decoupled

    def model(self, inputs: Any, outputs: Any, name: str | None = None) -> keras.Model:
        """Return the `keras.Model` in which a task is learned; arguments as for `keras.Model`."""
        return keras.Model(inputs, outputs, name=name)

    def protect(self, shared: keras.Model, *, batch_norm: str | None = None) -> None:
        """Be told, before the first task, what all tasks share: a trunk or a whole model.

        Args:
            shared: The trunk or model.
            batch_norm: What becomes of the statistics of its batch normalization, as for
                `SynapticMemory.protect`. Around `model.fit`, None: a method with a memory freezes
                them after the first task, with a warning. The command line, which freezes them or
                keeps them per task itself, says "update".
        """

    def restart(self, strength: float | str) -> None:
        """Forget every task and take another λ: a run begins, with the weights as they are."""
        self.strength = checked_strength_of(type(self), strength)

    def before_task(self, model: keras.Model, x: Any, y: Any = None) -> None:
        """Prepare for a task, before its first training step.

        Args:
            model: Model of the task, trunk and head, as the earlier tasks left them.
            x: The task's training inputs, as `model.fit` takes them; or batches (inputs, labels).
            y: Their labels, if `x` is arrays of inputs alone.
        """

    def callbacks(self) -> list[keras.callbacks.Callback]:
        """Return what is to follow the training of every task, for `model.fit`."""
        return []

    def under_way(self, model: keras.Model) -> dict[str, np.ndarray] | None:
        """Return what changes in the method itself while a task is being learned.

        The command line saves it after an epoch, with the variables of the model and of the
        optimizer, and so goes on within a task. None: it cannot, and begins the task anew. A class
        that derives from one that can, and changes more during a task, adds it here.

        Args:
            model: Model of the task.

        Returns:
            Arrays by name, none in the simplest case; or None, which is what a method returns that
            does not say what it changes.
        """
        return None

    def go_on(self, model: keras.Model, arrays: dict[str, np.ndarray]) -> None:
        """Take over what `under_way` returned, after `before_task` of the same task.

        Args:
            model: Model of the task, with its weights of then.
            arrays: As `under_way` returned them.

        Raises:
            Exception: Of any class, if they are of something else.
        """

    def after_task(
        self,
        model: keras.Model,
        x: Any,
        y: Any = None,
        *,
        max_examples: int | None = None,
        on_progress: Callable | None = None,
    ) -> None:
        """Take note of what was learned.

        Args:
            model: Model of the task, just fitted.
            x: As for `before_task`, in random order.
            y: As for `before_task`.
            max_examples: How many examples importance is measured on; None for all.
            on_progress: As for `compute_importance`.
        """

    def evaluated(self) -> contextlib.AbstractContextManager[None]:
        """Put the weights that are evaluated, saved and exported in place, within the block.

        They are those that the next task goes on from, unless a method merges weights.
        """
        return contextlib.nullcontext()

    def save(self, path: Path) -> None:
        """Write what the method remembers to a `.npz` file, if it remembers anything."""

    @property
    def free_share(self) -> float | None:
        """The share of weights that are free to learn the next task, if λ is "auto"."""
        return None

    def load(self, path: Path, tasks: int) -> None:
        """Take over what `save` wrote; the weights are those that were saved beside it.

        λ is no part of it: it stays that of this method.

        Args:
            path: The file.
            tasks: How many tasks had been learned then.

        Raises:
            ValueError: If the file is of another number of tasks, or holds something else than this
                kind of method writes.
        """


class RememberingMethod(Method, abc.ABC):
    """A method that remembers something of the tasks, which it saves with its own name."""

    @abc.abstractmethod
    def state(self) -> dict[str, np.ndarray]:
        """Return what `save` writes, as a flat dict of arrays."""

    @abc.abstractmethod
    def restore(self, arrays: dict[str, np.ndarray], tasks: int) -> None:
        """Take over a `state`, or leave everything as it is.

        Args:
            arrays: Dict as `state` returns it.
            tasks: How many tasks had been learned then.

        Raises:
            Exception: Of any class, if it is of another number of tasks, or no such state.
        """

    def save(self, path: Path) -> None:
        """Write what the method remembers, and which method it is."""
        save_arrays(path, self.state() | {SAVED_BY: np.array(_name_of(self))})

    def load(self, path: Path, tasks: int) -> None:
        """Take over what `save` wrote; arguments and errors as in `Method`."""

        def restore(arrays):
            # There is none in the files of earlier versions and of `SynapticMemory.save`.
            saved_by = str(arrays.pop(SAVED_BY, _name_of(self)))
            if saved_by != _name_of(self):
                raise ValueError(f"it was saved by the method {saved_by}")
            self.restore(arrays, tasks)

        what = f"what the method {_name_of(self)} remembers of {counted(tasks, 'task')}"
        load_arrays(path, restore, what)


def checked_strength_of(method: type[Method], strength: float | str) -> Any:
    """Return a strength as it is, if a class of methods can have it.

    Raises:
        ValueError: If it is no number ≥ 0 and not "auto".
        UsageError: If it is "auto", and the method cannot find λ.
    """
    if kappa_of(strength) is None:
        return checked_strength(strength)  # type: ignore[arg-type]
    check_finds_strength(method, strength)
    return strength


def check_finds_strength(method: type[Method], strength: Any) -> None:
    """Refuse a strength that stands for a way to find λ, such as "auto", of other methods.

    Raises:
        UsageError: If the method has not the penalty that λ is found for.
    """
    if not method.takes_auto:
        name = method.__module__.rpartition(".")[2]
        raise UsageError(
            f"Expected a number as strength of the method '{name}'. Received: {strength!r}, which "
            "finds λ for a quadratic penalty on weights that stays as it is during a task. Give a "
            "number, or search for it."
        )


def _name_of(method):
    """Return by what `load_method` finds the class of a method."""
    return f"{type(method).__module__}:{type(method).__qualname__}"


def counted(number: int, noun: str) -> str:
    """Return a number and what it counts: "1 task", "2 tasks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
