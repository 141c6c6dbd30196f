import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import slow, slow_but
from keras import layers

from keras_mas import Consolidate, MASModel, SynapticMemory, compute_importance
from keras_mas.errors import NotFiniteError
from keras_mas.finite import FitDivergedError
from keras_mas.importance import ImportanceSums, measure_sums
from keras_mas.methods.si import PathModel
from keras_mas.penalty import UnstablePenaltyWarning, proximal_step, stable_curvature
from keras_mas.regularizer import MASRegularizer

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 48, 5)).astype("float32")
LABELS_A, LABELS_B = RNG.integers(0, 3, size=(2, 48))


class CountedLoss(keras.losses.SparseCategoricalCrossentropy):
    """Counts how often Python runs it, which is once per trace."""

    traces = 0

    def __init__(self, **kwargs):
        super().__init__(from_logits=True)

    def call(self, y_true, y_pred):
        CountedLoss.traces += 1
        return super().call(y_true, y_pred)


def network(kind=keras.Model, regularizer=None, **kwargs):
    keras.utils.set_random_seed(3)
    inputs = keras.Input([5])
    hidden = layers.Dense(6, "relu", kernel_regularizer=regularizer, name="hidden")(inputs)
    return kind(inputs, layers.Dense(3, name="out")(hidden), **kwargs)


def compiled(model, optimizer="sgd"):
    optimizers = {
        "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
        "adam": lambda: keras.optimizers.Adam(0.01, clipnorm=0.5),
    }
    model.compile(optimizers[optimizer](), CountedLoss())
    return model


def fit(model, inputs, labels, **kwargs):
    history = model.fit(inputs, labels, epochs=2, batch_size=16, verbose=0, shuffle=False, **kwargs)
    return history.history


def protected(strength=1.0):
    model = compiled(network())
    return model, SynapticMemory(strength).protect(model)


def one_weight(values):
    """A model of one weight vector, and its variable."""
    model = keras.Sequential([keras.Input([2]), layers.Dense(1, use_bias=False)], name="one")
    model.set_weights([np.array(values, "float32")[:, None]])
    return model, model.weights[0]


def test_the_penalty_and_its_gradient_by_hand():
    # λ Σ Ω (θ − θ*)² = 0.5 · (1 · 2² + 0 · 9²) = 2; 2 λ Ω (θ − θ*) = (2, 0). No ½ anywhere.
    importance, anchor, theta = tf.constant([1.0, 0.0]), tf.constant([1.0, 1.0]), [3.0, 10.0]
    weight = tf.Variable(theta)
    with tf.GradientTape() as tape:
        penalty = MASRegularizer(importance, anchor, tf.constant(0.5))(weight)
    assert float(penalty) == 2.0
    np.testing.assert_array_equal(tape.gradient(penalty, weight), [2.0, 0.0])


def test_consolidate_adds_importance_and_moves_the_anchor():
    model, weight = one_weight([1.0, 0.0])
    memory = SynapticMemory().protect(model)
    assert memory.importance["one/dense/kernel"].tolist() == [[0.0], [0.0]]
    # F = w·x: |2 x F| for x = (1, 2) is (2, 4); at w = (2, 0) it is (4, 8). Sum: (6, 12).
    x = np.array([[1.0, 2.0]])
    memory.consolidate(model, x)
    weight.assign([[2.0], [0.0]])
    # θ* is a copy: the drift of 1 costs λ · 2 · 1². A live θ* would make it 0.
    assert float(memory.penalty(model)) == 2.0
    memory.consolidate(model, x)
    assert memory.importance["one/dense/kernel"].tolist() == [[6.0], [12.0]]
    assert memory.anchor["one/dense/kernel"].tolist() == [[2.0], [0.0]]
    assert float(memory.penalty(model)) == 0.0


def test_an_importance_of_ones_own_is_added_or_merged():
    model, weight = one_weight([1.0, 0.0])
    memory = SynapticMemory().protect(model)
    own = {"one/dense/kernel": np.array([[2.0], [4.0]])}
    memory.remember(model, own)
    weight.assign([[3.0], [0.0]])

    def half_way(importance, anchor, now, theta):
        return importance / 2 + now, (anchor + theta) / 2

    memory.remember(model, own, half_way)
    assert memory.importance["one/dense/kernel"].tolist() == [[3.0], [6.0]]
    assert memory.anchor["one/dense/kernel"].tolist() == [[2.0], [0.0]]
    memory.remember(model, {})  # nothing is said of the weight: nothing is added
    assert memory.importance["one/dense/kernel"].tolist() == [[3.0], [6.0]]
    assert memory.tasks == 3


