"""What several commands share: arguments, the settings made of them, and JSON output."""

import argparse
import dataclasses
import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..augmentation import check_augmentations
from ..following import Following
from ..options import add_options, flag, given_options, option_fields
from ..search.reading import read_space
from ..search.space import SearchSpace
from ..search.workers import Workers
from ..settings import Recipe, Settings, batch_size_for, recipe_for
from ..tasks import LoadOptions, TaskStream, builtin_names, load_tasks
from ..tasks.tables import Encoding
from .basics import add_data as add_data
from .basics import add_json as add_json
from .basics import add_server as add_server
from .basics import check_one_of as check_one_of
from .basics import client_of as client_of
from .basics import count as count
from .basics import print_json as print_json
from .basics import read_array as read_array

# The options of `train` for a run that goes on from another one, by their names in Python.
OF_CONTINUED = ("continue", "add", "old_data", "memory")
OF_START = ("start_from", "features", "head", "unlabelled")


def add_tasks(parser: argparse.ArgumentParser, *, optional: bool = False) -> None:
    """Add the stream of tasks, which may be left out if it is optional, and where its data lies."""
    parser.add_argument(
        "tasks",
        nargs="?" if optional else None,
        metavar="TASKS",
        help=f"{', '.join(builtin_names())}, or a TOML file of tasks",
    )
    add_data(parser)


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add the options of `Recipe`; those that are not given are the stream's own."""
    group = parser.add_argument_group("training (default: the stream's own recipe)")
    add_options(group, Recipe, with_defaults=False)


def add_following(parser: argparse.ArgumentParser) -> None:
    """Add the options of `Following`."""
    add_options(parser.add_argument_group("while it goes on"), Following)


def add_overwrite(group: argparse._ActionsContainer, what: str) -> None:
    """Add `--overwrite`."""
    group.add_argument("--overwrite", action="store_true", help=f"replace {what}")


def add_importance(group: argparse._ActionsContainer) -> None:
    """Add `--importance`."""
    group.add_argument(
        "--importance",
        action="store_true",
        help="draw Ω in the report in HTML: by layer, by filter of the first convolution, by pixel",
    )


def load_stream(
    args: argparse.Namespace, seed: int, encoding: Encoding | None = None
) -> TaskStream:
    """Load the tasks that were asked for, with the examples that a seed holds out.

    Args:
        args: The options of `LoadOptions`, and `tasks`; of a command that learns, `batch_size`.
        seed: As for `load_tasks`.
        encoding: As for `load_tasks`.
    """
    from ..progress import DecodingLines

    options = given_options(LoadOptions, args)
    if hasattr(args, "batch_size"):
        options["batch_size"] = args.batch_size or batch_size_for(args.tasks)
    with DecodingLines() as lines:
        return load_tasks(
            args.tasks, seed=seed, on_decoded=lines.decoded, encoding=encoding, **options
        )


def recipe_of(args: argparse.Namespace, stream: TaskStream) -> Recipe:
    """Return the stream's own recipe with what was asked for instead."""
    recipe = dataclasses.replace(recipe_for(stream), **given_options(Recipe, args))
    check_augmentations(recipe.augmentations, stream.input_shape)
    warn_of_given_batch_norm(args, stream, recipe)
    return recipe


def warn_of_given_batch_norm(args: argparse.Namespace, stream: TaskStream, recipe: Recipe) -> None:
    """Warn of `--batch-norm` with its default value, if the backbone has no moving statistics.

    A recipe does not tell what was given from the default, which is silent; a run warns of other
    values itself.
    """
    from ..backbones import build_trunk, check_pixels
    from ..learner import warn_of_batch_norm

    varied = read_space(args.vary) if getattr(args, "vary", None) else {}
    if args.batch_norm == Recipe.batch_norm and "backbone" not in varied:
        check_pixels(recipe.backbone, stream.tasks[0].train.dtype)
        trunk = build_trunk(recipe.backbone, stream.input_shape, stream.rescale, None)
        warn_of_batch_norm(recipe, trunk)


