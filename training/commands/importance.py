"""`keras-mas importance`: add Ω of inputs that came after a run to what it remembers."""

import argparse
import dataclasses
import functools
import glob
import warnings
from pathlib import Path

from keras_mas.errors import UsageError
from keras_mas.serving.conventions import RESIZE_MODES

from ..options import file_or_folder
from . import shared

SUMMARY = "add Ω of logged requests, or of other inputs without labels, to a run's memory"

# As many as a run measures by default.
_MAX_EXAMPLES = 1000

# Files of images that a worker reads at a time.
_IMAGES = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "directory", type=file_or_folder, metavar="RUN", help="folder of a finished run"
    )
    _add_inputs(parser)
    _add_workers(parser)
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
        type=file_or_folder,
        required=True,
        metavar="FILE.npz",
        help="where the memory with the added Ω is written; the run stays as it is",
    )
    shared.add_overwrite(group, "the file")
    shared.add_json(group)


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("inputs")
    group.add_argument(
        "--from-requests",
        type=file_or_folder,
        nargs="+",
        metavar="LOG",
        help="logs of requests: TFRecord files of PredictionLog, perhaps compressed by gzip",
    )
    group.add_argument(
        "--from-data",
        type=file_or_folder,
        nargs="+",
        metavar="PATH",
        help="folders of JPEG and PNG files, .npy and .npz files of one array [N, ...] of inputs "
        "as raw as in training, and .tfrecord files of tf.Example with a feature 'inputs', or "
        "'image_bytes' for files of images; quoted, 'part-*.tfrecord' is all that match",
    )
    group.add_argument(
        "--model",
        metavar="NAME",
        help="name of the served model, if the logs are of several (default: the only one)",
    )
    group.add_argument(
        "--resize",
        choices=RESIZE_MODES,
        help="how files of images get the size of inputs; none: those of another size are left out "
        "(default: as in training; earlier versions did not record it, and with their runs files "
        "of images are left out)",
    )
    group.add_argument(
        "--max-examples",
        type=_limit,
        metavar="N",
        default=_MAX_EXAMPLES,
        help=f"draw at most N different inputs; all: take all of them (default: {_MAX_EXAMPLES})",
    )
    group.add_argument("--seed", type=int, default=0, help="of the drawing (default: 0)")


def _add_workers(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("several processes or machines (pip: keras-mas[distributed])")
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="divide the files among workers of Ray: local starts some on this machine; auto, "
        "HOST:PORT or ray://HOST:PORT is a cluster, whose machines all have the files",
    )
    group.add_argument(
        "--workers",
        type=shared.count,
        metavar="N",
        help="with --ray local: processes at a time (default: one per core)",
    )


def _limit(text: str) -> int | None:
    return None if text == "all" else int(shared.count(text))


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    from keras_mas.serving.traffic import InputForm

    from ..later_inputs import add_importance, check_method, save_memory
    from ..run_directory import read_result
    from ..saved_tasks import finished_network

    shared.check_one_of(args, "--from-requests", "--from-data")
    if args.workers is not None and args.ray is None:
        raise UsageError(
            "Expected --workers with --ray local. Received: it alone. Add --ray local."
        )
    result = read_result(args.directory)
    _check_output(args)
    check_method(result["method"])
    network = finished_network(args.directory)
    _check_resize(args, network)
    resize = args.resize or (result.get("resize") if _takes_images(network) else None)
    form = InputForm(network.input_shape[1:], tuple(network.output), resize=resize)
    measure = _measured_here if args.ray is None else _measured_by_ray
    read, sums, sample = measure(args, result, network, form)
    _warn_of_model(args, result, read)
    drift = _drift(args, result, network, sample)
    added = add_importance(args.directory, result, network, sums)
    save_memory(args.directory, result, added.memory, args.output)
    report = _report(args, read, sum(part.examples for part in sums.values()), added, drift)
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
    if not args.output.parent.is_dir():
        raise UsageError(
            f"Expected --output in a folder that exists. Received: '{args.output}'. Make the "
            "folder, or name another file."
        )


