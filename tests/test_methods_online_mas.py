"""Task-free MAS: hard examples, plateaus, and the running average of the importance."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mas.methods.online_mas import HardExamples, Method, NothingProtectedWarning


def learner(strength=0.1, penalty="in_loss", rate=0.5):
    """A method and its model of two heads of two logits z = wx, with w = 0."""
    method = Method(strength, penalty)
    inputs = keras.Input([2])
    heads = [layers.Dense(2, use_bias=False, kernel_initializer="zeros")(inputs) for _ in range(2)]
    model = method.model(inputs, heads)
    method.protect(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss)
    return method, model


def step(model, x, y):
    model.train_step((tf.constant(x, tf.float32), tf.constant(y, tf.int64)))


def test_the_hardest_examples_are_kept():
    hard = HardExamples([1], capacity=2)
    x, y = tf.constant([[1.0], [2.0], [3.0]]), tf.constant([7, 8, 9], tf.int64)
    hard.keep_hardest(x[:1], y[:1], tf.constant([0.5]))
    assert (hard.inputs.numpy().tolist(), hard.labels.numpy().tolist()) == ([[1.0]], [7])
    hard.keep_hardest(x, y, tf.constant([0.2, 0.1, 0.9]))
    assert (hard.inputs.numpy().tolist(), hard.labels.numpy().tolist()) == ([[3.0], [1.0]], [9, 7])


def test_a_step_learns_from_new_and_hard_examples():
    _, model = learner()
    head, other = model.weights
    step(model, [[1.0, 0.0]], [0])
    # The gradient at (0, 0) is (−½, ½) for x = (1, 0), the rate ½.
    np.testing.assert_allclose(head, [[0.25, -0.25], [0, 0]])
    # Now that example is kept. A new one x = (0, 1) of the other head and the kept one share the
    # step: each gradient counts half. The odds of the kept one are e^½, p = 1 / (1 + e^−½).
    step(model, [[0.0, 1.0]], [3])
    np.testing.assert_allclose(other, [[0, 0], [-0.125, 0.125]])
    p = 1 / (1 + np.exp(-0.5))
    np.testing.assert_allclose(head[0], [0.25 + (1 - p) / 4, -0.25 - (1 - p) / 4], rtol=1e-5)
    assert model.hard.labels.numpy().tolist() == [3, 0]  # ordered by loss, ln 2 first


def test_the_loss_that_is_watched_is_that_of_the_new_examples():
    method, model = learner()
    step(model, [[1.0, 0.0]], [0])
    step(model, [[0.0, 1.0]], [3])
    np.testing.assert_allclose(method.plateaus.losses[-2:], [np.log(2), np.log(2)], rtol=1e-6)


def at_plateau(method, model, x, w):
    """Consolidate with the hard examples `x` and the weights `w` of the first head."""
    model.weights[0].assign(w)
    x = np.array(x, "float32")
    model.hard.keep_hardest(x, np.zeros(len(x), "int64"), np.ones(len(x), "float32"))
    method.plateaus.has_met_plateau.assign(True)
    for callback in method.callbacks():
        callback.set_model(model)
        callback.on_train_batch_end(0)


def test_importance_is_averaged_over_plateaus():
    # z = wx; ∂‖z‖²/∂w_ij = 2 x_i z_j. The head whose labels were never met does not count.
    method, model = learner()
    model.labels_met.assign([True, True, False, False])
    model.weights[1].assign(np.ones([2, 2]))
    at_plateau(method, model, [[1.0, 0.0], [3.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]])
    first, second = (method.memory.state_for(weight) for weight in model.weights)
    np.testing.assert_allclose(first.importance, [[(2 + 18) / 2, 0], [0, 0]])
    at_plateau(method, model, [[0.0, 1.0]], [[1.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(first.importance, [[5, 0], [0, 2]])
    at_plateau(method, model, [[0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(first.importance, [[10 / 3, 0], [0, 4 / 3]], rtol=1e-6)
    np.testing.assert_array_equal(first.anchor, np.zeros([2, 2]))
    assert not second.importance.numpy().any()
    assert method.memory.tasks == 3


def test_a_fit_without_boundaries_consolidates_once_for_each_thing_learned():
    # A stream in two parts whose classes are the same and whose inputs are not; nobody is told.
    method, model = learner()
    x = np.repeat(np.eye(2, dtype="float32"), 64, axis=0)
    y = np.repeat([0, 0], 64)
    changed = np.concatenate([np.ones(64), np.zeros(64)]).astype("int64")
    times = []

    class Note(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            times.append(method.memory.tasks)

    for labels in (y, changed):
        callbacks = [*method.callbacks(), Note()]
        model.fit(x, labels, epochs=20, batch_size=16, shuffle=True, callbacks=callbacks, verbose=0)
    assert times[-1] == 2
    assert times[159] == 1


def test_a_fit_without_its_callback_is_refused():
    method, model = learner()
    method.plateaus.has_met_plateau.assign(True)
    with pytest.raises(ValueError, match=r"Expected `callbacks=method.callbacks\(\)` in every"):
        model.fit(np.ones([1, 2]), np.zeros([1]), verbose=0)


@pytest.mark.parametrize("penalty", ["in_loss", "decoupled"])
def test_the_penalty_acts(penalty):
    drifts = []
    for strength in (0.0, 2.0):
        method, model = learner(strength, penalty, rate=0.1)
        model.labels_met.assign([True, True, False, False])
        at_plateau(method, model, [[1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]])
        for _ in range(10):
            step(model, [[1.0, 0.0]], [1])
        drifts.append(abs(float(model.weights[0][0, 0]) - 1))
    assert drifts[1] < drifts[0] / 2


def test_it_goes_on_from_what_it_saved(tmp_path):
    method, model = learner()
    model.labels_met.assign([True, True, False, False])
    at_plateau(method, model, [[1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]])
    step(model, [[1.0, 0.0]], [0])
    for _ in range(4):  # tasks, whose number says nothing of plateaus
        method.after_task(model, None)
    method.save(tmp_path / "memory.npz")
    again, other = learner()
    other.set_weights(model.get_weights())
    with pytest.raises(ValueError, match="it is of 4 tasks, not of 3"):
        again.load(tmp_path / "memory.npz", tasks=3)
    assert again.memory.tasks == 0
    again.load(tmp_path / "memory.npz", tasks=4)
    for of in (model, other):
        step(of, [[0.0, 1.0]], [2])
    for weight, same in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(weight, same)
    theirs = again.state()
    for name, values in method.state().items():
        if not name.startswith("memory:"):  # of which the weights have other names
            np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def test_what_another_network_remembers_changes_nothing(tmp_path):
    method, model = learner()
    at_plateau(method, model, [[1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]])
    arrays = method.state()
    arrays["hard:inputs"] = arrays["hard:inputs"][:, :1]
    again, _ = learner()
    with pytest.raises(ValueError, match=r"its 'inputs' are \(30, 1\), not \(30, 2\)"):
        again.restore(arrays, 0)
    assert again.memory.tasks == 0


def test_a_new_run_remembers_nothing():
    method, model = learner()
    step(model, [[1.0, 0.0]], [0])
    at_plateau(method, model, [[1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]])
    method.restart(0.5)
    assert (method.memory.tasks, method.memory.strength) == (0, 0.5)
    assert int(model.hard.count) == 0
    assert not model.labels_met.numpy().any()
    assert np.isinf(method.plateaus.losses.numpy()).all()


def test_a_warning_says_that_nothing_was_protected():
    method, model = learner()
    expected = "no 5 steps had a mean loss below 0.2 and a variance below 0.1. Nothing is protected"
    with pytest.warns(NothingProtectedWarning, match=expected):
        method.after_task(model, None)
