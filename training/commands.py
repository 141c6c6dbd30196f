"""What each command of `keras-mas` does with its parsed arguments."""

import argparse
import dataclasses
import json
import shlex
import signal
import sys
from pathlib import Path

import numpy as np
from rich.table import Table

from keras_mas.errors import UsageError
from keras_mas.methods import load_method
from keras_mas.serving.client import GrpcClient, RestClient
from keras_mas.serving.export import export_version, is_exported
from keras_mas.serving.paths import version_path
from keras_mas.serving.ports import GRPC, REST
from keras_mas.serving.standin import StandIn

from .backbones import check_backbone
from .console import result_console, stderr_console
from .progress import TaskLines
from .report import draw, load_result, print_comparison, print_result, title
from .run import Listener, TaskResult, heads_of, saved_heads, train
from .search import Trial, search
from .settings import Recipe, SearchSpace, Settings, recipe_for
from .tasks import TaskStream, load_tasks


def run(args: argparse.Namespace) -> None:
    """Run the command that was parsed; errors are raised for `cli.main` to answer."""
    {
        "train": run_train,
        "search": run_search,
        "report": run_report,
        "export": run_export,
        "serve": run_serve,
        "predict": run_predict,
        "status": run_status,
    }[args.command](args)


def run_train(args: argparse.Namespace) -> None:
    """`keras-mas train`: learn the tasks, record the result, draw it, export every version."""
    load_method(args.method)  # an unknown name is told before any data is loaded
    stream = _load_stream(args)
    settings = _settings(args, stream, args.strength)
    directory = args.output or Path("runs") / _run_name(stream, settings)
    listeners = [TaskLines(stream, _method_title(settings))]
    if args.export:
        _refuse_foreign_versions(args.export, directory, stream)
        listeners.append(_Exporter(args.export))
    with listeners[0]:
        result = train(
            stream,
            settings,
            directory,
            arguments=_recorded(args),
            listeners=listeners,
            verbose=args.verbose,
        )
    draw([result], directory / "accuracy.png")
    if args.json:
        _print_json(result)
        return
    console = result_console()
    print_result(result, console)
    console.print(f"written to {directory}/: result.json, accuracy.png", soft_wrap=True)
    if args.export:
        console.print(f"exported to {args.export}/1 … {len(stream.tasks)}", soft_wrap=True)


def run_search(args: argparse.Namespace) -> None:
    """`keras-mas search`: try values of λ and print the best as a command to run."""
    load_method(args.method)
    if args.strength_min >= args.strength_max:
        raise UsageError(
            "Expected --strength-min below --strength-max. Received: "
            f"{args.strength_min:g} and {args.strength_max:g}."
        )
    stream = _load_stream(args)
    settings = _settings(args, stream, strength=0.0)
    space = SearchSpace(args.tuner, args.trials, args.strength_min, args.strength_max)
    talk = stderr_console()
    trials, folder = search(
        stream, settings, space, args.directory, on_trial=lambda trial: _tell(trial, talk)
    )
    best = trials[0]
    if best.result is None:
        raise RuntimeError(
            f"Expected at least one trial that ends. Received: {len(trials)} that failed; the last "
            f"one: {trials[-1].error} Lower `--learning-rate` or `--strength-max`."
        )
    found = {
        "best_strength": best.strength,
        "average_accuracy": best.result["average_accuracy"],
        "command": _train_command(args, best.strength),
        "folder": str(folder),
        "trials": [_trial_row(trial) for trial in trials],
    }
    if args.json:
        _print_json(found | {"trained_now": sum(trial.is_new for trial in trials)})
    else:
        _print_search(found, trials, result_console())


def run_report(args: argparse.Namespace) -> None:
    """`keras-mas report`: print what runs found, and draw them side by side."""
    results = [load_result(folder) for folder in args.runs]
    if len({tuple(result["tasks"]) for result in results}) > 1:
        raise UsageError(
            "Expected runs over the same tasks. Received: runs over "
            f"{sorted({result['stream'] for result in results})}. Report them one by one."
        )
    console = result_console()
    if len(results) == 1:
        print_result(results[0], console)
    else:
        print_comparison(results, console)
    if args.output:
        draw(results, args.output)
        console.print(f"drawn to {args.output}", soft_wrap=True)


