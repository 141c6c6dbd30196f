import numpy as np
import pytest
from PIL import Image

from keras_mas.errors import UsageError
from keras_mas.training.settings import DEFAULT_FOR_VECTORS, RECIPES, recipe_for
from keras_mas.training.tasks import DataError, load_tasks, toml_file
from keras_mas.training.tasks.files import read_folder


@pytest.fixture
def load(tmp_path):
    """Write a description beside the data, and load it."""

    def load_text(text, **options):
        path = tmp_path / "shop.toml"
        path.write_text(text, encoding="utf-8")
        return load_tasks(path, **options)

    return load_text


def test_two_archives(load, write_npz):
    write_npz("a.npz")
    write_npz("b.npz")
    stream = load("""
        name = "shop"
        scenario = "domain"
        [[task]]
        name = "first"
        npz = "a.npz"
        [[task]]
        name = "second"
        npz = "b.npz"
        classes = [1, 0]
    """)
    assert (stream.name, stream.scenario) == ("shop", "domain")
    assert stream.rescale == (1.0, 0.0)
    assert [task.name for task in stream.tasks] == ["first", "second"]
    assert [task.classes for task in stream.tasks] == [("0", "1"), ("1", "0")]
    assert stream.tasks[0].test.labels.tolist() == [0, 1, 0, 1]
    assert stream.tasks[1].test.labels.tolist() == [1, 0, 1, 0]


def test_scenario_is_task_unless_told(load, write_npz):
    write_npz()
    assert load('name = "shop"\n[[task]]\nname = "a"\nnpz = "a.npz"').scenario == "task"


def test_folder_is_scaled_as_pixels(load, pets):
    stream = load(
        'name = "shop"\nimage_size = 8\n[[task]]\nname = "a"\nfolder = "photos"\n'
        'classes = ["dog", "cat"]'
    )
    assert stream.rescale == (1 / 255, 0.0)
    assert stream.input_shape == (8, 8, 3)
    assert stream.tasks[0].classes == ("dog", "cat")


def test_images_are_cropped_unless_stretched(load, write_images):
    # 6x4 images in which the left third is white: cropped to 4x4, one column of 4 is white.
    folder = write_images(
        "photos", {f"{split}/{c}": 2 for split in ("train", "test") for c in "ab"}
    )
    for file in folder.rglob("*.png"):
        image = Image.new("RGB", (6, 4))
        image.paste("white", (0, 0, 2, 4))
        image.save(file)
    means = {}
    for resize in ("", 'resize = "crop"\n', 'resize = "stretch"\n'):
        text = f'name = "shop"\nimage_size = 4\n{resize}[[task]]\nname = "a"\nfolder = "photos"'
        means[resize] = load(text).tasks[0].test.inputs.mean() / 255
    assert list(means.values()) == pytest.approx([1 / 4, 1 / 4, 1 / 3], abs=0.02)


def test_stream_named_like_a_built_in_one_is_not_built_in(load, write_npz):
    write_npz()
    stream = load('name = "split-mnist"\n[[task]]\nname = "a"\nnpz = "a.npz"')
    assert not stream.builtin
    assert recipe_for(stream) == DEFAULT_FOR_VECTORS
    assert recipe_for(load_tasks("split-digits")) == RECIPES["split-digits"]


def test_seed_and_fraction_reach_the_tasks(load, write_npz):
    write_npz()
    text = 'name = "shop"\n[[task]]\nname = "a"\nnpz = "a.npz"'
    first, again, other = (
        load(text, seed=seed, validation_fraction=0.3).tasks[0].validation.inputs.tolist()
        for seed in (0, 0, 1)
    )
    assert len(first) == 6
    assert first == again != other


def test_source_of_several_tasks_is_read_once(load, write_npz, monkeypatch):
    write_npz(y_train=np.arange(20) % 4, y_test=np.arange(4))
    calls, read = [], np.load
    monkeypatch.setattr(np, "load", lambda *args, **kw: calls.append(args) or read(*args, **kw))
    load("""
        name = "shop"
        [[task]]
        name = "a"
        npz = "a.npz"
        classes = [0, 1]
        [[task]]
        name = "b"
        npz = "a.npz"
        classes = [2, 3]
    """)
    assert len(calls) == 1


