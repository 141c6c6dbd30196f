"""The folders that runs and searches are kept in: how they are claimed, locked, read and written.

A run's folder holds

    arguments.json      everything that decides the result
    1/ 2/ … T/          after each task: model.keras (the trunk, and the heads that the task
                        changed), memory.npz (what the method remembers), progress.json (accuracies
                        and seconds so far, the metrics of its epochs), and optimizer.npz (its
                        moments) if that is kept
    under-way.npz       the task that is being learned after its last epoch: weights, optimizer,
                        what the method has added up, the metrics of its epochs
    tries.json          which λ have been tried for a task, with `--strength decay`
    start.keras         a user's own trained network, if tasks were added to one
    model.keras         the trunk and all heads, in the end
    result.json         the result, written last
    accuracy.png        a picture of it
    training.csv        a line per epoch, if it was asked for
    tensorboard/        logs for TensorBoard, if they were asked for
    .lock, .lock.json   held by the process that is at work, and which process that is

A search's folder holds arguments.json and the lock too, and

    proposals.json      what keras-tuner proposed so far
    first-tasks/        what was learned of the first task, which trials share; a lock for each
    trials/             a run for every trial and seed, without its models once it has ended; or
                        stopped.json or failure.json in the place of its result
    search.json         what was found, and search.png, a picture of it
"""

import contextlib
import datetime
import hashlib
import json
import math
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from keras_mas import metrics
from keras_mas.choices import PENALTIES
from keras_mas.errors import UsageError
from keras_mas.files import UNFINISHED, atomic_file, check_writable, remove_unfinished

from .load_options import SCENARIOS
from .options import flag, option_fields
from .settings import SEEDS, Recipe, Settings, is_found
from .tasks.stream import check_name

ARGUMENTS = "arguments.json"
RESULT = "result.json"
START = "start.keras"
MODEL, MEMORY, PROGRESS = "model.keras", "memory.npz", "progress.json"
OPTIMIZER = "optimizer.npz"
UNDER_WAY = "under-way.npz"
TRIES = "tries.json"
CSV_LOG, TENSORBOARD = "training.csv", "tensorboard"
_LOCK, _HOLDER = ".lock", ".lock.json"

# The key of a JSON file under which are its checksum and the number of its format, raised when a
# key changes its meaning.
_FILE, _FORMAT = "file", 1

# The key of a run's description under which is the fingerprint of each task's data.
DATA_OF_TASKS = "data_of_tasks"

# What follows from the data alone, and says nothing to who chose them.
_OF_DATA = ("data", "rescale", DATA_OF_TASKS)

# The modules of what is not ours, by the name under which a run's description has their hash.
_OF_MODULES = {"method_module": "method", "backbone_module": "backbone"}

_KNOWN_BY = (
    "Images in folders are known by their names, sizes and times of modification: if only the "
    "times are others, restore them, as `touch -r`, `cp -p` and `rsync -t` do"
)

_REPLACE = (
    "Choose another folder, or remove this one, as `--overwrite` of `keras-mas train` and "
    "`keras-mas search` does"
)

# The path in a run's folder of every file that a run writes, as a regular expression.
RUN_FILES = (
    r"(arguments|result|tries|\.lock)\.json|accuracy\.png|\.lock|(model|start)\.keras|under-way\.npz"
    r"|\d+/(model\.keras|(memory|optimizer)\.npz|progress\.json)|training\.csv|tensorboard/.+"
)

Check = Callable[[Any], bool]


class DamagedError(RuntimeError):
    """A file of a run or a search is missing, unreadable or damaged; the message says which."""


class InUseError(RuntimeError):
    """Another process is at work in a folder; the message says which process."""


class VanishedError(RuntimeError):
    """A folder that a process works in has been removed or moved."""


