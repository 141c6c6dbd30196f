"""What becomes of batch normalization's statistics: frozen, updated by every task, kept per task.

    python benchmarks/batch_norm.py [--seeds 0,1,2,3,4]

Split-digits, a head per task, with a small convolutional network that has batch normalization; from
task to task the images grow brighter and lose contrast, as those of another camera would. Writes
results/batch_norm.json, where runs of other seeds stay as they are. Two minutes per seed.
"""

import argparse
import json
import os
import statistics
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from keras import layers

from keras_mas import MultiHead, SynapticMemory, metrics
from keras_mas.training.tasks import load_tasks

RESULTS = Path("results/batch_norm.json")
# The strength λ, and what becomes of the statistics in the memory and in the heads.
WAYS = {
    "fine-tuning, updated": (0.0, "update", "shared"),
    "MAS, updated": (1.0, "update", "shared"),
    "MAS, frozen": (1.0, "freeze", "shared"),
    "MAS, per task": (1.0, "update", "per_task"),
}
EPOCHS, BATCH_SIZE, LEARNING_RATE = 30, 32, 0.003


def build_trunk():
    """Return two convolutions with batch normalization, and the mean over positions."""
    inputs = x = keras.Input([8, 8, 1])
    for width in (32, 64):
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x), name="trunk")


def images_of(split, number):
    """Return the images of a task, scaled to 0 … 1 and then shifted more from task to task."""
    images = split.inputs[..., None].astype("float32") / 16
    return images * (1 - 0.15 * number) + 0.25 * number


def run(strength, in_memory, in_heads, seed):
    """Learn the tasks; return the accuracy matrix."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    tasks = load_tasks("split-digits", seed=seed).tasks
    heads = MultiHead(build_trunk(), batch_norm=in_heads)
    memory = SynapticMemory(strength).protect(heads.trunk, batch_norm=in_memory)
    for task in tasks:
        heads.add(task.name, units=2)
    rows = []
    for number, task in enumerate(tasks):
        model = heads.models[task.name]
        model.compile(
            keras.optimizers.Adam(LEARNING_RATE),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        images = images_of(task.train, number)
        model.fit(images, task.train.labels, batch_size=BATCH_SIZE, epochs=EPOCHS, verbose=0)
        memory.consolidate(model, images)
        rows.append([accuracy(heads.models[t.name], t.test, i) for i, t in enumerate(tasks)])
    return rows


def accuracy(model, split, number):
    """Return the accuracy on a task's test data."""
    logits = model(images_of(split, number), training=False)
    return float(np.mean(np.argmax(logits, axis=1) == split.labels))


def main():
    """Measure what is missing, record it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0,1,2,3,4")
    seeds = parser.parse_args().seeds.split(",")
    recorded = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for seed in seeds:
        for way, settings in WAYS.items():
            runs = recorded.setdefault(way, {})
            if seed not in runs:
                runs[seed] = run(*settings, int(seed))
                RESULTS.write_text(json.dumps(recorded, indent=1) + "\n")
    for way, runs in recorded.items():
        for measure in (metrics.average_accuracy, metrics.forgetting):
            values = [measure(matrix) for matrix in runs.values()]
            name = measure.__name__.replace("_", " ")
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"{way:22} {name:18} {statistics.mean(values):.4f} ± {spread:.4f}")


if __name__ == "__main__":
    main()
