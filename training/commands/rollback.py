"""`keras-mas rollback`: let a label point back to the version that its clients had before."""

import argparse

from keras_mas.serving.conventions import LABELS, STABLE

from . import basics, rollouts

SUMMARY = "give clients the version that they had before, again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    rollouts.add_model_folder(parser)
    parser.add_argument(
        "--label",
        choices=LABELS,
        default=STABLE,
        help="stable goes back to the label previous; canary is dropped, and so it is if it was "
        f"the version that stable leaves (default: {STABLE})",
    )
    rollouts.add_rollout(parser)
    basics.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..console import stderr_console

    with rollouts.rollout_of(args) as rollout:
        labels = rollout.rollback(args.label)
    rollouts.print_changes(rollout)
    if labels == rollout.before:
        said = f"there is no {args.label} to drop; no label was moved"
        stderr_console().print(said, soft_wrap=True)
    rollouts.print_labels(rollout.name, labels, args.json)
