"""The methods of both clients."""

import abc
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from keras_mas.errors import UsageError

from ..conventions import DEFAULT_SIGNATURE, MAX_SECONDS
from .batches import Arrays, as_array, batches, joined, without_rows
from .errors import OTHER_ADVICE, ServingError, error_of
from .retries import retried
from .tls import Tls
from .versions import Readiness, VersionStatus, newest, readiness

_Result = TypeVar("_Result")

_POLL_SECONDS = 0.2

# The number of a version is an int64 on the wire.
_MAX_VERSION = 2**63 - 1

# A number behind the last colon; what precedes it is any of the many kinds of addresses.
_LAST_PORT = 65535
_PORT = re.compile(r":(-?[0-9]+)$")

# What addresses of gRPC begin with that are no HOST:PORT.
_RESOLVERS = ("unix", "vsock:", "dns:", "ipv4:", "ipv6:", "xds:")


class Which(NamedTuple):
    """What a request is about: a model, and if given, its version by number or label."""

    name: str
    version: int | None = None
    label: str | None = None


def _which(name: str, version: int | None, label: str | None) -> Which:
    """Return what a request is about, as a server can tell it."""
    if version is not None and label is not None:
        raise UsageError(
            f"Expected a version or a label of '{name}', which names one. Received: version "
            f"{version} and label '{label}'."
        )
    if version is not None and (type(version) is not int or not 0 <= version <= _MAX_VERSION):
        raise UsageError(
            f"Expected a version of '{name}' as an integer from 0 to 2⁶³ − 1. Received: "
            f"{version!r}."
        )
    if label is not None and (not isinstance(label, str) or not label):
        raise UsageError(
            f"Expected a label of '{name}', a text that is not empty. Received: {label!r}. Leave "
            "it out for the latest version."
        )
    return Which(name, version, label)


def _check_timeout(timeout: object) -> None:
    if not isinstance(timeout, int | float) or not 0 < timeout <= MAX_SECONDS:
        raise UsageError(
            "Expected `timeout` to be a positive number of seconds, "
            f"{MAX_SECONDS:,} at most. Received: {timeout!r}."
        )


def _check_address(host_port: str) -> None:
    if set("/?#@") & set(host_port) and not host_port.startswith(_RESOLVERS):
        raise UsageError(
            "Expected the address of a server as HOST:PORT, such as 'localhost:8501'. Received: "
            f"'{host_port}'. Leave out 'http://' and what follows the port; TLS is an option of "
            "its own."
        )
    port = _PORT.search(host_port)
    if port and not 1 <= int(port[1]) <= _LAST_PORT and not host_port.startswith("unix"):
        raise UsageError(
            f"Expected the address of a server as HOST:PORT, with a port from 1 to {_LAST_PORT}. "
            f"Received: '{host_port}'. Correct the port."
        )


class Prediction(dict[str, np.ndarray]):
    """Outputs by name.

    Attributes:
        version: The version of the model that computed them; None if the server does not say.
    """

    def __init__(self, outputs: Mapping[str, np.ndarray], version: int | None):
        super().__init__(outputs)
        self.version = version


