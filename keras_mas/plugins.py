"""What users name as MODULE:NAME: classes and functions of their own modules."""

import os
import re
import sys
from importlib import import_module
from typing import Any

from .errors import UsageError

_OWN = re.compile(r"[\w.]+:[\w.]+")


def is_own(name: str) -> bool:
    """Return whether a name is of the form MODULE:NAME, of something that is not one of ours."""
    return _OWN.fullmatch(name) is not None


def load_named(name: str, what: str) -> Any:
    """Return what a name such as `my_module:MyMethod` stands for.

    Args:
        name: A module that is installed or lies in the current folder, a colon, and what is in it;
            `my_module:MyMethod.Inner` is what is in that.
        what: What the name is for, for error messages: "method", "backbone", "callback".

    Raises:
        UsageError: If there is no such module, or nothing of that name in it.
    """
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise UsageError(
            f"Expected the {what} as MODULE:NAME, such as my_module:my_name. Received: '{name}'."
        )
    found = module = _imported(module_name, f"the {what} '{name}'")
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise UsageError(
                f"Expected '{path}' in '{module_name}' "
                f"({getattr(module, '__file__', None) or 'built in'}) for the {what}. Received: a "
                f"module without '{attribute}'. Write the name of what it holds after the colon."
            )
        found = getattr(found, attribute)
    return found


def _imported(module_name, what):
    _put_current_folder_first()
    try:
        return import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a package that the module itself imports
        raise UsageError(
            f"Expected the module of {what} to be installed or in the current folder. Received: no "
            f"module '{error.name}'. Change to the folder that holds it."
        ) from error


def _put_current_folder_first():
    """Import from the current folder as a script in it does, now and in functions called later."""
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
