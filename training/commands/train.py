"""`keras-mas train`: learn the tasks, record the result, draw it, export every version."""

import argparse
import dataclasses
import functools
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from keras_mas.errors import UsageError

from ..following import Following
from ..options import add_options, count_or, file_or_folder, flag, given_options, option_fields
from ..settings import Recipe, Settings, check_options_act, run_name
from ..tasks import LoadOptions, TaskStream, check_tasks
from . import shared

if TYPE_CHECKING:
    from ..continuing import Continued
    from ..starting import Start

SUMMARY = "learn the tasks of a stream, one after the other"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    shared.add_tasks(parser, optional=True)
    _add_continued(parser)
    _add_start(parser)
    # An option that is not given has the default, or what the run has that is continued.
    add_options(parser.add_argument_group("method"), Settings, with_defaults=False, told=True)
    shared.add_recipe(parser)
    shared.add_following(parser)
    _add_devices(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output",
        type=file_or_folder,
        metavar="FOLDER",
        help="folder of the run (default: runs/ and a name made of the settings)",
    )
    shared.add_overwrite(group, "a run that is in the folder already")
    group.add_argument(
        "--export",
        type=file_or_folder,
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


def _add_devices(parser):
    group = parser.add_argument_group("several devices (docs/several-devices.md)")
    group.add_argument(
        "--devices",
        type=count_or("all"),
        default=1,
        metavar="N",
        help="divide every batch among N GPUs of this machine, or all; where the environment "
        "variable TF_CONFIG names several hosts, among N of each (default: 1)",
    )


def _add_continued(parser):
    group = parser.add_argument_group("in the place of TASKS, more tasks for a finished run")
    group.add_argument(
        "--continue",
        type=file_or_folder,
        metavar="RUN",
        help="folder of a finished run, which stays as it is: a new run goes on from its models "
        "and its memory, with its settings where no others are given; its data are not needed",
    )
    group.add_argument(
        "--add", metavar="TASKS", help="tasks to learn after those of RUN; as TASKS, new names"
    )
    group.add_argument(
        "--old-data",
        metavar="TASKS",
        help="where the data of old tasks are now, to evaluate them (default: where they were; "
        "what is gone, or has changed, is not evaluated)",
    )
    group.add_argument(
        "--memory",
        type=file_or_folder,
        metavar="FILE",
        help="memory in the place of the last one of RUN, made from it",
    )


def _add_start(parser):
    group = parser.add_argument_group("TASKS for a network that was trained elsewhere")
    group.add_argument(
        "--start-from",
        type=file_or_folder,
        metavar="FILE",
        help="functional model of Keras's own layers in a .keras file, whose last layer is Dense: "
        "what it knows is held while TASKS are learned, from its inputs as they are; its own "
        "output stays, as the head of a task",
    )
    group.add_argument(
        "--features",
        metavar="LAYER",
        help="layer to cut FILE behind, if its classes do not matter: the features that are its "
        "output are held, and the tasks are learned on them (default: the classes are held too)",
    )
    group.add_argument(
        "--head",
        metavar="NAME[=CLASSES]",
        default=None,
        help="name of that task and of its classes, as in pets=cat,dog (default: start, with "
        "numbers for classes)",
    )
    group.add_argument(
        "--unlabelled",
        metavar="DATA",
        help="inputs like those that it knows, for its importance: a folder of images, an .npz "
        "file with an array x, or a stream as TASKS",
    )


def check(args: argparse.Namespace) -> None:
    """Refuse what needs no TensorFlow to be refused."""
    _check_what_is_asked_for(args)
    check_tasks(args.add or args.tasks)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from keras_mas.methods import load_method

    from ..console import stderr_console
    from ..devices import describe_role, devices_of
    from ..run import train

    # What is refused before any data is loaded.
    load_method(args.method or Settings.method)
    if vars(args)["continue"] is None:
        check_options_act(vars(args), (args.method or Settings.method,))
    following = Following(**given_options(Following, args))
    shared.check_network(args)
    devices = devices_of(args.devices)
    asked = _asked(args)
    directory = args.output or asked.default
    learn = functools.partial(
        train,
        asked.stream,
        asked.settings,
        directory,
        overwrite=args.overwrite,
        devices=devices,
        continued=asked.continued,
        start=asked.start,
    )
    if devices.is_chief:
        _lead(args, asked, directory, learn, _followers(args, asked, directory, following))
    else:
        stderr_console().print(describe_role(devices), soft_wrap=True)
        learn()


def _lead(args, asked, directory, learn, followers):
    """Learn the tasks as the host that writes the folder, and print and draw the result."""
    from ..accuracy_picture import draw
    from ..console import result_console
    from ..progress import TaskLines
    from ..report import print_result
    from ..summary import title

    stream, settings = asked.stream, asked.settings
    lines = TaskLines(
        stream,
        title(settings.of_method),
        verbose=args.verbose,
        epochs=[settings.recipe.for_task(number)[1] for number in range(len(stream.tasks))],
    )
    with lines:
        result = learn(
            arguments=shared.recorded(vars(args)),
            listeners=[lines, *followers],
            verbose=args.verbose,
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


def _followers(args, asked, directory, following):
    """Return what follows a run beside its progress: logs, a user's own, and the export."""
    from ..exporting import Exporter, check_export
    from ..run_logs import followers

    found = followers(following, asked.settings, directory)
    if not args.export:
        return found
    runs = [] if args.overwrite else [directory]
    runs += [asked.continued.run.directory] if asked.continued else []
    check_export(asked.stream, args.export, runs)
    command = shared.train_command(shared.recorded(vars(args)))
    data = asked.continued.result["data"] if asked.continued else None
    return [*found, Exporter(args.export, asked.stream, asked.settings, command, data)]


def _check_what_is_asked_for(args):
    """Refuse TASKS beside `--continue`, and options of one without the other."""
    _check_start(args)
    given = {name: vars(args)[name] for name in shared.OF_CONTINUED if vars(args)[name]}
    if "continue" not in given:
        if args.start_from:
            given.pop("old_data", None)
        if given:
            raise UsageError(
                f"Expected `--continue RUN` beside {_flags(given)}, to say which run goes on. "
                "Received: none."
            )
        if not args.tasks:
            raise UsageError(
                "Expected TASKS, or `--continue RUN --add TASKS`. Received: neither. See "
                "'keras-mas train --help'."
            )
        return
    if args.tasks:
        raise UsageError(
            f"Expected new tasks behind `--add`. Received: '{args.tasks}' beside `--continue`. "
            f"Write `--add {args.tasks}`."
        )
    if "add" not in given:
        raise UsageError(
            "Expected `--add TASKS` beside `--continue`: the tasks to learn. Received: none."
        )
    if args.scenario:
        raise UsageError(
            f"Expected the scenario of '{given['continue']}'. Received: --scenario "
            f"{args.scenario}. Leave the option out."
        )


def _check_start(args):
    given = [name for name in shared.OF_START if vars(args)[name]]
    if given and not args.start_from:
        raise UsageError(
            f"Expected `--start-from FILE` beside {_flags(given)}. Received: none. Name the "
            "network."
        )
    if args.start_from and vars(args)["continue"]:
        raise UsageError(
            "Expected `--start-from` or `--continue`. Received: both. A run that started from a "
            "network is continued by `--continue` alone."
        )
    if args.start_from and _has_other_hosts():
        raise UsageError(
            "Expected `--start-from` in one process. Received: TF_CONFIG with several hosts. Start "
            "it on one of them with TF_CONFIG unset, and go on from that run with `--continue`."
        )
    if args.features and (args.head or args.old_data):
        raise UsageError(
            "Expected no head beside `--features`, which leaves out that of the network. Received: "
            f"{_flags(name for name in ('head', 'old_data') if vars(args)[name])}. Leave it out."
        )
    if args.start_from and not args.unlabelled:
        raise UsageError(
            "Expected `--unlabelled DATA` beside `--start-from`, to measure what matters to what "
            "the network knows. Received: none. Name inputs like those that it was trained on."
        )
    if args.start_from and (args.backbone or args.weights):
        raise UsageError(
            "Expected the network of `--start-from` alone. Received: --backbone or --weights "
            "beside it. Leave them out."
        )


def _has_other_hosts():
    from ..hosts import cluster_of_environment  # which takes TensorFlow

    return cluster_of_environment() is not None


def _flags(names):
    return ", ".join(f"`{flag(name)}`" for name in names)


class _Asked(NamedTuple):
    """What is to be trained: arguments of `run.train`, and the folder unless another is named."""

    stream: TaskStream
    settings: Settings
    default: Path
    continued: "Continued | None" = None
    start: "Start | None" = None


def _asked(args):
    if vars(args)["continue"]:
        return _continued(args, vars(args)["continue"], args.add)
    if args.features:
        return _on_features(args)
    return _continued(args, _started(args), args.tasks) if args.start_from else _new(args)


def _new(args):
    """Return what is asked for of a run that learns all tasks."""
    for name, field in option_fields(Settings).items():
        if getattr(args, name) is None:
            setattr(args, name, field.default)
    stream = shared.load_stream(args, args.seed)
    settings = shared.settings_of(args, stream)
    return _Asked(stream, settings, Path("runs") / run_name(stream, settings))


def _on_features(args):
    """Return the same of a run that learns all tasks on features of a trained network."""
    from ..starting import checked_settings

    new = _new(args)
    start = _start(args, new.settings.recipe)
    network = {"backbone": start.backbone, "weights": str(start.path)}
    recipe = dataclasses.replace(new.settings.recipe, **network)
    settings = checked_settings(dataclasses.replace(new.settings, recipe=recipe))
    warnings.warn(
        f"what '{args.start_from}' computes up to '{args.features}' is held; its own classes are "
        "not, and no head of the new network answers for them",
        stacklevel=2,
    )
    return _Asked(new.stream, settings, Path("runs") / run_name(new.stream, settings), start=start)


def _start(args, recipe):
    """Return the network of `--start-from`, and what its importance is measured on."""
    from ..progress import DecodingLines
    from ..starting import Start, read_unlabelled

    with DecodingLines() as lines:
        options = LoadOptions(**given_options(LoadOptions, args), on_decoded=lines.decoded)
        inputs = read_unlabelled(
            args.unlabelled, args.start_from, args.features, recipe.max_examples, options
        )
    return Start(args.start_from, inputs, args.features)


def _started(args):
    """Return the folder of a run of the one task that a trained network has learned."""
    from ..first_task import digest
    from ..identity import describe
    from ..run import train
    from ..settings import DEFAULT_FOR_IMAGES, DEFAULT_FOR_VECTORS
    from ..starting import SCENARIO, checked_settings, own_task

    if args.scenario not in (None, SCENARIO):
        raise UsageError(
            f"Expected the scenario '{SCENARIO}' for a network that keeps its own output as a "
            f"head. Received: --scenario {args.scenario}. Leave the option out, or give "
            "`--features LAYER`."
        )
    name, _, classes = (args.head or "start").partition("=")
    given = given_options(Recipe, args)
    start = _start(args, dataclasses.replace(DEFAULT_FOR_VECTORS, **given))
    stream = own_task(start, name, tuple(classes.split(",")) if classes else ())
    default = DEFAULT_FOR_IMAGES if len(stream.input_shape) == 3 else DEFAULT_FOR_VECTORS
    network = {"backbone": start.backbone, "weights": str(args.start_from)}
    recipe = dataclasses.replace(default, **(given | network))
    settings = checked_settings(Settings(**given_options(Settings, args), recipe=recipe))
    described = describe(stream, settings, "test") | start.description
    directory = Path("runs") / f"{args.start_from.stem}-{digest(described)[:8]}"
    train(stream, settings, directory, start=start)
    return directory


def _continued(args, directory, add):
    """Return what is asked for of a run that goes on from another one."""
    from ..augmentation import check_augmentations
    from ..continuing import continued, default_folder
    from ..finished_run import FinishedRun
    from ..progress import DecodingLines

    finished = FinishedRun.read(directory)
    given = {k: v for k, v in given_options(Settings, args).items() if v is not False}
    given_recipe = given_options(Recipe, args)
    if args.start_from:
        given, given_recipe = {}, {}  # the folder is named after them, and holds them
    settings = finished.settings(given, given_recipe)
    check_options_act(given | given_recipe, (settings.method,))
    with DecodingLines() as lines:
        found = continued(
            finished,
            add,
            settings,
            options=finished.load_options(given_options(LoadOptions, args)),
            old_data=args.old_data,
            memory=args.memory,
            on_decoded=lines.decoded,
        )
    check_augmentations(settings.recipe.augmentations, found.stream.input_shape)
    default = default_folder(finished, found.name_of_added, given | given_recipe)
    return _Asked(found.stream, settings, default, found)
