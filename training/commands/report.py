"""`keras-mas report`: print the results of runs, and draw them side by side."""

import argparse
import sys

from keras_mas.errors import UsageError

from ..options import file_or_folder
from . import shared

SUMMARY = "print and draw the results of runs, side by side"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "runs", nargs="+", type=file_or_folder, metavar="RUN", help="folder of a run"
    )
    parser.add_argument(
        "--output",
        type=file_or_folder,
        metavar="FILE.png",
        help="draw the runs side by side (default: no drawing)",
    )
    parser.add_argument(
        "--html",
        type=file_or_folder,
        metavar="FILE.html",
        help="write a report that needs no other file: tables, pictures, settings (default: none)",
    )
    shared.add_importance(parser)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--json", action="store_true", help="print a JSON object per run instead")
    group.add_argument("--csv", action="store_true", help="print a CSV line per run instead")


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..accuracy_picture import draw
    from ..console import result_console
    from ..report import print_comparison, print_result, report_rows, write_csv
    from ..run_directory import read_result

    if args.importance and not args.html:
        raise UsageError(
            "Expected --html FILE.html with --importance, which draws in it. Received: none."
        )
    results = [read_result(folder) for folder in args.runs]
    if len({tuple(result["tasks"]) for result in results}) > 1:
        streams = sorted({result["stream"] for result in results})
        raise UsageError(
            "Expected runs over the same tasks. Received: runs over "
            f"{', '.join(streams)}, whose tasks differ. Report them one by one."
        )
    if args.output:
        draw(results, args.output)
    if args.html:
        # These take longer to import than a table to print.
        from ..html_report import write_html
        from ..importance_report import importance_sections

        commands = [shared.command_of(result) for result in results]
        runs = [(run.name, run, result) for run, result in zip(args.runs, results, strict=True)]
        more = importance_sections(runs) if args.importance else ()
        write_html(args.html, results, commands=list(filter(None, commands)), more=more)
    if args.json:
        shared.print_json(report_rows(results))
        return
    if args.csv:
        write_csv(report_rows(results), sys.stdout)
        return
    console = result_console()
    if len(results) == 1:
        print_result(results[0], console)
    else:
        print_comparison(results, console)
    for path in filter(None, (args.output, args.html)):
        console.print(f"drawn to {path}", soft_wrap=True)
