"""Tables: CSV and Parquet files of which columns are features and one is the label."""

import csv
import decimal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from keras_mas.errors import UsageError

from ..available_memory import require_memory
from ..wording import did_you_mean, one_of
from .errors import DataError
from .files import file_identity
from .source import VALIDATION_NAMES, Source, divided
from .stream import Rescale, Split

# A text column with more values is a name or a number of its row, which says nothing of others.
MOST_CATEGORIES = 1000

# A column of more values, most of them in one row only, is likely to be such a one.
_FEW_CATEGORIES = 20

# Float32 holds seven digits: of a mean so many times the deviation, too few are left for what
# differs from row to row.
_LARGEST_MEAN = 10**4

# Float32 ends near 1e-38 and 1e38, and so does what it can be scaled by; numbers of a column may be
# much smaller or larger than their deviation.
_SMALLEST_DEVIATION, _LARGEST_DEVIATION = 1e-30, 1e30

# Tells numbers apart that float64 rounds to one.
_EXACT = decimal.Context(prec=1000, traps=[])


@dataclass(frozen=True)
class TableFile:
    """A table on disk, and what its columns mean.

    Just one of `test`, `test_fraction` and `split` says what is test data.

    Attributes:
        path: The file.
        label: Column of the classes.
        is_parquet: Whether it is a Parquet file, not a CSV file: UTF-8, commas, a header.
        features: Columns of the inputs; None for all but those of the label and the split.
        categories: Columns that are categories although they hold numbers.
        test: A second file of the same columns.
        test_fraction: Share of each class that becomes test data, between 0 and 1.
        split: Column that says "train", "test" or "validation" ("val") of every row.

    Raises:
        UsageError: If `features` or `categories` names the label or the split, or a column twice.
    """

    path: Path
    label: str
    is_parquet: bool = False
    features: tuple[str, ...] | None = None
    categories: tuple[str, ...] = ()
    test: Path | None = None
    test_fraction: float | None = None
    split: str | None = None

    def __post_init__(self):
        for key, columns in (("features", self.features or ()), ("categories", self.categories)):
            self._check_columns(key, columns)

    def _check_columns(self, key, columns):
        for name in columns:
            if name in (self.label, self.split):
                what = "the label" if name == self.label else "the split"
                raise UsageError(
                    f"Expected `{key}` without {what}, which no input may tell. Received: "
                    f"'{name}' for '{self.path}'. Remove it from the key `{key}`."
                )
            if columns.count(name) > 1:
                raise UsageError(
                    f"Expected each column once in `{key}`. Received: '{name}' more than once "
                    f"for '{self.path}'. Name it once."
                )


@dataclass(frozen=True)
class Encoding:
    """What a network takes of tables, which a run that goes on from another one keeps.

    Attributes:
        columns: What the D inputs are: `"age"`, `"city=Bonn"`.
        rescale: As for `Encoded`.
    """

    columns: tuple[str, ...]
    rescale: Rescale

    @property
    def of_columns(self) -> dict[str, "_Numbers | _Categories"]:
        """How each column of a table becomes inputs, in their order."""
        inputs = zip(self.columns, *self.rescale, strict=True)  # type: ignore[arg-type]
        numbers: dict[str, tuple[float, float]] = {}
        values: dict[str, list[str]] = {}
        for name, scale, offset in inputs:
            column, is_category, value = name.partition("=")
            # Earlier versions took numbers with such a name; measurements have a deviation.
            if is_category and (scale, offset) == (1.0, 0.0):
                values.setdefault(column, []).append(value)
                numbers.setdefault(column, (1.0, 0.0))
            else:
                numbers[name] = scale, offset
        return {
            name: _Categories(name, np.array(values[name]), others_are_refused=True)
            if name in values
            else _Numbers(name, *scaling)
            for name, scaling in numbers.items()
        }


