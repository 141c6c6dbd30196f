"""A stand-in for TensorFlow Serving, for development and tests.

The real `tensorflow_model_server` comes as an image and an apt package, and is not always at hand.
The stand-in answers the same requests at the same ports with the same words, from official parts:
the interfaces of tensorflow-serving-api, and TensorFlow's C++ runtime.

What it does not do: it loads every version once, at the start, and sees none that comes later; it
plays no warm-up; it knows no version labels, configuration files, batching, metrics, TLS or
authentication; it offers neither classify, regress nor session runs. It is written for clarity, not
for load. Serve customers with TensorFlow Serving.

In two things it is stricter. It refuses a request in column format that names an input unknown to
the signature, where TensorFlow Serving ignores the input. And a version without its `variables/`
does not load, where in TensorFlow Serving it loads and every request fails.
"""

import contextlib
import functools
import threading

from .ports import GRPC, REST
from .standin_core import Core
from .standin_grpc import serve_grpc
from .standin_rest import serve_rest


class PortError(RuntimeError):
    """The stand-in cannot listen on the port it was given."""


class StandIn:
    """Serves models over gRPC and REST, from `start` to `stop` or as a context manager.

        with StandIn({"flowers": "models/flowers"}) as server:
            server.wait()

    All versions can be asked by number; a request that names none goes to the highest. A version
    that does not load has the state END, with the reason, and the others are served.

    Args:
        models: Non-empty mapping from model name to its folder, `models/NAME`, with one version
            or more.
        host: Address to listen on. The default is not reachable from other machines, and should
            not be: there is no authentication.
        grpc_port: Port for gRPC; 0 for any free one.
        rest_port: Port for REST; 0 for any free one.

    Attributes:
        host: As given.
        grpc_port: The port; after `start` never 0.
        rest_port: The port; after `start` never 0.
    """

    def __init__(self, models, *, host="127.0.0.1", grpc_port=GRPC, rest_port=REST):
        self.host = host
        self.grpc_port = grpc_port
        self.rest_port = rest_port
        self._models = dict(models)
        self._running = contextlib.ExitStack()
        self._stopped = threading.Event()

    def start(self):
        """Load the models and answer requests, in threads of its own.

        Returns:
            The stand-in itself.

        Raises:
            UsageError: If there is no model, or a folder is missing or holds no version.
            PortError: If a port is taken or not allowed. Nothing is left running.
        """
        with contextlib.ExitStack() as starting:
            core = starting.enter_context(contextlib.closing(Core(self._models)))
            listen = functools.partial(_listen, starting, core, self.host)
            grpc_port = listen(serve_grpc, self.grpc_port)
            rest_port = listen(serve_rest, self.rest_port)
            self._running = starting.pop_all()
        self.grpc_port, self.rest_port = grpc_port, rest_port
        self._stopped.clear()
        return self

    def stop(self):
        """Finish the requests in flight, close the ports and unload the models; safe to repeat."""
        self._running.close()
        self._stopped.set()

    def wait(self):
        """Block until another thread calls `stop`, or a signal's handler raises an exception."""
        self._stopped.wait()

    def __enter__(self):
        return self.start()

    def __exit__(self, *exception):
        self.stop()


def _listen(starting, core, host, serve, port):
    try:
        return starting.enter_context(serve(core, host, port))
    except (OSError, OverflowError) as error:
        raise PortError(
            f"Expected port {port} on {host} to be free. Received: {str(error).rstrip('.')}. "
            "Stop the server that holds it, or choose another port; 0 takes any free one."
        ) from error
