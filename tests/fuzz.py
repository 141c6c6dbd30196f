"""Every reader against damaged files: an error that says what is wrong, or what was written.

    python tests/fuzz.py [--cases 2000] [--readers memory,result,…] [--seed 0]

Real files are written, changed at random and read: bits, bytes and stretches of them, or values
inside a file whose checksums fit. A reader may refuse a file by an error with a sentence for the
user. It may never raise another one, take more than a minute, or return something else than was
written, except where the change is one that a user could have made. Requests to the stand-in server
are treated alike: it refuses them by a status that blames the request, or answers them right.
Prints a line for every reader, and every failure with the number of its case, and exits with 1 if
there was one; used by test_fuzz.py, with fewer cases.
"""

import argparse
import contextlib
import dataclasses
import http.client
import io
import json
import logging
import os
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc
import keras
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from keras_mas import MASModel, SynapticMemory
from keras_mas.errors import UsageError
from keras_mas.serving.standin import StandIn
from keras_mas.serving.traffic import Collector, InputForm, read_requests
from keras_mas.training import under_way
from keras_mas.training.cli import main as command_line
from keras_mas.training.finished_run import FinishedRun
from keras_mas.training.learner import Learner
from keras_mas.training.run import train
from keras_mas.training.run_directory import DamagedError
from keras_mas.training.saved_tasks import saved_heads
from keras_mas.training.settings import Recipe, Settings
from keras_mas.training.tasks import DataError, load_tasks
from keras_mas.training.under_way import TaskUnderWay

# What tells the user in a sentence. A `ValueError` does where the reader words it, as `load` does.
WORDED = (UsageError, DamagedError, DataError)

TOML = """
name = "insects"
scenario = "task"

[[task]]
name = "ants"
npz = "ants.npz"

[[task]]
name = "bees"
npz = "ants.npz"
classes = [0, 1]
"""


@dataclasses.dataclass(frozen=True)
class Reader:
    """A reader and a real file for it.

    Attributes:
        path: The file, which is changed.
        read: Function of no arguments that reads it, and returns something to compare.
        refuses: Errors that are worded for the user.
        change: Function from the random generator to the new content, the file's path and its
            intact content; random bytes of it by default.
        means_it: Whether a changed file may mean something else.
    """

    path: Path
    read: Callable[[], Any]
    refuses: tuple[type[Exception], ...] = WORDED
    change: Callable[[random.Random, Path, bytes], bytes] | None = None
    means_it: bool = False


def damaged(choose: random.Random, path: Path, intact: bytes) -> bytes:
    """Return the content of a file with a few random changes."""
    content = bytearray(intact)
    for _ in range(choose.choice([1, 1, 1, 2, 5])):
        start = choose.randrange(len(content) + 1)
        end = min(len(content), start + choose.choice([1, 2, 8, 64, 4096]))
        kind = choose.randrange(7)
        if kind == 0 and start < len(content):
            content[start] ^= 1 << choose.randrange(8)
        elif kind == 1:
            content[start:end] = choose.randbytes(end - start)
        elif kind == 2:
            del content[start:end]
        elif kind == 3:
            content[start:start] = content[start:end]
        elif kind == 4:
            del content[start:]
        elif kind == 5:
            content[start:end] = bytes(end - start)
        else:
            content[start:start] = choose.choice([b"0", b"-1", b'"', b"]", b"\xff", b"\n", b"nan"])
        if not content:
            break
    return bytes(content)


def changed_json(choose: random.Random, path: Path, intact: bytes) -> bytes:
    """Return a JSON file without checksum, as of an earlier version, with one other value."""
    content = json.loads(intact)
    content.pop("file", None)
    parent, key = choose.choice(list(_places(content)))
    other = [None, True, -1, 0, 2.5, 1e400, float("nan"), "", "x" * 300, "\ud800", [], {}, [[]]]
    if choose.randrange(4):
        parent[key] = choose.choice(other)
    else:
        del parent[key]
    return json.dumps(content).encode()


def _places(value):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


