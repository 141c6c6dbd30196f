"""Protection acts, once, in whatever model trains the weights; or training does not begin."""

import gc
import warnings
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mas import BatchNormWarning, Consolidate, MASModel, MultiHead, SynapticMemory
from keras_mas.penalty import UnstablePenaltyWarning

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 48, 5)).astype("float32")
LABELS = np.arange(48) % 3
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def build_trunk(name="trunk"):
    keras.utils.set_random_seed(3)
    inputs = keras.Input([5])
    return keras.Model(inputs, layers.Dense(6, "relu", name="hidden")(inputs), name=name)


def around(trunk, kind=keras.Model, **kwargs):
    """A compiled model of a trunk and a new head."""
    keras.utils.set_random_seed(4)
    outputs = layers.Dense(3, name="head")(trunk.outputs[0])
    return compiled(kind(trunk.inputs[0], outputs, **kwargs))


def compiled(model, rate=0.05, **kwargs):
    model.compile(keras.optimizers.SGD(rate), LOSS, **kwargs)
    return model


def fit(model, inputs=A, epochs=1, **kwargs):
    history = model.fit(
        inputs, LABELS, epochs=epochs, batch_size=16, shuffle=False, verbose=0, **kwargs
    )
    return history.history


def learned(strength=1.0, kind=keras.Model, **kwargs):
    """A model that has consolidated A, and its memory."""
    memory = SynapticMemory(strength)
    trunk = build_trunk()
    memory.protect(trunk)
    if kind is MASModel:
        kwargs["memory"] = memory
    model = around(trunk, kind, **kwargs)
    fit(model)
    memory.consolidate(model, A)
    return model, memory, trunk


def kernel(model):
    return model.get_layer("hidden").kernel.numpy()


# Once, and in every model


def test_a_protected_trunk_in_a_model_with_the_memory_is_protected_once():
    # A penalty that counted twice would act like λ = 2.
    trained = {}
    for name, strength, kind in [
        ("stock", 1.0, keras.Model),
        ("both", 1.0, MASModel),
        ("twice", 2.0, keras.Model),
    ]:
        model, _, _ = learned(strength, kind)
        fit(model, B, epochs=3)
        trained[name] = kernel(model)
    np.testing.assert_allclose(trained["both"], trained["stock"], atol=1e-6)
    assert np.abs(trained["both"] - trained["twice"]).max() > 1e-4


def test_a_decoupled_penalty_is_in_no_loss_though_the_trunk_is_protected():
    model, memory, _ = learned(5.0, MASModel, penalty="decoupled")
    model.get_layer("hidden").kernel.assign_add(np.full([5, 6], 0.1))
    assert float(memory.penalty(model)) > 0.5
    logits = model(A)
    assert model.evaluate(A, LABELS, verbose=0) == pytest.approx(
        float(LOSS(LABELS, logits)), rel=1e-5
    )


@pytest.mark.parametrize("kind", [keras.Model, MASModel])
def test_a_model_made_before_its_trunk_is_protected(kind):
    trunk, memory = build_trunk(), SynapticMemory(5.0)
    model = around(trunk, kind, **({"memory": memory} if kind is MASModel else {}))
    if kind is keras.Model:
        fit(model)  # its step is traced without a penalty
    memory.protect(trunk)
    memory.consolidate(model, A)
    assert fit(model, B, epochs=2)["penalty"][-1] > 0


def test_a_second_model_on_a_trunk_that_was_fitted_before_is_protected_too():
    trunk = build_trunk()
    first, second = around(trunk), around(trunk, name="second")
    fit(second)
    memory = SynapticMemory(1.0).protect(trunk)
    fit(first)
    memory.consolidate(first, A)
    assert fit(second, B, epochs=2)["penalty"][-1] > 0


def test_a_model_that_is_made_later_around_a_protected_trunk():
    model, memory, trunk = learned()
    later = around(trunk, name="later")
    assert fit(later, B, epochs=2)["penalty"][-1] > 0
    steep = compiled(around(trunk, name="steep"), rate=1e6)
    with pytest.warns(UnstablePenaltyWarning):  # in its first fit, when its step is traced
        fit(steep)
    with pytest.warns(UnstablePenaltyWarning):  # and at the start of every other
        fit(steep)


def test_a_second_model_with_equal_paths_does_not_let_go_of_the_first():
    memory = SynapticMemory()
    left, right = build_trunk("left"), build_trunk("right")
    assert left.weights[0].path == right.weights[0].path
    memory.protect(left)
    memory.protect(right)
    assert memory.state_for(left.weights[0]) is not memory.state_for(right.weights[0])
    assert list(memory.importance) == [
        *("hidden/kernel", "hidden/bias", "hidden/kernel-1", "hidden/bias-1")
    ]


