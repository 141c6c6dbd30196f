"""One run: a stream of tasks learned one after the other by one method, on disk and resumable."""

import contextlib
import dataclasses
import functools
import inspect
import math
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_mas import metrics
from keras_mas.errors import NotFiniteError, UsageError
from keras_mas.files import UNFINISHED, atomic_file, atomic_folder
from keras_mas.plugins import is_own, load_named
from keras_mas.versions import library_versions

from .backbones import saved, weights_digest
from .backbones.weights import digest_of_file
from .continuing import Continued
from .devices import Devices, refuse_scope
from .first_task import learned_once, link_files, share, shared_first_task
from .heads import unique_heads
from .learner import Learner
from .run_directory import (
    MEMORY,
    MODEL,
    OPTIMIZER,
    PROGRESS,
    RESULT,
    START,
    TRIES,
    UNDER_WAY,
    are,
    check_content,
    check_there,
    claimed,
    is_finished,
    is_measured_or_not,
    is_number,
    is_text,
    maps_to,
    naming_damage,
    read_json,
    read_result,
    task_folder,
    write_json,
)
from .settings import Settings
from .stability_decay import Decayed, margin_of, stability_decay
from .starting import Start
from .summary import title
from .tasks import Split, Task, TaskStream, original_errors
from .under_way import SaveUnderWay, TaskUnderWay

_PROGRESS = {
    "accuracies": are(is_measured_or_not),
    "seconds": maps_to(is_number),
    "classes": maps_to(are(is_text)),
}
_TRIES = {"task": is_number, "tries": are(are(is_number))}


class DivergedError(RuntimeError):
    """A loss, weights or an importance became NaN or infinite."""


class NotLearnedWarning(UserWarning):
    """The first task was learned no better than by always naming its most frequent class."""


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What is known when a task has been learned.

    Attributes:
        number: How many tasks have been learned, this one included.
        task: The task.
        accuracies: Row of the accuracy matrix `[T]`; None for a task without examples, here and
            in `Evaluation`.
        models: The model of every task learned so far, by the name of its head.
        classes: The class names of every such model.
        seconds: Time the task took; 0 if it was read from the run's folder.
        folder: Folder of what was saved after the task.
        history: The metrics of each epoch, by name.
        evaluations: What was measured while the task was being learned.
        strength: λ that was found for the task; None if it was given.
        free: Share of the weights that are free to learn the next task, with strength "auto".
    """

    number: int
    task: Task
    accuracies: list[float | None]
    models: dict[str, keras.Model]
    classes: dict[str, tuple[str, ...]]
    seconds: float
    folder: Path = Path()
    history: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    evaluations: Sequence["Evaluation"] = ()
    strength: float | None = None
    free: float | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What was measured while a task was being learned.

    Attributes:
        task: Number of the task under way, from 1.
        step: How many training steps of it had been taken.
        steps: Of how many.
        accuracies: Accuracy on the tasks up to it, its own the last `[task]`.
    """

    task: int
    step: int
    steps: int
    accuracies: list[float | None]


class Listener:
    """Base class of what follows the progress of a run; this one ignores it.

    Attributes:
        callbacks: Keras callbacks that follow the training of every task as they follow `fit`, such
            as those of Weights & Biases or MLflow.
    """

    callbacks: tuple[keras.callbacks.Callback, ...] = ()

    def task_started(self, number: int, task: Task, epochs: int) -> None:
        """Task `number`, counted from 1, is about to be learned in so many epochs."""

    def task_resumed(
        self, history: Mapping[str, Sequence[float]], evaluations: Sequence["Evaluation"]
    ) -> None:
        """The task that has just started goes on after epochs that another process learned.

        Args:
            history: The metrics of each of these epochs, by name.
            evaluations: What was measured in them.
        """

    def strength_tried(self, strength: float, accuracy: float) -> None:
        """The task has been learned with a λ, to see how well; of its validation data so much."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """The tasks so far have been measured while another one is being learned."""

    def importance_measured(self, examples: int, total: int | None) -> None:
        """So many examples of the task have been measured; of how many, if that is known."""

    def task_finished(self, result: TaskResult) -> None:
        """A task has been learned, or has been read from the run's folder."""