@dataclass(frozen=True)
class Encoded:
    """Tables as sources of one encoding.

    Attributes:
        sources: A source for each table: float32 inputs `[N, D]`, the numbers as they are, and 0 or
            1 for each category.
        columns: What the D inputs are: `"age"`, `"city=Bonn"`.
        rescale: `(scale, offset)`, `[D]` each, that bring the numbers to mean 0 and deviation 1.
    """

    sources: list[Source]
    columns: tuple[str, ...]
    rescale: Rescale


def read_tables(files: Sequence[TableFile], encoding: Encoding | None = None) -> Encoded:
    """Read the tables of a stream and encode them alike, for one network.

    A column of numbers is one input. A column of text, or one out of `categories`, is an input for
    each value that occurs in a training row, 1 where it is the row's and else 0; a value that
    occurs only in other rows has zeros. Mean and deviation of the numbers and the categories are
    those of the training rows of all tables together.

    Args:
        files: At least one, all with the same features.
        encoding: That of tables which the network has learned already, in the place of one that is
            made of these; other columns and other categories are then refused.

    Returns:
        The sources, and what their inputs are.

    Raises:
        UsageError: If a column does not exist, or tables have different features.
        DataError: If a file cannot be read, has no rows, has two columns of one name, is trained
            and tested on, the name of a feature holds "=", a cell is empty or no finite number in a
            column of numbers, labels are numbers that are not whole, or a label occurs in no
            training row.
    """
    tables = [_read(file) for file in files]
    features = _common_features(files, tables)
    if encoding is None:
        _check_names(features, files[0].path)
        training = [rows["train"] for rows in tables]
        columns = [_column(name, files, training) for name in features]
    else:
        columns = _known_columns(encoding, features, files)
    names = tuple(name for column in columns for name in column.names)
    count = sum(len(rows.numbers) for parts in tables for rows in parts.values())
    require_memory(
        4 * count * len(names),
        f"{count:,} rows of {len(names):,} inputs",
        "Use fewer columns with the key `features`.",
    )
    scale, offset = (np.concatenate([getattr(c, key) for c in columns]) for key in _SCALING)
    return Encoded(
        [_source(file, parts, columns) for file, parts in zip(files, tables, strict=True)],
        names,
        (scale.tolist(), offset.tolist()),
    )


_SCALING = ("scale", "offset")


@dataclass(frozen=True)
class _Rows:
    """Some rows of a file.

    Attributes:
        path: The file.
        is_parquet: As for `TableFile`.
        table: Its content, a `pyarrow.Table`; all cells of a CSV file are text.
        numbers: Numbers of the rows, from 0, in the order in which they are used.
    """

    path: Path
    is_parquet: bool
    table: Any
    numbers: np.ndarray

    def cells(self, column: str) -> np.ndarray:
        """Return a column's cells `[n]`: numbers, or texts as objects, with None where missing."""
        return self.table.column(column).to_numpy()[self.numbers]

    @property
    def whole_file(self) -> "_Rows":
        """All rows of the file, in its order."""
        return replace(self, numbers=np.arange(self.table.num_rows))

    def place(self, position: int, column: str) -> str:
        """Return where a cell stands, for an error message."""
        number = self.numbers[position]
        if self.is_parquet:
            return f"column '{column}' of row {number + 1} of '{self.path}'"
        return f"column '{column}' of line {_line(self.path, number)} of '{self.path}'"


def _read(file: TableFile) -> dict[str, _Rows]:
    """Return the rows of each split, by its name."""
    rows = _all_rows(file.path, file)
    labels = _labels(rows, file)
    _check_classes(labels, rows, file.label)
    if file.test is not None:
        _check_other_file(file)
        return {"train": rows, "test": _all_rows(file.test, file)}
    if file.test_fraction is not None:
        by_class = np.unique(labels, return_inverse=True)[1]
        train, test = divided(Split(rows.numbers[:, np.newaxis], by_class), file.test_fraction)
        parts = {"train": train.rows, "test": test.rows}
    else:
        parts = _by_column(rows, file.split)
    return {role: replace(rows, numbers=numbers) for role, numbers in parts.items()}


