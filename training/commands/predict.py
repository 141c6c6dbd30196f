"""`keras-mas predict`: ask a server, and print its answers, beside the truth if it is known."""

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from keras_mas.errors import UsageError

from ..options import given_options
from ..tasks import LoadOptions, load_tasks
from . import shared

SUMMARY = "ask a server about examples"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", metavar="NAME", help="name of the served model")
    group = parser.add_argument_group("examples")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        type=Path,
        metavar="FILE.npy",
        help="array [N, ...] of examples as raw as in training; needs --task if the model has "
        "several heads",
    )
    source.add_argument(
        "--examples-of",
        metavar="TASKS",
        help="ask about test examples of a stream, and print the truth beside the answers",
    )
    group.add_argument("--task", help="name of the task (default: every task of --examples-of)")
    group.add_argument(
        "--count",
        type=shared.count,
        default=2,
        help="examples per task of --examples-of (default: 2)",
    )
    shared.add_data(group)
    shared.add_server(parser)
    parser.add_argument(
        "--version", type=shared.count, metavar="N", help="version (default: latest)"
    )
    shared.add_json(parser)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    questions = _from_stream(args) if args.examples_of else []
    inputs = _read_inputs(args.input) if args.input else None
    with shared.client_of(args) as client:
        if inputs is not None:
            questions = [_about_inputs(inputs, args, client)]
        rows = [row for question in questions for row in _answers(question, args, client)]
    if args.json:
        shared.print_json(rows)
    else:
        _print(rows, args)


@dataclasses.dataclass(frozen=True)
class _Question:
    """Examples of a task, and what is asked about them.

    Attributes:
        task: Name of the task.
        head: Name of the head that answers, which is the signature that is asked.
        inputs: Array `[N, ...]`.
        truth: The classes `[N]` as the head numbers them; None if they are not known.
        classes: Class names of the head, if the classes are known.
    """

    task: str
    head: str
    inputs: np.ndarray
    truth: np.ndarray | None = None
    classes: tuple[str, ...] = ()


def _from_stream(args):
    from ..heads import heads_of

    stream = load_tasks(args.examples_of, **given_options(LoadOptions, args))
    tasks = {task.name: task for task in stream.tasks}
    if args.task is not None and args.task not in tasks:
        raise UsageError(
            f"Expected a task of '{stream.name}': {', '.join(tasks)}. Received: '{args.task}'."
        )
    questions = []
    for task in [tasks[args.task]] if args.task else stream.tasks:
        head = heads_of(stream)[task.name]
        chosen = np.random.default_rng(0).permutation(len(task.test))[: args.count]
        inputs = task.test.read(chosen).astype("float32")
        truth = task.test.labels[chosen] + head.offset
        questions.append(_Question(task.name, head.name, inputs, truth, head.classes))
    return questions


def _about_inputs(inputs, args, client):
    head = _head(args, client.signatures(args.model, version=args.version))
    return _Question(args.task or head, head, inputs)


def _head(args, signatures):
    """Return the head that answers for `--task`; a head that tasks share answers for all."""
    from ..heads import SHARED_HEADS

    heads = [name for name, signature in signatures.items() if "label" in signature.outputs]
    if args.task in heads:
        return args.task
    if len(heads) == 1 and (args.task is None or heads[0] in SHARED_HEADS.values()):
        return heads[0]
    received = "no --task" if args.task is None else f"--task {args.task}"
    raise UsageError(
        f"Expected --task to name a head of '{args.model}': {', '.join(sorted(heads))}. "
        f"Received: {received}."
    )


def _read_inputs(path):
    try:
        with open(path, "rb") as file:
            inputs = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"Expected an array in '{path}', written by `numpy.save`. Received: {error}."
        ) from error
    if not isinstance(inputs, np.ndarray) or inputs.dtype.kind not in "fiub":
        raise UsageError(
            f"Expected one array of numbers in '{path}'. Received: "
            f"{getattr(inputs, 'dtype', 'several arrays')}. Write it with `numpy.save`."
        )
    if not inputs.size:
        raise UsageError(
            f"Expected at least one example in '{path}'. Received: shape {inputs.shape}."
        )
    return inputs.astype("float32")


def _answers(question, args, client):
    """Return a row per example."""
    answer = client.predict(
        args.model, {"inputs": question.inputs}, signature=question.head, version=args.version
    )
    rows = []
    for k in range(len(question.inputs)):
        row = {
            "task": question.task,
            "answer": str(answer["label"][k]),
            "probability": round(float(answer["probabilities"][k].max()), 4),
        }
        if question.truth is not None:
            # By number: a model exported elsewhere may have other names for its classes.
            row["truth"] = question.classes[question.truth[k]]
            row["correct"] = bool(answer["class"][k] == question.truth[k])
        rows.append(row)
    return rows


def _print(rows, args):
    from rich.table import Table

    from ..console import result_console

    console = result_console()
    table = Table(
        title=f"{args.model} over {args.via}", title_justify="left", box=None, pad_edge=False
    )
    headings = [name for name in rows[0] if name != "correct"]
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(str(row[heading]) for heading in headings))
    console.print(table)
    if "correct" in rows[0]:
        console.print(f"{sum(row['correct'] for row in rows)} of {len(rows)} right")
