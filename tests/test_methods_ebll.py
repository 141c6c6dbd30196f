"""Encoder Based Lifelong Learning: codes are held, and encoders learn what the heads need."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mas.methods import ebll
from keras_mas.methods.ebll import Method


def learner(strength=1.0, features=4):
    """A method, and its model of two heads on features f = wx with w = 1."""
    method = Method(strength)
    inputs = keras.Input([features])
    identity = keras.initializers.Identity()
    feature = layers.Dense(features, use_bias=False, kernel_initializer=identity)(inputs)
    heads = [layers.Dense(2, kernel_initializer="zeros")(feature) for _ in range(2)]
    model = method.model(inputs, heads)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return method, model


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(ebll, "_STEPS", 3)


def test_a_change_of_the_features_changes_the_codes():
    # An encoder σ(f_0); f_0 goes from 0 to ln 3 as w doubles at x_0 = ln 3 / 2 … here from x_0 to
    # 2 x_0: σ(ln 3) = ¾ before and σ(2 ln 3) = 9/10 after. The heads are 0 and answer the same.
    method, model = learner()
    method.learned.tasks, method.learned.logits = 1, np.array([True, True])
    method.encoders.add(np.array([[1.0], [0.0], [0.0], [0.0]], "float32"), np.zeros(1, "float32"))
    method.before_task(model, None)
    x = tf.constant([[math.log(3), 5.0, -5.0, 1.0]])
    assert float(model.held_loss(x, model(x))) == 0
    model.weights[0].assign(2 * np.eye(4))
    expected = 0.1 * (9 / 10 - 3 / 4) ** 2 / 2
    assert float(model.held_loss(x, model(x))) == pytest.approx(expected, rel=1e-5)


def test_the_gradient_of_the_code_loss_reaches_the_trunk_alone():
    method, model = learner(strength=7.0)
    method.encoders.add(np.ones([4, 1], "float32"), np.zeros(1, "float32"))
    method.before_task(model, None)
    trunk = model.weights[0]
    trunk.assign(2 * np.eye(4))
    x = np.array([[0.1, 0.2, 0.0, 0.1]], "float32")
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, tf.constant([2]), model(x, training=True), None)
    gradient = tape.gradient(loss, trunk.value)
    # The heads are 0, so that the task's loss has no gradient at the trunk.
    sigma, before = (1 / (1 + math.exp(-z)) for z in (0.8, 0.4))
    expected = 7 * 0.1 * (sigma - before) * sigma * (1 - sigma) * x.T @ np.ones([1, 4])
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


def test_an_encoder_is_learned_with_the_task_and_what_it_loses(monkeypatch):
    monkeypatch.setattr(ebll, "RECONSTRUCTION_WEIGHT", 0.5)
    _, model = learner()
    features = tf.constant([[1.0, 2.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    reconstructed = tf.constant([[0.0, 0.0, 0.0, 3.0], [0.0, 1.0, 0.0, 0.0]])
    loss = model.autoencoder._model.compute_loss(features, tf.constant([0, 1]), reconstructed)
    # The heads are 0: the cross-entropy of two logits is ln 2. ‖r − f‖² = 1 + 4 + 9, and 0.
    assert float(loss) == pytest.approx(math.log(2) + 0.5 * 14 / 2, rel=1e-6)


def test_an_encoder_is_learned_from_features_without_dropout(monkeypatch):
    method = Method(1.0)
    inputs = keras.Input([4])
    model = method.model(inputs, [layers.Dense(2)(layers.Dropout(0.5)(inputs))])
    learned_from = []

    def learn(features, labels, seed):
        learned_from.append(features.numpy())
        return np.zeros([4, 1], "float32"), np.zeros(1, "float32")

    monkeypatch.setattr(model.autoencoder, "learn", learn)
    x = np.ones([8, 4], "float32")
    method.after_task(model, x, np.arange(8) % 2)
    np.testing.assert_array_equal(learned_from, [x])


def test_each_task_adds_an_encoder(few_steps):
    method, model = learner(features=6)
    x, y = np.eye(6, dtype="float32"), np.array([0, 1] * 3)
    method.before_task(model, x)
    method.after_task(model, x, y)
    assert method.encoders.kernels.shape == (6, 3)  # half as many codes as features
    method.before_task(model, x)
    method.after_task(model, x, y + 2)
    assert method.encoders.kernels.shape == (6, 6)
    assert method.encoders.biases.shape == (6,)


def test_an_encoder_is_the_same_whatever_was_learned_before(few_steps):
    x, y = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
    kernels = []
    for earlier_run in (False, True):
        keras.utils.set_random_seed(int(earlier_run))
        method, model = learner()
        if earlier_run:
            method.after_task(model, 3 * x, 1 - y)
            method.restart(1.0)
        method.after_task(model, x, y)
        kernels.append(method.encoders.kernels)
    np.testing.assert_array_equal(*kernels)


def test_the_autoencoder_keeps_what_the_head_needs():
    # Four features, of which the head looks at the first alone: codes of two numbers answer as the
    # features do, and neither head nor trunk has been changed.
    method, model = learner()
    head = model.weights[1]
    head.assign([[4.0, -4.0], [0, 0], [0, 0], [0, 0]])
    before = model.get_weights()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype("float32")
    y = (x[:, 0] < 0).astype("int64")
    method.after_task(model, x, y)
    features = model.autoencoder._model(x)
    answers = features.numpy() @ head.numpy()
    assert np.mean(np.argmax(answers, axis=1) == y) > 0.95
    for weight, same in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, same)


def test_it_goes_on_from_what_it_saved(tmp_path, few_steps):
    method, model = learner()
    x, y = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
    method.before_task(model, x)
    method.after_task(model, x, y)
    method.save(tmp_path / "memory.npz")
    again, _ = learner()
    again.load(tmp_path / "memory.npz", tasks=1)
    np.testing.assert_array_equal(again.encoders.kernels, method.encoders.kernels)
    np.testing.assert_array_equal(again.encoders.biases, method.encoders.biases)
    again.restart(1.0)
    assert again.encoders.kernels.shape == (4, 0)


def test_a_file_without_encoders_changes_nothing():
    method, _ = learner()
    with pytest.raises(KeyError):
        method.restore({"tasks": np.array(1), "learned": np.ones(2, bool)}, 1)
    assert method.learned.tasks == 0


def test_an_encoder_is_learned_in_float32_whatever_the_policy(few_steps):
    x, y = 300 * np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
    kernels = []
    for policy in ("float32", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        try:
            method, model = learner()
        finally:
            keras.config.set_dtype_policy("float32")
        for _ in range(2):  # the optimizer begins anew
            method.after_task(model, x, y)
        kernels.append(method.encoders.kernels)
    # A gap of 300² is more than float16 holds.
    np.testing.assert_allclose(*kernels, rtol=1e-3)


def test_heads_that_share_no_features_are_refused():
    inputs = keras.Input([4])
    feature = layers.Dense(4)(inputs)
    deep = layers.Dense(2)(layers.Dense(4, "relu")(feature))
    with pytest.raises(ValueError, match="heads of one layer each, on features that they share"):
        Method(1.0).model(inputs, [layers.Dense(2)(feature), deep])


def test_more_encoders_trace_nothing_again(few_steps):
    method, model = learner()
    x, y = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
    traced, held_loss = [], model.held_loss
    model.held_loss = lambda *args: traced.append(1) or held_loss(*args)
    for task in range(2):
        method.before_task(model, x)
        model.fit(x, y + 2 * task, verbose=0)
        method.after_task(model, x, y + 2 * task)
    assert traced == [1]