def train(
    stream: TaskStream,
    settings: Settings,
    directory: Path,
    *,
    arguments: dict | None = None,
    evaluate_on: str = "test",
    listeners: Sequence[Listener] = (),
    verbose: int = 0,
    overwrite: bool = False,
    learner: Learner | None = None,
    devices: Devices | None = None,
    first_tasks: Path | None = None,
    continued: Continued | None = None,
    start: Start | None = None,
) -> dict:
    """Learn all tasks of a stream in turn, or continue an interrupted run of the same settings.

    A finished run is not repeated: its result is read. An interrupted one goes on after the last
    epoch, or with epochs that are shorter, after one that ended a second earlier at most. The same
    seed gives the same result on the same machine, whether or not the run was interrupted.

    Args:
        stream: The tasks.
        settings: How they are learned.
        directory: Folder of the run, as `run_directory` describes it.
        arguments: What the user asked for, recorded in the result.
        evaluate_on: Split to measure accuracy on: "validation", to choose settings by; or "test",
            and then the validation data is learned from too.
        listeners: Follow the progress.
        verbose: As for `model.fit`; what Keras prints goes to standard error.
        overwrite: Whether to remove an earlier run from the folder first.
        learner: A `Learner` of this stream, or of one that differs in its examples only, that
            earlier runs have used, so that nothing is built and traced again; None for a new one.
        devices: What every batch is divided among, as `devices_of` returns it; None for one device,
            or for those of the learner. With several hosts each of them calls this function, and
            the chief alone writes the folder. The result is that of one device but for rounding,
            so that a run may go on with another number of them.
        first_tasks: Folder in which runs that differ only in what makes no difference to the first
            task, such as λ, keep what they learned of it: the first run learns it, and the others
            go on from there. Of several processes one learns it, and the others wait. None for a
            run on its own.
        continued: The finished run whose tasks are the first of the stream, and which this one goes
            on from; None for a run that learns all tasks. That run's folder is only read.
        start: A trained network, which is taken for what was learned of the one task of the stream,
            or, of which the trunk alone is taken, is held from the first task on; None for neither.

    Returns:
        The result, as `result.json` holds it.

    Raises:
        UsageError: If the folder holds anything but this run, or cannot be written to.
        InUseError: If another process is at work in the folder.
        DamagedError: If a file in the folder is damaged.
        DivergedError: If the training diverged.
        VanishedError: If somebody removes or moves the folder meanwhile.
    """
    refuse_scope()
    learner = learner or Learner(stream, devices)
    devices = learner.devices
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    description = describe(stream, settings, evaluate_on, continued)
    if start is not None:
        description |= start.description
    if continued is not None:
        old = continued.run.directory.resolve()
        if old in (directory.resolve(), *directory.resolve().parents):
            raise UsageError(
                "Expected a new folder for the run that goes on, outside of the one that it goes "
                f"on from, which stays as it is. Received: '{directory}'. Choose another one with "
                "`--output`."
            )
    shared = None
    if first_tasks is not None and settings.shares_first_task:
        shared = shared_first_task(first_tasks, description)
    elsewhere = _Elsewhere(shared, continued, start)
    with devices.own_folder(directory) as folder:
        run = _Run(stream, settings, folder, evaluate_on, listeners, verbose, learner, elsewhere)
        with claimed(folder, description, overwrite=overwrite), original_errors():
            devices.take_run(folder, description)
            _take_network(folder, start, continued)
            finished = is_finished(folder)
            if finished:
                read_result(folder)
            for number, task in enumerate(stream.tasks):
                run.task(number, task)
            if not finished:
                check_there(folder)
                run.save_network()
                write_json(folder / RESULT, run.result() | {"arguments": arguments or {}})
            (folder / UNDER_WAY).unlink(missing_ok=True)
            return read_result(folder)


def _take_network(directory, start, continued):
    """Have a user's own network in the folder too, which can then be continued on its own."""
    path = start.path if start is not None else continued and continued.run.directory / START
    if path and path.exists() and not (directory / START).exists():
        with atomic_file(directory / START) as file:
            file.write(path.read_bytes())


def finished_result(
    stream: TaskStream, settings: Settings, directory: Path, evaluate_on: str = "test"
) -> dict | None:
    """Return the result of a run of these settings if it is finished, without training anything.

    Args:
        stream: As for `train`.
        settings: As for `train`.
        directory: As for `train`.
        evaluate_on: As for `train`.

    Returns:
        The result, as `result.json` holds it; None if the run is not finished or not begun.

    Raises:
        UsageError: If the folder holds another run.
        DamagedError: If the result is damaged.
    """
    if not is_finished(directory):
        return None
    # A finished run does not change: any number of processes may read it at a time.
    check_content(directory, describe(stream, settings, evaluate_on))
    return read_result(directory)


