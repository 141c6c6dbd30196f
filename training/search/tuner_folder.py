"""The folder of a `ContinualTuner`: what its trials are of, and the files of keras-tuner's oracle.

It holds

    arguments.json          everything that makes a trial another one
    oracle.json             what the oracle knows
    trial_…/trial.json      a trial; learned.npz beside it are the weights of one of the best, and
                            failure.txt says why one failed that a worker made
    .lock, .lock.json       held by the process that searches, and which process that is
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import keras_tuner as kt

from keras_mas.errors import UsageError

from ..run_directory import ARGUMENTS, are, is_text, naming_damage, read_json, write_json

_ORACLE = "oracle.json"
_NEW = "Choose another `project_name`, or `overwrite=True`"
_CURE = f"Restore it from a copy. For a new search: {_NEW[0].lower()}{_NEW[1:]}."


def _named(*names):
    """Return what `read_json` takes for an object with these keys."""
    return dict.fromkeys(names, lambda value: True)


_DESCRIPTION = _named("oracle", "seed", "hyperparameters", "tasks", "network", "fit")
# In the names of keras-tuner.
_TRIAL = _named("trial_id", "hyperparameters", "metrics", "score", "best_step", "status", "message")

# They change nothing in what is learned, and their folders may have the time in their names.
_WATCHING = (
    keras.callbacks.TensorBoard,
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
)


def described_space(space: kt.HyperParameters) -> dict[str, str]:
    """Return the kind and range of every hyperparameter, by its name.

    Args:
        space: The hyperparameters as `build` declares them.
    """
    texts: dict[str, list[str]] = {}
    for each in space.space:  # under several conditions there may be several of a name
        config = each.get_config()
        name, conditions = config.pop("name"), config.pop("conditions")
        values = ", ".join(f"{k}={v!r}" for k, v in config.items() if v is not None)
        where = f" if {conditions}" if conditions else ""
        texts.setdefault(name, []).append(f"{type(each).__name__}({values}){where}")
    return {name: " or ".join(alternatives) for name, alternatives in texts.items()}


def described_fit(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the arguments of `fit` change in a trial, as JSON can hold it.

    Args:
        arguments: The arguments, by name. Of callbacks of Keras their values count too, and of
            others their class.
    """
    values = {k: v for k, v in arguments.items() if k not in ("verbose", "callbacks")}
    callbacks = [
        _described_callback(each)
        for each in arguments.get("callbacks") or ()
        if not isinstance(each, _WATCHING)
    ]
    return values | ({"callbacks": callbacks} if callbacks else {})


def check_own(folder: Path) -> None:
    """Refuse a folder with a search of another tuner.

    Raises:
        UsageError: If it holds one.
    """
    if (folder / _ORACLE).exists() and not (folder / ARGUMENTS).exists():
        raise UsageError(
            f"Expected a search of a ContinualTuner in '{folder}'. Received: one of another tuner, "
            f"or of an earlier version, without {ARGUMENTS}. {_NEW}."
        )


def check_same(folder: Path, asked: Mapping[str, Any]) -> None:
    """Refuse a folder with trials that cannot be compared with those to come.

    Args:
        folder: The folder.
        asked: What is known so far of the trials to come.

    Raises:
        UsageError: If it holds a search of other trials.
        DamagedError: If the description of its trials cannot be read.
    """
    if not (folder / ARGUMENTS).exists():
        return
    found = read_json(folder / ARGUMENTS, _DESCRIPTION, cure=_CURE)
    differences = _differences(found, _as_read(asked))
    if differences:
        raise UsageError(
            f"'{folder}' holds another search: {'; '.join(differences)}. Its trials cannot be "
            f"compared with those to come. {_NEW}; nothing was changed."
        )


