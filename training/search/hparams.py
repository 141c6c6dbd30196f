"""The trials of a search for TensorBoard's HParams."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from .search import Found
from .space import name_of_values


def write_hparams(found: Found, folder: Path) -> None:
    """Write what was varied, and accuracy and forgetting, of every completed trial.

    Args:
        found: What the search found.
        folder: Folder to write, in the place of what is there.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for trial in found.trials:
        if trial.is_completed:
            name = name_of_values(trial.values)
            measures = {"average_accuracy": trial.accuracy, "forgetting": trial.forgetting}
            write_trial(folder / name, name, trial.values, measures)


def write_trial(
    folder: Path, name: str, values: Mapping[str, Any], measures: Mapping[str, float]
) -> None:
    """Write what was varied, and what was measured, of one trial.

    Args:
        folder: Folder of the trial.
        name: Its name.
        values: What was varied, by name.
        measures: What was measured, by name.
    """
    from tensorboard.plugins.hparams import api

    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default(0):
        api.hparams(dict(values), trial_id=name)
        for measure, value in measures.items():
            tf.summary.scalar(measure, value)
    writer.close()
