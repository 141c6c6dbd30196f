"""Protection acts, once, in whatever model trains the weights; or training does not begin."""

import contextlib
import gc
import warnings
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mas import BatchNormWarning, Consolidate, MASModel, MultiHead, SynapticMemory
from keras_mas.finite import FitDivergedError
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
    diverging = contextlib.suppress(FitDivergedError)
    with pytest.warns(UnstablePenaltyWarning), diverging:  # in its first fit, when it is traced
        fit(steep)
    with pytest.warns(UnstablePenaltyWarning), diverging:  # and at the start of every other
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
    # The updates run eagerly, the penalty in a graph: the loop is accepted, and the penalty acts.
    model = around(build_trunk())
    memory = SynapticMemory(3.0).protect(model)
    memory.consolidate(model, A)
    start = model.get_weights()

    @tf.function
    def gradients(x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, model(x)) + sum(model.losses)
        return tape.gradient(loss, model.trainable_weights)

    penalties = []
    for strength in (3.0, 0.0):
        memory.strength = strength
        model.set_weights(start)
        for _ in range(10):
            model.optimizer.apply(gradients(B, LABELS), model.trainable_weights)
        memory.strength = 1.0
        penalties.append(float(memory.penalty(model)))
    assert 0 < penalties[0] < 0.8 * penalties[1]


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


def test_a_regularizer_that_was_set_after_protect_survives_the_release():
    model, memory, _ = learned()
    l2 = keras.regularizers.L2(0.01)
    model.get_layer("hidden").kernel.regularizer = l2
    memory.release()
    assert model.get_layer("hidden").kernel.regularizer is l2


def test_released_models_are_plain_keras_models_again():
    model, memory, _ = learned()
    memory.release()
    history = fit(model, B)
    assert set(history) == {"loss"}


class Wrapper(keras.Model):
    """A model that is never built, around one that is, as in Keras's examples of GANs."""

    def __init__(self, inner, adds_losses=True):
        super().__init__()
        self.inner, self.adds_losses = inner, adds_losses

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = LOSS(y, self.inner(x, training=True))
            loss += sum(self.inner.losses, 0.0) if self.adds_losses else 0.0
        weights = self.inner.trainable_weights
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        return {"loss": loss}


@pytest.mark.parametrize("adds_losses", [True, False])
def test_a_wrapper_that_was_fitted_before_its_model_is_protected(adds_losses):
    inner = around(build_trunk())
    wrapper = Wrapper(inner, adds_losses)
    wrapper.compile(keras.optimizers.SGD(0.05))
    fit(wrapper)
    memory = SynapticMemory(3.0).protect(inner)
    memory.consolidate(inner, A)
    if not adds_losses:
        with pytest.raises(ValueError, match="without its penalty"):
            fit(wrapper, B)
        return
    drifts = []
    for strength in (3.0, 0.0):
        memory.strength = strength
        inner.get_layer("hidden").kernel.assign(memory.anchor["hidden/kernel"])
        fit(wrapper, B, epochs=3)
        drifts.append(np.abs(kernel(inner) - memory.anchor["hidden/kernel"]).max())
    assert drifts[0] < 0.8 * drifts[1]


@pytest.mark.parametrize("eagerly", [False, True])
def test_a_decoupled_penalty_without_its_own_training_step_is_refused(eagerly):
    class Own(MASModel):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x, y, self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_weights)
            self.optimizer.apply(gradients, self.trainable_weights)
            return {"loss": loss}

    model = around(build_trunk(), Own, penalty="decoupled")
    with pytest.raises(ValueError, match="decoupled penalty needs `MASModel.train_step`"):
        fit(compiled(model, run_eagerly=eagerly))
    fit(compiled(around(build_trunk(), Own, penalty="in_loss"), run_eagerly=eagerly))


def test_an_eager_step_is_judged_by_itself_and_not_by_what_was_traced():
    model, memory, _ = learned()
    model.evaluate(A, LABELS, verbose=0)

    def step():
        with tf.GradientTape() as tape:
            loss = LOSS(LABELS, model(B))
        weights = model.trainable_weights
        model.optimizer.apply(tape.gradient(loss, weights), weights)

    with pytest.raises(ValueError, match="without its penalty"):
        for _ in range(2):  # what `evaluate` computed may pass for the first
            step()


def test_a_function_that_was_traced_before_protect_is_told_afterwards(caplog):
    model = around(build_trunk())

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = LOSS(LABELS, model(x)) + sum(model.losses, 0.0)
        weights = model.trainable_weights
        model.optimizer.apply(tape.gradient(loss, weights), weights)

    step(A)
    memory = SynapticMemory().protect(model)
    memory.consolidate(model, A)
    step(B)
    memory.consolidate(model, B)
    assert "4 protected weights ('hidden/kernel', …) have changed" in caplog.text


def test_a_moving_average_that_would_undo_proximal_steps_is_refused():
    model = around(build_trunk(), MASModel, penalty="decoupled")
    model.compile(keras.optimizers.SGD(0.05, use_ema=True), LOSS)
    with pytest.raises(ValueError, match="optimizer without `use_ema`"):
        fit(model)


def test_the_penalty_of_a_model_may_be_changed():
    model, _, _ = learned(5.0, MASModel)
    model.get_layer("hidden").kernel.assign_add(np.full([5, 6], 0.1))
    with_penalty = model.evaluate(A, LABELS, verbose=0)
    model.penalty = "decoupled"
    assert model.evaluate(A, LABELS, verbose=0) < with_penalty - 0.5
    with pytest.raises(
        ValueError, match="penalty out of in_loss, decoupled. Received: 'decuopled'"
    ):
        model.penalty = "decuopled"


