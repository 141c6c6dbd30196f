"""`keras-mas compare`: methods × seeds beside each other, with differences and a report."""

import argparse
import sys
from pathlib import Path

from keras_mas.errors import UsageError

from ..comparison_plan import ComparisonPlan
from ..following import Following
from ..options import add_options, file_or_folder, flag, given_options, option_fields
from ..search.remarks import remarks, wider
from ..search.space import SearchSpace
from ..settings import Recipe, Settings, check_options_act
from ..tasks import LoadOptions, check_tasks
from . import shared

SUMMARY = "train several methods with several seeds, and compare them"

# What the plan decides for each run.
_PLANNED = ("method", "strength", "seed")
_OF_SEARCH = tuple(name for name in option_fields(SearchSpace) if name != "vary")
_FOLDERS = {"runs": Path("runs"), "searches": Path("search")}
_COMMON = tuple(name for name in option_fields(Settings) if name not in _PLANNED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    shared.add_tasks(parser)
    group = parser.add_argument_group("comparison")
    add_options(group, ComparisonPlan)
    add_options(group, Settings, *_COMMON)
    group = parser.add_argument_group("search of λ, with --search")
    # Without defaults, so that it shows which were given.
    add_options(group, SearchSpace, *_OF_SEARCH, with_defaults=False, told=True)
    shared.add_recipe(parser)
    shared.add_following(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--runs",
        type=file_or_folder,
        default=_FOLDERS["runs"],
        metavar="FOLDER",
        help="where each run has a folder; those that are finished are read, and others are "
        "continued (default: runs)",
    )
    group.add_argument(
        "--searches",
        type=file_or_folder,
        default=_FOLDERS["searches"],
        metavar="FOLDER",
        help="where searches are kept, as for `keras-mas search` (default: search)",
    )
    group.add_argument(
        "--output",
        type=file_or_folder,
        metavar="FOLDER",
        help="folder of report.html, comparison.json and comparison.csv, which are replaced "
        "(default: comparisons/ and the stream's name)",
    )
    shared.add_importance(group)
    form = group.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print comparison.json instead")
    form.add_argument("--csv", action="store_true", help="print a CSV line per run instead")


def check(args: argparse.Namespace) -> None:
    """Refuse what needs no TensorFlow to be refused."""
    check_tasks(args.tasks)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from keras_mas.files import check_writable

    from ..run_directory import locked

    plan = ComparisonPlan(**given_options(ComparisonPlan, args))
    _check_search(args)
    # What is refused before any data is loaded.
    plan.contestants(Recipe())
    check_options_act(vars(args) | {"strength": None}, plan.method_names)
    following = Following(**given_options(Following, args))
    shared.check_network(args)
    if args.output is not None:
        check_writable(args.output)
    stream = shared.load_stream(args, plan.seed_numbers[0])
    common = {name: getattr(args, name) for name in _COMMON}
    contestants = plan.contestants(shared.recipe_of(args, stream), **common)
    shared.warn_of_scenario(stream, *contestants)
    output = args.output or Path("comparisons") / stream.name
    check_writable(output)
    output.mkdir(parents=True, exist_ok=True)
    with locked(output):
        entries, found = _entries(args, plan, following, stream, contestants)
        if not any(entry.result for entry in entries):
            raise RuntimeError(f"None of {len(entries)} runs was finished. {entries[-1].error}")
        said = {method: list(_remarks(args, *each)) for method, each in found.items()}
        content = _written(args, plan, entries, output, said)
    _print(args, plan, entries, content, output)
    failed = [entry.name for entry in entries if not entry.result]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(entries)} runs failed: {', '.join(failed)}. The others are "
            "compared; the same command tries again what failed."
        )


def _check_search(args):
    """Refuse options of a search without one: they would be ignored."""
    values = ((name, getattr(args, name)) for name in _OF_SEARCH)
    given = [flag(name) for name, value in values if value is not None and value is not False]
    if given and not args.search:
        raise UsageError(
            f"Expected --search with {', '.join(given)}. Received: none, so that no λ is searched "
            "for. Add --search, or leave them out."
        )