@pytest.mark.parametrize(
    ("own", "complaint"),
    [
        ([[2.0], [-4.0]], "an importance ≥ 0 for 'one/dense/kernel'. Received: -4"),
        ([2.0, 4.0], r"of shape \(2, 1\) for 'one/dense/kernel'. Received: shape \(2,\)"),
        ([[np.nan], [4.0]], "finite numbers as importance of 'one/dense/kernel'. Received: NaN"),
        ([[np.inf], [4.0]], "'one/dense/kernel' is too large for float32: it is infinite"),
        ([[1e39], [4.0]], "'one/dense/kernel' is too large for float32: it is infinite"),
        ([[2j], [4.0]], "real numbers as importance of 'one/dense/kernel'. Received: complex128"),
    ],
)
def test_an_importance_that_cannot_be_changes_nothing(own, complaint):
    model, weight = one_weight([1.0, 0.0])
    memory = SynapticMemory().protect(model)
    weight.assign([[3.0], [0.0]])
    with pytest.raises(ValueError, match=complaint):
        memory.remember(model, {"one/dense/kernel": np.array(own)})
    assert memory.tasks == 0
    assert memory.anchor["one/dense/kernel"].tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize(
    ("anchor", "complaint"),
    [
        ([[np.nan], [0.0]], "finite real numbers as θ\\* of 'one/dense/kernel'. Received: others"),
        ([[1e39], [0.0]], "finite real numbers as θ\\*"),
        ([[1j], [0.0]], "finite real numbers as θ\\*"),
        ([0.0, 0.0], r"θ\* of shape \(2, 1\) for 'one/dense/kernel'. Received: shape \(2,\)"),
    ],
)
def test_an_anchor_that_cannot_be_changes_nothing(anchor, complaint):
    model, _ = one_weight([1.0, 0.0])
    memory = SynapticMemory().protect(model)
    own = {"one/dense/kernel": np.ones([2, 1])}
    with pytest.raises(ValueError, match=complaint):
        memory.remember(model, own, lambda omega, _, now, theta: (now, np.array(anchor)))
    assert memory.tasks == 0
    assert memory.anchor["one/dense/kernel"].tolist() == [[1.0], [0.0]]


def test_weights_that_are_nan_are_no_anchor():
    model, weight = one_weight([1.0, 0.0])
    memory = SynapticMemory().protect(model)
    weight.assign([[np.nan], [0.0]])
    with pytest.raises(ValueError, match="Look whether the training of the model diverged"):
        memory.remember(model, {})
    assert memory.tasks == 0


def test_the_log_says_that_nothing_matters(caplog):
    model, _ = one_weight([1.0, 0.0])
    memory = SynapticMemory().protect(model)
    own = {"one/dense/kernel": np.zeros([2, 1])}
    memory.remember(model, own)
    (message,) = caplog.messages
    assert message.startswith("The importance of every protected weight of 'one' is 0: nothing")
    own["one/dense/kernel"][0] = 1.0
    memory.remember(model, own)
    assert len(caplog.messages) == 1


def test_the_log_says_nothing_where_one_of_two_weights_matters(caplog):
    inputs = keras.Input([2])
    model = keras.Model(inputs, layers.Dense(1, name="both")(inputs))
    memory = SynapticMemory().protect(model)
    memory.remember(model, {"both/kernel": np.ones([2, 1]), "both/bias": np.zeros([1])})
    assert caplog.messages == []


def test_importance_of_a_weight_that_the_model_does_not_have_is_refused():
    model, _ = one_weight([1.0, 0.0])
    memory = SynapticMemory().protect(model)
    with pytest.raises(ValueError, match="1 that it does not have, such as 'other/kernel'"):
        memory.remember(model, {"other/kernel": np.ones([2, 1])})
    assert memory.tasks == 0


def test_twice_the_drift_is_four_times_the_penalty():
    model, weight = one_weight([1.0, 1.0])
    memory = SynapticMemory(0.3).protect(model)
    memory.consolidate(model, np.ones([1, 2]))
    weight.assign([[1.5], [1.0]])
    once = float(memory.penalty(model))
    weight.assign([[2.0], [1.0]])
    assert float(memory.penalty(model)) == pytest.approx(4 * once)
    assert once > 0


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("regularizer", [None, slow(keras.regularizers.L2(0.01))], ids=["", "l2"])
def test_both_doors_give_the_same_weights(optimizer, regularizer):
    outside = compiled(network(regularizer=regularizer), optimizer)
    memory = SynapticMemory(2.0).protect(outside)
    inside = compiled(network(MASModel, regularizer, strength=2.0), optimizer)
    for inputs, labels in [(A, LABELS_A), (B, LABELS_B)]:
        losses_outside, losses_inside = fit(outside, inputs, labels), fit(inside, inputs, labels)
        np.testing.assert_allclose(losses_outside["loss"], losses_inside["loss"], rtol=1e-5)
        memory.consolidate(outside, inputs)
        inside.consolidate(inputs)
    assert max(values.max() for values in memory.importance.values()) > 0.1
    for one, other in zip(outside.weights, inside.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-6, err_msg=one.path)


