"""`keras-mas serve`: answer requests until interrupted."""

import argparse
import contextlib
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_mas.errors import UsageError
from keras_mas.serving.conventions import GRPC_PORT, MAX_SECONDS, REST_PORT

from ..options import AT_LEAST_ONE, Bounds, file_or_folder, number
from ..wording import one_of

if TYPE_CHECKING:
    from rich.console import Console

    from keras_mas.serving.standin import StandIn
    from keras_mas.serving.standin.server import ServerOptions

SUMMARY = "serve models on this machine, with TensorFlow Serving where it is at hand"

EXECUTABLE = "tensorflow_model_server"
IMAGE = "tensorflow/serving"

_STAND_IN, _SERVER, _DOCKER = "standin", "server", "docker"
_ALL_ADDRESSES = "0.0.0.0"  # no address that a client can ask
_DOCKER_SECONDS = 10.0  # a client whose daemon does not answer

_port = number(int, Bounds(at_least=0, at_most=65535))
_seconds = number(float, Bounds(at_least=0, at_most=MAX_SECONDS))
_fraction = number(float, Bounds(at_least=0, at_most=1))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument(
        "model",
        nargs="?",
        type=file_or_folder,
        metavar="FOLDER",
        help="folder of the model, models/NAME",
    )
    models.add_argument(
        "--config",
        type=file_or_folder,
        metavar="FILE",
        help="ModelServerConfig as protobuf text: several models, versions, labels, logs",
    )
    parser.add_argument(
        "--with",
        dest="server",
        choices=("auto", _SERVER, _DOCKER, _STAND_IN),
        default="auto",
        help=f"what serves: {EXECUTABLE} on the PATH, the image of TensorFlow Serving, or the "
        "stand-in for it; auto: the first of them that there is (default: auto)",
    )
    parser.add_argument(
        "--image",
        default=f"{IMAGE}:latest",
        help=f"image that docker runs (default: {IMAGE}:latest)",
    )
    _add_network(parser)
    _add_changes(parser)
    _add_stand_in(parser)


