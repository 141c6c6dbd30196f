"""A map over shards of data by Ray, and Ω over data that one machine cannot read.

Ray gives the shards to workers, on this machine or on many, and gives a shard whose worker was
killed to another one. Only this module knows of Ray, which the extra `distributed` installs.
"""

import collections
import contextlib
import dataclasses
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from keras_mas.errors import UsageError

LOCAL = "local"

# How long an address may take to answer, and then to let a process join its cluster.
_SECONDS = 10.0
_SECONDS_TO_JOIN = 60.0

_JOIN = "import ray, sys; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')"

# Shards that have been given away before the result of the first of them is taken, for each core:
# others go on while one takes longer, and their results wait in Ray's memory.
_AHEAD = 4


def is_installed() -> bool:
    """Return whether Ray is installed."""
    return importlib.util.find_spec("ray") is not None


class ShardError(RuntimeError):
    """A shard could not be measured.

    Attributes:
        shard: The shard.
    """

    def __init__(self, message: str, shard: Any):
        super().__init__(message)
        self.shard = shard


class Cluster:
    """Workers of Ray; a context manager that leaves the cluster, or ends one that it has started.

    Where this process has called `ray.init` before, that cluster is used, and left as it is.

    Args:
        address: `"local"` starts workers on this machine for as long as the context lasts. A
            cluster is named by `HOST:PORT`, from one of its machines; by `"auto"`, for that which
            runs on this machine; or by `ray://HOST:PORT`, from elsewhere.
        workers: With `"local"`, processes at a time; None for one per core.
        retries: How many times a shard is given to another worker when its worker dies.

    Raises:
        UsageError: If Ray is not installed, the address is none, or nothing answers there.
    """

    def __init__(self, address: str = LOCAL, *, workers: int | None = None, retries: int = 3):
        self._ray = _ray()
        if workers is not None and address != LOCAL:
            raise UsageError(
                f"Expected a number of workers with the address 'local' alone. Received: {workers} "
                f"with '{address}', whose machines are divided by Ray. Leave it out."
            )
        self._address, self._workers, self._retries = address, workers, retries
        self._context = contextlib.ExitStack()

    def __enter__(self) -> Self:
        if not self._ray.is_initialized():
            # Ray tells its makers how it is used, unless asked not to.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            with _signals_kept():
                self._connect()
            self._context.callback(self._ray.shutdown)
        # Ray prints there what befalls workers, where results belong.
        self._context.enter_context(contextlib.redirect_stdout(sys.stderr))
        return self

    def __exit__(self, *error: object) -> None:
        self._context.close()

    def map(
        self, function: Callable[..., Any], shards: Sequence[Any], *common: Any
    ) -> Iterator[Any]:
        """Yield `function(shard, *common)` for each shard, in the order of the shards.

        Args:
            function: What a worker does with a shard. It may run several times for one.
            shards: What tells the function where to find its part of the data, such as a path.
            *common: What all calls share, which is sent once to each machine.

        Raises:
            UsageError: As the function.
            ShardError: If the function fails on a shard, or its workers die.
        """
        ray = self._ray
        task = ray.remote(_work).options(
            num_cpus=1, max_retries=self._retries, name=getattr(function, "__name__", "map")
        )
        shared = [ray.put(each) for each in common]
        ahead = max(1, int(_AHEAD * ray.cluster_resources().get("CPU", 1)))
        given: collections.deque = collections.deque()
        for shard in shards:
            given.append((shard, task.remote(function, shard, *shared)))
            if len(given) > ahead:
                yield self._result(*given.popleft())
        while given:
            yield self._result(*given.popleft())

    def _result(self, shard, reference):
        try:
            done = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:  # before or after the function
            raise _failed(shard, _Failure(_first_line(error.cause), "a worker")) from error
        except self._ray.exceptions.RayError as error:
            raise ShardError(
                f"Expected a worker to end its work on the shard '{shard}'. Received: "
                f"{_first_line(error)} This happened {self._retries + 1} times. Look for what "
                "ends it: too little memory, or this shard.",
                shard,
            ) from error
        if isinstance(done, _Failure):
            raise _failed(shard, done)
        return done

    def _connect(self):
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address == LOCAL:
            options |= {"num_cpus": self._workers, "include_dashboard": False}
            # A shard for which there is too little memory would be tried for ever.
            options["_system_config"] = {"task_oom_retries": self._retries}
        else:
            _check_answers(self._address)
            _check_joins(self._address)
        try:
            self._ray.init(address=self._address, **options)
        except (RuntimeError, ValueError, OSError) as error:
            with contextlib.suppress(Exception):
                self._ray.shutdown()
            raise _unreachable(self._address, f"Ray said: {_first_line(error)}") from error


