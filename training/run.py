"""One run: a stream of tasks learned one after the other by one method, on disk and resumable.

A run's folder holds

    arguments.json      everything that decides the result
    1/ 2/ … T/          after each task: model.keras (trunk and heads so far), memory.npz (what the
                        method remembers) and progress.json (accuracies and seconds so far)
    result.json         written last
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_mas import metrics
from keras_mas.errors import UsageError
from keras_mas.heads import MultiHead
from keras_mas.methods import load_method

from .backbones import build_trunk
from .settings import Settings
from .tasks import Split, Task, TaskStream


class DivergedError(RuntimeError):
    """The loss became NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """What a listener is told when a task has been learned.

    Attributes:
        number: How many tasks have been learned, this one included.
        task: The task.
        accuracies: Row of the accuracy matrix `[T]`.
        models: The model of every task learned so far, by the name of its head.
        classes: The class names of every such model.
        seconds: Time the task took; 0 if it was read from the run's folder.
    """

    number: int
    task: Task
    accuracies: list[float]
    models: dict[str, keras.Model]
    classes: dict[str, tuple[str, ...]]
    seconds: float


class Listener:
    """What can be told about a run while it goes on. This one does not listen."""

    callbacks: tuple[keras.callbacks.Callback, ...] = ()

    def task_started(self, number: int, task: Task, epochs: int) -> None:
        """Task `number`, counted from 1, is about to be learned in so many epochs."""

    def importance_measured(self, examples: int, total: int | None) -> None:
        """So many examples of the task have been measured; of how many, if that is known."""

    def task_finished(self, result: TaskResult) -> None:
        """Hear that a task has been learned, or has been found in the run's folder."""


def train(
    stream: TaskStream,
    settings: Settings,
    directory: Path,
    *,
    arguments: dict | None = None,
    evaluate_on: str = "test",
    listeners: Sequence[Listener] = (),
    verbose: int = 0,
) -> dict:
    """Learn all tasks of a stream in turn; go on where an interrupted run of the same kind ended.

    A finished run is not repeated: its result is read. The same seed gives the same result on the
    same machine, whether or not the run was interrupted.

    Args:
        stream: The tasks.
        settings: What to do with them.
        directory: Folder of the run.
        arguments: What the user asked for, recorded in the result.
        evaluate_on: "validation", to choose settings by; or "test", and then the validation data
            is learned from too.
        listeners: Are told about every task.
        verbose: As for `model.fit`.

    Returns:
        The result, as `result.json` holds it.

    Raises:
        UsageError: If the folder holds anything but this run.
        DivergedError: If the training diverged.
    """
    run = _Run(stream, settings, directory, evaluate_on, listeners, verbose)
    claim(directory, describe(stream, settings, evaluate_on))
    for number, task in enumerate(stream.tasks):
        run.task(number, task)
    if not is_finished(directory):
        write_json(directory / "result.json", run.result() | {"arguments": arguments or {}})
    return read_json(directory / "result.json")


def is_finished(directory: Path) -> bool:
    """Return whether a run's folder holds its result."""
    return (directory / "result.json").is_file()


def saved_heads(directory: Path, number: int) -> tuple[dict, dict]:
    """Read the models of a run after so many tasks.

    Args:
        directory: Folder of the run.
        number: How many tasks had been learned, from 1.

    Returns:
        The model of every head, and its class names, both by the head's name.
    """
    joint = _load_model(directory / str(number) / "model.keras")
    progress = read_json(directory / str(number) / "progress.json")
    models = {name: keras.Model(joint.inputs, logits) for name, logits in joint.output.items()}
    return models, {name: progress["classes"][name] for name in models}


def describe(stream: TaskStream, settings: Settings, evaluate_on: str) -> dict:
    """Return all that decides a result, the data's fingerprint included, as JSON can hold it."""
    return {
        "stream": stream.name,
        "scenario": stream.scenario,
        "rescale": list(stream.rescale),
        "tasks": [task.name for task in stream.tasks],
        "data": _fingerprint(stream),
        "evaluate_on": evaluate_on,
        **dataclasses.asdict(settings),
    }


