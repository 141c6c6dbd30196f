"""What a task's signature costs beside the bare network: its logits alone, of a plain export.

    python benchmarks/serving_signature.py

Both are asked in turns, and the ratio is the median one of neighbours, in three places:

    C library   the processor time of `TF_SessionRun`, which is what a model server calls
    stand-in    the processor time of the stand-in's session in Python, which also makes NumPy
                arrays and Python's strings of the outputs
    client      the time that `GrpcClient.predict` takes, asking a stand-in in another process

Writes results/serving.json. Five minutes.
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

WARM_UP, MOST_PAIRS, SECONDS = 200, 4000, 25.0
OURS, BARE = "ours", "bare"

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
    record({"signature / bare": ratios})


def measure(models: Path, images: np.ndarray) -> dict[str, dict[str, float]]:
    """Return what `compare` does, by place."""
    versions = {name: LoadedVersion(models / name / "1") for name in (OURS, BARE)}
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


def compare(ask: dict[str, Ask], clock: Callable[[], float]) -> dict[str, float]:
    """Ask both in turns; return the median ratio of neighbours, and the median times.

    Neighbours, for what else the machine does slows both.
    """
    times: dict[str, list[float]] = {name: [] for name in ask}
    for name in ask:
        for _ in range(WARM_UP):
            ask[name]()
    beginning = time.monotonic()
    while len(times[OURS]) < MOST_PAIRS and time.monotonic() - beginning < SECONDS:
        for name in (OURS, BARE) if len(times[OURS]) % 2 else (BARE, OURS):
            began = clock()
            ask[name]()
            times[name].append(clock() - began)
    ratios = [ours / bare for ours, bare in zip(times[OURS], times[BARE], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "signature (ms)": round(statistics.median(times[OURS]) * 1e3, 3),
        "bare (ms)": round(statistics.median(times[BARE]) * 1e3, 3),
        "pairs": len(ratios),
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
    """Serve both models in a process of their own; give its gRPC address."""
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
    bases = {name: models / name for name in (OURS, BARE)}
    with StandIn(bases, grpc_port=0, rest_port=0) as server:
        pipe.send(server.grpc_port)
        with suppress(EOFError):
            pipe.recv()


def export(model: keras.Model, shape: tuple[int, ...], models: Path) -> None:
    """Export a network with the signature of a task, and its logits alone."""
    export_version({TASK: model}, models / OURS / "1")
    archive = keras.export.ExportArchive()
    spec = tf.TensorSpec([None, *shape], tf.float32, name="inputs")
    archive.add_endpoint(TASK, lambda inputs: {"logits": model(inputs)}, [spec])
    archive.write_out(str(models / BARE / "1"), verbose=False)


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