OVERLAPPING = """
    name = "shop"
    scenario = "class"
    [[task]]
    name = "a"
    npz = "a.npz"
    classes = [0, 1]
    [[task]]
    name = "b"
    npz = "b.npz"
    classes = [1, 2]
"""


@pytest.mark.parametrize(
    "text",
    [
        OVERLAPPING.replace("b.npz", "a.npz"),
        OVERLAPPING.replace("b.npz", "./a.npz"),
        OVERLAPPING.replace("b.npz", "a.npz").replace("classes = [0, 1]", ""),
        OVERLAPPING.replace("b.npz", "a.npz").replace("[1, 2]", '["1", "2"]'),
    ],
    ids=["the same path", "another path", "all classes", "names"],
)
def test_one_head_tells_no_class_from_itself(load, write_npz, text):
    for name in ("a.npz", "b.npz"):
        write_npz(name, y_train=np.arange(20) % 3, y_test=np.arange(4) % 3)
    with pytest.raises(UsageError, match="class '1' in the tasks 'a' and 'b', .* in '.*shop.toml'"):
        load(text)
    assert len(load(text, scenario="task").tasks) == 2
    assert len(load(OVERLAPPING).tasks) == 2


def test_one_head_tells_different_classes_of_a_source_apart(load, write_npz):
    write_npz(y_train=np.arange(20) % 3, y_test=np.arange(4) % 3)
    text = OVERLAPPING.replace("b.npz", "a.npz").replace("[1, 2]", "[2]")
    assert [task.classes for task in load(text).tasks] == [("0", "1"), ("2",)]


def test_one_head_and_a_data_set_twice(load, pets, monkeypatch):
    source = read_folder(pets, None)
    monkeypatch.setattr(toml_file, "read_tfds", lambda *_: source)
    text = OVERLAPPING.replace("npz", "tfds").replace('"a.tfds"', '"pets"').replace("[1, 2]", "[1]")
    with pytest.raises(UsageError, match="class 'dog' in the tasks 'a' and 'b'"):
        load(text.replace('"b.tfds"', '"pets:3.0.0"'))
    assert len(load(text.replace('"b.tfds"', '"beasts"')).tasks) == 2


def test_grey_becomes_rgb_beside_colours(load, write_npz, pets):
    grey = np.arange(20, dtype=np.uint8)[:, None, None] * np.ones((8, 8), np.uint8)
    write_npz(x_train=grey, x_test=grey[:4])
    archive = '[[task]]\nname = "scans"\nnpz = "a.npz"\n'
    alone = load(f'name = "shop"\nimage_size = 8\n{archive}')
    assert alone.input_shape == (8, 8, 1)
    both = load(
        f'name = "shop"\nimage_size = 8\n{archive}[[task]]\nname = "pets"\nfolder = "photos"'
    )
    assert both.input_shape == (8, 8, 3)
    np.testing.assert_array_equal(
        both.tasks[0].train.inputs, np.repeat(alone.tasks[0].train.inputs, 3, axis=-1)
    )


def test_pixels_beside_features(load, write_npz, pets):
    write_npz()
    with pytest.raises(UsageError, match=r"uint8 .* 'pets' and float32 of shape \[3\] .* 'a'"):
        load(
            'name = "shop"\n[[task]]\nname = "pets"\nfolder = "photos"\n'
            '[[task]]\nname = "a"\nnpz = "a.npz"'
        )


