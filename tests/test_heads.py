import keras
import numpy as np
import pytest
from keras import layers

from keras_mas import MultiHead, SynapticMemory
from keras_mas.heads import AllHeadsModel


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


def normalized_trunk(nested=False):
    inputs = keras.Input([6, 6, 1])
    x = inputs
    if nested:
        within = keras.Input([6, 6, 1])
        block = layers.BatchNormalization(name="deep")(layers.Conv2D(4, 3, name="low")(within))
        x = keras.Model(within, layers.ReLU()(block), name="block")(x)
    x = layers.BatchNormalization(name="norm")(layers.Conv2D(3, 3, name="high")(x))
    return keras.Model(inputs, layers.GlobalAveragePooling2D()(x), name="trunk")


def paths(model):
    return {weight.path for weight in model.weights}


@pytest.mark.parametrize("nested", [False, True])
def test_every_task_has_batch_normalization_of_its_own(nested, tmp_path):
    trunk = normalized_trunk(nested)
    trunk.get_layer("norm").beta.assign([1.0, 2.0, 3.0])
    heads = MultiHead(trunk, batch_norm="per_task")
    models = {task: heads.add(task, 2) for task in ("a", "b")}
    shared = {"high/kernel", "high/bias", *(["low/kernel", "low/bias"] if nested else [])}
    assert paths(models["a"]) & paths(models["b"]) == shared
    assert models["b"].get_layer("norm-b").beta.numpy().tolist() == [1.0, 2.0, 3.0]
    x = np.random.default_rng(0).normal(size=(16, 6, 6, 1)).astype("float32") + 5
    before = models["a"].predict(x, verbose=0)
    memory = SynapticMemory().protect(trunk, batch_norm="update")
    models["b"].compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    kernel = trunk.get_layer("high").kernel.numpy()
    models["b"].fit(x, np.arange(16) % 2, verbose=0)
    memory.consolidate(models["b"], x)
    trunk.get_layer("high").kernel.assign(kernel)
    assert models["b"].get_layer("norm-b").moving_mean.numpy().any()
    assert models["a"].get_layer("norm-a").moving_mean.numpy().tolist() == [0.0] * 3
    if not nested:  # else the lower kernel has moved
        trunk.get_layer("high").bias.assign(np.zeros(3))
        np.testing.assert_allclose(models["a"].predict(x, verbose=0), before, atol=1e-5)
    heads.joint().save(tmp_path / "joint.keras")
    loaded = keras.models.load_model(tmp_path / "joint.keras")
    for task, logits in heads.joint()(x).items():
        np.testing.assert_allclose(loaded(x)[task], logits, atol=1e-6)


def test_a_sequential_trunk_may_have_batch_normalization_per_task():
    norm = layers.BatchNormalization(name="norm")
    sequential = keras.Sequential([keras.Input([4]), layers.Dense(3), norm], name="trunk")
    heads = MultiHead(sequential, batch_norm="per_task")
    first, second = heads.add("a", 2), heads.add("b", 2)
    shared = paths(first) & paths(second)
    assert shared == {weight.path for weight in sequential.layers[0].weights}
    second.get_layer("norm-b").beta.assign([1.0, 2.0, 3.0])
    features = keras.Model(second.inputs[0], second.layers[-2].output)
    np.testing.assert_allclose(features(np.zeros([1, 4])), [[1.0, 2.0, 3.0]])


def test_batch_normalization_inside_a_layer_of_ones_own_is_refused():
    class Block(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.norm = layers.BatchNormalization()

        def build(self, shape):
            self.norm.build(shape)

        def call(self, inputs):
            return self.norm(inputs)

    inputs = keras.Input([4])
    hidden = keras.Model(inputs, Block(name="block")(inputs))
    with pytest.raises(ValueError, match="batch normalization inside 'block', a Block"):
        MultiHead(hidden, batch_norm="per_task")
    with pytest.raises(ValueError, match="one of 'shared', 'per_task'. Received: 'own'"):
        MultiHead(hidden, batch_norm="own")


def test_a_task_may_have_any_name():
    # A scope name that TensorFlow refuses would break every later model in the process.
    heads = MultiHead(trunk())
    models = [heads.add(task, 2) for task in ("cats & dogs", "cats | dogs", "Ω")]
    assert [model.name for model in models] == [
        *("model-cats___dogs", "model-cats___dogs-2", "model-_")
    ]
    x, y = np.ones([4, 4], "float32"), np.arange(4) % 2
    for model in models:
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        model.fit(x, y, verbose=0)
    assert set(heads.joint()(x)) == {"cats & dogs", "cats | dogs", "Ω"}


def test_a_head_of_one_logit_is_refused():
    inputs = keras.Input([4])
    heads = [layers.Dense(2)(inputs), layers.Dense(1)(inputs)]
    with pytest.raises(ValueError, match="heads of two logits or more.*Received: a head with one"):
        AllHeadsModel(inputs, heads)
    with pytest.raises(ValueError, match="Received: a head with one"):
        AllHeadsModel(inputs, heads[1])
