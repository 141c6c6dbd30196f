"""`keras-mas status`: print the state of every version of a served model."""

import argparse

from . import shared

SUMMARY = "ask a server which versions of a model it has"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", metavar="NAME", help="name of the served model")
    shared.add_server(parser)
    shared.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..console import result_console

    with shared.client_of(args) as client:
        versions = [
            {"version": status.version, "state": status.state, "error": status.error}
            for status in client.status(args.model)
        ]
    if args.json:
        shared.print_json(versions)
        return
    for row in versions:
        result_console().print(
            f"{args.model} version {row['version']}  {row['state']}  {row['error']}".rstrip(),
            soft_wrap=True,
        )
