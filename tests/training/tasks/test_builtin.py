import os
from pathlib import Path

import numpy as np
import pytest

from keras_mas.training.settings import RECIPES
from keras_mas.training.tasks import SCENARIOS, builtin, builtin_names, load_tasks

tf = pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")


@pytest.fixture(scope="module")
def digits():
    return load_tasks("split-digits")


def test_every_built_in_stream_says_what_it_is():
    for name in builtin_names():
        assert builtin._BUILTINS[name].__doc__, name


def test_recipes_are_of_streams_that_there_are():
    assert RECIPES.keys() <= set(builtin_names())


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


def test_permuted_digits_are_all_digits_in_ten_orders(digits):
    stream = load_tasks("permuted-digits")
    assert (stream.scenario, stream.rescale) == ("domain", digits.rescale)
    assert [task.name for task in stream.tasks] == [f"permutation-{n}" for n in range(10)]
    first, *others = stream.tasks
    assert first.classes == tuple("0123456789")
    assert first.input_shape == (8, 8, 1)
    for seed, task in enumerate(others, 1):
        order = np.random.default_rng(seed).permutation(64)
        for role, split in task.splits.items():
            pixels = first.splits[role].inputs.reshape(-1, 64)[:, order]
            np.testing.assert_array_equal(split.inputs.reshape(-1, 64), pixels)
            np.testing.assert_array_equal(split.labels, first.splits[role].labels)


def test_permutations_are_the_same_for_every_seed_of_a_run():
    one, other = (load_tasks("permuted-digits", seed=seed).tasks[4].test for seed in (0, 1))
    assert one.fingerprint == other.fingerprint


def test_rotated_digits_are_turned_further_with_every_task():
    stream = load_tasks("rotated-digits")
    assert [task.name for task in stream.tasks] == [f"rotation-{a}" for a in range(0, 180, 18)]
    upright, *_, last = (task.test.inputs.astype(float) for task in stream.tasks)
    upside_down = upright[:, ::-1, ::-1]
    assert np.abs(last - upside_down).mean() < 0.7 * np.abs(last - upright).mean()


def test_tasks_of_a_changed_stream_share_the_pixels_of_one_source():
    splits = [s for task in load_tasks("permuted-digits").tasks for s in task.splits.values()]
    sources = {id(getattr(s.source, "source", s.source)) for s in splits}
    assert len(sources) == 1


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_stream_is_loaded_in_the_scenario_asked_for(digits, scenario):
    stream = load_tasks("split-digits", scenario=scenario)
    assert (stream.scenario, stream.usual_scenario) == (scenario, "task")
    assert stream.fingerprint == digits.fingerprint


OMNIGLOT = ["Korean_0", "Korean_1", "Malay_(Jawi_-_Arabic)_0", "Malay_(Jawi_-_Arabic)_1"]


def test_omniglot_has_a_task_for_each_alphabet(tmp_path):
    # TFDS has alphabets for training and others for testing; here each character is in both.
    def drawings(*labels):
        spec = features.get_tensor_spec()
        examples = [
            {"image": np.full((105, 105, 3), 10 * label + n, np.uint8), "label": label}
            for label in labels
            for n in range(10)
        ]
        return tf.data.Dataset.from_generator(lambda: iter(examples), output_signature=spec)

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(105, 105, 3), encoding_format="png"),
            "label": tfds.features.ClassLabel(names=OMNIGLOT),
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name="omniglot",
        version="3.0.0",
        features=features,
        split_datasets={"train": drawings(0, 1), "test": drawings(2, 3)},
        data_dir=tmp_path,
    )
    stream = load_tasks("split-omniglot", data_dir=tmp_path)
    assert [task.name for task in stream.tasks] == ["Korean", "Malay_Jawi_-_Arabic"]
    assert stream.input_shape == (28, 28, 3)
    for number, task in enumerate(stream.tasks):
        assert task.classes == tuple(OMNIGLOT[2 * number : 2 * number + 2])
        assert np.bincount(task.test.labels).tolist() == [2, 2]
        np.testing.assert_array_equal(
            task.test.inputs[:, 0, 0, 0] // 10 - 2 * number, task.test.labels
        )


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


@pytest.fixture(scope="module")
def mnist_cache(tmp_path_factory):
    """A folder in which MNIST is decoded once, for several tests."""
    return tmp_path_factory.mktemp("mnist")


@pytest.mark.slow
@needs_mnist
def test_mnist_on_disk_is_mnist_in_memory(mnist_cache):
    stream, on_disk = (
        load_tasks("split-mnist", cache_memory=memory, cache_dir=mnist_cache)
        for memory in (None, 10**6)
    )
    assert stream.fingerprint == on_disk.fingerprint
    for split, other in zip(
        stream.tasks[4].splits.values(), on_disk.tasks[4].splits.values(), strict=True
    ):
        assert (split.in_memory, other.in_memory) == (True, False)
        np.testing.assert_array_equal(split.labels, other.labels)
        np.testing.assert_array_equal(split.inputs[:300], other.read(np.arange(300)))


@pytest.mark.slow
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


@pytest.mark.slow
@needs_mnist
def test_mnist_as_hsu_and_others_take_it():
    stream = load_tasks("split-mnist-hsu")
    assert [task.name for task in stream.tasks] == ["0-1", "2-3", "4-5", "6-7", "8-9"]
    assert stream.input_shape == (32, 32, 1)
    padded = stream.tasks[0].train.read(np.arange(9))
    assert not padded[:, :2].any() and not padded[:, :, -2:].any()
    assert sum(len(task.test) for task in stream.tasks) == 10_000
    scale, offset = stream.rescale
    inputs = np.concatenate([task.train.inputs for task in stream.tasks]) * scale + offset
    assert abs(inputs.mean()) < 0.01
    assert abs(inputs.std() - 1) < 0.01


@pytest.mark.slow
@needs_mnist
def test_rotated_mnist_on_disk_is_that_in_memory(mnist_cache):
    stream, on_disk = (
        load_tasks("rotated-mnist", cache_memory=memory, cache_dir=mnist_cache)
        for memory in (None, 10**6)
    )
    assert stream.fingerprint == on_disk.fingerprint
    assert len(stream.tasks[9].train) + len(stream.tasks[9].validation) == 60_000
    for rows in (np.arange(20), np.array([53_000])):
        np.testing.assert_array_equal(
            stream.tasks[3].train.read(rows), on_disk.tasks[3].train.read(rows)
        )