HEAD = 'name = "shop"\n'
TASK = '[[task]]\nname = "a"\nnpz = "a.npz"\n'


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (TASK, ["Expected the key 'name'", "shop.toml"]),
        (HEAD, ["Expected the key 'task'", "shop.toml"]),
        ("task = []\n" + HEAD, ["at least one task"]),
        (HEAD + '[task]\nname = "a"', ["[[task]]", "double brackets", "[task]"]),
        (HEAD + "task = [1]", ["Expected a table", "1", "number 1"]),
        (HEAD + '[[tasks]]\nname = "a"', ["'tasks'", "Did you mean 'task'?"]),
        ('nmae = "shop"\n' + TASK, ["'nmae'", "'name'", "Did you mean 'name'?"]),
        (HEAD + TASK + "clases = [0]", ["'clases'", "number 1", "Did you mean 'classes'?"]),
        ("name = 3\n" + TASK, ["a string for the key 'name'", "3"]),
        ('name = "a/b"\n' + TASK, ["stream name", "'a/b'"]),
        ('name = "a/b"\n' + TASK, ["shop.toml"]),
        ('name = ".a"\n' + TASK, ["stream name", "'.a'"]),
        ('name = "a\\n"\n' + TASK, ["stream name", r"'a\n'"]),
        ('name = "a\\u0007b"\n' + TASK, ["stream name", r"'a\x07b'"]),
        (f'name = "{"n" * 300}"\n' + TASK, ["stream name", "300", "'nnnnnnnnnn…'", "shop.toml"]),
        (HEAD + f'[[task]]\nname = "{"n" * 101}"\nnpz = "a.npz"', ["task name", "101", "number 1"]),
        (HEAD + '[[task]]\nname = ".."\nnpz = "a.npz"', ["task name", "'..'", "number 1"]),
        (HEAD + 'scenario = "tasks"\n' + TASK, ["'domain'", "'tasks'", "Did you mean 'task'?"]),
        (HEAD + 'image_size = "8"\n' + TASK, ["a whole number", "'image_size'", "'8'"]),
        (HEAD + "image_size = true\n" + TASK, ["a whole number", "True"]),
        (HEAD + "image_size = 0\n" + TASK, ["at least 1", "Received: 0"]),
        (HEAD + 'image_size = 8\nresize = "corp"\n' + TASK, ["'crop', 'stretch'", "mean 'crop'?"]),
        (HEAD + 'resize = "crop"\n' + TASK, ["`image_size` beside `resize`"]),
        (HEAD + '[[task]]\nname = "serving_default"\nnpz = "a.npz"', ["'serving_default'"]),
        (HEAD + '[[task]]\nnpz = "a.npz"', ["the key 'name'", "number 1"]),
        (
            HEAD + '[[task]]\nname = "a"',
            ["'tfds', 'npz', 'folder', 'csv'", "none", "number 1"],
        ),
        (HEAD + TASK + 'folder = "b"', ["exactly one source", "'npz', 'folder'"]),
        (HEAD + TASK + "classes = 3", ["a list for the key 'classes'", "3"]),
        (HEAD + TASK + "classes = [0, true]", ["whole numbers or strings", "True"]),
        (HEAD + TASK + "classes = [0, 7]", ["from 0 to 1", "7", "task 'a'"]),
        (HEAD + TASK + TASK, ["different task names", "'a' 2 times"]),
        (HEAD + '[[task]]\nname = "a/b"\nnpz = "a.npz"', ["task name", "'a/b'"]),
        (HEAD + '[[task]]\nname = "a"\nnpz = "no.npz"', ["an .npz file at", "no.npz", "relative"]),
        (HEAD + '[[task]]\nname = "a"\nfolder = "a.npz"', ["a folder at", "a.npz"]),
        (
            HEAD + f'[[task]]\nname = "a"\nnpz = "{"a" * 5000}"',
            ["an .npz file at", "name too long"],
        ),
        (HEAD + "[[task]\n", ["valid TOML", "line 2, column"]),
        ("a = " + "[" * 2000, ["valid TOML", "shop.toml", "nested too deeply"]),
    ],
)
def test_descriptions_that_are_wrong(load, write_npz, text, facts):
    write_npz()
    with pytest.raises(UsageError) as error:
        load(text)
    for fact in facts:
        assert fact in str(error.value)


DIVIDED = 'name = "shop"\nnpz = "four.npz"\n'