_OTHERS = (
    lambda array: array.astype("U5"),
    lambda array: array[..., None],
    lambda array: array.ravel()[:-1],
    lambda array: np.zeros(array.shape, "float64"),
    lambda array: np.full(array.shape, np.nan),
    lambda array: np.full(array.shape, -1),
    lambda array: np.zeros(0),
    lambda array: np.array(b"", dtype="V4"),
)


def changed_arrays(choose: random.Random, path: Path, intact: bytes) -> bytes:
    """Return an `.npz` file with its checksums in which one array is another one."""
    arrays = dict(np.load(io.BytesIO(intact)))
    name = choose.choice(sorted(arrays))
    array = arrays.pop(name)
    kind = choose.randrange(len(_OTHERS) + 2)
    if kind < len(_OTHERS):
        arrays[name] = _OTHERS[kind](array)
    elif kind == len(_OTHERS):
        arrays[f"{name}x"] = array
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


def make_readers(folder: Path, running: contextlib.ExitStack) -> dict[str, Reader]:
    """Write real files into a folder, and return their readers by name.

    Args:
        folder: Where they are written.
        running: Takes the server that some of them ask.
    """
    x = np.random.default_rng(0).normal(size=(24, 4)).astype("float32")
    y = np.arange(24) % 2
    np.savez(folder / "ants.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    (folder / "tasks.toml").write_text(TOML)
    return {
        **make_readers_of_memories(folder, x),
        **make_readers_of_runs(folder),
        **make_readers_of_tasks(folder),
        **make_readers_of_requests(folder, running),
    }


def make_readers_of_memories(folder: Path, x: np.ndarray) -> dict[str, Reader]:
    """Return the readers of what `SynapticMemory.save` writes, of a model that knows inputs."""
    path = folder / "memory.npz"
    inputs = keras.Input([4])
    model = MASModel(inputs, keras.layers.Dense(2)(inputs))
    model.consolidate(x)
    model.memory.save(path)

    def read():
        return arrays_of(SynapticMemory.load(path).state())

    refuses = (*WORDED, ValueError)
    return {
        "memory": Reader(path, read, refuses),
        "memory-values": Reader(path, read, refuses, changed_arrays, means_it=True),
    }


def make_readers_of_runs(folder: Path) -> dict[str, Reader]:
    """Return the readers of a run of the tasks in a folder: finished, resumed and continued."""
    run = folder / "run"
    stream = load_tasks(str(folder / "tasks.toml"))
    settings = Settings(method="mas", recipe=Recipe(backbone="mlp-4", epochs=2, batch_size=8))
    under_way_file = _train(stream, settings, run)
    learner = Learner(stream)

    def heads():
        models, classes = saved_heads(run, 2)
        return arrays_of({name: head.get_weights() for name, head in models.items()}), classes

    def task_under_way():
        read = TaskUnderWay.read(under_way_file.parent)
        return read and (read.number, read.epochs, read.measured["history"], arrays_of(read.arrays))

    def again():
        return train(stream, settings, run, learner=learner)["accuracy_matrix"]

    def both(name, path, read, change):
        """Return the readers of a damaged file, and of one with other values."""
        damaged_file = Reader(path, read)
        values = dataclasses.replace(damaged_file, change=change, means_it=True)
        return {name: damaged_file, f"{name}-values": values}

    result, arguments = run / "result.json", run / "arguments.json"
    progress, memory = run / "2" / "progress.json", run / "2" / "memory.npz"
    no_path = (*WORDED, OSError)  # of weights in a file that no path can be of
    continued = Reader(result, lambda: as_finished(run), no_path, changed_json, means_it=True)
    return {
        **both("result", result, lambda: report(run), changed_json),
        "continued-values": continued,
        "continued-arguments": dataclasses.replace(continued, path=arguments, refuses=WORDED),
        "arguments": Reader(arguments, again),
        **both("progress", progress, heads, changed_json),
        "model": Reader(run / "2" / "model.keras", heads),
        **both("task-memory", memory, again, changed_arrays),
        "under-way": Reader(under_way_file, task_under_way),
    }


def make_readers_of_tasks(folder: Path) -> dict[str, Reader]:
    """Return the readers of a file of tasks, and of the data that it names."""
    path, data = folder / "tasks.toml", folder / "ants.npz"

    def read():
        tasks = load_tasks(str(path)).tasks
        return [
            (task.name, task.classes, [split.labels.tobytes() for split in task.splits.values()])
            for task in tasks
        ], [task.train.inputs.tobytes() for task in tasks]

    return {
        "toml": Reader(path, read, means_it=True),
        "npz": Reader(data, read),
        "npz-values": Reader(data, read, change=changed_arrays, means_it=True),
    }


def make_readers_of_requests(folder: Path, running: contextlib.ExitStack) -> dict[str, Reader]:
    """Return the readers of requests: in logs, and those of the stand-in, which serves x/2 + 2."""
    _export_half_plus_two(folder / "half" / "1")
    server = running.enter_context(StandIn({"half": folder / "half"}, grpc_port=0, rest_port=0))
    # It logs with a traceback what is no message at all, as every gRPC server in Python does.
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
    channel = running.enter_context(grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}"))
    predict = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    requests = [_request_of(values) for values in ([1.0, 2.0, 5.0], [[0.25], [-8.0]], [7.0])]
    with tf.io.TFRecordWriter(str(folder / "requests.tfrecord")) as writer:
        for request in requests:
            writer.write(_log_of(request))
    (folder / "request.bin").write_bytes(requests[1].SerializeToString())
    (folder / "request.json").write_text('{"signature_name": "serve", "instances": [1, 2.5, -3e1]}')
    logged = folder / "requests.tfrecord"

    def over_rest():
        return _answer_over_rest(server.rest_port, (folder / "request.json").read_bytes())

    def over_grpc():
        return _answer_over_grpc(predict, (folder / "request.bin").read_bytes())

    return {
        "requests": Reader(logged, lambda: _intact_inputs(logged), means_it=True),
        "requests-values": Reader(
            logged, lambda: inputs_in(logged), change=changed_record, means_it=True
        ),
        "rest": Reader(folder / "request.json", over_rest, means_it=True),
        "grpc": Reader(folder / "request.bin", over_grpc, means_it=True),
    }


def changed_record(choose: random.Random, path: Path, intact: bytes) -> bytes:
    """Return a TFRecord file, with the checksums that fit, of which one record is damaged."""
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    number = choose.randrange(len(records))
    records[number] = damaged(choose, path, records[number])
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    content = path.read_bytes()
    path.write_bytes(intact)
    return content


def inputs_in(path: Path) -> list[list[float]]:
    """Return what is collected of a log: vectors of one number."""
    collector = Collector(InputForm((1,), ("half",), name="x"))
    read_requests([path], collector)
    assert collector.examples == len(collector) + collector.duplicates
    return collector.asked.inputs.tolist() if len(collector) else []


def _intact_inputs(path):
    """Return what is collected of a log, each of which must be as it was written."""
    found = inputs_in(path)
    if not all(each in ([0.25], [-8.0]) for each in found):
        raise RuntimeError(f"collected what nobody has sent: {found}")
    return found


def _answer_over_rest(port, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.request("POST", "/v1/models/half:predict", body)
        response = connection.getresponse()
        text = response.read().decode()
    answer = json.loads(text)
    if response.status != 200:
        if response.status >= 500:
            raise RuntimeError(f"status {response.status}: {text}")
        raise UsageError(answer["error"])
    with contextlib.suppress(ValueError, TypeError):  # of what is JSON by the letter
        document = json.loads(body)
        asked = document["inputs" if "inputs" in document else "instances"]
        _check_half(asked, answer["outputs" if "inputs" in document else "predictions"])
    return answer


def _answer_over_grpc(predict, content):
    try:
        response = predict_pb2.PredictResponse.FromString(predict(content, timeout=30))
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
            _check_is_no_message(content, error.details())
        raise UsageError(error.details()) from error
    asked = predict_pb2.PredictRequest.FromString(content).inputs["x"]
    shape = [dim.size for dim in asked.tensor_shape.dim]
    answer = tf.make_ndarray(response.outputs["y"])
    # TensorFlow looks at no value of an empty tensor (`Tensor::FromProto`).
    _check_half(np.zeros(shape) if 0 in shape else tf.make_ndarray(asked), answer)
    return answer.tolist()


def _check_is_no_message(content, details):
    try:
        predict_pb2.PredictRequest.FromString(content)
    except DecodeError:
        return
    raise RuntimeError(details)


def _check_half(asked, answer):
    values = np.asarray(asked, np.float32)
    with np.errstate(over="ignore"):
        expected = values / 2 + 2
    # Values that JSON cannot write are texts: NaN, Infinity.
    if not np.array_equal(expected, np.asarray(answer, np.float32), equal_nan=True):
        raise RuntimeError(f"answered {answer} for {asked}")


def _request_of(values):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "half", "serve"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(values, tf.float32))
    return request


def _log_of(request):
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(request)
    return log.SerializeToString()


def _export_half_plus_two(folder):
    archive = keras.export.ExportArchive()
    x = tf.TensorSpec(None, tf.float32, name="x")
    archive.add_endpoint("serve", lambda x: {"y": 0.5 * x + 2.0}, [x])
    archive.write_out(str(folder), verbose=False)


def _train(stream, settings, run):
    """Train a run, and keep the state of a task that it saved; return the path of that."""
    kept = run.parent / "under" / "under-way.npz"
    kept.parent.mkdir()
    every, under_way.EVERY = under_way.EVERY, 0.0
    save = TaskUnderWay.save

    def save_and_keep(self):
        save(self)
        kept.write_bytes((run / kept.name).read_bytes())

    TaskUnderWay.save = save_and_keep
    try:
        train(stream, settings, run)
    finally:
        under_way.EVERY, TaskUnderWay.save = every, save
    return kept


def arrays_of(value: Any) -> Any:
    """Return nested arrays as something to compare."""
    if isinstance(value, dict):
        return {name: arrays_of(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [arrays_of(inner) for inner in value]
    array = np.asarray(value)
    return array.dtype.str, array.shape, array.tobytes()


def report(run: Path) -> str:
    """Return what the command line prints of a run; `UsageError` if it refuses it in a sentence."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command_line(["report", str(run)])
    if code == 0:
        return out.getvalue()
    if "--debug" in err.getvalue() or "Traceback" in err.getvalue():
        raise RuntimeError(f"an error without a sentence: {err.getvalue()}")
    raise UsageError(err.getvalue())


def as_finished(run: Path) -> Any:
    """Return what a run that goes on from another one takes from its files, weights apart."""
    finished = FinishedRun.read(run)
    settings = finished.settings({}, {})
    return settings, finished.classes, finished.sources, finished.load_options({}), finished.digest


def fuzz(reader: Reader, cases: int, seed: int = 0) -> list[str]:
    """Read a file in so many damaged forms; return what went wrong, a line for each."""
    intact = reader.path.read_bytes()
    expected = reader.read()
    failures = []
    try:
        for case in range(cases):
            choose = random.Random(f"{seed} {case}")
            content = (reader.change or damaged)(choose, reader.path, intact)
            reader.path.write_bytes(content)
            try:
                with _time_limit(60):
                    found = reader.read()
                if found != expected and not reader.means_it:
                    failures.append(f"case {case}: read as something else than was written")
            except reader.refuses as error:
                if not str(error).strip():
                    failures.append(f"case {case}: {type(error).__name__} without a word")
            except Exception as error:
                failures.append(f"case {case}: {type(error).__name__}: {error}")
    finally:
        reader.path.write_bytes(intact)
    return failures


@contextlib.contextmanager
def _time_limit(seconds):
    def stop(*_):
        raise TimeoutError(f"no answer after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--readers", help="separated by commas; all by default")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        readers = make_readers(Path(folder), running)
        for name in asked.readers.split(",") if asked.readers else readers:
            failures = fuzz(readers[name], asked.cases, asked.seed)
            failed |= bool(failures)
            sys.stdout.write(f"{name}: {asked.cases} cases, {len(failures)} failures\n")
            sys.stdout.writelines(f"  {failure}"[:300] + "\n" for failure in failures[:20])
            sys.stdout.flush()
    sys.exit(failed)


if __name__ == "__main__":
    main()