def test_strength_zero_is_plain_fit():
    plain, free = compiled(network()), compiled(network(MASModel, strength=0.0))
    fit(plain, A, LABELS_A)
    fit(free, A, LABELS_A, callbacks=[Consolidate(A)])
    fit(plain, B, LABELS_B)
    fit(free, B, LABELS_B)
    for one, other in zip(plain.weights, free.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize("kind", [keras.Model, MASModel])
def test_nothing_is_traced_again(kind):
    model = compiled(network(kind))
    memory = SynapticMemory().protect(model) if kind is keras.Model else model.memory
    fit(model, A, LABELS_A)
    model.evaluate(A, LABELS_A, verbose=0)
    traces = CountedLoss.traces
    memory.consolidate(model, A)
    held = fit(model, B, LABELS_B)
    memory.strength = 1e-6
    free = fit(model, B, LABELS_B)
    model.evaluate(A, LABELS_A, verbose=0)
    assert CountedLoss.traces == traces
    assert free["loss"][-1] < held["loss"][0]


def drift(memory, model):
    anchor = memory.anchor
    return sum(np.abs(w.numpy() - anchor[w.path]).sum() for w in model.weights)


@pytest.mark.parametrize("kind", [keras.Model, MASModel])
def test_many_steps_per_execution_are_the_same_steps(kind):
    def trained(steps):
        model = network(kind)
        memory = getattr(model, "memory", None) or SynapticMemory().protect(model)
        memory.strength = 5.0
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, steps_per_execution=steps)
        ends = []
        told = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: ends.append(batch)
        )
        fit(model, A, LABELS_A)
        memory.consolidate(model, A)
        history = fit(model, B, LABELS_B, callbacks=[told])
        return model.get_weights(), history, ends

    weights, history, ends = trained(1)
    many, history_of_many, ends_of_many = trained(8)
    assert ends == [0, 1, 2, 0, 1, 2]
    assert len(ends_of_many) == 2  # once per call
    for one, other in zip(weights, many, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    for name in ("loss", "penalty"):
        assert history_of_many[name] == pytest.approx(history[name], rel=1e-4)


def test_a_memory_that_forgets_goes_on_protecting(caplog):
    model, memory = protected(strength=5.0)
    fit(model, A, LABELS_A)
    memory.consolidate(model, A)
    fit(model, B, LABELS_B)
    memory.forget()
    assert memory.tasks == 0
    assert not any(omega.any() for omega in memory.importance.values())
    np.testing.assert_array_equal(memory.anchor["hidden/kernel"], model.get_weights()[0])
    traces = CountedLoss.traces
    assert fit(model, A, LABELS_A)["penalty"] == [0.0, 0.0]
    memory.consolidate(model, A)
    assert max(fit(model, B, LABELS_B)["penalty"]) > 0
    assert CountedLoss.traces == traces


@pytest.mark.parametrize("kind", slow_but(keras.Model, [keras.Model, MASModel]))
def test_a_new_strength_acts_in_the_next_fit(kind):
    drifts = {}
    for strength in (0.0, 1.0):
        model = compiled(network(kind))
        memory = SynapticMemory(5.0).protect(model) if kind is keras.Model else model.memory
        fit(model, A, LABELS_A)
        memory.consolidate(model, A)
        memory.strength = strength
        fit(model, B, LABELS_B)
        drifts[strength] = drift(memory, model)
    assert drifts[1.0] < 0.9 * drifts[0.0]


def test_protecting_a_model_that_has_been_fitted_already():
    late, early = compiled(network()), compiled(network())
    early_memory = SynapticMemory().protect(early)
    fit(early, A, LABELS_A)
    fit(late, A, LABELS_A)  # traced without a penalty
    memory = SynapticMemory().protect(late)
    for model, kept in [(late, memory), (early, early_memory)]:
        kept.consolidate(model, A)
        fit(model, B, LABELS_B)
    for one, other in zip(late.weights, early.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_a_trunk_is_held_and_its_head_is_free():
    model = compiled(network())
    trunk = keras.Model(model.input, model.get_layer("hidden").output)
    memory = SynapticMemory().protect(trunk)
    fit(model, A, LABELS_A)
    memory.consolidate(model, A)
    assert set(memory.importance) == {"hidden/kernel", "hidden/bias"}
    assert memory.importance["hidden/kernel"].max() > 0
    assert model.get_layer("out").kernel.regularizer is None


def test_release_lets_go_and_gives_the_old_regularizer_back():
    l2 = keras.regularizers.L2(0.01)
    model = network(regularizer=l2)
    memory = SynapticMemory().protect(model)
    kernel, bias = model.get_layer("hidden").weights
    assert kernel.regularizer.base_regularizer is l2
    memory.release(model)
    assert kernel.regularizer is l2
    assert bias.regularizer is None
    SynapticMemory().protect(model)


def test_a_saved_memory_protects_a_new_process_alike(tmp_path):
    model, memory = protected(3.0)
    fit(model, A, LABELS_A)
    memory.consolidate(model, A)
    memory.save(tmp_path / "memory.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["memory.npz"]

    again = compiled(network())
    again.set_weights(model.get_weights())
    loaded = SynapticMemory.load(tmp_path / "memory.npz").protect(again)
    assert loaded.strength == 3.0
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), CountedLoss())  # drops the momentum
    assert fit(model, B, LABELS_B) == fit(again, B, LABELS_B)
    for one, other in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_a_saved_model_brings_its_memory_back(tmp_path):
    model = compiled(network(MASModel, strength=2.0))
    fit(model, A, LABELS_A, callbacks=[Consolidate(A)])
    model.strength = 0.5
    model.save(tmp_path / "m.keras")
    model.save_weights(tmp_path / "m.weights.h5")
    loaded = keras.models.load_model(
        tmp_path / "m.keras", custom_objects={"CountedLoss": CountedLoss}
    )
    blank = network(MASModel)
    blank.load_weights(tmp_path / "m.weights.h5")
    for other in (loaded, blank):
        assert other.strength == 0.5
        for path, values in model.memory.importance.items():
            np.testing.assert_array_equal(other.memory.importance[path], values)
            np.testing.assert_array_equal(other.memory.anchor[path], model.memory.anchor[path])
    assert fit(model, B, LABELS_B) == fit(loaded, B, LABELS_B)


def named_kernel(name, shape=(2, 3)):
    """A model of one kernel of ones in a layer of a given name, and the memory that protects it."""
    layer = layers.Dense(shape[1], use_bias=False, kernel_initializer="ones", name=name)
    model = keras.Sequential([keras.Input(shape[:1]), layer], name="net")
    return model, SynapticMemory().protect(model)


def test_a_memory_goes_back_to_an_earlier_state_in_place(caplog):
    model, memory = named_kernel("hidden")
    kernel = model.weights[0]
    name = memory.state_for(kernel).name
    memory.consolidate(model, ImportanceSums({name: np.full([2, 3], 2.0, "float32")}, examples=1))
    early = memory.state()
    kernel.assign(np.full([2, 3], 4.0))
    memory.strength = 9.0
    memory.consolidate(model, ImportanceSums({name: np.full([2, 3], 5.0, "float32")}, examples=1))
    assert float(memory.penalty(model)) == 0
    memory.restore(early)
    assert float(memory.penalty(model)) == 6 * 1.0 * 2.0 * (4.0 - 1.0) ** 2
    assert memory.tasks == 1
    assert caplog.messages[-1] == "what is remembered goes back from 2 tasks to 1"


def test_a_format_that_would_lose_the_memory_is_refused(tmp_path):
    with pytest.raises(ValueError, match="saved as a '.keras' file. Received: .*m.h5"):
        network(MASModel).save(tmp_path / "m.h5")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda memory: pickle.loads(pickle.dumps(memory))]
)
def test_a_copied_memory_remembers_the_same_and_is_bound_to_nothing(copied):
    model, memory = protected(2.0)
    memory.consolidate(model, A)
    other = copied(memory)
    assert other.strength == 2.0
    for name, values in memory.importance.items():
        np.testing.assert_array_equal(other.importance[name], values)
    assert other.state_for(model.weights[0]) is None


