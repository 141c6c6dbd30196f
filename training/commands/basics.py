"""What commands share that work on no data of their own; importing it takes no time."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_mas.errors import UsageError
from keras_mas.serving.conventions import GRPC_PORT, REST_PORT

from ..load_options import LoadOptions
from ..options import AT_LEAST_ONE, SECONDS, Bounds, add_options, file_or_folder, number

if TYPE_CHECKING:
    import numpy as np

    from keras_mas.serving.client import GrpcClient, RestClient, Tls

count = number(int, AT_LEAST_ONE)
version = number(int, Bounds(at_least=0))  # TensorFlow Serving loads a folder `0`, too


def add_data(group: argparse._ActionsContainer) -> None:
    """Add the options of `LoadOptions`: where the data lie, and where they are kept decoded."""
    add_options(group, LoadOptions, with_defaults=False)


def add_json(group: argparse._ActionsContainer) -> None:
    """Add `--json`."""
    group.add_argument("--json", action="store_true", help="print the result as JSON instead")


def add_server(parser: argparse.ArgumentParser) -> None:
    """Add the address of a model server, and how to talk to it."""
    group = parser.add_argument_group("server")
    group.add_argument(
        "--via", choices=("rest", "grpc"), default="rest", help="protocol (default: rest)"
    )
    group.add_argument(
        "--server",
        metavar="HOST:PORT",
        help=f"address (default: 127.0.0.1 and port {REST_PORT} for rest, {GRPC_PORT} for grpc)",
    )
    group.add_argument(
        "--timeout",
        type=number(float, SECONDS),
        metavar="SECONDS",
        default=10.0,
        help="how long a request may take, with its retries while the server is unavailable "
        "(default: 10)",
    )
    add_tls(group)


def add_tls(group: argparse._ActionsContainer) -> None:
    """Add how the connection to a model server is encrypted."""
    group.add_argument(
        "--tls",
        action="store_true",
        help="encrypt the connection, and trust the authorities that this machine trusts",
    )
    group.add_argument(
        "--tls-roots",
        type=file_or_folder,
        metavar="FILE.pem",
        help="encrypt it, and trust these authorities instead",
    )
    group.add_argument(
        "--tls-certificate",
        type=file_or_folder,
        metavar="FILE.pem",
        help="show the server this certificate",
    )
    group.add_argument(
        "--tls-key", type=file_or_folder, metavar="FILE.pem", help="with its private key"
    )


def check_one_of(args: argparse.Namespace, *options: str) -> None:
    """Refuse none or several of some options; argparse would do so in a usage of very long lines.

    Raises:
        UsageError: If not exactly one of the options was given.
    """
    given = [name for name in options if getattr(args, name[2:].replace("-", "_")) is not None]
    if len(given) != 1:
        raise UsageError(
            f"Expected one of {', '.join(options[:-1])} and {options[-1]}. Received: "
            f"{' and '.join(given) or 'none of them'}."
        )


def client_of(args: argparse.Namespace) -> "GrpcClient | RestClient":
    """Return a client of the model server that was asked for."""
    from keras_mas.serving.client import GrpcClient, RestClient

    kind = GrpcClient if args.via == "grpc" else RestClient
    return kind(address_of(args), timeout=args.timeout, tls=tls_of(args))


def address_of(args: argparse.Namespace) -> str:
    """Return the address of the model server that was asked for."""
    return args.server or f"127.0.0.1:{GRPC_PORT if args.via == 'grpc' else REST_PORT}"


def tls_of(args: argparse.Namespace) -> "Tls | None":
    """Return how the connection to a model server is to be encrypted; None if it is not."""
    from keras_mas.serving.client import Tls

    files = (args.tls_roots, args.tls_certificate, args.tls_key)
    return Tls(*files) if args.tls or any(files) else None


def read_array(path: Path) -> "np.ndarray":
    """Return the array of an .npy file, or the only one of an .npz file.

    Raises:
        UsageError: If there is no such file, or it holds something else.
    """
    import numpy as np

    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            arrays = dict(content) if isinstance(content, np.lib.npyio.NpzFile) else {"": content}
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"Expected an array in '{path}'. Received: {reason}.") from error
    except Exception as error:  # a damaged file raises errors of many classes
        raise UsageError(
            f"Expected an array in '{path}', written by `numpy.save`. Received: a file of another "
            "kind, a damaged one, or Python objects, which are not read, for safety."
        ) from error
    if len(arrays) != 1:
        raise UsageError(
            f"Expected one array in '{path}'. Received: {', '.join(arrays) or 'none'}. Save the "
            "inputs alone."
        )
    return next(iter(arrays.values()))


def print_json(content: Any) -> None:
    """Print JSON to standard output, in ASCII where other characters cannot be encoded."""
    is_unicode = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    json.dump(content, sys.stdout, indent=2, ensure_ascii=not is_unicode)
    sys.stdout.write("\n")
