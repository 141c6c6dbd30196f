"""Hand-made data, small enough to know by heart."""

import numpy as np
import pytest
from PIL import Image

from keras_mas.training.tasks import Split, Task


@pytest.fixture
def make_split():
    """Build a split of flat float inputs; each input holds its label and its position."""

    def make(*labels):
        labels = np.array(labels, dtype=np.int64)
        inputs = np.stack([labels, np.arange(len(labels))], axis=1).astype(np.float32)
        return Split(inputs, labels)

    return make


@pytest.fixture
def make_a_task(make_split):
    """Build a valid task; keywords replace its parts."""

    def make(name="pets", **parts):
        split = make_split(0, 1, 0, 1)
        defaults = {"classes": ("cat", "dog"), "train": split, "validation": split, "test": split}
        return Task(name, **defaults | parts)

    return make


@pytest.fixture
def write_npz(tmp_path):
    """Write an archive of two classes, 20 training and 4 test examples; keywords replace arrays."""

    def write(name="a.npz", **arrays):
        defaults = {
            "x_train": np.arange(60, dtype=np.float32).reshape(20, 3),
            "y_train": np.arange(20) % 2,
            "x_test": np.ones((4, 3), np.float32),
            "y_test": np.arange(4) % 2,
        }
        arrays = {key: value for key, value in (defaults | arrays).items() if value is not None}
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return write


@pytest.fixture
def write_images(tmp_path):
    """Write one-coloured 6x4 PNG images: `write_images("photos", {"train/cat": 3, …})`."""

    def write(name, counts, size=(6, 4)):
        for shade, (folder, count) in enumerate(counts.items()):
            target = tmp_path / name / folder
            target.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                Image.new("RGB", size, (10 * shade, number, 0)).save(target / f"{number}.png")
        return tmp_path / name

    return write


PETS = {"train/cat": 3, "train/dog": 3, "test/cat": 1, "test/dog": 1}


@pytest.fixture
def pets(write_images):
    """A folder of cats and dogs: 3 + 3 training images, 1 + 1 test images."""
    return write_images("photos", PETS)
