"""A task that is being learned: what a run that is interrupted goes on from within it."""

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import keras
import numpy as np

from keras_mas.arrays import joined, load_arrays, save_arrays, split

from .run_directory import UNDER_WAY, naming_damage

# Seconds between two saves, at least: epochs of a small task are shorter, and a save costs some
# hundredths of one.
EVERY = 1.0

# Of arrays; and beside them, when that was.
_GROUPS, _WHEN = ("model", "optimizer", "method"), "when"
_MEASURED = ("seconds", "history", "evaluations")

_CURE = "Remove it, and run the same command again: it begins the task anew."


@dataclasses.dataclass(frozen=True)
class TaskUnderWay:
    """A task after some of its epochs.

    Attributes:
        directory: Folder of the run.
        number: Number of the task, from 0.
        epochs: How many epochs have ended; all of them if a callback has stopped the training.
        measured: What the run has measured so far, as `Record.measurements_of` returns it.
        arrays: The variables of model, optimizer and method, as `Learner.under_way` returns them.
    """

    directory: Path
    number: int
    epochs: int
    measured: Mapping[str, Any]
    arrays: Mapping[str, Mapping[str, np.ndarray]]

    def save(self) -> None:
        """Write it into the run's folder, in the place of what was saved before."""
        fields = {"number": self.number, "epochs": self.epochs, **self.measured}
        when = {_WHEN: {"json": np.array(json.dumps(fields))}}
        save_arrays(self.directory / UNDER_WAY, joined(when | dict(self.arrays)))

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Read what `save` wrote into the folder of a run; None if there is nothing.

        Raises:
            DamagedError: If it cannot be read.
        """

        def restore(arrays):
            groups = split(arrays, [*_GROUPS, _WHEN])
            fields = json.loads(str(groups.pop(_WHEN)["json"]))
            measured = {name: fields[name] for name in _MEASURED}
            return cls(directory, fields["number"], fields["epochs"], measured, groups)

        path = directory / UNDER_WAY
        if not path.exists():
            return None
        with naming_damage(path, _CURE):
            return load_arrays(path, restore, "the state of a task that is being learned")

    def naming_damage(self) -> contextlib.AbstractContextManager[None]:
        """Turn any error in a block that takes it over into a `DamagedError` that names it."""
        return naming_damage(self.directory / UNDER_WAY, _CURE)


class SaveUnderWay(keras.callbacks.Callback):
    """Saves after an epoch, if the last save is a while ago.

    Args:
        save: Is called with the number of epochs that have ended.
    """

    def __init__(self, save: Callable[[int], None]):
        super().__init__()
        self.save = save
        self._last = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Save, if it is time to; never what a loss that is no number has spoiled."""
        is_time = time.monotonic() - self._last >= EVERY
        if is_time and math.isfinite((logs or {}).get("loss", 0.0)):
            is_stopped = self.model.stop_training
            self.save(self.params["epochs"] if is_stopped else epoch + 1)
            self._last = time.monotonic()
