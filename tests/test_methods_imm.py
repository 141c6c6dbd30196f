"""Incremental moment matching: what is merged, and that training goes on from what is not."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_mas.methods import load_method


def learner(name, strength=0.5, units=2):
    """A method and its model of `units` logits z = wx for one input, with w = 0."""
    method = load_method(name)(strength)
    inputs = keras.Input([1])
    logits = layers.Dense(units, use_bias=False, kernel_initializer="zeros")(inputs)
    model = method.model(inputs, logits)
    method.protect(model)
    return method, model


def end_task(method, model, weights, x=(1.0,)):
    model.set_weights([np.array([weights])])  # as a `fit` would
    method.after_task(model, np.array(x, "float32")[:, None])


def evaluated(method, model):
    with method.evaluated():
        return model.get_weights()[0].tolist()


def test_the_mean_is_that_of_all_tasks():
    method, model = learner("imm_mean")
    assert evaluated(method, model) == [[0.0, 0.0]]
    for weights in ([1.0, -3.0], [2.0, 0.0], [6.0, 0.0]):
        end_task(method, model, weights)
    assert evaluated(method, model) == [[3.0, -1.0]]
    # Training goes on from the weights of the last task, and is held to them.
    assert model.get_weights()[0].tolist() == [[6.0, 0.0]]
    model.set_weights([np.array([[8.0, 1.0]])])
    assert float(method.memory.penalty(model)) == pytest.approx(0.5 * (2**2 + 1**2))


def test_the_mode_weighs_by_the_fisher():
    # F of both weights of two logits with equal odds is p (1 − p) x² = x² / 4: 1/4 after the first
    # task and 1 after the second, whose inputs are twice as large.
    method, model = learner("imm_mode")
    end_task(method, model, [1.0, 1.0], x=[1.0])
    end_task(method, model, [6.0, 6.0], x=[2.0])
    np.testing.assert_allclose(evaluated(method, model), [[5.0, 5.0]], rtol=1e-6)


def test_a_weight_that_matters_to_no_task_gets_the_mean():
    method, model = learner("imm_mode")
    end_task(method, model, [1.0, 3.0], x=[0.0])  # F = 0
    end_task(method, model, [3.0, 9.0], x=[0.0])
    np.testing.assert_allclose(evaluated(method, model), [[2.0, 6.0]], rtol=1e-6)


def test_an_error_within_the_block_leaves_the_weights_of_training():
    method, model = learner("imm_mean")
    end_task(method, model, [1.0, 1.0])
    end_task(method, model, [3.0, 3.0])
    with pytest.raises(KeyboardInterrupt), method.evaluated():
        assert model.get_weights()[0].tolist() == [[2.0, 2.0]]
        raise KeyboardInterrupt
    assert model.get_weights()[0].tolist() == [[3.0, 3.0]]


@pytest.mark.parametrize("name", ["imm_mean", "imm_mode"])
def test_it_goes_on_from_what_it_saved(name, tmp_path):
    method, model = learner(name)
    end_task(method, model, [1.0, 2.0], x=[1.0, 3.0])
    end_task(method, model, [3.0, -2.0], x=[2.0])
    method.save(tmp_path / "memory.npz")
    again, other = learner(name)
    with method.evaluated():
        other.set_weights(model.get_weights())  # the saved model has the merged weights
    again.load(tmp_path / "memory.npz", tasks=2)
    assert other.get_weights()[0].tolist() == [[3.0, -2.0]]
    assert evaluated(again, other) == evaluated(method, model)
    for made, of in [(method, model), (again, other)]:
        end_task(made, of, [0.0, 1.0])
    assert evaluated(again, other) == evaluated(method, model)
    with pytest.raises(ValueError, match="it is a memory of 2 tasks, not of 1"):
        learner(name)[0].load(tmp_path / "memory.npz", tasks=1)


def test_a_new_run_merges_nothing_of_the_old_one():
    method, model = learner("imm_mean")
    end_task(method, model, [1.0, 1.0])
    method.restart(2.0)
    assert method.memory.strength == 2.0
    end_task(method, model, [7.0, 5.0])
    assert evaluated(method, model) == [[7.0, 5.0]]


@pytest.mark.parametrize("name", ["imm_mean", "imm_mode"])
def test_a_weight_that_is_frozen_later_keeps_its_mean(name):
    method = load_method(name)(0.5)
    inputs = keras.Input([1])
    first, second = (layers.Dense(2, use_bias=False) for _ in range(2))
    model = method.model(inputs, second(first(inputs)))
    method.protect(model)
    x = np.ones([1, 1], "float32")
    method.after_task(model, x)
    learned = first.kernel.numpy()
    first.trainable = False
    method.after_task(model, x)
    with method.evaluated():
        np.testing.assert_allclose(first.kernel, learned, rtol=1e-6)
    np.testing.assert_array_equal(first.kernel, learned)


def test_a_head_of_its_own_is_not_merged():
    method = load_method("imm_mean")()
    inputs = keras.Input([1])
    trunk = keras.Model(inputs, layers.Dense(1, use_bias=False)(inputs))
    method.protect(trunk)
    heads = [layers.Dense(1, use_bias=False)(trunk.outputs[0]) for _ in range(2)]
    for value, head in zip((2.0, 4.0), heads, strict=True):
        model = method.model(inputs, head)
        model.set_weights([np.array([[value]])] * 2)
        method.after_task(model, np.ones([1, 1], "float32"))
    assert [w.tolist() for w in model.get_weights()] == [[[4.0]], [[4.0]]]
    with method.evaluated():
        assert [w.tolist() for w in model.get_weights()] == [[[3.0]], [[4.0]]]
