"""strength="auto": λ by hand-computed numbers, and when a `fit` takes it."""

import logging
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mas import MASModel, MultiHead, SynapticMemory
from keras_mas.auto import auto_strength, gradient_rms, mean_of, pull_rate, share_free
from keras_mas.choices import auto_text, kappa_of
from keras_mas.errors import UsageError
from keras_mas.methods import METHODS, load_method
from keras_mas.training_step import PenaltyMetric

X = np.array([[1.0], [3.0], [-2.0], [0.5]], "float32")
Y = X**2
BATCHES = 2  # of an epoch


def line(kind=keras.Model, optimizer=None, **options):
    """A model F = wx with w = 1, compiled."""
    inputs = keras.Input([1])
    outputs = layers.Dense(1, use_bias=False, kernel_initializer="ones")(inputs)
    model = kind(inputs, outputs, **options)
    model.compile(optimizer or keras.optimizers.SGD(0.01), "mse")
    return model


def fit(model, epochs=3, **options):
    return model.fit(X, Y, batch_size=2, epochs=epochs, verbose=0, **options).history


def remembering(omega, kind=MASModel, tasks=1, **options):
    """A line whose memory holds an importance for so many tasks."""
    model = line(kind, **options)
    for _ in range(tasks):
        model.memory.remember(model, {name: np.full([1, 1], omega) for name in names(model)})
    return model


def names(model):
    return [weight.path for weight in model.trainable_weights]


def test_strength_follows_steps_rate_and_importance():
    # 2 η S λ mean Ω = κ t: 2 · 0.001 · 300 · 200 · 0.5 = 60 = 30 · 2.
    assert auto_strength(kappa=30.0, tasks=2, mean=0.5, rate=0.001, steps=300) == 200.0


def test_the_mean_is_over_values_not_over_weights():
    assert mean_of([np.array([6.0]), np.zeros([2, 2])]) == pytest.approx(6 / 5)  # not 3


@pytest.mark.parametrize(
    ("optimizer", "in_loss", "expected"),
    [
        (lambda: keras.optimizers.SGD(0.1, momentum=0.75), False, 0.1),
        (lambda: keras.optimizers.SGD(0.1, momentum=0.75), True, 0.4),
        (lambda: keras.optimizers.Adam(0.1), False, 0.1),
        (lambda: keras.optimizers.Adam(0.1), True, 5.0),
        (lambda: keras.optimizers.RMSprop(0.1), True, 5.0),
        (lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), True, 0.1),
        (lambda: keras.optimizers.Lion(0.1), False, 0.1),
    ],
)
def test_how_fast_an_optimizer_pulls_back(optimizer, in_loss, expected):
    assert pull_rate(optimizer(), 10, in_loss, gradient_rms=0.02) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("done", "expected"), [(0, (0.4 + 0.3 + 0.2 + 0.1) / 4), (2, (0.2 + 0.1 + 0 + 0) / 4)]
)
def test_of_a_schedule_the_mean_over_the_coming_steps_counts(done, expected):
    schedule = keras.optimizers.schedules.PolynomialDecay(0.4, 4, 0.0)
    optimizer = keras.optimizers.SGD(schedule)
    optimizer.iterations.assign(done)
    assert pull_rate(optimizer, 4, False, np.nan) == pytest.approx(expected)


def test_a_long_schedule_is_looked_at_evenly():
    optimizer = keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(1.0, 10_000, 0.0))
    assert pull_rate(optimizer, 10_000, False, np.nan) == pytest.approx(0.5, rel=1e-3)


def test_what_is_not_known_to_follow_the_penalty_is_refused():
    with pytest.raises(ValueError, match="SGD, Adam, Nadam, RMSprop .* Received: Lion"):
        pull_rate(keras.optimizers.Lion(), 10, True, gradient_rms=0.02)
    with pytest.raises(ValueError, match='seen none. Use a `MASModel` with penalty="decoupled"'):
        pull_rate(keras.optimizers.Adam(), 10, True, gradient_rms=np.nan)


