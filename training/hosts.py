"""Several hosts that learn one run together, as the environment variable TF_CONFIG names them.

Each host runs the same command on the same data. Each takes its part of every batch and of the
importance, and has the same weights after every step. The first one, the chief, writes the run's
folder and reports; the others work in a folder of their own, which begins as a copy of what the
chief's holds and goes when they end. So all decide alike where an interrupted run goes on.
"""

import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_mas.errors import UsageError
from keras_mas.importance.shared_pass import SharedPass, sharing

from .devices import REFUSED_STRATEGIES, Devices
from .rendezvous import meet
from .run_directory import RUN_FILES

# Seconds that the hosts wait for each other when they start.
START_TIMEOUT = 600.0

# Seconds that TensorFlow may take to connect them when all are there.
CONNECTION_TIMEOUT = 120

# Bytes of a file that are sent at a time.
_PIECE = 2**22

# What of a run's folder a worker needs: not the locks, the logs and the picture.
_SENT = re.compile(rf"(?!\.lock|accuracy|training\.csv|tensorboard)({RUN_FILES})")

# A name or a number of a host, IPv6 in brackets, and a port.
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^\s:/\[\]]+):(\d{1,5})")

# What TensorFlow raises where another process has gone.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
    tf.errors.FailedPreconditionError,
)


class LostHostError(RuntimeError):
    """Another process of those that learn together has ended, or cannot be reached."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that learn together.

    Attributes:
        addresses: HOST:PORT of each, the chief's first.
        worker: The number of this one.
    """

    addresses: tuple[str, ...]
    worker: int