def saved_heads(
    directory: Path, number: int
) -> tuple[dict[str, keras.Model], dict[str, tuple[str, ...]]]:
    """Read the models of a run after so many tasks.

    Args:
        directory: Folder of the run.
        number: How many tasks had been learned, from 1.

    Returns:
        The model of every head, and its class names, both by the head's name.

    Raises:
        DamagedError: If a file is missing or damaged.
    """
    folder = task_folder(directory, number)
    classes = _read_progress(folder)["classes"]
    names = list(classes)[:number]
    network = _saved_network(folder, names[-1])
    models = _models_of_heads(network)
    # The folder of a task holds the heads that it changed. Of a head that is in several folders the
    # newest one has the weights as they are.
    for task in range(number - 1, 0, -1):
        if len(models) < len(names):
            folder = task_folder(directory, task)
            older = _saved_network(folder, names[min(task, len(names)) - 1])
            with naming_damage(folder / MODEL, _cure(folder)):
                models = _models_of_heads(_on_trunk_of(network, older)) | models
    return {name: models[name] for name in names}, {name: tuple(classes[name]) for name in names}


def finished_network(directory: Path) -> keras.Model:
    """Read the network of a finished run: one model from inputs to the logits of every head.

    Args:
        directory: Folder of the run.

    Raises:
        DamagedError: If the file is missing or damaged.
    """
    path = directory / MODEL
    cure = f"Remove '{directory / RESULT}', and run the same `keras-mas train` command again."
    with naming_damage(path, cure):
        return keras.models.load_model(path)


def _saved_network(folder, head):
    """Return the network that was saved after a task, which changed a head."""
    network = _load_model(folder)
    with naming_damage(folder / MODEL, _cure(folder)):
        if head not in network.output:
            raise ValueError(f"it holds the head of {', '.join(network.output)}, not of '{head}'")
    return network


def _models_of_heads(network):
    return {name: keras.Model(network.input, logits) for name, logits in network.output.items()}


def _on_trunk_of(later, network):
    """Return a network with the heads that were saved with it, on the trunk of a later one.

    What is not of the trunk, the output layer and the task's own batch normalization, stays as it
    was when the task was learned. Where a layer of the trunk has been applied to the same tensors
    already, its outputs are taken, so that all heads read one tensor and an export runs the trunk
    once.
    """
    trunk = {operation.name: operation for operation in later.operations}

    def on_trunk(operation):
        return functools.partial(_applied_once, trunk.get(operation.name, operation))

    return keras.Model(later.input, network._run_through_graph(later.input, operation_fn=on_trunk))


def _applied_once(operation, *args, **kwargs):
    """Apply a layer, or return the outputs that it has for these symbolic tensors already."""
    given = keras.tree.flatten((args, kwargs))
    for node in operation._inbound_nodes:
        before = keras.tree.flatten((node.arguments.args, node.arguments.kwargs))
        if len(before) == len(given) and all(map(_same, before, given)):
            return node.outputs
    return operation(*args, **kwargs)


def _same(one, other):
    # Tensors and arrays have no truth value to compare by.
    return one is other or (isinstance(one, str | int | float) and one == other)


def describe(
    stream: TaskStream,
    settings: Settings,
    evaluate_on: str,
    continued: Continued | None = None,
) -> dict:
    """Return everything that decides a result, for JSON.

    Fingerprints stand for the data, for the file that the weights begin with, and for the modules
    of a method and a backbone that are not ours. λ and penalty are None where they make no
    difference.

    Raises:
        UsageError: If there are no such weights.
    """
    described = dataclasses.asdict(settings) | settings.of_method
    recipe = settings.recipe
    for what, name in (("method", settings.method), ("backbone", recipe.backbone)):
        if is_own(name):
            described[f"{what}_module"] = _digest_of_module(load_named(name, what))
    if continued is None:
        described["recipe"]["weights"] = weights_digest(
            recipe.backbone, stream.input_shape, recipe.weights
        )
        of_data = {"data": stream.fingerprint, "files_left_out": len(stream.left_out)}
    else:
        described["recipe"] = continued.recipe_of(described["recipe"])
        of_data = continued.description
    return {
        "stream": stream.name,
        "scenario": stream.scenario,
        "rescale": list(stream.rescale),
        "tasks": [task.name for task in stream.tasks],
        **of_data,
        "evaluate_on": evaluate_on,
        **described,
    }


def _digest_of_module(own):
    """Return a hash of the file that a class or function is written in; empty if it has none."""
    try:
        return digest_of_file(Path(inspect.getsourcefile(own) or ""))
    except (OSError, TypeError):
        return ""


