"""Which files decide what a method or a backbone of a user's own does."""

import importlib
import sys

import pytest

from keras_mas.plugins import load_named
from keras_mas.training.own_modules import files_of


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A function from the texts of files and a name to the files that decide what it names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    imported = set(sys.modules)

    def found(name, texts):
        for path, text in texts.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        importlib.invalidate_caches()
        paths = files_of(name, load_named(name, "backbone"))
        return [str(path.relative_to(tmp_path)) for path in paths]

    yield found
    for name in set(sys.modules) - imported:
        del sys.modules[name]


FUNCTION = "def features(x):\n    return x\n"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({}, []),
        ({"scales.py": "one = 1", "other.py": "import scales"}, []),  # nothing imports them
        ({"scales.py": "one = 1", "own_trunk.py": f"import scales\n{FUNCTION}"}, ["scales.py"]),
        (
            {
                "own_trunk.py": f"from scales import one\n{FUNCTION}",
                "scales.py": "from units import one",
                "units.py": "import own_trunk\none = 1",
            },
            ["scales.py", "units.py"],
        ),
        (  # a folder without `__init__.py`, and an import that has not been run
            {
                "own_trunk.py": f"{FUNCTION}    from parts.scales import one\n",
                "parts/scales.py": "from . import units\nfrom .units import one",
                "parts/units.py": "one = 1",
            },
            ["parts/scales.py", "parts/units.py"],
        ),
        (  # an empty `__init__.py` decides nothing
            {
                "own_trunk.py": f"from full.deep import one\nimport empty.deep\n{FUNCTION}",
                "full/__init__.py": "two = 2",
                "full/deep.py": "one = 1",
                "empty/__init__.py": "",
                "empty/deep.py": "one = 1",
            },
            ["empty/deep.py", "full/__init__.py", "full/deep.py"],
        ),
        (  # what is written for another version of Python
            {"own_trunk.py": f"{FUNCTION}    import scales\n", "scales.py": "print 'one'"},
            ["scales.py"],
        ),
    ],
)
def test_helper_modules_belong_to_it(files, texts, expected):
    texts = {"own_trunk.py": f"import numpy\n{FUNCTION}"} | texts
    assert files("own_trunk:features", texts) == sorted(["own_trunk.py", *expected])


def test_a_package_imports_from_where_it_lies_and_from_the_folder_around_it(files):
    texts = {
        "own_package/__init__.py": "",
        "own_package/trunk.py": f"from .scales import one\nfrom units import two\n{FUNCTION}",
        "own_package/scales.py": "one = 1",
        "units.py": "two = 2",
    }
    expected = ["own_package/scales.py", "own_package/trunk.py", "units.py"]
    assert files("own_package.trunk:features", texts) == expected


def test_a_function_that_another_module_wraps_is_of_both(files):
    texts = {
        "own_trunk.py": f"from wrapping import twice\n@twice\n{FUNCTION}",
        "wrapping.py": "def twice(function):\n    return lambda x: function(function(x))\n",
    }
    assert files("own_trunk:features", texts) == ["own_trunk.py", "wrapping.py"]


def test_what_is_no_class_or_function_is_of_its_module(files):
    text = f"import functools\n{FUNCTION}partial = functools.partial(features)\n"
    assert files("own_trunk:partial", {"own_trunk.py": text}) == ["own_trunk.py"]


def test_what_is_installed_is_of_its_own_file_alone(files):
    texts = {
        "site-packages/theirs.py": f"import beside\n{FUNCTION}",
        "site-packages/beside.py": "one = 1",
    }
    sys.path.insert(0, "site-packages")
    assert files("theirs:features", texts) == ["site-packages/theirs.py"]


def test_our_own_modules_belong_to_no_run():
    [path] = files_of(
        "keras_mas.methods.mas:Method", load_named("keras_mas.methods.mas:Method", "")
    )
    assert path.name == "mas.py"