def run_export(args: argparse.Namespace) -> None:
    """`keras-mas export`: write the models of a run as versions of a served model."""
    result = load_result(args.run)
    base = args.to or Path("models") / result["stream"]
    learned = len(result["tasks"])
    if args.version and args.version > learned:
        raise UsageError(
            f"Expected a version from 1 to {learned}, the tasks learned in '{args.run}'. Received: "
            f"--version {args.version}."
        )
    for number in [args.version] if args.version else range(1, learned + 1):
        _export(base, number, *saved_heads(args.run, number))
        result_console().print(f"exported {version_path(base, number)}", soft_wrap=True)


def run_serve(args: argparse.Namespace) -> None:
    """`keras-mas serve`: answer until interrupted."""
    name = args.model.resolve().name
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with StandIn({name: args.model}, grpc_port=args.port, rest_port=args.rest_port) as server:
        _check_available(name, server.grpc_port, args.model)
        stderr_console().print(
            f"stand-in for TensorFlow Serving: model '{name}' at gRPC 127.0.0.1:{server.grpc_port} "
            f"and http://127.0.0.1:{server.rest_port}/v1/models/{name}. Ctrl-C stops it.",
            soft_wrap=True,
        )
        try:
            server.wait()
        except KeyboardInterrupt:
            return


def run_predict(args: argparse.Namespace) -> None:
    """`keras-mas predict`: ask a server, and print its answers, beside the truth if it is known."""
    questions = _questions_from_file(args) if args.input else _questions_from_stream(args)
    with _client(args) as client:
        answers = [
            client.predict(args.model, {"inputs": inputs}, signature=task, version=args.version)
            for task, inputs, _ in questions
        ]
    rows = [
        row
        for question, answer in zip(questions, answers, strict=True)
        for row in _answer_rows(question, answer)
    ]
    if args.json:
        _print_json(rows)
    else:
        _print_answers(rows, args, result_console())


def run_status(args: argparse.Namespace) -> None:
    """`keras-mas status`: print the state of every version of a served model."""
    with _client(args) as client:
        versions = [
            {"version": status.version, "state": status.state, "error": status.error}
            for status in client.status(args.model)
        ]
    if args.json:
        _print_json(versions)
        return
    for row in versions:
        result_console().print(
            f"{args.model} version {row['version']}  {row['state']}  {row['error']}".rstrip(),
            soft_wrap=True,
        )


def _check_available(name, grpc_port, folder):
    """Name every version that did not load; fail if none did."""
    with GrpcClient(f"127.0.0.1:{grpc_port}") as client:
        versions = client.status(name)
    for failed in (status for status in versions if status.state != "AVAILABLE"):
        stderr_console().print(f"version {failed.version}: {failed.error}", soft_wrap=True)
    if not any(status.state == "AVAILABLE" for status in versions):
        raise RuntimeError(
            f"Expected a version that can be served in '{folder}'. Received: {len(versions)} that "
            "cannot. Export one with `keras-mas export RUN`."
        )


class _Exporter(Listener):
    """Exports a version after each task."""

    def __init__(self, base):
        self.base = base

    def task_finished(self, result: TaskResult) -> None:
        _export(self.base, result.number, result.models, result.classes)


def _export(base, number, models, classes):
    folder = version_path(base, number)
    if folder.exists() and is_exported(models, folder):
        return  # by the same run, earlier
    export_version(models, folder, classes=classes)


def _refuse_foreign_versions(base, directory, stream):
    """Tell before hours of training, not after, that a version is taken by another run."""
    for number in range(1, len(stream.tasks) + 1):
        folder = version_path(base, number)
        if folder.exists() and not (directory / str(number)).is_dir():
            raise UsageError(
                f"Expected no version {number} in '{base}' yet. Received: '{folder}', exported by "
                "another run. A version is never overwritten; choose another `--export`."
            )


def _load_stream(args) -> TaskStream:
    return load_tasks(args.tasks, seed=args.seed, data_dir=args.data_dir)


def _settings(args, stream, strength):
    recipe = dataclasses.replace(recipe_for(stream), **_recipe_options(args))
    check_backbone(recipe.backbone)
    return Settings(args.method, strength, args.penalty, args.seed, recipe)


def _recipe_options(args):
    """Return the options of a recipe that were given, by the names of `Recipe`'s fields."""
    names = [field.name for field in dataclasses.fields(Recipe)]
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _method_title(settings):
    return title(dataclasses.asdict(settings))


