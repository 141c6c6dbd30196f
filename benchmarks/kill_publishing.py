"""Publishers killed at random moments: what a server finds then.

    python benchmarks/kill_publishing.py [--kills 100] [--seed 0]

A process publishes versions of a model, one after the other, and is killed (SIGKILL) at a moment
drawn from 1.3 times what a publication takes. Then every version that is visible is loaded in
the C++ runtime, sent its own warm-up requests, and asked: version by version another network, whose
probabilities are known. Where the kill struck is told by what it left. Prints how often each stage
was struck, how many versions were published, and how many were damaged, which should be none.
"""

import argparse
import contextlib
import math
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from keras_mas.serving.gate import HeldOut
from keras_mas.serving.manifest import read_manifest
from keras_mas.serving.paths import list_versions
from keras_mas.serving.publish import publish
from keras_mas.serving.published import check_version
from keras_mas.serving.runtime import LoadedVersion

POINTS = np.array([[0.0, 1.0], [0.5, 0.0], [0.25, 1.0]], np.float32)
LABELS = np.array([1, 0, 1])
_PER_MEASUREMENT = 10


def network(scale: float) -> keras.Model:
    """Return a head whose logits are its inputs times a number."""
    inputs = keras.Input((2,))
    layer = keras.layers.Dense(2, use_bias=False)
    head = keras.Model(inputs, layer(inputs))
    layer.set_weights([scale * np.eye(2)])
    return head


def publish_on(base: Path, seed: int, started: "multiprocessing.synchronize.Event") -> None:
    """Publish versions of different networks until killed."""
    rng = np.random.default_rng(seed)
    held_out = [HeldOut("pets", "pets", LABELS, lambda _: [POINTS])]
    while True:
        scale = float(rng.uniform(1.0, 5.0))
        heads = {"pets": network(scale)}
        started.set()
        publish(heads, base, held_out, manifest={"scale": scale, "tasks": ["pets"]})


def is_damaged(version: Path) -> str:
    """Return what is wrong with a version; empty if nothing is."""
    try:
        check_version(version)
        scale = read_manifest(version)["run"]["scale"]
        odds = np.exp(scale * POINTS)
        with contextlib.closing(LoadedVersion(version)) as loaded:
            answer = loaded.run("pets", {"inputs": POINTS})["probabilities"]
        np.testing.assert_allclose(answer, odds / odds.sum(axis=-1, keepdims=True), rtol=1e-4)
    except Exception as error:  # of whatever kind: a server would fail too
        return f"{type(error).__name__}: {error}"
    return ""


def stage_of(base: Path) -> str:
    """Return how far the publication had come that was killed, by what it left."""
    left = [path for path in base.glob(".tmp-*") if path.is_dir()]
    if not left:
        return "between two versions"
    for name in ("blessing.json", "manifest.json", "tf_serving_warmup_requests"):
        if list(left[0].glob(f"assets.extra/{name}")):
            return {
                "blessing.json": "judged",
                "manifest.json": "complete, not renamed",
                "tf_serving_warmup_requests": "written, being checked",
            }[name]
    return "graph or weights being written"


def seconds_to_publish(base: Path, before: set[int]) -> float:
    """Wait until another version is visible; return how long that took."""
    beginning = time.monotonic()
    while not set(list_versions(base)) - before:
        time.sleep(0.005)
    return time.monotonic() - beginning


def kill_publishers(base: Path, kills: int, seed: int) -> tuple[Counter, list[str]]:
    """Kill publishers at random moments.

    Args:
        base: Folder of the model.
        kills: How many.
        seed: Seed of the moments and the networks.

    Returns:
        How often each stage was struck, and what was wrong with versions.
    """
    context = multiprocessing.get_context("forkserver")
    # Each publisher is forked from a process that has imported TensorFlow, and done nothing else.
    context.set_forkserver_preload(["keras_mas.serving.publish"])
    rng, stages, damage, good = np.random.default_rng(seed), Counter(), [], set()
    for number in range(kills + math.ceil(kills / _PER_MEASUREMENT)):
        before = set(list_versions(base))
        started = context.Event()
        arguments = (base, seed + number, started)
        publisher = context.Process(target=publish_on, args=arguments, daemon=True)
        publisher.start()
        started.wait()
        is_measurement = number % (_PER_MEASUREMENT + 1) == 0
        if is_measurement:  # of how long it takes now, on a machine that does other things
            seconds = seconds_to_publish(base, before)
        else:
            time.sleep(rng.uniform(0.0, 1.3 * seconds))
        publisher.kill()
        publisher.join()
        if not is_measurement:
            stages[stage_of(base)] += 1
        for version, folder in list_versions(base).items():
            if version not in good:
                if failure := is_damaged(folder):
                    damage.append(f"version {version} after kill {number}: {failure}")
                good.add(version)
    damage += [
        f"version {version} in the end: {failure}"
        for version, folder in list_versions(base).items()
        if (failure := is_damaged(folder))
    ]
    return stages, damage


def main() -> int:
    """Run the benchmark; return 1 if a version was damaged."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "shop"
        stages, damage = kill_publishers(base, args.kills, args.seed)
        for stage, count in stages.most_common():
            print(f"{count:4} killed: {stage}")
        print(f"{len(list_versions(base)):4} versions visible, {len(damage)} damaged")
        for failure in damage:
            print(failure)
    return bool(damage)


if __name__ == "__main__":
    sys.exit(main())