@contextlib.contextmanager
def claimed(
    directory: Path,
    description: dict,
    files: str = RUN_FILES,
    *,
    overwrite: bool = False,
) -> Iterator[None]:
    """Hold a folder for one run or search, which is made or continued inside the block.

    The folder is locked, so that no other process works in it, and what killed processes left
    unfinished is removed. One in which nothing has been learned is taken for any run or search:
    it may be that of a command that was refused, and is corrected now.

    Args:
        directory: The folder; it is made if it does not exist.
        description: Everything that decides the result, as JSON can hold it.
        files: Regular expression of the path in the folder of every file that may be in it.
        overwrite: Whether to remove what an earlier run or search left in the folder.

    Raises:
        UsageError: If the folder holds anything else, or cannot be made. Nothing has been changed.
        InUseError: If another process holds it. Nothing has been changed.
        DamagedError: If its description cannot be read. Nothing has been changed.
    """
    check_writable(directory)
    check_content(directory, description, files, overwrite=overwrite)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        # By now another may have begun.
        check_content(directory, description, files, overwrite=overwrite)
        remove_unfinished(directory)
        if overwrite or not _has_learned(directory):
            _empty(directory)
        if not (directory / ARGUMENTS).exists():
            write_json(directory / ARGUMENTS, description)
        yield


def check_there(directory: Path) -> None:
    """Refuse to go on in a folder that was claimed, and that somebody has removed or moved since.

    It would be made again, without what it held.

    Raises:
        VanishedError: If its description is not there any more.
    """
    if not (directory / ARGUMENTS).exists():
        raise VanishedError(
            f"Expected '{directory}', the folder of what is under way. Received: none with its "
            f"{ARGUMENTS}; it was removed or moved meanwhile. Move it back if it was moved, and "
            "run the same command again: it goes on from what is there."
        )


def task_folder(directory: Path, number: int) -> Path:
    """Return the folder of what was saved after a number of tasks, which need not exist."""
    return directory / str(number)


def is_finished(directory: Path) -> bool:
    """Return whether a run's folder holds its result."""
    return (directory / RESULT).exists()


def read_result(directory: Path) -> dict:
    """Read the result of a finished run.

    Args:
        directory: Folder of the run.

    Raises:
        UsageError: If the folder holds no finished run.
        DamagedError: If the result cannot be read.
    """
    if not is_finished(directory):
        raise UsageError(
            f"'{directory}' is not the folder of a finished run: it has no {RESULT}. Name a folder "
            "that `keras-mas train` wrote; the same `train` command finishes a run that was "
            "interrupted."
        )
    path = directory / RESULT
    cure = "Remove it, and run the command that wrote it again."
    result = read_json(path, _RESULT, cure=cure, later=_LATER_IN_RESULT)
    for contradiction in _contradictions(result):
        raise _damaged(path, contradiction, cure)
    if result["method"] == "finetune":  # whose λ was recorded once, though it has none
        result |= {"strength": None, "penalty": None}
    return result


def read_json(
    path: Path,
    fields: Mapping[str, Check] | None = None,
    *,
    later: Mapping[str, Check] | None = None,
    cure: str = "Remove it, and run the command that wrote it again.",
) -> dict:
    """Read a JSON object that `write_json` wrote.

    Args:
        path: The file.
        fields: The keys that it must have, with a check of each value.
        later: The same of keys that files of earlier versions may lack.
        cure: What to do about a damaged file, for the error message.

    Raises:
        DamagedError: If it cannot be read, is no JSON object, or lacks a key.
    """
    with naming_damage(path, cure):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise _damaged(path, "it holds no JSON object", cure)
    _check_written(path, content, cure)
    for name in fields or {}:  # in their order, which a difference of sets has not
        if name not in content:
            raise _damaged(path, f"it has no '{name}'", cure)
    for name, check in ({**(fields or {}), **(later or {})}).items():
        if name in content and not check(content[name]):
            raise _damaged(path, f"its '{name}' is not as it was written", cure)
    return content


def write_json(path: Path, content: dict) -> dict:
    """Write a JSON object to a file that is never seen half-written; return it with a checksum."""
    content = content | {_FILE: {"format": _FORMAT, "checksum": _checksum(content)}}
    with atomic_file(path, "w") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
    return content


def _check_written(path, content, cure):
    """Refuse a later format and a changed content; the files of version 0.1 tell neither."""
    if _FILE not in content:
        return
    about = content[_FILE]
    if not isinstance(about, dict) or not {"format", "checksum"} <= about.keys():
        raise _damaged(path, f"its '{_FILE}' is not as it was written", cure)
    if about["format"] != _FORMAT:
        raise DamagedError(
            f"'{path}' has format {about['format']}, and this version of keras_mas reads format "
            f"{_FORMAT}. Use the version that wrote it."
        )
    if about["checksum"] != _checksum(content):
        raise _damaged(path, "its content is not that of its checksum", cure)


