"""Clients of the stand-in while versions are published and rolled back; what a signature costs.

    python benchmarks/serving.py [--clients 32] [--seconds 30] [--batching]

The clients run in a process of their own, as the server does. Two versions of an MLP
784-400-400-10 are published and rolled back without a pause. Then each network is exported as
keras_mas does it and bare, its logits alone, and both are run in turns in one process; the ratio is
the median one of neighbours. `--clients 0` measures that alone. Writes results/serving.json. Three
minutes.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import psutil
import tensorflow as tf
from keras import layers
from serving_load import LABEL, Publisher, Traffic, run_clients

from keras_mas.serving.export import export_version
from keras_mas.serving.runtime import LoadedVersion
from keras_mas.serving.standin import BatchingParameters, ServerOptions, StandIn, config_of

RESULTS = Path("results/serving.json")
MODEL, TASK = "digits", "digits"
WARM_UP, MOST_PAIRS, SECONDS = 20, 4000, 30.0


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--batching", action="store_true")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    busy = psutil.cpu_percent(interval=2.0)  # of other processes, before anything runs
    with tempfile.TemporaryDirectory() as folder:
        if args.clients:
            load = measure_load(Path(folder), args.clients, args.seconds, args.batching)
            key = f"{args.clients} clients{', batching' if args.batching else ''}"
            results[key] = load | {"processors_busy_before_percent": busy}
            print(json.dumps({key: results[key]}, indent=1))
        results["signature / bare"] = measure_signatures(Path(folder))
    print(json.dumps(results["signature / bare"], indent=1))
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def measure_load(folder: Path, clients: int, seconds: float, batching: bool) -> dict:
    """Serve two versions in turns to many clients; return counts and times."""
    images = np.random.default_rng(0).normal(size=(4, 784)).astype(np.float32)
    versions, answers = {}, {}
    for number in (1, 2):
        keras.utils.set_random_seed(number)
        model = mlp()
        versions[number] = export_version({TASK: model}, folder / "versions" / str(number))
        answers[number] = tf.nn.softmax(model(images)).numpy()
    base = folder / MODEL
    shutil.copytree(versions[1], base / "1")
    options = ServerOptions(
        file_system_poll_wait_seconds=0.2,
        allow_version_labels_for_unavailable_models=True,
        batching=BatchingParameters(32, 1000) if batching else None,
    )
    config = config_of({MODEL: base})
    config.model_config_list.config[0].version_labels[LABEL] = 1
    traffic = Traffic(MODEL, TASK, {"inputs": images}, "probabilities", answers)
    with StandIn(config, grpc_port=0, rest_port=0, options=options) as server:
        ports = (server.grpc_port, server.rest_port)
        publisher = Publisher(MODEL, base, server.grpc_port, versions)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(abs, [1])  # the process has started
            asked = pool.apply_async(run_clients, [traffic, ports, clients, seconds])
            time.sleep(1.0)
            publishing = threading.Thread(target=publisher.run, args=[max(seconds - 2.0, 1.0)])
            publishing.start()
            outcome = asked.get()
            publishing.join()
    times = np.array(outcome.seconds) * 1e3
    return {
        "requests": len(times),
        "failed or wrong": len(outcome.wrong),
        "examples": outcome.wrong[:3],
        "versions published or rolled back": publisher.rounds,
        "requests per second": round(len(times) / outcome.duration, 1),
        "p50 (ms)": round(float(np.percentile(times, 50)), 2),
        "p99 (ms)": round(float(np.percentile(times, 99)), 2),
        "images per request": len(images),
    }


def measure_signatures(folder: Path) -> dict[str, dict[str, float]]:
    """Return what `compare` does of a task's signature and the bare network."""
    networks = {"MLP 784-400-400-10": (mlp, (784,)), "VGG 32×32": (vgg, (32, 32, 3))}
    ratios: dict[str, dict[str, float]] = {}
    for number, (name, (build, shape)) in enumerate(networks.items(), 1):
        model = build()
        ours = LoadedVersion(export_version({TASK: model}, folder / f"ours-{number}" / "1"))
        bare = LoadedVersion(export_bare(model, shape, folder / f"bare-{number}"))
        for size in (1, 32):
            batch = {"inputs": np.zeros((size, *shape), np.float32)}
            ratios[f"{name}, batch {size}"] = compare(ours, bare, batch)
    return ratios


def export_bare(model: keras.Model, shape: tuple[int, ...], folder: Path) -> Path:
    """Export a network's logits alone."""
    archive = keras.export.ExportArchive()
    spec = tf.TensorSpec([None, *shape], tf.float32, name="inputs")
    archive.add_endpoint(TASK, lambda inputs: {"logits": model(inputs)}, [spec])
    archive.write_out(str(folder), verbose=False)
    return folder


def compare(
    ours: LoadedVersion, bare: LoadedVersion, batch: dict[str, np.ndarray]
) -> dict[str, float]:
    """Run both in turns; return the median ratio of neighbours, and the medians, of processor time.

    Processor time, for what else the machine does takes none of it; pairs, for it slows both.
    """
    times: dict[LoadedVersion, list[float]] = {ours: [], bare: []}
    for version in times:
        for _ in range(WARM_UP):
            version.run(TASK, batch)
    beginning = time.monotonic()
    while len(times[ours]) < MOST_PAIRS and time.monotonic() - beginning < SECONDS:
        in_turns = (ours, bare) if len(times[ours]) % 2 else (bare, ours)
        for version in in_turns:
            began = time.process_time()
            version.run(TASK, batch)
            times[version].append(time.process_time() - began)
    ratios = [one / other for one, other in zip(times[ours], times[bare], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "signature (ms)": round(statistics.median(times[ours]) * 1e3, 3),
        "bare (ms)": round(statistics.median(times[bare]) * 1e3, 3),
        "pairs": len(ratios),
    }


def mlp() -> keras.Model:
    """Return an MLP for images of 28×28 in grey."""
    inputs = x = keras.Input([784])
    for width in (400, 400):
        x = layers.Dense(width, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(10)(x))


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
