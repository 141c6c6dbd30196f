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

    [[task]]
    name = "march"
    csv = "march.csv"                 # or parquet: columns with a header
    label = "bought"                  # the column of the classes
    test_fraction = 0.2               # or test = "a second file", or split = "column of train/test"
    features = ["age", "city"]        # optional: these columns only
    categories = ["city"]             # optional: numbers that are categories; text always is

In place of [[task]] tables, one source may be divided into tasks of equally many classes:

    name = "objects"
    tfds = "cifar100"                 # or npz, folder, csv, parquet
    tasks = 10                        # ten groups of ten classes, in the order of their labels
    class_order_seed = 3              # optional: in a random order
    test_fraction = 0.2               # optional, for a TFDS set without test data

Keys from `label` on may stand above the first [[task]], and are then those of all tasks.
`tables.read_tables` says what a network gets of a column; a stream of tables has no other tasks.

Paths are relative to the file. With `resize = "crop"` the short side of an image is resized to
`image_size` and the middle of the long side is kept; "stretch" resizes both sides and so changes
the aspect ratio. uint8 inputs are pixels, which the model scales by 1/255; floats are not scaled.
Grey images become RGB if other tasks of the stream have RGB images.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from keras_mas.errors import UsageError

from ..load_options import LoadOptions
from ..wording import did_you_mean, one_of
from .changes import Rgb
from .datasets import read_tfds
from .files import file_identity, read_folder, read_npz
from .groups import class_groups, tasks_of_groups
from .images import RESIZE_MODES, ImageSize
from .source import Source, make_task
from .stream import Task, TaskStream, check_name, check_scenario, check_task_names
from .tables import TableFile, read_tables

_TABLE_KEYS = {
    "label": str,
    "test": str,
    "test_fraction": float,
    "split": str,
    "features": list,
    "categories": list,
}
# What may stand beside the key of each kind of source.
_KEYS_OF_KIND: dict[str, dict[str, type]] = {
    "tfds": {"test_fraction": float},
    "npz": {},
    "folder": {},
    "csv": _TABLE_KEYS,
    "parquet": _TABLE_KEYS,
}
_KINDS = tuple(_KEYS_OF_KIND)
_SOURCE_KEYS = {**dict.fromkeys(_KINDS, str), **_TABLE_KEYS}
_COMMON_KEYS = {"name": str, "scenario": str, "image_size": int, "resize": str}
_STREAM_KEYS = {**_COMMON_KEYS, **_TABLE_KEYS, "task": list}
_DIVIDED_KEYS = {**_COMMON_KEYS, **_SOURCE_KEYS, "tasks": int, "class_order_seed": int}
_TASK_KEYS = {"name": str, "classes": list, **_SOURCE_KEYS}
_WORDS = {str: "a string", int: "a whole number", float: "a number", list: "a list"}


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
            its tasks do not make a stream, such as a class-incremental one of which two tasks have
            the same class of one source.
        DataError: If the data is bad or unavailable.
    """
    table, entries, size = _checked(path)
    sources, rescale, columns = _read(entries, path, size, options)
    usual = table.get("scenario", "task")
    scenario = options.scenario or usual
    tasks = _tasks(table, path, entries, sources, options)
    if scenario == "class" and "task" in table:
        _check_disjoint_classes(entries, tasks, path)
    return TaskStream(
        name=table["name"],
        scenario=scenario,
        tasks=tasks,
        rescale=rescale,
        usual_scenario=usual,
        columns=columns,
        resize=size.mode if size else None,
    )


def check_toml(path: Path) -> None:
    """Check the whole of a TOML file, and read no data.

    Args:
        path: The file.

    Raises:
        UsageError: If the file cannot be read or parsed, or names something that does not exist.
    """
    _checked(path)


def _checked(path):
    """Return the table of a file, its entries, and the size of its images."""
    table = _parse(path)
    return table, _checked_entries(table, path), _image_size(table)


def _read(entries, path, image_size, options):
    """Return the source of every entry, the stream's `rescale`, and the columns of tables."""
    wanted = [entry.source for entry in entries]
    distinct = list(dict.fromkeys(wanted))  # tasks may use different classes of one source
    if isinstance(distinct[0], TableFile):
        tables = read_tables(distinct, options.encoding)
        found, rescale, columns = tables.sources, tables.rescale, tables.columns
    else:
        found = [_read_source(source, path, image_size, options) for source in distinct]
        rescale = (1 / 255, 0.0) if found[0].train.dtype == np.uint8 else (1.0, 0.0)
        columns = ()
    sources = dict(zip(distinct, _with_equal_channels(found), strict=True))
    return [sources[source] for source in wanted], rescale, columns


