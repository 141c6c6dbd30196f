"""What a folder of images costs when it is kept on disk: memory, time, and starting again.

    TFDS_DATA_DIR=… python benchmarks/data.py [--images 20000] [--sample 2000] [--folder DIR]

Makes a folder of JPEG images of 224x224 out of the prepared data set `tiny_imagenet200_64`, a tenth
of them for testing, and removes it with its cache in the end, unless `--folder` names one.

- start: a process that decodes the images is killed when half of them are on disk, and two others
  start after it: seconds, and images decoded.
- memory: the largest resident memory of a process of its own, `keras-mas train` with two tasks, one
  epoch each: it trains, measures importance, evaluates and exports. Data may take 100 MB of memory.
- time: an epoch of `cnn-32-64-128` on a sample of the images, read from the disk (which the
  operating system may hold in its own cache) and from memory: seconds, and seconds of all cores
  together, which other processes disturb less. Both take turns in one process, after two batches
  that trace; a ratio is one of medians.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from keras_mas.training.backbones import build_trunk
from keras_mas.training.tasks import Split, files, load_tasks

SIDE, CLASSES, MEMORY = 224, 10, 100 * 10**6
TASKS = f"""
name = "photos"
image_size = {SIDE}
[[task]]
name = "first"
folder = "photos"
classes = [0, 1, 2, 3, 4]
[[task]]
name = "second"
folder = "photos"
classes = [5, 6, 7, 8, 9]
"""


def make_images(folder, count):
    """Write enlarged photographs, in ten folders of classes, and the file of tasks."""
    import tensorflow_datasets as tfds

    small = tfds.load("tiny_imagenet200_64", split="train+test").take(count)
    for number, example in enumerate(tfds.as_numpy(small)):
        part = "test" if number % 10 == 0 else "train"
        path = folder / "photos" / part / f"class-{example['label'] % CLASSES}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        large = Image.fromarray(example["image"]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        large.save(path, quality=90)
    (folder / "photos.toml").write_text(TASKS)


def load(folder):
    """Load the tasks; return them, the seconds that takes, and how many images are decoded."""
    decoded, original = [], files.read_image

    def counted(path):
        decoded.append(path)
        return original(path)

    files.read_image = counted
    started = time.perf_counter()
    try:
        stream = load_tasks(folder / "photos.toml", cache_memory=MEMORY, cache_dir=folder / "cache")
    finally:
        files.read_image = original
    return stream, time.perf_counter() - started, len(decoded)


def kill_a_start(folder, count):
    """Start to decode in another process, and kill it when half of the images are on disk."""
    process = subprocess.Popen([sys.executable, __file__, "--only-load", str(folder)])
    half = count * SIDE * SIDE * 3 / 2
    while process.poll() is None and _size(folder / "cache") < half:
        time.sleep(0.05)
    process.kill()
    process.wait()


def _size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*.npy"))


def train(folder, backbone, batch_size):
    """Run `keras-mas train`; return its largest resident memory in bytes and its seconds."""
    command = [sys.executable, "-m", "keras_mas.training.cli", "train", "photos.toml"]
    command += ["--cache-memory", str(MEMORY), "--cache-dir", "cache", "--epochs", "1"]
    command += ["--backbone", backbone, "--batch-size", str(batch_size)]
    command += ["--output", "run", "--export", "models"]
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"The training failed with exit code {process.returncode}.")
    return usage.ru_maxrss * 1024, time.perf_counter() - started


def seconds_per_epoch(split, batch_size, repeats):
    """Return the seconds, and those of all cores, of every epoch from disk and from memory."""
    sources = {"disk": split, "memory": Split(split.read(np.arange(len(split))), split.labels)}
    trunk = build_trunk("cnn-32-64-128", split.input_shape, (1 / 255, 0.0))
    model = keras.Model(trunk.inputs, keras.layers.Dense(CLASSES)(trunk.output))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss)
    datasets = {
        name: source.dataset(batch_size, shuffle_seed=0) for name, source in sources.items()
    }
    for dataset in datasets.values():
        model.fit(dataset.take(2), shuffle=False, verbose=0)
    seconds = {name: [] for name in datasets}
    for _ in range(repeats):
        for name, dataset in datasets.items():
            started = time.perf_counter(), time.process_time()
            model.fit(dataset, shuffle=False, verbose=0)
            ended = time.perf_counter(), time.process_time()
            seconds[name].append(
                [after - before for before, after in zip(started, ended, strict=True)]
            )
    return seconds


def main():
    """Print what was measured, and as JSON to a file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument(
        "--sample", type=int, default=2_000, help="images in an epoch that is timed"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="epochs that are timed, of each kind"
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--backbone", default="cnn-8-16-32", help="network of the run for memory")
    parser.add_argument("--folder", type=Path, help="keep images and cache here")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only-load", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_load:
        load(args.only_load)
        return
    with _folder(args.folder) as folder:
        found = measure(folder, args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")


def measure(folder, args):
    """Make the images, measure, and print."""
    found = {"tensorflow": tf.__version__, "cores": os.cpu_count(), "images": args.images}
    if not (folder / "photos.toml").exists():
        make_images(folder, args.images)
    kill_a_start(folder, args.images)
    stream, seconds, decoded = load(folder)
    print(f"after a kill   {decoded:6} images decoded in {seconds:.1f} s", flush=True)
    _, again, decoded_again = load(folder)
    print(f"second start   {decoded_again:6} images decoded in {again:.1f} s", flush=True)
    found |= {"decoded_after_a_kill": decoded, "decoded_at_the_second_start": decoded_again}
    found |= {"cache_bytes": _size(folder / "cache")}
    peak, seconds = train(folder, args.backbone, args.batch_size)
    print(f"largest memory {peak / 1e9:6.2f} GB, {args.backbone}, {seconds:.0f} s", flush=True)
    found |= {"backbone": args.backbone, "largest_memory": peak, "seconds": seconds}
    sample = stream.tasks[0].train.take(np.arange(args.sample))
    times = seconds_per_epoch(sample, args.batch_size, args.repeats)
    found |= {"sample": len(sample), "seconds_per_epoch": times}
    for number, unit in enumerate(("seconds", "core_seconds")):
        disk, memory = (
            statistics.median(epoch[number] for epoch in times[name]) for name in ("disk", "memory")
        )
        print(f"epoch {unit:12} {disk / memory:6.3f} disk/memory: {disk:.2f}, {memory:.2f} s")
        found |= {f"ratio_of_{unit}": disk / memory}
    return found


@contextlib.contextmanager
def _folder(given):
    if given:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
