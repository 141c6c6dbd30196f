"""Each method with a quadratic penalty: its equation by hand, and that its penalty acts."""

import math
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import slow_but
from keras import layers

from keras_mas import BatchNormWarning, MultiHead
from keras_mas.binding import has_frozen_statistics
from keras_mas.importance import compute_fisher
from keras_mas.methods import load_method, online_ewc
from keras_mas.methods.quadratic import QuadraticMethod

QUADRATIC = ("mas", "local_mas", "ewc", "online_ewc", "ewc_dr", "sqrt_fisher", "si", "l2")
PENALTIES = ("in_loss", "decoupled")


def column(*values):
    return np.array(values, "float32")[:, None]


def coin(method, kernel=(0.0, 0.0)):
    """A method's model of two logits, each a weight times x."""
    inputs = keras.Input([1])
    model = method.model(inputs, layers.Dense(2, use_bias=False)(inputs))
    model.set_weights([np.array([kernel])])
    method.protect(model)
    return model


def remembered(method):
    """Ω and θ* of a model of one kernel, as flat lists."""
    memory = method.memory
    (omega,), (anchor,) = memory.importance.values(), memory.anchor.values()
    return omega.ravel().tolist(), anchor.ravel().tolist()


def test_l2_holds_every_weight_alike_at_its_last_value():
    method = load_method("l2")(2.0)
    model = coin(method)
    for kernel in ([[0.5, 1.0]], [[2.0, 3.0]]):
        model.set_weights([np.array(kernel)])
        method.after_task(model, column(1))
    # Not 2 after two tasks: the weights of the first one play no part any more.
    assert remembered(method) == ([1.0, 1.0], [2.0, 3.0])
    model.set_weights([np.array([[2.0, 6.0]])])
    assert float(method.memory.penalty(model)) == 2.0 * (6.0 - 3.0) ** 2


def test_ewc_is_one_square_around_the_mean_of_the_anchors():
    method = load_method("ewc")()
    # F = 1 at θ = 0 and F = 3 at θ = 4: A = 4 and B/A = (0 + 12)/4 = 3. The second weight never
    # mattered, so that its anchor is 0/0: the weight as it is.
    omega, anchor = method.merged(*np.array([[1.0, 0.0], [0.0, 7.0], [3.0, 0.0], [4.0, 8.0]]))
    assert omega.tolist() == [4.0, 0.0]
    assert anchor.tolist() == [3.0, 8.0]
    # The same but for a constant, which has no gradient: 1·3² + 3·3 = 12.
    for weight in (-1.0, 3.0, 5.0):
        of_each = 1.0 * weight**2 + 3.0 * (weight - 4.0) ** 2
        assert of_each == 4.0 * (weight - 3.0) ** 2 + 12.0


def test_ewc_remembers_the_fisher_of_two_tasks():
    # With equal logits p = (½, ½), and F = mean of x²/4 for both weights: 1.25 of x = 1 and −3, and
    # 1 of x = 2. The anchors 0 and 1 become (1.25 · 0 + 1 · 1) / 2.25.
    method = load_method("ewc")()
    model = coin(method)
    method.after_task(model, column(1, -3))
    np.testing.assert_allclose(remembered(method), [[1.25, 1.25], [0.0, 0.0]], rtol=1e-6)
    model.set_weights([np.array([[1.0, 1.0]])])
    method.after_task(model, column(2))
    np.testing.assert_allclose(remembered(method), [[2.25] * 2, [1 / 2.25] * 2], rtol=1e-6)


@pytest.mark.parametrize(("decay", "expected"), [(1.0, 2.25), (0.5, 1.625)])
def test_online_ewc_fades_and_keeps_the_last_anchor(decay, expected):
    class Fading(online_ewc.Method):
        pass

    Fading.decay = decay
    method = Fading()
    model = coin(method)
    method.after_task(model, column(1, -3))
    model.set_weights([np.array([[1.0, 1.0]])])
    method.after_task(model, column(2))
    np.testing.assert_allclose(remembered(method), [[expected] * 2, [1.0, 1.0]], rtol=1e-6)


@pytest.mark.parametrize("as_dataset", [False, True])
def test_ewc_dr_takes_well_learned_examples_for_important(as_dataset):
    # Logits (0, ln 3) of x = 1: p = (¼, ¾), and reversed p = (¾, ¼). The gradient of log p(1) is
    # ±(1 − p(1)): squared (¾)², where it is (¼)² without reversal. For label 0 it is the opposite.
    for label, expected in [(1, 9 / 16), (0, 1 / 16)]:
        method = load_method("ewc_dr")()
        model = coin(method, (0.0, math.log(3)))
        x, y = column(1), np.array([label])
        if as_dataset:
            method.after_task(model, iter([(x, y)]))
        else:
            method.after_task(model, x, y)
        np.testing.assert_allclose(remembered(method)[0], [expected] * 2, rtol=1e-6)
        usual = compute_fisher(model, x, y)
        np.testing.assert_allclose(list(usual.values()), [[[5 / 8 - expected] * 2]], rtol=1e-6)


