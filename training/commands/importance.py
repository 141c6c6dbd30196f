"""`keras-mas importance`: add Ω of inputs that came after a run to what it remembers."""

import argparse
from pathlib import Path
from typing import Any

from keras_mas.errors import UsageError

from ..tasks.images import RESIZE_MODES
from . import shared

SUMMARY = "add Ω of logged requests, or of other inputs without labels, to a run's memory"

# As many as a run measures by default.
_MAX_EXAMPLES = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("directory", type=Path, metavar="RUN", help="folder of a finished run")
    group = parser.add_argument_group("inputs")
    group.add_argument(
        "--from-requests",
        type=Path,
        nargs="+",
        metavar="LOG",
        help="logs of requests: TFRecord files of PredictionLog, perhaps compressed by gzip",
    )
    group.add_argument(
        "--from-data",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="folders of JPEG and PNG files, and .npy and .npz files of one array [N, ...] of "
        "inputs as raw as in training",
    )
    group.add_argument(
        "--model",
        metavar="NAME",
        help="name of the served model, if the logs are of several (default: the only one)",
    )
    group.add_argument(
        "--resize",
        choices=(*RESIZE_MODES, "none"),
        help="how files of images get the size of inputs, as in training; none: those of another "
        "size are left out (default: files of images are left out)",
    )
    group.add_argument(
        "--max-examples",
        type=shared.count,
        metavar="N",
        default=_MAX_EXAMPLES,
        help=f"draw at most N different inputs (default: {_MAX_EXAMPLES})",
    )
    group.add_argument("--seed", type=int, default=0, help="of the drawing (default: 0)")
    group = parser.add_argument_group("comparison with the data of the training")
    group.add_argument(
        "--trained-on",
        metavar="TASKS",
        help="the stream (default: that of the run's command; without it, drift is not measured)",
    )
    shared.add_data(group)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE.npz",
        help="where the memory with the added Ω is written; the run stays as it is",
    )
    shared.add_overwrite(group, "the file")
    shared.add_json(group)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from ..later_inputs import add_importance, check_method, save_memory
    from ..run import finished_network
    from ..run_directory import read_result

    shared.check_one_of(args, "--from-requests", "--from-data")
    result = read_result(args.directory)
    _check_output(args)
    check_method(result["method"])
    network = finished_network(args.directory)
    collector = _collected(args, network)
    asked = _measurable(result, network, collector)
    drift = _drift(args, result, network, asked.inputs)
    added = add_importance(args.directory, result, network, asked)
    save_memory(args.directory, result, added.memory, args.output)
    report = _report(args, collector, len(asked.heads), added, drift)
    if args.json:
        shared.print_json(report)
    else:
        _print(report)
    _warn_of_drift(drift)


def _check_output(args):
    from keras_mas.files import check_writable

    if args.output.suffix != ".npz":
        raise UsageError(
            f"Expected a file whose name ends in .npz. Received: --output '{args.output}'."
        )
    if args.directory.resolve() in args.output.resolve().parents:
        raise UsageError(
            f"Expected --output outside of the run's folder, which is left as it is. Received: "
            f"'{args.output}'. Name another file."
        )
    if args.output.exists() and not args.overwrite:
        raise UsageError(
            f"Expected --output to name a new file. Received: '{args.output}', which exists. Name "
            "another file, or replace it with `--overwrite`."
        )
    check_writable(args.output.parent)


def _collected(args, network):
    """Return the inputs that can be used, and what was left out; an error if none can."""
    from keras_mas.serving.traffic import Collector, InputForm, read_requests

    form = InputForm(network.input_shape[1:], tuple(network.output), resize=args.resize)
    _check_resize(form)
    collector = Collector(form, args.max_examples, args.seed)
    if args.from_requests:
        read_requests(args.from_requests, collector, model=args.model)
    else:
        for path in args.from_data:
            _read_data(path, collector)
    _check_any(len(collector), collector)
    return collector


def _measurable(result, network, collector):
    """Return the inputs on which Ω is finite, and count the others; an error if there is none."""
    from ..later_inputs import measurable

    asked = measurable(result, network, collector.asked)
    if left_out := len(collector) - len(asked.heads):
        collector.left_out["inputs on which outputs or gradients are not finite"] += left_out
    _check_any(len(asked.heads), collector)
    return asked


def _check_any(count, collector):
    if not count:
        raise RuntimeError(
            f"Expected inputs of shape {list(collector.form.shape)}. Received: none that can be "
            f"used; left out: {_left_out(collector.left_out) or 'nothing'}. Name other files, or "
            "see `keras-mas importance --help`."
        )


