"""`keras-mas`: the command line. What each command does is in `commands.py`."""

import argparse
import contextlib
import os
import sys
import warnings
from importlib import import_module
from pathlib import Path

from keras_mas.errors import UsageError
from keras_mas.methods import METHODS, PENALTIES
from keras_mas.serving.ports import GRPC, REST

from .settings import OPTIMIZERS, TUNERS
from .tasks import builtin_names


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    args = build_parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.showwarning = _warned
            _import_commands(args.debug).run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return _failed("interrupted. The same command goes on where it stopped.", 130)
    except Exception as error:
        if args.debug:
            raise
        return _failed(_sentence(error), 2 if isinstance(error, UsageError) else 1)
    return 0


class _Parser(argparse.ArgumentParser):
    """Answers wrong usage with one sentence instead of the whole usage."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}. See '{self.prog} --help'.\n")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; it imports nothing heavy."""
    parser = _Parser(
        prog="keras-mas",
        description="Learn task after task without forgetting, find λ, and serve the result.",
        epilog="'keras-mas COMMAND --help' explains a command. Exit codes: 0 done, 1 failed, "
        "2 wrong usage.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_train, _search, _report, _export, _serve, _predict, _status):
        add(commands)
    return parser


def _train(commands):
    command = _command(commands, "train", "learn the tasks of a stream, one after the other")
    _add_tasks(command)
    group = command.add_argument_group("method")
    _add_method(group)
    group.add_argument(
        "--strength",
        type=_number(at_least=0),
        default=1.0,
        metavar="λ",
        help="weight of the penalty beside the loss, ≥ 0 (default: 1.0)",
    )
    _add_seed(group)
    _add_recipe(command)
    group = command.add_argument_group("output")
    group.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="folder of the run (default: runs/ and a name made of the settings)",
    )
    group.add_argument(
        "--export",
        type=Path,
        metavar="FOLDER",
        help="export a SavedModel after each task to FOLDER/1, FOLDER/2, … (default: none)",
    )
    _add_json(group)
    group.add_argument(
        "--verbose",
        type=int,
        choices=(0, 1, 2),
        default=0,
        help="Keras's own output for every fit, as in `model.fit` (default: 0)",
    )


def _search(commands):
    command = _command(commands, "search", "find λ with keras-tuner, on validation data")
    _add_tasks(command)
    group = command.add_argument_group("search")
    _add_method(group)
    group.add_argument(
        "--trials",
        type=_number(int, at_least=1),
        default=20,
        help="values of λ to try, λ = 0 not counted (default: 20)",
    )
    group.add_argument(
        "--tuner",
        choices=TUNERS,
        default="bayesian",
        help="how they are chosen (default: bayesian)",
    )
    group.add_argument(
        "--strength-min",
        type=_number(above=0),
        default=1e-3,
        metavar="λ",
        help="least λ; the scale is logarithmic (default: 0.001)",
    )
    group.add_argument(
        "--strength-max",
        type=_number(above=0),
        default=1e3,
        metavar="λ",
        help="greatest λ (default: 1000)",
    )
    _add_seed(group)
    _add_recipe(command)
    group = command.add_argument_group("output")
    group.add_argument(
        "--directory",
        type=Path,
        default=Path("search"),
        metavar="FOLDER",
        help="where searches are kept; the same search again goes on there (default: search)",
    )
    _add_json(group)


def _report(commands):
    command = _command(commands, "report", "print and draw what runs found, side by side")
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    command.add_argument(
        "--output", type=Path, metavar="FILE.png", help="draw the runs side by side (default: no)"
    )


def _export(commands):
    command = _command(commands, "export", "write a run's models as SavedModels to serve")
    command.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    command.add_argument(
        "--to",
        type=Path,
        metavar="FOLDER",
        help="folder of the served model; versions are FOLDER/1, FOLDER/2, … "
        "(default: models/ and the stream's name)",
    )
    command.add_argument(
        "--version",
        type=_number(int, at_least=1),
        metavar="N",
        help="only the model after N tasks (default: all of them)",
    )


def _serve(commands):
    command = _command(
        commands,
        "serve",
        "serve models on this machine with a stand-in for TensorFlow Serving, to develop with",
    )
    command.add_argument(
        "model", type=Path, metavar="FOLDER", help="folder of the model, models/NAME"
    )
    command.add_argument(
        "--port", type=_port, default=GRPC, help=f"gRPC port, 0 for any free one (default: {GRPC})"
    )
    command.add_argument(
        "--rest-port", type=_port, default=REST, help=f"REST port, likewise (default: {REST})"
    )