def _check_other_file(file):
    """Refuse to test on the rows that are trained on."""
    if file_identity(file.test) == file_identity(file.path):
        raise DataError(
            f"Expected different files for training and test. Received: '{file.test}' as `test`, "
            f"which is the same file as '{file.path}'. Name another one, or use the key "
            "`test_fraction`."
        )


def _all_rows(path, file):
    table = _read_parquet(path) if file.is_parquet else _read_csv(path)
    names = table.column_names
    _check_columns(names, file, path)
    used = [file.label, *_features(names, file)]
    _check_types(table, used, path)
    if not table.num_rows:
        raise DataError(f"Expected rows below the header. Received: none in '{path}'. Add some.")
    rows = _Rows(path, file.is_parquet, table, np.arange(table.num_rows))
    _check_none_missing(rows, used)
    return rows


def _check_columns(names, file, path):
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"Expected columns of different names. Received: {one_of(twice)} more than once in "
            f"'{path}'. Rename all but one."
        )
    split = [file.split] if file.split is not None and path == file.path else []
    for name in (file.label, *split, *(file.features or ()), *file.categories):
        if name not in names:
            raise UsageError(
                f"Expected the name of a column: {one_of(names)}. Received: {name!r} for "
                f"'{path}'.{did_you_mean(name, names)}"
            )


def _features(names, file) -> list[str]:
    """Return the features of a table with columns of these names."""
    if file.features is not None:
        return list(file.features)
    return [name for name in names if name not in (file.label, file.split)]


def _check_types(table, columns, path):
    """Refuse columns of a Parquet file whose cells are neither one number nor one text."""
    for name in columns:
        kind = table.schema.field(name).type
        if not _is_single(kind):
            raise DataError(
                "Expected columns of numbers, texts, dates or true and false. Received: column "
                f"'{name}' of type {kind} in '{path}'. Leave it out with the key `features`, or "
                "make columns of one number or text of it."
            )


def _is_single(kind):
    from pyarrow import types

    if types.is_dictionary(kind):  # a text column, each text of which is stored once
        return _is_single(kind.value_type)
    known = (types.is_primitive, types.is_decimal, types.is_null)
    texts = (types.is_string, types.is_large_string, types.is_string_view)
    return any(is_kind(kind) for is_kind in (*known, *texts))


def _read_parquet(path):
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"Expected a Parquet file. Received: '{path}' ({_first_line(error)}). Write it again."
        ) from error


def _read_csv(path):
    import pyarrow
    from pyarrow import csv as arrow_csv

    names = _header(path)
    try:
        return arrow_csv.read_csv(
            path,
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pyarrow.string())
            ),
        )
    except (pyarrow.ArrowException, OSError) as error:
        for line, cells in _lines(path):
            if len(cells) != len(names):
                raise DataError(
                    f"Expected {len(names)} cells in every line, as in the header. Received: "
                    f"{len(cells)} in line {line} of '{path}'. Quote cells that hold a comma."
                ) from error
        raise _no_csv(path, error) from error


def _header(path):
    _, names = next(_lines(path), (0, []))
    if not names:
        raise DataError(
            f"Expected a header with the names of the columns. Received: nothing in '{path}'. Add "
            "it as the first line."
        )
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(names) == 1 and separator in names[0]:
            raise DataError(
                f"Expected commas between cells. Received: {word} in the header of '{path}'. Save "
                "it with commas."
            )
    return names


