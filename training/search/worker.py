"""A worker of a search: runs the trials that its chief gives it, in this process."""

import contextlib
import os
import threading
import time
from pathlib import Path

import grpc
import keras
from keras_tuner.engine.trial import Trial as Message

from keras_mas.errors import UsageError

from ..listening import Listener
from ..run_directory import ARGUMENTS, check_content
from ..settings import Settings
from ..tasks import TaskStream
from ..wording import sentence
from . import channel
from .plan import Observer
from .search import SEARCH_FILES, folder_of
from .space import SearchSpace
from .trials import NOT_OF_THE_TRIAL, Trials
from .workers import NAME, is_of_this_machine, worker_name

# For how many seconds a chief is waited for: one that has not been reached yet, since it loads its
# data first; one that has started this process, so that it listens already; one that is not reached
# any more; and such a one on this machine, where nothing lies between that could have failed in its
# place.
_FIRST, _PARENT, _LOST, _LOST_HERE = 60.0, 10.0, 30.0, 3.0
_PAUSE, _TIMEOUT = 0.5, 10.0

_AWAY = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
)
# In what gRPC says of a server that answers in another protocol.
_NO_CHIEF = ("Failed parsing HTTP/2", "http1.x server")
_OPTIONS = [("grpc.max_reconnect_backoff_ms", 1000), ("grpc.enable_http_proxy", 0)]


class ChiefError(RuntimeError):
    """The chief cannot be reached, or not any more; the message says which."""


class _GivenAwayError(Exception):
    """The trial has been given to another worker."""


def join(
    stream: TaskStream,
    settings: Settings,
    space: SearchSpace,
    directory: Path,
    address: str,
    observer: Observer,
) -> int:
    """Run trials of a search until it has ended.

    Args:
        stream: As for `search`.
        settings: As for `search`.
        space: As for `search`.
        directory: As for `search`; the same folder as the chief's.
        address: `HOST:PORT` at which the chief listens.
        observer: Follows the trials of this worker.

    Returns:
        How many trials were run.

    Raises:
        UsageError: If the chief's search is another one, or its folder is not here.
        ChiefError: If the chief cannot be reached, or has ended before the search has.
    """
    folder, description = folder_of(stream, settings, space, directory)
    trials = Trials(stream, settings, space, folder)
    with contextlib.closing(_Chief(address, observer)) as chief:
        _check_same(chief, chief.search(), folder)
        _check_folder(folder, description)
        count = 0
        while (given := chief.next()) is not None:
            # Of a chief that was started again in the meantime, for another search perhaps.
            _check_same(chief, chief.content_of(given)["search"], folder)
            count += 1
            _run(chief, trials, given, observer)
        return count


def _check_same(chief, name, folder):
    if name != folder.name:
        raise UsageError(
            f"Expected the options of the search at {chief.address}, which is '{name}'. Received: "
            f"those of '{folder.name}'. Give the same tasks and options as there; only --workers "
            "and --listen become --join."
        )


def _check_folder(folder, description):
    if not (folder / ARGUMENTS).exists():
        raise UsageError(
            f"Expected the folder of the search, '{folder.name}', in '{folder.parent}'. Received: "
            "a folder without it. Give the --directory of the search, on a file system that its "
            "machines share."
        )
    check_content(folder, description, SEARCH_FILES)


def _run(chief, trials, given, observer):
    """Run a trial, and say what became of it."""
    said = channel.content_of(given)
    name = trials.shown(said["values"])
    listeners = observer.trial_started(name)
    try:
        with _Contact(chief, given.trial_id) as contact:
            trial = trials.run(said["values"], said["ended"], [*listeners, contact])
    except _GivenAwayError:
        observer.said(f"{name} was given to another worker in the meantime")
    except ChiefError:
        raise
    except Exception as error:
        is_of_it = not isinstance(error, NOT_OF_THE_TRIAL)
        kind, text = type(error).__name__, str(error)
        report = {"kind": kind, "text": text, "is_of_the_trial": is_of_it}
        chief.end(given.trial_id, channel.FAILED, **report)
        if not is_of_it:
            raise
        observer.trial_ended(trials.failed(said["values"], f"crashed: {kind}: {text}"))
    except BaseException:  # interrupted
        with contextlib.suppress(ChiefError):
            chief.end(given.trial_id, channel.INVALID)
        raise
    else:
        report = {"learned": trial.learned, "seconds": trial.seconds}
        chief.end(given.trial_id, channel.COMPLETED, **report)
        observer.trial_ended(trial)