@pytest.mark.parametrize("in_loss", [False, True])
def test_a_schedule_that_has_ended_is_refused(in_loss):
    optimizer = keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(0.4, 4, 0.0))
    optimizer.iterations.assign(4)
    with pytest.raises(ValueError, match="above 0 for strength='auto'. Received: 0 over the comi"):
        pull_rate(optimizer, 10, in_loss, gradient_rms=1.0)


def test_a_momentum_that_never_ends_is_refused():
    optimizer = keras.optimizers.SGD(0.1, momentum=1.0)
    with pytest.raises(ValueError, match="momentum below 1"):
        pull_rate(optimizer, 10, in_loss=True, gradient_rms=1.0)
    assert pull_rate(optimizer, 10, in_loss=False, gradient_rms=1.0) == pytest.approx(0.1)


def test_the_size_of_gradients_is_the_optimizers_own_mean():
    # Two weights, gradients 1 and 3, then 2 and 0: v̂ of each is ((1 − β)(β g₁² + g₂²)) / (1 − β²).
    weight = keras.Variable([0.0, 0.0])
    optimizer = keras.optimizers.Adam(beta_2=0.5)
    optimizer.build([weight])
    for gradient in ([1.0, 3.0], [2.0, 0.0]):
        optimizer.apply([tf.constant(gradient)])
    moments = np.array([0.5 * (0.5 * 1 + 4), 0.5 * (0.5 * 9)]) / (1 - 0.25)
    assert gradient_rms(optimizer, [weight]) == pytest.approx(np.sqrt(moments.mean()))
    assert np.isnan(gradient_rms(optimizer, [keras.Variable(0.0)]))
    assert np.isnan(gradient_rms(keras.optimizers.SGD(), [weight]))
    assert np.isnan(gradient_rms(None, [weight]))


def test_free_are_weights_with_a_time_constant_longer_than_the_task():
    # Mean Ω is 2. With pulls of 4 on the mean weight those below 2/4 are free: 0 and 0.4.
    importance = [np.array([0.0, 0.4]), np.array([[0.5], [7.1]])]
    assert share_free(importance, pulls=4.0) == 0.5
    assert share_free([np.zeros(3)], pulls=4.0) == 1.0


@pytest.mark.parametrize(
    ("text", "kappa"), [("auto", 30.0), ("auto:30", 30.0), ("auto:0.5", 0.5), ("auto:1e2", 100.0)]
)
def test_kappa_is_read_and_written(text, kappa):
    assert kappa_of(text) == kappa
    assert kappa_of(auto_text(kappa)) == kappa
    assert auto_text(30.0) == "auto"
    assert auto_text(100.0) == "auto:100"


@pytest.mark.parametrize("text", ["Auto", "auto:", "auto:0", "auto:nan", "auto:x", "1"])
def test_another_text_is_refused(text):
    with pytest.raises(ValueError, match=f"auto:KAPPA .* Received: '{text}'"):
        SynapticMemory(text)


def test_a_fit_takes_it_and_logs_it():
    model = remembering(5.0, strength="auto:10", penalty="decoupled", tasks=2)
    # Ω = 5 + 5 and t = 2, S = 3 epochs of 2 batches: 10 · 2 / (2 · 0.01 · 6 · 10).
    assert fit(model)["strength"] == pytest.approx([50 / 3] * 3)
    assert model.strength == pytest.approx(50 / 3)
    assert fit(model, epochs=1)["strength"] == pytest.approx([50.0])
    assert "strength='auto:10', now 50, 2 tasks" in repr(model.memory)
    assert fit(model, validation_data=(X, Y)).keys() >= {"strength", "val_loss"}
    assert "strength" not in model.evaluate(X, Y, verbose=0, return_dict=True)


def test_in_the_loss_momentum_strengthens_it():
    model = remembering(5.0, strength="auto:0.1", optimizer=keras.optimizers.SGD(0.01, 0.5))
    assert fit(model)["strength"][0] == pytest.approx(0.1 / (2 * 0.02 * 6 * 5))


@pytest.mark.filterwarnings("error::keras_mas.UnstablePenaltyWarning")
def test_in_the_loss_it_stays_below_what_the_optimizer_follows(caplog):
    # 2 λ Ω may be 2/η = 200, half of which is taken: λ = 100 / (2 · 5).
    model = remembering(5.0, strength="auto:1e9")
    assert fit(model)["strength"][0] == pytest.approx(10.0)
    assert "λ is 10 in place of 1.667e+09 for strength='auto:1000000000'" in caplog.text


