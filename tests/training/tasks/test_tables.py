import datetime

import numpy as np
import pytest

from keras_mas.errors import UsageError
from keras_mas.training.tasks import DataError, load_tasks, tables
from keras_mas.training.tasks.tables import Encoding, TableFile, read_tables

pyarrow = pytest.importorskip("pyarrow")


@pytest.fixture
def write(tmp_path):
    def write_text(text, name="a.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write_text


@pytest.fixture
def table(write, tmp_path):
    """Describe a CSV file of this text, with a column `split` unless told otherwise."""

    def describe(text, label="y", **options):
        options = options or {"split": "split"}
        return TableFile(write(text), label=label, **options)

    return describe


SHOP = """age,city,y,split
20,Bonn,no,train
40,Ulm,yes,train
30,Ulm,yes,test
30,Paris,no,test
"""


def test_numbers_and_categories(table):
    # Training ages are 20 and 40: mean 30, deviation 10. Paris occurs in no training row.
    found = read_tables([table(SHOP)])
    (source,) = found.sources
    assert found.columns == ("age", "city=Bonn", "city=Ulm")
    assert found.rescale == ([0.1, 1.0, 1.0], [-3.0, 0.0, 0.0])
    assert source.train.inputs.tolist() == [[20, 1, 0], [40, 0, 1]]
    assert source.test.inputs.tolist() == [[30, 0, 1], [30, 0, 0]]
    assert source.train.inputs.dtype == np.float32
    assert source.classes == ("no", "yes")
    assert (source.train.labels.tolist(), source.test.labels.tolist()) == ([0, 1], [1, 0])
    assert source.validation is None


LEARNED = Encoding(("age", "city=Bonn", "city=Ulm"), ([0.1, 1.0, 1.0], [-3.0, 0.0, 0.0]))


def test_another_table_is_encoded_as_the_network_has_learned(table):
    # Its own ages have mean 50, its columns another order, and nobody is from Bonn.
    text = "city,y,split,age\nUlm,no,train,60\nUlm,yes,train,40\nUlm,yes,test,30\n"
    found = read_tables([table(text)], LEARNED)
    assert (found.columns, found.rescale) == (LEARNED.columns, LEARNED.rescale)
    assert found.sources[0].train.inputs.tolist() == [[60, 0, 1], [40, 0, 1]]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("Ulm,yes,test", "Paris,yes,test", r"learned \('Bonn', 'Ulm'\). Received: 'Paris' in .* 4"),
        ("age,city", "aged,city", "Received: no 'age' in .* Did you mean 'aged'?"),
        ("age,city,y", "age,size,y", "Received: no 'city' in"),
        ("40,", "old,", "Expected a finite number. Received: 'old' in column 'age' of line 3"),
    ],
)
def test_a_table_that_does_not_fit_what_was_learned_is_refused(table, old, new, words):
    assert read_tables([table(SHOP.replace("Paris", "Bonn"))], LEARNED).columns == LEARNED.columns
    with pytest.raises((DataError, UsageError), match=words):
        read_tables([table(SHOP.replace("Paris", "Bonn").replace(old, new))], LEARNED)


def test_columns_that_were_not_learned_are_refused(table):
    text = "age,city,size,y,split\n1,Ulm,3,a,train\n2,Bonn,4,b,train\n1,Ulm,5,a,test\n"
    with pytest.raises(UsageError, match="also 'size' in .*the key `features`"):
        read_tables([table(text)], LEARNED)
    found = read_tables([table(text, split="split", features=("city", "age"))], LEARNED)
    assert found.columns == LEARNED.columns
    named = table(text, split="split", features=("city", "age"), categories=("age",))
    with pytest.raises(UsageError, match="Expected 'age' to be numbers"):
        read_tables([named], LEARNED)


def test_columns_asked_for_in_their_order(table):
    found = read_tables([table(SHOP, split="split", features=("city", "age"))])
    assert found.columns == ("city=Bonn", "city=Ulm", "age")
    assert read_tables([table(SHOP, split="split", features=("age",))]).columns == ("age",)


def test_numbers_that_are_categories(table):
    text = "zip,y,split\n53111,a,train\n89073,b,train\n53111,b,test\n"
    found = read_tables([table(text, split="split", categories=("zip",))])
    assert found.columns == ("zip=53111", "zip=89073")
    assert found.sources[0].test.inputs.tolist() == [[1, 0]]