def test_heads_that_share_a_memory():
    memory, trunk = SynapticMemory(3.0), build_trunk()
    heads = MultiHead(trunk, model=partial(MASModel, memory=memory))
    memory.protect(trunk)
    for task in ("a", "b"):
        heads.add(task, 3)
    compiled(heads.models["a"])
    fit(heads.models["a"], callbacks=[Consolidate(A)])
    assert fit(compiled(heads.models["b"]), B, epochs=2)["penalty"][-1] > 0
    assert set(memory.importance) == {"hidden/kernel", "hidden/bias"}


def test_weights_that_are_unfrozen_later_are_protected():
    trunk = build_trunk()
    model = around(trunk)
    model.get_layer("hidden").trainable = False
    memory = SynapticMemory().protect(model)
    assert set(memory.importance) == {"head/kernel", "head/bias"}
    fit(compiled(model))
    memory.consolidate(model, A)
    model.get_layer("hidden").trainable = True
    fit(compiled(model))
    memory.consolidate(model, A)
    assert memory.importance["hidden/kernel"].max() > 0
    assert fit(model, B, epochs=2)["penalty"][-1] > 0


# Or not at all


class ForgetsLosses(keras.Model):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = LOSS(y, self(x, training=True)) + self.extra()
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply(gradients, self.trainable_weights)
        return {"loss": loss}

    def extra(self):
        return 0.0


class AddsLosses(ForgetsLosses):
    def extra(self):
        return sum(self.losses)


@pytest.mark.parametrize("eagerly", [False, True])
def test_a_train_step_without_the_penalty_is_refused_before_it_acts(eagerly):
    trunk = build_trunk()
    SynapticMemory().protect(trunk)
    model = around(trunk, ForgetsLosses)
    compiled(model, run_eagerly=eagerly)
    with pytest.raises(ValueError, match="updates the protected weight 'hidden/.*sum.self.losses"):
        fit(model)
    fit(compiled(around(trunk, AddsLosses, name="adds"), run_eagerly=eagerly))


def test_losses_that_were_looked_at_elsewhere_do_not_count():
    model = around(build_trunk(), ForgetsLosses)
    SynapticMemory().protect(model)
    model.evaluate(A, LABELS, verbose=0)
    assert len(model.losses) == 4
    with pytest.raises(ValueError, match="without its penalty"):
        fit(model)


def test_a_loop_of_ones_own_with_gradients_in_a_function():
    model = around(build_trunk())
    SynapticMemory().protect(model)

    @tf.function
    def gradients(x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x)) + sum(model.losses)
        return tape.gradient(loss, model.trainable_weights)

    for _ in range(2):
        model.optimizer.apply(gradients(A, LABELS), model.trainable_weights)


def test_a_constraint_of_the_weight_stays_active():
    inputs = keras.Input([5])
    outputs = layers.Dense(3, kernel_constraint="non_neg", name="out")(inputs)
    model = compiled(keras.Model(inputs, outputs))
    memory = SynapticMemory().protect(model)
    fit(model, epochs=3)
    assert model.get_layer("out").kernel.numpy().min() == 0
    memory.release()
    assert isinstance(model.get_layer("out").kernel.constraint, keras.constraints.NonNeg)


def test_consolidate_without_protect_fails_before_training():
    model = around(build_trunk())
    before = kernel(model)
    with pytest.raises(ValueError, match="protects no weight of 'functional"):
        fit(model, callbacks=[Consolidate(A, SynapticMemory())])
    np.testing.assert_array_equal(kernel(model), before)


def test_a_shared_memory_that_protects_nothing_is_refused():
    model = around(build_trunk(), MASModel, memory=SynapticMemory())
    with pytest.raises(ValueError, match="protects no weight of 'mas_model.*protect.trunk"):
        fit(model)


def test_a_loaded_memory_protects_the_model_it_is_passed_to(tmp_path):
    model, memory, _ = learned()
    memory.save(tmp_path / "m.npz")
    loaded = SynapticMemory.load(tmp_path / "m.npz")
    again = around(build_trunk(), MASModel, memory=loaded)
    assert loaded.state_for(again.get_layer("hidden").kernel).importance.numpy().max() > 0
    assert loaded.state_for(again.get_layer("head").kernel) is None
    assert fit(again, B)["penalty"][0] > 0


