"""Built-in streams, each loaded by its name."""

import re
from collections.abc import Callable, Iterable

import numpy as np

from ..load_options import LoadOptions
from .changes import Change, Padding, Permutation, Rotation
from .datasets import read_tfds
from .groups import class_groups, tasks_of_groups
from .images import ImageSize
from .source import Source, divided, make_task
from .stream import Rescale, Split, Task, TaskStream, checked_split

_BUILTINS: dict[str, Callable[[LoadOptions], TaskStream]] = {}

_PIXELS: Rescale = (1 / 255, 0.0)
_DIGITS: Rescale = (1 / 16, 0.0)


def builtin_names() -> tuple[str, ...]:
    """Return the names that `load_tasks` knows without a file."""
    return tuple(_BUILTINS)


def load_builtin(name: str, options: LoadOptions) -> TaskStream:
    """Load a built-in stream.

    Args:
        name: One of `builtin_names()`.
        options: Seed, validation fraction, scenario, where data lie and are kept.

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
    """Load scikit-learn's digits, two per task."""
    return _in_groups("split-digits", _digits(), 5, options, _DIGITS)


@_builtin("permuted-digits")
def _permuted_digits(options):
    """Load scikit-learn's digits ten times, each time with the pixels in another order."""
    return _changed("permuted-digits", _digits(), _permutations(), options, _DIGITS)


@_builtin("rotated-digits")
def _rotated_digits(options):
    """Load scikit-learn's digits ten times, turned by 0°, 18°, … 162°."""
    return _changed("rotated-digits", _digits(), _rotations(), options, _DIGITS)


@_builtin("split-mnist")
def _split_mnist(options):
    """Load MNIST with the tasks, task order and scaling of the MAS authors' demonstration."""
    pairs = {"1-2": (1, 2), "3-4": (3, 4), "5-6": (5, 6), "7-8": (7, 8), "9-0": (9, 0)}
    tasks = tasks_of_groups(_tfds("mnist", options), pairs, options)
    return _stream("split-mnist", "task", tasks, options, _standardized(0.1307, 0.3081))


@_builtin("split-mnist-hsu")
def _split_mnist_hsu(options):
    """Load MNIST as Hsu et al. do: 0-1, 2-3, …, in images of 32x32 pixels, and their scaling.

    "Re-evaluating Continual Learning Scenarios", 2018 (arXiv:1810.12488), and its code. They use it
    in all three scenarios.
    """
    source = _tfds("mnist", options).changed(Padding(2))
    return _in_groups("split-mnist-hsu", source, 5, options, _standardized(0.1, 0.2752))


@_builtin("permuted-mnist")
def _permuted_mnist(options):
    """Load MNIST ten times, each time with the pixels in another order."""
    source = _tfds("mnist", options)
    return _changed("permuted-mnist", source, _permutations(), options, _PIXELS)


@_builtin("rotated-mnist")
def _rotated_mnist(options):
    """Load MNIST ten times, turned by 0°, 18°, … 162°."""
    return _changed("rotated-mnist", _tfds("mnist", options), _rotations(), options, _PIXELS)


@_builtin("split-fashion")
def _split_fashion(options):
    """Load Fashion-MNIST, two classes per task."""
    return _in_groups("split-fashion", _tfds("fashion_mnist", options), 5, options, _PIXELS)


@_builtin("split-kmnist")
def _split_kmnist(options):
    """Load Kuzushiji-MNIST, two classes per task."""
    return _in_groups("split-kmnist", _tfds("kmnist", options), 5, options, _PIXELS)


@_builtin("split-cifar10")
def _split_cifar10(options):
    """Load CIFAR-10, two classes per task."""
    return _in_groups("split-cifar10", _tfds("cifar10", options), 5, options, _PIXELS)


@_builtin("split-cifar100")
def _split_cifar100(options):
    """Load CIFAR-100, ten classes per task."""
    return _in_groups("split-cifar100", _tfds("cifar100", options), 10, options, _PIXELS)