def test_digits_around_an_underscore_are_text(table):
    rows = "1_10,1_0,train\n2_5,2,train\n1_10,2,test\n"
    found = read_tables([table("shelf,y,split\n" + rows)])
    assert found.columns == ("shelf=1_10", "shelf=2_5")
    assert found.sources[0].classes == ("2", "1_0")  # numbers before text
    with pytest.raises(DataError, match="a finite number. Received: '1_10' in column 'shelf' of l"):
        read_tables([table("shelf,y,split\n7,a,train\n" + rows)])


def test_classes_that_are_numbers_are_in_their_order(table):
    text = "x,y,split\n1,10,train\n2,9,train\n3,10,test\n"
    assert read_tables([table(text)]).sources[0].classes == ("9", "10")


def test_a_column_that_never_changes_is_zero(table):
    found = read_tables([table("x,y,split\n7,a,train\n7,b,train\n8,a,test\n")])
    assert found.rescale == ([1.0], [-7.0])


def test_a_column_of_a_number_that_has_no_end_in_binary_is_zero(table):
    # The mean of three times 0.1 is not 0.1 in float64, so that they have a deviation.
    found = read_tables([table("x,y,split\n" + "0.1,a,train\n" * 2 + "0.10,b,train\n0.1,a,test\n")])
    assert found.rescale == ([1.0], [-0.1])


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (lambda n: 2**63 - 1 - n, "7 digits. Received: mean 9.22337e[+]18 and deviation 0 in col"),
        (lambda n: 2**24 + n, "7 digits. Received: mean 1.67772e[+]07"),
        (lambda n: 1e-300 * n, "between 1e-30 and 1e[+]30, .* numbers from 0 to 5e-300 in column"),
        (lambda n: 1e-42 * n, "numbers from 0 to 5e-42 in column 'x' of '.*'. Use another unit."),
        (lambda n: 4e37 * n, "numbers from 0 to 2e[+]38 in column 'x' of"),
    ],
)
@pytest.mark.parametrize("is_parquet", [True, False], ids=["parquet", "csv"])
def test_numbers_that_float32_cannot_tell_apart(write, tmp_path, number, words, is_parquet):
    from pyarrow import parquet

    values = [number(n) for n in range(8)]
    columns = {"x": values, "y": ["a", "b"] * 4, "s": ["train"] * 6 + ["test"] * 2}
    if is_parquet:
        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.table(columns), path)
    else:
        rows = "".join(f"{x},{y},{s}\n" for x, y, s in zip(*columns.values(), strict=True))
        path = write("x,y,s\n" + rows)
    with pytest.raises(DataError, match=words):
        read_tables([TableFile(path, "y", is_parquet, split="s")])


def test_validation_rows_and_the_order_of_rows(table):
    text = "x,y,split\n1,a,train\n2,a,val\n3,b,test\n4,b,train\n5,a,validation\n"
    (source,) = read_tables([table(text)]).sources
    assert source.train.inputs.tolist() == [[1], [4]]
    assert source.validation.inputs.tolist() == [[2], [5]]
    assert source.test.inputs.tolist() == [[3]]


def test_second_file_is_test_data(table, write):
    test = write("y,x\nb,5\n", "test.csv")
    (source,) = read_tables([table("x,y\n1,a\n2,b\n", test=test)]).sources
    assert source.train.inputs.tolist() == [[1], [2]]
    assert (source.test.inputs.tolist(), source.test.labels.tolist()) == ([[5]], [1])


@pytest.mark.parametrize("name", ["a.csv", "symbolic.csv", "hard.csv"])
def test_the_training_file_is_no_test_data(write, tmp_path, name):
    path = write("x,y\n1,a\n2,b\n")
    (tmp_path / "symbolic.csv").symlink_to(path)
    (tmp_path / "hard.csv").hardlink_to(path)
    file = TableFile(path, "y", test=tmp_path / name)
    with pytest.raises(DataError, match="Received: '.*' as `test`, which is the same file as '.*'"):
        read_tables([file])


def test_a_share_of_each_class_is_test_data(table):
    rows = "".join(f"{n},{'ab'[n % 2]}\n" for n in range(20))
    (source,) = read_tables([table("x,y\n" + rows, test_fraction=0.3)]).sources
    assert np.bincount(source.train.labels).tolist() == [7, 7]
    assert np.bincount(source.test.labels).tolist() == [3, 3]
    # Rows keep their labels, and none is in both.
    everything = np.concatenate([source.train.inputs, source.test.inputs])[:, 0]
    labels = np.concatenate([source.train.labels, source.test.labels])
    np.testing.assert_array_equal(everything % 2, labels)
    assert sorted(everything) == list(range(20))