def _read_source(source, path, image_size, options) -> Source:
    match source.kind:
        case "tfds":
            return read_tfds(
                source.value, image_size, options.data_dir, options.store, source.test_fraction
            )
        case "npz":
            return read_npz(path.parent / source.value)
        case _:
            return read_folder(path.parent / source.value, image_size, options.store)


def _tasks(table, path, entries, sources, options) -> tuple[Task, ...]:
    if "task" in table:
        pairs = zip(entries, sources, strict=True)
        return tuple(make_task(e.name, source, e.classes, options) for e, source in pairs)
    [source] = sources
    order = table.get("class_order_seed")
    groups = class_groups(len(source.classes), table["tasks"], f"'{path}'", order)
    return tasks_of_groups(source, groups, options)


def _check_disjoint_classes(entries, tasks, path):
    """Refuse a class of which two tasks would each make one: the one head would tell it apart."""
    first: dict[tuple, Task] = {}
    for entry, task in zip(entries, tasks, strict=True):
        origin = _origin(entry.source, path.parent)
        for name in task.classes:
            other = first.setdefault((origin, name), task)
            if other is not task:
                raise UsageError(
                    "Expected each class of a source in one task only, for one head that tells all "
                    f"classes apart. Received: class '{name}' in the tasks '{other.name}' and "
                    f"'{task.name}', which have the same source, in '{path}'. Choose classes with "
                    'the key `classes`, or use scenario = "task" (`--scenario task`).'
                )


def _origin(source, folder):
    """Return what two sources have in common if their classes are the same ones."""
    if isinstance(source, TableFile):
        return file_identity(source.path), source.label
    if source.kind == "tfds":
        return source.value.partition(":")[0]  # a data set has the same classes in all versions
    return file_identity(folder / source.value)


@dataclass(frozen=True)
class _SourceEntry:
    """A valid source that is no table; `kind` is its key, and `value` the key's value."""

    kind: str
    value: str
    test_fraction: float | None


@dataclass(frozen=True)
class _Entry:
    """One valid [[task]], or the source that all tasks are of."""

    name: str
    source: _SourceEntry | TableFile
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
    except RecursionError as error:
        raise UsageError(
            f"Expected valid TOML. Received: '{path}', whose brackets are nested too deeply to be "
            "read. Write lists and tables as the keys need them."
        ) from error


def _checked_entries(table, path) -> list[_Entry]:
    where = f"'{path}'"
    if isinstance(table.get("task"), dict):
        raise UsageError(
            f"Expected tasks as [[task]], with double brackets. Received: [task] in {where}."
        )
    _check_stream_keys(table, where)
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
    if "task" not in table:
        if table.get("class_order_seed", 0) < 0:
            raise UsageError(
                "Expected a class_order_seed of at least 0. Received: "
                f"{table['class_order_seed']} in {where}."
            )
        return [_Entry(table["name"], _checked_source(table, path, where), None)]
    common = {key: value for key, value in table.items() if key in _TABLE_KEYS}
    entries = [
        _checked_entry(task, common, path, f"[[task]] number {number} of {where}")
        for number, task in enumerate(table["task"], start=1)
    ]
    check_task_names(entry.name for entry in entries)
    kinds = {isinstance(entry.source, TableFile) for entry in entries}
    if common and True not in kinds:
        needs_fraction = "test_fraction" in common and any("tfds" in task for task in table["task"])
        cure = "Move `test_fraction` into the [[task]] that needs it." if needs_fraction else ""
        raise UsageError(
            f"Expected {one_of(common)} beside a table. Received: no `csv` and no `parquet` in "
            f"{where}. {cure or 'Remove the key.'}"
        )
    if len(kinds) > 1:
        raise UsageError(
            "Expected tables in all tasks or in none, for one network. Received: both in "
            f"{where}. Make two streams of them."
        )
    return entries


def _image_size(table) -> ImageSize | None:
    if "image_size" not in table:
        return None
    return ImageSize(table["image_size"], table.get("resize", "crop"))