def test_consolidate_at_the_end_of_fit():
    model, memory = protected()
    fit(model, A, LABELS_A, callbacks=[Consolidate(A, memory)])
    for path, values in compute_importance(model, A).items():
        np.testing.assert_array_equal(memory.importance[path], values)
    with pytest.raises(ValueError, match="Expected a memory, or a `MASModel`"):
        fit(model, A, LABELS_A, callbacks=[Consolidate(A)])


def test_consolidate_takes_the_options_of_the_importance():
    model, memory = protected()
    fit(model, A, LABELS_A, callbacks=[Consolidate(A, memory, max_examples=3, output="layers")])
    for path, values in compute_importance(model, A[:3], output="layers").items():
        np.testing.assert_array_equal(memory.importance[path], values)
    with pytest.raises(TypeError, match="max_exmaples"):
        Consolidate(A, max_exmaples=3)


@pytest.mark.parametrize("kind", [keras.Model, MASModel])
def test_consolidate_sums_that_others_measured(kind):
    model = compiled(network(kind))
    memory = SynapticMemory().protect(model) if kind is keras.Model else model.memory
    fit(model, A, LABELS_A)
    sums = measure_sums(model, A[:10]) + measure_sums(model, A[10:])
    if kind is keras.Model:
        memory.consolidate(model, sums)
    else:
        model.consolidate(sums)
    for path, values in compute_importance(model, A).items():
        np.testing.assert_allclose(memory.importance[path], values, rtol=1e-5)
    of_another = ImportanceSums({"dense/kernel": np.ones([2, 2])}, 1)
    before = memory.importance
    with pytest.raises(ValueError, match="Expected sums over the weights of.*Received: none for"):
        memory.consolidate(model, of_another)
    assert all(np.array_equal(memory.importance[path], before[path]) for path in before)


