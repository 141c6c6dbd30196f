"""`keras-mas completion`: print a script that completes the command line in a shell."""

import argparse
import sys

from ..options import file_or_folder

SUMMARY = "print a completion script for a shell"
SHELLS = ("bash", "zsh", "fish")
EPILOG = """\
to complete the command line in every new shell:
  bash  keras-mas completion bash >> ~/.bash_completion
  zsh   keras-mas completion zsh > FOLDER/_keras-mas, a FOLDER out of $fpath
  fish  keras-mas completion fish > ~/.config/fish/completions/keras-mas.fish
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    import shtab

    from ..cli import build_parser

    parser = build_parser()
    for action in _actions(parser):
        if action.type is file_or_folder or action.metavar == "TASKS":
            action.complete = shtab.FILE
    sys.stdout.write(shtab.complete(parser, args.shell).rstrip("\n") + "\n")


def _actions(parser):
    """Yield every argument of a parser and its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