def _add_network(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("network")
    group.add_argument(
        "--port",
        type=_port,
        default=GRPC_PORT,
        help=f"gRPC port, 0 for any free one (default: {GRPC_PORT})",
    )
    group.add_argument(
        "--rest-port",
        type=_port,
        default=REST_PORT,
        help=f"REST port, likewise (default: {REST_PORT})",
    )
    group.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0 for all, without any authentication (default: "
        f"127.0.0.1). {EXECUTABLE} always listens on all",
    )


def _add_changes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("new versions")
    group.add_argument(
        "--poll",
        type=_seconds,
        default=1,
        metavar="SECONDS",
        help="how often to look for new versions; 0: once (default: 1)",
    )
    group.add_argument(
        "--config-poll",
        type=_seconds,
        default=1,
        metavar="SECONDS",
        help="how often to read the configuration again; 0: once (default: 1)",
    )
    group.add_argument(
        "--batching",
        nargs="?",
        type=file_or_folder,
        const=True,
        metavar="FILE",
        help="answer requests that arrive together as one batch, with the BatchingParameters of a "
        "file, as protobuf text, or the server's own",
    )


def _add_stand_in(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("stand-in only")
    group.add_argument(
        "--log-requests",
        metavar="PREFIX",
        help="keep requests in files PREFIX-….tfrecord, of PredictionLog records",
    )
    group.add_argument(
        "--sampling-rate",
        type=_fraction,
        metavar="FRACTION",
        help="fraction of the requests to keep (default: 1)",
    )
    group.add_argument(
        "--max-request",
        type=number(int, AT_LEAST_ONE),
        default=64,
        metavar="MIB",
        help="largest request in MiB (default: 64)",
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    chosen = choose_server(args.server)
    _check(args, chosen)
    if chosen == _STAND_IN:
        _serve_with_stand_in(args)
    else:
        _serve_with_process(args, chosen)


def choose_server(wanted: str) -> str:
    """Return what serves: "server", "docker" or "standin".

    Raises:
        UsageError: If the one that is wanted is not there.
    """
    available = {
        _SERVER: lambda: shutil.which(EXECUTABLE) is not None,
        _DOCKER: _docker_runs,
        _STAND_IN: lambda: True,
    }
    if wanted == "auto":
        return next(name for name, is_there in available.items() if is_there())
    if not available[wanted]():
        what = f"'{EXECUTABLE}' on the PATH" if wanted == _SERVER else "a running Docker"
        raise UsageError(
            f"Expected {what} for --with {wanted}. Received: none. Install it, or let "
            "`--with standin` serve."
        )
    return wanted


def _docker_runs() -> bool:
    if shutil.which("docker") is None:
        return False
    try:
        asked = subprocess.run(["docker", "info"], capture_output=True, timeout=_DOCKER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def _check(args: argparse.Namespace, chosen: str) -> None:
    """Refuse what a server cannot do, and models that are not there."""
    from keras_mas.serving.paths import list_versions

    if chosen != _STAND_IN and args.log_requests:
        raise UsageError(
            "Expected `--with standin` for --log-requests: the open-source TensorFlow Serving "
            f"does not log requests. Received: --with {chosen}."
        )
    if args.sampling_rate is not None and args.log_requests is None:
        raise UsageError(
            "Expected --log-requests with --sampling-rate, which says how many requests are kept. "
            f"Received: --sampling-rate {args.sampling_rate:g} alone. Say where they are kept with "
            "`--log-requests PREFIX`."
        )
    if chosen != _STAND_IN and (not args.port or not args.rest_port):
        raise UsageError(
            "Expected ports from 1, since TensorFlow Serving takes 0 for no port at all. "
            f"Received: --port {args.port} --rest-port {args.rest_port}."
        )
    if args.model is not None and not list_versions(args.model):
        folders = sorted(args.model.iterdir()) if args.model.is_dir() else []
        models = [str(folder) for folder in folders if list_versions(folder)]
        advice = "Export a version first, or correct the path."
        if models:
            advice = f"Name one of the models in it, {one_of(models)}, or all of them by --config."
        raise UsageError(
            f"Expected versions of a model as folders '{args.model}/<integer>/'. Received: no "
            f"such folder. {advice}"
        )


# The real server.


def _serve_with_process(args: argparse.Namespace, chosen: str) -> None:
    from ..console import stderr_console

    command = server_command(args) if chosen == _SERVER else docker_command(args)
    name = EXECUTABLE if chosen == _SERVER else f"the image {args.image}"
    with _interruptible(), subprocess.Popen(command) as process:
        try:
            stderr_console().print(
                f"TensorFlow Serving ({name}): {_what(args)} at gRPC port {args.port} and REST "
                f"port {args.rest_port}. Ctrl-C stops it.",
                soft_wrap=True,
            )
            code = _exit_code(process)
        except KeyboardInterrupt:
            process.terminate()
            return
    if code:
        raise RuntimeError(
            f"Expected {name} to serve until it is interrupted. Received: exit code {code}. Its "
            "own messages say why."
        )


def _exit_code(process: "subprocess.Popen[bytes]") -> int:
    while True:
        # As in `StandIn.wait`, a signal need not end the wait.
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=1.0)


def server_command(args: argparse.Namespace) -> list[str]:
    """Return the command line of `tensorflow_model_server`."""
    flags: dict[str, Any] = {"port": args.port, "rest_api_port": args.rest_port}
    if args.config is not None:
        flags |= {
            "model_config_file": args.config.resolve(),
            "model_config_file_poll_wait_seconds": _whole(args.config_poll),
            "allow_version_labels_for_unavailable_models": "true",
        }
    else:
        flags |= {"model_name": _model_name(args), "model_base_path": args.model.resolve()}
    flags["file_system_poll_wait_seconds"] = _whole(args.poll)
    if args.batching is not None:
        flags["enable_batching"] = "true"
    if isinstance(args.batching, Path):
        flags["batching_parameters_file"] = args.batching.resolve()
    return [EXECUTABLE, *(f"--{name}={value}" for name, value in flags.items())]


def docker_command(args: argparse.Namespace) -> list[str]:
    """Return the command line that runs the image; files are where they are on this machine."""
    mounted = [path for path in (args.model, args.config, args.batching) if isinstance(path, Path)]
    folders = [path.resolve() if path.is_dir() else path.resolve().parent for path in mounted]
    if args.config is not None:
        folders += [Path(base) for base in _base_paths(args.config)]
    publish = [f"{args.host}:{port}:{port}" for port in (args.port, args.rest_port)]
    return [
        *["docker", "run", "--rm", "--init", "--entrypoint", EXECUTABLE],
        *(word for each in publish for word in ("--publish", each)),
        *(
            word
            for folder in sorted(set(folders))
            for word in ("--mount", f"type=bind,source={folder},target={folder},readonly")
        ),
        args.image,
        *server_command(args)[1:],
    ]


def _base_paths(config: Path) -> list[str]:
    from keras_mas.serving.standin.model_config import models_of, read_server_config

    return [model.base_path for model in models_of(read_server_config(config))]


def _whole(seconds: float) -> int:
    """Return whole seconds, which is all that the server knows; 0 stays 0, and nothing else is."""
    return max(round(seconds), 1) if seconds else 0


# The stand-in.


def _serve_with_stand_in(args: argparse.Namespace) -> None:
    from keras_mas.serving.standin import LATEST, StandIn, config_of

    from ..console import stderr_console

    source = args.config or config_of({_model_name(args): args.model}, LATEST)
    console = stderr_console()
    with (
        _interruptible(),
        StandIn(
            source,
            host=args.host,
            grpc_port=args.port,
            rest_port=args.rest_port,
            options=_options(args),
        ) as server,
    ):
        for name in server.names:
            _check_available(name, server, console)
        console.print(
            f"stand-in for TensorFlow Serving: {_what(args)} at gRPC "
            f"{args.host}:{server.grpc_port} and http://{args.host}:{server.rest_port}/v1/models/"
            f"{_model_name(args) if args.model else ''}. Ctrl-C stops it.",
            soft_wrap=True,
        )
        with contextlib.suppress(KeyboardInterrupt):
            server.wait()


def _options(args: argparse.Namespace) -> "ServerOptions":
    from keras_mas.serving.standin import (
        BatchingParameters,
        LogSettings,
        ServerOptions,
        read_batching_parameters,
    )

    batching = None
    if args.batching is not None:
        own = args.batching is True
        batching = BatchingParameters() if own else read_batching_parameters(args.batching)
    rate = 1.0 if args.sampling_rate is None else args.sampling_rate
    log = LogSettings(args.log_requests, rate) if args.log_requests else None
    return ServerOptions(
        file_system_poll_wait_seconds=args.poll,
        model_config_file_poll_wait_seconds=args.config_poll,
        allow_version_labels_for_unavailable_models=True,
        batching=batching,
        request_log=log,
        max_request_bytes=args.max_request * 2**20,
    )


def _check_available(name: str, server: "StandIn", console: "Console") -> None:
    """Print every version that did not load; fail if none did."""
    from keras_mas.serving.client import GrpcClient

    host = "127.0.0.1" if server.host == _ALL_ADDRESSES else server.host
    with GrpcClient(f"{host}:{server.grpc_port}") as client:
        versions = client.status(name)
    for failed in (status for status in versions if status.state != "AVAILABLE"):
        console.print(f"version {failed.version}: {failed.error}", soft_wrap=True)
    if not any(status.state == "AVAILABLE" for status in versions):
        raise RuntimeError(
            f"Expected a version of '{name}' that can be served. Received: {len(versions)} that "
            "cannot. Export one with `keras-mas export RUN`."
        )


# Both.


def _model_name(args: argparse.Namespace) -> str:
    return str(args.model.resolve().name)


def _what(args: argparse.Namespace) -> str:
    return f"model '{_model_name(args)}'" if args.model else f"the models of '{args.config}'"


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