@dataclasses.dataclass(frozen=True)
class _Elsewhere:
    """Where tasks may have been learned, if not in the run's own folder.

    Attributes:
        shared: Folder of the first task, if other runs go on from it too.
        continued: A finished run that this one goes on from.
        start: A trained network, as for `train`.
    """

    shared: Path | None
    continued: Continued | None
    start: Start | None

    def folder(self, number: int) -> Path | None:
        """Return the folder of a task, counted from 0, which need not exist; None for none."""
        if self.continued is not None:
            return self.continued.folder(number)
        return self.shared if number == 0 else None


class _Run:
    """The state of a run in memory: the network, the method, the accuracies so far."""

    def __init__(
        self, stream, settings, directory, evaluate_on, listeners, verbose, learner, elsewhere
    ):
        self.elsewhere, self.continued = elsewhere, elsewhere.continued
        self.start = elsewhere.start
        self.stream, self.settings, self.directory = stream, settings, directory
        self.evaluate_on, self.listeners, self.verbose = evaluate_on, listeners, verbose
        self.seconds = dict.fromkeys(("training", "importance", "evaluation", "saving"), 0.0)
        self.margin = margin_of(settings.strength)
        self.rows: list[list[float | None]] = []
        self.baseline: list[float | None] = []
        self.evaluations: list[Evaluation] = []
        self.found: dict[str, list] = {}  # of every task, where λ is found
        self.decayed: Decayed | None = None
        self.memory = {"kept_by_method": 0}
        self.learner = learner
        with self._timed("training"):
            self.learner.begin(settings, stream)

    def task(self, number, task):
        """Learn a task, or read it from the folder."""
        shared = self.elsewhere.shared
        known = [task_folder(self.directory, number + 1), shared]
        if number or shared is None or any(folder.exists() for folder in known):
            self._task(number, task)
        else:
            with learned_once(shared):
                self._task(number, task)

    def _task(self, number, task):
        recipe = self.settings.recipe
        started = time.perf_counter()
        saved = task_folder(self.directory, number + 1)
        elsewhere = self.elsewhere.folder(number)
        known = saved if saved.exists() or elsewhere is None else elsewhere
        if not self.baseline:
            self.baseline = self._known_baseline(known)
        if known.exists() or self._is_of_continued(known, number):
            self._restore(known, number)
            if known != saved:
                self._take(known, saved, number)
            seconds = 0.0
        else:
            for listener in self.listeners:
                listener.task_started(number + 1, task, recipe.for_task(number)[1])
            self._find_strength(number)
            self._learn(number, task)
            with self.learner.method.evaluated():
                self.rows.append(self._accuracies())
                self._save(saved, number)
            # Later tasks have other reasons, such as a λ that is too strong.
            if number == 0 and not self._adopts:
                self._warn_if_not_learned(task)
            if elsewhere is not None:
                share(saved, elsewhere)
            seconds = time.perf_counter() - started
        self._note_strength()
        result = self._task_result(number, task, seconds, saved)
        with self.learner.method.evaluated():
            for listener in self.listeners:
                listener.task_finished(result)

    def result(self):
        """Return the result of the finished run, without the user's arguments."""
        settings = self.settings
        return {
            "stream": self.stream.name,
            "tasks": [task.name for task in self.stream.tasks],
            **settings.of_method,
            "seed": settings.seed,
            "scenario": self.stream.scenario,
            "evaluated_on": self.evaluate_on,
            "data": self.stream.data_fingerprint,
            "input_shape": list(self.stream.input_shape),
            "resize": self.stream.resize_of_files,
            "input_dtype": str(self.stream.tasks[-1].train.dtype),
            "classes": {task.name: list(task.classes) for task in self.stream.tasks},
            "accuracy_matrix": self.rows,
            "baseline": self.baseline,
            "evaluated_tasks": [self.stream.tasks[j].name for j in metrics.measured(self.rows)],
            "average_accuracy": _null_if_unknown(metrics.average_accuracy(self.rows)),
            "backward_transfer": _null_if_unknown(metrics.backward_transfer(self.rows)),
            "forgetting": _null_if_unknown(metrics.forgetting(self.rows)),
            "forward_transfer": _null_if_unknown(
                metrics.forward_transfer(self.rows, self.baseline)
            ),
            "recipe": dataclasses.asdict(settings.recipe),
            "examples": _examples({task.name: task for task in self.stream.tasks}),
            "files_left_out": len(self.stream.left_out),
            "columns": list(self.stream.columns),
            "seconds": {phase: round(value, 3) for phase, value in self.seconds.items()},
            "memory": self.memory,
            "devices": self.learner.devices.replicas,
            "hosts": self.learner.devices.workers,
            "versions": library_versions(),
            **(self._stability() if settings.evaluate_every else {}),
            **self.found,
            **(self._of_continued(self.continued.result) if self.continued else {}),
        }

    def _note_strength(self):
        """Note λ that was found for a task, and how it was, or what is still free after it."""
        if self.margin is not None:
            known = self.decayed and dataclasses.asdict(self.decayed)
            self._note(strengths=self.decayed.strength if self.decayed else 0.0, decayed=known)
        # The history of a network that was trained elsewhere has no λ.
        elif "strength" in self.history.history and self.learner.method.free_share is not None:
            free = self.learner.method.free_share
            self._note(strengths=self.history.history["strength"][-1], free=free)

    def _note(self, **found):
        for name, value in found.items():
            self.found.setdefault(name, []).append(value)

    def _find_strength(self, number):
        """Find λ of a task by its own data, if it is to be found so; nothing is held in the first.

        What has been tried is kept, so that a run that is cut off does not try it again.
        """
        if self.margin is None or number == 0:
            return
        path = self.directory / TRIES
        tried = _read_tries(path, number)

        def accuracy(strength):
            if strength not in tried:
                with _prints_to_stderr():
                    tried[strength] = self.learner.tried_accuracy(number, strength)
                write_json(path, {"task": number + 1, "tries": list(tried.items())})
            for listener in self.listeners:
                listener.strength_tried(strength, tried[strength])
            return tried[strength]

        with self._timed("training"):
            start = self.learner.largest_strength(number, self.stream.tasks[number].train)
            self.decayed = stability_decay(start, self.margin, accuracy)
        self.learner.method.strength = self.decayed.strength

    def _stability(self):
        """Return what was measured while tasks were being learned, and the worst of it."""
        during: dict[int, list[list[float | None]]] = {}
        for evaluation in self.evaluations:
            during.setdefault(evaluation.task - 1, []).append(evaluation.accuracies)
        return {
            "evaluate_every": self.settings.evaluate_every,
            "min_accuracy": _null_if_unknown(metrics.min_accuracy(self.rows, during)),
            "worst_case_accuracy": _null_if_unknown(metrics.worst_case_accuracy(self.rows, during)),
            "evaluations": [dataclasses.asdict(evaluation) for evaluation in self.evaluations],
        }

    @property
    def _adopts(self):
        """Whether a trained network is the one task, head and all."""
        return self.start is not None and self.start.layer is None

    def _adopt(self, number):
        """Take a trained network for what was learned, and measure what matters to it."""
        self.history = keras.callbacks.History()
        head = self.learner.head_of[self.stream.tasks[number].name]
        self.learner.network.layer_of(head).set_weights(saved.head_weights(self.start.path))
        with self._timed("importance"):
            self.learner.after_task(
                number, self.start.unlabelled, on_progress=self._importance_measured
            )

    def _learn(self, number, task):
        if self._adopts:
            self._adopt(number)
            return
        if self.start is not None and number == 0:
            with self._timed("importance"):
                self.learner.hold_trunk(self.start.unlabelled, self._importance_measured)
        data, earlier = self._training_data(task), []
        if self.settings.learns_all_tasks:
            earlier = [self._training_data(each) for each in self.stream.tasks[:number]]
        self.history = keras.callbacks.History()
        begun = self._begun(number)
        with self._timed("training") as watch, _prints_to_stderr():
            callbacks = [
                *self._callbacks(number),
                keras.callbacks.TerminateOnNaN(),
                _CheckWeights(lambda epoch, name: self._refuse_weights(name, epoch, task)),
                SaveUnderWay(lambda epochs: self._save_under_way(number, epochs, watch)),
            ]
            self.learner.learn(
                number,
                data,
                earlier=earlier,
                callbacks=callbacks,
                verbose=self.verbose,
                pause_every=self.settings.evaluate_every,
                begun=begun,
            )
        self._check_finite(self.history.history["loss"], task)
        with self._timed("importance"), self._naming_infinity(task):
            self.learner.after_task(number, data, on_progress=self._importance_measured)
        self._check_weights(number, task)

    def _begun(self, number):
        """Return the task as an interrupted run left it after an epoch, None if it did not."""
        begun = TaskUnderWay.read(self.directory)
        if begun is None or begun.number != number:  # of a task that was finished after it
            return None
        with begun.naming_damage():
            self.history.history = dict(begun.history)
            self.seconds = {phase: begun.seconds[phase] for phase in self.seconds}
            evaluations = [Evaluation(**each) for each in begun.evaluations]
        self.evaluations += evaluations
        for listener in self.listeners:
            listener.task_resumed(self.history.history, evaluations)
        return begun

    def _save_under_way(self, number, epochs, watch):
        """Save the task under way after so many epochs, if the method can go on within a task."""
        check_there(self.directory)
        watch.lap()
        with self._timed_within_training("saving"):
            arrays = self.learner.under_way(number)
            if arrays is None:
                return
            evaluations = [dataclasses.asdict(each) for each in self._evaluations_of(number)]
            TaskUnderWay(
                self.directory,
                number,
                epochs,
                self.seconds,
                self.history.history,
                evaluations,
                arrays,
            ).save()

    def _training_data(self, task):
        """Return the training data, with the validation data unless that is evaluated on."""
        if self.evaluate_on == "validation":
            return task.train
        return Split.joined(task.train, task.validation)

    def _callbacks(self, number):
        own: list[keras.callbacks.Callback] = [self.history]
        every = self.settings.evaluate_every
        if every is not None:
            own.append(_EvaluateEvery(every, lambda *when: self._evaluate(number, *when)))
        return own + [callback for listener in self.listeners for callback in listener.callbacks]

    def _evaluate(self, number, step, steps):
        """Measure the tasks so far in the middle of a task, whose time this is not."""
        with self._timed_within_training("evaluation"):
            accuracies = self.learner.accuracies_under_way(number, self.evaluate_on)
        self.evaluations.append(Evaluation(number + 1, step, steps, accuracies))
        for listener in self.listeners:
            listener.evaluated(self.evaluations[-1])

    def _importance_measured(self, examples, total):
        for listener in self.listeners:
            listener.importance_measured(examples, total)

    def _check_finite(self, losses, task):
        """Refuse a loss that was no number in the last epoch, after which training stopped."""
        if not math.isfinite(losses[-1]):
            raise DivergedError(
                f"Expected a finite loss. Received: {losses[-1]} in epoch {len(losses)} of task "
                f"'{task.name}' with {title(self.settings.of_method)}. Lower {self._cure()}; the "
                "tasks before it are kept."
            )

    def _refuse_weights(self, name, epoch, task):
        """Refuse weights that a step has spoiled, before anything of them is saved."""
        raise DivergedError(
            f"Expected finite weights. Received: NaN or infinity in '{name}' after epoch {epoch} "
            f"of task '{task.name}' with {title(self.settings.of_method)}, as a gradient leaves "
            f"them that is not finite. Lower {self._cure()}; the tasks before it are kept."
        )

    @contextlib.contextmanager
    def _naming_infinity(self, task):
        """Say of an importance that is not finite when that was, and what may have led to it."""
        try:
            yield
        except NotFiniteError as error:
            raise DivergedError(
                f"{error} It was measured after epoch {len(self.history.history['loss'])}, the "
                f"last of task '{task.name}' with {title(self.settings.of_method)}. Lower "
                f"{self._cure()}; the tasks before it are kept."
            ) from error

    def _check_weights(self, number, task):
        """Refuse weights that a method has spoiled after a task: NaN would count as an answer."""
        for weight in self._joint(self._heads_changed_by(number)).weights:
            if not np.all(np.isfinite(weight.numpy())):
                raise DivergedError(
                    f"Expected finite weights. Received: NaN or infinity in '{weight.path}' after "
                    f"task '{task.name}' was learned with {title(self.settings.of_method)}. Lower "
                    f"{self._cure()}, or look at what the method does after a task."
                )

    def _warn_if_not_learned(self, task):
        """Warn of a network that died, as a pretrained one does at a learning rate too high."""
        labels = task.splits[self.evaluate_on].labels
        most_frequent, accuracy = np.bincount(labels).max() / len(labels), self.rows[0][0]
        if accuracy <= most_frequent:
            warnings.warn(
                f"Task '{task.name}' was not learned with {title(self.settings.of_method)}: its "
                f"accuracy is {accuracy:.4f}, and naming the most frequent class every time gives "
                f"{most_frequent:.4f}. Lower `--learning-rate`, or raise `--epochs`.",
                NotLearnedWarning,
                stacklevel=2,
            )

    def _cure(self):
        """Return the options to lower where a training diverges."""
        both = "`--learning-rate` or `--strength`"
        return both if self.settings.has_strength else "`--learning-rate`"

    def _accuracies(self):
        """Return a row of the accuracy matrix: the accuracy on every task now."""
        with self._timed("evaluation"):
            return [self.learner.accuracy(task, self.evaluate_on) for task in self.stream.tasks]

    def _save(self, folder, number):
        check_there(self.directory)
        with atomic_folder(folder) as unfinished:
            with self._timed("saving"):
                self._joint(self._heads_changed_by(number)).save(unfinished / MODEL)
                self.learner.method.save(unfinished / MEMORY)
                self.learner.save_optimizer(unfinished / OPTIMIZER)
            self._note_memory(unfinished / MEMORY)
            self._write_progress(unfinished / PROGRESS, number)

    def _write_progress(self, path, number):
        progress = {
            "accuracies": self.rows[-1],
            "seconds": self.seconds,
            "classes": {head.name: head.classes for head in unique_heads(self.stream)},
            "baseline": self.baseline,
            "memory": self.memory,
            "history": self.history.history,
            "evaluations": [dataclasses.asdict(each) for each in self._evaluations_of(number)],
            **({"decayed": dataclasses.asdict(self.decayed)} if self.decayed else {}),
        }
        write_json(path, progress)

    def _restore(self, folder, number):
        progress = _read_progress(folder)
        with naming_damage(folder / PROGRESS, _cure(folder)):
            row = self._row(folder, number, progress["accuracies"])
            self.seconds = {phase: progress["seconds"][phase] for phase in self.seconds}
            self.memory |= progress.get("memory", {})  # earlier versions did not record these
            self.history = keras.callbacks.History()
            self.history.history = progress.get("history", {})
            self.evaluations += [Evaluation(**each) for each in progress.get("evaluations", ())]
            self.decayed = _decayed(progress.get("decayed"))
        saved = _load_model(folder)
        with naming_damage(folder / MODEL, _cure(folder)):
            values = {weight.path: weight.numpy() for weight in saved.weights}
            for weight in self._joint(self._heads_changed_by(number)).weights:
                weight.assign(values[weight.path])
        with naming_damage(folder / MEMORY, _cure(folder)):
            self.learner.method.load(folder / MEMORY, number + 1)
        if self.decayed is not None:
            self.learner.method.strength = self.decayed.strength
        with naming_damage(folder / OPTIMIZER, _cure(folder)):
            self.learner.load_optimizer(folder / OPTIMIZER)
        if self._is_of_continued(folder, number) and number + 1 == self.continued.tasks:
            self.continued.take_memory(self.learner.method)
        with self.learner.method.evaluated():
            self.rows.append(self._with_measured(row))

    def _row(self, folder, number, accuracies):
        """Return a saved row of the accuracy matrix, None for what its run has not measured."""
        if self._is_of_continued(folder, number):
            return self.continued.accuracies(accuracies)
        return _checked_row(accuracies, len(self.stream.tasks))

    def _with_measured(self, row):
        """Return accuracies; those that are missing are measured with the weights as they are."""
        if None not in row:
            return row
        with self._timed("evaluation"):
            return [
                self.learner.accuracy(task, self.evaluate_on) if accuracy is None else accuracy
                for task, accuracy in zip(self.stream.tasks, row, strict=True)
            ]

    def _known_baseline(self, folder):
        """Return the accuracies before training, of which those of added tasks are measured now."""
        saved = _saved_baseline(folder)
        if saved is None or not self._is_of_continued(folder, 0):
            return saved or self._accuracies()
        with naming_damage(folder / PROGRESS, _cure(folder)):
            known = self.continued.accuracies(saved)
        # What the trunk began with is not known any more if that file is gone.
        return known if self.continued.run.has_lost_weights else self._with_measured(known)

    def _is_of_continued(self, folder, number):
        """Return whether a folder is that of a task of the run that this one goes on from."""
        return self.continued is not None and folder == self.continued.folder(number)

    def _take(self, known, folder, number):
        """Make a task's folder of what was learned of it elsewhere, with λ of this run."""
        with atomic_folder(folder) as unfinished:
            link_files(known, unfinished, besides=(MEMORY, PROGRESS))
            self.learner.method.save(unfinished / MEMORY)
            self._write_progress(unfinished / PROGRESS, number)

    def _of_continued(self, result):
        """Return what is recorded of a run that goes on from another one."""
        own = {task.name: task for task in self.stream.tasks if len(task.test)}
        return result | {"examples": result["examples"] | _examples(own)}

    def _note_memory(self, saved):
        """Record the size in bytes of what the method keeps between tasks."""
        self.memory = {"kept_by_method": saved.stat().st_size if saved.exists() else 0}

    def _evaluations_of(self, number):
        return [each for each in self.evaluations if each.task == number + 1]

    def _task_result(self, number, task, seconds, folder):
        heads = unique_heads(self.stream, number + 1)
        return TaskResult(
            number=number + 1,
            task=task,
            accuracies=self.rows[-1],
            models={head.name: self.learner.network.model_of(head) for head in heads},
            classes={head.name: head.classes for head in heads},
            seconds=seconds,
            folder=folder,
            history=self.history.history,
            evaluations=self._evaluations_of(number),
            strength=_last(self.found.get("strengths")),
            free=_last(self.found.get("free")),
        )

    def save_network(self):
        """Write one model of the trunk and all heads."""
        unfinished = self.directory / f"{UNFINISHED}{MODEL}"
        with self.learner.method.evaluated():
            self._joint(unique_heads(self.stream)).save(unfinished)
        unfinished.replace(self.directory / MODEL)

    def _joint(self, heads):
        return self.learner.network.joint(heads)

    def _heads_changed_by(self, number):
        """Return the heads that learning a task changes, which its folder holds."""
        if self.learner.method.trains_all_heads:
            return unique_heads(self.stream, number + 1)
        return [self.learner.head_of[self.stream.tasks[number].name]]

    def _timed(self, phase):
        return _Stopwatch(self.seconds, phase)

    @contextlib.contextmanager
    def _timed_within_training(self, phase):
        """Count what happens between two steps as another phase."""
        before = self.seconds[phase]
        with self._timed(phase):
            yield
        self.seconds["training"] -= self.seconds[phase] - before