def claim(directory: Path, description: dict) -> None:
    """Make a folder that of the described run, or find it to be so already.

    Raises:
        UsageError: If the folder, or file, is something else; it is left as it is.
    """
    claimed = directory / "arguments.json"
    if claimed.is_file():
        differences = _differences(read_json(claimed), description)
        if differences:
            raise UsageError(
                f"Expected a new folder, or one that holds this same run. Received: '{directory}' "
                f"with another run ({differences}). Choose another `--output`; nothing was changed."
            )
        return
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(
            f"Expected a new or empty folder for the run. Received: '{directory}', which holds "
            "something else. Choose another `--output`; nothing was changed."
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_json(claimed, description)


def read_json(path: Path) -> dict:
    """Read a JSON file that `write_json` wrote; RuntimeError names one that is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RuntimeError(
            f"Expected JSON in '{path}'. Received: a damaged file ({error}). Remove it, and run "
            "the command that wrote it again."
        ) from error


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file that is never seen half-written."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


class _Run:
    """The state of a run in memory: the network, the method, the accuracies so far."""

    def __init__(self, stream, settings, directory, evaluate_on, listeners, verbose):
        self.stream, self.settings, self.directory = stream, settings, directory
        self.evaluate_on, self.listeners, self.verbose = evaluate_on, listeners, verbose
        self.seconds = dict.fromkeys(("training", "importance", "evaluation", "saving"), 0.0)
        self._build()
        self.rows = []
        self.baseline = None

    def _build(self):
        """Build trunk, heads and method; every head at once, so that its start is the seed's."""
        keras.backend.clear_session(free_memory=False)
        keras.utils.set_random_seed(self.settings.seed)
        trunk = build_trunk(
            self.settings.recipe.backbone, self.stream.input_shape, self.stream.rescale
        )
        self.method = load_method(self.settings.method)(
            self.settings.strength, self.settings.penalty
        )
        self.heads = MultiHead(trunk, model=self.method.model)
        self.head_of = heads_of(self.stream)
        for head in self.head_of.values():
            if head.name not in self.heads.models:
                self.heads.add(head.name, len(head.classes))
        # A head of its own needs no protection; a shared one is part of what is learned.
        shared = trunk if self.stream.scenario == "task" else self._model(self.stream.tasks[0])
        self.method.protect(shared)

    def task(self, number, task):
        """Learn a task, or take it from the folder."""
        if self.baseline is None:
            self.baseline = self._accuracies()
        recipe = self.settings.recipe
        started = time.perf_counter()
        saved = self.directory / str(number + 1)
        if saved.is_dir():
            self._restore(saved, number)
            seconds = 0.0
        else:
            for listener in self.listeners:
                listener.task_started(number + 1, task, recipe.for_task(number)[1])
            self._learn(number, task)
            self.rows.append(self._accuracies())
            self._save(saved, number)
            seconds = time.perf_counter() - started
        result = self._task_result(number, task, seconds)
        for listener in self.listeners:
            listener.task_finished(result)

    def result(self):
        """Return what a finished run found, without the user's arguments."""
        settings = self.settings
        return {
            "stream": self.stream.name,
            "tasks": [task.name for task in self.stream.tasks],
            "method": settings.method,
            "strength": settings.strength,
            "penalty": settings.penalty,
            "seed": settings.seed,
            "scenario": self.stream.scenario,
            "evaluated_on": self.evaluate_on,
            "accuracy_matrix": self.rows,
            "baseline": self.baseline,
            "average_accuracy": metrics.average_accuracy(self.rows),
            "backward_transfer": metrics.backward_transfer(self.rows),
            "forgetting": metrics.forgetting(self.rows),
            "forward_transfer": metrics.forward_transfer(self.rows, self.baseline),
            "recipe": dataclasses.asdict(settings.recipe),
            "seconds": {phase: round(value, 3) for phase, value in self.seconds.items()},
            "versions": _versions(),
        }

    def _learn(self, number, task):
        # A seed per task: an interrupted run goes on as the whole one would.
        keras.utils.set_random_seed(_task_seed(self.settings.seed, number))
        learning_rate, epochs = self.settings.recipe.for_task(number)
        model, data = self._model(task), self._training_data(task)
        model.compile(
            optimizer=_optimizer(self.settings.recipe.optimizer, learning_rate),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        with self._timed("training"), _talk_to_stderr(self.verbose):
            history = model.fit(
                data.inputs,
                data.labels + self.head_of[task.name].offset,
                batch_size=self.settings.recipe.batch_size,
                epochs=epochs,
                verbose=self.verbose,
                callbacks=[*self._callbacks(), keras.callbacks.TerminateOnNaN()],
            )
        self._check_finite(history.history["loss"][-1], task)
        with self._timed("importance"):
            self.method.after_task(model, data.inputs, on_progress=self._importance_measured)

    def _training_data(self, task):
        """Return what to learn from: held-out data too, unless it is what is evaluated on."""
        if self.evaluate_on == "validation":
            return task.train
        return Split(
            np.concatenate([task.train.inputs, task.validation.inputs]),
            np.concatenate([task.train.labels, task.validation.labels]),
        )

    def _callbacks(self):
        return [callback for listener in self.listeners for callback in listener.callbacks]

    def _importance_measured(self, examples, total):
        for listener in self.listeners:
            listener.importance_measured(examples, total)

    def _check_finite(self, loss, task):
        if not np.isfinite(loss):
            raise DivergedError(
                f"Expected a finite loss. Received: {loss} while learning task '{task.name}' with "
                f"method {self.settings.method} and strength {self.settings.strength:g}. Lower "
                "`--learning-rate` or `--strength`."
            )

    def _accuracies(self):
        """Return a row of R: the accuracy on every task now."""
        with self._timed("evaluation"):
            return [
                _accuracy(self._model(task), task.splits[self.evaluate_on], self.head_of[task.name])
                for task in self.stream.tasks
            ]

    def _save(self, folder, number):
        with self._timed("saving"):
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            self.heads.joint(self._learned_heads(number)).save(partial / "model.keras")
            self.method.save(partial / "memory.npz")
        progress = {
            "accuracies": self.rows[-1],
            "seconds": self.seconds,
            "classes": {head.name: head.classes for head in self.head_of.values()},
        }
        write_json(partial / "progress.json", progress)
        partial.rename(folder)

    def _restore(self, folder, number):
        progress = read_json(folder / "progress.json")
        self.rows.append(progress["accuracies"])
        self.seconds = progress["seconds"]
        saved = _load_model(folder / "model.keras")
        values = {weight.path: weight.numpy() for weight in saved.weights}
        for weight in self.heads.joint(self._learned_heads(number)).weights:
            weight.assign(values[weight.path])
        self.method.load(folder / "memory.npz")

    def _task_result(self, number, task, seconds):
        heads = {head.name: head for head in self.head_of.values()}
        learned = self._learned_heads(number)
        return TaskResult(
            number=number + 1,
            task=task,
            accuracies=self.rows[-1],
            models={name: self.heads.models[name] for name in learned},
            classes={name: heads[name].classes for name in learned},
            seconds=seconds,
        )

    def _learned_heads(self, number):
        names = [self.head_of[task.name].name for task in self.stream.tasks[: number + 1]]
        return list(dict.fromkeys(names))

    def _model(self, task):
        return self.heads.models[self.head_of[task.name].name]

    def _timed(self, phase):
        return _Stopwatch(self.seconds, phase)


@dataclasses.dataclass(frozen=True)
class Head:
    """Where a task's logits are: the head's name, the task's first logit, all its class names."""

    name: str
    offset: int
    classes: tuple[str, ...]


def heads_of(stream: TaskStream) -> dict[str, Head]:
    """Return each task's head by the task's name: its own, or one that all tasks share."""
    if stream.scenario == "task":
        return {task.name: Head(task.name, 0, task.classes) for task in stream.tasks}
    if stream.scenario == "domain":
        shared = Head("shared", 0, stream.tasks[0].classes)
        return {task.name: shared for task in stream.tasks}
    every = tuple(name for task in stream.tasks for name in task.classes)
    heads, offset = {}, 0
    for task in stream.tasks:
        heads[task.name] = Head("all", offset, every)
        offset += len(task.classes)
    return heads


def _load_model(path):
    try:
        return keras.models.load_model(path)
    except Exception as error:  # Keras has no narrower class for a damaged file
        raise RuntimeError(
            f"Expected a model in '{path}'. Received: a damaged or missing file "
            f"({type(error).__name__}). Remove the folder '{path.parent}' and those with higher "
            "numbers; the same `keras-mas train` learns these tasks again."
        ) from error


def _accuracy(model, split: Split, head):
    # In one pass over plain arrays: `evaluate` would trace a function per head.
    answers = [
        np.argmax(model(split.inputs[start : start + 1024], training=False), axis=-1)
        for start in range(0, len(split), 1024)
    ]
    return float(np.mean(np.concatenate(answers) == split.labels + head.offset))


def _optimizer(name, learning_rate):
    if name == "sgd":
        return keras.optimizers.SGD(learning_rate, momentum=0.9)
    return keras.optimizers.Adam(learning_rate)


def _task_seed(seed, number):
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _fingerprint(stream):
    digest = hashlib.sha256()
    for task in stream.tasks:
        for split in task.splits.values():
            digest.update(np.ascontiguousarray(split.inputs))
            digest.update(np.ascontiguousarray(split.labels))
    return digest.hexdigest()[:16]


def _differences(before, now):
    keys = [key for key in now if before.get(key) != now[key]]
    return "; ".join(f"{key}: {before.get(key)}, not {now[key]}" for key in keys)


def _versions():
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def _talk_to_stderr(verbose):
    """Send what Keras prints to standard error, where it was asked for, and else nowhere."""
    return contextlib.redirect_stdout(sys.stderr if verbose else io.StringIO())


class _Stopwatch:
    """Adds the seconds spent inside a `with` block to a phase."""

    def __init__(self, seconds, phase):
        self.seconds, self.phase = seconds, phase

    def __enter__(self):
        self.started = time.perf_counter()

    def __exit__(self, *exception):
        self.seconds[self.phase] += time.perf_counter() - self.started
