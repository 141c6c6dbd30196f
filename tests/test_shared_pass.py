"""Passes over data that several processes share."""

import keras
import numpy as np
import pytest

from keras_mas.importance import compute_fisher, compute_importance
from keras_mas.importance.shared_pass import SharedPass, sharing


@pytest.fixture
def model():
    inputs = keras.Input([3])
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dense(4, "relu")(inputs)))


@pytest.mark.parametrize("measure", [compute_importance, compute_fisher])
def test_the_parts_of_all_processes_add_up_to_the_whole(model, measure):
    # 5 batches, of which process 0 has 3 and process 1 has 2; the last one is short.
    x = np.random.default_rng(0).normal(size=[9, 3]).astype("float32")
    whole = measure(model, x, batch_size=2)
    parts = []
    for process in range(2):
        with sharing(SharedPass(process, 2)):  # whose `total` leaves a process its own sums
            parts.append(measure(model, x, batch_size=2))
    for name, values in whole.items():
        assert not np.allclose(parts[0][name], values)
        np.testing.assert_allclose(parts[0][name] + parts[1][name], values, rtol=1e-5)


def test_a_process_without_a_batch_takes_the_sums_of_the_others(model):
    x = np.ones([2, 3], "float32")
    with sharing(SharedPass(1, 2, lambda sums: sums + 6.0)):
        omega = compute_importance(model, x)
    for values in omega.values():
        np.testing.assert_array_equal(values, 3.0)  # 6 over 2 examples


def test_a_pass_is_that_of_one_process_outside_of_the_block(model):
    x = np.ones([1, 3], "float32")
    with sharing(SharedPass(1, 2)):
        pass
    assert compute_importance(model, x)["dense_1/bias"].any()
