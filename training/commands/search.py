"""`keras-mas search`: try settings and print the one to take as a command to run."""

import argparse
import itertools
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from keras_mas.errors import UsageError

from ..options import add_options, file_or_folder, flag, given_options
from ..search.dimensions import values_of
from ..search.remarks import remarks, wider
from ..search.space import SearchSpace
from ..search.workers import Workers
from ..settings import Settings, check_options_act
from ..tasks import check_tasks
from . import shared

if TYPE_CHECKING:
    from ..search.recommend import Recommendation
    from ..search.search import Found

SUMMARY = "find λ, and other settings, with keras-tuner, on validation data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    shared.add_tasks(parser)
    group = parser.add_argument_group("search")
    add_options(group, Settings, "method", "penalty", "seed", "deterministic")
    add_options(group, SearchSpace)
    group.add_argument("--strength", type=_no_single_strength, help=argparse.SUPPRESS)
    add_options(parser.add_argument_group("who runs the trials"), Workers)
    shared.add_recipe(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--directory",
        type=file_or_folder,
        default=Path("search"),
        metavar="FOLDER",
        help="where searches are kept; the same search again continues there (default: search)",
    )
    group.add_argument(
        "--tensorboard",
        action="store_true",
        help="write the trials for TensorBoard's HParams into the search's folder",
    )
    shared.add_overwrite(group, "what the same search found before")
    shared.add_json(group)


def check(args: argparse.Namespace) -> None:
    """Refuse what needs no TensorFlow to be refused."""
    check_tasks(args.tasks)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # it tells of every connection that ends
    from ..console import result_console
    from ..run_directory import TENSORBOARD, write_json
    from ..search.hparams import write_hparams
    from ..search.picture import draw
    from ..search.progress import TrialLines
    from ..search.recommend import NoTrialError
    from ..search.search import PICTURE, SUMMARY, search

    space = SearchSpace(**given_options(SearchSpace, args))
    workers = _workers(args)
    # What is wrong is refused before data is loaded.
    dimensions = space.dimensions(Settings(**given_options(Settings, args)))
    _check_networks(args, dimensions)
    tried = values_of(dimensions["method"]) if "method" in dimensions else (args.method,)
    check_options_act(vars(args) | dict.fromkeys(dimensions, "in --vary"), tried)
    stream = shared.load_stream(args, args.seed)
    settings = shared.settings_of(args, stream)
    _check_networks(settings.recipe, dimensions)  # the stream may decide on the backbone
    if workers.join is not None:
        _join(args, stream, settings, space)
        return
    with TrialLines() as lines:
        found = search(
            stream,
            settings,
            space,
            args.directory,
            observer=lines,
            overwrite=args.overwrite,
            way=_way(args, workers),
        )
    try:
        recommendation = found.recommendation()
    except NoTrialError:
        # Each trial has had its line there; what is left to show is their order.
        if any(trial.is_completed for trial in found.trials):
            _print_trials(found, lines.console)
        else:
            _print_counts(found, lines.console)
        raise
    content = _content(args, found, recommendation)
    write_json(found.folder / SUMMARY, content)
    if args.json:
        learned = sum(trial.learned for trial in found.trials)
        now = {"trained_now": _trained_now(found), "tasks_learned_now": learned}
        shared.print_json(content | now)
    else:
        console = result_console()
        _print_trials(found, console, recommendation.trial)
        for sentence in content["advice"]:
            console.print(sentence, soft_wrap=True)
        console.print("recommended (the first command to read the test data):")
        console.print(content["command"], soft_wrap=True)
    # What fails from here on takes nothing with it.
    draw(found, recommendation, found.folder / PICTURE)
    if args.tensorboard:
        write_hparams(found, found.folder / TENSORBOARD)


def _no_single_strength(text):
    raise argparse.ArgumentTypeError(
        "expected the bounds of λ, --strength-min and --strength-max, since a search tries many, "
        f"received {text!r}; `keras-mas train` takes a single one"
    )


def _workers(args):
    workers = Workers(**given_options(Workers, args))
    workers.check_cores()
    for name in ("overwrite", "tensorboard", "json"):
        if workers.join is not None and getattr(args, name):
            raise UsageError(
                f"Expected {flag(name)} of the search, not with --join. Received both: a worker "
                "runs trials, and the search that it joins shows what was found."
            )
    return workers


def _join(args, stream, settings, space):
    from ..search.progress import WorkerLines
    from ..search.worker import join

    lines = WorkerLines()
    count = join(stream, settings, space, args.directory, args.join, lines)
    lines.said(f"the search has ended; {count} trials were run here")


def _way(args, workers):
    """Return what runs the trials, for `search`."""
    if not workers.are_processes:
        return None
    from ..search.chief import with_workers
    from ..tasks.store import default_memory

    # All of them together keep as much data in memory as this process.
    memory = (args.cache_memory or default_memory()) // max(1, workers.workers)
    of_worker = {"cache_memory": memory, "tensorboard": False}
    of_worker |= {"workers": 1, "listen": None}

    def launch(address, environment):
        command = shared.search_command(vars(args) | of_worker | {"join": address})
        module = [sys.executable, "-P", "-m", "keras_mas.training.cli"]
        words = [*module, *shlex.split(command)[1:], *["--debug"] * args.debug]
        return subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # interrupted from the keyboard, this process ends them
        )

    return with_workers(launch, workers.workers, workers.listen)


