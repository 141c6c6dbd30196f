"""Streams defined by a TOML file.

    name = "shop"                     # names the results
    scenario = "task"                 # the default; or "domain", "class"
    image_size = 64                   # height and width of images from folders and TFDS
    resize = "crop"                   # the default; or "stretch"

    [[task]]
    name = "flowers"
    tfds = "oxford_flowers102"        # any data set of images or features with labels
    classes = [0, 1]                  # optional: these only, labelled 0, 1 in this order

    [[task]]
    name = "products"
    folder = "photos"                 # train/CLASS/*.jpg, test/CLASS/*.jpg, optional val/…
    classes = ["cup", "plate"]        # by name too

    [[task]]
    name = "scans"
    npz = "scans.npz"                 # x_train y_train x_test y_test, optional x_val y_val

Paths are relative to the file. With `resize = "crop"` the short side of an image is resized to
`image_size` and the middle of the long side is kept; "stretch" resizes both sides and so changes
the aspect ratio. uint8 inputs are pixels, which the model scales by 1/255; floats are not scaled.
Grey images become RGB if other tasks of the stream have RGB images.
"""

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from keras_mas.errors import UsageError

from ..wording import did_you_mean, one_of
from .datasets import read_tfds
from .files import read_folder, read_npz
from .images import RESIZE_MODES, ImageSize
from .inputs import RgbArray
from .source import LoadOptions, Source, make_task
from .stream import Split, Task, TaskStream, check_name, check_scenario, check_task_names

_STREAM_KEYS = {"name": str, "scenario": str, "image_size": int, "resize": str, "task": list}
_SOURCE_KEYS = ("tfds", "npz", "folder")
_TASK_KEYS = {"name": str, "classes": list, **dict.fromkeys(_SOURCE_KEYS, str)}
_WORDS = {str: "a string", int: "a whole number", list: "a list"}


def load_toml(path: Path, options: LoadOptions) -> TaskStream:
    """Load the stream that a TOML file defines.

    The whole file is checked before any data is read.

    Args:
        path: The file.
        options: Seed, validation fraction, where data lie and are kept.

    Returns:
        The stream.

    Raises:
        UsageError: If the file cannot be read or parsed, names something that does not exist, or
            its tasks do not make a stream.
        DataError: If the data is bad or unavailable.
    """
    table = _parse(path)
    entries = _checked_entries(table, path)
    image_size = _image_size(table)

    @cache  # tasks may use different classes of one source
    def read(kind: str, value: str) -> Source:
        match kind:
            case "tfds":
                return read_tfds(value, image_size, options.data_dir, options.store)
            case "npz":
                return read_npz(path.parent / value)
            case _:
                return read_folder(path.parent / value, image_size, options.store)

    tasks = [
        make_task(entry.name, read(entry.kind, entry.value), entry.classes, options)
        for entry in entries
    ]
    return TaskStream(
        name=table["name"],
        scenario=table.get("scenario", "task"),
        tasks=_with_equal_channels(tasks),
        rescale=(1 / 255, 0.0) if tasks[0].train.dtype == np.uint8 else (1.0, 0.0),
    )


@dataclass(frozen=True)
class _Entry:
    """One valid [[task]]; `kind` is the key of its source, and `value` the key's value."""

    name: str
    kind: str
    value: str
    classes: list[int | str] | None


def _parse(path):
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError as error:
        raise UsageError(
            f"Expected a TOML file of tasks. Received: '{path}', which does not exist."
        ) from error
    except OSError as error:
        raise UsageError(f"Expected a readable TOML file. Received: '{path}' ({error}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"Expected valid TOML. Received: '{path}' ({error}).") from error


def _checked_entries(table, path) -> list[_Entry]:
    where = f"'{path}'"
    if isinstance(table.get("task"), dict):
        raise UsageError(
            f"Expected tasks as [[task]], with double brackets. Received: [task] in {where}."
        )
    _check_keys(table, _STREAM_KEYS, ("name", "task"), where)
    check_name(table["name"], "stream", where)
    check_scenario(table.get("scenario", "task"))
    if table.get("image_size", 1) < 1:
        raise UsageError(
            f"Expected an image_size of at least 1. Received: {table['image_size']} in {where}."
        )
    if table.get("resize", "crop") not in RESIZE_MODES:
        raise UsageError(
            f"Expected resize to be one of {one_of(RESIZE_MODES)}. Received: {table['resize']!r} "
            f"in {where}.{did_you_mean(table['resize'], RESIZE_MODES)}"
        )
    if "resize" in table and "image_size" not in table:
        raise UsageError(
            f"Expected `image_size` beside `resize`. Received: none in {where}. Add the height and "
            "width of the resized images, for example image_size = 64."
        )
    entries = [
        _checked_entry(task, path, f"[[task]] number {number} of {where}")
        for number, task in enumerate(table["task"], start=1)
    ]
    check_task_names(entry.name for entry in entries)
    return entries


def _image_size(table) -> ImageSize | None:
    if "image_size" not in table:
        return None
    return ImageSize(table["image_size"], table.get("resize", "crop"))


def _checked_entry(task, path, where) -> _Entry:
    if not isinstance(task, dict):
        raise UsageError(f"Expected a table. Received: {task!r} as {where}.")
    _check_keys(task, _TASK_KEYS, ("name",), where)
    check_name(task["name"], "task", where)
    kinds = [key for key in _SOURCE_KEYS if key in task]
    if len(kinds) != 1:
        raise UsageError(
            f"Expected exactly one source among the keys {one_of(_SOURCE_KEYS)}. Received: "
            f"{one_of(kinds) or 'none'} in {where}."
        )
    kind = kinds[0]
    _check_exists(kind, path.parent / task[kind], where)
    for choice in task.get("classes", []):
        _check_type("classes", choice, (int, str), "whole numbers or strings", where)
    return _Entry(task["name"], kind, task[kind], task.get("classes"))


def _check_keys(table, types, required, where):
    for key, value in table.items():
        if key not in types:
            raise UsageError(
                f"Expected only the keys {one_of(types)}. Received: {key!r} in {where}."
                f"{did_you_mean(key, types)}"
            )
        _check_type(key, value, types[key], _WORDS[types[key]], where)
    for key in required:
        if key not in table:
            raise UsageError(f"Expected the key {key!r}. Received: none in {where}. Add it.")


def _check_type(key, value, types, words, where):
    # bool is a subclass of int.
    if not isinstance(value, types) or isinstance(value, bool):
        raise UsageError(f"Expected {words} for the key {key!r}. Received: {value!r} in {where}.")


def _check_exists(kind, path, where):
    exists = {"tfds": lambda: True, "npz": path.is_file, "folder": path.is_dir}[kind]
    if not exists():
        raise UsageError(
            f"Expected {'a folder' if kind == 'folder' else 'an .npz file'} at '{path}'. Received: "
            f"none, for {where}. Paths are relative to the TOML file."
        )


def _with_equal_channels(tasks) -> tuple[Task, ...]:
    """Repeat the channel of grey images three times if other tasks have RGB images."""
    channels = {task.input_shape[-1] if len(task.input_shape) == 3 else None for task in tasks}
    if channels != {1, 3}:
        return tuple(tasks)
    return tuple(_to_rgb(task) if task.input_shape[-1] == 1 else task for task in tasks)


def _to_rgb(task):
    return replace(
        task,
        **{
            role: Split(RgbArray(split.source), split.labels, split.rows)
            for role, split in task.splits.items()
        },
    )
