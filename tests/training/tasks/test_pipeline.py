import math

import numpy as np
import pytest

from keras_mas.errors import UsageError
from keras_mas.training.tasks import DataError, Split, original_errors
from keras_mas.training.tasks.inputs import Inputs
from keras_mas.training.tasks.pipeline import epoch_order

tf = pytest.importorskip("tensorflow")


@pytest.fixture
def split():
    """Ten examples whose inputs are their numbers and whose labels are the numbers' squares."""
    numbers = np.arange(10)
    return Split(numbers.astype(np.float32)[:, None], numbers**2)


def epoch(dataset):
    """Return the inputs and labels of one pass, batch by batch."""
    return [(x[:, 0].astype(int).tolist(), y.tolist()) for x, y in dataset.as_numpy_iterator()]


def numbers(dataset):
    return [n for batch, _ in epoch(dataset) for n in batch]


def test_batches_come_in_order_and_the_last_one_is_short(split):
    dataset = split.dataset(4)
    expected = [([0, 1, 2, 3], [0, 1, 4, 9]), ([4, 5, 6, 7], [16, 25, 36, 49]), ([8, 9], [64, 81])]
    assert epoch(dataset) == epoch(dataset) == expected
    assert dataset.cardinality() == len(dataset) == 3
    x, y = dataset.element_spec
    assert (x.shape.as_list(), y.shape.as_list()) == ([None, 1], [None])
    assert (x.dtype, y.dtype) == (tf.float32, tf.int64)


def test_a_seed_gives_every_epoch_its_own_order_of_all_examples(split):
    dataset = split.dataset(4, shuffle_seed=3)
    epochs = [numbers(dataset) for _ in range(3)]
    assert [sorted(order) for order in epochs] == [list(range(10))] * 3
    assert len(set(map(tuple, epochs))) == 3
    assert epochs == [epoch_order(10, 3, number).tolist() for number in range(3)]
    again, other = split.dataset(4, shuffle_seed=3), split.dataset(4, shuffle_seed=4)
    assert [numbers(again) for _ in range(3)] == epochs
    assert numbers(other) != epochs[0]


def test_the_order_does_not_depend_on_the_seed_of_tensorflow(split):
    orders = []
    for seed in (1, 2):
        tf.random.set_seed(seed)
        orders.append(numbers(split.dataset(4, shuffle_seed=3)))
    assert orders[0] == orders[1]


def test_labels_stay_with_their_inputs(split):
    for x, y in epoch(split.take(np.arange(10) % 3 != 0).dataset(4, shuffle_seed=0)):
        assert [n**2 for n in x] == y


def test_inputs_alone(split):
    sizes, parts = zip(*((len(x), x[:, 0].tolist()) for x in split.batches(4)), strict=True)
    assert sizes == (4, 4, 2)
    assert sum(parts, []) == list(range(10))


@pytest.mark.parametrize("same_source", [True, False])
def test_joined_splits_are_shuffled_together(split, same_source):
    first, second = split.take(np.arange(3)), split.take(np.arange(3, 10))
    if not same_source:
        second = Split(second.inputs, second.labels)
    joined = Split.joined(first, second)
    assert numbers(joined.dataset(4)) == list(range(10))
    assert joined.inputs[:, 0].tolist() == list(range(10))
    mixed = epoch(joined.dataset(4, shuffle_seed=0))
    assert [n for x, _ in mixed for n in x] == epoch_order(10, 0, 0).tolist()
    assert all([n**2 for n in x] == y for x, y in mixed)


def test_a_model_learns_from_it(split):
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    history = model.fit(split.dataset(4, shuffle_seed=0), epochs=2, verbose=0, shuffle=False)
    assert len(history.history["loss"]) == 2


# Augmentation.


@pytest.fixture
def images():
    """Six images of 16x16 random pixels."""
    pixels = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), np.uint8)
    return Split(pixels, np.arange(6))


def pixels(dataset):
    return np.concatenate([x for x, _ in dataset.as_numpy_iterator()])


def test_augmentation_depends_on_seed_epoch_and_batch(images):
    same = Split(np.repeat(images.inputs[:1], 6, axis=0), images.labels)
    dataset = same.dataset(3, shuffle_seed=0, augment=("crop",))
    first, second = pixels(dataset), pixels(dataset)
    again = pixels(same.dataset(3, shuffle_seed=0, augment=("crop",)))
    other = pixels(same.dataset(3, shuffle_seed=1, augment=("crop",)))
    np.testing.assert_array_equal(first, again)
    for changed in (second, other, np.roll(first, 3, axis=0)):
        assert (first != changed).any()


def test_without_it_images_are_as_they_were(images):
    np.testing.assert_array_equal(pixels(images.dataset(4)), images.inputs)


def test_features_cannot_be_augmented(split):
    with pytest.raises(UsageError, match=r"for `--augment flip`. Received: .*shape \[1\]"):
        split.dataset(4, augment=("flip",))


# Failures.


class Failing(Inputs):
    """Inputs of which one row cannot be read."""

    def __init__(self):
        super().__init__((8, 2), np.float32, in_memory=False)

    def read(self, rows):
        if 5 in rows:
            raise DataError("Expected row 5. Received: nothing.")
        return np.zeros((len(rows), 2), np.float32)


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_error_far_into_the_data_is_raised_as_it_was(wrapped):
    split = Split(Failing(), np.arange(8))
    if wrapped:
        split = Split.joined(split.take(np.arange(2)), Split(Failing(), np.arange(8)))
    seen = []
    with pytest.raises(DataError) as error, original_errors():
        for x, _ in split.dataset(2):
            seen.append(len(x))
    assert str(error.value) == "Expected row 5. Received: nothing."
    assert len(seen) == 3 if wrapped else 2


def test_fit_and_importance_raise_it_too():
    keras = pytest.importorskip("keras")
    from keras_mas import compute_importance

    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    dataset = Split(Failing(), np.arange(8)).dataset(2)
    for read in (
        lambda: model.fit(dataset, shuffle=False, verbose=0),
        lambda: compute_importance(model, dataset),
    ):
        with pytest.raises(DataError, match="row 5"), original_errors():
            read()


def test_other_errors_pass_through():
    with pytest.raises(ValueError, match="of another kind"), original_errors():
        raise ValueError("of another kind")


def test_the_length_counts_batches(split):
    for size in (1, 3, 10, 11):
        assert len(epoch(split.dataset(size))) == split.dataset(size).cardinality()
        assert split.dataset(size).cardinality() == math.ceil(10 / size)
