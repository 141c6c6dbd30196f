"""Clients of the stand-in while versions are published and rolled back.

    python benchmarks/serving.py [--clients 32] [--seconds 30] [--batching]

The clients run in a process of their own, as the server does. Two versions of an MLP
784-400-400-10 are published and rolled back without a pause. Writes results/serving.json. A minute.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import psutil
import tensorflow as tf
from keras import layers
from serving_load import LABEL, Publisher, Traffic, run_clients

from keras_mas.serving.export import export_version
from keras_mas.serving.standin import BatchingParameters, ServerOptions, StandIn, config_of

RESULTS = Path("results/serving.json")
MODEL, TASK = "digits", "digits"


def main() -> None:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--batching", action="store_true")
    args = parser.parse_args()
    busy = psutil.cpu_percent(interval=2.0)  # of other processes, before anything runs
    with tempfile.TemporaryDirectory() as folder:
        load = measure_load(Path(folder), args.clients, args.seconds, args.batching)
    key = f"{args.clients} clients{', batching' if args.batching else ''}"
    record({key: load | {"processors_busy_before_percent": busy}})


def record(results: dict[str, Any]) -> None:
    """Print results, and add them to those in the file."""
    print(json.dumps(results, indent=1))
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(known | results, indent=1) + "\n")


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


def mlp() -> keras.Model:
    """Return an MLP for images of 28×28 in grey."""
    inputs = x = keras.Input([784])
    for width in (400, 400):
        x = layers.Dense(width, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(10)(x))


if __name__ == "__main__":
    main()
