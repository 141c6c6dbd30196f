"""The chief of a search: gives its trials to workers, processes of this and of other machines."""

import contextlib
import dataclasses
import itertools
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures

import grpc
from keras_tuner.src.distribute.oracle_chief import OracleServicer

from keras_mas.errors import UsageError

from . import channel
from .plan import Plan
from .search import Way
from .trials import TRIALS, Trials
from .workers import NAME, cores, is_of_this_machine, reached_at

# Starts a worker that joins an address, in an environment.
Launch = Callable[[str, Mapping[str, str]], subprocess.Popen]

# Seconds between two looks at the workers; how long they are given to end when all has; and how
# long a network file system may take to pass on what a worker wrote, less than a request may take.
_LOOK, _FAREWELL, _PASSED_ON = 0.1, 5.0, 8.0

# A port that somebody listens on already is refused, not shared.
_OPTIONS = [("grpc.so_reuseport", 0)]


def with_workers(launch: Launch, workers: int, listen: str | None = None) -> Way:
    """Return what runs the trials of a plan in other processes, for `search`.

    A worker that ends or falls silent gives its trial to another one, which goes on after the last
    task that was saved; one of this machine is replaced. A trial that takes two workers with it has
    failed.

    Args:
        launch: Starts a worker of this machine.
        workers: How many, but no more than there are trials; 0 for those of other machines alone.
        listen: `HOST:PORT` at which workers may join; by default any port, from this machine only.

    Raises:
        UsageError: By what is returned, if it cannot listen there.
        RuntimeError: By what is returned, if a worker cannot start or meets an error that would
            come for other trials too.
    """

    def run(plan: Plan, trials: Trials) -> None:
        count = min(workers, plan.expected)
        plan.workers = max(1, count)
        oracle = _Oracle(plan, trials)
        with _listening(oracle, listen or "127.0.0.1:0") as address:
            if listen is not None:
                _say_where(plan, address)
            local = _LocalWorkers(launch, address, count, plan, oracle)
            try:
                local.start(count)
                while not plan.is_finished:
                    local.look()
                    oracle.look(but=local.names)
                    time.sleep(_LOOK)
                oracle.look()
                oracle.say_farewell()
            finally:
                local.end()

    return run


def _say_where(plan, address):
    plan.observer.said(f"workers join with --join {reached_at(address, socket.gethostname())}")
    if not is_of_this_machine(address):
        plan.observer.said(
            f"{address} has no password and nothing is encrypted: whoever reaches it can take and "
            "end trials. Use it within a trusted network."
        )


@contextlib.contextmanager
def _listening(oracle: "_Oracle", listen: str) -> Iterator[str]:
    """Answer requests within the block, at an address that is yielded."""
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8), options=_OPTIONS)
    channel.services.add_OracleServicer_to_server(OracleServicer(oracle), server)
    try:
        port = server.add_insecure_port(listen)
    except RuntimeError:
        port = 0
    if not port:
        raise UsageError(
            f"Expected an address of this machine, with a port that is free, for --listen. "
            f"Received: {listen}. Take another port, or 0 for any."
        )
    server.start()
    try:
        yield f"{listen.rpartition(':')[0]}:{port}"
    finally:
        server.stop(grace=None).wait()