def test_ewc_dr_asks_for_labels():
    method = load_method("ewc_dr")()
    model = coin(method)
    for x in (column(1), iter([column(1)])):
        with pytest.raises(ValueError, match="Expected labels. Received: inputs alone"):
            method.after_task(model, x)
    assert method.memory.tasks == 0


def test_the_root_of_the_fisher_is_summed_over_the_tasks():
    method = load_method("sqrt_fisher")()
    model = coin(method)
    for _ in range(2):
        method.after_task(model, column(1, -3))
    # The root of the sum would be √2.5.
    np.testing.assert_allclose(remembered(method)[0], [2 * math.sqrt(1.25)] * 2, rtol=1e-6)


def test_local_mas_takes_every_layer_for_itself():
    # y = relu(2x), F = 3y, x = 1. By layers 2xy = 4 and 2yF = 24; of the whole function, with
    # F = 6, |2F ∂F/∂w| = 36 and 24.
    inputs = keras.Input([1])
    options = {"use_bias": False, "kernel_initializer": "ones"}
    hidden = layers.Dense(1, activation="relu", **options)(inputs)
    outputs = layers.Dense(1, **options)(hidden)
    for name, expected in [("local_mas", [4.0, 24.0]), ("mas", [36.0, 24.0])]:
        method = load_method(name)()
        model = method.model(inputs, outputs)
        model.set_weights([np.array([[2.0]]), np.array([[3.0]])])
        method.protect(model)
        method.after_task(model, column(1))
        assert [omega.item() for omega in method.memory.importance.values()] == expected
        method.memory.release()


def normalized(method):
    """A model with batch normalization, and its layer; not protected yet."""
    inputs = keras.Input([1])
    norm = layers.BatchNormalization()
    return method.model(inputs, layers.Dense(1)(norm(inputs))), norm


@pytest.mark.parametrize("name", ["l2", "imm_mean"])
def test_who_protects_is_told_of_batch_normalization_unless_they_decide_about_it(name):
    method = load_method(name)()
    model, norm = normalized(method)
    with pytest.warns(BatchNormWarning):
        method.protect(model)
    method.after_task(model, column(1, 2))
    assert has_frozen_statistics(norm)

    method = load_method(name)()
    model, norm = normalized(method)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.protect(model, batch_norm="update")
    method.after_task(model, column(1, 2))
    assert not has_frozen_statistics(norm)


def line(method, start):
    """A method's compiled model F = wx, which learns by gradient descent with a rate of 0.1."""
    inputs = keras.Input([1])
    model = method.model(inputs, layers.Dense(1, use_bias=False)(inputs))
    model.set_weights([np.array([[start]])])
    method.protect(model)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def steps(weight, target, count, importance, anchor, strength, decoupled):
    """Learn (w − target)² step by step; return w and ω."""
    path = 0.0
    for _ in range(count):
        gradient, before = 2 * (weight - target), weight
        if decoupled:
            weight -= 0.1 * gradient
            weight = anchor + (weight - anchor) / (1 + 2 * 0.1 * strength * importance)
        else:
            weight -= 0.1 * (gradient + 2 * strength * importance * (weight - anchor))
        path -= gradient * (weight - before)
    return weight, path


def test_si_adds_up_what_a_weight_did_for_the_loss():
    method = load_method("si")(1.0)
    model = line(method, 1.0)
    x = column(1, 1)
    method.before_task(model, x)
    model.fit(x, column(0, 0), batch_size=1, verbose=0)
    # g = 2w: 1 → 0.8 → 0.64, so ω = 2 · 0.2 + 1.6 · 0.16 = 0.656 and Δ = −0.36.
    method.after_task(model, x)
    (omega,), (anchor,) = remembered(method)
    assert omega == pytest.approx(0.656 / (0.36**2 + 0.1), rel=1e-5)
    assert anchor == pytest.approx(0.64, rel=1e-6)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_si_leaves_the_penalty_out_of_the_gradient(penalty):
    method = load_method("si")(0.5, penalty)
    model = line(method, 1.0)
    omega, anchor, weight = 0.0, 1.0, 1.0
    for target in (0.0, 3.0, -2.0):
        x = column(1, 1, 1)
        method.before_task(model, x)
        model.fit(x, np.full([3, 1], target), batch_size=1, verbose=0)
        weight, path = steps(weight, target, 3, omega, anchor, 0.5, penalty == "decoupled")
        (found,) = method.importance(model, x).values()
        np.testing.assert_allclose(found, [[path]], rtol=1e-4)
        method.after_task(model, x)
        omega, anchor = max(0.0, omega + path / ((weight - anchor) ** 2 + 0.1)), weight
        np.testing.assert_allclose(remembered(method), [[omega], [anchor]], rtol=1e-4)


def test_si_clips_the_sum_at_zero():
    method = load_method("si")()
    before, nothing = np.array([1.0, 1.0]), np.zeros(2)
    omega, _ = method.merged(before, nothing, np.array([-0.05, -5.0]), nothing)
    assert omega.tolist() == [0.5, 0.0]  # 1 − 0.05/0.1, and not 1 − 50


