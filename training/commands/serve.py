"""`keras-mas serve`: answer requests until interrupted."""

import argparse
import signal
from pathlib import Path

from keras_mas.serving.ports import GRPC, REST

from ..options import Bounds, number

SUMMARY = "serve models on this machine with a stand-in for TensorFlow Serving, to develop with"

_port = number(int, Bounds(at_least=0, at_most=65535))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "model", type=Path, metavar="FOLDER", help="folder of the model, models/NAME"
    )
    parser.add_argument(
        "--port", type=_port, default=GRPC, help=f"gRPC port, 0 for any free one (default: {GRPC})"
    )
    parser.add_argument(
        "--rest-port", type=_port, default=REST, help=f"REST port, likewise (default: {REST})"
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from keras_mas.serving.standin import StandIn

    from ..console import stderr_console

    name = args.model.resolve().name
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with StandIn({name: args.model}, grpc_port=args.port, rest_port=args.rest_port) as server:
        console = stderr_console()
        _check_available(name, server.grpc_port, args.model, console)
        console.print(
            f"stand-in for TensorFlow Serving: model '{name}' at gRPC 127.0.0.1:{server.grpc_port} "
            f"and http://127.0.0.1:{server.rest_port}/v1/models/{name}. Ctrl-C stops it.",
            soft_wrap=True,
        )
        try:
            server.wait()
        except KeyboardInterrupt:
            return


def _check_available(name, grpc_port, folder, console):
    """Print every version that did not load; fail if none did."""
    from keras_mas.serving.client import GrpcClient

    with GrpcClient(f"127.0.0.1:{grpc_port}") as client:
        versions = client.status(name)
    for failed in (status for status in versions if status.state != "AVAILABLE"):
        console.print(f"version {failed.version}: {failed.error}", soft_wrap=True)
    if not any(status.state == "AVAILABLE" for status in versions):
        raise RuntimeError(
            f"Expected a version that can be served in '{folder}'. Received: {len(versions)} that "
            "cannot. Export one with `keras-mas export RUN`."
        )
