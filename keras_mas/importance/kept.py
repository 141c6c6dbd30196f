"""An engine is kept with its model, so that what it has traced serves the next measurement too."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from ..weights import checked_layer
from .engine import Engine, squared_norm_target
from .fingerprint import Fingerprint
from .unchanged import KEPT_ENGINE


@dataclasses.dataclass
class _Kept:
    engine: Engine
    options: tuple
    fingerprint: Fingerprint

    def serves(self, model: keras.Model, options: tuple) -> bool:
        """Return whether a new engine would do the same as this one."""
        is_for = self.engine.model is model and self.options == options
        return is_for and self.fingerprint.is_current()


@contextlib.contextmanager
def kept_engine(
    model: keras.Model,
    output: str | Callable[[Any], Any],
    slice_bytes: int,
    targets: Callable[[list[tf.Tensor], Any], list[tf.Tensor]] = squared_norm_target,
    magnitude: Callable[[tf.Tensor], tf.Tensor] = tf.abs,
) -> Iterator[Engine]:
    """Have an engine for one pass over data inside the block: that of the last pass, or a new one.

    The engine of the last pass is taken if the options are the same and nothing has changed in the
    model that a trace depends on (see `fingerprint.py`), and put back when the block ends. It is
    dropped if an error ends the block. While it is in use, another pass makes an engine of its own.

    Args:
        model: As for `Engine`.
        output: As for `Engine`.
        slice_bytes: As for `Engine`.
        targets: As for `Engine`.
        magnitude: As for `Engine`.

    Yields:
        An `Engine` whose sums are 0.
    """
    options = output, slice_bytes, targets, magnitude
    # Keras neither tracks nor saves nor copies what is put into the `vars` of a model directly. The
    # engine and the model hold each other: garbage collection frees both once the model is dropped.
    kept = vars(checked_layer(model)).pop(KEPT_ENGINE, None)
    if kept is not None and kept.serves(model, options):
        kept.engine.start()
    else:
        kept = None  # which frees it before there is another
        kept = _Kept(Engine(model, *options), options, Fingerprint(model, output))
    engine, fingerprint, changed = kept.engine, kept.fingerprint, []

    def before_kind():
        # The data may change the model on the way, and back again.
        if not fingerprint.is_current():
            changed.append(True)
            engine.forget()

    engine.before_kind = before_kind
    yield engine
    engine.free()
    if not changed and fingerprint.is_current():
        vars(model)[KEPT_ENGINE] = kept


def forget_traces(model: keras.Model) -> None:
    """Free what measurement keeps with a model, so that the next one traces the model anew.

    That is needed after a change that cannot be noticed: of a global name that a `call` of yours
    reads, or deep inside an object of yours; see `compute_importance`.

    Args:
        model: The model.
    """
    vars(checked_layer(model)).pop(KEPT_ENGINE, None)
