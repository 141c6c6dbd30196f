"""`keras-mas train`: learn the tasks, record the result, draw it, export every version."""

import argparse
from pathlib import Path

from ..options import add_options, given_options
from ..settings import Following, Settings, run_name
from . import shared

SUMMARY = "learn the tasks of a stream, one after the other"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    shared.add_tasks(parser)
    add_options(parser.add_argument_group("method"), Settings)
    shared.add_recipe(parser)
    shared.add_following(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder of the run (default: runs/ and a name made of the settings)",
    )
    shared.add_overwrite(group, "a run that is in the folder already")
    group.add_argument(
        "--export",
        type=Path,
        metavar="FOLDER",
        help="export a SavedModel after each task to FOLDER/1, FOLDER/2, … (default: none)",
    )
    shared.add_json(group)
    group.add_argument(
        "--verbose",
        type=int,
        choices=(0, 1, 2),
        default=0,
        help="Keras's own output for every fit, as in `model.fit` (default: 0)",
    )


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from keras_mas.methods import load_method

    from ..accuracy_picture import draw
    from ..console import result_console
    from ..exporting import Exporter, check_export
    from ..progress import TaskLines
    from ..report import print_result
    from ..run import Listener, train
    from ..run_logs import followers
    from ..summary import title

    # What is refused before any data is loaded.
    load_method(args.method)
    following = Following(**given_options(Following, args))
    shared.check_network(args)
    stream = shared.load_stream(args, args.seed)
    settings = shared.settings_of(args, stream)
    directory = args.output or Path("runs") / run_name(stream, settings)
    lines = TaskLines(
        stream,
        title(settings.of_method),
        verbose=args.verbose,
        epochs=[settings.recipe.for_task(number)[1] for number in range(len(stream.tasks))],
    )
    listeners: list[Listener] = [lines, *followers(following, settings, directory)]
    if args.export:
        check_export(stream, args.export, None if args.overwrite else directory)
        command = shared.train_command(shared.recorded(vars(args)))
        listeners.append(Exporter(args.export, stream, settings, command))
    with lines:
        result = train(
            stream,
            settings,
            directory,
            arguments=shared.recorded(vars(args)),
            listeners=listeners,
            verbose=args.verbose,
            overwrite=args.overwrite,
        )
    draw([result], directory / "accuracy.png")
    if args.json:
        shared.print_json(result)
        return
    console = result_console()
    print_result(result, console)
    console.print(f"written to {directory}/: result.json, accuracy.png", soft_wrap=True)
    if args.export:
        console.print(f"exported to {args.export}/1 … {len(stream.tasks)}", soft_wrap=True)
