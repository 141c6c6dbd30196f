"""The optimizers that tasks are trained with: what a step of Adam does, and that it is Keras's."""

import functools
import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_mas.training.optimizers import fused_adam, optimizer_of


def test_steps_of_adam_by_hand():
    # m̂ and v̂ of a first step are g and g², and the step η · sign(g): 1 − 0.1 and −1 + 0.1. After
    # g = 3 and −3, m̂ = (0.09 · 3 − 0.1 · 3) / 0.19 and v̂ = 9.
    optimizer = optimizer_of("adam")
    optimizer.learning_rate = 0.1
    weight = keras.Variable([1.0, -1.0])
    optimizer.apply([tf.constant([3.0, -0.5])], [weight])
    np.testing.assert_allclose(weight.numpy(), [0.9, -0.9], rtol=1e-6)
    optimizer.apply([tf.constant([-3.0, -0.5])], [weight])
    second = 0.1 * (0.27 - 0.3) / 0.19 / 3
    np.testing.assert_allclose(weight.numpy(), [0.9 - second, -0.8], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adam_is_that_of_keras(dtype):
    random = np.random.default_rng(0)
    gradients = random.normal(size=(50, 3, 2)).astype(dtype)
    gradients[::7] = 0.0
    weights = []
    for optimizer in (keras.optimizers.Adam(0.03), fused_adam()):
        optimizer.learning_rate = 0.03
        weight = keras.Variable(np.ones((3, 2), dtype), dtype=dtype)
        optimizer.build([weight])
        step = tf.function(functools.partial(_apply, optimizer, weight))
        for number, gradient in enumerate(gradients):
            if number == 25:  # as when a task has another learning rate
                optimizer.learning_rate = 0.01
            step(tf.constant(gradient))
        weights.append(weight.numpy())
        assert optimizer.iterations.numpy() == 50
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-5)


def _apply(optimizer, weight, gradient):
    optimizer.apply([gradient], [weight])


def test_adam_takes_the_sparse_gradient_of_an_embedding_as_the_dense_one():
    # Row 1 is looked up twice. (Keras's Adam squares both parts of its gradient by themselves.)
    weights = []
    for optimizer, as_taken in (
        (keras.optimizers.Adam(), tf.convert_to_tensor),
        (fused_adam(), None),
    ):
        layer = keras.layers.Embedding(5, 2, embeddings_initializer="ones")
        layer.build()
        optimizer.build(layer.trainable_variables)
        for rows in ([1, 1, 3], [3, 0]):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(layer(tf.constant(rows)) ** 2)
            [gradient] = tape.gradient(loss, layer.trainable_variables)
            assert isinstance(gradient, tf.IndexedSlices)
            gradient = as_taken(gradient) if as_taken else gradient
            optimizer.apply([gradient], layer.trainable_variables)
        weights.append(layer.embeddings.numpy())
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-6)
    assert weights[1][2, 0] == 1.0


def test_adam_has_the_variables_of_keras_by_which_runs_are_resumed():
    weight = keras.Variable(np.ones((3, 2)))
    paths = []
    for optimizer in (keras.optimizers.Adam(name="adam"), fused_adam()):
        optimizer.build([weight])
        paths.append([(variable.name, variable.shape) for variable in optimizer.variables])
    assert paths[1] == paths[0]


def test_a_step_of_adam_is_one_operation_per_weight():
    weights = [keras.Variable(np.ones(2)), keras.Variable(np.ones(3))]
    optimizer = fused_adam()
    optimizer.build(weights)
    step = tf.function(lambda: optimizer.apply([tf.ones(2), tf.ones(3)], weights))
    operations = [
        operation.type for operation in step.get_concrete_function().graph.get_operations()
    ]
    assert operations.count("ResourceApplyAdam") == 2
    assert "Sqrt" not in operations


def test_a_model_is_saved_with_the_adam_of_keras(tmp_path):
    model = keras.Sequential([keras.Input([2]), keras.layers.Dense(1)])
    model.compile(optimizer_of("adam"), "mse")
    model.fit(np.ones([4, 2]), np.ones([4, 1]), verbose=0)
    model.save(tmp_path / "saved.keras")
    with zipfile.ZipFile(tmp_path / "saved.keras") as archive:
        optimizer = json.loads(archive.read("config.json"))["compile_config"]["optimizer"]
    assert (optimizer["module"], optimizer["class_name"]) == ("keras.optimizers", "Adam")
    again = keras.models.load_model(tmp_path / "saved.keras").optimizer
    for mine, theirs in zip(again.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, theirs)