def test_under_adam_the_size_of_gradients_without_a_penalty_counts():
    model = line(MASModel, keras.optimizers.Adam(0.01), strength="auto")
    fit(model)
    rms = gradient_rms(model.optimizer, model.trainable_weights)
    model.memory.remember(model, {names(model)[0]: np.full([1, 1], 5.0)})
    model.optimizer.build(model.trainable_weights)
    for variable in model.optimizer.variables[2:]:  # a fresh optimizer, as in the command line
        variable.assign(tf.zeros_like(variable))
    assert fit(model)["strength"][0] == pytest.approx(30 * rms / (2 * 0.01 * 6 * 5))
    model.memory.remember(model, {})
    assert gradient_rms(model.optimizer, model.trainable_weights) != pytest.approx(rms)
    assert fit(model)["strength"][0] == pytest.approx(30 * 2 * rms / (2 * 0.01 * 6 * 5))


def test_nothing_remembered_needs_no_strength():
    model = line(MASModel, keras.optimizers.Lion(0.01), strength="auto")
    assert fit(model)["strength"] == [0.0] * 3  # nor does another optimizer matter
    model.memory.remember(model, {})  # Ω = 0
    assert fit(model)["strength"] == [0.0] * 3
    assert model.memory.free_share() == 1.0


def test_nothing_is_traced_again_between_tasks(monkeypatch):
    traces = []
    monkeypatch.setattr(PenaltyMetric, "_strength", lambda self: traces.append(1) or {})
    model = line(MASModel, strength="auto", penalty="decoupled")
    for epochs in (1, 2, 3):
        fit(model, epochs)
        model.memory.remember(model, {names(model)[0]: np.ones([1, 1])})
    assert len(traces) == 1


def test_a_new_head_on_a_trunk_takes_it_in_its_first_step():
    inputs = keras.Input([1])
    heads = MultiHead(keras.Model(inputs, layers.Dense(1, use_bias=False)(inputs)))
    memory = SynapticMemory("auto:10").protect(heads.trunk)
    for number, expected in enumerate([0.0, 10 / (2 * 0.01 * 6), 20 / (2 * 0.01 * 6 * 2)]):
        model = heads.add(f"task-{number}", 1)
        model.compile(keras.optimizers.SGD(0.01, clipnorm=1e-9), "mse")
        history = fit(model)
        memory.remember(model, {heads.trunk.weights[0].path: np.full([1, 1], 1.0)})
        assert history["strength"] == pytest.approx([min(expected, limit(number))] * 3)


def limit(tasks):
    return 0.5 * (2 / 0.01) / (2 * tasks) if tasks else 0.0


@pytest.mark.parametrize("wrap", [lambda o: o, keras.optimizers.LossScaleOptimizer])
def test_accumulated_gradients_are_fewer_steps(wrap):
    inner = keras.optimizers.SGD(0.01, gradient_accumulation_steps=2)
    model = remembering(5.0, strength="auto", penalty="decoupled", optimizer=wrap(inner))
    assert fit(model)["strength"][0] == pytest.approx(30 / (2 * 0.01 * 3 * 5))


def test_data_of_unknown_length_are_refused_before_the_first_step():
    model = remembering(5.0, strength="auto", penalty="decoupled")
    before = model.get_weights()
    unknown = tf.data.Dataset.from_tensor_slices((X, Y)).batch(2).filter(lambda x, y: True)
    with pytest.raises(ValueError, match="data of a known length .* Pass `steps_per_epoch`"):
        model.fit(unknown, shuffle=False, verbose=0)
    np.testing.assert_array_equal(model.get_weights(), before)
    more = {"steps_per_epoch": 2, "epochs": 3, "shuffle": False, "verbose": 0}
    history = model.fit(unknown.repeat(), **more).history
    assert history["strength"][0] == pytest.approx(30 / (2 * 0.01 * 6 * 5))


