"""What a task's signature costs beside plain exports of the network: of its logits, and of softmax.

    python benchmarks/serving_signature.py

All are asked in turns, and a ratio is the median one of neighbours, in three places:

    C library   the processor time of `TF_SessionRun`, which is what a model server calls
    stand-in    the processor time of the stand-in's session in Python, which also makes NumPy
                arrays and Python's strings of the outputs
    client      the time that `GrpcClient.predict` takes, asking a stand-in in another process

Writes results/serving.json. Seven minutes.
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from keras_mas.serving.client import GrpcClient
from keras_mas.serving.export import export_version
from keras_mas.serving.runtime import LoadedVersion
from keras_mas.serving.standin import StandIn
from serving import TASK, mlp, record

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serving"))

import c_api

WARM_UP, MOST_ROUNDS, SECONDS = 200, 4000, 35.0
OURS, LOGITS, SOFTMAX = "ours", "logits", "softmax"
PLAIN = {LOGITS: lambda logits: logits, SOFTMAX: tf.nn.softmax}
NAMES = (OURS, *PLAIN)

Ask = Callable[[], object]


def main() -> None:
    """Measure, print and record."""
    networks = {"MLP 784-400-400-10": (mlp, (784,)), "VGG 32×32": (vgg, (32, 32, 3))}
    ratios = {}
    for name, (build, shape) in networks.items():
        with tempfile.TemporaryDirectory() as folder:
            export(build(), shape, Path(folder))
            for size in (1, 32):
                images = np.random.default_rng(0).normal(size=(size, *shape)).astype(np.float32)
                ratios[f"{name}, batch {size}"] = measure(Path(folder), images)
    record({"signature / plain": ratios})


def measure(models: Path, images: np.ndarray) -> dict[str, dict]:
    """Return what `compare` does, by place."""
    versions = {name: LoadedVersion(models / name / "1") for name in NAMES}
    in_library = {name: in_c(models / name / "1", versions[name], images) for name in versions}
    in_standin = {
        name: lambda version=version: version.run(TASK, {"inputs": images})
        for name, version in versions.items()
    }
    with served(models) as address, GrpcClient(address) as client:
        of_client = {
            name: lambda name=name: client.predict(name, {"inputs": images}, signature=TASK)
            for name in versions
        }
        return {
            "C library": compare(in_library, time.process_time),
            "stand-in": compare(in_standin, time.process_time),
            "client": compare(of_client, time.perf_counter),
        }


def compare(ask: dict[str, Ask], clock: Callable[[], float]) -> dict[str, Any]:
    """Ask all in turns; return the median times, and of ours the median ratios of neighbours.

    Neighbours, for what else the machine does slows all.
    """
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for name in NAMES:
        for _ in range(WARM_UP):
            ask[name]()
    beginning = time.monotonic()
    while len(times[OURS]) < MOST_ROUNDS and time.monotonic() - beginning < SECONDS:
        first = len(times[OURS]) % len(NAMES)
        for name in NAMES[first:] + NAMES[:first]:
            began = clock()
            ask[name]()
            times[name].append(clock() - began)
    ratios = {name: np.divide(times[OURS], times[name]) for name in PLAIN}
    return {
        "ratio to": {name: round(float(np.median(each)), 3) for name, each in ratios.items()},
        "ms": {name: round(statistics.median(each) * 1e3, 3) for name, each in times.items()},
        "rounds": len(times[OURS]),
    }


def in_c(directory: Path, version: LoadedVersion, images: np.ndarray) -> Ask:
    """Return what runs a version in the C library, where no array or string of Python is made."""
    model = c_api.Model(c_api.load_library(Path(tf.__file__).parent), str(directory))
    signature = version.signatures[TASK]
    outputs = [info.name for info in signature.outputs.values()]
    send = model.request(
        signature.inputs["inputs"].name, outputs, images.ravel().tolist(), images.shape
    )
    return lambda: model.free(send())


@contextmanager
def served(models: Path) -> Iterator[str]:
    """Serve all models in a process of their own; give its gRPC address."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=[models, theirs])
    process.start()
    theirs.close()  # so that the end of the process is the end of the pipe
    try:
        yield f"localhost:{ours.recv()}"
    finally:
        ours.close()
        process.join()


def serve(models: Path, pipe: Any) -> None:
    """Serve until the other end of the pipe is closed."""
    bases = {name: models / name for name in NAMES}
    with StandIn(bases, grpc_port=0, rest_port=0) as server:
        pipe.send(server.grpc_port)
        with suppress(EOFError):
            pipe.recv()


def export(model: keras.Model, shape: tuple[int, ...], models: Path) -> None:
    """Export a network with the signature of a task, and plainly."""
    export_version({TASK: model}, models / OURS / "1")
    spec = tf.TensorSpec([None, *shape], tf.float32, name="inputs")
    for name, output in PLAIN.items():
        archive = keras.export.ExportArchive()
        archive.add_endpoint(TASK, plain(model, output), [spec])
        archive.write_out(str(models / name / "1"), verbose=False)


def plain(model: keras.Model, output: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return an endpoint that answers what is made of a network's logits, and nothing more."""
    return lambda inputs: {"outputs": output(model(inputs))}


def vgg() -> keras.Model:
    """Return a small VGG for images of 32×32."""
    inputs = x = keras.Input([32, 32, 3])
    for width in (32, 64, 128):
        for _ in range(2):
            x = layers.Conv2D(width, 3, padding="same", activation="relu")(x)
        x = layers.MaxPooling2D()(x)
    x = layers.Dense(128, activation="relu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(10)(x))


if __name__ == "__main__":
    main()
