import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_mas.importance import WeightCheck, check, check_importance, rule

X = np.random.default_rng(0).normal(size=(9, 4, 3)).astype("float32")


class Idle(layers.Layer):
    """Has a weight that it does not use."""

    def build(self, shape):
        self.idle = self.add_weight(shape=(3,), name="idle")

    def call(self, inputs):
        return inputs


class Centred(layers.Layer):
    """Mixes examples."""

    def call(self, inputs):
        return inputs - keras.ops.mean(inputs, axis=0, keepdims=True)


def ways_of(*stack):
    model = keras.Sequential([keras.Input([4, 3]), *stack], name="net")
    checks = check_importance(model, X)
    assert all(found.error < 1e-5 for found in checks.values())
    return {name.split("/")[1]: found.way for name, found in checks.items()}


def test_every_weight_comes_with_the_way_it_was_measured():
    ways = ways_of(
        layers.Dense(3, name="dense"),
        Idle(name="unused"),
        layers.LSTM(2, name="lstm"),
        layers.Dense(1, name="end"),
    )
    assert ways == {
        "dense": "rule",
        "unused": "not used by the outputs",
        "lstm": "layer by layer, example by example",
        "end": "rule",
    }


def test_a_model_that_mixes_examples_is_measured_as_a_whole():
    # Alone, an example is its own mean: what comes after it is 0 in both ways.
    assert ways_of(layers.Dense(2, name="dense"), Centred()) == {
        "dense": "whole model, example by example"
    }


def test_a_wrong_rule_is_found_out():
    class Scale(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones", name="scale")

        def call(self, inputs):
            return inputs * self.scale

    @rule(Scale)
    def twice_too_much(layer, inputs, delta, magnitude):
        return {"scale": 2 * tf.reduce_sum(magnitude(inputs * delta), axis=0)}

    model = keras.Sequential([keras.Input([3]), Scale(name="own")], name="net")
    found = check_importance(model, X[:, 0])["net/own/scale"]
    assert found.error == pytest.approx(1.0)
    assert found.way == "rule"


def test_the_relative_error_by_hand():
    # The largest difference is 0.5, the largest expected entry 2.
    assert check.relative_error(np.array([1.0, 2.5]), np.array([1.0, 2.0])) == 0.25
    assert check.relative_error(np.zeros(2), np.zeros(2)) == 0.0
    assert check.relative_error(np.array([0.0, 0.1]), np.zeros(2)) == float("inf")


def line():
    model = keras.Sequential([keras.Input([1]), layers.Dense(1, name="line")], name="net")
    model.set_weights([np.array([[1.0]]), np.array([0.0])])
    return model


def test_only_the_first_examples_are_measured():
    # |2x²| of x = 1 and 2 is 2 and 8: their mean is 5. The third would raise it.
    x = np.array([[1.0], [2.0], [3.0]], "float32")
    expected = WeightCheck(error=0.0, way="rule", largest=5.0)
    assert check_importance(line(), x, np.int64(2))["net/line/kernel"] == expected
    batches = iter([x[:1], x[1:], None])
    assert check_importance(line(), batches, examples=2)["net/line/kernel"] == expected
    with pytest.raises(ValueError, match="Expected examples to be an integer of at least 1"):
        check_importance(line(), x, examples=0)


def test_several_inputs_and_another_output():
    inputs = [keras.Input([3], name="a"), keras.Input([3], name="b")]
    hidden = layers.Dense(4, activation="relu", name="hidden")(layers.Add()(inputs))
    model = keras.Model(inputs, layers.Dense(2, activation="softmax", name="out")(hidden))
    data = [X[:, 0], X[:, 1]]
    for output in ("logits", "output", "layers", "hidden"):
        checks = check_importance(model, data, output=output)
        assert all(found.error < 1e-5 for found in checks.values())
    dataset = tf.data.Dataset.from_tensor_slices((tuple(data), np.zeros(9))).batch(4)
    assert check_importance(model, dataset).keys() == checks.keys()