def test_val_loss_is_without_the_penalty():
    model = compiled(network(MASModel, strength=20.0))
    fit(model, A, LABELS_A)
    model.consolidate(A)
    for weight in model.weights:
        weight.assign(weight + 0.1)
    history = model.fit(A, LABELS_A, verbose=0, validation_data=(A, LABELS_A), batch_size=48)
    assert history.history["loss"][0] > 1.5 * history.history["val_loss"][0]


def test_mixed_precision_keeps_the_memory_in_float32():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model = compiled(network(MASModel, strength=1.0))
        fit(model, A, LABELS_A, callbacks=[Consolidate(A)])
        before = model.get_weights()
        fit(model, B, LABELS_B)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert {values.dtype.name for values in model.memory.importance.values()} == {"float32"}
    assert any((a != b).any() for a, b in zip(before, model.get_weights(), strict=True))
    assert all(np.isfinite(values).all() for values in model.get_weights())


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "mixed_float16"])
@pytest.mark.parametrize("kind", slow_but(keras.Model, [keras.Model, MASModel]))
def test_any_precision_trains(dtype, kind):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    if dtype == "float64":
        keras.backend.set_floatx(dtype)
    try:
        # Keras itself cannot add an L2 penalty in bfloat16 to its loss in float32.
        l2 = None if dtype == "bfloat16" else keras.regularizers.L2(0.01)
        model = compiled(network(kind, l2))
        memory = SynapticMemory().protect(model) if kind is keras.Model else model.memory
        fit(model, A, LABELS_A)
        memory.consolidate(model, A)
        history = fit(model, B, LABELS_B)
    finally:
        keras.config.set_dtype_policy(policy)
    assert np.isfinite(history["loss"]).all()
    assert drift(memory, model) > 0


def test_a_scaled_loss_scales_the_penalty_too():
    # A loss scale s is taken back from the gradients by the optimizer, the penalty's included.
    plain, scaled = (compiled(network(MASModel, strength=2.0)) for _ in range(2))
    scaled.compile(keras.optimizers.SGD(0.05, momentum=0.9, loss_scale_factor=64.0), CountedLoss())
    for model in (plain, scaled):
        fit(model, A, LABELS_A, callbacks=[Consolidate(A)])
        fit(model, B, LABELS_B)
    for one, other in zip(plain.weights, scaled.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), atol=1e-5)


