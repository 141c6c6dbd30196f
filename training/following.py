"""What follows a run while it goes on: logs, and callbacks of a user's own."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_mas.errors import UsageError
from keras_mas.plugins import load_named

from .options import check_options, listed, option
from .settings import Settings

LOGS = ("csv", "tensorboard")


@dataclasses.dataclass(frozen=True)
class Following:
    """What follows a run while it goes on, and is not to change the result.

    Attributes:
        log: Names out of `LOGS`, separated by commas: what is written into the run's folder.
        callback: `MODULE:FUNCTION`; the function is called with the `Settings` and the folder of a
            run. It returns a `keras.callbacks.Callback`, such as those of Weights & Biases and
            MLflow, a `listening.Listener`, which is told of tasks and their accuracies, or a list
            of them. They follow the `fit` of every task, and are to leave it as it is: a run that
            is finished is read without them. None for none.

    Raises:
        UsageError: If there is no such log, or no such function that takes two arguments.
    """

    log: str = option(
        "",
        "logs to write into the run's folder, out of csv and tensorboard, as in csv,tensorboard",
        choices=LOGS,
        several=True,
        metavar="NAMES",
    )
    callback: str | None = option(
        None,
        "function that returns Keras callbacks or listeners, called with (settings, folder) of a "
        "run; they are to observe and not to change the training, and a finished run is read "
        "without them (default: none)",
        metavar="MODULE:FUNCTION",
    )

    def __post_init__(self):
        check_options(self)
        if self.callback is not None:
            load_callback(self.callback)  # refuses what is none before anything is trained

    @property
    def logs(self) -> tuple[str, ...]:
        """The names in `log`."""
        return listed(self.log)


def load_callback(name: str) -> Callable[[Settings, Path], Any]:
    """Return the function that makes callbacks, as `Following` names it.

    Raises:
        UsageError: If there is no such function, or it does not take two arguments.
    """
    function = load_named(name, "callback")
    if not callable(function):
        raise UsageError(
            f"Expected `--callback {name}` to name a function. Received: "
            f"{type(function).__name__}. Write the name of what makes callbacks after the colon."
        )
    try:
        inspect.signature(function).bind("settings", "folder")
    except TypeError as error:
        raise UsageError(
            f"Expected `{name}` to take the settings and the folder of a run. Received: a function "
            f"that cannot be called so ({error}). Give it these two arguments."
        ) from None
    except ValueError:
        pass  # a function of C, which does not tell its arguments
    return function