def test_several_tables_have_one_encoding(write):
    first = TableFile(write("x,c,y,s\n0,p,a,train\n2,p,b,train\n0,p,a,test\n"), "y", split="s")
    other = TableFile(
        write("c,x,y,s\nq,4,b,train\nq,6,a,train\nq,0,a,test\n", "b.csv"), "y", split="s"
    )
    found = read_tables([first, other])
    # Over 0, 2, 4, 6: mean 3, variance 5.
    assert found.columns == ("x", "c=p", "c=q")
    np.testing.assert_allclose(found.rescale[0], [1 / np.sqrt(5), 1, 1])
    np.testing.assert_allclose(found.rescale[1], [-3 / np.sqrt(5), 0, 0])
    assert found.sources[1].train.inputs.tolist() == [[4, 0, 1], [6, 0, 1]]


def test_parquet_holds_the_same(write, tmp_path):
    from pyarrow import parquet

    columns = {
        "age": [20, 40, 30, 30],
        "city": ["Bonn", "Ulm", "Ulm", "Paris"],
        "y": ["no", "yes", "yes", "no"],
        "split": ["train", "train", "test", "test"],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    packed = TableFile(tmp_path / "a.parquet", "y", is_parquet=True, split="split")
    files = [packed, TableFile(write(SHOP), "y", split="split")]
    found, expected = (read_tables([file]) for file in files)
    assert (found.columns, found.rescale) == (expected.columns, expected.rescale)
    for role, split in expected.sources[0].splits.items():
        assert found.sources[0].splits[role].fingerprint == split.fingerprint


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + SHOP,
        SHOP.replace("\n", "\r\n"),
        SHOP.replace("Bonn", '"Bonn"'),
        SHOP.replace("20,", "\n\n20,") + "\n\n",
        SHOP.removesuffix("\n"),
    ],
    ids=["byte order mark", "Windows", "quotes", "empty lines", "no last newline"],
)
def test_files_as_other_programs_write_them(table, text):
    found, expected = read_tables([table(text)]), read_tables([table(SHOP)])
    assert found.columns == expected.columns
    assert found.sources[0].test.fingerprint == expected.sources[0].test.fingerprint


def test_a_byte_order_mark_is_no_part_of_the_first_name(table):
    # A column that is not found by its name is read as numbers, and 07 as 7.
    text = "\ufeffzip,y,split\n07,a,train\n53,b,train\n07,b,test\n"
    found = read_tables([table(text, split="split", categories=("zip",))])
    assert found.columns == ("zip=07", "zip=53")


def test_cells_with_commas_quotes_and_lines(table):
    text = SHOP.replace("Ulm", '"Ulm, ""the"" city\non the Danube"')
    assert read_tables([table(text)]).columns[2] == 'city=Ulm, "the" city\non the Danube'


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("", ["a header", "nothing in", "a.csv"]),
        ("age,city,y,split\n", ["rows below the header", "a.csv"]),
        (SHOP.replace(",", ";"), ["commas between cells", "semicolons", "header of", "a.csv"]),
        (SHOP.replace(",", "\t"), ["commas between cells", "tabs in the header"]),
        (SHOP.replace("city", "age"), ["different names", "'age' more than once", "a.csv"]),
        (SHOP.replace("40,Ulm", "old,Ulm"), ["finite number", "'old'", "'age' of line 3"]),
        (SHOP.replace("30,Ulm", "1e39,Ulm"), ["finite number", "'1e39'", "'age' of line 4"]),
        (SHOP.replace("40,Ulm", "nan,Ulm"), ["finite number", "'nan'", "`categories`"]),
        (SHOP.replace("40,Ulm", ",Ulm"), ["every cell", "'age' of line 3"]),
        (SHOP.replace("40,Ulm", "40, "), ["every cell", "'city' of line 3"]),
        (SHOP.replace("Ulm,yes,train", "Ulm,,train"), ["every cell", "'y' of line 3"]),
        (
            SHOP.replace("Ulm,yes,test", "Ulm,maybe,test"),
            ["'no', 'yes'", "'maybe'", "'y' of line 4"],
        ),
        (SHOP.replace("yes,test", "yes,tst"), ["'train', 'test'", "'tst'", "'split' of line 4"]),
        (SHOP.replace(",test", ",train"), ["none of 'test' in column 'split'"]),
        (SHOP.replace("40,Ulm", "40"), ["4 cells in every line", "3 in line 3", "a.csv"]),
        (SHOP.replace("40", "40\n,,,\n40").replace("40\n,", "\n,"), ["line 4"]),
        (SHOP.replace("20,", "999999999,").replace("40,", "999999998,"), ["7 digits", "'age'"]),
    ],
)
def test_tables_that_are_wrong(table, text, facts):
    with pytest.raises(DataError) as error:
        read_tables([table(text)])
    for fact in facts:
        assert fact in str(error.value)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ({7: ",n", 11: ",n"}, "every cell. .* in column 'x' of line 7 of '.*' and 1 more. Fill"),
        ({9: ",n", 7: "1,"}, "every cell. .* in column 'c' of line 7 of '.*' and 1 more. Fill"),
        ({7: "NA,n", 9: "?,n", 12: "nan,n"}, "'NA' in column 'x' of line 7 of '.*' and 2 more. C"),
    ],
)
def test_the_first_line_without_a_value_is_named_and_the_others_counted(table, lines, words):
    rows = [lines.get(line, "1,n") + f",{'ab'[line % 2]}" for line in range(2, 22)]
    with pytest.raises(DataError, match=words):
        read_tables([table("\n".join(["x,c,y", *rows]), test_fraction=0.5)])


