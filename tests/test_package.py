"""The package as a whole: which module may import which, what is public, what gets installed."""

import ast
import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

import keras_mas
from keras_mas.errors import UsageError
from keras_mas.methods import METHODS, load_method

PACKAGES = ("keras_mas", "keras_mas.serving", "keras_mas.training")

# Modules and folders below `keras_mas`, from top to bottom: each may import from its own layer and
# from those below it. "" is `keras_mas/__init__.py`, which offers the names of what is below it.
LAYERS = (
    {"training"},
    {"serving"},
    {""},
    {"methods"},
    {"callbacks", "heads", "model"},
    {"memory"},
    {"binding"},
    {"auto", "regularizer", "states", "training_step"},
    {"importance"},
    {
        "arrays",
        "backend",
        "choices",
        "context",
        "distillation",
        "errors",
        "files",
        "finite",
        "logs",
        "metrics",
        "penalty",
        "plateau",
        "plugins",
        "replicas",
        "versions",
        "weights",
    },
)
HEIGHTS = {name: height for height, layer in enumerate(reversed(LAYERS)) for name in layer}

# The functions in these modules all have the signature that `keras_mas.importance.rule` documents.
RULES = "keras_mas.importance.rules."


def modules() -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the file of every module; of a package, those of `__init__`."""
    for package in PACKAGES:
        folder = Path(importlib.import_module(package).__file__).parent
        for path in folder.rglob("*.py"):
            inside = path.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *inside]).removesuffix(".__init__")
            # A wheel holds the three packages in one folder; a checkout has them side by side.
            if package != "keras_mas" or inside[0] not in ("serving", "training"):
                yield name, path


def imported_names(source: str, package: str) -> Iterator[str]:
    """Yield the absolute name of everything a source imports, at the top or within a function.

    Args:
        source: Text of a module.
        package: Package that relative imports start from.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = importlib.util.resolve_name("." * level + (module or ""), package)
                yield from (f"{base}.{alias.name}" for alias in names)
            case ast.Call(func=function, args=[ast.Constant(value=str(name)), *rest]):
                if ast.unparse(function).split(".")[-1] in ("import_module", "__import__"):
                    anchor = (
                        rest[0].value if rest and isinstance(rest[0], ast.Constant) else package
                    )
                    yield importlib.util.resolve_name(name, anchor)


def layer_of(name: str) -> str | None:
    """Return the entry of `LAYERS` that a dotted name belongs to; None outside `keras_mas`."""
    root, _, inside = name.partition(".")
    if root != "keras_mas":
        return None
    first = inside.split(".")[0]
    return first if first in HEIGHTS else ""  # `keras_mas.MASModel` is offered by `__init__`


def upward_imports(module: str, source: str, package: str) -> list[str]:
    """Return what a module imports from a layer above its own."""
    own = HEIGHTS[layer_of(module)]
    layers = ((name, layer_of(name)) for name in imported_names(source, package))
    return [name for name, layer in layers if layer is not None and HEIGHTS[layer] > own]


def public_functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the public functions of a module and the public methods of its public classes."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and (
                    method.name == "__init__" or not method.name.startswith("_")
                ):
                    yield f"{node.name}.{method.name}", method


def lacks_annotation(function: ast.FunctionDef) -> bool:
    """Return whether a parameter or the result has no type; `self` and `cls` need none."""
    of = function.args
    parameters = [*of.posonlyargs, *of.args, *of.kwonlyargs, of.vararg, of.kwarg]
    types = [parameter.annotation for parameter in parameters if parameter is not None]
    if of.args and of.args[0].arg in ("self", "cls"):
        del types[len(of.posonlyargs)]
    return None in types or (function.returns is None and function.name != "__init__")


MODULES = [pytest.param(*pair, id=pair[0]) for pair in modules()]


def test_every_module_has_a_layer():
    names = {name.split(".")[1] for name, _ in modules() if name != "keras_mas"}
    assert names <= set(HEIGHTS)


