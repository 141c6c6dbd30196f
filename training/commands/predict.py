"""`keras-mas predict`: ask a server, and print its answers, beside the truth if it is known.

It starts in a fraction of a second, since without `--examples-of` it needs no TensorFlow.
"""

import argparse
import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unicodedata import category

from keras_mas.errors import UsageError
from keras_mas.serving.conventions import ENCODED, IMAGE_BEGINNINGS, IMAGE_BYTES

from ..load_options import SHARED_HEADS, LoadOptions
from ..options import file_or_folder, given_options
from ..wording import one_of
from . import basics

if TYPE_CHECKING:
    import numpy as np

    from keras_mas.serving.client import GrpcClient, RestClient

# As many as a version is warmed up with, too.
_BATCH_SIZE = 32

# Of a request whose content is wrong.
_REFUSED = "INVALID_ARGUMENT"

# The categories of Unicode of what a terminal obeys, or cannot encode.
_CONTROL = ("Cc", "Cs", "Zl", "Zp")

SUMMARY = "ask a server about examples"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("model", metavar="NAME", help="name of the served model")
    _add_examples(parser)
    basics.add_server(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--version", type=basics.version, metavar="N", help="version (default: latest)"
    )
    which.add_argument("--label", metavar="LABEL", help="version with a label, such as canary")
    parser.add_argument(
        "--batch-size",
        type=basics.count,
        metavar="N",
        default=_BATCH_SIZE,
        help=f"examples per request; more are sent in several, which one version answers "
        f"(default: {_BATCH_SIZE})",
    )
    basics.add_json(parser)


