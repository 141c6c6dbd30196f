"""Training that diverged, or that learned nothing: found, and said with what to do about it."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from keras_mas.choices import kappa_of
from keras_mas.errors import NotFiniteError
from keras_mas.finite import FitDivergedError
from keras_mas.methods.online_mas import NothingProtectedWarning

from .settings import Settings
from .stability_decay import margin_of
from .summary import title


class DivergedError(RuntimeError):
    """A loss, weights or an importance became NaN or infinite."""


class NotLearnedWarning(UserWarning):
    """A task was learned no better than by always naming its most frequent class."""


@contextlib.contextmanager
def naming_divergence(task: str, settings: Settings) -> Iterator[None]:
    """Say of a `fit` in the block that diverged in which task that was, and what to do.

    Args:
        task: Name of the task.
        settings: How it is learned.

    Raises:
        DivergedError: In the place of a `FitDivergedError`.
    """
    try:
        yield
    except FitDivergedError as error:
        raise _diverged(f"{error.found} of task '{task}'", settings) from error


@contextlib.contextmanager
def naming_infinity(task: str, settings: Settings, epochs: int) -> Iterator[None]:
    """Say of an importance in the block that is not finite when that was, and what to do.

    Args:
        task: Name of the task.
        settings: How it was learned.
        epochs: In how many epochs.

    Raises:
        DivergedError: In the place of a `NotFiniteError`.
    """
    try:
        yield
    except NotFiniteError as error:
        found = f"{error} It was measured after epoch {epochs}, the last of task '{task}'"
        raise _diverged(found, settings) from error


@contextlib.contextmanager
def naming_unprotected(task: str, settings: Settings) -> Iterator[None]:
    """Say of a `NothingProtectedWarning` in the block in which run, and after which task, it came.

    Args:
        task: Name of the task.
        settings: How it was learned.
    """
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:  # what was said before an error counts too
        for one in caught:
            message, category = one.message, one.category
            if issubclass(category, NothingProtectedWarning):
                run = f"{title(settings.of_method)} seed {settings.seed}"
                message = NothingProtectedWarning(f"After task '{task}' with {run}: {message}")
            warnings.warn_explicit(message, category, one.filename, one.lineno)


def check_weights(weights: Iterable[keras.Variable], task: str, settings: Settings) -> None:
    """Refuse weights that a method has spoiled after a task: NaN would count as an answer.

    Args:
        weights: All weights that the task changed.
        task: Name of the task.
        settings: How it was learned.

    Raises:
        DivergedError: If one is NaN or infinite somewhere.
    """
    for weight in weights:
        if not np.all(np.isfinite(weight.numpy())):
            raise DivergedError(
                f"Expected finite weights. Received: NaN or infinity in '{weight.path}' after "
                f"task '{task}' was learned with {title(settings.of_method)}. Lower "
                f"{_options_to_lower(settings)}, or look at what the method does after a task."
            )


def warn_if_not_learned(
    task: str, number: int, settings: Settings, labels: np.ndarray, accuracy: float | None
) -> None:
    """Warn of a network that died, or that a λ which nobody chose holds too still.

    A pretrained network dies at a learning rate too high, and the first task shows it. Later ones
    may not be learned because λ is large, which is told where "auto" found it.

    Args:
        task: Name of the task.
        number: Its number, from 0.
        settings: How it was learned.
        labels: Those of the examples that accuracy was measured on, `[N]`.
        accuracy: A fraction; None if there are no such examples.
    """
    asked = settings.strength
    is_auto = settings.has_strength and margin_of(asked) is None and kappa_of(asked) is not None
    if accuracy is None or (number and not is_auto):
        return
    cure = "Lower `--learning-rate`, or raise `--epochs`."
    if number:
        cure = "Hold less, as with `--strength auto:3`, or raise `--epochs`."
    most_frequent = np.bincount(labels).max() / len(labels)
    if accuracy <= most_frequent < 1:  # of a single class there is nothing to tell apart yet
        warnings.warn(
            f"Task '{task}' was not learned with {title(settings.of_method)}: its accuracy is "
            f"{accuracy:.4f}, and naming the most frequent class every time gives "
            f"{most_frequent:.4f}. {cure}",
            NotLearnedWarning,
            stacklevel=2,
        )


def _diverged(found, settings):
    return DivergedError(
        f"{found} with {title(settings.of_method)}. Lower {_options_to_lower(settings)}; the tasks "
        "before it are kept."
    )


def _options_to_lower(settings):
    both = "`--learning-rate` or `--strength`"
    return both if settings.has_strength else "`--learning-rate`"
