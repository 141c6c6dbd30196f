"""A `Tuner` of keras-tuner for sequences of tasks: λ, and more, of a user's own Keras models.

A trial of keras-tuner is one `fit`, judged by its best epoch. Here it is a whole sequence: the
tasks are learned in turn, each is consolidated, and the accuracy on all of them at the end counts.
"""

import contextlib
import errno
import gc
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import keras_tuner as kt
import numpy as np

from keras_mas import metrics
from keras_mas.arrays import load_arrays, save_arrays
from keras_mas.files import check_writable
from keras_mas.finite import FitDivergedError

from ..console import result_console
from ..run_directory import locked
from ..tasks.inputs import digest
from .dimensions import STRENGTH
from .hparams import write_trial
from .hypermodel import TrialNetwork, adapted, architecture, checked_build
from .own_tasks import OwnTask, fingerprint, own_tasks
from .trial import bounded_accuracy
from .tuner_checks import (
    TunerNumbers,
    check_callbacks,
    check_fit,
    check_oracle,
    check_penalties,
    check_strengths,
    check_unused,
)
from .tuner_folder import (
    check_own,
    check_same,
    describe,
    described_fit,
    described_space,
    read_oracle,
    write_whole,
)

# What every trial reports, beside the accuracy on each task.
ACCURACY, FORGETTING, TRANSFER = "average_accuracy", "forgetting", "backward_transfer"
BOUNDED, DIVERGED = "bounded_accuracy", "diverged"

_DECLARE = 'hp.Float("strength", 1e-3, 1e3, sampling="log")'
_PROJECT = "untitled_project"  # as keras-tuner has it
_WEIGHTS = "learned.npz"
_FAILURE = "failure.txt"
# How keras-tuner's error begins when it stops after several failures in a row.
_IN_A_ROW = "Number of consecutive failures"
_FULL = (errno.ENOSPC, errno.EDQUOT)
# More trials than there are.
_ALL = 10**9


class _EndedError(kt.errors.FatalError, OSError):
    """An error of a file or a disk in a trial, of the kind that ends a search of keras-tuner."""


