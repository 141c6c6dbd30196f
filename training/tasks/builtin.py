"""Built-in streams, each loaded by its name."""

from collections.abc import Callable

import numpy as np

from .datasets import read_tfds
from .source import LoadOptions, Source, hold_out, make_task, shuffled
from .stream import Task, TaskStream, checked_split

_BUILTINS: dict[str, Callable[[LoadOptions], TaskStream]] = {}


def builtin_names() -> tuple[str, ...]:
    """Return the names that `load_tasks` knows without a file."""
    return tuple(_BUILTINS)


def load_builtin(name: str, options: LoadOptions) -> TaskStream:
    """Load a built-in stream.

    Args:
        name: One of `builtin_names()`.
        options: Seed, validation fraction, where data lie and are kept.

    Returns:
        The stream, with `builtin` set.

    Raises:
        DataError: If the data is unavailable.
    """
    return _BUILTINS[name](options)


def _builtin(name):
    def register(load):
        _BUILTINS[name] = load
        return load

    return register


@_builtin("split-digits")
def _split_digits(options):
    """Load scikit-learn's 1,797 scanned digits, 8x8 pixels from 0 to 16, two digits per task.

    Scikit-learn does not divide them: one fifth is test data, the same for every seed.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)  # whole numbers, stored as floats
    everything = shuffled(checked_split(images, digits.target, "scikit-learn's digits"), seed=0)
    train, test = hold_out(everything, 0.2)
    source = Source(tuple("0123456789"), train, test)
    pairs = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    tasks = _digit_pairs(source, pairs, options)
    return TaskStream("split-digits", "task", tasks, (1 / 16, 0.0), builtin=True)


@_builtin("split-mnist")
def _split_mnist(options):
    """Load MNIST with the tasks, task order and scaling of the MAS authors' demonstration."""
    source = read_tfds("mnist", None, options.data_dir, options.store)
    pairs = [(1, 2), (3, 4), (5, 6), (7, 8), (9, 0)]
    mean, deviation = 0.1307, 0.3081  # of pixels from 0 to 1
    rescale = (1 / 255 / deviation, -mean / deviation)
    tasks = _digit_pairs(source, pairs, options)
    return TaskStream("split-mnist", "task", tasks, rescale, builtin=True)


def _digit_pairs(source, pairs, options) -> tuple[Task, ...]:
    return tuple(make_task(f"{a}-{b}", source, (a, b), options) for a, b in pairs)