def check_network(args: argparse.Namespace) -> None:
    """Refuse a backbone or weights that do not exist, before any data is loaded."""
    from ..backbones import check_backbone

    if args.backbone is not None:
        check_backbone(args.backbone, args.weights)


def settings_of(args: argparse.Namespace, stream: TaskStream) -> Settings:
    """Return the settings that were asked for, and for the rest the stream's own recipe."""
    settings = Settings(**given_options(Settings, args), recipe=recipe_of(args, stream))
    warn_of_scenario(stream, settings)
    return settings


def warn_of_scenario(stream: TaskStream, *settings: Settings) -> None:
    """Warn if one of the methods is known to fail in the stream's scenario."""
    if stream.scenario == "class" and not all(each.learns_all_tasks for each in settings):
        warnings.warn(
            f"'{stream.name}' is class-incremental: without examples of earlier tasks, "
            "a network is known to forget all classes but the last task's. What helps is to train "
            "on earlier examples again (`--method joint` on all, replay methods on a few), or to "
            "tell the task at test time (`--scenario task`).",
            stacklevel=2,
        )


def recorded(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a command as JSON can hold them."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in arguments.items()
        if name not in ("check_command", "run_command")
    }


def command_line(
    command: str,
    arguments: Mapping[str, Any],
    *kinds: type,
    always: tuple[str, ...] = (),
    more: Sequence[str] = (),
) -> str:
    """Return a command that was given, as text to run again.

    Args:
        command: Name of the command.
        arguments: Values by name: `tasks`, and the options.
        *kinds: The dataclasses whose options the command has; an option of the same name as an
            earlier one is that one.
        always: Options that are named even with their default. Others have to differ from it; those
            of `Recipe` are named if they were given, since the stream decides on their default.
        more: Words that the command has besides.
    """
    words = ["keras-mas", command, *([str(arguments["tasks"])] if arguments["tasks"] else [])]
    named = set()
    for kind in kinds:
        for name, field in option_fields(kind).items():
            value = arguments.get(name)
            is_default = value == field.default and kind is not Recipe and name not in always
            if name not in named and value is not None and value is not False and not is_default:
                words += [flag(name)] if value is True else [flag(name), str(value)]
            named.add(name)
    return shlex.join([*words, *more])


def train_command(arguments: Mapping[str, Any]) -> str:
    """Return the `keras-mas train` command of a run by its recorded arguments; empty if none are.

    Args:
        arguments: As `recorded` returns them.
    """
    if "tasks" not in arguments:
        return ""
    always = ("method", "strength", "seed")
    # What a run goes on from, and with; earlier versions had no such options.
    more = [
        word
        for name in (*OF_CONTINUED, *OF_START)
        if arguments.get(name) is not None
        for word in (flag(name), str(arguments[name]))
    ]
    kinds = (Settings, Recipe, LoadOptions)
    return command_line("train", arguments, *kinds, always=always, more=more)


def command_of(result: Mapping[str, Any]) -> str:
    """Return the `keras-mas train` command of a run by its result; empty if it is not recorded.

    Args:
        result: As `read_result` returns it. Earlier versions recorded λ and a penalty among the
            arguments of a method that has none.
    """
    idle = [name for name in ("strength", "penalty") if result[name] is None]
    return train_command(result.get("arguments", {}) | dict.fromkeys(idle))


def search_command(arguments: Mapping[str, Any]) -> str:
    """Return the `keras-mas search` command of the arguments that it was given."""
    directory = arguments["directory"]
    more = [] if directory == Path("search") else ["--directory", str(directory)]
    more += ["--tensorboard"] * arguments["tensorboard"]
    kinds = (SearchSpace, Workers, Settings, Recipe, LoadOptions)
    return command_line("search", arguments, *kinds, always=("method",), more=more)
