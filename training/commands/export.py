"""`keras-mas export`: write the models of a run as versions of a served model."""

import argparse
from pathlib import Path

from keras_mas.errors import UsageError

from ..tasks.images import RESIZE_MODES
from . import shared

SUMMARY = "write a run's models as SavedModels to serve"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("directory", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="folder of the served model; versions are FOLDER/1, FOLDER/2, … "
        "(default: models/ and the stream's name)",
    )
    parser.add_argument(
        "--version",
        type=shared.count,
        metavar="N",
        help="only the model after N tasks (default: all of them)",
    )
    parser.add_argument(
        "--resize",
        choices=(*RESIZE_MODES, "none"),
        help="how images get their size in the signature for JPEG and PNG files; none: images of "
        "another size are refused (default: as in training; earlier versions did not record it, "
        "and their runs have no such signature)",
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from keras_mas.files import check_writable

    from ..console import result_console
    from ..exporting import export_heads, manifest_of
    from ..run import saved_heads
    from ..run_directory import read_result

    result = read_result(args.directory)
    base = args.to or Path("models") / result["stream"]
    check_writable(base)
    learned = len(result["tasks"])
    command = shared.train_command(result.get("arguments", {}))
    if args.version and args.version > learned:
        raise UsageError(
            f"Expected a version from 1 to {learned}, the tasks learned in '{args.directory}'. "
            f"Received: --version {args.version}."
        )
    for number in [args.version] if args.version else range(1, learned + 1):
        folder = export_heads(
            base,
            number,
            *saved_heads(args.directory, number),
            resize=args.resize or result.get("resize"),
            manifest=manifest_of(result, number, command),
        )
        result_console().print(f"exported {folder}", soft_wrap=True)
