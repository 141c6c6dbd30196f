"""One run: a stream of tasks learned one after the other by one method, on disk and resumable."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_mas import metrics
from keras_mas.errors import UsageError
from keras_mas.files import UNFINISHED, atomic_file, atomic_folder
from keras_mas.versions import library_versions

from .backbones import saved
from .backbones.weights import digest_of_file
from .continuing import Continued
from .devices import Devices, refuse_scope
from .divergence import (
    check_weights,
    naming_divergence,
    naming_infinity,
    naming_unprotected,
    warn_if_not_learned,
)
from .first_task import learned_once, link_files, share, shared_first_task
from .heads import unique_heads
from .identity import data_of_tasks, describe
from .learner import Learner
from .listening import Evaluation, Listener, TaskResult
from .record import Record
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
    is_number,
    naming_damage,
    read_json,
    read_result,
    task_folder,
    write_json,
)
from .saved_tasks import (
    cure_of,
    digests_of,
    load_model,
    read_progress,
    saved_baseline,
    saved_file,
)
from .settings import Settings
from .stability_decay import margin_of, stability_decay
from .starting import Start
from .tasks import Split, TaskStream, original_errors
from .under_way import SaveUnderWay, TaskUnderWay

_TRIES = {"task": is_number, "tries": are(are(is_number))}


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
    keeps_models: bool = True,
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
        keeps_models: Whether the folder is to hold the models of all tasks and the network. Without
            them nothing can go on from the finished run, so that after the last task its importance
            is not measured. It goes on as any other while it is not finished, from the folder in
            `first_tasks` too.

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
    if continued is not None:
        _refuse_folder_of(continued, directory)
    description = describe(stream, settings, evaluate_on, continued)
    if start is not None:
        description |= start.description
    shared = None
    if first_tasks is not None and settings.shares_first_task:
        shared = shared_first_task(first_tasks, description)
    elsewhere = _Elsewhere(shared, continued, start)
    with devices.own_folder(directory) as folder:
        run = _Run(
            stream=stream,
            settings=settings,
            directory=folder,
            evaluate_on=evaluate_on,
            listeners=listeners,
            verbose=verbose,
            learner=learner,
            elsewhere=elsewhere,
            keeps_models=keeps_models,
        )
        recorded = description | data_of_tasks(stream, continued)
        with claimed(folder, recorded, overwrite=overwrite), original_errors():
            devices.take_run(folder, description)
            _take_network(folder, start, continued)
            return run.finish(arguments or {})


def _refuse_folder_of(continued, directory):
    """Refuse to write into the folder of the run that this one goes on from."""
    old = continued.run.directory.resolve()
    if old in (directory.resolve(), *directory.resolve().parents):
        raise UsageError(
            "Expected a new folder for the run that goes on, outside of the one that it goes on "
            f"from, which stays as it is. Received: '{directory}'. Choose another one with "
            "`--output`."
        )


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
    check_content(directory, describe(stream, settings, evaluate_on) | data_of_tasks(stream))
    return read_result(directory)


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


@dataclasses.dataclass(kw_only=True)
class _Run:
    """The state of a run in memory: the network, the method, the accuracies so far.

    Attributes:
        elsewhere: Where tasks may have been learned before.
        record: What the run has measured so far.
        The others are those of `train`.
    """

    stream: TaskStream
    settings: Settings
    directory: Path
    evaluate_on: str
    listeners: Sequence[Listener]
    verbose: int
    learner: Learner
    elsewhere: _Elsewhere
    keeps_models: bool
    record: Record = dataclasses.field(default_factory=Record)

    def __post_init__(self):
        # What uses them has asked before whether they are there.
        self.continued: Any = self.elsewhere.continued
        self.start: Any = self.elsewhere.start
        self.margin = margin_of(self.settings.strength)
        with self.record.timed("training"):
            self.learner.begin(self.settings, self.stream)

    def finish(self, arguments):
        """Learn what is left to learn, and return the result as it is in the folder."""
        finished = is_finished(self.directory)
        if finished:
            result = read_result(self.directory)
            if not self.keeps_models:  # there is nothing else to read
                return result
        for number, task in enumerate(self.stream.tasks):
            self.task(number, task)
        if not finished:
            self._write_result(arguments)
        (self.directory / UNDER_WAY).unlink(missing_ok=True)
        return read_result(self.directory)

    def _write_result(self, arguments):
        check_there(self.directory)
        recorded = {"arguments": arguments}
        if self.keeps_models:
            self._save_network()
            recorded |= {"network": digest_of_file(self.directory / MODEL)}
        write_json(self.directory / RESULT, self.result() | recorded)

    def task(self, number, task):
        """Learn a task, or read it from the folder."""
        shared = self.elsewhere.shared
        own = task_folder(self.directory, number + 1)
        if number or shared is None or own.exists() or shared.exists():
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
        if not self.record.baseline:
            self.record.baseline = self._known_baseline(known)
        if known.exists() or self._is_of_continued(known, number):
            self._restore(known, number)
            if known != saved and self.keeps_models:
                self._take(known, saved, number)
            seconds = 0.0
        else:
            for listener in self.listeners:
                listener.task_started(number + 1, task, recipe.for_task(number)[1])
            self._find_strength(number)
            self._learn(number, task)
            with self.learner.method.evaluated():
                self.record.rows.append(self._accuracies())
                if not self._is_the_end(number):
                    self._save(saved, number)
            if not self._adopts:
                labels = task.splits[self.evaluate_on].labels
                accuracy = self.record.rows[number][number]
                warn_if_not_learned(task.name, number, self.settings, labels, accuracy)
            if elsewhere is not None:
                share(saved, elsewhere)
            seconds = time.perf_counter() - started
        self._note_strength()
        result = self._task_result(number, task, seconds, saved)
        with self.learner.method.evaluated():
            for listener in self.listeners:
                listener.task_finished(result)

    def _is_the_end(self, number):
        """Whether nothing goes on from what a task leaves; of the first one, other runs do."""
        is_last = number == len(self.stream.tasks) - 1
        return is_last and number > 0 and not self.keeps_models

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
            **self.record.scores(),
            "evaluated_tasks": [
                self.stream.tasks[j].name for j in metrics.measured(self.record.rows)
            ],
            "recipe": dataclasses.asdict(settings.recipe),
            "examples": _examples({task.name: task for task in self.stream.tasks}),
            "files_left_out": len(self.stream.left_out),
            "columns": list(self.stream.columns),
            "seconds": {phase: round(value, 3) for phase, value in self.record.seconds.items()},
            "memory": self.record.memory,
            "devices": self.learner.devices.replicas,
            "hosts": self.learner.devices.workers,
            "versions": library_versions(),
            **({"cross_entropy": self._losses()} if self.evaluate_on == "validation" else {}),
            **self._stability(),
            **self.record.noted,
            **(self._of_continued(self.continued.result) if self.continued else {}),
        }

    def _stability(self):
        every = self.settings.evaluate_every
        return {"evaluate_every": every, **self.record.stability()} if every else {}

    def _note_strength(self):
        """Note λ that was found for a task, and how it was, or what is still free after it."""
        if self.margin is not None:
            known = self.record.decayed and dataclasses.asdict(self.record.decayed)
            self.record.note(
                strengths=self.record.decayed.strength if self.record.decayed else 0.0,
                decayed=known,
            )
        # The history of a network that was trained elsewhere has no λ.
        elif "strength" in self.record.history and self.learner.method.free_share is not None:
            free = self.learner.method.free_share
            self.record.note(strengths=self.record.history["strength"][-1], free=free)

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

        with self.record.timed("training"):
            start = self.learner.largest_strength(number, self.stream.tasks[number].train)
            self.record.decayed = stability_decay(start, self.margin, accuracy)
        self.learner.method.strength = self.record.decayed.strength

    @property
    def _adopts(self):
        """Whether a trained network is the one task, head and all."""
        return self.start is not None and self.start.layer is None

    def _adopt(self, number):
        """Take a trained network for what was learned, and measure what matters to it."""
        self.record.history = {}
        head = self.learner.head_of[self.stream.tasks[number].name]
        self.learner.network.layer_of(head).set_weights(saved.head_weights(self.start.path))
        with self.record.timed("importance"):
            self.learner.after_task(
                number, self.start.unlabelled, on_progress=self._importance_measured
            )

    def _learn(self, number, task):
        if self._adopts:
            self._adopt(number)
            return
        if self.start is not None and number == 0:
            with self.record.timed("importance"):
                self.learner.hold_trunk(self.start.unlabelled, self._importance_measured)
        data, earlier = self._training_data(task), []
        if self.settings.learns_all_tasks:
            earlier = [self._training_data(each) for each in self.stream.tasks[:number]]
        self.record.history = {}
        begun = self._begun(number)
        history = keras.callbacks.History()
        history.history = self.record.history
        with (
            self.record.timed("training") as watch,
            _prints_to_stderr(),
            naming_divergence(task.name, self.settings),
        ):
            callbacks = [
                *self._callbacks(number),
                history,  # which has the check that all is finite: nothing else is saved
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
        if self.learner.method.answers_depend_on_after_task or not self._is_the_end(number):
            epochs = len(self.record.history["loss"])
            with (
                self.record.timed("importance"),
                naming_infinity(task.name, self.settings, epochs),
                naming_unprotected(task.name, self.settings),
            ):
                self.learner.after_task(number, data, on_progress=self._importance_measured)
        changed = self._joint(self._heads_changed_by(number)).weights
        check_weights(changed, task.name, self.settings)

    def _begun(self, number):
        """Return the task as an interrupted run left it after an epoch, None if it did not."""
        begun = TaskUnderWay.read(self.directory)
        if begun is None or begun.number != number:  # of a task that was finished after it
            return None
        with begun.naming_damage():
            evaluations = self.record.restore(begun.measured)
        for listener in self.listeners:
            listener.task_resumed(self.record.history, evaluations)
        return begun

    def _save_under_way(self, number, epochs, watch):
        """Save the task under way after so many epochs, if the method can go on within a task."""
        check_there(self.directory)
        watch.lap()
        with self.record.timed_within_training("saving"):
            arrays = self.learner.under_way(number)
            if arrays is None:
                return
            measured = self.record.measurements_of(number + 1)
            TaskUnderWay(self.directory, number, epochs, measured, arrays).save()

    def _training_data(self, task):
        """Return the training data, with the validation data unless that is evaluated on."""
        if self.evaluate_on == "validation":
            return task.train
        return Split.joined(task.train, task.validation)

    def _callbacks(self, number):
        own: list[keras.callbacks.Callback] = []
        every = self.settings.evaluate_every
        if every is not None:
            own.append(_EvaluateEvery(every, lambda *when: self._evaluate(number, *when)))
        return own + [callback for listener in self.listeners for callback in listener.callbacks]

    def _evaluate(self, number, step, steps):
        """Measure the tasks so far in the middle of a task, whose time this is not."""
        with self.record.timed_within_training("evaluation"):
            accuracies = self.learner.accuracies_under_way(number, self.evaluate_on)
        self.record.evaluations.append(Evaluation(number + 1, step, steps, accuracies))
        for listener in self.listeners:
            listener.evaluated(self.record.evaluations[-1])

    def _importance_measured(self, examples, total):
        for listener in self.listeners:
            listener.importance_measured(examples, total)

    def _accuracies(self):
        """Return a row of the accuracy matrix: the accuracy on every task now."""
        with self.record.timed("evaluation"):
            return [self.learner.accuracy(task, self.evaluate_on) for task in self.stream.tasks]

    def _losses(self):
        """Return the cross-entropy of every task in the end, which tells more than accuracy does.

        No test data is read for it.
        """
        with self.record.timed("evaluation"), self.learner.method.evaluated():
            return [self.learner.cross_entropy(task) for task in self.stream.tasks]

    def _save(self, folder, number):
        check_there(self.directory)
        with atomic_folder(folder) as unfinished:
            with self.record.timed("saving"):
                self._joint(self._heads_changed_by(number)).save(unfinished / MODEL)
                self.learner.method.save(unfinished / MEMORY)
                self.learner.save_optimizer(unfinished / OPTIMIZER)
            self._note_memory(unfinished / MEMORY)
            self._write_progress(unfinished / PROGRESS, number)

    def _write_progress(self, path, number):
        progress = self.record.progress(number + 1) | {
            "classes": {head.name: head.classes for head in unique_heads(self.stream)},
            "files": digests_of(path.parent),
        }
        write_json(path, progress)

    def _restore(self, folder, number):
        progress = read_progress(folder)
        with naming_damage(folder / PROGRESS, cure_of(folder)):
            row = self._row(folder, number, progress["accuracies"])
            self.record.restore(progress)
        saved = load_model(folder)
        with naming_damage(folder / MODEL, cure_of(folder)):
            values = {weight.path: weight.numpy() for weight in saved.weights}
            for weight in self._joint(self._heads_changed_by(number)).weights:
                weight.assign(values[weight.path])
        memory = saved_file(folder, MEMORY)
        with naming_damage(memory, cure_of(folder)):
            self.learner.method.load(memory, number + 1)
        if self.record.decayed is not None:
            self.learner.method.strength = self.record.decayed.strength
        optimizer = saved_file(folder, OPTIMIZER)
        with naming_damage(optimizer, cure_of(folder)):
            self.learner.load_optimizer(optimizer)
        if self._is_of_continued(folder, number) and number + 1 == self.continued.tasks:
            self.continued.take_memory(self.learner.method)
        with self.learner.method.evaluated():
            self.record.rows.append(self._with_measured(row))

    def _row(self, folder, number, accuracies):
        """Return a saved row of the accuracy matrix, None for what its run has not measured."""
        if self._is_of_continued(folder, number):
            return self.continued.accuracies(accuracies)
        return _checked_row(accuracies, len(self.stream.tasks))

    def _with_measured(self, row):
        """Return accuracies; those that are missing are measured with the weights as they are."""
        if None not in row:
            return row
        with self.record.timed("evaluation"):
            return [
                self.learner.accuracy(task, self.evaluate_on) if accuracy is None else accuracy
                for task, accuracy in zip(self.stream.tasks, row, strict=True)
            ]

    def _known_baseline(self, folder):
        """Return the accuracies before training, of which those of added tasks are measured now."""
        saved = saved_baseline(folder)
        if saved is None or not self._is_of_continued(folder, 0):
            return saved or self._accuracies()
        with naming_damage(folder / PROGRESS, cure_of(folder)):
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
        self.record.memory = {"kept_by_method": saved.stat().st_size if saved.exists() else 0}

    def _task_result(self, number, task, seconds, folder):
        heads = unique_heads(self.stream, number + 1)
        return TaskResult(
            number=number + 1,
            task=task,
            accuracies=self.record.rows[-1],
            models={head.name: self.learner.network.model_of(head) for head in heads},
            classes={head.name: head.classes for head in heads},
            seconds=seconds,
            folder=folder,
            history=self.record.history,
            evaluations=self.record.evaluations_of(number + 1),
            strength=self.record.last("strengths"),
            free=self.record.last("free"),
        )

    def _save_network(self):
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


def _examples(tasks):
    """Return how many examples tasks have, by task and split."""
    return {
        name: {role: len(split) for role, split in task.splits.items()}
        for name, task in tasks.items()
    }


def _read_tries(path, number):
    """Return the accuracy of each λ that has been tried for a task, in order."""
    if not path.exists():
        return {}
    known = read_json(path, _TRIES, cure="Remove it, and run the same command again.")
    return dict(map(tuple, known["tries"])) if known["task"] == number + 1 else {}


def _checked_row(accuracies, tasks):
    if len(accuracies) != tasks:
        raise ValueError(f"it has {len(accuracies)} accuracies for {tasks} tasks")
    return accuracies


def _prints_to_stderr():
    """Send what Keras and callbacks print to standard error: results are on standard output."""
    return contextlib.redirect_stdout(sys.stderr)


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
