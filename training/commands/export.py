"""`keras-mas export`: publish the models of a run as versions of a served model."""

import argparse
from pathlib import Path

from keras_mas.errors import UsageError
from keras_mas.serving.conventions import MAX_FORGETTING, RESIZE_MODES

from ..options import Bounds, count_or, file_or_folder, given_options, number, option_fields
from ..tasks import LoadOptions
from . import rollouts, shared

SUMMARY = "publish a run's models as SavedModels to serve, unless they forgot too much"

_NEXT = "next"

_fraction = number(float, Bounds(at_least=0, at_most=1))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("directory", type=file_or_folder, metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--to",
        type=file_or_folder,
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
        "--as",
        dest="number",
        type=count_or(_NEXT),
        metavar="M|next",
        help="number under which the model of --version, or else the last one, is published alone; "
        f"{_NEXT}: the first that is free above all others (default: how many tasks it has "
        "learned)",
    )
    parser.add_argument(
        "--resize",
        choices=RESIZE_MODES,
        help="how images get their size in the signature for JPEG and PNG files; none: images of "
        "another size are refused (default: as in training; earlier versions did not record it, "
        "and their runs have no such signature)",
    )
    _add_gate(parser)
    group = parser.add_argument_group("held-out examples")
    group.add_argument(
        "--examples-of",
        metavar="TASKS",
        help="stream whose test examples show what was forgotten (default: that of the run); "
        "tasks that it lacks are exported unmeasured",
    )
    shared.add_data(group)


def _add_gate(parser):
    group = parser.add_argument_group(
        "gate",
        "Every version is compared, task by task on held-out examples, with the version labelled "
        "stable, or the latest one before it if none is. The numbers are written to blessing.json.",
    )
    group.add_argument(
        "--max-forgetting",
        type=_fraction,
        default=MAX_FORGETTING,
        metavar="FRACTION",
        help=f"how much accuracy a task may lose; 1 for any (default: {MAX_FORGETTING})",
    )
    group.add_argument(
        "--min-accuracy",
        type=_fraction,
        metavar="FRACTION",
        help="accuracy that a new task has to reach (default: none)",
    )
    group.add_argument(
        "--force",
        metavar="REASON",
        help="publish it all the same; the reason is recorded in blessing.json and the manifest",
    )
    rollouts.add_config(group)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from keras_mas.serving.export import check_exportable
    from keras_mas.serving.gate import Bounds as GateBounds

    from ..exporting import (
        examples_of,
        export_heads,
        held_out_of,
        manifest_of,
        warn_of_unmeasured,
    )
    from ..run_directory import read_result
    from ..saved_tasks import saved_heads

    result = read_result(args.directory)
    base = args.to or Path("models") / result["stream"]
    check_exportable((), base)
    rollouts.check_config(args.config)
    learned = len(result["tasks"])
    command = shared.command_of(result)
    if args.version and args.version > learned:
        raise UsageError(
            f"Expected a version from 1 to {learned}, the tasks learned in '{args.directory}'. "
            f"Received: --version {args.version}."
        )
    bounds = GateBounds(args.max_forgetting, args.min_accuracy)
    stream = _held_out_stream(args, result)
    warn_of_unmeasured(stream, args.version or learned)
    numbers = _numbers(args, learned)
    for tasks, version in numbers.items():
        published = export_heads(
            base,
            version,
            *saved_heads(args.directory, tasks),
            held_out_of(stream, tasks),
            examples=examples_of(stream),
            after=[earlier for n, earlier in numbers.items() if n < tasks],
            bounds=bounds,
            force=args.force,
            config=args.config,
            resize=args.resize or result.get("resize"),
            manifest=manifest_of(result, tasks, command),
        )
        _print(base, version, published, args.force)


def _numbers(args, learned):
    """Return the number of each version by how many tasks it has learned; None for the next."""
    if args.number is not None:
        return {args.version or learned: None if args.number == _NEXT else args.number}
    return {tasks: tasks for tasks in ([args.version] if args.version else range(1, learned + 1))}


def _print(base, number, published, force):
    from keras_mas.serving.gate import comparison_sentence
    from keras_mas.serving.paths import version_path
    from keras_mas.serving.published import blessing_of

    from ..console import result_console

    if published:
        blessing = blessing_of(published)
        said = f"exported {published}: {comparison_sentence(blessing)}"
        if blessing["blessed"] is False:
            said += (
                f"; --force overrode the gate, which refused it: {'; '.join(blessing['refusals'])}"
            )
    else:
        said = f"{version_path(base, number)} was published already; it was not judged again"
        if force is not None:
            said += ", and the reason given with --force was not recorded"
    result_console().print(said, soft_wrap=True)


def _held_out_stream(args, result):
    """Return the tasks of a run, with the data as they were if they are not named."""
    from ..exporting import check_same_data, with_all_tasks
    from ..finished_run import known_encoding

    if args.examples_of is None and "sources" in result:
        return _what_is_left(args, result)
    recorded = result.get("arguments", {})
    args.tasks = args.examples_of or recorded.get("tasks")
    if not args.tasks:
        raise UsageError(
            f"Expected the tasks that '{args.directory}' was trained on, to measure what it "
            "forgot. Received: a run that names none, as that of a network which was trained "
            "elsewhere. Name a stream with test examples of them with `--examples-of TASKS`."
        )
    for name in option_fields(LoadOptions):
        if getattr(args, name, None) in (None, False):
            setattr(args, name, recorded.get(name))
    stream = shared.load_stream(args, result["seed"], known_encoding(args.directory, result))
    if args.examples_of is None:
        check_same_data(stream, result, args.directory)
        return stream
    found = {task.name: task for task in stream.tasks}
    return with_all_tasks(result, found, f"'{args.examples_of}'")


def _what_is_left(args, result):
    """Return the tasks of a run that went on from another one, from wherever each was loaded."""
    from ..continuing import tasks_left
    from ..exporting import with_all_tasks
    from ..finished_run import FinishedRun
    from ..progress import DecodingLines

    given = {k: v for k, v in given_options(LoadOptions, args).items() if v not in (None, False)}
    with DecodingLines() as lines:
        found = tasks_left(FinishedRun.read(args.directory), given, lines.decoded)
    return with_all_tasks(result, found, "what is left of their data")