def test_an_adapter_that_moves_a_protected_weight_is_refused():
    model, memory, _ = learned()
    model.get_layer("hidden").enable_lora(2)
    with pytest.raises(ValueError, match="'hidden' has LoRA, which changes its protected weight"):
        fit(compiled(model))


def test_a_changed_model_is_not_protected_in_part_without_a_word():
    memory = SynapticMemory().protect(around(build_trunk()))
    memory.release()
    inputs = keras.Input([5])
    hidden = layers.Dense(6, "relu", name="hidden")(inputs)
    changed = keras.Model(inputs, layers.Dense(4, name="head")(hidden))
    with pytest.raises(ValueError, match="does not have 2 of the 4 remembered weights"):
        memory.protect(changed)
    memory.protect(changed, strict=False)
    fit(compiled(changed))


def test_a_cell_that_is_run_twice_leaves_no_second_model_behind():
    memory = SynapticMemory()
    memory.protect(keras.Sequential([keras.Input([5]), layers.Dense(3)]))
    with pytest.raises(ValueError, match="looks like a copy"):
        memory.protect(keras.Sequential([keras.Input([5]), layers.Dense(3)]))


def test_a_trunk_behind_layers_of_equal_shapes_is_recognized_by_its_values(tmp_path):
    square = [layers.Dense(5), layers.Dense(5)]
    trunk = keras.Sequential([keras.Input([5]), *square])
    memory = SynapticMemory().protect(trunk)
    memory.consolidate(trunk, A)
    memory.save(tmp_path / "m.npz")
    memory.release()
    around_it = keras.Sequential([keras.Input([5]), layers.Dense(5), layers.Dense(5), trunk])
    loaded = SynapticMemory.load(tmp_path / "m.npz").protect(around_it)
    assert loaded.state_for(square[0].kernel).importance.numpy().max() > 0
    for layer in square:  # nothing tells them apart now
        layer.kernel.assign(layer.kernel + 1)
    with pytest.raises(ValueError, match="in several ways"):
        SynapticMemory.load(tmp_path / "m.npz").recognize(keras.models.clone_model(around_it))


def test_weights_that_keras_loads_by_place_bring_the_memory_of_their_place(tmp_path):
    def square(*names):
        x = inputs = keras.Input([5])
        for name in names:
            x = layers.Dense(5, name=name)(x)
        return MASModel(inputs, x)

    model = square("a", "b")
    model.consolidate(A)
    model.save_weights(tmp_path / "m.weights.h5")
    other = square("b", "a")
    other.load_weights(tmp_path / "m.weights.h5")
    assert float(other.memory.penalty(other)) == 0.0
    np.testing.assert_array_equal(other.memory.anchor["b/kernel"], model.memory.anchor["a/kernel"])


def test_what_is_no_model_is_refused_in_a_sentence():
    model, memory, _ = learned()
    for call in (memory.protect, memory.release, lambda x: memory.consolidate(x, model)):
        with pytest.raises(ValueError, match="Expected a Keras model, or a layer of one. Received"):
            call(A)
    with pytest.raises(ValueError, match="Consolidate.inputs, memory.` with a `SynapticMemory`"):
        Consolidate(memory, A)
    with pytest.raises(ValueError, match="protects no weight of 'other'"):
        memory.release(build_trunk("other"))


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
    memory.protect(build_trunk("second"))
    assert repr(memory).endswith("4 weights (72 values), protects 'trunk', 'second'>")


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
    before = statistics(again)
    fit(again, B + 3)
    np.testing.assert_array_equal(statistics(again), before)


def test_scale_and_offset_go_on_learning_and_the_optimizer_is_loaded(tmp_path):
    model = normalized()
    memory = SynapticMemory().protect(model, batch_norm="freeze")
    model.compile("adam", LOSS)
    fit(model)
    memory.consolidate(model, A)
    before = model.get_layer("norm").gamma.numpy()
    fit(model, B)
    assert (model.get_layer("norm").gamma.numpy() != before).any()
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")  # a warning would be an error
    assert int(loaded.optimizer.iterations) == 6
    memory.release()
    before = statistics(model)
    fit(model, B + 3)
    assert (statistics(model) != before).any()


def test_a_mas_model_freezes_too(tmp_path):
    inputs = keras.Input([5])
    x = layers.BatchNormalization(name="norm")(layers.Dense(6)(inputs))
    model = compiled(MASModel(inputs, layers.Dense(3)(x), batch_norm="freeze"))
    fit(model, callbacks=[Consolidate(A)])
    first = statistics(model)
    fit(model, B)
    np.testing.assert_array_equal(statistics(model), first)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    fit(loaded, B + 3)
    np.testing.assert_array_equal(statistics(loaded), first)


def test_a_shared_trunk_with_frozen_statistics_comes_back_frozen(tmp_path):
    inputs = keras.Input([5])
    x = layers.BatchNormalization(name="norm")(layers.Dense(6, name="hidden")(inputs))
    trunk = keras.Model(inputs, x)
    memory = SynapticMemory(0.01).protect(trunk, batch_norm="freeze")
    model = around(trunk, MASModel, memory=memory)
    fit(model, callbacks=[Consolidate(A)])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    first = statistics(loaded)
    fit(loaded, B + 3)
    np.testing.assert_array_equal(statistics(loaded), first)


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