def test_a_step_without_fit_needs_to_be_told_how_many_there_are():
    model = remembering(5.0, strength="auto", penalty="decoupled")
    with pytest.raises(ValueError, match=r"Expected a `fit`.*take_strength\(model, batches\)"):
        model.train_on_batch(X, Y)
    assert model.memory.take_strength(model, 6) == pytest.approx(30 / (2 * 0.01 * 6 * 5))
    model.train_on_batch(X, Y)
    fit(model)
    model.memory.remember(model, {})  # a new task: what the last `fit` had is past
    with pytest.raises(ValueError, match="Expected a `fit`"):
        model.train_on_batch(X, Y)


def test_weights_that_an_own_loop_moved_without_it_are_told_of(caplog):
    model = line()
    memory = SynapticMemory("auto").protect(model)
    memory.remember(model, {names(model)[0]: np.ones([1, 1])})
    model.set_weights([np.array([[2.0]])])
    with caplog.at_level(logging.WARNING):
        memory.remember(model, {})
    assert "λ was not found for the task that changed them: it was 0" in caplog.text


def test_the_first_task_of_an_own_loop_needs_no_strength(caplog):
    model = line(MASModel, strength="auto")
    model.memory.protect(model)
    model.get_layer(index=1).kernel.assign([[2.0]])
    model.memory.consolidate(model, X)
    assert not caplog.text


def stopping_after(epochs):
    return keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=epochs - 1)


@pytest.mark.parametrize(
    ("fits", "said"),
    [
        ([{"epochs": 6}], None),
        ([{"epochs": 6, "callbacks": [stopping_after(4)]}], None),
        ([{"epochs": 6, "callbacks": [stopping_after(2)]}], "had 0.333 times the steps"),
        ([{"epochs": 1}] * 3, "had 3 times the steps"),
        ([{"epochs": 4, "callbacks": [stopping_after(2)]}] * 2, None),
    ],
)
@pytest.mark.parametrize("accumulation", [None, 2])
def test_a_task_of_other_steps_than_its_strength_is_told_of(caplog, fits, said, accumulation):
    optimizer = keras.optimizers.SGD(0.01, gradient_accumulation_steps=accumulation)
    model = remembering(0.1, strength="auto", penalty="decoupled", optimizer=optimizer)
    for options in fits:
        fit(model, **options)
    model.memory.consolidate(model, X)
    assert said in caplog.text if said else not caplog.text
    caplog.clear()
    fit(model)  # the next task begins anew
    model.memory.consolidate(model, X)
    assert not caplog.text


@pytest.mark.parametrize(("factor", "is_told"), [(0.1, True), (0.7, False), (3.0, True)])
def test_a_rate_that_a_callback_changes_is_told_of(caplog, factor, is_told):
    model = remembering(0.1, strength="auto", penalty="decoupled")
    change = keras.callbacks.LearningRateScheduler(lambda epoch: 0.01 * (factor if epoch else 1))
    fit(model, callbacks=[change])
    model.memory.consolidate(model, X)
    assert ("learning rate went from 0.01 to" in caplog.text) == is_told


def test_a_schedule_is_known_and_not_told_of(caplog):
    optimizer = keras.optimizers.SGD(keras.optimizers.schedules.PolynomialDecay(0.01, 6, 1e-5))
    model = remembering(0.1, strength="auto", penalty="decoupled", optimizer=optimizer)
    fit(model)
    model.memory.consolidate(model, X)
    assert not caplog.text


def test_a_strength_that_was_given_is_not_found():
    model = remembering(5.0, strength=2.0)
    assert "strength" not in fit(model)
    assert model.memory.free_share() is None
    with pytest.raises(ValueError, match="one with λ = 2, which was given"):
        model.memory.take_strength(model, 6)


def test_the_penalty_is_said_to_a_model_and_the_documentation_says_so():
    with pytest.raises(TypeError, match="penalty"):
        SynapticMemory(strength="auto", penalty="decoupled")
    documented = " ".join(SynapticMemory.__doc__.split())
    assert 'MASModel(…, memory=memory, penalty="decoupled")' in documented
    memory = SynapticMemory("auto")
    model = line()
    memory.protect(model)
    model = MASModel(model.inputs, model.outputs, memory=memory, penalty="decoupled")
    assert (model.penalty, model.memory) == ("decoupled", memory)


