"""Whether a run that is killed at any moment ends as one that is not.

    python benchmarks/kills.py [--kills 50] [--stream split-digits] [--method mas] [--epochs N]

A run is trained without a disturbance. Then the same run, in a folder of its own, is killed
(SIGKILL) after a random time, up to that which the undisturbed one took, and started again, until
so many kills have hit a process at work; a run that ends between two kills is compared with the
undisturbed one, weight by weight and bit by bit, and the next one begins. Prints a line for each
run and exits with 1 if one differs.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--stream", default="split-digits")
    parser.add_argument("--method", default="mas")
    parser.add_argument("--epochs", type=int, help="of every task, more than the stream's own")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    asked = parser.parse_args(arguments)
    moments = random.Random(asked.seed)
    command = [str(Path(sys.executable).with_name("keras-mas")), "train", asked.stream]
    command += ["--method", asked.method, "--deterministic"]
    command += ["--epochs", str(asked.epochs)] if asked.epochs else []
    command += ["--output"]
    kills, differing, number = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        started = time.monotonic()
        run(command, whole)
        seconds = time.monotonic() - started
        while kills < asked.kills:
            number += 1
            cut = Path(folder) / "cut"
            of_this = 0
            while kills < asked.kills and run(command, cut, moments.uniform(0, seconds)):
                kills += 1
                of_this += 1
            run(command, cut)
            same = weights(cut) == weights(whole)
            differing += not same
            print(
                f"run {number}: killed {of_this} times, {'identical' if same else 'DIFFERENT'}",
                flush=True,
            )
            shutil.rmtree(cut)
    print(f"{kills} kills, {number} runs, {differing} of them different")
    sys.exit(differing > 0)


def run(command: list[str], folder: Path, seconds: float | None = None) -> bool:
    """Run a command in a process; return whether it was killed after so many seconds."""
    words = [*command, str(folder)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            _, error = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return True
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{error.decode()}")
    return False


def weights(folder: Path) -> dict[str, bytes]:
    """Return the final weights of a run, and what is remembered, by name."""
    model = keras.models.load_model(folder / "model.keras", compile=False)
    found = {weight.path: weight.numpy().tobytes() for weight in model.weights}
    last = max(folder.glob("[0-9]*"), key=lambda path: int(path.name))
    memory = last / "memory.npz"
    if memory.exists():
        with np.load(memory) as arrays:
            found |= {f"memory/{name}": arrays[name].tobytes() for name in arrays}
    return found


if __name__ == "__main__":
    main()