def _checked_entry(task, common, path, where) -> _Entry:
    if not isinstance(task, dict):
        raise UsageError(f"Expected a table. Received: {task!r} as {where}.")
    _check_keys(task, _TASK_KEYS, ("name",), where)
    check_name(task["name"], "task", where)
    is_table = not task.keys().isdisjoint(("csv", "parquet"))
    source = _checked_source({**common, **task} if is_table else task, path, where)
    for choice in task.get("classes", []):
        _check_type("classes", choice, (int, str), "whole numbers or strings", where)
    return _Entry(task["name"], source, task.get("classes"))


def _checked_source(table, path, where) -> _SourceEntry | TableFile:
    kinds = [key for key in _KINDS if key in table]
    if len(kinds) != 1:
        raise UsageError(
            f"Expected exactly one source among the keys {one_of(_KINDS)}. Received: "
            f"{one_of(kinds) or 'none'} in {where}."
        )
    [kind] = kinds
    for key in table:
        if key in _TABLE_KEYS and key not in _KEYS_OF_KIND[kind]:
            raise UsageError(
                f"Expected no {key!r} beside {kind!r}. Received: {table[key]!r} in {where}. "
                "Remove it."
            )
    _check_exists(kind, path.parent / table[kind], where)
    fraction = table.get("test_fraction")
    if fraction is not None and not 0 < fraction < 1:
        raise UsageError(
            "Expected a test_fraction between 0 and 1, both excluded. Received: "
            f"{fraction} in {where}."
        )
    if _KEYS_OF_KIND[kind] is _TABLE_KEYS:
        return _checked_table(table, path.parent, kind, where)
    return _SourceEntry(kind, table[kind], fraction)


def _checked_table(table, folder, kind, where) -> TableFile:
    if "label" not in table:
        raise UsageError(f"Expected the key 'label'. Received: none in {where}. Add it.")
    given = [key for key in ("test", "test_fraction", "split") if key in table]
    if len(given) != 1:
        raise UsageError(
            "Expected exactly one of the keys 'test', 'test_fraction', 'split', which says what is "
            f"test data. Received: {one_of(given) or 'none'} in {where}."
        )
    for key in ("features", "categories"):
        for column in table.get(key, []):
            _check_type(key, column, str, "names of columns", where)
    if "test" in table:
        _check_exists(kind, folder / table["test"], where)
    return TableFile(
        path=folder / table[kind],
        label=table["label"],
        is_parquet=kind == "parquet",
        features=tuple(table["features"]) if "features" in table else None,
        categories=tuple(table.get("categories", ())),
        test=folder / table["test"] if "test" in table else None,
        test_fraction=table.get("test_fraction"),
        split=table.get("split"),
    )


def _check_stream_keys(table, where):
    """Check the keys of the whole file: with [[task]] tables, or with one source and `tasks`."""
    if "task" in table or table.keys().isdisjoint(_KINDS):
        _check_keys(table, _STREAM_KEYS, ("name", "task"), where)
    else:
        _check_keys(table, _DIVIDED_KEYS, ("name", "tasks"), where)


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
    if types is float:
        types = (int, float)
    if not isinstance(value, types) or isinstance(value, bool):
        raise UsageError(f"Expected {words} for the key {key!r}. Received: {value!r} in {where}.")


def _check_exists(kind, path, where):
    if kind == "tfds":
        return
    try:
        found, reason = path.is_dir() if kind == "folder" else path.is_file(), ""
    except OSError as error:  # such as a name that is too long
        found, reason = False, f" ({error.strerror})"
    if not found:
        what = {"folder": "a folder", "npz": "an .npz file"}.get(kind, "a table")
        raise UsageError(
            f"Expected {what} at '{path}'. Received: none{reason}, for {where}. Paths are relative "
            "to the TOML file."
        )


def _with_equal_channels(sources: list[Source]) -> list[Source]:
    """Repeat the channel of grey images three times if other tasks have RGB images."""
    channels = [_channels(source) for source in sources]
    if set(channels) != {1, 3}:
        return sources
    pairs = zip(sources, channels, strict=True)
    return [source.changed(Rgb()) if found == 1 else source for source, found in pairs]


def _channels(source):
    shape = source.train.input_shape
    return shape[-1] if len(shape) == 3 else None