class _Chief:
    """The chief, as a worker talks to it."""

    def __init__(self, address, observer):
        self.observer = observer
        self.address, self.name = address, worker_name()
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub = channel.services.OracleStub(self._channel)
        self._patience = _PARENT if NAME in os.environ else _FIRST
        self._was_reached, self._waits = False, False

    def close(self):
        self._channel.close()

    def search(self):
        """Return the name of the chief's search."""
        answer = self._answer(self._stub.GetSpace, channel.request.GetSpaceRequest())
        self._was_reached = True
        self._patience = _LOST_HERE if is_of_this_machine(self.address) else _LOST
        return channel.search_of(channel.space_from(answer.hyperparameters))

    def next(self):
        """Return a trial to run; None if all are done."""
        while True:
            asked = channel.request.CreateTrialRequest(tuner_id=self.name)
            given = Message.from_proto(self._answer(self._stub.CreateTrial, asked).trial)
            if given.status == channel.STOPPED:
                return None
            if given.status == channel.RUNNING:
                return given
            time.sleep(_PAUSE)

    def content_of(self, given):
        """Return what a trial says; one of keras-tuner's own chief says nothing of ours."""
        try:
            return channel.content_of(given)
        except (LookupError, ValueError):
            raise ChiefError(self._other_program()) from None

    def is_ours(self, name, task):
        """Say that a trial is under way, and at which task; return whether it is still ours."""
        about = channel.request.UpdateTrialRequest(trial_id=name, step=task)
        answer = self._answer(self._stub.UpdateTrial, about)
        return Message.from_proto(answer.trial).status == channel.RUNNING

    def end(self, name, status, **report):
        """Say what became of a trial."""
        about = channel.message(name, status, **report).to_proto()
        self._answer(self._stub.EndTrial, channel.request.EndTrialRequest(trial=about))

    def _answer(self, method, asked):
        """Return what the chief answers, when it does."""
        end = time.monotonic() + self._patience
        while (answer := self._attempt(method, asked)) is None:
            if time.monotonic() > end:
                raise ChiefError(self._gone())
            if not self._was_reached and not self._waits:
                self._waits = True
                self.observer.said(f"waiting for the search at {self.address}")
            time.sleep(_PAUSE)
        return answer

    def _attempt(self, method, asked):
        """Return what the chief answers; None if it cannot be reached now."""
        try:
            return method(asked, timeout=_TIMEOUT)
        except grpc.RpcError as error:
            if any(sign in (error.details() or "") for sign in _NO_CHIEF):
                raise ChiefError(self._other_program()) from error
            if error.code() in _AWAY:
                return None
            raise ChiefError(
                sentence(f"The search at {self.address} ended by an error: {error.details()}")
            ) from error

    def _other_program(self):
        return (
            f"What answers at {self.address} is no search of keras_mas. Correct the address of "
            "--join: the search says it when it starts."
        )

    def _gone(self):
        if not self._was_reached:
            return (
                f"Nothing has answered at {self.address} for {self._patience:.0f} s. Start the "
                "search there with `--listen`, or correct the address of --join."
            )
        return (
            f"The search at {self.address} does not answer any more. What has been learned stays "
            "in its folder: start it again with the same command, and then its workers."
        )


class _Contact(Listener):
    """Tells the chief once a second that a trial is under way; ends the trial if that fails.

    It is ended between two calls of the training function, in the thread that trains.
    """

    def __init__(self, chief, name):
        self.chief, self.name = chief, name
        self.task = 0
        self.error: Exception | None = None
        self.callbacks = (_Check(self),)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._done.set()
        self._thread.join()

    def check(self):
        """Raise what ended the contact."""
        if self.error is not None:
            raise self.error

    def task_started(self, number, task, epochs):
        self.check()
        self.task = number

    def task_finished(self, result):
        self.check()

    def _beat(self):
        while not self._done.wait(channel.PULSE):
            try:
                if not self.chief.is_ours(self.name, self.task):
                    self.error = _GivenAwayError()
            except ChiefError as error:
                self.error = error
            if self.error is not None:
                return


class _Check(keras.callbacks.Callback):
    """Looks whether the contact has ended, whenever callbacks are told of batches."""

    def __init__(self, contact: _Contact):
        super().__init__()
        self.contact = contact

    def on_train_batch_end(self, batch, logs=None):
        self.contact.check()
