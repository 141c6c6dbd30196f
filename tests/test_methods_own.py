"""A method of your own, named MODULE:CLASS."""

import sys

import pytest

from keras_mas.errors import UsageError
from keras_mas.methods import is_own, load_method

MODULE = """
import importlib
from keras_mas.methods import imm_mean, mas
from keras_mas.methods.base import Method, RememberingMethod
from keras_mas.methods.quadratic import QuadraticMethod

class Mine(Method):
    pass

class Namespace:
    class Inner(Mine):
        pass

class Bare:
    has_strength = takes_auto = has_penalty = trains_all_heads = learns_all_tasks = False
    needs_inputs_alone = False
    measures_examples = True
    needs_one_device = default_decoupled_strength = None
    first_task_depends_on_strength = answers_depend_on_after_task = True
    free_share = None
    default_strength = 1.0

    def default_strength_with(self): ...
    def callbacks(self): ...
    def model(self): ...
    def protect(self): ...
    def restart(self): ...
    def before_task(self): ...
    def under_way(self): ...
    def go_on(self): ...
    def evaluated(self): ...
    def save(self): ...

def function(): ...

class Half(QuadraticMethod):
    pass

class Forgetful(RememberingMethod):
    def state(self): ...
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a module in it that no other test has imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "my_method.py").write_text(MODULE)
    (tmp_path / "needs_more.py").write_text("import something_that_is_not_installed")
    yield tmp_path
    for name in ("my_method", "needs_more", "my_helper"):
        sys.modules.pop(name, None)


def test_a_class_is_found_in_the_current_folder(folder):
    mine = load_method("my_method:Mine")
    assert mine.__name__ == "Mine"
    assert load_method("my_method:Namespace.Inner").__name__ == "Inner"


def test_the_current_folder_comes_before_what_is_installed(folder, monkeypatch):
    installed = folder / "installed"
    installed.mkdir()
    (installed / "my_method.py").write_text("")
    monkeypatch.syspath_prepend(installed)
    assert load_method("my_method:Mine").__name__ == "Mine"


def test_what_lies_beside_it_is_imported_later_too(folder):
    lazy = "class Lazy(Method):\n    def callbacks(self):\n        import my_helper\n"
    (folder / "my_method.py").write_text(f"{MODULE}\n{lazy}        return my_helper.FOUND\n")
    (folder / "my_helper.py").write_text("FOUND = ['it']")
    assert load_method("my_method:Lazy")().callbacks() == ["it"]


@pytest.mark.parametrize("parameters", ["self", "self, strength", "self, *, strength, penalty"])
def test_a_constructor_that_takes_no_strength_and_penalty_is_named(folder, parameters):
    own = f"class Odd(Method):\n    def __init__({parameters}): ...\n"
    (folder / "my_method.py").write_text(f"{MODULE}\n{own}")
    with pytest.raises(UsageError, match="constructor of the method 'my_method:Odd' .*too many"):
        load_method("my_method:Odd")


def test_an_installed_class_is_found():
    assert load_method("keras_mas.methods.mas:Method") is load_method("mas")


def test_names_of_the_form():
    assert [is_own(name) for name in ("a:B", "a.b:C.D", "mas", "a:", ":B", "a:B:C", "a b:C")] == [
        True,
        True,
        *[False] * 5,
    ]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_module:Mine", "module of the method 'no_module:Mine' to be installed or"),
        ("my_method.sub:Mine", "Received: no module 'my_method.sub'"),
        (
            "my_method:Yours",
            r"'Yours' in 'my_method' \(.*my_method.py\) for the method. Received: a",
        ),
        ("my_method:Mine.Inner", "without 'Inner'. Write the name"),
        ("my_method:function", "'my_method:function' to be a class. Received: function. Name"),
        ("my_method:importlib", "Received: module. Name the class"),
        ("my_method:Bare", "has_strength, .*Received: a class without after_task, load. Derive"),
        (
            "my_method:Half",
            r"to have .*importance, merged, .*Received: a class without importance\. Write what .*"
            r"`keras_mas\.methods\.quadratic\.QuadraticMethod`",
        ),
        ("my_method:Forgetful", r"without restore\. Write what is missing, .*RememberingMethod`"),
        (
            "my_method:",
            "a method out of mas, .* or MODULE:CLASS. Received: 'my_method:'. Choose one of them.$",
        ),
    ],
)
def test_what_is_missing_is_named(folder, name, words):
    with pytest.raises(UsageError, match=words):
        load_method(name)


def test_what_the_module_itself_lacks_is_named(folder):
    with pytest.raises(ModuleNotFoundError, match="something_that_is_not_installed"):
        load_method("needs_more:Mine")


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("def protect(self, shared): ...", "`protect` .* 'batch_norm'"),
        ("def protect(self): ...", "`protect` of the method 'my_method:Odd'"),
        ("def after_task(self, model, *, max_examples=None): ...", "`after_task` .*too many"),
        ("def load(self, path): ...", "too many positional arguments"),
        ("def before_task(self, model, x, y): ...", "missing a required argument: 'y'"),
        ("def before_task(self, model, x): ...", "unexpected keyword argument 'y'"),
        ("def model(self, inputs, outputs): ...", "unexpected keyword argument 'name'"),
        ("callbacks = 3", r"`callbacks` .*'int' object is not"),
    ],
)
def test_a_function_that_cannot_be_called_as_ours_is_named(folder, function, words):
    (folder / "my_method.py").write_text(f"{MODULE}\nclass Odd(Method):\n    {function}\n")
    with pytest.raises(UsageError, match=words):
        load_method("my_method:Odd")


@pytest.mark.parametrize(
    ("base", "function", "words"),
    [
        (
            "mas.Method",
            "def importance(self, model, x): ...",
            r"`importance` of .*`keras_mas\.methods\.quadratic\.QuadraticMethod` .*'max_examples'",
        ),
        ("mas.Method", "def importance(self, model, **options): ...", "too many positional"),
        ("mas.Method", "def merged(self, importance, now): ...", "QuadraticMethod` .*too many"),
        ("mas.Method", "def load(self, path): ...", r"base\.Method` takes: \(self, path"),
        ("imm_mean.Method", "def precision(self, model): ...", r"imm_mean\.Method` takes: "),
    ],
)
def test_a_function_of_another_base_that_cannot_be_called_so_is_named(
    folder, base, function, words
):
    (folder / "my_method.py").write_text(f"{MODULE}\nclass Odd({base}):\n    {function}\n")
    with pytest.raises(UsageError, match=words):
        load_method("my_method:Odd")


@pytest.mark.parametrize(
    "function",
    [
        "def importance(self, model, x, **options): return {'kernel': options}",
        "def importance(self, model, x, y=None, max_examples=None, on_progress=None): ...",
        "def merged(self, *arrays): ...",
        "def helper(self, x): ...",
    ],
)
def test_a_function_of_another_base_that_takes_more_is_fine(folder, function):
    (folder / "my_method.py").write_text(f"{MODULE}\nclass Wide(mas.Method):\n    {function}\n")
    assert load_method("my_method:Wide").__name__ == "Wide"


def test_what_classes_of_your_own_agree_on_is_theirs(folder):
    own = "class Base(Method):\n    def helper(self, x): ...\n"
    own += "class Derived(Base):\n    def helper(self, x, y): ...\n"
    (folder / "my_method.py").write_text(f"{MODULE}\n{own}")
    assert load_method("my_method:Derived").__name__ == "Derived"


@pytest.mark.parametrize(
    "function",
    [
        "def protect(self, *args, **kwargs): ...",
        "def after_task(self, model, x, **options): ...",
        "@staticmethod\n    def save(path): ...",
        "@classmethod\n    def load(cls, path, tasks, strict=True): ...",
    ],
)
def test_a_function_that_takes_more_or_is_no_method_of_an_object_is_fine(folder, function):
    (folder / "my_method.py").write_text(f"{MODULE}\nclass Wide(Method):\n    {function}\n")
    assert load_method("my_method:Wide").__name__ == "Wide"
