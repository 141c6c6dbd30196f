import numpy as np
import pytest

from keras_mas.errors import UsageError
from keras_mas.training.augmentation import augmented, check_augmentations

tf = pytest.importorskip("tensorflow")


def many(image, names, count=64):
    """Change one image in as many ways."""
    images = tf.repeat(tf.constant(image)[None], count, axis=0)
    changed = augmented(images, names, (0, 0, 0))
    assert changed.shape == images.shape and changed.dtype == images.dtype
    return changed.numpy()


def test_flip_mirrors_about_half_of_the_images():
    image = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    mirrored = image[:, ::-1]
    found = many(image, ("flip",))
    count = sum(np.array_equal(one, mirrored) for one in found)
    assert count + sum(np.array_equal(one, image) for one in found) == 64
    assert 16 < count < 48


def test_crop_shifts_by_up_to_an_eighth_and_mirrors_what_is_missing():
    # Rows 0 … 15 shifted by s rows: row r shows |r + s - 2|, and beyond 15 what mirrors it there.
    rows, columns = np.mgrid[:16, :8]
    image = np.stack([rows, columns], axis=-1).astype(np.float32)
    shifts = set()
    for found in many(image, ("crop",), count=256):
        for axis, size, margin in ((0, 16, 2), (1, 8, 1)):
            line = found[:, 0, 0] if axis == 0 else found[0, :, 1]
            expected = {
                shift: np.pad(np.arange(size), margin, "reflect")[shift : shift + size].tolist()
                for shift in range(2 * margin + 1)
            }
            matching = [shift for shift, values in expected.items() if values == line.tolist()]
            assert matching
            shifts.add((axis, matching[0]))
    assert len(shifts) == 5 + 3


def test_small_images_are_left_alone_by_crop():
    image = np.arange(49, dtype=np.uint8).reshape(7, 7, 1)
    assert (many(image, ("crop",)) == image).all()


def test_changes_are_independent_of_each_other():
    # Both come from one seed; a mirrored image must not always be shifted the same way.
    image = np.random.default_rng(0).random((16, 16, 1), np.float32)
    alone, both = many(image, ("crop",)), many(image, ("flip", "crop"))
    mirrored = (many(image, ("flip",)) != image).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(both[~mirrored], alone[~mirrored])
    assert (both[mirrored] != alone[mirrored]).any(axis=(1, 2, 3)).all()
    assert len({one.tobytes() for one in alone[mirrored]}) > 8


def test_unknown_names():
    with pytest.raises(UsageError, match="flip, crop. Received: 'flop'. Did you mean 'flip'?"):
        check_augmentations(("flop",), (8, 8, 3))
