"""The pages in docs/: the tests that they name exist, links lead somewhere, and examples run."""

import itertools
import re
import shlex
from pathlib import Path

import keras
import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from keras_mas.serving.manifest import read_manifest
from keras_mas.serving.paths import list_versions
from keras_mas.training.cli import build_parser
from keras_mas.training.tasks import DataError, load_tasks, toml_file
from keras_mas.training.tasks.files import read_folder
from keras_mas.training.tasks.source import Source, numbered_classes
from keras_mas.training.tasks.stream import checked_split

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "SECURITY.md",
    ROOT / "serving" / "deploy" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_every_row_names_a_test_that_is_there():
    page = (ROOT / "docs" / "what-survives-what.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    headers = [line for line in rows if line.endswith("| test |")]
    assert len(headers) == 3
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named or row in headers, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(), (file, test)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def commands(page):
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("keras-mas ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_ones_that_we_understand(page):
    for command in commands(page):
        build_parser().parse_args(command[1:])  # exits if not


DATA = (ROOT / "docs" / "your-own-data.md").read_text()
(MAY,) = re.findall(r"```csv\n(.*?)```", DATA, re.DOTALL)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a TOML file beside data as the page on them describes; photographs are for TFDS too."""
    numbers = np.arange(20)
    for split, label in itertools.product(("train", "test"), ("cat", "dog")):
        folder = tmp_path / "photos" / split / label
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (90, 70)).save(folder / f"{number}.jpg")
    pixels = np.zeros((20, 64, 64, 3), np.uint8)
    arrays = {"x_train": pixels, "y_train": numbers % 3, "x_test": pixels, "y_test": numbers % 3}
    np.savez(tmp_path / "parts.npz", **arrays)
    (tmp_path / "may.csv").write_text(MAY)
    rows = "".join(f"{number},{'ny'[number % 2]}\n" for number in numbers)
    (tmp_path / "june.csv").write_text("age,bought\n" + rows)
    columns = {"age": numbers, "bought": ["n", "y"] * 10}
    parquet.write_table(pyarrow.table(columns), tmp_path / "may.parquet")

    def read_tfds(name, size, *_):
        if size is not None:
            return read_folder(tmp_path / "photos", size)
        return checked_source(np.zeros((200, 4, 4, 3), np.uint8), np.arange(200) % 100)

    monkeypatch.setattr(toml_file, "read_tfds", read_tfds)

    def load_text(text):
        (tmp_path / "page.toml").write_text(text)
        return load_tasks(tmp_path / "page.toml")

    return load_text


def checked_source(inputs, labels):
    split = checked_split(inputs, labels, "a data set")
    return Source(numbered_classes(split, "a data set"), split, split)


def test_the_files_of_tasks_are_read(load):
    shop, objects, customers, months = map(load, re.findall(r"```toml\n(.*?)```", DATA, re.DOTALL))
    assert [task.name for task in shop.tasks] == ["flowers", "pets", "parts"]
    assert (shop.input_shape, shop.tasks[1].classes) == ((64, 64, 3), ("dog", "cat"))
    assert [len(task.classes) for task in objects.tasks] == [10] * 10
    (listed,) = re.findall(r"The inputs of `may.csv` are (.*?);", DATA, re.DOTALL)
    assert list(customers.columns) == re.findall("`(.*?)`", listed)
    paris = customers.tasks[0].test.inputs[1]
    assert paris[list(customers.columns).index("city=Bonn")] == 0 == paris[2]
    assert [len(task.test) for task in months.tasks] == [6, 10]


def test_every_key_of_a_file_of_tasks_is_explained():
    keys = {*toml_file._STREAM_KEYS, *toml_file._DIVIDED_KEYS, *toml_file._TASK_KEYS}
    explained = {
        key for row in re.findall(r"^\| (`.*?) \|", DATA, re.MULTILINE) for key in row.split(", ")
    }
    assert {f"`{key}`" for key in keys} <= explained


MORE = 'name = "customers"\n[[task]]\nname = "may"\nlabel = "bought"\nsplit = "part"\n'


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("34,", ",", "Expected a value in every cell"),
        ("34,", "NA,", "Expected a finite number"),
        ("34,", "nan,", "Expected a finite number"),
        ("34,", "inf,", "Expected a finite number"),
        ("51,", "1_10,", "Expected a finite number"),
        ("city", "age", "columns of different names"),
        ("city", "a=b", "without '='"),
        ("yes,train", "perhaps,test", "labels that occur in training"),
    ],
)
def test_what_is_said_to_be_refused_is(load, tmp_path, old, new, words):
    (tmp_path / "may.csv").write_text(MAY.replace(old, new, 1))
    with pytest.raises(DataError, match=words):
        load(MORE + 'csv = "may.csv"')


def test_what_is_said_of_text_is_so(load, tmp_path):
    (tmp_path / "may.csv").write_text(MAY.replace("34,Bonn,yes", "34,NA,true"))
    columns = load(MORE + 'csv = "may.csv"\nfeatures = ["city", "member"]').columns
    assert columns == ("city=Bonn", "city=NA", "city=Ulm", "member=no", "member=true", "member=yes")


@pytest.mark.slow
def test_a_model_of_ones_own_is_published_as_the_page_on_serving_says(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "serving.md").read_text()
    script = next(
        code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "fit" in code
    )
    monkeypatch.chdir(tmp_path)
    keras.utils.set_random_seed(0)
    exec(script, {})
    assert list(list_versions("models/months")) == [1, 2]
    manifest = read_manifest("models/months/2")
    assert manifest["classes"] == dict.fromkeys(["january", "february"], ["low", "high"])
    assert manifest["blessing"]["blessed"]


def test_some_pages_have_commands():
    assert sum(len(commands(page)) for page in PAGES) > 5
