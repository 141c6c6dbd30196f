"""Pipelines: the batches of a split in an order that depends on a seed and the epoch alone."""

import itertools
from typing import TYPE_CHECKING

import numpy as np

from ..augmentation import augmented, check_augmentations

if TYPE_CHECKING:
    import tensorflow as tf

    from .stream import Split

# How many batches are made at the same time where that means to read files, and how many are kept
# ready. Together with the one in use they bound the memory of a pipeline.
PARALLEL_READS = 2
READY = 2


def batches(
    split: "Split",
    batch_size: int,
    *,
    shuffle_seed: int | None,
    augment: tuple[str, ...],
    first_epoch: int,
) -> "tf.data.Dataset":
    """Return the batches of a split; arguments as for `Split.dataset`."""
    import tensorflow as tf

    source = split.source
    source.check_batch(batch_size)
    check_augmentations(augment, source.shape[1:])
    count = len(split)
    number_of_batches = -(-count // batch_size)
    epochs = itertools.count(first_epoch)

    def order():
        """Return the epoch that begins now, and the rows and labels in its order."""
        epoch = next(epochs)
        chosen = epoch_order(count, shuffle_seed, epoch)
        return np.int64(epoch), split.rows[chosen], split.labels[chosen]

    def one_epoch(epoch, rows, of_rows):
        def cut(number):
            part = slice(number * batch_size, (number + 1) * batch_size)
            return epoch, number, rows[part], of_rows[part]

        return tf.data.Dataset.range(number_of_batches).map(cut)

    def batch(epoch, number, rows, of_rows):
        rows, of_rows = tf.ensure_shape(rows, [None]), tf.ensure_shape(of_rows, [None])
        inputs = source.gather(rows)
        if augment:
            inputs = augmented(inputs, augment, (shuffle_seed or 0, epoch, number))
        return inputs, of_rows

    return (
        tf.data.Dataset.range(1)
        .map(lambda _: tf.numpy_function(order, [], [tf.int64, tf.int64, tf.int64]))
        .flat_map(one_epoch)
        .map(
            batch,
            num_parallel_calls=None if source.in_memory else PARALLEL_READS,
            deterministic=None if source.in_memory else True,
        )
        .prefetch(READY)
        .apply(tf.data.experimental.assert_cardinality(number_of_batches))
    )


def epoch_order(count: int, seed: int | None, epoch: int) -> np.ndarray:
    """Return the positions `[count]` in the order of an epoch.

    Args:
        count: Number of examples.
        seed: Seed of the permutation; None for the positions in their own order.
        epoch: Number of the epoch, from 0.
    """
    if seed is None:
        return np.arange(count)
    return np.random.default_rng([seed, epoch]).permutation(count)