def _measured_here(args, result, network, form):
    """Return what was read, the sums of the inputs that were drawn, and some of these."""
    import numpy as np

    from keras_mas.serving.traffic import Collector, check_requests

    from ..later_inputs import MOST_TESTED, Measuring
    from ..progress import Bars

    read, paths = _reader(args), _paths(args)
    with Bars(True) as bars:
        bar = bars.bars.add_task("reading", total=len(paths), status="")
        collector = Collector(
            form,
            args.max_examples,
            args.seed,
            on_read=lambda examples: bars.bars.update(bar, status=f"{examples:,} inputs"),
        )
        for path in paths:
            read(path, collector)
            bars.bars.advance(bar)
    if args.from_requests:
        check_requests(collector, model=args.model)
    _check_any(len(collector), collector, form)
    measuring = Measuring(result["method"], network)
    asked = collector.asked
    kept = measuring.measurable(asked)
    _count_not_finite(collector, int((~kept).sum()))
    _check_any(kept.sum(), collector, form)
    sample = asked.only(kept & (np.arange(len(kept)) < MOST_TESTED)).inputs
    return collector, measuring.sums(asked.only(kept)), sample


def _measured_by_ray(args, result, network, form):
    """As `_measured_here`, by workers: each reads and measures shards of the files."""
    import numpy as np

    from keras_mas.serving.traffic import check_requests

    from .. import later_shards
    from ..distributed import Cluster, SentFile
    from ..run_directory import MODEL

    shards = _shards(_paths(args))
    reading = later_shards.Reading(_reader(args), form, args.seed)
    file = SentFile((args.directory / MODEL).read_bytes(), MODEL)
    with Cluster(args.ray, workers=args.workers) as cluster:
        surveys = _shown("reading", cluster.map(later_shards.survey, shards, reading), shards)
        read, chosen = later_shards.choose(surveys, shards, args.max_examples)
        if args.from_requests:
            check_requests(read, model=args.model)
        _check_any(sum(len(each.keys) for each in chosen), read, form)
        parts = cluster.map(later_shards.measure, chosen, reading, result["method"], file)
        found = later_shards.measured(_shown("measuring", parts, shards))
    _count_not_finite(read, found.not_finite)
    _check_any(len(found.sums), read, form)
    return read, found.sums, np.array(list(found.sample.values()))


def _reader(args):
    """Return the function that reads a file into a collector."""
    from keras_mas.serving.traffic import read_log

    return functools.partial(read_log, model=args.model) if args.from_requests else _read_data


def _paths(args):
    """Return the files and folders, with those that match a pattern in its place."""
    paths = []
    for path in args.from_requests or args.from_data:
        is_pattern = glob.has_magic(str(path)) and not path.exists()
        found = sorted(map(Path, glob.glob(str(path)))) if is_pattern else [path]
        if args.from_requests and found == [path] and not path.exists():
            _check_no_prefix(path)
        if not found:
            raise UsageError(
                f"Expected files that match '{path}'. Received: none. Correct the pattern."
            )
        paths += found
    return paths


def _check_no_prefix(path):
    """Refuse what `serve --log-requests` was given, with which the names of its logs begin."""
    if logs := glob.glob(f"{glob.escape(str(path))}-*.tfrecord"):
        raise UsageError(
            f"Expected a log of requests in '{path}'. Received: no such file or directory, but "
            f"{len(logs)} that `keras-mas serve --log-requests {path}` writes. Name them with "
            f"`--from-requests '{path}-*'`."
        )


def _shards(paths):
    """Return groups of files: one by one, but for small images."""
    shards = []
    for path in paths:
        if path.is_dir():
            files = [each.absolute() for each in _images_in(path)]
            shards += [tuple(files[k : k + _IMAGES]) for k in range(0, len(files), _IMAGES)]
        else:
            shards.append((path.absolute(),))
    return shards


def _shown(what, results, shards):
    """Yield the results of shards, with a bar on a terminal."""
    from ..progress import Bars

    with Bars(True) as bars:
        bar = bars.bars.add_task(what, total=len(shards), status="")
        for number, result in enumerate(results, 1):
            bars.bars.update(bar, completed=number, status=f"shard {number}/{len(shards)}")
            yield result


def _count_not_finite(read, number):
    if number:
        read.left_out["inputs on which outputs or gradients are not finite"] += number