def _examples(tasks):
    """Return how many examples tasks have, by task and split."""
    return {
        name: {role: len(split) for role, split in task.splits.items()}
        for name, task in tasks.items()
    }


def _null_if_unknown(value):
    """Return a measure as JSON holds it: null in the place of NaN."""
    return None if math.isnan(value) else value


def _last(values):
    return values[-1] if values else None


def _read_tries(path, number):
    """Return the accuracy of each λ that has been tried for a task, in order."""
    if not path.exists():
        return {}
    known = read_json(path, _TRIES, cure="Remove it, and run the same command again.")
    return dict(map(tuple, known["tries"])) if known["task"] == number + 1 else {}


def _decayed(found):
    """Return what is saved of how λ was found, if it was."""
    return found and Decayed(found["best"], [tuple(each) for each in found["tries"]])


def _load_model(folder):
    with naming_damage(folder / MODEL, _cure(folder)):
        return keras.models.load_model(folder / MODEL)


def _read_progress(folder):
    return read_json(folder / PROGRESS, _PROGRESS, cure=_cure(folder))


def _saved_baseline(folder):
    """Return the accuracies before training, if they have been saved with the first task."""
    if not folder.exists():
        return None
    return _read_progress(folder).get("baseline")  # earlier versions did not record it


def _cure(folder):
    return (
        f"Remove '{folder}' and the folders with higher numbers beside it, and run the "
        "`keras-mas train` command of that run again: it learns these tasks again."
    )