def test_a_loaded_memory_that_waits_for_a_model_stops_the_training_of_others(tmp_path):
    memory = SynapticMemory()
    for name in ("left", "right"):
        memory.protect(build_trunk(name))
    memory.save(tmp_path / "m.npz")
    loaded = SynapticMemory.load(tmp_path / "m.npz")
    model = around(build_trunk("left"))
    left = keras.Model(model.inputs, model.get_layer("hidden").output, name="left")
    loaded.protect(left)
    with pytest.raises(ValueError, match="remembers 2 weights that it protects in no model"):
        fit(model)
    loaded.protect(build_trunk("right"))
    fit(model)


def test_a_copy_is_refused_until_the_original_is_released():
    model, memory, trunk = learned()
    copy = keras.models.clone_model(trunk)
    with pytest.raises(ValueError, match="looks like a copy.*memory.release()"):
        memory.protect(copy)
    memory.release()
    memory.protect(copy)
    assert memory.state_for(copy.weights[0]).importance.numpy().max() > 0
    assert trunk.weights[0].regularizer is None


def test_one_memory_for_a_weight():
    model, memory, trunk = learned()
    with pytest.raises(ValueError, match="protected by another `SynapticMemory`"):
        around(trunk, MASModel, name="other")
    with pytest.raises(ValueError, match="protected by another `SynapticMemory`"):
        SynapticMemory().protect(model)


def test_released_models_are_plain_keras_models_again():
    model, memory, _ = learned()
    memory.release()
    history = fit(model, B)
    assert set(history) == {"loss"}


# Seen


@pytest.mark.parametrize("eagerly", [False, True])
def test_the_penalty_stands_in_the_logs_of_fit_alone(eagerly):
    model = around(build_trunk())
    memory = SynapticMemory(2.0).protect(model)
    memory.consolidate(model, A)
    compiled(model, metrics=["accuracy"], run_eagerly=eagerly)
    model.get_layer("hidden").kernel.assign_add(np.full([5, 6], 0.01))
    before = float(memory.penalty(model))
    history = model.fit(A, LABELS, batch_size=48, verbose=0, validation_data=(A, LABELS)).history
    assert set(history) == {"loss", "accuracy", "penalty", "val_loss", "val_accuracy"}
    assert history["penalty"][0] == pytest.approx(before, rel=1e-5)  # one step, of these weights
    assert len(model.evaluate(A, LABELS, verbose=0)) == 2


def test_both_ways_log_the_same():
    histories = []
    for kind in (keras.Model, MASModel):
        model = around(build_trunk(), kind)
        memory = model.memory if kind is MASModel else SynapticMemory().protect(model)
        fit(model)
        memory.consolidate(model, A)
        histories.append(fit(model, B, epochs=3, validation_data=(A, LABELS)))
    assert histories[0].keys() == histories[1].keys() == {"loss", "penalty", "val_loss"}
    for name in histories[0]:
        np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=1e-5)
    assert histories[0]["penalty"][-1] > 0


def test_a_memory_says_what_it_holds(tmp_path):
    model, memory, _ = learned()
    assert repr(memory) == (
        "<SynapticMemory: strength=1, 1 task, 2 weights (36 values), protects 'trunk'>"
    )
    memory.save(tmp_path / "m.npz")
    assert repr(SynapticMemory.load(tmp_path / "m.npz")) == (
        "<SynapticMemory: strength=1, 1 task, 2 weights (36 values), 2 weights in no model>"
    )


# Stable


@pytest.mark.parametrize("kind", [keras.Model, MASModel])
def test_an_unstable_penalty_is_announced_whenever_it_becomes_one(kind):
    model, memory, _ = learned(1.0, kind)
    fit(model, B)  # no word: λ = 1 is safe, and warnings are errors here
    compiled(model, rate=100.0)
    with pytest.warns(UnstablePenaltyWarning, match=r"above .* \(in 'hidden/"):
        fit(model)
    compiled(model, rate=0.01)
    fit(model)
    memory.strength = 1e6
    with pytest.warns(UnstablePenaltyWarning) as caught:
        fit(model)
    (warning,) = [w.message for w in caught if w.category is UnstablePenaltyWarning]
    assert warning.strength == 1e6
    assert warning.limit < 1e6


def test_a_learning_rate_of_zero_is_stable():
    model, memory, _ = learned()
    compiled(model, rate=0.0)
    memory.consolidate(model, A)
    assert memory.tasks == 2


