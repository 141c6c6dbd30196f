"""Augmentation: random changes of training images that leave their classes as they are."""

from typing import TYPE_CHECKING

from keras_mas.errors import UsageError

from .options import check_names

if TYPE_CHECKING:
    import tensorflow as tf

# In the order in which they are applied.
AUGMENTATIONS = ("flip", "crop")

# Of the height and the width, what the images are shifted by at most: 28 pixels of 224.
_MARGIN = 1 / 8


def check_augmentations(names: tuple[str, ...], input_shape: tuple[int, ...]) -> None:
    """Refuse names of no augmentation, and augmentations of what is no image.

    Args:
        names: Names out of `AUGMENTATIONS`.
        input_shape: Shape of one input.

    Raises:
        UsageError: If a name is unknown, or the inputs are not `[height, width, channels]`.
    """
    check_names("augment", names, AUGMENTATIONS)
    if names and len(input_shape) != 3:
        raise UsageError(
            f"Expected images [height, width, channels] for `--augment {','.join(names)}`. "
            f"Received: inputs of shape {list(input_shape)}. Leave the option out."
        )


def augmented(
    images: "tf.Tensor", names: tuple[str, ...], place: tuple["int | tf.Tensor", ...]
) -> "tf.Tensor":
    """Change every image of a batch at random.

    Args:
        images: `[n, H, W, C]`.
        names: `"flip"` mirrors every other image, left to right; `"crop"` adds an eighth of height
            and width on every side, by reflection, and cuts out a part of the old size.
        place: Whole numbers that the random ones depend on, such as seed, epoch and batch.

    Returns:
        Images of the same shape and dtype.
    """
    import tensorflow as tf

    seed = tf.zeros([2], tf.int64)
    for number in place:
        seed = tf.random.fold_in(seed, number)
    for name, change in (("flip", _flipped), ("crop", _cropped)):
        if name in names:
            images = change(images, tf.random.fold_in(seed, AUGMENTATIONS.index(name)))
    return images


def _flipped(images, seed):
    import tensorflow as tf

    mirrored = tf.random.stateless_uniform([tf.shape(images)[0], 1, 1, 1], seed) < 0.5
    return tf.where(mirrored, tf.reverse(images, [2]), images)


def _cropped(images, seed):
    import tensorflow as tf

    count, (height, width) = tf.shape(images)[0], images.shape[1:3]
    for axis, size in ((1, height), (2, width)):
        margin = int(size * _MARGIN)
        padding = [[margin, margin] if i == axis else [0, 0] for i in range(4)]
        shift = tf.random.stateless_uniform(
            [count, 1], tf.random.fold_in(seed, axis), 0, 2 * margin + 1, tf.int64
        )
        kept = shift + tf.range(size, dtype=tf.int64)
        images = tf.gather(tf.pad(images, padding, "REFLECT"), kept, axis=axis, batch_dims=1)
    return tf.ensure_shape(images, [None, height, width, None])