def _content(args: argparse.Namespace, found: "Found", recommendation: "Recommendation") -> dict:
    """Return what was found and what is recommended, for JSON."""
    trial, highest = recommendation.trial, recommendation.highest
    return {
        "recommended": dict(trial.values),
        "average_accuracy": trial.accuracy,
        "forgetting": trial.forgetting,
        "highest_accuracy": highest.accuracy,
        "standard_error": recommendation.standard_error,
        "as_good": len(recommendation.as_good),
        "edges": dict(recommendation.edges),
        "plateau": recommendation.plateau,
        "command": _train_command(args, trial),
        "advice": list(_advice(args, found, recommendation)),
        "folder": str(found.folder),
        "trials": [_row(each) for each in found.trials],
    }


def _train_command(args, trial):
    """Return the command that trains what was tried, without what it makes no difference to."""
    arguments = {**vars(args), **trial.values}
    idle = trial.settings.idle_options & arguments.keys()
    return shared.train_command(arguments | dict.fromkeys(idle))


def _row(trial):
    row = {"values": dict(trial.values), "state": trial.state}
    if trial.is_completed:
        error = trial.standard_error
        row |= {"average_accuracy": trial.accuracy, "standard_error": error}
        return row | {"forgetting": trial.forgetting, "cross_entropy": trial.cross_entropy}
    return row | {"reason": trial.reason}


def _check_networks(network, dimensions):
    """Refuse a backbone or weights that do not exist, given or one of several to try."""
    given = {"backbone": network.backbone, "weights": network.weights}
    varied = [name for name in given if name in dimensions]
    if not varied:
        shared.check_network(network)
        return
    for values in itertools.product(*(values_of(dimensions[name]) for name in varied)):
        tried = given | dict(zip(varied, values, strict=True))
        try:
            shared.check_network(argparse.Namespace(**tried))
        except UsageError as error:
            raise UsageError(f"In --vary: {error}") from error


def _advice(args, found, recommendation):
    """Yield what is to be said about the recommendation, in sentences."""
    highest = recommendation.highest
    yield (
        f"The highest average accuracy is {highest.accuracy:.4f} ± "
        f"{recommendation.standard_error:.4f} (one standard error), with {highest.name}. "
        + _why_chosen(recommendation)
    )
    more = shared.search_command(vars(args) | {"trials": 2 * args.trials})
    yield from remarks(found, recommendation, lambda edge: _wider_command(args, edge), more)


def _why_chosen(recommendation):
    from ..search.recommend import order_of

    trial, as_good = recommendation.trial, recommendation.as_good
    if len(as_good) == 1:
        return "No other trial is within it."
    equal = recommendation.forget_least
    within = f"Of {len(as_good)} trials within it,"
    if len(equal) == 1:
        return f"{within} {trial.name} forgets least: {trial.forgetting:.4f}."
    is_by_accuracy = any(other.cross_entropy is None for other in as_good)
    best = (
        "the highest accuracy"
        if is_by_accuracy
        else f"the lowest cross-entropy, {trial.cross_entropy:.4f}"
    )
    order = order_of(as_good)
    alike = [other for other in equal if order(other) == order(trial)]
    reason = (
        f"has {best}"
        if len(alike) == 1
        else f"has the middle λ of those with {best}"
        if sum(other.strength == trial.strength for other in alike) == 1
        else f"is one of those with {best}"
    )
    return (
        f"{within} {len(equal)} forget least, {trial.forgetting:.4f} each, and {trial.name} "
        f"{reason}."
    )


def _wider_command(args, edge):
    return shared.search_command(
        vars(args) | wider(SearchSpace(**given_options(SearchSpace, args)), edge)
    )


def _trained_now(found):
    return sum(trial.is_new for trial in found.trials)


def _print_trials(found, console, recommended=None):
    from rich.table import Table

    from ..console import print_table
    from ..summary import measure_text

    title = "on validation data, best first"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for heading in ("average accuracy", "forgetting", "cross-entropy"):
        table.add_column(heading, justify="right")
    for trial in found.trials:
        if trial.is_completed:
            measures = (trial.accuracy, trial.forgetting, trial.cross_entropy)
            name = f"{trial.name} (recommended)" if trial is recommended else trial.name
            table.add_row(name, *(measure_text(each) for each in measures))
        else:
            table.add_row(trial.name, trial.state)
    print_table(console, table)
    for trial in found.trials:
        if not trial.is_completed:
            console.print(f"{trial.name} {trial.reason}", soft_wrap=True)
    _print_counts(found, console)


def _print_counts(found, console):
    states = [trial.state for trial in found.trials]
    others = [f", {states.count(s)} {s}" for s in ("stopped", "failed") if s in states]
    new = _trained_now(found)
    console.print(
        f"{new} trained now, {len(states) - new} read from {found.folder}{''.join(others)}",
        soft_wrap=True,
    )