class _Oracle:
    """What keras-tuner's servicer asks, in the place of an oracle of its own.

    Attributes:
        seen: When each worker was heard last, by its name.
        error: What the search cannot go on with; None if there is nothing.
    """

    def __init__(self, plan: Plan, trials: Trials):
        self.plan, self.trials = plan, trials
        self.seen: dict[str, float] = {}
        self.told_end: set[str] = set()
        self.error: Exception | None = None
        self._tasks: dict[int, int] = {}
        # A worker may go on with the trial that an earlier chief gave it under the same number.
        self._own = secrets.token_hex(4)

    def get_space(self):
        return channel.space_of(self.trials.folder.name)

    def create_trial(self, tuner_id):
        with self._heard(tuner_id):
            asked = self.plan.next(tuner_id)
            if asked is not None:
                given = {"values": asked.values, "ended": asked.ended}
                given["search"] = self.trials.folder.name
                return channel.message(self._name(asked.number), channel.RUNNING, **given)
            if self.plan.is_finished:
                self.told_end.add(tuner_id)
                return channel.message("", channel.STOPPED)
        return channel.message("", channel.IDLE)

    def update_trial(self, trial_id, metrics, step=0):
        asked = self._under_way(trial_id)
        if asked is None:
            return channel.message(trial_id, channel.STOPPED)
        with self._heard(asked.worker):
            self._show_task(asked, int(step))
        return channel.message(trial_id, channel.RUNNING)

    def end_trial(self, trial):
        asked = self._under_way(trial.trial_id)
        if asked is None:
            return
        with self._heard(asked.worker):
            said = channel.content_of(trial)
            if trial.status == channel.INVALID:
                del self.seen[asked.worker]
                why = f"worker {asked.worker} was interrupted"
                self.plan.given_back(asked.worker, why, is_to_blame=False)
            elif trial.status == channel.COMPLETED:
                self.plan.finished(asked.number, self._saved(asked, said))
            elif said["is_of_the_trial"]:
                if not self.plan.crashed(asked.number, said["kind"], said["text"]):
                    raise RuntimeError(f"{said['kind']}: {said['text']}")
            else:
                raise RuntimeError(said["text"])

    def look(self, but=()):
        """Notice workers that have fallen silent, and an error of the search."""
        if self.error is not None:
            raise self.error
        for worker, when in list(self.seen.items()):
            if worker not in but and time.monotonic() - when > channel.SILENCE:
                del self.seen[worker]
                why = f"worker {worker} was not heard of for {channel.SILENCE:.0f} s"
                self.plan.given_back(worker, why)

    def say_farewell(self):
        """Wait a moment until every worker has asked for more and been told that all is done."""
        end = time.monotonic() + _FAREWELL
        while set(self.seen) - self.told_end and time.monotonic() < end:
            time.sleep(_LOOK)

    def _name(self, number):
        return f"{self._own}-{number}"

    def _under_way(self, name):
        own, _, number = name.partition("-")
        return self.plan.under_way(int(number)) if own == self._own else None

    @contextlib.contextmanager
    def _heard(self, worker):
        """Note that a worker is alive; an error within the block ends the search."""
        self.seen[worker] = time.monotonic()
        try:
            yield
        except Exception as error:
            self.error = error

    def _show_task(self, asked, task):
        """Tell those who follow a trial which of its tasks, counted from 1, has begun."""
        with self.plan.lock:
            if task > self._tasks.get(asked.number, 0):
                self._tasks[asked.number] = task
                tasks = self.trials.stream.tasks
                epochs = self.trials.settings.recipe.for_task(task - 1)[1]
                for listener in asked.listeners:
                    listener.task_started(task, tasks[task - 1], epochs)

    def _saved(self, asked, said):
        end = time.monotonic() + _PASSED_ON
        while (trial := self.trials.read(asked.values)) is None and time.monotonic() < end:
            time.sleep(_LOOK)
            list(self.trials.folder.glob(f"{TRIALS}/*"))  # has a network file system look anew
        if trial is None:
            raise UsageError(
                f"Expected worker {asked.worker} to write what it found to "
                f"'{self.trials.folder}'. Received: nothing of '{asked.name}' there. Have all "
                "machines use the same --directory, on a file system that they share."
            )
        return dataclasses.replace(
            trial, is_new=True, learned=said["learned"], seconds=said["seconds"]
        )


class _LocalWorkers:
    """The workers of this machine: starts them, replaces those that die, and ends them."""

    def __init__(self, launch, address, count, plan, oracle):
        self.launch, self.plan, self.oracle = launch, plan, oracle
        self.address = reached_at(address, "localhost")
        self.environment = _environment(count)
        self.processes: list[_Process] = []
        self.numbers = itertools.count(1)

    def start(self, count):
        for _ in range(count):
            self._start()

    @property
    def names(self):
        return {process.name for process in self.processes}

    def look(self):
        """Replace workers that have died, and end those that do not answer any more."""
        for process in list(self.processes):
            code = process.popen.poll()
            silent = time.monotonic() - self.oracle.seen.get(process.name, time.monotonic())
            if code is None and silent > channel.SILENCE:
                process.popen.kill()
            elif code is not None and not self.plan.is_finished:
                self._replace(process, code)

    def end(self):
        """End all workers; what they have saved stays."""
        for process in self.processes:
            process.is_ending = True
            process.popen.terminate()
        for process in self.processes:
            try:
                process.popen.wait(_FAREWELL)
            except subprocess.TimeoutExpired:
                process.popen.kill()
                process.popen.wait()
            process.reader.join(_FAREWELL)

    def _replace(self, process, code):
        self.processes.remove(process)
        process.reader.join(_FAREWELL)
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        why = f"worker {process.name} {how}"
        if self.oracle.error is not None:
            raise self.oracle.error
        if process.name not in self.oracle.seen:
            raise RuntimeError(f"{why} before its first trial. {process.last_line}".rstrip())
        del self.oracle.seen[process.name]
        self.plan.given_back(process.name, why)
        if not self.plan.is_finished:
            self._start()

    def _start(self):
        name = str(next(self.numbers))
        popen = self.launch(self.address, {**self.environment, NAME: name})
        self.processes.append(_Process(popen, name, self.plan))


class _Process:
    """A worker of this machine, whose standard error is passed on."""

    def __init__(self, popen, name, plan):
        self.popen, self.name, self.plan = popen, name, plan
        self.last_line, self.is_ending = "", False
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        with self.popen.stderr as lines:
            for line in lines:
                self.last_line = line.strip()
                if not self.is_ending:
                    with self.plan.lock:
                        self.plan.observer.said(self.last_line)


def _environment(workers):
    """Return the environment of each worker: TensorFlow takes its share of the cores."""
    share = str(max(1, cores() // max(1, workers)))
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    return {name: share for name in names} | os.environ