def test_a_warm_up_from_zero_is_judged_by_where_it_goes():
    model, memory, _ = learned()
    schedule = keras.optimizers.schedules.PolynomialDecay(0.0, 50, end_learning_rate=100.0)
    compiled(model, rate=schedule)
    with pytest.warns(UnstablePenaltyWarning):
        fit(model)


def test_a_consolidation_that_ends_in_an_error_changes_nothing():
    # The warning is an error here, as under `python -W error`.
    model, memory, _ = learned()
    memory.strength = 1e6
    before = memory.state()
    with pytest.raises(UnstablePenaltyWarning):
        memory.consolidate(model, A)
    after = memory.state()
    assert all(np.array_equal(before[key], after[key]) for key in before)


def one_weight(**compile_options):
    """A decoupled model of one weight, and a function that takes steps without a gradient."""
    inputs = keras.Input([1])
    outputs = layers.Dense(1, use_bias=False)(inputs)
    model = MASModel(inputs, outputs, strength=2.0, penalty="decoupled")
    model.compile(keras.optimizers.SGD(**compile_options), "mse")
    model.weights[0].assign([[1.0]])
    model.consolidate(np.ones([1, 1]))  # Ω = |2 · 1 · 1| = 2
    model.weights[0].assign([[2.0]])

    def steps(count):
        model.fit(np.zeros([count, 1]), np.zeros(count), batch_size=1, verbose=0)
        return float(model.weights[0].numpy()[0, 0])

    return steps


def test_accumulated_gradients_are_one_proximal_step():
    # θ* = 1, θ = 2, 2ηλΩ = 2 · 0.125 · 2 · 2 = 1: each step halves the drift.
    steps = one_weight(learning_rate=0.125, gradient_accumulation_steps=2)
    assert steps(1) == 2.0
    assert steps(1) == 1.5
    assert steps(4) == 1.125


def test_a_proximal_step_has_the_learning_rate_of_its_step():
    # η = 0.125 in the first step and 0 from then on.
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.125, 0.0])
    assert one_weight(learning_rate=schedule)(3) == 1.5


# Batch normalization


def normalized(name="normalized"):
    inputs = keras.Input([5])
    x = layers.BatchNormalization(name="norm")(layers.Dense(6, name="hidden")(inputs))
    return compiled(keras.Model(inputs, layers.Dense(3, name="head")(x), name=name))


def statistics(model):
    return np.concatenate([w.numpy() for w in model.get_layer("norm").non_trainable_weights[-2:]])


def test_protect_says_that_batch_normalization_is_frozen_and_freezes_it():
    model = normalized()
    with pytest.warns(BatchNormWarning, match="1 BatchNormalization layers .'norm'.*MultiHead"):
        memory = SynapticMemory(0.01).protect(model)
    start = statistics(model)
    fit(model, A + 3)
    first = statistics(model)
    assert (first != start).any()
    memory.consolidate(model, A + 3)
    fit(model, B)
    np.testing.assert_array_equal(statistics(model), first)


def test_statistics_that_every_task_updates():
    model = normalized()
    memory = SynapticMemory().protect(model, batch_norm="update")
    fit(model)
    memory.consolidate(model, A)
    first = statistics(model)
    fit(model, B + 3)
    assert np.abs(statistics(model) - first).max() > 0.1
    with pytest.raises(ValueError, match="batch_norm to be one of 'freeze', 'update'"):
        memory.protect(model, batch_norm="freze")


def test_a_loaded_memory_of_a_first_task_freezes_at_once(tmp_path):
    model = normalized()
    memory = SynapticMemory().protect(model, batch_norm="freeze")
    memory.consolidate(model, A)
    memory.save(tmp_path / "m.npz")
    again = normalized("again")
    SynapticMemory.load(tmp_path / "m.npz").protect(again, batch_norm="freeze")
    assert not again.get_layer("norm").trainable
    fit(again)


def test_a_mas_model_freezes_too():
    inputs = keras.Input([5])
    x = layers.BatchNormalization(name="norm")(layers.Dense(6)(inputs))
    model = compiled(MASModel(inputs, layers.Dense(3)(x), batch_norm="freeze"))
    fit(model, callbacks=[Consolidate(A)])
    first = statistics(model)
    fit(model, B)
    np.testing.assert_array_equal(statistics(model), first)


def test_models_are_not_kept_alive():
    model, memory, trunk = learned()
    later = around(trunk, name="later")
    fit(later)
    count = sum(isinstance(thing, keras.Model) for thing in gc.get_objects())
    del later
    keras.backend.clear_session(free_memory=False)
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sum(isinstance(thing, keras.Model) for thing in gc.get_objects()) < count
