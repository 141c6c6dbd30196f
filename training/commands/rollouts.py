"""What the commands share that show and move the labels of versions."""

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from keras_mas.errors import UsageError
from keras_mas.serving.conventions import GRPC_PORT

from ..options import SECONDS, file_or_folder, number
from .basics import add_tls, print_json, tls_of

if TYPE_CHECKING:
    from keras_mas.serving.rollout import Rollout


def add_model_folder(parser: argparse.ArgumentParser) -> None:
    """Add the folder of a served model."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="folder of the served model, or its name if the folder is models/NAME",
    )


def add_config(group: argparse._ActionsContainer) -> None:
    """Add the model server configuration, which has the labels of versions."""
    group.add_argument(
        "--config",
        type=file_or_folder,
        metavar="FILE",
        help="model server configuration, which has the labels (default: models.config beside the "
        "folder of the model)",
    )


def check_config(config: Path | None) -> None:
    """Refuse a configuration that is named, and is not there to be read.

    Raises:
        UsageError: If there is none.
    """
    if config is not None and not config.exists():
        raise UsageError(
            f"Expected a model server configuration in '{config}', which has the labels. Received: "
            "no such file. Correct --config, or leave it out."
        )


def add_rollout(parser: argparse.ArgumentParser) -> None:
    """Add the model server configuration, and the server that has it."""
    add_config(parser)
    group = parser.add_argument_group("server that has the configuration")
    group.add_argument(
        "--server",
        metavar="HOST:PORT",
        default=f"127.0.0.1:{GRPC_PORT}",
        help=f"its gRPC port (default: 127.0.0.1:{GRPC_PORT})",
    )
    how = group.add_mutually_exclusive_group()
    how.add_argument(
        "--polled",
        action="store_true",
        help="the server polls the file, and is not told (default: it is told over its reload API)",
    )
    how.add_argument(
        "--offline",
        action="store_true",
        help="no server is running; one that starts with these labels needs "
        "--allow_version_labels_for_unavailable_models",
    )
    group.add_argument(
        "--base-path",
        metavar="FOLDER",
        help="folder of the model as the server sees it, in a container perhaps (default: as in "
        "the configuration, or else the folder itself)",
    )
    group.add_argument(
        "--timeout",
        type=number(float, SECONDS),
        default=300.0,
        metavar="SECONDS",
        help="how long to wait for an answer, and until a version has loaded (default: 300)",
    )
    add_tls(group)


def model_folder(model: str) -> Path:
    """Return the folder of a served model that is named by it, or by its name below `models/`."""
    below = Path("models") / model
    is_name = Path(model).name == model
    return below if is_name and below.is_dir() else Path(model)


@contextlib.contextmanager
def rollout_of(args: argparse.Namespace) -> Iterator["Rollout"]:
    """Yield the labels of the model that was asked for, with a connection to its server."""
    from keras_mas.serving.control import ModelControl
    from keras_mas.serving.rollout import Rollout

    with contextlib.ExitStack() as connected:
        server = None
        if not args.offline:
            control = ModelControl(
                args.server, timeout=args.timeout, polled=args.polled, tls=tls_of(args)
            )
            server = connected.enter_context(control)
        yield Rollout(
            model_folder(args.model),
            config=args.config,
            server=server,
            served_path=args.base_path,
        )


def print_changes(rollout: "Rollout") -> None:
    """Say what else has changed in the configuration: other models, and the policy of this one."""
    from ..console import stderr_console

    if rollout.replaced:
        stderr_console().print(
            f"'{rollout.config}' now names the versions of '{rollout.name}' that have a label, in "
            f"place of `latest {{ num_versions: {rollout.replaced} }}`",
            soft_wrap=True,
        )
    for name in rollout.kept:
        stderr_console().print(
            f"'{rollout.config}' now names '{name}' too, which the server has: it would unload a "
            "model that its configuration does not name",
            soft_wrap=True,
        )


def print_labels(model: str, labels: Mapping[str, int], as_json: bool) -> None:
    """Print the version under each label of a model."""
    from ..console import result_console

    labels = dict(sorted(labels.items(), reverse=True))  # stable, previous, canary
    if as_json:
        print_json(labels)
        return
    said = ", ".join(f"{label} is version {version}" for label, version in labels.items())
    result_console().print(f"{model}: {said}", soft_wrap=True)