def _predict(commands):
    command = _command(commands, "predict", "ask a server about examples")
    command.add_argument("model", metavar="NAME", help="name of the served model")
    group = command.add_argument_group("examples")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        type=Path,
        metavar="FILE.npy",
        help="array [N, ...] of examples as raw as in training; needs --task",
    )
    source.add_argument(
        "--examples-of",
        metavar="TASKS",
        help="ask about test examples of a stream, and print the truth beside the answers",
    )
    group.add_argument("--task", help="name of the task (default: every task of --examples-of)")
    group.add_argument(
        "--count",
        type=_number(int, at_least=1),
        default=2,
        help="examples per task of --examples-of (default: 2)",
    )
    _add_data(group)
    _add_server(command)
    command.add_argument(
        "--version", type=_number(int, at_least=1), metavar="N", help="version (default: latest)"
    )
    _add_json(command)


def _status(commands):
    command = _command(commands, "status", "ask a server which versions of a model it has")
    command.add_argument("model", metavar="NAME", help="name of the served model")
    _add_server(command)
    _add_json(command)


def _command(commands, name, summary):
    command = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return command


def _add_tasks(command):
    command.add_argument(
        "tasks",
        metavar="TASKS",
        help=f"{', '.join(builtin_names())}, or a TOML file of tasks",
    )
    _add_data(command)


def _add_data(command):
    command.add_argument(
        "--data-dir",
        type=Path,
        metavar="FOLDER",
        help="where TensorFlow Datasets keeps its data (default: $TFDS_DATA_DIR, or "
        "~/tensorflow_datasets)",
    )


def _add_method(command):
    command.add_argument("--method", default="mas", help=f"{', '.join(METHODS)} (default: mas)")
    command.add_argument(
        "--penalty",
        choices=PENALTIES,
        default="in_loss",
        help="in_loss is the paper's; decoupled is stable for every λ (default: in_loss)",
    )


def _add_seed(command):
    command.add_argument(
        "--seed",
        type=_number(int, at_least=0),
        default=0,
        help="of the initial weights, the order of the examples and the held-out ones (default: 0)",
    )


def _add_recipe(command):
    group = command.add_argument_group("training (default: the stream's own recipe)")
    group.add_argument(
        "--backbone", metavar="NAME", help="mlp-WIDTH-… or cnn-WIDTH-…, such as mlp-256-256"
    )
    group.add_argument("--optimizer", choices=OPTIMIZERS, help="sgd has momentum 0.9")
    group.add_argument("--learning-rate", type=_number(above=0), metavar="RATE")
    group.add_argument("--epochs", type=_number(int, at_least=1), help="for each task")
    group.add_argument("--batch-size", type=_number(int, at_least=1), help="examples per step")
    group.add_argument(
        "--first-learning-rate",
        type=_number(above=0),
        metavar="RATE",
        help="of the first task, if another",
    )
    group.add_argument(
        "--first-epochs", type=_number(int, at_least=1), help="for the first task, if others"
    )


def _add_server(command):
    group = command.add_argument_group("server")
    group.add_argument(
        "--via", choices=("rest", "grpc"), default="rest", help="protocol (default: rest)"
    )
    group.add_argument(
        "--server",
        metavar="HOST:PORT",
        help=f"address (default: 127.0.0.1 and port {REST} for rest, {GRPC} for grpc)",
    )


def _add_json(command):
    command.add_argument("--json", action="store_true", help="print the result as JSON instead")


def _number(kind=float, *, at_least=None, above=None):
    """Return an argparse type: a finite number within a bound, named in the error if it is not."""
    bound = f"≥ {at_least}" if above is None else f"> {above}"
    noun = "a whole number" if kind is int else "a number"

    def parse(text):
        try:
            value = kind(text)
            fits = value >= at_least if above is None else value > above
            if fits and value != float("inf"):
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"expected {noun} {bound}, received {text!r}")

    return parse


def _port(text):
    value = _number(int, at_least=0)(text)
    if value > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, received {text!r}")
    return value


def _import_commands(debug):
    # TensorFlow takes seconds to import, and `--help` needs none of it.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if debug else "3")
    with contextlib.nullcontext() if debug else _native_errors_dropped():
        return import_module(".commands", __package__)


@contextlib.contextmanager
def _native_errors_dropped():
    """Drop what C++ writes to standard error: TensorFlow's greeting, which no setting silences."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _sentence(error):
    if isinstance(error, ModuleNotFoundError):
        return (
            f"Expected the packages of the command line. Received: none called '{error.name}'. "
            "Install them with: pip install 'keras-mas[training]'"
        )
    if isinstance(error, OSError) and error.filename:
        return (
            f"Expected to read or write '{error.filename}'. Received: {error.strerror}. Look "
            "whether the file is there, may be written, and has room on its disk."
        )
    return str(error) or type(error).__name__


def _warned(message, category, filename, lineno, file=None, line=None):
    sys.stderr.write(f"keras-mas: warning: {message}\n")


def _failed(message, code):
    sys.stderr.write(f"keras-mas: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
