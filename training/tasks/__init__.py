"""Streams of tasks: built-in, from TensorFlow Datasets, or from your own files."""

from ..load_options import SCENARIOS, LoadOptions
from .builtin import builtin_names
from .errors import DataError
from .failures import original_errors
from .load import check_tasks, load_tasks
from .stream import LearnedTask, Split, Task, TaskStream

__all__ = [
    "SCENARIOS",
    "DataError",
    "LearnedTask",
    "LoadOptions",
    "Split",
    "Task",
    "TaskStream",
    "builtin_names",
    "check_tasks",
    "load_tasks",
    "original_errors",
]
