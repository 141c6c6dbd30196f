"""The trials of a search for TensorBoard's HParams."""

import shutil
from pathlib import Path

import tensorflow as tf

from .search import Found
from .space import name_of_values


def write_hparams(found: Found, folder: Path) -> None:
    """Write what was varied, and accuracy and forgetting, of every completed trial.

    Args:
        found: What the search found.
        folder: Folder to write, in the place of what is there.
    """
    from tensorboard.plugins.hparams import api

    shutil.rmtree(folder, ignore_errors=True)
    for trial in found.trials:
        if trial.is_completed:
            name = name_of_values(trial.values)
            writer = tf.summary.create_file_writer(str(folder / name))
            with writer.as_default(0):
                api.hparams(dict(trial.values), trial_id=name)
                tf.summary.scalar("average_accuracy", trial.accuracy)
                tf.summary.scalar("forgetting", trial.forgetting)
            writer.close()