def describe(folder: Path, asked: Mapping[str, Any]) -> None:
    """Write what the trials in a folder are of, unless that has been done.

    Args:
        folder: The folder.
        asked: Everything that makes a trial another one.
    """
    if not (folder / ARGUMENTS).exists():
        write_json(folder / ARGUMENTS, _as_read(asked))


def write_whole(oracle: kt.Oracle) -> None:
    """Have an oracle write files that are never seen half-written, as keras-tuner's own are.

    Args:
        oracle: The oracle, whose methods are replaced.
    """

    def save():
        write_json(Path(oracle._get_oracle_fname()), oracle.get_state())

    def save_trial(trial):
        folder = Path(oracle._get_trial_dir(trial.trial_id))
        write_json(folder / "trial.json", trial.get_state())

    oracle.save, oracle._save_trial = save, save_trial


def read_oracle(oracle: kt.Oracle) -> None:
    """Have an oracle go on from its files, if it has any.

    Args:
        oracle: The oracle.

    Raises:
        DamagedError: If a file is missing or cannot be read; it is named.
    """
    path = Path(oracle._get_oracle_fname())
    trials = set(path.parent.glob("trial_*/trial.json"))
    if not path.exists() and not trials:
        return
    state = read_json(path, {"start_order": are(is_text)}, cure=_CURE)
    started = {path.parent / f"trial_{name}" / "trial.json" for name in state["start_order"]}
    for trial in sorted(trials | started):
        read_json(trial, _TRIAL, cure=_CURE)
    with naming_damage(path, _CURE):
        oracle.reload()
    # A trial that the process ended too early to tell the oracle of is proposed again.
    oracle.trials = {name: oracle.trials[name] for name in oracle.start_order}
    # keras-tuner writes that a trial ended before it forgets that the trial is under way.
    oracle._retry_queue = [name for name in oracle._retry_queue if name not in oracle.end_order]
    for name in oracle._retry_queue:  # without what it measured when it was cut off
        values = oracle.trials[name].hyperparameters
        oracle.trials[name] = kt.engine.trial.Trial(values, name)
    if isinstance(oracle, kt.oracles.GridSearchOracle):
        _restore_grid(oracle)


def _restore_grid(oracle):
    """Give a grid its order back, which keras-tuner 1.4.8 does not save (issue 1055)."""
    oracle._ordered_ids = type(oracle._ordered_ids)()
    values = {name: trial.hyperparameters.values for name, trial in oracle.trials.items()}
    compare = functools.cmp_to_key(lambda a, b: oracle._compare(values[a], values[b]))
    for trial in sorted(values, key=compare):
        oracle._ordered_ids.insert(trial)
    # Each of them is looked at for a combination after it that has not been tried.
    oracle._populate_next = list(oracle.end_order)


def _described_callback(callback):
    name = type(callback).__name__
    if not type(callback).__module__.startswith("keras."):
        return name
    values = {k: v for k, v in vars(callback).items() if isinstance(v, str | int | float)}
    return {"class": name} | {k: v for k, v in values.items() if not k.startswith("_")}


def _as_read(description):
    """Return a description as JSON gives it back."""
    return json.loads(json.dumps(description, default=_plain))


def _plain(value):
    return value.tolist() if hasattr(value, "tolist") else type(value).__name__


def _differences(found, asked):
    """Say what differs between two descriptions, of what is known of both."""
    differences = []
    for name, value in asked.items():
        before = found.get(name)
        if before == value:
            continue
        if isinstance(value, dict):
            before = before if isinstance(before, dict) else {}
            parts = [each for each in {**before, **value} if before.get(each) != value.get(each)]
            differences += [_change(each, before.get(each), value.get(each)) for each in parts]
        elif name in ("tasks", "network"):  # which are hashes
            differences.append(f"other {name}" if name == "tasks" else f"another {name}")
        else:
            differences.append(_change(name, before, value))
    return differences


def _change(name, before, now):
    before, now = ("none" if value is None else value for value in (before, now))
    return f"{name} {before} instead of {now}"
