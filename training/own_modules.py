"""The files that a class or function of a user's own is written in, with its helper modules."""

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras_mas

_OURS = Path(keras_mas.__file__).parent
# Folders of what was installed, which no user changes between two runs.
_INSTALLED = {"site-packages", "dist-packages"}


def files_of(name: str, own: Any) -> list[Path]:
    """Return the Python files that decide what something of a user's own does.

    They are that of its module and those of all modules that this one imports, at the top or within
    a function, directly or through one another, as far as they lie below the folder that it was
    imported from. They are found by their text: what has been imported so far makes no difference.

    Args:
        name: `MODULE:NAME`, whose module has been imported.
        own: What it stands for.

    Returns:
        Files in alphabetical order; none of a compiled module.
    """
    module = sys.modules[name.partition(":")[0]]
    path = _source(module)
    if path is None:
        return []
    root = _root(module, path)
    found = {path} if _INSTALLED & {*root.parts} else _with_imported(path, root)
    # What a module passes on of another one that is installed is written there.
    return sorted(found | {_source(own) or path})


def _source(own):
    try:
        source = inspect.getsourcefile(own)
    except TypeError:  # an instance, as of `functools.partial`
        return None
    return Path(source) if source else None


def _root(module, path):
    """Return the folder that a module was imported from: that of its outermost package."""
    is_package = hasattr(module, "__path__")
    return path.parents[module.__name__.count(".") + is_package]


def _with_imported(path, root):
    """Return a file and those below a folder that it imports, directly or through one another."""
    found, waiting = {path}, [path]
    while waiting:
        new = {file for file in _imported(waiting.pop(), root) if _is_own(file, root)} - found
        found |= new
        waiting += new
    return found


def _is_own(path, root):
    return path.is_relative_to(root) and not path.is_relative_to(_OURS)


def _imported(path: Path, root: Path) -> Iterator[Path]:
    """Yield the files below a folder that a file imports itself."""
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _on_the_way(root, alias.name)
        elif isinstance(node, ast.ImportFrom):
            folder = path.parents[node.level - 1] if node.level else root
            for alias in node.names:  # a module, or something in one
                yield from _on_the_way(folder, f"{node.module or ''}.{alias.name}".strip("."))


def _nodes(path):
    try:
        return ast.walk(ast.parse(path.read_bytes()))
    except (SyntaxError, ValueError):  # no module that could be imported
        return iter(())


def _on_the_way(folder, name):
    """Yield the files of a dotted name's modules: of its packages, and of itself."""
    for part in name.split("."):
        folder = folder / part
        files = (folder / "__init__.py", folder.with_name(f"{part}.py"))
        # An empty one says only that its folder is a package.
        yield from (file for file in files if file.is_file() and file.stat().st_size)
