"""The stand-in server as a whole: its models, behind a gRPC port and a REST port."""

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from ..ports import GRPC, REST
from .grpc import serve_grpc
from .models import ServedModels
from .rest import serve_rest


class PortError(RuntimeError):
    """The stand-in cannot listen on the port it was given."""


class StandIn:
    """Serves models over gRPC and REST, from `start` to `stop` or as a context manager.

        with StandIn({"flowers": "models/flowers"}) as server:
            server.wait()

    Every version can be requested by number; a request without one goes to the highest. A version
    that does not load has the state END, with the reason, and the others are served.

    Args:
        models: Non-empty mapping from model name to its folder, `models/NAME`, with one version
            or more.
        host: Address to listen on. The default cannot be reached from other machines, which is
            intended: there is no authentication.
        grpc_port: Port for gRPC; 0 for any free one.
        rest_port: Port for REST; 0 for any free one.

    Attributes:
        host: As given.
        grpc_port: The port; after `start` never 0.
        rest_port: The port; after `start` never 0.
    """

    def __init__(
        self,
        models: Mapping[str, str | Path],
        *,
        host: str = "127.0.0.1",
        grpc_port: int = GRPC,
        rest_port: int = REST,
    ):
        self.host = host
        self.grpc_port = grpc_port
        self.rest_port = rest_port
        self._models = dict(models)
        self._running = contextlib.ExitStack()
        self._stopped = threading.Event()

    def start(self) -> Self:
        """Load the models and answer requests, in background threads.

        Returns:
            The stand-in itself.

        Raises:
            UsageError: If there is no model, or a folder is missing or holds no version.
            PortError: If a port is taken or not allowed. Nothing is left running.
        """
        with contextlib.ExitStack() as starting:
            models = starting.enter_context(contextlib.closing(ServedModels(self._models)))
            grpc_port = _listen(starting, serve_grpc, models, self.host, self.grpc_port)
            rest_port = _listen(starting, serve_rest, models, self.host, self.rest_port)
            self._running = starting.pop_all()
        self.grpc_port, self.rest_port = grpc_port, rest_port
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
        self._stopped.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


_Serve = Callable[[ServedModels, str, int], contextlib.AbstractContextManager[int]]


def _listen(
    running: contextlib.ExitStack, serve: _Serve, models: ServedModels, host: str, port: int
) -> int:
    """Serve until `running` is closed; return the port."""
    try:
        return running.enter_context(serve(models, host, port))
    except (OSError, OverflowError) as error:
        raise PortError(
            f"Expected port {port} on {host} to be free. Received: {str(error).rstrip('.')}. "
            "Stop the server that holds it, or choose another port; 0 takes any free one."
        ) from error