def test_one_source_is_divided_into_tasks(load, write_npz):
    write_npz("four.npz", y_train=np.arange(20) % 4, y_test=np.arange(4))
    stream = load(DIVIDED + "tasks = 2")
    assert [(task.name, task.classes) for task in stream.tasks] == [
        ("0-1", ("0", "1")),
        ("2-3", ("2", "3")),
    ]
    assert (stream.scenario, stream.name) == ("task", "shop")
    other = load(DIVIDED + "tasks = 2\nclass_order_seed = 1")
    order = np.random.default_rng(1).permutation(4).astype(str)
    assert [task.classes for task in other.tasks] == [tuple(order[:2]), tuple(order[2:])]
    alone = load(DIVIDED + 'tasks = 4\nscenario = "class"')
    assert [task.classes for task in alone.tasks] == [("0",), ("1",), ("2",), ("3",)]


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("tasks = 3", ["divides the 4 classes of '", "shop.toml'", "1, 2, 4", "tasks = 3"]),
        ("tasks = 4", ["at least 2 classes", "task '0'"]),
        ('tasks = "2"', ["a whole number", "'tasks'"]),
        ("taks = 2", ["'taks'", "Did you mean 'tasks'?"]),
        ("", ["the key 'tasks'"]),
        ('tasks = 2\ntfds = "mnist"', ["exactly one source", "'tfds', 'npz'"]),
        ("tasks = 2\nclass_order_seed = -1", ["at least 0", "-1"]),
        ("tasks = 2\ntest_fraction = 0.5", ["no 'test_fraction' beside 'npz'", "0.5"]),
        ('tasks = 2\n[[task]]\nname = "a"', ["'npz'", "only the keys"]),
    ],
)
def test_divided_sources_that_are_wrong(load, write_npz, text, facts):
    write_npz("four.npz", y_train=np.arange(20) % 4, y_test=np.arange(4))
    with pytest.raises(UsageError) as error:
        load(DIVIDED + text)
    for fact in facts:
        assert fact in str(error.value)


def test_scenario_asked_for_takes_the_place_of_the_files(load, write_npz):
    write_npz("four.npz", y_train=np.arange(20) % 4, y_test=np.arange(4))
    stream = load(DIVIDED + 'tasks = 4\nscenario = "task"', scenario="class")
    assert (stream.scenario, stream.usual_scenario) == ("class", "task")


@pytest.mark.parametrize(
    ("kind", "cure"),
    [("tfds", "Move `test_fraction` into the [[task]] that needs it."), ("npz", "Remove the key.")],
)
def test_a_test_fraction_above_tasks_that_are_no_tables(load, write_npz, kind, cure):
    write_npz()
    with pytest.raises(UsageError) as error:
        load(f"test_fraction = 0.5\n{HEAD}{TASK}".replace("npz =", f"{kind} ="))
    assert "'test_fraction' beside a table" in str(error.value)
    assert str(error.value).endswith(cure)


BAD_DATA = '[[task]]\nname = "bad"\nnpz = "bad.npz"\n'


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        (HEAD + BAD_DATA + '[[task]]\nname = "b"\nclases = [0]', "'clases'"),
        (HEAD + BAD_DATA + '[[task]]\nname = "b"\nnpz = "no.npz"', "no.npz"),
        (HEAD + BAD_DATA + BAD_DATA, "'bad' 2 times"),
        (HEAD + 'scenario = "tsak"\n' + BAD_DATA, "'tsak'"),
        ('name = "a/b"\n' + BAD_DATA, "'a/b'"),
    ],
)
def test_description_is_checked_before_data_is_read(load, tmp_path, text, fact):
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    with pytest.raises(DataError):
        load(HEAD + BAD_DATA)
    with pytest.raises(UsageError, match=fact):
        load(text)


def test_file_that_is_not_text(tmp_path):
    (tmp_path / "a.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="valid TOML.*a.toml"):
        load_tasks(tmp_path / "a.toml")


def test_folder_in_place_of_the_file(tmp_path):
    with pytest.raises(UsageError, match="readable TOML file"):
        load_tasks(tmp_path)
