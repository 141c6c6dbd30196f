import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mas.importance import compute_fisher, fisher

RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 4, 3)).astype("float32")
Y = RNG.integers(0, 3, size=7)


def classifier(activation=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input([4, 3])
    hidden = layers.Conv1D(5, 2, activation="relu", name="convolution")(inputs)
    hidden = layers.Dense(4, activation="tanh", name="hidden")(layers.Flatten()(hidden))
    return keras.Model(inputs, layers.Dense(3, activation, name="out")(hidden))


def one_by_one(model, expectation, sign=1.0):
    """E_y of the squared gradients of log p(y | x), a tape per example and class."""
    total = {weight.path: 0.0 for weight in model.trainable_weights}
    for k in range(len(X)):
        p = tf.nn.softmax(sign * model(X[k : k + 1]))[0].numpy()
        for y, weight_of_y in enumerate(expectation(k, p)):
            with tf.GradientTape() as tape:
                log_p = tf.nn.log_softmax(sign * model(X[k : k + 1]))[0, y]
            values = [weight.value for weight in model.trainable_weights]
            for weight, g in zip(
                model.trainable_weights, tape.gradient(log_p, values), strict=True
            ):
                total[weight.path] = total[weight.path] + weight_of_y * g.numpy() ** 2
    return {path: values / len(X) for path, values in total.items()}


def assert_same(found, expected):
    for path, values in expected.items():
        np.testing.assert_allclose(found[path], values, 1e-4, 1e-5 * values.max(), err_msg=path)


def test_fisher_of_a_coin_by_hand():
    # Two logits (0, wx) with w = 0: p = (½, ½), ∂ log p(1)/∂w = x/2 and ∂ log p(0)/∂w = −x/2.
    # Both squares are x²/4; x = 1 and −3 give (1 + 9)/8 = 1.25. The squared mean would be (−1/2)².
    inputs = keras.Input([1])
    model = keras.Model(inputs, layers.Dense(2, use_bias=False, name="coin")(inputs))
    model.set_weights([np.zeros([1, 2], "float32")])
    x = np.array([[1.0], [-3.0]], "float32")
    for labels in ("exact", "sampled", np.array([1, 0])):
        np.testing.assert_allclose(compute_fisher(model, x, labels)["coin/kernel"], [[1.25, 1.25]])


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_fisher_of_one_sigmoid_is_that_of_a_bernoulli_variable(activation):
    # z = wx with w = ln 3: p(1) = ¾ for x = 1, and ∂z/∂w = x: F = p (1 − p) x² = 3/16. Of x = 2 the
    # odds are 9 : 1, so that F = 9/100 · 4.
    inputs = keras.Input([1])
    model = keras.Model(inputs, layers.Dense(1, activation, use_bias=False, name="coin")(inputs))
    model.set_weights([np.array([[np.log(3)]])])
    for x, expected in [([[1.0]], 3 / 16), ([[1.0], [2.0]], (3 / 16 + 9 / 25) / 2)]:
        found = compute_fisher(model, np.array(x, "float32"))["coin/kernel"]
        np.testing.assert_allclose(found, [[expected]], rtol=1e-5)
    for label, share in [(1, 1 / 4), (0, 3 / 4)]:
        found = compute_fisher(model, np.array([[1.0]], "float32"), np.array([label]))
        np.testing.assert_allclose(found["coin/kernel"], [[share**2]], rtol=1e-5)


def test_several_sigmoids_are_refused():
    with pytest.raises(ValueError, match="Received: a model that ends in 3 sigmoids"):
        compute_fisher(classifier("sigmoid"), X)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_all_kinds_of_labels_agree_with_their_definition(batch_size):
    model = classifier()
    exact = one_by_one(model, lambda k, p: p)
    given = one_by_one(model, lambda k, p: np.eye(3)[Y[k]])
    assert_same(compute_fisher(model, X, batch_size=batch_size), exact)
    assert_same(compute_fisher(model, X, Y, batch_size=batch_size), given)
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(batch_size)
    assert_same(compute_fisher(model, dataset, "given"), given)


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_reversed_logits_agree_with_their_definition(batch_size):
    model = classifier()
    given = one_by_one(model, lambda k, p: np.eye(3)[Y[k]], sign=-1.0)
    found = compute_fisher(model, X, Y, reverse=True, batch_size=batch_size)
    assert_same(found, given)
    # It is not what the same labels give without reversal, nor does one engine serve for the other.
    usual = compute_fisher(model, X, Y, batch_size=batch_size)
    assert_same(usual, one_by_one(model, lambda k, p: np.eye(3)[Y[k]]))
    assert not np.allclose(found["out/bias"], usual["out/bias"], rtol=0.1)
    exact = one_by_one(model, lambda k, p: p, sign=-1.0)
    assert_same(compute_fisher(model, X, reverse=True, batch_size=batch_size), exact)


def test_a_final_softmax_is_skipped():
    model, logits = classifier("softmax"), classifier()
    for reverse in (False, True):
        found, expected = (compute_fisher(m, X, Y, reverse=reverse) for m in (model, logits))
        assert_same(found, expected)


def test_samples_do_not_depend_on_the_batch_size_and_are_unbiased():
    model = classifier()
    one = compute_fisher(model, X, "sampled", seed=3, batch_size=2)
    assert_same(compute_fisher(model, X, "sampled", seed=3, batch_size=7), one)
    many = np.repeat(X, 2000, axis=0)
    mean = compute_fisher(model, many, "sampled", batch_size=2048)
    for path, exact in compute_fisher(model, X).items():
        np.testing.assert_allclose(mean[path], exact, rtol=0.2, atol=0.1 * exact.max())


def test_a_draw_beyond_the_sum_of_the_probabilities_is_the_last_class():
    # A draw just below 1 is 1 in float32, in which twelve times 1/12 may be less. So is any sum
    # than this draw.
    [log_p] = tf.function(fisher._sampled)([tf.zeros([1, 12])], tf.constant([1.0 + 1e-6]))
    np.testing.assert_allclose(log_p, [-np.log(12)], rtol=1e-6)


def test_wrong_arguments_are_refused():
    model = classifier()
    with pytest.raises(ValueError, match="labels out of exact, sampled, given, or an array"):
        compute_fisher(model, X, "empirical")
    with pytest.raises(ValueError, match="or an array. Received: None"):
        compute_fisher(model, X, None)
    for inputs in (X, [X], iter([X])):
        with pytest.raises(ValueError, match="Expected labels. Received: inputs alone. Pass the"):
            compute_fisher(model, inputs, "given")
    dataset = tf.data.Dataset.from_tensor_slices((X, Y)).batch(4)
    with pytest.raises(ValueError, match="no labels beside a dataset.*Received: a ndarray of"):
        compute_fisher(model, dataset, np.full(7, 2))
    with pytest.raises(ValueError, match="same number of examples"):
        compute_fisher(model, X, Y[:3])
    with pytest.raises(ValueError, match="one output of logits"):
        compute_fisher(model, X, output="convolution")
