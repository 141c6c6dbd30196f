import keras
import numpy as np
import pytest
from keras import layers

from keras_mas import MultiHead


def trunk():
    inputs = keras.Input([4])
    return keras.Model(inputs, layers.Dense(3, "relu")(inputs), name="trunk")


def test_heads_share_one_trunk():
    heads = MultiHead(trunk())
    first, second = heads.add("cats", 2), heads.add("dogs", 5)
    assert first.output_shape == (None, 2)
    assert second.output_shape == (None, 5)
    shared = {weight.path for weight in first.weights} & {weight.path for weight in second.weights}
    assert shared == {weight.path for weight in heads.trunk.weights}
    heads.trunk.weights[0].assign(np.ones([4, 3]))
    np.testing.assert_array_equal(first.weights[0].numpy(), second.weights[0].numpy())


def test_the_joint_model_answers_as_the_single_ones():
    heads = MultiHead(trunk())
    models = {task: heads.add(task, 2) for task in ("a", "b", "c")}
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    answers = heads.joint(["a", "c"])(x)
    assert set(answers) == {"a", "c"}
    for task, logits in answers.items():
        np.testing.assert_array_equal(logits, models[task](x))


def test_wrong_uses_are_named():
    heads = MultiHead(trunk())
    heads.add("cats", 2)
    with pytest.raises(ValueError, match="Received: 'cats', which has a head already"):
        heads.add("cats", 3)
    with pytest.raises(ValueError, match="Received: 'raw', which is not built"):
        MultiHead(keras.Sequential([layers.Dense(2)], name="raw"))