def test_si_begins_at_weights_that_were_loaded_after_protect():
    method = load_method("si")()
    model = line(method, 1.0)
    model.set_weights([np.array([[5.0]])])
    method.before_task(model, column(1))
    assert remembered(method)[1] == [5.0]


@pytest.mark.parametrize(
    ("optimizer", "cause"),
    [
        (keras.optimizers.SGD(gradient_accumulation_steps=2), "gradient_accumulation_steps=2"),
        (keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()), "scales the loss"),
    ],
)
def test_si_refuses_steps_whose_gradient_it_does_not_see(optimizer, cause):
    model = line(load_method("si")(), 1.0)
    model.compile(optimizer, "mse")
    with pytest.raises(ValueError, match=f"gradient of every batch.*Received: .*{cause}"):
        model.fit(column(1), column(0), verbose=0)


def test_si_comes_back_from_a_file(tmp_path):
    method = load_method("si")(3.0)
    model = line(method, 1.0)
    model.fit(column(1), column(0), verbose=0)
    method.after_task(model, column(1))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.strength == 3.0
    loaded.fit(column(1), column(0), verbose=0)
    assert loaded.path_integral.of(loaded.memory.state_for(loaded.weights[0])) > 0


def classifier(method, seed=0):
    """A method's compiled model of two classes, all of which it protects."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input([2])
    hidden = layers.Dense(4, activation="relu", name="hidden")(inputs)
    model = method.model(inputs, layers.Dense(2, name="logits")(hidden))
    method.protect(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


X = np.random.default_rng(0).normal(size=[32, 2]).astype("float32")
Y = (X[:, 0] > 0).astype("int64")


def learned(name, penalty="in_loss", strength=1.0):
    """A method and its model after one task, and the data of another."""
    method = load_method(name)(strength, penalty)
    model = classifier(method)
    method.before_task(model, X, Y)
    model.fit(X, Y, batch_size=8, epochs=2, verbose=0)
    method.after_task(model, X, Y)
    return method, model


@pytest.mark.parametrize("penalty", slow_but("in_loss", PENALTIES))
@pytest.mark.parametrize("name", QUADRATIC)
def test_the_penalty_acts_in_the_next_fit(name, penalty):
    method, model = learned(name, penalty)
    assert isinstance(method, QuadraticMethod) and method.has_strength and method.has_penalty
    anchor, pulls = model.get_weights(), {}
    largest = max(omega.max() for omega in method.memory.importance.values())
    assert largest > 0
    for strength in (0.0, 0.5 / largest):  # in the loss stable at this learning rate
        model.set_weights(anchor)
        model.strength = strength
        method.before_task(model, X, 1 - Y)
        model.fit(X, 1 - Y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        # Ω (θ − θ*)², how far the weights went away from what mattered.
        model.strength = 1.0
        pulls[strength] = float(method.memory.penalty(model))
    free, held = pulls.values()
    assert 0 < held < 0.9 * free


@pytest.mark.parametrize("name", QUADRATIC)
def test_what_is_remembered_is_saved_and_forgotten(name, tmp_path):
    method, model = learned(name)
    method.save(tmp_path / "memory.npz")
    again = load_method(name)(1.0)
    classifier(again)
    again.load(tmp_path / "memory.npz", tasks=1)
    for part in ("importance", "anchor"):
        ours, theirs = (getattr(m.memory, part) for m in (method, again))
        assert all(np.array_equal(ours[weight], theirs[weight]) for weight in ours)
    model.set_weights([weight + 1 for weight in model.get_weights()])
    method.restart(4.0)
    assert (method.strength, method.memory.strength, method.memory.tasks) == (4.0, 4.0, 0)
    assert not any(omega.any() for omega in method.memory.importance.values())
    np.testing.assert_array_equal(method.memory.anchor["hidden/kernel"], model.get_weights()[0])


@pytest.mark.parametrize("name", QUADRATIC)
def test_tasks_with_heads_of_their_own_share_a_trunk(name):
    inputs = keras.Input([2])
    trunk = keras.Model(inputs, layers.Dense(3, activation="relu", name="hidden")(inputs))
    method = load_method(name)(0.1)
    heads = MultiHead(trunk, method.model)
    method.protect(trunk)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    for task, units in [("signs", 2), ("quadrants", 4)]:
        labels = Y if units == 2 else Y + 2 * (X[:, 1] > 0)
        data = tf.data.Dataset.from_tensor_slices((X, labels)).batch(8)
        model = heads.add(task, units)
        model.compile(keras.optimizers.SGD(0.1), loss)
        method.before_task(model, data)
        model.fit(data, shuffle=False, verbose=0)
        method.after_task(model, data, max_examples=20)
    assert method.memory.tasks == 2
    assert set(method.memory.importance) == {"hidden/kernel", "hidden/bias"}
    assert all(omega.any() for omega in method.memory.importance.values())
