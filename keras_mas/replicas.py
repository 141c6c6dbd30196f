"""A training step that is divided among replicas, the copies of a model on several devices.

Keras adds up what the replicas return as loss and as gradients. A mean over the examples of one
replica therefore counts by the share that the replica has of the batch: 1/R with R replicas, or
n_r / n if who divides the batch says how many examples it has, for the last batch of an epoch need
not be divisible.
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


def mean_batch() -> tf.Tensor:
    """Return n / R, the examples of a batch for each replica, inside a block of `dividing`."""
    return tf.cast(_BATCH.get(), tf.float32) / count()


def of_batch(mean: tf.Tensor, own: tf.Tensor) -> tf.Tensor:
    """Return what a replica adds to the mean over the batch.

    Args:
        mean: Mean over the examples of the replica, a float scalar; of any value if it has none.
        own: `[n_r, ...]`, something of these examples.

    Returns:
        Scalar that the replicas add up: mean · n_r / n.
    """
    if _BATCH.get() is None:
        return mean / count()
    share = tf.cast(tf.shape(own)[0], mean.dtype) / tf.cast(_BATCH.get(), mean.dtype)
    return tf.math.multiply_no_nan(mean, share)  # the mean over no example is NaN


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
