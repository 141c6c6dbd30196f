"""The stand-in server as a whole: its models, behind a gRPC port and a REST port."""

import contextlib
import dataclasses
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Self

from keras_mas.errors import UsageError

from ..conventions import GRPC_PORT, REST_PORT
from .batching import BatchingParameters
from .grpc import serve_grpc
from .model_config import (
    ModelServerConfig,
    aspired_versions,
    config_of,
    models_of,
    read_server_config,
)
from .models import ServedModels
from .protocol import MAX_REQUEST_BYTES, RequestError
from .request_log import LogSettings
from .rest import serve_rest

_LOG = logging.getLogger(__name__)

# How late the handler of a signal may run that did not end the wait.
_SIGNAL_SECONDS = 0.5


class PortError(RuntimeError):
    """The stand-in cannot listen on the port it was given."""


@dataclasses.dataclass(frozen=True)
class ServerOptions:
    """How the stand-in serves; names and defaults are those of `tensorflow_model_server`.

    Attributes:
        file_system_poll_wait_seconds: Seconds between looks at the folders of the models; 0: they
            are looked at once.
        model_config_file_poll_wait_seconds: Seconds between looks at the configuration file; 0: it
            is read once.
        allow_version_labels_for_unavailable_models: Whether a label that is new may point at a
            version that is not loaded, as when the server starts.
        batching: How requests are gathered into batches; not at all by default.
        request_log: Where requests are logged; not at all by default, unless the configuration of
            a model says so.
        max_request_bytes: Largest request.
    """

    file_system_poll_wait_seconds: float = 1.0
    model_config_file_poll_wait_seconds: float = 0.0
    allow_version_labels_for_unavailable_models: bool = False
    batching: BatchingParameters | None = None
    request_log: LogSettings | None = None
    max_request_bytes: int = MAX_REQUEST_BYTES


