"""A training step that is divided among replicas, the copies of a model on several devices.

Keras adds up what the replicas return as loss and as gradients. A mean over the examples of one
replica therefore counts by the share that the replica has of the batch: 1/R with R replicas, or
n_r / n if who divides the batch says how many examples it has, for they need not be divisible by R.
"""

import contextlib
import contextvars

import tensorflow as tf

from . import backend  # noqa: F401
from .context import holding

_BATCH = contextvars.ContextVar[tf.Tensor | None]("batch", default=None)


def count() -> int:
    """Return R, among how many replicas a batch is divided."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def dividing(examples: tf.Tensor) -> contextlib.AbstractContextManager[None]:
    """Say, to a replica's step inside the block, how many examples the whole batch has.

    Args:
        examples: n, an integer scalar.
    """
    return holding(_BATCH, examples)


def copies(examples: tf.Tensor, parts: int) -> tf.Tensor:
    """Return how often each example of a batch is there when the batch has been divided.

    Once; or, if it has fewer examples than there are parts, in each part, for layers fail on none.

    Args:
        examples: n.
        parts: Into how many it is divided.
    """
    return tf.where(examples < parts, parts, 1)


def own_rows(examples: tf.Tensor) -> slice:
    """Return which rows of a batch are those of the replica that is asking.

    Args:
        examples: n.
    """
    number = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32)
    are_copies = copies(examples, count()) > 1
    first, end = (each * examples // count() for each in (number, number + 1))
    return slice(tf.where(are_copies, 0, first), tf.where(are_copies, examples, end))


def share(own: tf.Tensor) -> tf.Tensor:
    """Return the share of the batch that a replica's examples `own`, `[n_r, ...]`, are."""
    if _BATCH.get() is None:
        return tf.constant(1 / count())
    whole = _BATCH.get() * copies(_BATCH.get(), count())
    return tf.cast(tf.shape(own)[0], tf.float32) / tf.cast(whole, tf.float32)


def weight_of_copy() -> tf.Tensor:
    """Return 1, or less for a batch whose examples all replicas have, so that each counts once."""
    batch = _BATCH.get()
    return tf.constant(1.0) if batch is None else 1 / tf.cast(copies(batch, count()), tf.float32)


def mean_batch() -> tf.Tensor:
    """Return n / R, the examples of a batch for each replica, inside a block of `dividing`."""
    return tf.cast(_BATCH.get(), tf.float32) / count()


def total(value: tf.Tensor) -> tf.Tensor:
    """Return the sum over the replicas of a tensor of a replica's step, on each of them."""
    replica = tf.distribute.get_replica_context()
    if count() == 1 or replica is None:
        return value
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, value)


def any_of(flags: tf.Tensor) -> tf.Tensor:
    """Return for each flag whether it is true on any replica."""
    if count() == 1:
        return flags
    return total(tf.cast(flags, tf.int32)) > 0