def test_the_reported_loss_weighs_a_ragged_last_batch_as_keras_does():
    outside, inside = compiled(network()), compiled(network(MASModel))
    losses = [
        model.fit(A[:20], LABELS_A[:20], batch_size=16, verbose=0, shuffle=False).history["loss"]
        for model in (outside, inside)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_a_weight_frozen_meanwhile_keeps_its_importance():
    model, memory = protected()
    fit(model, A, LABELS_A)
    memory.consolidate(model, A)
    before = memory.importance
    model.get_layer("hidden").trainable = False
    memory.consolidate(model, A)
    assert np.array_equal(memory.importance["hidden/kernel"], before["hidden/kernel"])
    assert (memory.importance["out/kernel"] > before["out/kernel"]).any()


def test_released_weights_are_free_in_the_next_fit():
    held, freed = (protected(5.0) for _ in range(2))
    plain = compiled(network())
    fit(plain, A, LABELS_A)
    for model, memory in (held, freed):
        fit(model, A, LABELS_A)
        memory.consolidate(model, A)
    freed[1].release(freed[0])
    for model in (held[0], freed[0], plain):
        fit(model, B, LABELS_B)
    kernels = [model.get_layer("hidden").kernel.numpy() for model in (held[0], freed[0], plain)]
    np.testing.assert_array_equal(kernels[1], kernels[2])
    assert not np.allclose(kernels[0], kernels[2])


def test_a_trunk_protected_late_is_protected_in_the_model_that_is_consolidated():
    late, early = compiled(network()), compiled(network())
    trunks = [keras.Model(m.input, m.get_layer("hidden").output) for m in (late, early)]
    early_memory = SynapticMemory().protect(trunks[1])
    for model in (late, early):
        fit(model, A, LABELS_A)
    late_memory = SynapticMemory().protect(trunks[0])
    late.evaluate(A, LABELS_A, verbose=0)  # traces the penalty, but in another function
    for model, memory in [(late, late_memory), (early, early_memory)]:
        memory.consolidate(model, A)
        fit(model, B, LABELS_B)
    for one, other in zip(late.weights, early.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


@pytest.mark.parametrize("kind", slow_but(MASModel, [MASModel, PathModel]))
def test_a_saved_model_loads_in_a_new_process(tmp_path, kind):
    model = network(kind, strength=2.0)
    model.consolidate(A)
    model.save(tmp_path / "m.keras")
    code = f"""
import keras, keras_mas
model = keras.models.load_model({str(tmp_path / "m.keras")!r})
assert model.strength == 2.0
assert model.memory.importance["hidden/kernel"].max() > 0
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_step_of_the_penalty_alone_by_hand():
    # θ* + (θ − θ*) / (1 + 2 η λ Ω) = 1 + 2 / (1 + 2 · 0.25 · 2 · 3) = 1.5, and a free weight stays.
    importance, anchor = tf.constant([3.0, 0.0]), tf.constant([1.0, 1.0])
    drawn = proximal_step(tf.constant([3.0, 10.0]), importance, anchor, 2.0, rate=0.25)
    np.testing.assert_array_equal(drawn, [1.5, 10.0])


def test_the_decoupled_penalty_acts_after_the_step():
    # Plain SGD on a loss of gradient 0 (the penalty alone moves the weight), one step at a time.
    inputs = keras.Input([1])
    model = MASModel(
        inputs, layers.Dense(1, use_bias=False)(inputs), strength=2.0, penalty="decoupled"
    )
    model.compile(keras.optimizers.SGD(0.25), "mse")
    zeros = np.zeros([1, 1])
    model.consolidate(np.ones([1, 1]))
    path = model.weights[0].path
    anchor, omega = model.memory.anchor[path], model.memory.importance[path]
    model.weights[0].assign(anchor + 1.0)
    for steps in (1, 2):
        model.fit(zeros, zeros, verbose=0)
        expected = anchor + 1.0 / (1 + 2 * 0.25 * 2.0 * omega) ** steps
        np.testing.assert_allclose(model.weights[0].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("strength", slow_but(1e8, [1.0, 1e4, 1e8]))
def test_the_decoupled_penalty_is_stable_for_every_strength(strength):
    model = compiled(network(MASModel, strength=strength, penalty="decoupled"))
    fit(model, A, LABELS_A)
    model.consolidate(A)
    history = fit(model, B, LABELS_B)
    assert np.isfinite(history["loss"]).all()
    if strength == 1e8:  # what matters at all does not move
        assert (
            np.abs(model.weights[0].numpy() - model.memory.anchor[model.weights[0].path]).max()
            < 0.05
        )


def test_the_decoupled_penalty_is_saved_with_the_model(tmp_path):
    network(MASModel, penalty="decoupled").save(tmp_path / "m.keras")
    assert keras.models.load_model(tmp_path / "m.keras").penalty == "decoupled"
    with pytest.raises(ValueError, match="penalty out of in_loss, decoupled. Received: 'outside'"):
        network(MASModel, penalty="outside")


def test_small_steps_of_both_penalties_agree():
    # (1 + 2ηλΩ)⁻¹ = 1 − 2ηλΩ + …: to first order in η it is the gradient step.
    trained = []
    for penalty in ("in_loss", "decoupled"):
        model = network(MASModel, penalty=penalty)
        model.compile(keras.optimizers.SGD(1e-4), CountedLoss())
        fit(model, A, LABELS_A)
        model.consolidate(A)
        for weight in model.weights:
            weight.assign(weight + 0.5)
        before = model.get_weights()
        fit(model, B, LABELS_B)
        trained.append([a - b for a, b in zip(model.get_weights(), before, strict=True)])
    for one, other in zip(*trained, strict=True):
        np.testing.assert_allclose(one, other, atol=0.01 * np.abs(one).max())


@pytest.mark.parametrize(
    ("momentum", "nesterov", "limit"),
    [(0.0, False, 2.0), (0.9, False, 3.8), (0.9, True, 3.8 / 2.8)],
)
def test_the_limit_of_stability_is_where_descent_diverges(momentum, nesterov, limit):
    optimizer = keras.optimizers.SGD(0.1, momentum=momentum, nesterov=nesterov)
    assert stable_curvature(optimizer) == pytest.approx(limit / 0.1)
    assert falls_to_zero(0.99 * limit, momentum, nesterov)
    assert not falls_to_zero(1.01 * limit, momentum, nesterov)


def falls_to_zero(step, momentum, nesterov):
    """Descend on θ²/2 as Keras's SGD does, a learning rate of `step`."""
    theta, velocity = 1.0, 0.0
    for _ in range(4000):
        velocity = momentum * velocity - step * theta
        theta += momentum * velocity - step * theta if nesterov else velocity
        if abs(theta) > 1e6:
            return False
    return abs(theta) < 1e-3


@pytest.mark.parametrize("kind", [keras.Model, MASModel])
def test_a_penalty_that_will_blow_up_is_announced(kind):
    model = compiled(network(kind))
    memory = SynapticMemory().protect(model) if kind is keras.Model else model.memory
    fit(model, A, LABELS_A)
    memory.consolidate(model, A)  # no word: λ = 1 is safe
    fit(model, B, LABELS_B)
    steepest = max(values.max() for values in memory.importance.values())
    safe = 3.8 / 0.05 / (2 * steepest)
    memory.strength = 3 * safe
    with pytest.warns(UnstablePenaltyWarning, match="λ = .* is above .* with max Ω = .* \\(in '"):
        if kind is keras.Model:
            memory.consolidate(model, A)
        else:
            fit(model, B, LABELS_B)


@pytest.mark.slow
def test_two_replicas_train_as_one(tmp_path):
    # Logical devices are made once per process.
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "two_replicas.py"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_failed_consolidation_changes_nothing():
    model, memory = protected()
    memory.consolidate(model, A)
    before = memory.state()
    with pytest.raises(ValueError, match="Expected finite outputs and gradients"):
        memory.consolidate(model, np.full([4, 5], np.nan))
    after = memory.state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("strength", [-1.0, np.nan, np.inf, 1e39, 1e-50, True])
def test_an_impossible_strength_is_refused(strength):
    memory = SynapticMemory(2.0)
    for attempt in (SynapticMemory, lambda value: setattr(memory, "strength", value)):
        with pytest.raises(ValueError, match="strength λ ≥ 0 that float32 can hold. Received: "):
            attempt(strength)
    assert memory.strength == 2.0


def test_a_memory_of_another_architecture_is_refused(tmp_path):
    _, memory = protected()
    memory.save(tmp_path / "m.npz")
    inputs = keras.Input([5])
    wider = keras.Model(inputs, layers.Dense(9, name="hidden")(inputs), name="wider")
    with pytest.raises(ValueError, match=r"'wider' does not have any of the 4 remembered weights"):
        SynapticMemory.load(tmp_path / "m.npz").protect(wider)
    with pytest.raises(ValueError, match="does not have any"):
        SynapticMemory.load(tmp_path / "m.npz").protect(wider, strict=False)
    shorter = keras.Model(inputs, layers.Dense(6, name="hidden")(inputs), name="shorter")
    with pytest.raises(
        ValueError, match=r"have 2 of the 4 .*: 'out/kernel' \[6, 3\] float32 at 1/"
    ):
        SynapticMemory.load(tmp_path / "m.npz").protect(shorter)
    assert shorter.weights[0].regularizer is None
    part = SynapticMemory.load(tmp_path / "m.npz").protect(shorter, strict=False)
    assert part.state_for(shorter.weights[0]).name == "hidden/kernel"


def test_a_frozen_layer_of_a_loaded_memory_is_no_mistake(tmp_path):
    _, memory = protected()
    memory.save(tmp_path / "m.npz")
    model = network()
    model.get_layer("hidden").trainable = False
    SynapticMemory.load(tmp_path / "m.npz").protect(model)
    # Keras adds no penalty of a frozen weight; unfrozen, it is protected as it was.
    assert len(model.losses) == 2
    model.get_layer("hidden").trainable = True
    assert len(model.losses) == 4


@pytest.mark.parametrize("bad", [np.inf, np.nan, -1.0])
def test_a_state_that_cannot_be_is_refused(bad):
    _, memory = protected()
    state = memory.state()
    state["importance/hidden/kernel"] = np.full_like(state["importance/hidden/kernel"], bad)
    with pytest.raises(ValueError, match="finite importance ≥ 0. Received: others for 'hidden/k"):
        memory.restore(state)
    assert memory.importance["hidden/kernel"].max() == 0


@pytest.mark.parametrize(
    ("name", "shape", "complaint"),
    [
        (None, (2, 4), r"shape \(2, 3\) for the weight 'net/hidden/kernel'. .*shape \(2, 4\)"),
        ("other", (2, 3), "'net/hidden' in place '0/kernel'. Received: one of 'net/other'"),
    ],
)
def test_a_state_of_other_weights_is_refused_in_place(name, shape, complaint):
    _, memory = named_kernel("hidden")
    before, (_, other) = memory.state(), named_kernel(name, shape)
    other.strength = 5.0
    with pytest.raises(ValueError, match=complaint):
        memory.restore(other.state())
    after = memory.state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("names", [(None, "hidden"), ("hidden", None)])
def test_the_name_of_a_layer_that_keras_named_refuses_no_state(names):
    (_, memory), (_, other) = map(named_kernel, names)
    other.strength = 5.0
    memory.restore(other.state())
    assert memory.strength == 5.0


def test_arrays_of_something_else_are_no_state():
    _, memory = protected()
    numbers = np.frombuffer(b"[1, 2]", "uint8")
    with pytest.raises(ValueError, match="arrays of a memory. Received: others .*'int'"):
        memory.restore({**memory.state(), "weights": numbers})


def test_wrong_uses_are_named(tmp_path):
    model, memory = protected()
    with pytest.raises(ValueError, match="is protected by another `SynapticMemory`"):
        SynapticMemory().protect(model)
    with pytest.raises(ValueError, match="a `MASModel` has its own"):
        memory.protect(network(MASModel))
    with pytest.raises(ValueError, match="inputs and outputs of a functional model"):
        MASModel(strength=2.0)
    with pytest.raises(ValueError, match="protects no weight of 'functional'"):
        SynapticMemory().consolidate(model, A)
    with pytest.raises(ValueError, match="Expected a built model"):
        memory.protect(keras.Sequential([layers.Dense(1)]))
    with pytest.raises(ValueError, match="ends in '.npz'"):
        memory.save(tmp_path / "memory")


def test_a_damaged_file_is_named(tmp_path):
    _, memory = protected()
    memory.save(tmp_path / "m.npz")
    whole = (tmp_path / "m.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name in ("half.npz", "other.npz"):
        with pytest.raises(ValueError, match=f"Expected a memory written by.*{name}"):
            SynapticMemory.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        SynapticMemory.load(tmp_path / "none.npz")


def test_a_consolidation_that_is_interrupted_is_undone(monkeypatch):
    model, memory = protected()
    memory.consolidate(model, A)
    model.get_layer("hidden").kernel.assign_add(np.ones([5, 6]))
    before, anchor = memory.state(), memory.state_for(model.weights[1]).anchor
    assign, interrupts = anchor.assign, [KeyboardInterrupt]

    def interrupted(value):
        if interrupts:
            raise interrupts.pop()
        return assign(value)

    monkeypatch.setattr(anchor, "assign", interrupted)
    with pytest.raises(KeyboardInterrupt):
        memory.consolidate(model, A)
    after = memory.state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("penalty", ["in_loss", "decoupled"])
def test_a_fit_that_diverged_leaves_what_is_remembered(penalty):
    inputs = keras.Input([1])
    model = MASModel(inputs, keras.layers.Dense(1)(inputs), strength=0.1, penalty=penalty)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = np.ones([8, 1], "float32")
    model.consolidate(x)
    before = model.memory.state()
    anchors = [weight.numpy() for weight in model.weights[:2]]
    model.optimizer.learning_rate = 1e30
    with warnings.catch_warnings(), pytest.raises(FitDivergedError):
        warnings.simplefilter("ignore", UnstablePenaltyWarning)  # of what is wanted here
        model.fit(x, -x, batch_size=2, epochs=9, verbose=0)
    with pytest.raises(NotFiniteError, match="finite outputs and gradients .* may have diverged"):
        model.consolidate(x)
    for key, array in model.memory.state().items():
        np.testing.assert_array_equal(array, before[key])
    assert [list(a) for a in model.memory.anchor.values()] == [list(a) for a in anchors]