def _lines(path) -> Iterator[tuple[int, list[str]]]:
    """Yield every line that is not empty, split into cells, with the number that it ends on."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for cells in reader:
                if cells:
                    yield reader.line_num, cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise _no_csv(path, error) from error


def _line(path, number):
    """Return the line that a row, counted from 0, ends on; the header is the first row."""
    return next(line for index, (line, _) in enumerate(_lines(path), -1) if index == number)


def _no_csv(path, error):
    return DataError(
        f"Expected a CSV file: UTF-8, commas between cells. Received: '{path}' "
        f"({_first_line(error)}). Save it in this form."
    )


def _labels(rows, file) -> np.ndarray:
    """Return the labels `[n]` as texts."""
    return rows.cells(file.label).astype(str)


def _check_classes(labels, rows, column):
    """Refuse a column of measurements, each of which would be a class."""
    names, positions = np.unique(labels, return_index=True)
    values = np.array([_number(name) for name in names])
    broken = np.flatnonzero(values != np.rint(values))
    if np.isfinite(values).all() and broken.size:
        position = positions[broken].min()
        raise DataError(
            "Expected classes as labels, text or whole numbers. Received: "
            f"{labels[position]} in {rows.place(position, column)}. Name another column with the "
            "key `label`, or write the class into this one, such as 'low' and 'high'."
        )


def _check_none_missing(rows, columns):
    missing = {column: np.flatnonzero(_is_missing(rows.cells(column))) for column in columns}
    missing = {column: positions for column, positions in missing.items() if positions.size}
    if missing:
        column = min(missing, key=lambda column: missing[column][0])
        count = sum(positions.size for positions in missing.values())
        raise DataError(
            f"Expected a value in every cell. Received: none in "
            f"{rows.place(missing[column][0], column)}{_and_more(count)}. Fill what is empty, or "
            "remove the row."
        )


def _is_missing(cells) -> np.ndarray:
    if cells.dtype.kind == "f":
        return np.isnan(cells)
    if cells.dtype.kind in "mM":
        return np.isnat(cells)
    if cells.dtype == object:
        texts = (cell.strip() if isinstance(cell, str) else cell for cell in cells)
        return np.array([text in (None, "") for text in texts])
    return np.zeros(len(cells), bool)


def _and_more(count):
    """Return how many of some cells are not named, for an error message; empty if it is none."""
    return f" and {count - 1:,} more" if count > 1 else ""


def _by_column(rows, column) -> dict[str, np.ndarray]:
    names = {"train": "train", "test": "test", **dict.fromkeys(VALIDATION_NAMES, "validation")}
    cells = rows.cells(column)
    for position, cell in enumerate(cells):
        if cell not in names:
            raise DataError(
                f"Expected one of {one_of(names)}. Received: {cell!r} in "
                f"{rows.place(position, column)}. Correct the cell."
            )
    roles = np.array([names[cell] for cell in cells])
    for role in ("train", "test"):
        if role not in roles:
            raise DataError(
                f"Expected rows of 'train' and 'test'. Received: none of {role!r} in column "
                f"'{column}' of '{rows.path}'. Add some."
            )
    return {
        role: rows.numbers[roles == role] for role in dict.fromkeys(names.values()) if role in roles
    }


def _common_features(files, tables) -> list[str]:
    """Return the features of all tables, in the order of the first."""
    found = []
    for file, parts in zip(files, tables, strict=True):
        for rows in parts.values():
            found.append((rows.path, _features(rows.table.column_names, file)))
    (first_path, first), *others = found
    for path, features in others:
        different = sorted(set(first) ^ set(features))
        if different:
            raise UsageError(
                "Expected the same features in all tables, for one network. Received: "
                f"{one_of(different)} in only one of '{first_path}' and '{path}'. Name those to "
                "use with the key `features`."
            )
    if not first:
        raise UsageError(
            f"Expected columns besides the label. Received: none in '{first_path}'. Add features."
        )
    return first


def _check_names(features, path):
    """Refuse a name that a run which goes on would read as a column and one of its categories."""
    for name in features:
        if "=" in name:
            raise DataError(
                "Expected names of columns without '=', which stands before the category in the "
                f"name of an input. Received: '{name}' in '{path}'. Rename the column, or leave it "
                "out with the key `features`."
            )


def _known_columns(encoding, features, files):
    """Return the columns that a network has learned, if tables have these and no others."""
    known, path = encoding.of_columns, files[0].path
    missing = [name for name in known if name not in features]
    if missing:
        raise UsageError(
            f"Expected the columns that the network has learned. Received: no {one_of(missing)} in "
            f"'{path}'.{did_you_mean(missing[0], features)} Add what is missing, with its values."
        )
    more = [name for name in features if name not in known]
    if more:
        raise UsageError(
            "Expected only columns that the network has learned. Received: also "
            f"{one_of(more)} in '{path}'. Name those to use with the key `features`."
        )
    for file in files:
        for name in file.categories:
            if isinstance(known.get(name), _Numbers):
                raise UsageError(
                    f"Expected '{name}' to be numbers, as the network has learned them. Received: "
                    f"`categories` that name it for '{file.path}'. Take it out of this key."
                )
    return list(known.values())


class _Numbers:
    """A column of numbers: one input.

    Args:
        name: The column.
        scale: 1 / deviation.
        offset: −mean / deviation.

    Attributes:
        names: What the inputs are.
        scale: As given, `[1]`.
        offset: As given, `[1]`.
    """

    def __init__(self, name: str, scale: float, offset: float):
        self.name, self.names = name, [name]
        self.scale, self.offset = np.array([scale]), np.array([offset])

    @classmethod
    def learned(cls, name: str, training: Sequence[_Rows]) -> Self:
        """Return the encoding that brings training rows to mean 0 and deviation 1."""
        values = np.concatenate([_numbers_in(name, rows) for rows in training])
        if not _differ(values, name, training):
            return cls(name, 1.0, -values[0])
        _check_precision(values, f"column '{name}' of '{training[0].path}'")
        scale = 1 / values.std()
        return cls(name, scale, -values.mean() * scale)

    def inputs(self, rows: _Rows) -> np.ndarray:
        """Return the numbers `[n, 1]`."""
        return _numbers_in(self.name, rows)[:, np.newaxis]


def _differ(values, column, training):
    """Return whether the cells are different numbers, even if they are one in float64."""
    if values.min() != values.max():
        return True
    cells = (cell for rows in training for cell in set(rows.cells(column).tolist()))
    return len({_EXACT.create_decimal(str(cell).strip()) for cell in cells}) > 1


def _check_precision(values, where):
    """Refuse numbers of which too little is left when float32 brings them to deviation 1."""
    mean, deviation = values.mean(), values.std()
    lowest, highest = values.min(), values.max()
    if lowest != highest and not _SMALLEST_DEVIATION <= deviation <= _LARGEST_DEVIATION:
        raise DataError(
            f"Expected numbers of a deviation between {_SMALLEST_DEVIATION:g} and "
            f"{_LARGEST_DEVIATION:g}, which float32 can bring to 1. Received: numbers from "
            f"{lowest:g} to {highest:g} in {where}. Use another unit."
        )
    if abs(mean) >= _LARGEST_MEAN * deviation:
        raise DataError(
            "Expected numbers that differ by more than their rounding to 7 digits. Received: "
            f"mean {mean:g} and deviation {deviation:g} in {where}. Subtract a constant, such as "
            "the smallest number."
        )


def _numbers_in(column, rows):
    values = _as_numbers(rows.cells(column))
    if _not_finite(values).any():
        raise _no_number(column, rows.whole_file)
    return values


def _not_finite(values):
    with np.errstate(over="ignore"):
        return ~np.isfinite(values.astype(np.float32))


def _no_number(column, rows):
    cells = rows.cells(column)
    wrong = np.flatnonzero(_not_finite(_as_numbers(cells)))
    return DataError(
        f"Expected a finite number. Received: {str(cells[wrong[0]])!r} in "
        f"{rows.place(wrong[0], column)}{_and_more(wrong.size)}. Correct or remove the row, or, if "
        "the column holds no numbers, name it with the key `categories`."
    )


class _Categories:
    """A column of categories: an input for each; other attributes as for `_Numbers`, `[C]`.

    Args:
        name: The column.
        values: The categories.
        others_are_refused: Whether rows with another one are; their inputs are 0 otherwise.
    """

    def __init__(self, name: str, values: np.ndarray, *, others_are_refused: bool = False):
        self.name, self.values = name, values
        self.others_are_refused = others_are_refused
        self.names = [f"{name}={value}" for value in values]
        self.scale, self.offset = np.ones(len(values)), np.zeros(len(values))

    @classmethod
    def learned(cls, name: str, training: Sequence[_Rows]) -> Self:
        """Return the encoding with an input for each value of training rows."""
        texts = [rows.cells(name).astype(str) for rows in training]
        together = np.concatenate(texts)
        values = np.unique(together)
        if len(values) > MOST_CATEGORIES:
            raise DataError(
                f"Expected at most {MOST_CATEGORIES} different values in a column of categories. "
                f"Received: {len(values)} in column '{name}' of '{training[0].path}'. Leave "
                "it out with the key `features`."
            )
        # Every month's table may have the same names and numbers again, each in one row.
        if any(_are_names_of_rows(some) for some in (together, *texts)):
            warnings.warn(
                f"column '{name}' of '{training[0].path}' becomes {len(values)} inputs, and "
                "more than half of its training rows have a value of their own. If it is a name or "
                "a number of the row, leave it out with the key `features`.",
                stacklevel=1,
            )
        return cls(name, values)

    def inputs(self, rows: _Rows) -> np.ndarray:
        """Return 1 where the category is the row's, else 0, `[n, C]`."""
        texts = rows.cells(self.name).astype(str)
        found = texts[:, np.newaxis] == self.values
        unknown = np.flatnonzero(~found.any(axis=1))
        if self.others_are_refused and unknown.size:
            raise DataError(
                f"Expected a category that the network has learned ({one_of(self.values.tolist())})"
                f". Received: {str(texts[unknown[0]])!r} in {rows.place(unknown[0], self.name)}. "
                "Correct or remove the row, or learn all tables anew in one run."
            )
        return found