@pytest.mark.parametrize(
    ("module", "path"), [pytest.param(*pair, id=pair[0]) for pair in modules()]
)
def test_no_module_imports_from_a_layer_above(module, path):
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    assert upward_imports(module, path.read_text(encoding="utf-8"), package) == []


@pytest.mark.parametrize(
    ("module", "line", "found"),
    [
        ("model", "from .serving import export", "serving.export"),
        ("model", "from . import training", "training"),
        ("model", "import keras_mas.serving", "serving"),
        ("model", "from keras_mas import training", "training"),
        ("model", "from keras_mas import *", "*"),
        ("model", "def f():\n    from .methods.mas import Method", "methods.mas.Method"),
        ("model", 'import_module("keras_mas.serving.export")', "serving.export"),
        ("model", 'importlib.import_module(".training", __name__)', "training"),
        ("model", 'import_module(".run", "keras_mas.training")', "training.run"),
        ("importance.engine", "from ..memory import SynapticMemory", "memory.SynapticMemory"),
        ("penalty", "from .importance import rule", "importance.rule"),
        ("serving.export", "import keras_mas.training.run", "training.run"),
    ],
)
def test_an_import_from_above_is_found(module, line, found):
    name = f"keras_mas.{module}"
    assert upward_imports(name, line, name.rpartition(".")[0]) == [f"keras_mas.{found}"]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("keras_mas.methods.mas", "from ..model import MASModel"),
        ("keras_mas.training.run", "import keras_mas\nfrom keras_mas.serving import export"),
        ("keras_mas.model", "import keras, tensorflow.keras as training\nfrom os import path"),
    ],
)
def test_an_import_from_below_or_outside_is_allowed(module, line):
    assert upward_imports(module, line, module.rpartition(".")[0]) == []


@pytest.mark.parametrize(("module", "path"), MODULES)
def test_public_functions_are_annotated(module, path):
    if module.startswith(RULES):
        pytest.skip("rules have one signature")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [name for name, function in public_functions(tree) if lacks_annotation(function)] == []


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("def f(x: int) -> int: ...", []),
        ("def f(x: int, *more, **options: int) -> int: ...", ["f"]),
        ("def f(*, x) -> None: ...", ["f"]),
        ("def f(): ...", ["f"]),
        ("def _f(x): ...", []),
        ("class A:\n def __init__(self, x: int): ...\n def f(self) -> None: ...", []),
        ("class A:\n def __init__(self, x): ...\n def f(self): ...", ["A.__init__", "A.f"]),
        ("class _A:\n def f(self): ...", []),
    ],
)
def test_a_missing_annotation_is_found(source, missing):
    functions = public_functions(ast.parse(source))
    assert [name for name, function in functions if lacks_annotation(function)] == missing


def test_importing_the_package_does_not_import_tensorflow():
    code = "import sys, keras_mas; assert dir(keras_mas); sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_exists_and_is_documented():
    for name in keras_mas.__all__:
        assert getattr(keras_mas, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'SynapticMemry'"):
        keras_mas.SynapticMemry  # noqa: B018


@pytest.mark.parametrize("name", METHODS)
def test_every_method_loads(name):
    assert load_method(name).__doc__


def test_an_unknown_method_is_refused():
    with pytest.raises(UsageError, match="a method out of mas, .* MODULE:CLASS. Received: 'masss'"):
        load_method("masss")


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_are_told_of_the_annotations(package):
    assert resources.files(package).joinpath("py.typed").is_file()


@pytest.mark.skipif("KERAS_MAS_INSTALLED" not in os.environ, reason="set by `make test`")
def test_the_tests_run_against_the_installed_wheel():
    installed = Path(os.environ["KERAS_MAS_INSTALLED"])
    for package in PACKAGES:
        assert installed in Path(importlib.import_module(package).__file__).parents