def test_the_line_counts_lines_within_cells_and_empty_ones(table):
    text = SHOP.replace("Bonn", '"Bonn\non the\nRhine"').replace("40,", "\nold,")
    with pytest.raises(DataError, match="'age' of line 6 of"):
        read_tables([table(text)])


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"label": "yy", "split": "split"}, ["'age', 'city', 'y', 'split'", "'yy'", "mean 'y'?"]),
        ({"split": "splt"}, ["'splt'", "Did you mean 'split'?"]),
        ({"split": "split", "features": ("agee",)}, ["'agee'", "Did you mean 'age'?"]),
        ({"split": "split", "categories": ("x",)}, ["'x'", "a.csv"]),
        ({"split": "split", "features": ()}, ["columns besides the label"]),
        (
            {"split": "split", "features": ("age", "y")},
            ["`features` without the label", "'y' for", "a.csv'. Remove it"],
        ),
        ({"split": "split", "categories": ("y",)}, ["`categories` without the label", "'y' for"]),
        ({"split": "split", "categories": ("split",)}, ["`categories` without the split"]),
        ({"split": "split", "features": ("split",)}, ["without the split", "'split' for"]),
        ({"split": "split", "features": ("age", "city", "age")}, ["once", "'age' more than once"]),
    ],
)
def test_columns_that_cannot_be_used(table, options, facts):
    with pytest.raises(UsageError) as error:
        read_tables([table(SHOP, **{"label": "y", **options})])
    for fact in facts:
        assert fact in str(error.value)


@pytest.mark.parametrize("name", ["a=b", "city=Bonn"])
def test_names_that_a_run_which_goes_on_would_misread(table, name):
    text = f"{name},x,y,split\n0,1,a,train\n0,2,b,train\n0,3,a,test\n"
    with pytest.raises(DataError, match=f"without '='.* Received: '{name}' in .*Rename the column"):
        read_tables([table(text)])
    assert read_tables([table(text, split="split", features=("x",))]).columns == ("x",)


def test_tables_of_different_features(write):
    files = [
        TableFile(write(f"{x},y,s\n1,a,train\n2,b,train\n1,a,test\n", f"{x}.csv"), "y", split="s")
        for x in ("p", "q")
    ]
    with pytest.raises(UsageError, match="same features .*'p', 'q' in only one of .*`features`"):
        read_tables(files)


def test_a_column_of_names_is_refused(table, monkeypatch):
    monkeypatch.setattr(tables, "MOST_CATEGORIES", 1)
    with pytest.raises(DataError, match="at most 1 different values .* 2 in column 'city' of"):
        read_tables([table(SHOP)])


MEASURED = ["0.5", "2", "1e-3", "-3.25"]