def _check_resize(form):
    shape = form.shape
    if form.resize is not None and (len(shape) != 3 or shape[-1] not in (1, 3) or None in shape):
        raise UsageError(
            f"Expected --resize for a model of images [H, W, 1 or 3]. Received: one of inputs "
            f"{list(shape)}. Leave it out."
        )


def _read_data(path, collector):
    import numpy as np

    from ..tasks.files import UNREADABLE
    from ..tasks.images import IMAGE_SUFFIXES

    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.suffix.lower() in IMAGE_SUFFIXES)
        for file in files:
            collector.files += 1
            collector.add_file(file.read_bytes())
        return
    collector.files += 1
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            values = content if isinstance(content, np.ndarray) else _only_array(content, path)
    except UNREADABLE as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"Expected a folder of images, or an array in '{path}', written by `numpy.save`. "
            f"Received: {error}."
        ) from error
    for value in values if values.ndim else ():
        collector.add(value)


def _only_array(content: Any, path: Path) -> Any:
    if len(content.files) != 1:
        raise UsageError(
            f"Expected one array in '{path}'. Received: {', '.join(content.files) or 'none'}. "
            "Save the inputs alone."
        )
    return content[content.files[0]]


def _drift(args, result, network, inputs):
    """Return how far the inputs are from those of the training; None if that cannot be known."""
    from ..continuing import known_encoding
    from ..later_inputs import measure_drift

    tasks = args.trained_on or result.get("arguments", {}).get("tasks")
    if tasks is None:
        return None
    args.tasks = tasks
    try:
        stream = shared.load_stream(args, result["seed"], known_encoding(args.directory, result))
    except Exception as error:
        if args.trained_on:
            raise
        _warn(f"drift was not measured, for the data of the training are not here: {error}")
        return None
    if stream.input_shape != network.input_shape[1:]:
        raise UsageError(
            f"Expected --trained-on to name a stream of inputs {list(network.input_shape[1:])}. "
            f"Received: '{stream.name}' of inputs {list(stream.input_shape)}."
        )
    return measure_drift(network, _drawn(stream, args), inputs)


def _drawn(stream, args):
    """Return training inputs of all tasks, in random order, as many of each as there are."""
    import numpy as np

    generator = np.random.default_rng(args.seed)
    ends = np.cumsum([len(task.train) for task in stream.tasks])
    chosen = np.sort(generator.permutation(ends[-1])[: args.max_examples])
    parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    starts = [0, *ends[:-1]]
    return np.concatenate(
        [
            task.train.read(part - start).astype("float32")
            for task, part, start in zip(stream.tasks, parts, starts, strict=True)
            if len(part)
        ]
    )


def _report(args, collector, measured, added, drift):
    import dataclasses

    return {
        "files": collector.files,
        "read": collector.examples,
        "duplicates": collector.duplicates,
        "left_out": dict(collector.left_out),
        "measured": measured,
        "seed": args.seed,
        "mean_importance": {"before": added.before, "added": added.now},
        "tasks": added.memory.tasks,
        "drift": dataclasses.asdict(drift) if drift is not None else None,
        "output": str(args.output),
    }


def _print(report):
    from ..console import result_console

    console = result_console()
    lines = [
        f"inputs: {report['read']} read from {report['files']} files, {report['duplicates']} equal "
        f"to another, {report['measured']} measured"
    ]
    if report["left_out"]:
        lines.append(f"left out: {_left_out(report['left_out'])}")
    mean = report["mean_importance"]
    lines.append(
        f"mean Ω of {report['tasks']} tasks: {mean['before']:.4g}; of these inputs: "
        f"{mean['added']:.4g}, added"
    )
    if drift := report["drift"]:
        lines.append(f"drift: {_drift_sentence(drift)}")
    lines.append(
        f"written to {report['output']}: `SynapticMemory.load` or the same method reads it"
    )
    for line in lines:
        console.print(line, soft_wrap=True)


def _left_out(counts):
    return "; ".join(f"{count} {what}" for what, count in counts.items())


def _drift_sentence(drift):
    return (
        f"{drift['drifted']} of {drift['features']} features of the trunk are distributed "
        f"otherwise than in training (Kolmogorov-Smirnov, largest distance "
        f"{drift['largest']:.3f}, p = {drift['p']:.2g} for all tests together, "
        f"{drift['examples'][0]} training and {drift['examples'][1]} later examples)"
    )


def _warn(message):
    import warnings

    warnings.warn(message, stacklevel=2)


def _warn_of_drift(drift):
    import dataclasses

    if drift:
        _warn(
            f"the inputs have drifted from the training data: "
            f"{_drift_sentence(dataclasses.asdict(drift))}. Look at what is sent, or train a task "
            "on it."
        )
