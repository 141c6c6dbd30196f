"""The house itself: which room may import which, what `import keras_mas` costs, what is public."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import keras_mas
from keras_mas.errors import UsageError
from keras_mas.methods import METHODS, load_method

PACKAGE = Path(keras_mas.__file__).parent


def room(module):
    """Return 'training', 'serving' or 'keras_mas' for a module of ours, else None."""
    names = module.split(".")
    if names[0] != "keras_mas":
        return None
    return names[1] if names[1:2] in (["training"], ["serving"]) else "keras_mas"


def imports(folder, package):
    """Yield every module name imported anywhere below a folder, relative ones made absolute."""
    for path in folder.rglob("*.py"):
        inside = [package, *path.relative_to(folder).parent.parts]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level:
                base = ".".join(inside).split(".")
                yield ".".join([*base[: len(base) - node.level + 1], node.module or ""])
            elif isinstance(node, ast.ImportFrom):
                yield node.module


def folders():
    import keras_mas.serving
    import keras_mas.training

    return {
        "serving": Path(keras_mas.serving.__file__).parent,
        "training": Path(keras_mas.training.__file__).parent,
    }


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("training", {"training", "serving", "keras_mas"}), ("serving", {"serving", "keras_mas"})],
)
def test_arrows_point_one_way(name, allowed):
    seen = set(map(room, imports(folders()[name], f"keras_mas.{name}")))
    assert name in seen
    assert seen - {None} <= allowed


def test_the_method_imports_none_of_the_other_rooms():
    own = [path for path in PACKAGE.iterdir() if path.name not in ("training", "serving")]
    seen = set()
    for path in own:
        if path.is_dir():
            seen |= set(map(room, imports(path, f"keras_mas.{path.name}")))
    seen |= {
        room(node.module)
        for path in own
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }
    assert seen <= {None, "keras_mas"}


def test_importing_the_package_does_not_import_tensorflow():
    code = "import sys, keras_mas; assert dir(keras_mas); sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_is_there_and_documented():
    for name in keras_mas.__all__:
        assert getattr(keras_mas, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'SynapticMemry'"):
        keras_mas.SynapticMemry  # noqa: B018


@pytest.mark.parametrize("name", METHODS)
def test_every_method_loads(name):
    assert load_method(name).__doc__


def test_an_unknown_method_is_named():
    with pytest.raises(UsageError, match="method out of mas, finetune. Received: 'masss'"):
        load_method("masss")


@pytest.mark.skipif("KERAS_MAS_INSTALLED" not in os.environ, reason="set by `make test`")
def test_what_is_tested_is_what_was_installed():
    assert Path(os.environ["KERAS_MAS_INSTALLED"]) in PACKAGE.parents