def cluster_of_environment() -> Cluster | None:
    """Return what TF_CONFIG says; None if it names no other process.

    Raises:
        UsageError: If it cannot be read, or has processes that cannot learn in step.
    """
    text = os.environ.get("TF_CONFIG", "")
    if not text:
        return None
    try:
        content = json.loads(text)
        jobs = {str(job): list(of) for job, of in content["cluster"].items()}
        kind, number = str(content["task"]["type"]), int(content["task"]["index"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise _unreadable(f"{text!r}") from None
    for job in jobs:
        if job not in ("chief", "worker"):
            why = f": {REFUSED_STRATEGIES['ParameterServerStrategy']}" if job == "ps" else ""
            raise UsageError(
                f"Expected the jobs 'chief' and 'worker' in TF_CONFIG. Received: '{job}'{why}. "
                "Make every process a worker."
            )
    numbered = [(job, k) for job in ("chief", "worker") for k in range(len(jobs.get(job, ())))]
    if (kind, number) not in numbered:
        raise _unreadable(f"the task '{kind}' {number}, which its cluster has not")
    if len(numbered) == 1:
        return None
    addresses = tuple(jobs[job][k] for job, k in numbered)
    for address in addresses:
        if not _is_address(address):
            raise _unreadable(f"the address {address!r}")
        if addresses.count(address) > 1:  # which all would wait for
            raise _unreadable(f"the address '{address}' twice")
    return Cluster(addresses, numbered.index((kind, number)))


def _is_address(given):
    parts = _ADDRESS.fullmatch(given) if isinstance(given, str) else None
    if parts is None or not 1 <= int(parts[2]) <= 65535:
        return False
    try:
        parts[1].encode("idna")  # as a name is looked up
    except UnicodeError:
        return False
    return True


def _unreadable(received):
    return UsageError(
        'Expected TF_CONFIG as {"cluster": {"worker": ["HOST:PORT", …]}, "task": {"type": '
        f'"worker", "index": 0}}}}, with another index on each host. Received: {received}. '
        "Correct it, or unset it to learn in one process."
    )


def join(cluster: Cluster, count: int | str) -> "Hosts":
    """Wait for all processes, and return what they divide batches among.

    Args:
        cluster: The processes.
        count: How many GPUs of each host, or "all"; on hosts without one, 1.

    Raises:
        UsageError: If this host has fewer, or the processes were told different things.
        MissingHostError: If not all have come in time.
        LostHostError: If another process has gone meanwhile.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if isinstance(count, int) and count > max(1, len(gpus)):
        raise UsageError(
            f"Expected `--devices` to be at most {max(1, len(gpus))} on this host. Received: "
            f"{count}. Give the number of GPUs to use of each host."
        )
    if isinstance(count, int):
        tf.config.set_visible_devices(gpus[:count], "GPU")
    others = [each for k, each in enumerate(cluster.addresses) if k != cluster.worker]
    sys.stderr.write(
        f"keras-mas: waiting for {', '.join(others)}, up to {START_TIMEOUT:g} seconds\n"
    )
    sys.stderr.flush()
    meet(cluster.addresses, cluster.worker, START_TIMEOUT)
    sys.stderr.write(
        f"keras-mas: connecting; if another host ends now, this one does in {CONNECTION_TIMEOUT} "
        "seconds\n"
    )
    sys.stderr.flush()
    with reporting_losses(), _ended_by_signals(CONNECTION_TIMEOUT):
        return Hosts(tf.distribute.MultiWorkerMirroredStrategy(), cluster)


@contextlib.contextmanager
def _ended_by_signals(seconds):
    """Have Ctrl-C end the process at once within a block, and an alarm after so many seconds.

    In the block TensorFlow holds Python's lock, so that no handler in Python is run, and takes
    SIGTERM for itself. Afterwards all signals do what they did before.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone can change them
        yield
        return
    numbers = (signal.SIGINT, signal.SIGALRM, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    if before[signal.SIGINT] != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def reporting_losses() -> Iterator[None]:
    """Turn what TensorFlow raises when another process has gone into a `LostHostError`."""
    try:
        yield
    except _LOST as error:
        # TensorFlow leaves a pool of threads open there, which complains if Python's end finds it.
        traceback.clear_frames(error.__traceback__)
        said = (error.message or type(error).__name__).splitlines()[0]
        raise LostHostError(
            f"Another host has ended or cannot be reached: {said.rstrip('.')}. See what it says. "
            "Start the same command on all hosts again: it goes on after the last epoch that was "
            "saved."
        ) from error


class Hosts(Devices):
    """The devices of several processes.

    Args:
        strategy: A `MultiWorkerMirroredStrategy`.
        cluster: The processes.
    """

    strategy: tf.distribute.Strategy

    def __init__(self, strategy: tf.distribute.Strategy, cluster: Cluster):
        super().__init__(strategy)
        self.worker, self.workers = cluster.worker, len(cluster.addresses)

    def sum(self, array: np.ndarray) -> np.ndarray:
        """Return the sum over all processes of an array, on each of them."""
        summed = self.strategy.reduce(
            tf.distribute.ReduceOp.SUM, tf.convert_to_tensor(array), axis=None
        )
        return summed.numpy()

    def sharing_importance(self) -> contextlib.AbstractContextManager[None]:
        """Have every process measure the importance on its part of the batches."""
        return sharing(SharedPass(self.worker, self.workers, self.sum))

    @contextlib.contextmanager
    def own_folder(self, directory: Path) -> Iterator[Path]:
        """Yield the run's folder to the chief, and an empty one to the others.

        All leave the block together.
        """
        with contextlib.ExitStack() as stack:
            if not self.is_chief:
                made = tempfile.TemporaryDirectory(prefix="keras-mas-worker-")
                directory = Path(stack.enter_context(made)) / "run"
            stack.enter_context(reporting_losses())
            yield directory
            self.sum(np.zeros(1, "float32"))

    def take_run(self, directory: Path, description: dict) -> None:
        """Copy what the chief's folder holds into those of the others.

        Raises:
            UsageError: If a process was to learn something else than the chief.
        """
        self._check_same(description)
        paths = sorted(str(path.relative_to(directory).as_posix()) for path in directory.rglob("*"))
        sent = [path for path in paths if _SENT.fullmatch(path)]
        for path in json.loads(self._from_chief(json.dumps(sent).encode())):
            file = directory / path
            content = self._from_chief(file.read_bytes() if self.is_chief else b"")
            if not self.is_chief:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)

    def _check_same(self, description):
        """Refuse processes that differ in anything that decides the result, on all of them."""
        mine = json.loads(json.dumps(description))
        chiefs = json.loads(self._from_chief(json.dumps(mine).encode()))
        differing = [key for key in {**mine, **chiefs} if mine.get(key) != chiefs.get(key)]
        flags = np.zeros(self.workers, "int32")
        flags[self.worker] = bool(differing)
        others = [str(number) for number in np.flatnonzero(self.sum(flags))]
        if others:
            what = f" (here in {', '.join(differing)})" if differing else ""
            raise UsageError(
                "Expected the same command and the same data on every host. Received: others than "
                f"the chief's on worker {', '.join(others)}{what}. Start the same command on all."
            )

    def _from_chief(self, content: bytes) -> bytes:
        """Return the chief's bytes on every process."""
        [length] = self.sum(np.array([len(content) if self.is_chief else 0], "int64"))
        pieces = []
        for start in range(0, int(length), _PIECE):
            piece = np.zeros(min(_PIECE, int(length) - start), "int32")
            if self.is_chief:
                piece[:] = np.frombuffer(content, "uint8", len(piece), start)
            pieces.append(self.sum(piece).astype("uint8").tobytes())
        return b"".join(pieces)
