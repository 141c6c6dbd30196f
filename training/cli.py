"""`keras-mas`: the command line. What each command does is in `commands/`."""

import argparse
import codecs
import contextlib
import errno
import os
import signal
import sys
import textwrap
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NoReturn, TextIO, cast

from keras_mas.errors import UsageError

from .commands import COMMANDS, WITHOUT_TENSORFLOW
from .interruption import interruptible
from .options import not_empty
from .start_tensorflow import import_tensorflow
from .wording import sentence

# How characters are written where the encoding of standard output lacks them.
_IN_ASCII = {"λ": "lambda", "θ": "theta", "Ω": "Omega", "≥": ">=", "±": "+/-", "…": "...", "–": "-"}

_FULL = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the quota of the disk is used up",
}


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated.
    """
    with interruptible() as signals:
        return _run(argv, signals)


def _run(argv: list[str] | None, signals: list[int]) -> int:
    _replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        _write_any_character(stream)
    try:
        args = _parsed(argv)
    except _ReaderGoneError:
        _drop_output()
        return 0
    except _OutputError as error:
        _drop_output()
        return _failed(str(error), 1)
    except KeyboardInterrupt:
        return _interrupted(signals)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(_output(needs_reader=args.command in _ONLY_PRINT)),
        ):
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _show_all if args.debug else _show_ours
            args.check_command(args)
            if args.command not in WITHOUT_TENSORFLOW:
                import_tensorflow(args.debug)
            args.run_command(args)
            sys.stdout.flush()
    except KeyboardInterrupt:
        return _interrupted(signals, args.command)
    except _ReaderGoneError:
        _drop_output()
        return _interrupted(signals, args.command) if signals else 0
    except Exception as error:
        if args.debug:
            raise
        if signals:  # what is given up may fail, as a step that was shared with another host
            return _interrupted(signals, args.command)
        if isinstance(error, _OutputError):
            _drop_output()
        return _failed(_sentence(error), 2 if isinstance(error, UsageError) else 1)
    return 0


# The commands of which nothing is left but what they print.
_ONLY_PRINT = ("report", "predict", "status", "completion")

# The commands that go on with what they had done when they were interrupted.
_RESUMED = ("train", "compare", "search", "export")


def _interrupted(signals: list[int], command: str = "") -> int:
    """Say what ended a command, if it had begun, and return the exit code."""
    what, code = ("terminated", 143) if signal.SIGTERM in signals else ("interrupted", 130)
    advice = " The same command continues where it stopped." if command in _RESUMED else ""
    return _failed(f"{what}.{advice}", code)


class _Help(argparse.HelpFormatter):
    """Keeps names whole that have hyphens, as those of streams."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class _Parser(argparse.ArgumentParser):
    """Answers wrong usage with one sentence instead of the whole usage."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{"formatter_class": _Help} | options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {sentence(message)} See '{self.prog} --help'.\n")


class _Version(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib import metadata  # which takes as long to import as the rest

        sys.stdout.write(f"{parser.prog} {metadata.version('keras-mas')}\n")
        parser.exit()


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands; it imports nothing that takes long to import.

    Args:
        only: A command whose arguments are all that will be parsed; the others are not imported.
    """
    parser = _Parser(
        prog="keras-mas",
        description="Learn task after task without forgetting, find λ, and serve the result.",
        epilog="'keras-mas COMMAND --help' explains a command, and 'keras-mas completion --help' "
        "how to complete commands in bash, zsh and fish. Exit codes: 0 done, 1 failed, 2 wrong "
        "usage, 130 interrupted, 143 terminated.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS if only not in COMMANDS else (only,):
        module = import_module(f".commands.{name}", __package__)
        description = f"{module.SUMMARY[0].upper()}{module.SUMMARY[1:]}."
        command = commands.add_parser(name, help=module.SUMMARY, description=description)
        command.register("type", None, not_empty)  # of the arguments that name no other type
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        module.add_arguments(command)
        check = getattr(module, "check", lambda args: None)
        command.set_defaults(check_command=check, run_command=module.run)
    return parser


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    """Return the arguments, or print what was asked for instead, such as help, and exit."""
    with contextlib.redirect_stdout(_output(needs_reader=True)):
        try:
            words = sys.argv[1:] if argv is None else argv
            return build_parser(words[0] if words else None).parse_args(words)
        finally:
            sys.stdout.flush()


def _replace_closed_streams() -> None:
    """Drop what is written to a standard stream that the caller has closed."""
    # A file opened later would take a closed stream's number, and what C++ prints would go there.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, os.fdopen(nowhere, "w", encoding="utf-8"))


class _OutputError(RuntimeError):
    """Standard output cannot be written to."""


class _ReaderGoneError(BrokenPipeError):
    """What reads standard output, `head` perhaps, has closed the pipe: it has seen enough."""


def _output(*, needs_reader: bool) -> TextIO:
    return cast(TextIO, _Output(sys.stdout, needs_reader=needs_reader))


class _Output:
    """Standard output; an error in writing to it says so.

    Where a reader is not needed, what is printed after it has gone is dropped.
    """

    def __init__(self, stream: TextIO, *, needs_reader: bool):
        self.stream = stream
        self.needs_reader = needs_reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self._naming_errors():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._naming_errors():
            self.stream.flush()

    @contextlib.contextmanager
    def _naming_errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError as error:
            if self.needs_reader:
                raise _ReaderGoneError(*error.args) from error
            _drop_output()
        except OSError as error:
            raise _OutputError(
                f"Cannot write to standard output: {error.strerror}. Send it elsewhere, and run "
                "the same command again."
            ) from error


def _drop_output() -> None:
    """Send nowhere what is still to be written to standard output, and tried when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _write_any_character(stream: TextIO) -> None:
    """Let a stream of a small character set write others in ASCII instead of failing."""
    codecs.register_error("keras-mas", _in_ascii)
    if hasattr(stream, "reconfigure"):  # a test's replacement may lack it
        stream.reconfigure(errors="keras-mas")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    replaced = (
        _IN_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in characters
    )
    return "".join(replaced), error.end


def _sentence(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return (
            f"The command line needs the package '{error.name}', which is not installed. Install "
            "it with: pip install 'keras-mas[training]'"
        )
    if isinstance(error, OSError) and error.filename:
        return (
            f"Cannot read or write '{error.filename}': {error.strerror}. Check whether the file "
            "exists, may be written, and has room on its disk."
        )
    if isinstance(error, OSError) and error.errno in _FULL:
        return f"Cannot write: {_FULL[error.errno]}. Make room, and run the same command again."
    if isinstance(error, ValueError | RuntimeError | OSError) and str(error):
        return str(error)
    # Nobody has worded this one for the command line: a KeyError is its key.
    said = f"{type(error).__name__}: {error}".removesuffix(": ").removesuffix(".")
    return f"{said}. See where it comes from with `--debug`."


def _show_all(message, category, filename, lineno, file=None, line=None) -> None:
    sys.stderr.write(f"keras-mas: warning: {filename}:{lineno}: {category.__name__}: {message}\n")


def _show_ours(message, category, filename, lineno, file=None, line=None) -> None:
    """Show the warnings of this package, in the terms of the command line; drop others."""
    if category.__name__ == "UnstablePenaltyWarning" and hasattr(message, "limit"):
        message = (
            f"λ = {message.strength:g} is above {message.limit:.3g}, the largest that this "
            "optimizer and learning rate can follow: training is likely to diverge. Lower "
            "`--strength` or `--learning-rate`, or use `--penalty decoupled`."
        )
    if category.__module__.startswith("keras_mas.") or _is_ours(filename):
        sys.stderr.write(f"keras-mas: warning: {message}\n")


def _is_ours(filename: str) -> bool:
    folders = ("keras_mas", "keras_mas.serving", "keras_mas.training")
    return any(
        filename.startswith(f"{os.path.dirname(str(sys.modules[name].__file__))}{os.sep}")
        for name in folders
        if name in sys.modules
    )


def _failed(message: str, code: int) -> int:
    sys.stderr.write(f"keras-mas: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