@_builtin("split-omniglot")
def _split_omniglot(options):
    """Load Omniglot with a task for each of its 50 alphabets, in images of 28x28 pixels.

    TFDS divides the alphabets, not the 20 drawings of each character: here one fifth of these is
    test data, the same for every seed.
    """
    drawn = read_tfds("omniglot", ImageSize(28), options.data_dir, options.store)
    train, test = divided(Split.joined(drawn.train, drawn.test), 0.2)
    alphabets: dict[str, list[int]] = {}
    for label, name in enumerate(drawn.classes):  # such as "Malay_(Jawi_-_Arabic)_7"
        alphabet = re.sub(r"[^\w.-]", "", name.rpartition("_")[0], flags=re.ASCII)
        alphabets.setdefault(alphabet, []).append(label)
    tasks = tasks_of_groups(Source(drawn.classes, train, test), alphabets, options)
    return _stream("split-omniglot", "task", tasks, options, _PIXELS, "crop")


# The data sets of the paper's tasks, and the share of test data where they have none.
_PAPER_TASKS: dict[str, tuple[str, float | None]] = {
    "flowers": ("oxford_flowers102", None),
    "scenes": ("mit_indoor67", None),
    "birds": ("caltech_birds2011", None),
    "cars": ("cars196", None),
    "aircraft": ("fgvc_aircraft", None),
    "actions": ("voc2012_actions", None),
    "letters": ("chars74k", 0.2),
    "svhn": ("svhn_cropped", None),
}
_PAPER_STREAMS = {
    "paper-birds-scenes": ("birds", "scenes"),
    "paper-scenes-birds": ("scenes", "birds"),
    "paper-flowers-birds": ("flowers", "birds"),
    "paper-flowers-scenes": ("flowers", "scenes"),
    "paper-three": ("scenes", "birds", "flowers"),
    "paper-eight": tuple(_PAPER_TASKS),
}


def _register_paper_stream(name, tasks):
    @_builtin(name)
    def load(options):
        """Load data sets of the paper, a task each, in images of 224x224 pixels."""
        return _stream(
            name,
            "task",
            tuple(make_task(task, _paper_source(task, options), None, options) for task in tasks),
            options,
            _PIXELS,
            "crop",
        )


def _paper_source(task, options):
    name, test_fraction = _PAPER_TASKS[task]
    return read_tfds(name, ImageSize(224), options.data_dir, options.store, test_fraction)


for _name, _tasks in _PAPER_STREAMS.items():
    _register_paper_stream(_name, _tasks)


def _tfds(name, options):
    return read_tfds(name, None, options.data_dir, options.store)


def _digits() -> Source:
    """Read scikit-learn's 1,797 scanned digits, 8x8 pixels from 0 to 16.

    Scikit-learn does not divide them: one fifth is test data, the same for every seed.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images.astype(np.uint8)  # whole numbers, stored as floats
    train, test = divided(checked_split(images, digits.target, "scikit-learn's digits"), 0.2)
    return Source(tuple("0123456789"), train, test)


def _in_groups(name, source, tasks, options, rescale):
    """Make a task-incremental stream of groups of classes, in the classes' own order."""
    groups = class_groups(len(source.classes), tasks, f"'{name}'")
    return _stream(name, "task", tasks_of_groups(source, groups, options), options, rescale)


def _changed(name, source, changes, options, rescale):
    """Make a domain-incremental stream of one source, changed in another way for each task."""
    tasks = tuple(
        make_task(task, source if change is None else source.changed(change), None, options)
        for task, change in changes
    )
    return _stream(name, "domain", tasks, options, rescale)


def _permutations() -> Iterable[tuple[str, Change | None]]:
    """Yield ten orders: the pixels' own, and those of the seeds 1 to 9, whatever the run's seed."""
    return ((f"permutation-{seed}", Permutation(seed) if seed else None) for seed in range(10))


def _rotations() -> Iterable[tuple[str, Change | None]]:
    """Yield ten angles; beyond 180° a six would become a nine."""
    return ((f"rotation-{a}", Rotation(a) if a else None) for a in range(0, 180, 18))


def _stream(
    name,
    scenario,
    tasks: tuple[Task, ...],
    options: LoadOptions,
    rescale: Rescale,
    resize: str | None = None,
):
    return TaskStream(
        name,
        options.scenario or scenario,
        tasks,
        rescale,
        builtin=True,
        usual_scenario=scenario,
        resize=resize,
    )


def _standardized(mean: float, deviation: float) -> Rescale:
    """Return the scaling of pixels with this mean and deviation, both of values from 0 to 1."""
    return (1 / 255 / deviation, -mean / deviation)