def _are_names_of_rows(texts):
    """Return whether texts are likely to name rows: many values, most of them in one row only."""
    counts = np.unique(texts, return_counts=True)[1]
    return len(counts) > _FEW_CATEGORIES and 2 * np.sum(counts == 1) > len(texts)


def _column(name, files, training):
    """Return the encoding of a column: numbers, unless no cell of the training rows is one."""
    is_named = any(name in file.categories for file in files)
    has_numbers = any(_has_numbers(rows.cells(name)) for rows in training)
    kind = _Numbers if has_numbers and not is_named else _Categories
    return kind.learned(name, training)


def _has_numbers(cells):
    if cells.dtype != object:
        return cells.dtype.kind in "iuf"
    return any(np.isfinite(_number(cell)) for cell in cells)


def _as_numbers(cells) -> np.ndarray:
    """Return cells as float64, NaN where they are no numbers."""
    if cells.dtype != object:
        return cells.astype(np.float64)
    return np.array([_number(cell) for cell in cells])


def _number(cell):
    """Return a cell as a number, or NaN; to Python "1_10" is 110, but to nobody else."""
    if isinstance(cell, str) and "_" in cell:
        return np.nan
    try:
        return float(cell)
    except (TypeError, ValueError):
        return np.nan


def _source(file, parts, columns) -> Source:
    labels = {role: _labels(rows, file) for role, rows in parts.items()}
    classes = sorted(set(labels["train"].tolist()), key=_numbers_first)
    label_of = {name: label for label, name in enumerate(classes)}
    splits = {}
    for role, rows in parts.items():
        inputs = np.hstack([column.inputs(rows) for column in columns]).astype(np.float32)
        found = np.array([label_of.get(name, -1) for name in labels[role]])
        unknown = np.flatnonzero(found < 0)
        if unknown.size:
            raise DataError(
                f"Expected only labels that occur in training ({one_of(classes)}). Received: "
                f"{str(labels[role][unknown[0]])!r} in {rows.place(unknown[0], file.label)}. Add "
                "training rows of this class, or remove the row."
            )
        splits[role] = Split(inputs, found)
    return Source(tuple(classes), **splits)


def _numbers_first(text):
    value = _number(text)
    return (np.isnan(value), value if np.isfinite(value) else 0.0, text)


def _first_line(error):
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
