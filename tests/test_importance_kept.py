"""What is kept between measurements of one model, and what makes it trace the model anew."""

import copy
import functools
import gc
import pickle
import threading
import types
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from tensorflow.python.eager import context

from keras_mas import MASModel, SynapticMemory, compute_importance, importance_one_by_one
from keras_mas.importance import check_importance, compute_fisher, forget_traces, rule
from keras_mas.importance.rules import rule_for
from keras_mas.importance.unchanged import KEPT_ENGINE, leaving_unchanged

X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")
TRACES = []  # a name for each call of a `Counted`, in TensorFlow or in a trace


@pytest.fixture(autouse=True)
def no_traces():
    TRACES.clear()


class Options:
    def __init__(self, power):
        self.power = power


class Counted(layers.Layer):
    """Computes wx in a way that its attributes tell; leaves a note of each call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.factor = 1.0
        self.factors = [1.0, [1.0]]
        self.mask = np.ones([4], "float32")
        self.options = Options(1)
        self.function = keras.ops.tanh
        self.inner = []

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

    def call(self, inputs):
        TRACES.append(self.name)
        x = self.scale * inputs * self.factor * self.factors[0] * self.factors[1][0] * self.mask
        for layer in self.inner:
            x = layer(x)
        return self.function(x**self.options.power)


def network():
    inputs = keras.Input([4])
    hidden = layers.Dense(4, activation="tanh", name="hidden")(inputs)
    hidden = layers.Dropout(0.5, name="dropout")(Counted(name="counted")(hidden))
    return keras.Model(inputs, layers.Dense(2, name="out")(hidden), name="net")


def assert_is_the_definition(found, model, data, **options):
    expected = importance_one_by_one(model, data, **options)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, 1e-4, 1e-5 * values.max(), err_msg=name)


def measure(model, data=X, **options):
    """Measure; check the numbers; return how many times the layer was called in TensorFlow."""
    TRACES.clear()
    found = compute_importance(model, data, **options)
    traces = len(TRACES)
    assert_is_the_definition(found, model, data, **options)
    return traces


@pytest.fixture
def model():
    """A model that has been measured, and is not traced when it is measured again."""
    model = network()
    assert measure(model) > 0
    assert measure(model) == 0
    return model


def test_other_values_of_weights_and_other_data_need_no_new_trace(model):
    model.set_weights([2 * weight for weight in model.get_weights()])
    assert measure(model, -X[:5]) == 0
    TRACES.clear()
    check_importance(model, X[:1], examples=1)
    assert len(TRACES) == 1  # by the definition, of one example


def test_what_training_does_needs_no_new_trace(model, tmp_path):
    y = np.zeros([6, 2], "float32")
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(X, y, verbose=0)
    model.evaluate(X, y, verbose=0)
    model.predict(X, verbose=0)
    model.save_weights(tmp_path / "a.weights.h5")
    keras.Model(model.input, layers.Dense(1)(model.get_layer("hidden").output))
    keras.backend.clear_session()
    assert measure(model) == 0


def test_consolidating_needs_no_new_trace():
    x = keras.Input([4])
    model = MASModel(x, layers.Dense(2)(Counted()(x)))
    model.compile("sgd", "mse")
    y = np.zeros([6, 2], "float32")
    counts = []
    for strength in (1.0, 2.0, 3.0):
        model.fit(X, y, verbose=0)
        TRACES.clear()
        model.consolidate(X)
        counts.append(len(TRACES))
        model.strength = strength
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


def test_binding_a_memory_needs_no_new_trace(model):
    memory = SynapticMemory().protect(model)
    model.compile("sgd", "mse")
    model.fit(X, np.zeros([6, 2], "float32"), verbose=0)
    memory.consolidate(model, X)
    assert measure(model) == 0


class Squared(layers.Dense):
    def call(self, inputs, training=None):
        return super().call(inputs) ** 2


def freeze(model):
    model.get_layer("hidden").trainable = False


def add_a_weight(model):
    layer = model.get_layer("counted")
    layer._tracker.unlock()
    layer.offset = layer.add_weight(shape=(4,), initializer="ones", name="offset")
    layer.function = lambda x: x + layer.offset


def replace_a_weight(model):
    layer = model.get_layer("counted")
    layer._tracker.unlock()
    layer.scale = layer.add_weight(shape=(4,), initializer="normal", name="scale")


def add_a_layer_to_a_list(model):
    layer = model.get_layer("counted")
    layer._tracker.unlock()
    layer.inner.append(layers.Rescaling(3.0))


def change_an_activation(model):
    model.get_layer("hidden").activation = keras.ops.sin


def change_a_number(model):
    model.get_layer("counted").factor = 3.0


def change_a_list(model):
    model.get_layer("counted").factors[0] = 3.0


def change_a_list_in_a_list(model):
    model.get_layer("counted").factors[1][0] = 3.0


def change_an_array(model):
    model.get_layer("counted").mask[0] = 5.0


def change_an_object(model):
    model.get_layer("counted").options.power = 2


def replace_the_call(model):
    layer = model.get_layer("counted")
    call = layer.call
    layer.call = lambda inputs: call(inputs) ** 2


def change_the_class(model):
    model.get_layer("hidden").__class__ = Squared


def enable_lora(model):
    model.get_layer("hidden").enable_lora(2, b_initializer="ones")


def run_eagerly(model):
    model.run_eagerly = True


def use_bfloat16(model):
    # Importance is measured in the precision of the variables, but the trace may show the policy.
    model.get_layer("hidden").dtype_policy = "mixed_bfloat16"


@pytest.mark.parametrize(
    "change",
    [
        freeze,
        add_a_weight,
        replace_a_weight,
        add_a_layer_to_a_list,
        change_an_activation,
        change_a_number,
        change_a_list,
        change_a_list_in_a_list,
        change_an_array,
        change_an_object,
        replace_the_call,
        change_the_class,
        enable_lora,
        run_eagerly,
        use_bfloat16,
    ],
    ids=lambda change: change.__name__,
)
def test_a_changed_model_is_traced_anew(model, change):
    change(model)
    assert measure(model) > 0


def test_a_layer_that_is_unfrozen_is_measured(model):
    freeze(model)
    assert len(compute_importance(model, X)) == len(model.weights) - 2
    model.get_layer("hidden").trainable = True
    assert len(compute_importance(model, X)) == len(model.weights)


class Listed(keras.Model):
    def __init__(self):
        super().__init__()
        self.stack = [layers.Dense(4), Counted()]

    def call(self, inputs):
        for layer in self.stack:
            inputs = layer(inputs)
        return inputs


def test_a_layer_replaced_in_a_list_is_noticed():
    model = Listed()
    model(X)
    assert measure(model) > 0
    assert measure(model) == 0
    model.stack[1] = layers.ReLU()
    compute_importance(model, X)
    assert_is_the_definition(compute_importance(model, X), model, X)


class Slotted:
    __slots__ = ("power",)

    def __init__(self, power):
        self.power = power


class Private:
    __slots__ = ("__power",)

    def __init__(self, power):
        self.__power = power

    power = property(lambda self: self.__power, lambda self, power: setattr(self, NAME, power))


NAME = "_Private__power"


class Shared:
    power = 1


def helper(x):
    return x * helper.factor


helper.factor = 1.0


def module_of_options():
    module = types.ModuleType("options")
    module.power = 1
    return module


@pytest.mark.parametrize(
    ("options", "change"),
    [
        (types.SimpleNamespace(power=1), lambda held: setattr(held, "power", 2)),
        (module_of_options(), lambda held: setattr(held, "power", 2)),
        (Slotted(1), lambda held: setattr(held, "power", 2)),
        (Private(1), lambda held: setattr(held, "power", 2)),
        (Shared(), lambda held: setattr(type(held), "power", 2)),
    ],
    ids=["namespace", "module", "slots", "private slots", "class attribute"],
)
def test_objects_of_any_class_are_looked_into(model, options, change):
    model.get_layer("counted").options = options
    compute_importance(model, X)
    change(options)
    assert_is_the_definition(compute_importance(model, X), model, X)


def test_the_numbers_of_an_object_of_keras_are_noticed(model):
    constraint = keras.constraints.MaxNorm(0.5)
    model.get_layer("counted").function = constraint
    compute_importance(model, X)
    constraint.max_value = 2.0
    assert_is_the_definition(compute_importance(model, X), model, X)


class SlottedLayer(Counted):
    __slots__ = ("power",)

    def call(self, inputs):
        return super().call(inputs) ** self.power


def test_the_slots_of_a_layer_are_noticed():
    layer = SlottedLayer()
    layer.power = 1
    model = keras.Sequential([keras.Input([4]), layer])
    compute_importance(model, X)
    layer.power = 2
    assert_is_the_definition(compute_importance(model, X), model, X)


class Trainer:
    def __init__(self, model):
        self.model = model

    def logits(self, outputs):
        return outputs


def test_a_layer_that_an_object_holds_is_looked_into_as_any_other(model):
    trainer = Trainer(model)  # whose method leads to the model before the model itself does
    compute_importance(model, X, output=trainer.logits)
    model.get_layer("counted").options.power = 2
    found = compute_importance(model, X, output=trainer.logits)
    assert_is_the_definition(found, model, X)


def test_a_function_that_an_object_holds_too_is_looked_into(model):
    options = Options(1)

    def squared(x, options=options):
        return x**options.power

    layer = model.get_layer("counted")
    layer.options.also = squared
    layer.function = squared
    compute_importance(model, X)
    options.power = 2
    assert_is_the_definition(compute_importance(model, X), model, X)


def test_what_a_view_of_a_dict_shows_is_noticed(model):
    powers = {"power": 1}
    layer = model.get_layer("counted")
    object.__setattr__(layer, "options", types.SimpleNamespace(power=1))
    object.__setattr__(layer, "powers", types.MappingProxyType(powers))
    layer.function = lambda x: x ** layer.powers["power"]
    compute_importance(model, X)
    powers["power"] = 2
    assert_is_the_definition(compute_importance(model, X), model, X)


@pytest.mark.parametrize("name", ["history", "loss", "optimizer"])
def test_an_attribute_of_a_name_that_keras_uses_is_noticed(name):
    class Scaled(keras.Model):
        def __init__(self):
            super().__init__()
            setattr(self, name, 2.0)
            self.dense = layers.Dense(3)

        def call(self, inputs):
            return self.dense(inputs) * getattr(self, name)

    model = Scaled()
    model(X)
    compute_importance(model, X)
    setattr(model, name, 3.0)
    assert_is_the_definition(compute_importance(model, X), model, X)


def test_attributes_of_functions_are_noticed(model, monkeypatch):
    model.get_layer("counted").function = helper
    compute_importance(model, X)
    monkeypatch.setattr(helper, "factor", 3.0)
    assert_is_the_definition(compute_importance(model, X), model, X)


def test_the_order_of_a_dict_is_noticed():
    class Planned(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

        def call(self, inputs):
            for step in self.plan.values():
                inputs = step(inputs * self.scale)
            return inputs

    layer = Planned()
    object.__setattr__(layer, "plan", {"a": keras.ops.tanh, "b": keras.ops.exp})
    model = keras.Sequential([keras.Input([4]), layer])
    compute_importance(model, X)
    layer.plan["a"] = layer.plan.pop("a")
    assert_is_the_definition(compute_importance(model, X), model, X)


@pytest.mark.parametrize("was_measured", [False, True])
def test_a_change_that_the_data_make_and_undo_leaves_no_trace(model, was_measured):
    layer = model.get_layer("counted")
    if was_measured:
        compute_importance(model, X)

    def toggling():
        layer.factor = 5.0
        yield X
        layer.factor = 1.0

    with_five = compute_importance(model, toggling())
    assert_is_the_definition(compute_importance(model, X), model, X)
    layer.factor = 5.0
    for name, expected in importance_one_by_one(model, X).items():
        np.testing.assert_allclose(with_five[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("of_class", [False, True])
def test_a_layer_whose_call_was_replaced_has_no_rule(of_class, monkeypatch):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input([4]), layers.Dense(3, "tanh"), layers.Dense(2)])
    dense = model.layers[0]

    def tripled(self, inputs, training=None):
        return 3 * keras.ops.tanh(inputs @ self.kernel)  # and no bias

    if of_class:
        model.layers[-1].call = types.MethodType(layers.Dense.call, model.layers[-1])
        monkeypatch.setattr(layers.Dense, "call", tripled)
    else:
        dense.call = types.MethodType(tripled, dense)
    weights = [weight.value for weight in model.trainable_weights]
    sums = [0.0] * len(weights)
    for x in X:
        with tf.GradientTape() as tape:
            norm = tf.reduce_sum(model(x[None]) ** 2)
        gradients = tape.gradient(norm, weights, unconnected_gradients="zero")
        sums = [s + np.abs(g) for s, g in zip(sums, gradients, strict=True)]
    for omega, expected in zip(compute_importance(model, X).values(), sums, strict=True):
        np.testing.assert_allclose(omega, expected / len(X), rtol=1e-4, atol=1e-6)


def test_what_another_thread_keeps_meanwhile_stays(model):
    with leaving_unchanged([model]):
        vars(model)[KEPT_ENGINE] = "of another thread"
    assert vars(model).pop(KEPT_ENGINE) == "of another thread"
    vars(model)[KEPT_ENGINE] = "before"
    with leaving_unchanged([model]):
        del vars(model)[KEPT_ENGINE]
    assert KEPT_ENGINE not in vars(model)


def test_a_class_whose_call_is_replaced_is_noticed(model, monkeypatch):
    def call(self, inputs):
        TRACES.append("replaced")
        return 3.0 * self.scale * inputs

    monkeypatch.setattr(Counted, "call", call)
    assert measure(model) > 0


def test_a_function_whose_closure_changes_is_noticed():
    factor = 1.0

    def times(x):
        return factor * x

    x = keras.Input([4])
    model = keras.Model(x, layers.Lambda(times)(layers.Dense(2)(x)))
    compute_importance(model, X)
    factor = 3.0
    assert_is_the_definition(compute_importance(model, X), model, X)


def test_a_new_rule_is_used(model):
    own = rule_for(model.layers[-1])

    @rule(layers.Dense)
    def tripled(layer, inputs, delta, magnitude):
        return {name: 3 * terms for name, terms in own(layer, inputs, delta, magnitude).items()}

    before = compute_importance(model, X)["out/kernel"]
    rule(layers.Dense)(own)
    np.testing.assert_allclose(before, 3 * compute_importance(model, X)["out/kernel"], rtol=1e-6)


@pytest.mark.slow
def test_only_the_latest_options_are_kept(model):
    for _ in range(3):
        assert measure(model, output=lambda y: y**2) > 0
    doubled = functools.partial(tf.multiply, 2.0)
    assert measure(model, output=doubled) > 0
    assert measure(model, output=doubled) == 0
    assert measure(model, output="hidden") > 0
    compute_importance(model, X)
    compute_importance(model, X, slice_bytes=7)
    assert measure(model) > 0
    compute_fisher(model, X)
    assert measure(model) > 0


def test_traces_are_forgotten_on_request(model):
    forget_traces(model)
    assert measure(model) > 0


def test_data_of_other_kinds_are_measured_too(model):
    assert measure(model, X.astype("float64")) > 0
    assert measure(model, tf.data.Dataset.from_tensor_slices(X).batch(4)) == 0
    assert measure(model, X[:1]) == 0


class Gate(layers.Layer):
    """Mixes examples, unless its gate is 0, as it is at first."""

    def build(self, shape):
        self.gate = self.add_weight(shape=(), initializer="zeros", name="gate", trainable=False)

    def call(self, inputs):
        return inputs - self.gate * keras.ops.mean(inputs, axis=0, keepdims=True)


def test_mixing_that_begins_with_the_values_of_weights_is_noticed():
    x = keras.Input([4])
    model = keras.Model(x, Gate(name="gate")(layers.Dense(3, activation="tanh")(x)))
    assert measure(model) == 0
    model.get_layer("gate").gate.assign(0.5)
    found = compute_importance(model, X, batch_size=3)
    assert_is_the_definition(found, model, X)


@pytest.mark.parametrize("error", [KeyboardInterrupt, None])
def test_sums_start_at_0_after_a_pass_that_failed(model, error):
    def data():
        yield X
        if error:
            raise error
        yield np.full_like(X, np.nan)

    with pytest.raises(error or ValueError, match=None if error else "Expected finite"):
        compute_importance(model, data())
    measure(model)


def test_a_pass_inside_another_does_not_mix_with_it(model):
    def data():
        for batch in (X[:2], X[2:]):
            yield batch
            measure(model, 3 * X)

    assert_is_the_definition(compute_importance(model, data()), model, X)


def test_threads_do_not_mix(model):
    data = [k * X for k in (1, 2, 3)]
    expected = [compute_importance(model, x) for x in data]
    found = [None] * len(data)
    start = threading.Barrier(len(data))

    def run(k):
        start.wait()
        found[k] = compute_importance(model, iter([data[k][:2], data[k][2:]]))

    threads = [threading.Thread(target=run, args=[k]) for k in range(len(data))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ours, theirs in zip(found, expected, strict=True):
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)
    assert "call" not in vars(model.get_layer("hidden"))


def test_a_dropped_model_is_freed():
    model = network()
    compute_importance(model, X)
    dropped = [weakref.ref(value) for value in (model, *model.layers, *model.weights)]
    del model
    gc.collect()
    assert [value() for value in dropped] == [None] * len(dropped)


def test_nothing_as_large_as_the_weights_is_kept(model):
    engine = vars(model)["_kept_engine"].engine
    assert {name: sums.shape.num_elements() for name, sums in engine.sums.items()}
    assert all(tf.size(sums) == 0 for sums in engine.sums.values())


def pickled(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, keras.models.clone_model, pickled])
def test_a_copy_is_measured_for_itself(model, copied):
    with keras.saving.custom_object_scope({"Counted": Counted}):
        other = copied(model)
    other.set_weights([3 * weight for weight in model.get_weights()])
    measure(other)
    assert measure(model) == 0


def test_a_measured_model_is_saved_as_any_other(model, tmp_path):
    fresh = network()
    sizes = {}
    for name, one in (("measured", model), ("fresh", fresh)):
        one.save(tmp_path / f"{name}.keras")
        one.export(tmp_path / name, verbose=False)
        files = [*(tmp_path / name).rglob("variables*"), tmp_path / f"{name}.keras"]
        sizes[name] = [file.stat().st_size for file in sorted(files, key=lambda f: f.name)]
    np.testing.assert_allclose(sizes["measured"], sizes["fresh"], rtol=0.01)
    with keras.saving.custom_object_scope({"Counted": Counted}):
        loaded = keras.models.load_model(tmp_path / "measured.keras")
    measure(loaded)
    assert measure(model) == 0


def test_other_functions_are_not_optimized_anew_by_tensorflow():
    # TensorFlow keeps a function by the options that it was optimized with, of which none is set.
    tf.config.optimizer.set_experimental_options({"min_graph_nodes": None})
    before = context.context().config.SerializeToString()
    compute_importance(network(), X)
    assert context.context().config.SerializeToString() == before


def test_an_option_of_the_user_stays():
    tf.config.optimizer.set_experimental_options({"min_graph_nodes": 7})
    try:
        compute_importance(network(), X)
        assert tf.config.optimizer.get_experimental_options()["min_graph_nodes"] == 7
    finally:
        tf.config.optimizer.set_experimental_options({"min_graph_nodes": None})
