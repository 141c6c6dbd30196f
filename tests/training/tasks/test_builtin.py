import os
from pathlib import Path

import numpy as np
import pytest

from keras_mas.training.tasks import builtin_names, load_tasks


@pytest.fixture(scope="module")
def digits():
    return load_tasks("split-digits")


def test_names():
    assert builtin_names() == ("split-digits", "split-mnist")


def test_digits_are_five_pairs_of_small_images(digits):
    assert (digits.name, digits.scenario) == ("split-digits", "task")
    assert [task.name for task in digits.tasks] == ["0-1", "2-3", "4-5", "6-7", "8-9"]
    assert digits.tasks[2].classes == ("4", "5")
    assert digits.input_shape == (8, 8, 1)
    assert sum(len(split) for task in digits.tasks for split in task.splits.values()) == 1797


def test_digits_are_raw_and_rescale_to_one(digits):
    inputs = digits.tasks[0].train.inputs
    assert inputs.dtype == np.uint8
    assert inputs.max() == 16
    scale, offset = digits.rescale
    assert scale * 16 + offset == 1


def test_digits_are_divided_alike_in_every_class(digits):
    for task in digits.tasks:
        total = sum(np.bincount(split.labels) for split in task.splits.values())
        np.testing.assert_allclose(np.bincount(task.test.labels) / total, 0.2, atol=0.01)
        np.testing.assert_allclose(np.bincount(task.validation.labels) / total, 0.08, atol=0.01)


def test_digits_in_different_splits_are_different(digits):
    # The 1,797 images are distinct, so one that occurs twice would be in two splits.
    images = [
        image.tobytes()
        for task in digits.tasks
        for split in task.splits.values()
        for image in split.inputs
    ]
    assert len(set(images)) == 1797


def test_digits_look_like_their_labels():
    # A nearest-mean classifier from training means reads most test digits, so labels fit images.
    for task in load_tasks("split-digits").tasks:
        means = [task.train.inputs[task.train.labels == label].mean(axis=0) for label in (0, 1)]
        distances = [np.square(task.test.inputs - mean).sum(axis=(1, 2, 3)) for mean in means]
        assert np.mean(np.argmin(distances, axis=0) == task.test.labels) > 0.9


def test_seed_changes_what_is_held_out_and_not_the_test_data(digits):
    again, other = (load_tasks("split-digits", seed=seed).tasks[0] for seed in (0, 1))
    first = digits.tasks[0]
    np.testing.assert_array_equal(first.validation.inputs, again.validation.inputs)
    assert not np.array_equal(first.validation.inputs, other.validation.inputs)
    np.testing.assert_array_equal(first.test.inputs, other.test.inputs)


needs_mnist = pytest.mark.skipif(
    not Path(os.environ.get("TFDS_DATA_DIR", ""), "mnist").is_dir(),
    reason="needs MNIST, prepared by TensorFlow Datasets, in TFDS_DATA_DIR",
)


def test_digits_come_in_the_order_of_the_recorded_results(digits):
    # Sums of the first training, validation and test inputs of the first and the last task.
    found = [
        [split.inputs[0].sum() for split in digits.tasks[number].splits.values()]
        for number in (0, 4)
    ]
    assert found == [[351, 256, 304], [325, 268, 262]]


@needs_mnist
def test_mnist_on_disk_is_mnist_in_memory(tmp_path):
    stream, on_disk = (
        load_tasks("split-mnist", cache_memory=memory, cache_dir=tmp_path)
        for memory in (None, 10**6)
    )
    assert stream.fingerprint == on_disk.fingerprint
    for split, other in zip(
        stream.tasks[4].splits.values(), on_disk.tasks[4].splits.values(), strict=True
    ):
        assert (split.in_memory, other.in_memory) == (True, False)
        np.testing.assert_array_equal(split.labels, other.labels)
        np.testing.assert_array_equal(split.inputs[:300], other.read(np.arange(300)))


@needs_mnist
def test_mnist_in_the_authors_order():
    stream = load_tasks("split-mnist")
    assert [task.name for task in stream.tasks] == ["1-2", "3-4", "5-6", "7-8", "9-0"]
    assert stream.tasks[4].classes == ("9", "0")
    assert stream.input_shape == (28, 28, 1)
    # MNIST's test set has 1,009 nines and 980 zeros, its training set 5,949 and 5,923.
    last = stream.tasks[4]
    assert np.bincount(last.test.labels).tolist() == [1009, 980]
    assert np.bincount(last.train.labels).tolist() == [5949 - 595, 5923 - 592]
    assert np.bincount(last.validation.labels).tolist() == [595, 592]
    scale, offset = stream.rescale
    inputs = np.concatenate([task.train.inputs for task in stream.tasks]) * scale + offset
    assert abs(inputs.mean()) < 0.01
    assert abs(inputs.std() - 1) < 0.01
