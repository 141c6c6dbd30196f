"""Learning without Forgetting: what it holds, with which weights, and what it refuses."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mas.methods.lwf import Method


def network(*units):
    """Inputs, and heads of so many logits on one shared feature; every weight is 1, no bias."""
    inputs = keras.Input([1])
    options = {"use_bias": False, "kernel_initializer": "ones"}
    feature = layers.Dense(1, **options)(inputs)
    return inputs, [layers.Dense(count, **options)(feature) for count in units]


def compiled(model, rate=1.0):
    model.compile(
        keras.optimizers.SGD(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model


def column(*values):
    return np.array(values, "float32")[:, None]


def step(model, *examples):
    """Take the step that `fit` takes with pairs of an input and a label."""
    x, y = zip(*examples, strict=True)
    model.train_step((tf.constant(column(*x)), tf.constant(y)))


def learned_first_task(strength, units=(2, 2)):
    """A method after a task of the labels 0 and 1, and the model to learn the second task in."""
    method = Method(strength)
    model = compiled(method.model(*network(*units)))
    method.before_task(model, column(1.0))
    model.optimizer.learning_rate = 0.0
    step(model, (1.0, 0), (1.0, 1))
    model.optimizer.learning_rate = 1.0
    method.after_task(model, column(1.0))
    return method, model


def test_a_step_follows_the_gradient_of_both_losses():
    # Logits of the first head are now (ln 3, −ln 3) for x = 1: at T = 2 the odds 3 : 1, and those
    # that it is held to are 1 : 1. ∂KL/∂z = (p − p*)/2 = (⅛, −⅛), λ = 4.
    method, model = learned_first_task(strength=4.0)
    method.before_task(model, column(1.0))
    trunk, first, second = model.weights
    first.assign([[math.log(3), -math.log(3)]])
    # The new task's loss: p = (½, ½), label 0: ∂/∂z = (−½, ½).
    step(model, (1.0, 2))
    ln3 = math.log(3)
    np.testing.assert_allclose(first, [[ln3 - 4 / 8, -ln3 + 4 / 8]], rtol=1e-5)
    np.testing.assert_allclose(second, [[1.5, 0.5]], rtol=1e-6)
    # The trunk: Σ w ∂/∂z: 4 (⅛ ln 3 + ⅛ ln 3) for the old head; of the new one they cancel.
    np.testing.assert_allclose(trunk, [[1 - ln3]], rtol=1e-5)


def test_strength_zero_is_fine_tuning():
    method, model = learned_first_task(strength=0.0)
    method.before_task(model, column(1.0))
    model.weights[1].assign([[3.0, -3.0]])
    step(model, (1.0, 2))
    np.testing.assert_array_equal(model.weights[1], [[3.0, -3.0]])


def test_the_answers_are_those_to_the_inputs_that_are_learned():
    # Held to z = x (1, 1)·w with w = 1; now w = 2: no odds change, for both logits are equal.
    # With a head (1, 3), z* = (x, 3x) and z = (2x, 6x): p at T = 2 is σ(x) and σ(2x).
    method, model = learned_first_task(strength=1.0)
    trunk, first, _ = model.weights
    first.assign([[1.0, 3.0]])
    method.before_task(model, column(0.0))
    trunk.assign([[2.0]])

    def sigma(z):
        return 1 / (1 + math.exp(-z))

    def divergence(p, q):
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    x = column(1.0, -0.5)
    expected = np.mean([divergence(sigma(v), sigma(2 * v)) for v in (1.0, -0.5)])
    assert float(model.held_loss(x, model(x))) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_an_evaluation_is_that_of_the_task():
    method, model = learned_first_task(strength=100.0)
    method.before_task(model, column(1.0))
    model.weights[1].assign([[3.0, -3.0]])
    assert model.evaluate(column(1.0), np.array([3]), verbose=0) == pytest.approx(math.log(2))


def test_a_shared_head_is_held_in_the_classes_that_have_occurred():
    # One head of four logits, of which a task has learned two: the others are free.
    method, model = learned_first_task(strength=1.0, units=(4,))
    method.before_task(model, column(1.0))
    model.weights[1].assign([[1.0, 1.0, 50.0, -50.0]])
    assert float(model.held_loss(column(1.0), model(column(1.0)))) == 0
    model.weights[1].assign([[5.0, 1.0, 1.0, 1.0]])
    assert float(model.held_loss(column(1.0), model(column(1.0)))) > 0.1


@pytest.mark.parametrize("eagerly", [False, True])
def test_what_is_held_is_in_the_logs_of_training_alone(eagerly):
    # KL of odds 3 : 1 to 1 : 1 is ½ ln(½ / ¾) + ½ ln(½ / ¼) = ½ ln(4/3), λ = 4.
    method, model = learned_first_task(strength=4.0)
    method.before_task(model, column(1.0))
    model.weights[1].assign([[math.log(3), -math.log(3)]])
    model.compile(keras.optimizers.SGD(0.0), model.loss, run_eagerly=eagerly)
    logs = model.fit(column(1.0), np.array([2]), verbose=0).history
    assert logs["distillation"] == [pytest.approx(2 * math.log(4 / 3))]
    assert logs["loss"] == [pytest.approx(math.log(2) + 2 * math.log(4 / 3))]
    assert model.evaluate(column(1.0), np.array([2]), verbose=0) == pytest.approx(math.log(2))


def test_all_earlier_heads_are_held():
    method, model = learned_first_task(strength=1.0, units=(2, 2, 2))
    method.before_task(model, column(1.0))
    step(model, (1.0, 2), (1.0, 3))
    method.after_task(model, column(1.0))
    assert method.learned.logits.tolist() == [True] * 4 + [False] * 2
    method.before_task(model, column(1.0))
    for head, is_held in [(1, True), (2, True), (3, False)]:
        before = model.weights[head].numpy()
        model.weights[head].assign([[5.0, 1.0]])
        assert bool(model.held_loss(column(1.0), model(column(1.0))) > 0.1) is is_held
        model.weights[head].assign(before)


def test_a_new_model_with_one_head_more_holds_the_earlier_ones():
    method = Method(1.0)
    inputs, heads = network(2, 2)
    first = compiled(method.model(inputs, heads[:1]))
    step(first, (1.0, 0), (1.0, 1))
    method.after_task(first, column(1.0))
    second = compiled(method.model(inputs, heads))
    method.before_task(second, column(1.0))
    second.weights[1].assign([[5.0, 1.0]])
    assert float(second.held_loss(column(1.0), second(column(1.0)))) > 0.1


def test_a_model_without_the_earlier_heads_is_refused():
    method = Method(1.0)
    inputs, heads = network(2, 2)
    method.after_task(method.model(inputs, heads[:1]), column(1.0))
    for _ in range(2):  # a refused call changes nothing
        with pytest.raises(ValueError, match=r"of the last model \(1\). Received: 1 output, not"):
            method.model(inputs, heads[1:])
    # Nor does one whose model cannot be made, for its new head has one logit.
    with pytest.raises(ValueError, match="a head with one"):
        method.model(inputs, [heads[0], layers.Dense(1)(inputs)])
    method.model(inputs, heads)


def test_a_plain_model_is_refused():
    inputs, heads = network(2)
    with pytest.raises(ValueError, match=r"Expected a model of `method.model\(inputs, heads\)`"):
        Method(1.0).before_task(keras.Model(inputs, heads[0]), column(1.0))


def test_a_task_that_would_hold_nothing_is_refused():
    _, model = learned_first_task(strength=1.0)
    with pytest.raises(ValueError, match=r"Expected `method.before_task\(model, x\)` before the"):
        model.fit(column(1.0), np.array([2]), verbose=0)


def test_the_next_task_traces_nothing_again():
    method, model = learned_first_task(strength=1.0)
    traced = []
    compute_loss = model.compute_loss
    model.compute_loss = lambda *args, **options: traced.append(1) or compute_loss(*args, **options)
    for label in (2, 3):
        method.before_task(model, column(1.0))
        model.fit(column(1.0), np.array([label]), verbose=0)
        method.after_task(model, column(1.0))
    assert traced == [1]  # by the first `fit`


def test_it_goes_on_from_what_it_saved(tmp_path):
    method, model = learned_first_task(strength=2.0)
    method.save(tmp_path / "memory.npz")
    again = Method(2.0)
    other = compiled(again.model(*network(2, 2)))
    again.load(tmp_path / "memory.npz", tasks=1)
    assert again.learned.logits.tolist() == [True, True, False, False]
    for made, of in [(method, model), (again, other)]:
        made.before_task(of, column(1.0))
        step(of, (1.0, 2))
    for weight, same in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    with pytest.raises(ValueError, match=r"of 2 tasks. Received: .*\(it is of 1 task, not of 2\)"):
        again.load(tmp_path / "memory.npz", tasks=2)


def test_a_new_run_has_learned_nothing():
    method, model = learned_first_task(strength=1.0)
    method.restart(3.0)
    assert method.strength == 3.0
    method.before_task(model, column(1.0))
    model.weights[1].assign([[5.0, 1.0]])
    assert float(model.held_loss(column(1.0), model(column(1.0)))) == 0


def test_the_old_network_runs_in_inference_mode():
    # Dropout of nearly everything: as it was trained, its answers would vary.
    inputs = keras.Input([8])
    hidden = layers.Dropout(0.9)(layers.Dense(64, "relu")(inputs))
    method = Method(1.0)
    model = compiled(method.model(inputs, [layers.Dense(2)(hidden)]))
    method.after_task(model, None)
    method.learned.logits[:] = True
    method.before_task(model, None)
    x = np.ones([3, 8], "float32")
    assert float(model.held_loss(x, model(x, training=False))) == 0