class SentFile:
    """A file that every worker loads once, whichever shards it is given.

    Args:
        content: Its bytes.
        name: Its name.
    """

    _loaded: tuple[str, Any] = ("", None)

    def __init__(self, content: bytes, name: str):
        self._content = np.frombuffer(content, np.uint8)  # which Ray does not copy for every task
        self._name, self._token = name, uuid.uuid4().hex

    def loaded(self, load: Callable[[Path], Any]) -> Any:
        """Return what a function makes of the path of the file, in this process for the first time.

        Args:
            load: The function; the file is removed afterwards.
        """
        token, found = SentFile._loaded
        if token != self._token:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / self._name
                self._content.tofile(path)
                found = load(path)
            SentFile._loaded = self._token, found  # of one call only: the memory of a worker
        return found


def distributed_importance(
    model: Any,
    shards: Iterable[Any],
    read: Callable[[Any], Any] | None = None,
    *,
    address: str = LOCAL,
    workers: int | None = None,
    retries: int = 3,
    custom_objects: dict[str, Any] | None = None,
    on_progress: Callable[[int, int], object] | None = None,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Mean sensitivity of the squared output norm to every weight, over shards of data.

    As `compute_importance`,

        Ω = 1/N Σ_s Σ_{k in s} |∂‖F(x_k; θ)‖² / ∂θ|

    where a worker of Ray measures the inner sum over a shard s, and N_s, the number of its
    examples, which make N. The sums are added in float64, in the order of the shards, whichever is
    done first, so that the result is the same each time, and that of one process to rounding. A
    shard whose worker is killed is measured again, by another one.

    Args:
        model: Built `keras.Model`, or the path of a `.keras` file. It is sent to the workers as
            such a file, and must be loadable from it.
        shards: What tells where each part of the data is, such as paths of files that all workers
            can read; every example is in one of them.
        read: Function from a shard to data as `compute_importance` takes them, of at least one
            example; called on a worker. None if the shards are such data themselves.
        address: Which cluster, as for `Cluster`.
        workers: As for `Cluster`.
        retries: As for `Cluster`.
        custom_objects: Classes of the model that are not Keras's own, as for
            `keras.saving.load_model`.
        on_progress: Called after every shard with the number of those that are done, in their
            order, and that of all.
        **options: As for `compute_importance`, such as `batch_size` and `output`.

    Returns:
        As `compute_importance`, by the names of the weights in the model, or in the file.

    Raises:
        UsageError: As `Cluster`.
        ShardError: As `Cluster.map`; its message names the shard.
        ValueError: If there is no shard.

    Example:
        omega = distributed_importance("model.keras", ["1.npy", "2.npy"], np.load, workers=2)
    """
    from keras_mas.weights import trainable_weights

    shards = list(shards)
    if not shards:
        raise ValueError("Expected at least one shard. Received: none. Name the parts of the data.")
    is_file = isinstance(model, str | os.PathLike)
    file = SentFile(Path(model).read_bytes() if is_file else _saved(model), "model.keras")
    with Cluster(address, workers=workers, retries=retries) as cluster:
        parts = cluster.map(_shard_sums, shards, file, read, custom_objects, options)
        total, dtypes = _added(_reported(parts, len(shards), on_progress))
    names = dtypes if is_file else trainable_weights(model)
    omega = zip(names, dtypes.values(), total.mean().values(), strict=True)
    return {name: values.astype(dtype) for name, dtype, values in omega}


def _shard_sums(shard, file, read, custom_objects, options):
    import keras

    from keras_mas.importance import measure_sums

    def load(path):
        return keras.saving.load_model(path, custom_objects=custom_objects, compile=False)

    data = shard if read is None else read(shard)
    return measure_sums(file.loaded(load), data, verbose=0, **options)


def _added(parts):
    """Return the sums of all parts in float64, and the dtypes that they had."""
    total = None
    for part in parts:
        wide = {name: sums.astype(np.float64) for name, sums in part.sums.items()}
        added = dataclasses.replace(part, sums=wide)
        total = added if total is None else total + added
    return total, {name: sums.dtype for name, sums in part.sums.items()}


def _reported(parts, total, on_progress):
    for number, part in enumerate(parts, 1):
        if on_progress is not None:
            on_progress(number, total)
        yield part


def _saved(model):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.read_bytes()


@dataclasses.dataclass(frozen=True)
class _Failure:
    """What the function raised on a worker: bad input, which says all, or the words of an error."""

    error: UsageError | str
    host: str


def _work(function, shard, *common):
    """Return what the function does, or its failure; a task of Ray."""
    _take_one_core()
    try:
        return function(shard, *common)
    except UsageError as error:
        return _Failure(error, socket.gethostname())
    except Exception as error:  # which this process alone may be able to hold
        return _Failure(f"{type(error).__name__}: {_first_line(error)}", socket.gethostname())


def _take_one_core():
    """Let TensorFlow, when it starts, use the one core that Ray has given to this worker."""
    for threads in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(threads, "1")


def _failed(shard, failure):
    if isinstance(failure.error, UsageError):
        return failure.error
    return ShardError(
        f"Expected to measure the shard '{shard}'. Received, on {failure.host}: {failure.error} "
        "Correct the shard, or leave it out.",
        shard,
    )


def _first_line(error):
    text = f"{error}".strip().partition("\n")[0] or type(error).__name__
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _ray():
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError(
            "Expected the package 'ray', which divides the work. Received: it is not installed. "
            "Install it, on every machine, with: pip install 'keras-mas[distributed]'"
        ) from error
    return ray


def _check_answers(address):
    """Refuse an address at which no server of Ray can be."""
    import grpc

    if address == "auto":
        return
    target = address.removeprefix("ray://")
    host, _, port = target.rpartition(":")
    if not (host and port.isdecimal()):
        raise UsageError(
            "Expected the address of a cluster as HOST:PORT, ray://HOST:PORT, 'auto' or 'local'. "
            f"Received: '{address}'. See `ray status`, or name 'local'."
        )
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS):
            pass
    except (OSError, OverflowError) as error:
        raise _unreachable(address, _first_line(error)) from error
    if os.environ.get("RAY_USE_TLS", "0") == "1":
        return
    with grpc.insecure_channel(target) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_SECONDS)
        except grpc.FutureTimeoutError as error:
            raise _unreachable(address, "another server answers there.") from error


def _check_joins(address):
    """Refuse an address at which there is no cluster; Ray itself may try for a quarter of an hour.

    A process of its own tries, which can be ended.
    """
    words = [sys.executable, "-c", _JOIN, address]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS_TO_JOIN,
        )
    except subprocess.TimeoutExpired as error:
        what = f"no answer of Ray within {_SECONDS_TO_JOIN:g} seconds."
        raise _unreachable(address, what) from error
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise _unreachable(address, f"Ray said: {_first_line(last)}")


def _unreachable(address, what):
    return UsageError(
        f"Expected a cluster of Ray at '{address}', of this version. Received: {what} Start one "
        "with `ray start --head`, set RAY_AUTH_MODE=token if it asks for a token, correct the "
        "address, or name 'local' for this machine alone."
    )


@contextlib.contextmanager
def _signals_kept():
    """Have SIGTERM handled as before: Ray takes it over, and ends the process by `SystemExit`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, terminated = signal.getsignal(signal.SIGTERM), False
    try:
        yield
    except SystemExit as error:
        terminated = error.code == signal.SIGTERM
        if not terminated:
            raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if terminated:
        signal.raise_signal(signal.SIGTERM)
