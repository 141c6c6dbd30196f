"""`keras-mas promote`: let a label point to a version, so that clients get it."""

import argparse
from functools import partial
from pathlib import Path

from keras_mas.serving.conventions import LABELS, STABLE

from . import basics, rollouts

SUMMARY = "give a version to the clients that ask for a label"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    rollouts.add_model_folder(parser)
    parser.add_argument(
        "version",
        nargs="?",
        type=basics.version,
        metavar="VERSION",
        help="number of the version (default: the latest; for stable the canary, if there is "
        "one, and none earlier than stable)",
    )
    parser.add_argument(
        "--label",
        choices=LABELS,
        default=STABLE,
        help="label to move; where stable moves, the label previous stays behind for `keras-mas "
        f"rollback` (default: {STABLE})",
    )
    parser.add_argument(
        "--keep",
        type=basics.count,
        metavar="N",
        help="then remove versions from the disk, but the N latest and those under a label "
        "(default: remove none)",
    )
    rollouts.add_rollout(parser)
    basics.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..console import stderr_console

    with rollouts.rollout_of(args) as rollout:
        labels = rollout.promote(args.version, args.label, check=partial(_check, debug=args.debug))
    rollouts.print_changes(rollout)
    rollouts.print_labels(rollout.name, labels, args.json)
    _say_if_unmoved(rollout, args.label, labels)
    if labels.get(STABLE) != rollout.before.get(STABLE):
        _say_if_not_blessed(rollout, labels[STABLE])
    removed = rollout.prune(args.keep) if args.keep else []
    if removed:
        stderr_console().print(f"removed versions {', '.join(map(str, removed))}", soft_wrap=True)


def _say_if_unmoved(rollout, label, labels):
    from ..console import stderr_console

    if label not in labels:
        version = labels[STABLE]
        said = f"version {version} is stable, and so no {label}: a canary is another version"
        stderr_console().print(said, soft_wrap=True)
    elif labels == rollout.before:
        stderr_console().print(
            f"{label} is version {labels[label]} already; no label was moved. The latest "
            f"version is {rollout.latest}.",
            soft_wrap=True,
        )


def _say_if_not_blessed(rollout, version):
    from keras_mas.serving.manifest import ManifestError, read_manifest
    from keras_mas.serving.paths import list_versions

    from ..console import stderr_console

    try:
        blessing = read_manifest(list_versions(rollout.base_path)[version])["blessing"]
        is_blessed, reason = blessing["blessed"], blessing["forced"]
    except (ManifestError, KeyError, TypeError):  # it was exported by other means
        return
    if is_blessed is None:
        said = f"the gate has not judged version {version}, which is stable now"
    else:
        said = f"the gate refused version {version}, which is stable now; it was forced: {reason}"
    if not is_blessed:
        stderr_console().print(f"warning: {said}", soft_wrap=True)


def _check(folder: Path, debug: bool = False) -> None:
    from ..start_tensorflow import import_tensorflow

    import_tensorflow(debug)
    from keras_mas.serving.published import check_version

    check_version(folder)