def test_a_label_that_is_a_measurement_is_refused(write, tmp_path):
    from pyarrow import parquet

    rows = "".join(f"{n},{label}\n" for n, label in enumerate(MEASURED[1:2] + MEASURED))
    with pytest.raises(DataError, match="whole numbers. Received: 0.5 in column 'y' of line 3 of"):
        read_tables([TableFile(write("x,y\n" + rows), "y", test_fraction=0.5)])
    parquet.write_table(pyarrow.table({"x": [1, 2], "y": [1.0, 0.125]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="Received: 0.125 in column 'y' of row 2 of"):
        read_tables([TableFile(tmp_path / "a.parquet", "y", True, test_fraction=0.5)])


@pytest.mark.parametrize("labels", [["1.0", "2.0"], ["1.5", "1.5.1"], ["0.5", "nan"]])
def test_labels_that_are_numbers_in_part_or_whole_are_classes(table, labels):
    rows = "".join(
        f"{n},{label},{role}\n" for role in ("train", "test") for n, label in enumerate(labels)
    )
    (source,) = read_tables([table("x,y,split\n" + rows)]).sources
    assert source.classes == tuple(labels)


def customers(count, rows):
    """Rows of which the first `count` have a customer of their own, and the others one customer."""
    names = [f"c{n}" if n < count else "c" for n in range(rows)]
    test = "c,a,test\nc,b,test\n"
    return (
        "id,y,split\n" + "".join(f"{c},{'ab'[n % 2]},train\n" for n, c in enumerate(names)) + test
    )


def test_a_column_of_rows_of_their_own_is_warned_of(table):
    words = "column 'id' of '.*a.csv' becomes 22 inputs, and more than half .* the key `features`"
    with pytest.warns(UserWarning, match=words):
        read_tables([table(customers(21, 41))])


def test_a_column_of_rows_of_their_own_in_every_table_is_warned_of(write):
    # Each customer occurs once a month, in two months.
    files = [
        TableFile(write(customers(21, 41), name), "y", split="split") for name in ("a.csv", "b.csv")
    ]
    with pytest.warns(UserWarning, match="column 'id' of '.*a.csv' becomes 22 inputs"):
        read_tables(files)


@pytest.mark.parametrize(("count", "rows"), [(21, 42), (19, 20)], ids=["half", "few inputs"])
def test_a_column_of_categories_is_not_warned_of(table, count, rows, recwarn):
    encoded = read_tables([table(customers(count, rows))])
    assert len(encoded.columns) == count + 1  # one input a customer, and "c"
    assert not recwarn.list


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b'a,"b\n1,2'])
def test_files_that_are_no_tables(tmp_path, content):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises((DataError, UsageError), match="a.csv"):
        read_tables([TableFile(tmp_path / "a.csv", "b", test_fraction=0.5)])


def test_a_parquet_file_that_is_none_and_one_with_gaps(tmp_path):
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    path.write_bytes(b"no table")
    with pytest.raises(DataError, match="Expected a Parquet file. Received: .*a.parquet"):
        read_tables([TableFile(path, "y", is_parquet=True, test_fraction=0.5)])
    day = datetime.date(2026, 5, 1)
    nan = float("nan")
    for values in ([1, None, 3, 4], ["p", None, "q", "q"], [0.5, nan, 1.0, 2.0], [day, None] * 2):
        parquet.write_table(pyarrow.table({"x": values, "y": [0, 1, 0, 1]}), path)
        with pytest.raises(DataError, match="every cell.*'x' of row 2 of"):
            read_tables([TableFile(path, "y", is_parquet=True, test_fraction=0.5)])


@pytest.fixture
def packed(tmp_path):
    """Describe a Parquet file of four rows with a column `x`, half of them test data."""
    from pyarrow import parquet

    def describe(x, y=(0, 1, 0, 1), **options):
        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.table({"x": x, "y": pyarrow.array(y), "z": [1, 2, 3, 4]}), path)
        return TableFile(path, "y", is_parquet=True, test_fraction=0.5, **options)

    return describe


@pytest.mark.parametrize(
    ("kind", "cells"),
    [
        ("list<element: int64>", [[1], [2], [3], [4]]),
        ("struct<a: int64>", [{"a": 1}] * 4),
        ("map<string, int64", pyarrow.array([[("a", 1)]] * 4, pyarrow.map_(pyarrow.utf8(), "i8"))),
        ("binary", [b"\xff"] * 4),
        ("fixed_size_binary[1]", pyarrow.array([b"\xff"] * 4, pyarrow.binary(1))),
    ],
)
def test_parquet_columns_without_a_number_or_a_text(packed, kind, cells):
    with pytest.raises(DataError) as error:
        read_tables([packed(cells)])
    for fact in (f"column 'x' of type {kind}", "a.parquet", "the key `features`"):
        assert fact in str(error.value)
    assert read_tables([packed(cells, features=("z",))]).columns == ("z",)
    with pytest.raises(DataError, match="column 'y' of type"):
        read_tables([packed([1, 2, 3, 4], cells)])