def test_no_free_weight_is_no_network_that_cannot_learn():
    # One weight, which is as important as the mean: 30 · 1 · Ω is not below Ω.
    model = remembering(5.0, strength="auto", penalty="decoupled")
    before = model.get_weights()[0].item()
    fit(model)
    assert model.memory.free_share() == 0.0
    assert model.get_weights()[0].item() > before + 0.001  # F = wx is too flat for x²
    assert "0 says" in SynapticMemory.free_share.__doc__


def test_a_strength_may_become_auto_and_back():
    model = remembering(5.0, strength=2.0, penalty="decoupled")
    assert "strength" not in fit(model)
    model.strength = "auto"
    assert fit(model)["strength"][0] == pytest.approx(30 / (2 * 0.01 * 6 * 5))
    model.strength = 3.0
    assert "strength" not in fit(model)
    assert model.strength == 3.0


def test_it_is_kept_in_files_and_copies(tmp_path):
    model = line(MASModel, keras.optimizers.Adam(0.01), strength="auto:50")
    fit(model)
    model.memory.remember(model, {names(model)[0]: np.full([1, 1], 5.0)})
    model.memory.save(tmp_path / "memory.npz")
    model.save(tmp_path / "model.keras")
    memory = SynapticMemory.load(tmp_path / "memory.npz")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    copies = memory, loaded.memory, pickle.loads(pickle.dumps(model.memory))
    assert [copy.asked_strength for copy in copies] == ["auto:50"] * 3
    stock = line(optimizer=keras.optimizers.Adam(0.01))
    stock.set_weights(model.get_weights())
    memory.protect(stock)
    fit(model)
    # It has seen no gradient itself: their size came with the file.
    assert fit(stock)["strength"][0] == pytest.approx(model.strength)


@pytest.mark.parametrize("values", [[30.0], [0.0, 1.0], [np.inf, 1.0], [30, 1]])
def test_a_damaged_file_is_refused(values):
    model = remembering(5.0, strength="auto")
    arrays = model.memory.state() | {"auto": np.array(values)}
    with pytest.raises(ValueError, match="Expected two numbers, the first one > 0, for 'auto'"):
        SynapticMemory().restore(arrays)


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_it_or_refuse_it(name):
    method = load_method(name)
    if name in ("lwf", "ebll", "online_mas", "finetune", "joint"):
        with pytest.raises(
            UsageError, match=f"Expected a number as strength of the method '{name}'"
        ):
            method("auto")
    else:
        assert method("auto").strength == "auto"
        assert method("auto:3").memory.asked_strength == "auto:3"


@pytest.mark.parametrize("asked", [3.0, "auto:100"])
def test_a_restored_method_keeps_its_own_strength(asked):
    method = load_method("mas")(asked)
    method.restore(load_method("mas")("auto").state(), 0)
    assert method.strength == asked


def test_a_restored_method_goes_on_with_what_the_first_task_showed():
    state = load_method("mas")("auto").state() | {"auto": np.array([30.0, 0.25])}
    method = load_method("mas")("auto")
    method.restore(state, 0)
    assert method.state()["auto"].tolist() == [30.0, 0.25]


class Interrupt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("penalty", ["in_loss", "decoupled"])
def test_a_fit_that_a_callback_restores_goes_on_with_the_same_strength(tmp_path, penalty, caplog):
    def interrupted(*callbacks):
        model = remembering(5.0, strength="auto", penalty=penalty)
        backup = keras.callbacks.BackupAndRestore(tmp_path / f"{penalty}-{len(callbacks)}")
        try:
            fit(model, callbacks=[backup, *callbacks], shuffle=False)
        except KeyboardInterrupt:
            history = fit(model, callbacks=[backup], shuffle=False)
            assert len(history["strength"]) == 1  # the third epoch
        return model

    whole, resumed = interrupted(), interrupted(Interrupt())
    assert resumed.strength == whole.strength
    np.testing.assert_array_equal(resumed.get_weights()[0], whole.get_weights()[0])
    resumed.memory.consolidate(resumed, X)
    assert "times the steps" not in caplog.text