def _run_name(stream, settings):
    strength = "" if settings.method == "finetune" else f"-{settings.strength:g}"
    penalty = "" if settings.penalty == "in_loss" else f"-{settings.penalty}"
    return f"{stream.name}-{settings.method}{strength}{penalty}-seed{settings.seed}"


def _recorded(args):
    """Return the arguments as JSON can hold them."""
    return {
        key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()
    }


def _train_command(args, strength):
    options = {"method": args.method, "strength": f"{strength:.6g}", "seed": args.seed}
    options |= {"penalty": args.penalty} if args.penalty != "in_loss" else {}
    options |= _recipe_options(args) | ({"data_dir": args.data_dir} if args.data_dir else {})
    words = ["keras-mas", "train", args.tasks]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _trial_row(trial: Trial):
    result = trial.result or {}
    return {
        "strength": trial.strength,
        "average_accuracy": result.get("average_accuracy"),
        "forgetting": result.get("forgetting"),
        "error": trial.error,
    }


def _tell(trial, console):
    outcome = trial.error or f"average accuracy {trial.result['average_accuracy']:.4f}"
    console.print(f"λ={trial.strength:<9.4g} {outcome}", soft_wrap=True)


def _print_search(found, trials, console):
    table = Table(title="on validation data, best first", title_justify="left", box=None)
    for heading in ("λ", "average accuracy", "forgetting"):
        table.add_column(heading, justify="right")
    for row in found["trials"]:
        if row["error"]:
            table.add_row(f"{row['strength']:.4g}", "failed", "")
        else:
            accuracy, forgotten = f"{row['average_accuracy']:.4f}", f"{row['forgetting']:.4f}"
            table.add_row(f"{row['strength']:.4g}", accuracy, forgotten)
    console.print(table)
    new = sum(trial.is_new for trial in trials)
    console.print(f"{new} trained now, {len(trials) - new} read from {found['folder']}\nbest:")
    console.print(found["command"], soft_wrap=True)


def _questions_from_file(args):
    if args.task is None:
        raise UsageError("Expected --task beside --input. Received: none. Name the task's head.")
    try:
        with open(args.input, "rb") as file:
            inputs = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(
            f"Expected an array in '{args.input}', written by `numpy.save`. Received: {error}."
        ) from error
    if not isinstance(inputs, np.ndarray) or inputs.dtype.kind not in "fiub":
        raise UsageError(
            f"Expected one array of numbers in '{args.input}'. Received: "
            f"{getattr(inputs, 'dtype', 'several arrays')}. Write it with `numpy.save`."
        )
    if not inputs.size:
        raise UsageError(
            f"Expected at least one example in '{args.input}'. Received: shape {inputs.shape}."
        )
    return [(args.task, inputs.astype("float32"), None)]


def _questions_from_stream(args):
    stream = load_tasks(args.examples_of, data_dir=args.data_dir)
    tasks = {task.name: task for task in stream.tasks}
    if args.task is not None and args.task not in tasks:
        raise UsageError(
            f"Expected a task of '{stream.name}': {', '.join(tasks)}. Received: '{args.task}'."
        )
    questions = []
    for task in [tasks[args.task]] if args.task else stream.tasks:
        head = heads_of(stream)[task.name]
        chosen = np.random.default_rng(0).permutation(len(task.test))[: args.count]
        truth = [head.classes[head.offset + label] for label in task.test.labels[chosen]]
        questions.append((head.name, task.test.inputs[chosen].astype("float32"), truth))
    return questions


def _answer_rows(question, answer):
    task, inputs, truth = question
    return [
        {
            "task": task,
            "answer": str(answer["label"][k]),
            "probability": round(float(answer["probabilities"][k].max()), 4),
            **({"truth": truth[k]} if truth else {}),
        }
        for k in range(len(inputs))
    ]


def _print_answers(rows, args, console):
    table = Table(
        title=f"{args.model} over {args.via}", title_justify="left", box=None, pad_edge=False
    )
    for heading in rows[0]:
        table.add_column(heading)
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)
    if "truth" in rows[0]:
        right = sum(row["answer"] == row["truth"] for row in rows)
        console.print(f"{right} of {len(rows)} right")


def _client(args):
    if args.via == "grpc":
        return GrpcClient(args.server or f"127.0.0.1:{GRPC}")
    return RestClient(args.server or f"127.0.0.1:{REST}")


def _print_json(content):
    json.dump(content, sys.stdout, indent=2, ensure_ascii=False)
    sys.stdout.write("\n")