def _add_examples(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("examples")
    group.add_argument(
        "--images",
        type=file_or_folder,
        nargs="+",
        metavar="FILE",
        help="JPEG or PNG files, which the server decodes and resizes as in training",
    )
    group.add_argument(
        "--input",
        type=file_or_folder,
        metavar="FILE.npy",
        help="array [N, ...] of examples as raw as in training; needs --task if the model has "
        "several heads",
    )
    group.add_argument(
        "--examples-of",
        metavar="TASKS",
        help="ask about test examples of a stream, and print the truth beside the answers",
    )
    group.add_argument(
        "--run",
        type=file_or_folder,
        metavar="RUN",
        help="folder of the run that was exported, which encodes tables of --examples-of as it has "
        "learned them",
    )
    group.add_argument("--task", help="name of the task (default: all of them)")
    group.add_argument(
        "--count",
        type=basics.count,
        default=2,
        help="examples per task of --examples-of (default: 2)",
    )
    basics.add_data(group)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    basics.check_one_of(args, "--images", "--input", "--examples-of")
    if args.run is not None and not args.examples_of:
        raise UsageError(
            "Expected --examples-of with --run, which tells how tables of examples are encoded. "
            "Received: none. Leave --run out."
        )
    questions = _from_stream(args) if args.examples_of else []
    inputs = _read_inputs(args.input) if args.input else None
    with basics.client_of(args) as client:
        if args.images:
            rows = list(_answers_about_images(args, client))
        else:
            if inputs is not None:
                questions = [_about_inputs(inputs, args, client)]
            else:
                questions = _known(questions, args, client)
            rows = [row for question in questions for row in _answers(question, args, client)]
    _warn_of_numbers(rows)
    if args.json:
        basics.print_json(rows)
    else:
        _print(rows, args)


@dataclasses.dataclass(frozen=True)
class _Question:
    """Examples of a task, and what is asked about them.

    Attributes:
        task: Name of the task.
        head: Name of the head that answers, which is the signature that is asked.
        inputs: Array `[N, ...]`.
        input_name: What the signature calls it.
        truth: The classes `[N]` as the head numbers them; None if they are not known.
        classes: Class names of the head, if the classes are known.
    """

    task: str
    head: str
    inputs: "np.ndarray"
    input_name: str = "inputs"
    truth: "np.ndarray | None" = None
    classes: tuple[str, ...] = ()


def _from_stream(args):
    import numpy as np

    from ..start_tensorflow import import_tensorflow

    import_tensorflow(args.debug)
    from ..heads import heads_of
    from ..tasks import load_tasks

    encoding = _encoding_of(args.run) if args.run else None
    options = given_options(LoadOptions, args)
    stream = load_tasks(args.examples_of, encoding=encoding, **options)
    if stream.columns and encoding is None:
        received = f"'{args.run}', which has learned no tables" if args.run else "none"
        raise UsageError(
            f"Expected `--run RUN` beside tables, which are encoded as the run has learned them: "
            f"those of '{args.examples_of}' alone may have other inputs. Received: {received}. "
            "Name the folder of the run that was exported."
        )
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
        asked = _Question(task.name, head.name, inputs, truth=truth, classes=head.classes)
        questions.append(asked)
    return questions


def _known(questions, args, client):
    """Return the questions that a version has heads for: it may have learned fewer tasks."""
    signatures = client.signatures(args.model, version=args.version, label=args.label)
    heads = _heads_among(signatures)
    _check_any_head(args, heads, signatures)
    known = [
        dataclasses.replace(question, input_name=_input_name(args, question.head, signatures))
        for question in questions
        if question.head in heads
    ]
    if not known:
        asked = list(dict.fromkeys(question.head for question in questions))
        raise UsageError(
            f"Expected a version of '{args.model}' that answers for {one_of(asked)}. Received: one "
            f"with the heads {one_of(sorted(heads))}. {_advice(asked, heads)}"
        )
    if skipped := [question.task for question in questions if question.head not in heads]:
        warnings.warn(
            f"This version of '{args.model}' has no head for {', '.join(skipped)}, which it has "
            "not learned: skipped.",
            stacklevel=2,
        )
    return known


def _advice(asked, heads):
    """Return what to do where no head answers that a stream asks for."""
    learned, loaded = (_scenario_of(names) for names in (heads, asked))
    if learned != loaded:
        return (
            f"It has learned its tasks as --scenario {learned}: give that with --examples-of, "
            f"which loads them as {loaded}."
        )
    return "Ask another version, or about tasks that it has learned."


def _scenario_of(heads):
    """Return the scenario that heads are of, by the name of the one that tasks share."""
    return next((name for name, head in SHARED_HEADS.items() if head in heads), "task")


def _encoding_of(run):
    """Return what the network of a run takes of tables; None if it has learned none."""
    from ..finished_run import known_encoding
    from ..run_directory import read_result

    return known_encoding(run, read_result(run))


def _about_inputs(inputs, args, client):
    signatures = client.signatures(args.model, version=args.version, label=args.label)
    head = _head(args, signatures)
    return _Question(args.task or head, head, inputs, _input_name(args, head, signatures))


def _input_name(args, head, signatures):
    """Return the name of the only input of a head: `export_version` takes any."""
    names = sorted(signatures[head].inputs)
    if len(names) != 1:
        raise UsageError(
            f"Expected '{head}' of '{args.model}' to take one input. Received: a signature of "
            f"{one_of(names) or 'none'}. Ask it with `RestClient` or `GrpcClient`."
        )
    return names[0]


def _head(args, signatures):
    """Return the head that answers about inputs, which is a signature of its own."""
    heads = _heads_among(signatures)
    _check_any_head(args, heads, signatures)
    if args.task is None and len(heads) == 1:
        return heads[0]
    return _named_head(args, heads)


def _heads_among(signatures):
    """Return the names of heads, which are signatures of their own."""
    return [name for name, signature in signatures.items() if "label" in signature.outputs]


def _check_any_head(args, heads, signatures):
    if not heads:
        raise UsageError(
            f"Expected a model with heads that name classes, as `keras-mas export` publishes it. "
            f"Received: '{args.model}' with {', '.join(sorted(signatures)) or 'no signatures'}, "
            "which answer without a label. Ask it with `RestClient` or `GrpcClient`."
        )


def _named_head(args, heads):
    """Return the head that answers for `--task`; a head that tasks share answers for all."""
    if args.task in heads:
        return args.task
    if args.task is not None and len(heads) == 1 and heads[0] in SHARED_HEADS.values():
        return heads[0]

    received = "no --task" if args.task is None else f"--task {args.task}"
    raise UsageError(
        f"Expected --task to name a head of '{args.model}': {', '.join(sorted(heads))}. "
        f"Received: {received}."
    )


def _read_inputs(path):
    inputs = basics.read_array(path)
    if inputs.dtype.kind not in "fiub":
        raise UsageError(
            f"Expected an array of numbers in '{path}'. Received: {inputs.dtype}. Write it with "
            "`numpy.save`."
        )
    if not inputs.size:
        raise UsageError(
            f"Expected at least one example in '{path}'. Received: shape {inputs.shape}."
        )
    return inputs.astype("float32")


def _ask(args, client, signature, inputs, prefixes=("",), needed=("label", "probabilities")):
    """Return the version that answered, and its outputs by the prefix of their names, without it.

    The signature of all heads puts the name of each before its outputs, as in "pets/label".
    """
    from keras_mas.serving.client import ServingError

    answer = client.predict(
        args.model,
        inputs,
        signature=signature,
        version=args.version,
        label=args.label,
        batch_size=args.batch_size,
    )
    answers = {
        prefix: {
            name.removeprefix(prefix): answer[name] for name in answer if name.startswith(prefix)
        }
        for prefix in prefixes
    }
    wrong = [f"{each}{name}" for each in prefixes for name in _misshapen(answers[each], needed)]
    if wrong:
        raise ServingError(
            f"Expected '{args.model}' to answer with {' and '.join(needed)} for each example. "
            f"Received: no '{wrong[0]}' of the right shape. Export the model again with "
            "`keras-mas export`, or ask it with `RestClient` or `GrpcClient`."
        )
    return answer.version, answers


def _misshapen(outputs, needed):
    """Return which outputs are missing, or are not `[N]`, or `[N, C]` for probabilities."""
    ranks = {name: 2 if name == "probabilities" else 1 for name in needed}
    return [
        name
        for name, rank in ranks.items()
        if name not in outputs or outputs[name].ndim != rank or 0 in outputs[name].shape[1:]
    ]


def _answers_about_images(
    args: argparse.Namespace, client: "GrpcClient | RestClient"
) -> Iterator[dict[str, Any]]:
    """Yield a row per file and task."""
    contents = [_read_image(path) for path in args.images]
    signatures = client.signatures(args.model, version=args.version, label=args.label)
    if ENCODED not in signatures:
        raise UsageError(
            f"Expected a model that takes files of images, with a signature '{ENCODED}'. Received: "
            f"'{args.model}' with {', '.join(sorted(signatures))}. Export it again with "
            "`--resize`, or send arrays with --input."
        )
    suffix = "/label"
    names = signatures[ENCODED].outputs
    heads = sorted(name.removesuffix(suffix) for name in names if name.endswith(suffix))
    _check_any_head(args, heads, signatures)
    chosen = heads if args.task is None else [_named_head(args, heads)]
    prefixes = [f"{head}/" for head in chosen]
    version, answers = _ask_about_files(args, client, contents, prefixes)
    for k, path in enumerate(args.images):
        for head, prefix in zip(chosen, prefixes, strict=True):
            row = {"file": str(path), "task": head, "version": version}
            yield row | _row(answers[prefix], k)


def _ask_about_files(args, client, contents, prefixes):
    """Ask about all files, and name the first one that a server refuses: it does not say which."""
    from keras_mas.serving.client import ServingError

    def ask(contents):
        return _ask(args, client, ENCODED, {IMAGE_BYTES: contents}, prefixes)

    try:
        return ask(contents)
    except ServingError as error:
        if error.code != _REFUSED or len(contents) == 1:
            raise
        for path, content in zip(args.images, contents, strict=True):
            try:
                ask([content])
            except ServingError as alone:
                raise ServingError(f"{alone} The file is '{path}'.", alone.code) from error
        raise


def _read_image(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"Expected a JPEG or PNG file in '{path}'. Received: "
            f"{(error.strerror or str(error)).lower()}."
        ) from error
    if not content.startswith(tuple(IMAGE_BEGINNINGS.values())):
        raise UsageError(
            f"Expected a JPEG or PNG file in '{path}'. Received: a file of {len(content)} "
            "bytes that is neither. Convert it, for example with `magick FILE FILE.png`."
        )
    return content


def _row(outputs: "Mapping[str, np.ndarray]", k: int) -> dict[str, Any]:
    """Return the answer about example k; without a probability if one is NaN or infinite."""
    probabilities = [float(each) for each in outputs["probabilities"][k]]
    is_finite = all(map(math.isfinite, probabilities))
    return {
        "answer": str(outputs["label"][k]),
        "probability": round(max(probabilities), 4) if is_finite else None,
    }


def _warn_of_numbers(rows: list[dict[str, Any]]) -> None:
    """Warn of answers whose probabilities are NaN or infinite, and name their examples."""
    numbers: Counter[str] = Counter()
    examples = []
    for row in rows:
        numbers[row["task"]] += 1
        if row["probability"] is None:
            example = row.get("file", f"example {numbers[row['task']]}")
            examples.append(f"{example} of {row['task']}")
    if examples:
        warnings.warn(
            "Expected probabilities that are finite numbers. Received: NaN or infinity about "
            f"{one_of(examples)}. What was answered there means nothing: look at these inputs, and "
            "whether the training of the model has diverged.",
            stacklevel=2,
        )


def _visible(text: object) -> str:
    """Return a text with its control characters escaped, which a terminal would obey."""
    return "".join(
        each.encode("unicode_escape").decode() if category(each) in _CONTROL else each
        for each in str(text)
    )


def _shown(value: object) -> str:
    """Return a cell of the table; probabilities have four decimals each, one below the other."""
    if isinstance(value, float):
        return f"{value:.4f}"
    return "–" if value is None else _visible(value)


def _answers(question, args, client):
    """Return a row per example."""
    needed = ("label", "probabilities", *(["class"] if question.truth is not None else []))
    inputs = {question.input_name: question.inputs}
    version, answers = _ask(args, client, question.head, inputs, needed=needed)
    answer = answers[""]
    rows = []
    for k in range(len(question.inputs)):
        row = {"task": question.task, "version": version} | _row(answer, k)
        if question.truth is not None:
            # By number: a model exported elsewhere may have other names for its classes.
            row["truth"] = question.classes[question.truth[k]]
            row["correct"] = bool(answer["class"][k] == question.truth[k])
        rows.append(row)
    return rows


def _title(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    """Return what answered: tasks are asked about in turn, and versions may change meanwhile."""
    versions = sorted({row["version"] for row in rows} - {None})
    words = [args.model, *(f"version {version}" for version in versions)]
    if args.label is not None:
        words.append(f"labelled '{args.label}'")
    return _visible(f"{', '.join(words)}, over {args.via}")


def _print(rows, args):
    from rich.table import Table

    from ..console import print_table, result_console

    console = result_console()
    console.print(_title(rows, args), soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    headings = [name for name in rows[0] if name not in ("version", "correct")]
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        wrong = [] if row.get("correct", True) else ["wrong"]
        table.add_row(*(_shown(row[heading]) for heading in headings), *wrong)
    print_table(console, table)
    if "correct" in rows[0]:
        console.print(f"{sum(row['correct'] for row in rows)} of {len(rows)} right")