def _check_any(count, read, form):
    if not count:
        raise RuntimeError(
            f"Expected inputs of shape {list(form.shape)}. Received: none that can be "
            f"used; left out: {_left_out(read.left_out) or 'nothing'}. Name other files, or "
            "see `keras-mas importance --help`."
        )


def _check_resize(args, network):
    if args.resize is not None and not _takes_images(network):
        raise UsageError(
            f"Expected --resize for a model of images [H, W, 1 or 3]. Received: one of inputs "
            f"{list(network.input_shape[1:])}. Leave it out."
        )


def _takes_images(network):
    shape = network.input_shape[1:]
    return len(shape) == 3 and shape[-1] in (1, 3) and None not in shape


def _read_data(path, collector):
    from keras_mas.serving.traffic import read_examples

    from ..tasks.images import IMAGE_SUFFIXES

    if path.is_dir():
        for file in _images_in(path):
            _read_data(file, collector)
        return
    if ".tfrecord" in path.name:
        read_examples(path, collector)
        return
    collector.files += 1
    if path.suffix.lower() in IMAGE_SUFFIXES:
        collector.add_file(path.read_bytes())
        return
    values = shared.read_array(path)
    for value in values if values.ndim else ():
        collector.add(value)


def _images_in(folder):
    from ..tasks.images import IMAGE_SUFFIXES

    images = (each for each in folder.rglob("*") if each.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(each for each in images if each.is_file())


def _drift(args, result, network, inputs):
    """Return how far the inputs are from those of the training; None if that cannot be known."""
    from ..finished_run import known_encoding
    from ..later_inputs import measure_drift

    tasks = args.trained_on or result.get("arguments", {}).get("tasks")
    if tasks is None or not len(inputs):
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
    """Return training inputs of all tasks, in proportion to how many of each there are."""
    import numpy as np

    from ..later_inputs import MOST_TESTED

    generator = np.random.default_rng(args.seed)
    ends = np.cumsum([len(task.train) for task in stream.tasks])
    chosen = np.sort(generator.permutation(ends[-1])[:MOST_TESTED])
    parts = np.split(chosen, np.searchsorted(chosen, ends[:-1]))
    starts = [0, *ends[:-1]]
    return np.concatenate(
        [
            task.train.read(part - start).astype("float32")
            for task, part, start in zip(stream.tasks, parts, starts, strict=True)
            if len(part)
        ]
    )


def _report(args, read, measured, added, drift):
    return {
        "files": read.files,
        "read": read.examples,
        "duplicates": read.duplicates,
        "left_out": dict(read.left_out),
        "measured": measured,
        "seed": args.seed,
        "mean_importance": {"before": added.before, "added": added.now},
        "tasks": added.memory.tasks,
        "drift": dataclasses.asdict(drift) if drift is not None else None,
        "output": str(args.output),
    }


def _print(report):
    from keras_mas.methods.base import counted

    from ..console import result_console

    console = result_console()
    different = report["read"] - report["duplicates"]
    of_others = f" of the other {different}" if report["measured"] < different else ""
    lines = [
        f"inputs: {report['read']} read from {counted(report['files'], 'file')}, "
        f"{report['duplicates']} equal to another, {report['measured']}{of_others} measured"
    ]
    if report["left_out"]:
        lines.append(f"left out: {_left_out(report['left_out'])}")
    mean = report["mean_importance"]
    lines.append(
        f"mean Ω of {counted(report['tasks'], 'task')}: {mean['before']:.4g}; of these inputs: "
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
    warnings.warn(message, stacklevel=2)


def _warn_of_model(args, result, collector):
    name = next(iter(collector.models), result["stream"])
    if args.model is None and name != result["stream"]:
        _warn(
            f"the logs are of requests to '{name}', while the run is of '{result['stream']}'. They "
            f"were taken for requests to this run's model; if they are, say so: `--model {name}`."
        )


def _warn_of_drift(drift):
    if drift:
        _warn(
            f"the inputs have drifted from the training data: "
            f"{_drift_sentence(dataclasses.asdict(drift))}. Look at what is sent, or train a task "
            "on it."
        )