def test_parquet_columns_that_are_categories(packed):
    days = [datetime.date(2026, 5, day) for day in (1, 2, 1, 2)]
    for cells in (days, pyarrow.array([str(day) for day in days]).dictionary_encode()):
        found = read_tables([packed(cells, features=("x",))])
        assert found.columns == ("x=2026-05-01", "x=2026-05-02")
    found = read_tables([packed([True, False, True, False], features=("x",))])
    assert found.columns == ("x=False", "x=True")


TOML = 'name = "shop"\n[[task]]\nname = "a"\ncsv = "a.csv"\n'
KEYS = 'label = "y"\nsplit = "split"\n'


def load(tmp_path, text):
    (tmp_path / "shop.toml").write_text(text)
    return load_tasks(tmp_path / "shop.toml", validation_fraction=0.5)


ROWS = "".join(f"{n},{'ab'[n % 2]},{'train' if n < 8 else 'test'}\n" for n in range(12))


def test_tables_in_a_toml_file(write, tmp_path):
    write("x,y,split\n" + ROWS)
    stream = load(tmp_path, KEYS + TOML)
    assert (stream.columns, stream.input_shape) == (("x",), (1,))
    assert stream.rescale[0] == pytest.approx([1 / np.std(range(8))])
    assert load(tmp_path, TOML + KEYS).fingerprint == stream.fingerprint
    classes = load(tmp_path, TOML + KEYS + 'classes = ["b", "a"]').tasks[0].classes
    assert classes == ("b", "a")
    divided = load(tmp_path, 'name = "shop"\nscenario = "class"\ntasks = 2\ncsv = "a.csv"\n' + KEYS)
    assert [task.classes for task in divided.tasks] == [("a",), ("b",)]


def test_one_head_and_a_table_twice(write, tmp_path):
    write("x,y,split\n" + ROWS)
    text = 'scenario = "class"\n' + KEYS + TOML
    again = '[[task]]\nname = "b"\ncsv = "./a.csv"\n'
    with pytest.raises(UsageError, match="class 'a' in the tasks 'a' and 'b'"):
        load(tmp_path, text + again)
    halves = text + 'classes = ["a"]\n' + again + 'classes = ["b"]\n'
    assert [task.classes for task in load(tmp_path, halves).tasks] == [("a",), ("b",)]


def test_parquet_in_a_toml_file(tmp_path):
    from pyarrow import parquet

    columns = {"x": list(range(12)), "y": [0, 1] * 6}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.pq")
    text = TOML.replace('csv = "a.csv"', 'parquet = "a.pq"')
    stream = load(tmp_path, text + 'label = "y"\ntest_fraction = 0.5')
    assert (stream.columns, stream.tasks[0].classes) == (("x",), ("0", "1"))


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (TOML, ["the key 'label'", "number 1"]),
        (
            TOML + 'label = "y"',
            ["exactly one of the keys 'test', 'test_fraction'", "none"],
        ),
        (TOML + KEYS + "test_fraction = 0.5", ["'test_fraction', 'split' in"]),
        (TOML + 'label = "y"\ntest = "no.csv"', ["a table at", "no.csv"]),
        (TOML + 'label = "y"\ntest_fraction = 1', ["between 0 and 1", "Received: 1"]),
        (TOML + KEYS + "features = [1]", ["names of columns", "'features'", "1"]),
        (TOML + KEYS + '[[task]]\nname = "b"\nfolder = "."', ["tables in all tasks or in none"]),
        (TOML.replace("csv", "npz") + KEYS, ["no 'label' beside 'npz'"]),
        (TOML.replace("a.csv", "b.csv") + KEYS, ["a table at", "b.csv"]),
        (KEYS + TOML.replace("csv", "npz"), ["'label', 'split' beside a table", "shop.toml"]),
    ],
)
def test_toml_files_of_tables_that_are_wrong(write, tmp_path, text, facts):
    write("x,y,split\n" + ROWS)
    write("", "a.npz")
    with pytest.raises(UsageError) as error:
        load(tmp_path, text)
    for fact in facts:
        assert fact in str(error.value)