def _checked_row(accuracies, tasks):
    if len(accuracies) != tasks:
        raise ValueError(f"it has {len(accuracies)} accuracies for {tasks} tasks")
    return accuracies


def _prints_to_stderr():
    """Send what Keras and callbacks print to standard error: results are on standard output."""
    return contextlib.redirect_stdout(sys.stderr)


class _CheckWeights(keras.callbacks.Callback):
    """Looks after every epoch whether all weights are finite.

    The loss of the last step is that of the weights before it, and a ReLU may hide a NaN.

    Args:
        refuse: Is called with the number of the epoch, from 1, and a weight that is not finite.
    """

    def __init__(self, refuse):
        super().__init__()
        self.refuse = refuse

    def on_epoch_end(self, epoch, logs=None):
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            return  # which ends the training too, and says more
        for weight in self.model.weights:
            if "float" in weight.dtype and not tf.reduce_all(tf.math.is_finite(weight.value)):
                self.refuse(epoch + 1, weight.path)


class _EvaluateEvery(keras.callbacks.Callback):
    """Calls a function with the number of steps, and of how many, after every so many of them."""

    def __init__(self, every, evaluate):
        super().__init__()
        self.every, self.evaluate = every, evaluate
        self.done = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.done = epoch * self.params["steps"]

    def on_train_batch_end(self, batch, logs=None):
        step = self.done + batch + 1
        if step % self.every == 0:
            self.evaluate(step, self.params["epochs"] * self.params["steps"])


class _Stopwatch:
    """Adds the seconds spent inside a `with` block to a phase."""

    def __init__(self, seconds, phase):
        self.seconds, self.phase = seconds, phase

    def __enter__(self):
        self.started = time.perf_counter()
        return self

    def __exit__(self, *exception):
        self.lap()

    def lap(self):
        """Add the seconds so far."""
        now = time.perf_counter()
        self.seconds[self.phase] += now - self.started
        self.started = now
