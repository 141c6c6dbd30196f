"""How far a pass over the data has come: told to a function, or shown as a progress bar."""

import sys
import time
from collections.abc import Callable

import keras

# Called with the number of examples measured so far, and that of all examples or None.
OnProgress = Callable[[int, int | None], object]

# With verbose="auto" a shorter pass shows no progress bar.
_AUTO_SECONDS = 2.0


class Progress:
    """The progress of one pass.

    Args:
        verbose: As for `compute_importance`.
        total: Number of examples of the whole pass, None if unknown.
        on_progress: As for `compute_importance`.

    Raises:
        ValueError: If `verbose` is none of its values, or `on_progress` no function.
    """

    def __init__(self, verbose: int | str, total: int | None, on_progress: OnProgress | None):
        if verbose not in ("auto", 0, 1):
            raise ValueError(f'Expected verbose to be "auto", 0 or 1. Received: {verbose!r}.')
        if on_progress is not None and not callable(on_progress):
            raise ValueError(
                "Expected on_progress to be a function of the number of examples measured and "
                f"that of all. Received: {on_progress!r}. Pass None for the progress bar."
            )
        self.total, self.on_progress = total, on_progress
        self.examples = 0
        on_terminal = sys.stdout is not None and sys.stdout.isatty()
        shown = on_progress is None and (verbose == 1 or (verbose == "auto" and on_terminal))
        self.bar = keras.utils.Progbar(total, unit_name="example") if shown else None
        self.bar_from = time.monotonic() + (_AUTO_SECONDS if verbose == "auto" else 0.0)

    def add(self, examples: int) -> None:
        """Report that so many examples more have been measured."""
        self.examples += examples
        if self.on_progress is not None:
            self.on_progress(self.examples, self.total)
        self._show()

    def end(self) -> None:
        """End the bar's line; with a known total the last example has ended it."""
        if self.total is None:
            self._show(finalize=True)

    def _show(self, finalize: bool | None = None) -> None:
        if self.bar is not None and time.monotonic() >= self.bar_from:
            self.bar.update(self.examples, finalize=finalize)