def _entries(args, plan, following, stream, contestants):
    """Train what is not finished; `stream` is of the first seed.

    Returns an entry for each run, and what was found and recommended by the name of each method
    whose λ was searched for.
    """
    from ..compare import compare
    from ..comparison_progress import ComparisonLines
    from ..run_logs import followers

    space = SearchSpace(**given_options(SearchSpace, args)) if plan.search else None
    loaded = {plan.seed_numbers[0]: stream}

    def follow(settings, directory):
        return followers(following, settings, directory)

    lines = ComparisonLines(
        contestants, plan.seed_numbers, len(stream.tasks), follow, searches=plan.search
    )
    with lines:

        def stream_of(seed):
            if seed in loaded:
                return loaded.pop(seed)
            with lines.suspended():
                return shared.load_stream(args, seed)

        entries = compare(
            stream_of,
            contestants,
            plan.seed_numbers,
            args.runs,
            space=space,
            searches=args.searches,
            arguments_of=lambda settings: _arguments(args, settings),
            observer=lines,
        )
    return entries, lines.found


def _remarks(args, found, recommendation):
    """Yield what is to be said about the λ that a method takes, in sentences."""
    space = SearchSpace(**given_options(SearchSpace, args))

    def with_space(**changes):
        return _command(argparse.Namespace(**vars(args) | changes))

    if recommendation.trial.strength == 0:
        yield "λ = 0 is best on the validation data, which is no protection."
    more = with_space(trials=2 * space.trials)
    yield from remarks(found, recommendation, lambda edge: with_space(**wider(space, edge)), more)


def _written(args, plan, entries, output, said):
    """Write the files of a comparison, and return what comparison.json holds."""
    from keras_mas.files import atomic_file

    from ..comparison_table import comparison_content, reference_group
    from ..html_report import write_html
    from ..importance_report import importance_sections
    from ..report import write_csv
    from ..run_directory import write_json
    from ..summary import groups

    content = comparison_content(entries, plan.against, _command(args), output, said)
    write_json(output / "comparison.json", content)
    with atomic_file(output / "comparison.csv", "w") as file:
        write_csv(content["runs"], file)
    finished = [entry.result for entry in entries if entry.result]
    pictured = _with_pictures(entries, plan.seed_numbers[0])
    write_html(
        output / "report.html",
        finished,
        reference=reference_group(groups(finished), plan.against),
        commands=[content["command"]],
        failed=[(entry.name, entry.error) for entry in entries if entry.error],
        remarks=said,
        more=importance_sections(pictured) if args.importance else (),
    )
    return content


def _print(args, plan, entries, content, output):
    from ..comparison_table import print_entries
    from ..console import result_console
    from ..report import write_csv

    if args.json:
        shared.print_json(content)
    elif args.csv:
        write_csv(content["runs"], sys.stdout)
    else:
        console = result_console()
        print_entries(entries, plan.against, console, content["remarks"])
        console.print(
            f"written to {output}/: report.html, comparison.json, comparison.csv; the runs to "
            f"{args.runs}/",
            soft_wrap=True,
        )


def _with_pictures(entries, seed):
    """Return name, folder and result of each method's run with a seed."""
    found = [entry for entry in entries if entry.result and entry.settings.seed == seed]
    return [(entry.name, entry.directory, entry.result) for entry in found]


def _command(args):
    """Return the command line that makes the comparison again."""
    kinds = [
        ComparisonPlan,
        Settings,
        Following,
        *([SearchSpace] if args.search else []),
        Recipe,
        LoadOptions,
    ]
    arguments = vars(args) | {"method": None, "seed": None}
    folders = {name: getattr(args, name) for name in ("runs", "searches", "output")}
    words = [
        word
        for name, folder in folders.items()
        if folder not in (None, _FOLDERS.get(name))
        for word in (flag(name), str(folder))
    ]
    words += ["--importance"] * args.importance
    return shared.command_line(
        "compare", arguments, *kinds, always=("methods", "seeds"), more=words
    )


def _arguments(args, settings):
    """Return the arguments with which `keras-mas train` makes a run of the comparison.

    An option that is for other methods is left out.
    """
    names = ("tasks", *_COMMON, *option_fields(Recipe), *option_fields(LoadOptions))
    given = {name: getattr(args, name) for name in names}
    given |= {name: getattr(settings, name) for name in _PLANNED}
    given |= dict.fromkeys(settings.idle_options & given.keys())
    return shared.recorded(given)