class Client(abc.ABC):
    """The methods of both clients.

    A request that the server could not take, because it cannot be reached, is just starting, closes
    the connection (UNAVAILABLE) or stops (CANCELLED), is sent again after 0.1 s, 0.2 s and so on,
    each shortened by up to a half at random, as long as `timeout` allows. That is safe because
    every request of this client only asks. What was answered, or ran out of time, is not sent
    again.

    Args:
        host_port: Where the server listens, as `localhost:8500`.
        timeout: Seconds that a request may take, with its retries, unless it says otherwise.
        retries: How often a request is sent again at most, ≥ 0.
        tls: How the connection is encrypted; None for a connection that is not.

    Raises:
        UsageError: If `timeout` is no positive number up to `MAX_SECONDS`, `retries` no integer
            ≥ 0, the port none from 1 to 65535, or the address a URL.
    """

    def __init__(
        self,
        host_port: str,
        *,
        timeout: float = 10.0,
        retries: int = 2,
        tls: Tls | None = None,
    ):
        _check_timeout(timeout)
        if type(retries) is not int or retries < 0:
            raise UsageError(f"Expected `retries` to be an integer ≥ 0. Received: {retries!r}.")
        _check_address(host_port)
        self.host_port = host_port
        self.timeout = timeout
        self.retries = retries
        self.tls = tls
        self._is_closed = False

    def predict(
        self,
        name: str,
        inputs: Mapping[str, ArrayLike],
        *,
        signature: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        label: str | None = None,
        batch_size: int | None = None,
        timeout: float | None = None,
    ) -> Prediction:
        """Run a signature of a model on one batch of inputs.

        Args:
            name: Name of the model.
            inputs: Mapping from input name to array, of the signature's dtypes and shapes. Lists of
                Python floats are taken for float32.
            signature: Name of the signature; each task has its own.
            version: Version to use. Default: the latest that the server has loaded.
            label: Label of the version to use instead, such as "canary".
            batch_size: Inputs per request, ≥ 1. More are sent in several requests, one after the
                other, which the same version answers. Every output then has to have a row per
                input. Default: all in one, whatever the shapes of the outputs are.
            timeout: Seconds that a request may take, each of several, with its retries. Default:
                the client's own.

        Returns:
            A `Prediction`: a dict from output name to array of the signature's dtype, where strings
            are object arrays of `str`, with the `version` that answered.

        Raises:
            UsageError: If an input cannot be written as a tensor, the version is no version, the
                label is empty, both are given, inputs cannot be divided, `timeout` is none that a
                client takes, or the client is closed.
            ServingError: If the server refuses the request, fails, does not answer, or answers
                with something other than the outputs of the signature, or with more or fewer rows
                than `batch_size` asks for.
        """
        if timeout is not None:
            _check_timeout(timeout)
        which = _which(name, version, label)
        arrays = {key: as_array(key, value) for key, value in inputs.items()}
        answers = []
        for batch in batches(arrays, batch_size):
            ask = partial(self._predict, which, batch, signature)
            answer, answered = self._retried(ask, timeout)
            if batch_size is not None and (wrong := without_rows(answer, batch)):
                raise error_of(name, self.host_port, "UNKNOWN", wrong)
            answers.append(answer)
            if answered is not None:  # a label may move to another version meanwhile
                which = Which(name, answered)
        return Prediction(joined(answers), which.version)

    def signatures(
        self, name: str, *, version: int | None = None, label: str | None = None
    ) -> Mapping[str, Any]:
        """Return the signatures of a model.

        Args:
            name: Name of the model.
            version: Version to ask about. Default: the latest that the server has loaded.
            label: Label of the version to ask about instead.

        Returns:
            Mapping from signature name to a message with the fields of TensorFlow's `SignatureDef`.

        Raises:
            UsageError: If the version is no version, the label is empty, or both are given.
            ServingError: If the server does not know the model, does not answer, or answers with
                something else.
        """
        which = _which(name, version, label)
        return self._retried(lambda seconds: self._metadata(which, seconds))[0]

    def status(self, name: str) -> list[VersionStatus]:
        """Return the state of every version of a model.

        Args:
            name: Name of the model.

        Returns:
            List of `VersionStatus` by ascending version.

        Raises:
            ServingError: If the server does not know the model or does not answer.
        """
        return self._retried(lambda seconds: self._status(name, seconds))

    def wait_until_available(self, name: str, timeout: float) -> int:
        """Wait until the newest version of a model answers requests.

        The server need not be up yet, nor know the model yet.

        Args:
            name: Name of the model.
            timeout: Seconds to wait at most.

        Returns:
            The version, an integer.

        Raises:
            ServingError: If `timeout` has passed, or at once if the newest version failed to load.
        """
        self._check_open()
        deadline = time.monotonic() + timeout
        while True:
            statuses, received = self._try_status(name, max(deadline - time.monotonic(), 0.01))
            ready = readiness(statuses)
            if ready is Readiness.AVAILABLE:
                return newest(statuses).version
            if ready is Readiness.FAILED or time.monotonic() + _POLL_SECONDS > deadline:
                raise ServingError(
                    f"Expected model '{name}' to be available at {self.host_port} within "
                    f"{timeout} s. Received: {received} {OTHER_ADVICE}"
                )
            time.sleep(_POLL_SECONDS)

    def close(self) -> None:
        """Close the connection, for good."""
        self._is_closed = True
        self._close()

    @abc.abstractmethod
    def _close(self) -> None: ...

    @abc.abstractmethod
    def _predict(
        self, which: Which, arrays: Arrays, signature: str, seconds: float
    ) -> tuple[Arrays, int | None]:
        """Return the outputs, and the version that answered, if the server says so."""

    @abc.abstractmethod
    def _metadata(self, which: Which, seconds: float) -> tuple[Mapping[str, Any], int]:
        """Return the signatures of a version, and its number."""

    @abc.abstractmethod
    def _status(self, name: str, seconds: float) -> list[VersionStatus]: ...

    def _retried(self, call: Callable[[float], _Result], timeout: float | None = None) -> _Result:
        """Call a function with the seconds that it may take, again while there is no server."""

        def attempt(seconds: float) -> _Result:
            self._check_open()  # another thread may have closed it
            return call(seconds)

        return retried(attempt, self.timeout if timeout is None else timeout, self.retries)

    def _check_open(self) -> None:
        if self._is_closed:
            raise UsageError(
                f"Expected an open client of {self.host_port}. Received: one that has been closed. "
                "Make another one."
            )

    def _try_status(self, name: str, seconds: float) -> tuple[list[VersionStatus], str]:
        """Return the states, perhaps none, and a sentence that describes the newest."""
        try:
            statuses = self._status(name, min(seconds, self.timeout))
        except ServingError as error:
            return [], str(error)
        if not statuses:
            return [], "no version."
        version, state, reason = newest(statuses)
        return statuses, f"version {version} in state {state}. {reason}".strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