class StandIn:
    """Serves models over gRPC and REST, from `start` to `stop` or as a context manager.

        with StandIn({"flowers": "models/flowers"}) as server:
            server.wait()

    A version can be requested by number or label; a request without either goes to the highest. A
    version that does not load has the state END, with the reason, and the others are served.

    Args:
        models: What to serve: a non-empty mapping from model name to its folder, `models/NAME`, of
            which all versions are served; a `ModelServerConfig`; or the path of a file that holds
            one as protobuf text, and may change.
        host: Address to listen on. The default cannot be reached from other machines, which is
            intended: there is no authentication.
        grpc_port: Port for gRPC; 0 for any free one.
        rest_port: Port for REST; 0 for any free one.
        options: How to serve.

    Attributes:
        host: As given.
        grpc_port: The port; after `start` never 0.
        rest_port: The port; after `start` never 0.
        names: The names of the models, after `start`.
    """

    def __init__(
        self,
        models: Mapping[str, str | os.PathLike] | ModelServerConfig | str | os.PathLike,
        *,
        host: str = "127.0.0.1",
        grpc_port: int = GRPC_PORT,
        rest_port: int = REST_PORT,
        options: ServerOptions | None = None,
    ):
        self.host = host
        self.grpc_port = grpc_port
        self.rest_port = rest_port
        self.names: list[str] = []
        self._source = models
        self._options = options or ServerOptions()
        self._running = contextlib.ExitStack()
        self._stopped = threading.Event()

    def start(self) -> Self:
        """Load the models and answer requests, in background threads.

        Returns:
            The stand-in itself.

        Raises:
            UsageError: If there is no model, a folder is missing or holds no version, the
                configuration is refused, or no address of this machine is to be listened on.
            PortError: If a port is taken or not allowed. Nothing is left running.
        """
        config = _config_from(self._source)
        _check_host(self.host)
        with contextlib.ExitStack() as starting:
            models = starting.enter_context(contextlib.closing(self._served(config)))
            starting.enter_context(self._following(models))
            grpc_port = self._listen(starting, serve_grpc, models, self.grpc_port)
            rest_port = self._listen(starting, serve_rest, models, self.rest_port)
            self._running = starting.pop_all()
        self.grpc_port, self.rest_port = grpc_port, rest_port
        self.names = models.names
        self._stopped.clear()
        return self

    def stop(self) -> None:
        """Close the ports, let running requests finish, and unload the models; safe to repeat.

        Requests that still run after five seconds are dropped.
        """
        self._running.close()
        self._stopped.set()

    def wait(self) -> None:
        """Block until another thread calls `stop`, or a signal's handler raises an exception."""
        # A signal that comes just before the wait begins, or to another thread, does not end it:
        # its handler runs when the wait does.
        while not self._stopped.wait(_SIGNAL_SECONDS):
            pass

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _served(self, config: ModelServerConfig) -> ServedModels:
        options = self._options
        _check_folders(config)
        try:
            return ServedModels(
                config,
                poll_seconds=options.file_system_poll_wait_seconds,
                batching=options.batching,
                request_log=options.request_log,
                labels_for_unavailable=options.allow_version_labels_for_unavailable_models,
                must_load=False,
            )
        except RequestError as error:
            raise UsageError(f"The server refuses its configuration: {error.message}") from error

    @contextlib.contextmanager
    def _following(self, models: ServedModels) -> Iterator[None]:
        """Read the configuration file again and again while the context lasts."""
        seconds = self._options.model_config_file_poll_wait_seconds
        if not isinstance(self._source, str | os.PathLike) or not seconds:
            yield
            return
        ending = threading.Event()
        follow = threading.Thread(
            target=_follow, args=[self._source, seconds, models, ending], daemon=True
        )
        follow.start()
        try:
            yield
        finally:
            ending.set()
            models.stop_waiting()
            follow.join()

    def _listen(
        self, running: contextlib.ExitStack, serve: "_Serve", models: ServedModels, port: int
    ) -> int:
        """Serve until `running` is closed; return the port."""
        limit = self._options.max_request_bytes
        try:
            return running.enter_context(serve(models, self.host, port, limit))
        except (OSError, OverflowError) as error:
            raise PortError(
                f"Expected port {port} on {self.host} to be free. Received: "
                f"{str(error).rstrip('.')}. "
                "Stop the server that holds it, or choose another port; 0 takes any free one."
            ) from error


_Serve = Callable[[ServedModels, str, int, int], contextlib.AbstractContextManager[int]]


def _config_from(
    source: Mapping[str, str | os.PathLike] | ModelServerConfig | str | os.PathLike,
) -> ModelServerConfig:
    if isinstance(source, str | os.PathLike):
        return read_server_config(source)
    config = source if isinstance(source, ModelServerConfig) else config_of(source)
    if not models_of(config):
        raise UsageError(
            "Expected at least one model to serve. Received: none. "
            "Pass a mapping from name to folder, as in `{'flowers': 'models/flowers'}`."
        )
    return config


def _check_host(host: str) -> None:
    """Refuse an address on which there is no listening, whatever the port."""
    try:
        socket.create_server((host, 0)).close()
    except OSError as error:
        raise UsageError(
            "Expected an IPv4 address of this machine to listen on, as 127.0.0.1, or 0.0.0.0 for "
            f"all. Received: '{host}'."
        ) from error


def _check_folders(config: ModelServerConfig) -> None:
    """Refuse models without a version, for which TensorFlow Serving would wait."""
    for model in models_of(config):
        try:
            found = aspired_versions(model)
        except RequestError:
            found = {}
        if not found:
            raise UsageError(
                f"Expected versions of '{model.name}' as folders '{model.base_path}/<integer>/'. "
                "Received: no such folder. Export a version first, or correct the path."
            )


def _follow(
    path: str | os.PathLike, seconds: float, models: ServedModels, ending: threading.Event
) -> None:
    said = ""
    while not ending.wait(seconds):
        try:
            # Also if it is the same as before: a version that a label waits for may have come.
            models.reload(read_server_config(path))
            said = ""
        except (RequestError, UsageError) as error:
            if str(error) != said:
                _LOG.error("The configuration stays as it was: %s", error)
            said = str(error)