class ContinualTuner(kt.Tuner):
    """Searches λ, and anything else, with an oracle of keras-tuner.

        tuner = ContinualTuner(build, kt.oracles.RandomSearchOracle(max_trials=10))
        tuner.search({"january": (train, validation), "february": …}, epochs=5)
        tuner.get_best_hyperparameters()[0]["strength"]

    A trial learns the tasks in turn, with the same initial weights as every other trial, and
    reports on validation data: `average_accuracy`, `forgetting` and `backward_transfer` at the end,
    `accuracy/NAME` of every task, and `diverged`, 1 if the loss was no finite number. Then the
    accuracies count as 0 and forgetting as 1, and the search goes on.

    keras-tuner's chief and workers run trials in several processes, over a folder that they share
    (`KERASTUNER_TUNER_ID`, `KERASTUNER_ORACLE_IP`, `KERASTUNER_ORACLE_PORT`).

    The same script again continues a search that was cut off, as any search of keras-tuner: trials
    that ended are kept, and one that was under way begins anew with the same hyperparameters.

    Args:
        hypermodel: `ContinualHyperModel`; or a function from hyperparameters to what its `build`
            returns; or another `keras_tuner.HyperModel`, whose `fit` is used.
        oracle: Random, grid or Bayesian. Hyperband is refused: it goes on from weights of an
            earlier trial in the middle of a `fit`, and a sequence of tasks has many.
        max_forgetting: If given, the objective is `bounded_accuracy`, the average accuracy less ten
            times what forgetting exceeds this bound by; without it, `average_accuracy`.
        keep_models: Of how many of the best trials the weights are kept on disk; 0 for none.
        seed: Of the initial weights and the order of the examples; of the second execution of a
            trial seed + 1, and so on.
        **kwargs: As for `keras_tuner.Tuner`: `directory`, `project_name`, `overwrite`,
            `executions_per_trial`, ….

    Raises:
        ValueError: If the oracle is Hyperband's or has another objective, "strength" is not
            declared or has values that the method does not take, another number is out of its
            bounds, or the directory cannot be written, or holds a search of other trials or of
            another tuner.
        TypeError: If what is built is no model.
        DamagedError: If a file of the search in the directory cannot be read; it is named.
        InUseError: If what is to be overwritten is a search that is under way.
    """

    def __init__(
        self,
        hypermodel: Any,
        oracle: kt.Oracle,
        *,
        max_forgetting: float | None = None,
        keep_models: int = 1,
        seed: int = 0,
        **kwargs: Any,
    ):
        check_unused(kwargs)
        executions = kwargs.get("executions_per_trial", 1)
        TunerNumbers(max_forgetting, keep_models, seed, executions)
        check_oracle(oracle, BOUNDED if max_forgetting is not None else ACCURACY)
        self.max_forgetting, self.keep_models, self.seed = max_forgetting, keep_models, seed
        # What is known, before a search, of what makes a trial another one.
        self._known: dict[str, Any] = {
            "oracle": type(oracle).__name__,
            "max_forgetting": max_forgetting,
            "seed": seed,
            "executions_per_trial": executions,
        }
        self._read: kt.Oracle | None = None  # of a worker that has searched: what is on disk
        self._tasks: list[OwnTask] = []
        hypermodel = adapted(hypermodel)
        hypermodel.build = checked_build(hypermodel.build)
        write_whole(oracle)
        folder = Path(kwargs.get("directory") or ".", kwargs.get("project_name") or _PROJECT)
        check_writable(folder)
        if self._is_worker():
            kwargs["overwrite"] = False  # of what its chief has begun
        elif kwargs.get("overwrite") and folder.exists():
            with locked(folder):  # or another process is at work in it
                pass
        super().__init__(oracle, hypermodel, **kwargs)
        if STRENGTH not in {each.name for each in oracle.get_space().space}:
            raise ValueError(
                "Expected the hyperparameter 'strength', which λ is taken from. Received: "
                f"{', '.join(each.name for each in oracle.get_space().space) or 'none'}. Call "
                f"`{_DECLARE}` in `build`, or `hp.Fixed` for a single λ."
            )
        check_strengths(hypermodel, oracle.get_space())
        check_penalties(hypermodel, oracle.get_space())

    def search(self, tasks: Any, **fit_arguments: Any) -> None:
        """Try hyperparameters until the oracle has no more.

        Args:
            tasks: The tasks in the order in which they are learned: a dict from name to (training
                data, validation data), or a list of such pairs. Each part is (x, y), y being class
                numbers `[N]`, or a `tf.data.Dataset` or `keras.utils.PyDataset` of batches (x, y).
            **fit_arguments: Passed to `fit` for every task, such as `epochs`, `batch_size` and
                `callbacks`, which are copied for every task, and see its validation data as
                `val_loss`.

        Raises:
            ValueError: If the tasks or the arguments cannot be used, or the directory holds a
                search of other tasks, of another network or with another `fit`.
            TypeError: As `own_tasks`.
            RuntimeError: If no trial was completed, or several failed in a row.
            InUseError: If another process searches in the directory.
            OSError: If a file cannot be read or written, as on a full disk, in a trial too. The
                trials that were completed are kept.
        """
        check_callbacks(fit_arguments.get("callbacks") or ())
        keras.backend.clear_session()  # names count from 1 again
        built = self.hypermodel.build(self.oracle.get_space())
        check_fit(fit_arguments, self.hypermodel, built)
        self._tasks = own_tasks(tasks)
        # Everything that makes a trial another one.
        described = self._known | {
            "tasks": fingerprint(self._tasks),
            "network": digest(architecture(built)),
            "fit": described_fit(fit_arguments),
        }
        del built
        with self._naming_failures(), self._claimed():
            check_same(self._folder, described)
            if not self._is_worker():
                self.reload()  # another process may have gone on since this tuner was made
                describe(self._folder, described)
                self.save()
            super().search(self._tasks, **fit_arguments)
        if self._is_worker():
            self._read = self.oracle._oracle
            read_oracle(self._read)
        else:
            self._report_failures()

    def run_trial(self, trial: Any, tasks: Sequence[OwnTask], **fit_arguments: Any) -> Any:
        """Learn all tasks with the hyperparameters of a trial, once for every execution.

        Args:
            trial: The trial.
            tasks: The tasks.
            **fit_arguments: As for `search`.

        Returns:
            A dict of metrics for each execution.
        """
        results = []
        for execution in range(self.executions_per_trial):
            network = self._network(trial.hyperparameters, tasks, self.seed + execution)
            matrix = self._learned(network, trial, execution, tasks, fit_arguments)
            if not execution:
                self._best_weights(trial).unlink(missing_ok=True)
                if matrix is not None:
                    self._save(network, trial)
            results.append(self._metrics(matrix, tasks))
            for callback in filter(_is_tensorboard, fit_arguments.get("callbacks") or ()):
                folder = self._get_tensorboard_dir(callback.log_dir, trial.trial_id, execution)
                write_trial(Path(folder), trial.trial_id, trial.hyperparameters.values, results[-1])
        return results

    def _run_and_update_trial(self, trial, *arguments, **fit_arguments):
        try:
            super()._run_and_update_trial(trial, *arguments, **fit_arguments)
        except OSError as error:  # which would come for the next trial too
            raise _EndedError(error.errno, error.strerror or str(error)) from error

    def on_trial_end(self, trial: Any) -> None:
        """Tell the oracle, and remove the weights of trials that are not among the best."""
        if trial.message and self._is_worker():  # which keras-tuner does not send to the chief
            self._failure_of(trial).write_text(trial.message, encoding="utf-8")
        super().on_trial_end(trial)
        for other in self._completed()[self.keep_models :]:
            self._best_weights(other).unlink(missing_ok=True)

    def get_best_hyperparameters(self, num_trials: int = 1) -> list[kt.HyperParameters]:
        """Return the best hyperparameters of trials that were completed, at most so many."""
        return [trial.hyperparameters for trial in self._completed()[:num_trials]]

    def get_best_models(self, num_models: int = 1) -> list[keras.Model]:
        """Return what the best trials had learned after the last task.

        Args:
            num_models: How many, at most `keep_models`.

        Returns:
            The models; with a head for every task, one of all heads, whose output is a dict by the
            name of the task. They are not protected any more.

        Raises:
            ValueError: If more are asked for than were kept, or no search has been made or read.
        """
        if num_models > self.keep_models:
            raise ValueError(
                f"Expected at most {self.keep_models} models, the weights of so many trials being "
                f"kept. Received: {num_models}. Make the tuner with keep_models={num_models}, "
                "before the search."
            )
        if not self._tasks:
            raise ValueError(
                "Expected a search before its models are asked for. Received: none. Call `search` "
                "with the tasks, which reads the trials that are there."
            )
        return [self.load_model(trial) for trial in self._completed()[:num_models]]

    def load_model(self, trial: Any) -> keras.Model:
        """Return the model of a trial whose weights were kept."""
        network = self._network(trial.hyperparameters, self._tasks, self.seed)
        model = network.whole()
        load_arrays(
            self._best_weights(trial),
            lambda arrays: model.set_weights([arrays[str(k)] for k in range(len(arrays))]),
            "the weights of a trial",
        )
        network.release()
        return model

    def results_summary(self, num_trials: int = 10) -> None:
        """Print the best trials, and how many were not completed."""
        lines = [f"Results in {self.project_dir}, {self.oracle.objective.name}"]
        for trial in self._completed()[:num_trials]:
            found = {name: trial.metrics.get_best_value(name) for name in (ACCURACY, FORGETTING)}
            shown = "  ".join(f"{name} {value:.4f}" for name, value in found.items())
            lines.append(f"trial {trial.trial_id}  {shown}  {_values(trial)}")
        console = result_console()
        for line in [*lines, *self._failures()]:
            console.print(line, soft_wrap=True)

    def save(self) -> None:
        """Write what the oracle knows; the tuner knows nothing beside it."""
        if not self._is_worker():
            self.oracle.save()

    def reload(self) -> None:
        """Go on from the search in the directory, if there is one."""
        if not self._is_worker():
            check_own(self._folder)
            check_same(self._folder, self._known)
            read_oracle(self.oracle)

    def _populate_initial_space(self):
        super()._populate_initial_space()
        self._known["hyperparameters"] = described_space(self.oracle.get_space())
        self.reload()

    @property
    def _folder(self):
        return Path(self.project_dir)

    def _network(self, hp, tasks, seed):
        keras.backend.clear_session()
        gc.collect()  # models are parts of cycles
        keras.utils.set_random_seed(seed)
        return TrialNetwork(self.hypermodel, hp, tasks)

    def _learned(self, network, trial, execution, tasks, fit_arguments):
        """Return the accuracy matrix, or None if the loss was not finite."""
        rows = []
        arguments = dict(fit_arguments)
        given = arguments.pop("callbacks", None) or []
        for number, task in enumerate(tasks):
            callbacks = self._callbacks(given, trial, execution, task)
            if callbacks:
                arguments["validation_data"] = _validation(task)
            model = network.models[number]
            network.method.before_task(model, *task.train.for_fit)
            callbacks += [*network.method.callbacks(), keras.callbacks.TerminateOnNaN()]
            try:
                history = self.hypermodel.fit(
                    trial.hyperparameters,
                    model,
                    *task.train.for_fit,
                    callbacks=callbacks,
                    **arguments,
                )
            except FitDivergedError:  # which only a `fit` raises that a memory follows
                return None
            if not _is_finite(history, model):
                return None
            network.method.after_task(model, *task.train.for_fit)
            with network.method.evaluated():
                pairs = zip(network.models, tasks, strict=True)
                rows.append([_accuracy(each, other) for each, other in pairs])
        return rows

    def _callbacks(self, given, trial, execution, task):
        """Return copies of callbacks for one `fit`, with a folder of its own for TensorBoard."""
        callbacks = self._deepcopy_callbacks(list(given))
        for callback in filter(_is_tensorboard, callbacks):
            folder = self._get_tensorboard_dir(callback.log_dir, trial.trial_id, execution)
            callback.log_dir = str(Path(folder) / task.name)
        return callbacks

    def _metrics(self, matrix, tasks):
        diverged = matrix is None
        if diverged:  # nothing is worse: all is forgotten, which a bound on forgetting counts too
            matrix = np.eye(len(tasks))
            matrix[-1] = 0.0
            matrix = matrix.tolist()
        accuracy, forgetting = metrics.average_accuracy(matrix), metrics.forgetting(matrix)
        found = {
            ACCURACY: accuracy,
            FORGETTING: forgetting,
            TRANSFER: metrics.backward_transfer(matrix),
            BOUNDED: bounded_accuracy(accuracy, forgetting, self.max_forgetting),
            DIVERGED: float(diverged),
        }
        of_tasks = zip(tasks, matrix[-1], strict=True)
        return found | {f"accuracy/{task.name}": value for task, value in of_tasks}

    def _save(self, network, trial):
        path = self._best_weights(trial)
        path.parent.mkdir(parents=True, exist_ok=True)
        with network.method.evaluated():
            weights = network.whole().get_weights()
        save_arrays(path, {str(k): weight for k, weight in enumerate(weights)})

    def _best_weights(self, trial):
        return Path(self.get_trial_dir(trial.trial_id)) / _WEIGHTS

    def _completed(self):
        """Return the trials that were completed and did not diverge, the best first."""
        return [t for t in self._trials() if t.status == "COMPLETED" and not _has_diverged(t)]

    def _trials(self):
        """Return all trials, those that were completed first, in the order of their score."""
        return (self._read or self.oracle).get_best_trials(_ALL)

    def _failures(self):
        """Return a line for every trial that was not completed."""
        for trial in self._trials():
            if trial.status == "COMPLETED" and _has_diverged(trial):
                yield f"trial {trial.trial_id} diverged: {_values(trial)}"
            elif trial.status in ("FAILED", "INVALID"):
                *_, last = self._message(trial).strip().splitlines()
                yield f"trial {trial.trial_id} failed: {_values(trial)}: {last.rstrip('.')}"

    def _failure_of(self, trial):
        return Path(self.get_trial_dir(trial.trial_id)) / _FAILURE

    def _message(self, trial):
        """Return why a trial failed, in this process or in that of a worker."""
        path = self._failure_of(trial)
        if not trial.message and path.exists():
            return path.read_text(encoding="utf-8")
        return trial.message or "no message"

    @contextlib.contextmanager
    def _naming_failures(self):
        """Say what ended a search: a file or a disk, or several trials that failed in a row."""
        try:
            yield
        except OSError as error:
            cure = "Make room" if error.errno in _FULL else "Correct it"
            raise OSError(
                error.errno,
                f"{error.strerror or error}. The search in '{self.project_dir}' ended, and keeps "
                f"the trials that were completed. {cure}, and run the same script again",
                error.filename,
            ) from error
        except RuntimeError as error:
            if not str(error).startswith(_IN_A_ROW):
                raise
            raise RuntimeError(
                f"Expected trials that learn all tasks. Received: {'; '.join(self._failures())}. "
                f"After {self.oracle.max_consecutive_failed_trials} failures in a row, the "
                "oracle's max_consecutive_failed_trials, a search ends. Correct what failed, and "
                "call with `overwrite=True`."
            ) from error

    def _report_failures(self):
        failures = list(self._failures())
        if not failures:
            return
        text = "; ".join(failures)
        if not self._completed():
            raise RuntimeError(
                f"Expected a trial that learned all tasks. Received: none of {len(failures)}: "
                f"{text}. Correct what failed, lower the learning rate or the largest λ, and call "
                "with `overwrite=True`."
            )
        total = len(self._trials())
        warnings.warn(f"{len(failures)} of {total} trials gave no result: {text}.", stacklevel=3)

    def _claimed(self):
        """Hold the directory for this search; a worker's is held by its chief."""
        return contextlib.nullcontext() if self._is_worker() else locked(self._folder)


def _accuracy(model, task):
    """Return the share of the validation examples whose largest output is that of their label."""
    right = total = 0
    for inputs, labels in task.validation.batches():
        outputs = np.asarray(model.predict_on_batch(inputs))
        right += int(np.sum(outputs.argmax(axis=-1) == labels))
        total += len(labels)
    return right / total


def _is_finite(history, model):
    """Return whether the loss and the weights are finite after a `fit`."""
    losses = getattr(history, "history", {}).get("loss", [])
    weights = (keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights)
    return all(map(math.isfinite, losses[-1:])) and all(np.all(np.isfinite(w)) for w in weights)


def _validation(task):
    """Return validation data as `fit` takes them: a dataset, or (x, y)."""
    data = task.validation.for_fit
    return data if len(data) > 1 else data[0]


def _is_tensorboard(callback):
    return isinstance(callback, keras.callbacks.TensorBoard)


def _has_diverged(trial):
    return trial.metrics.exists(DIVERGED) and trial.metrics.get_best_value(DIVERGED) > 0


def _values(trial):
    """Return the hyperparameters of a trial in a line."""
    values = trial.hyperparameters.values.items()
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values)