def _checksum(content):
    """Return a hash of what is read back of a JSON object, whatever the order of its keys.

    What the object says of its file is left out.
    """
    as_read = json.loads(json.dumps(content))
    as_read.pop(_FILE, None)
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def naming_damage(path: Path, cure: str) -> Iterator[None]:
    """Turn any error in a block that reads a file into a `DamagedError` that names the file.

    Args:
        path: The file.
        cure: What to do about it.
    """
    try:
        yield
    except PermissionError as error:
        raise DamagedError(
            f"'{path}' cannot be read: permission denied. Make it readable, and run the same "
            "command again."
        ) from error
    except OSError as error:
        raise _damaged(path, (error.strerror or str(error)).lower(), cure) from error
    except Exception as error:  # Keras and NumPy have no narrower class for a damaged file
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise _damaged(path, first_line.rstrip("."), cure) from error


def is_number(value: object) -> bool:
    """Return whether a JSON value is a finite number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max  # false for NaN


def is_fraction(value: object) -> bool:
    """Return whether a JSON value is a number from 0 to 1, such as an accuracy."""
    return isinstance(value, int | float) and is_number(value) and 0 <= value <= 1


def is_text(value: object) -> bool:
    """Return whether a JSON value is a string."""
    return isinstance(value, str)


def is_measured_or_not(value: object) -> bool:
    """Return whether a JSON value is an accuracy, or null for one that was not measured."""
    return value is None or is_fraction(value)


def are(check: Check) -> Check:
    """Return a check that a JSON value is a list of values that pass a check."""
    return lambda values: isinstance(values, list) and all(map(check, values))


def maps_to(check: Check) -> Check:
    """Return a check that a JSON value is an object of values that pass a check."""
    return lambda values: isinstance(values, dict) and all(map(check, values.values()))


def is_name(value: object) -> bool:
    """Return whether a JSON value is the name of a stream or a task, which leads to no folder."""
    try:
        check_name(str(value), "task")
    except UsageError:
        return False
    return is_text(value)


def is_size(value: object) -> bool:
    """Return whether a JSON value is a whole number that counts something."""
    return isinstance(value, int) and is_number(value) and value >= 0


def _is_positive_or_zero(value):
    return is_number(value) and value >= 0


def _is_difference_or_null(value):
    """Whether a JSON value is a difference of two accuracies, or null where none was measured."""
    return value is None or (is_number(value) and -1 <= value <= 1)


def _is_text_or_null(value):
    return value is None or is_text(value)


def _is_object(value):
    return isinstance(value, dict)


def _is_setting(value):
    return value is None or is_text(value) or is_number(value)


_RESULT: dict[str, Check] = {
    "stream": is_name,
    "scenario": lambda value: value in SCENARIOS,
    "tasks": lambda value: are(is_name)(value) and bool(value),
    "method": is_text,
    "strength": lambda value: value is None or is_found(value) or _is_positive_or_zero(value),
    "penalty": lambda value: value in (None, *PENALTIES),
    "seed": lambda value: is_size(value) and value in SEEDS,
    "accuracy_matrix": are(are(is_measured_or_not)),
    "average_accuracy": is_measured_or_not,
    "forgetting": _is_difference_or_null,
    "backward_transfer": _is_difference_or_null,
    "forward_transfer": _is_difference_or_null,
    "seconds": maps_to(is_number),
    "recipe": maps_to(_is_setting),
}


def _is_source(value):
    texts = isinstance(value, dict) and all(is_text(value.get(k)) for k in ("tasks", "fingerprint"))
    return texts and value.keys() == _OF_SOURCE and are(is_name)(value["names"])


_OF_SOURCE = {"tasks", "fingerprint", "names", "options"}


def _is_evaluation(value):
    return (
        isinstance(value, dict)
        and all(is_size(value.get(name)) and value[name] for name in ("task", "step", "steps"))
        and are(is_measured_or_not)(value.get("accuracies"))
    )


def _maps(names, check):
    """Return a check that a JSON value is an object with these names, of values that pass one."""
    return lambda value: maps_to(check)(value) and value.keys() >= names


# What earlier versions did not record.
_LATER_IN_RESULT: dict[str, Check] = {
    "data": is_text,
    "evaluated_on": is_text,
    "evaluated_tasks": are(is_name),
    "baseline": are(is_measured_or_not),
    "input_shape": are(is_size),
    "input_dtype": lambda value: value in ("uint8", "float32"),
    "resize": _is_text_or_null,
    "classes": maps_to(are(is_text)),
    "columns": are(is_text),
    "examples": maps_to(_maps({"train", "validation", "test"}, is_size)),
    "files_left_out": is_size,
    "sources": are(_is_source),
    "arguments": _is_object,
    "memory": _maps({"kept_by_method"}, is_size),
    "versions": maps_to(is_text),
    "evaluate_every": is_size,
    "min_accuracy": is_measured_or_not,
    "worst_case_accuracy": is_measured_or_not,
    "evaluations": are(_is_evaluation),
    "cross_entropy": are(is_number),
}


# What follows from the accuracy matrix alone.
_OF_MATRIX = {
    "average_accuracy": metrics.average_accuracy,
    "forgetting": metrics.forgetting,
    "backward_transfer": metrics.backward_transfer,
}

# What follows from it and from the evaluations, and is recorded with them.
_OF_EVALUATIONS = ("min_accuracy", "worst_case_accuracy")


def _contradictions(result):
    """Yield what of a result does not go with the rest of it, though each value may be one."""
    matrix, tasks = result["accuracy_matrix"], len(result["tasks"])
    if not _is_square(matrix, tasks):
        yield "its accuracy matrix has not a row and a column for each task"
    for name, measure in _OF_MATRIX.items():
        if not _is_same(result[name], measure(matrix)):
            yield f"its '{name}' is not that of its accuracy matrix"
    evaluations = result.get("evaluations", [])
    for name in _OF_EVALUATIONS:
        if evaluations and name not in result:
            yield f"it has no '{name}' beside its 'evaluations'"
    for each in evaluations:
        if not each["task"] - 1 <= len(each["accuracies"]) <= tasks or each["task"] > tasks:
            yield "its 'evaluations' are not of its tasks"


def _is_same(recorded, measure):
    """Whether a recorded measure is the one that is computed, but for rounding."""
    if recorded is None or math.isnan(measure):
        return recorded is None and math.isnan(measure)
    return math.isclose(recorded, measure, abs_tol=1e-6)


def _is_square(matrix, size):
    return len(matrix) == size and all(len(row) == size for row in matrix)


def _damaged(path, what, cure):
    return DamagedError(f"'{path}' is damaged: {what}. {cure}")


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a folder that exists, so that no other process works in it within the block.

    Raises:
        InUseError: If another process holds it.
    """
    lock = filelock.FileLock(directory / _LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        raise InUseError(
            f"'{directory}' is in use by {_holder(directory)}. Wait until it has finished, or stop "
            "it; nothing was changed."
        ) from None
    try:
        now = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        write_json(directory / _HOLDER, holder)
        yield
    finally:
        (directory / _HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(directory):
    try:
        holder = json.loads((directory / _HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, LookupError, TypeError):  # it has just begun, or is ending
        return "another process"


def check_content(
    directory: Path, description: dict, files: str = RUN_FILES, *, overwrite: bool = False
) -> None:
    """Refuse a folder that holds anything but the described run.

    Another one of which nothing has been learned is not refused.

    Args:
        directory: As for `claimed`.
        description: As for `claimed`.
        files: As for `claimed`.
        overwrite: As for `claimed`.

    Raises:
        UsageError: If the folder holds anything else.
        DamagedError: If its description cannot be read.
    """
    if (directory / ARGUMENTS).exists() and not overwrite:
        _check_same(directory, description)
        return
    holds_run = False
    for name in _content(directory):
        if re.fullmatch(files, _final_name(name)):
            holds_run |= name == _final_name(name) and name not in (_LOCK, _HOLDER)
        elif not overwrite:
            raise UsageError(
                f"'{directory}' holds something else, such as '{name}'. Choose a new or empty "
                "folder; nothing was changed."
            )
        elif not name.endswith("/"):
            raise UsageError(
                f"'{directory}' is not overwritten, since it holds '{name}', which this command "
                "did not write. Move it elsewhere, or choose another folder; nothing was changed."
            )
    if holds_run and not overwrite:
        raise UsageError(
            f"'{directory}' holds a run whose {ARGUMENTS} is missing, so that it cannot be "
            f"continued. {_REPLACE}; nothing was changed."
        )


def _content(directory):
    """Yield the path of every file and, with "/", of every empty folder below a folder."""
    for folder, folders, files in os.walk(directory):
        folders.sort()
        inside = Path(folder).relative_to(directory)
        links = [name for name in folders if Path(folder, name).is_symlink()]
        yield from ((inside / name).as_posix() for name in sorted([*files, *links]))
        if not folders and not files and inside.parts:
            yield f"{inside.as_posix()}/"


def _final_name(path):
    """Return the path that a file will have when it, or a folder around it, is finished."""
    parts = (_UNFINISHED.fullmatch(part) for part in path.split("/"))
    return "/".join(
        match[1] if match else part for match, part in zip(parts, path.split("/"), strict=True)
    )


_UNFINISHED = re.compile(re.escape(UNFINISHED) + "(.+)-[0-9a-f]{8}")


def _check_same(directory, description):
    # Of a trial it is the trial's folder, which a search makes anew.
    cure = f"Remove '{directory}', or choose another folder, and run the same command again."
    found = read_json(directory / ARGUMENTS, cure=cure)
    differences = _differences(found, description)
    is_ours = _FILE in found
    if differences and (_has_learned(directory) or not is_ours):
        raise UsageError(
            f"'{directory}' holds another run: {'; '.join(differences)}. {_REPLACE}; nothing was "
            "changed."
        )


def _has_learned(directory):
    """Whether a folder holds more than what is there before anything has been learned."""
    before = (ARGUMENTS, START, _LOCK, _HOLDER)
    return any(_final_name(name) not in before for name in _content(directory))


def _differences(found, asked):
    """Describe what differs between two descriptions, in the terms of the command line."""
    asked = _flat(asked)
    found = _brought_up_to_date(_flat(found), asked)
    names = [name for name in asked if found.get(name) != asked[name]]
    told = [name for name in names if name not in _OF_DATA]
    if names and not told:
        return [f"other data in {_tasks_of_other_data(found, asked)}. {_KNOWN_BY}"]
    return [
        f"another version of the {_OF_MODULES[name]}'s module"
        if name in _OF_MODULES
        else f"{_term(name)} {_shown(found.get(name))} instead of {_shown(asked[name])}"
        for name in told
    ]


def _tasks_of_other_data(found, asked):
    """Name the tasks whose data differ, as far as earlier versions recorded them."""
    before, now = (one.get(DATA_OF_TASKS, {}) for one in (found, asked))
    names = [name for name, data in now.items() if before.get(name) != data]
    if not names:
        return "its tasks"
    return f"its task{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _brought_up_to_date(found, asked):
    """Return what an earlier version wrote of a run as this one would write it of the same run."""
    fields = option_fields(Settings) | option_fields(Recipe)
    # A folder that is older than an option holds what is now the option's default.
    defaults = {name: field.default for name, field in fields.items()}
    unknown = {name: asked[name] for name in (*_OF_MODULES, DATA_OF_TASKS) if name in asked}
    # λ or a penalty that makes no difference to a method is None now.
    without = {name: None for name in ("strength", "penalty") if asked.get(name) is None}
    return defaults | unknown | found | without


def _flat(description):
    recipe = description.get("recipe")
    return {**description, **(recipe if isinstance(recipe, dict) else {}), "recipe": None}


def _term(name):
    is_option = name in option_fields(Recipe) or name in option_fields(Settings)
    return flag(name) if is_option else name.replace("_", " ")


def _shown(value):
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _empty(directory):
    """Remove everything but the lock; the description last, so that a crash leaves a run."""
    entries = [path for path in directory.iterdir() if path.name not in (_LOCK, _HOLDER)]
    for path in sorted(entries, key=lambda path: path.name == ARGUMENTS):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
