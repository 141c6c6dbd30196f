"""A `fit` ends where its loss or its weights become NaN or infinite."""

import keras
import numpy as np
import pytest

import keras_mas
from keras_mas.errors import NotFiniteError
from keras_mas.finite import FitDivergedError

X = np.array([[1.0], [2.0], [3.0], [4.0]], "float32")
Y = 2 * X


def line(of=keras.Model, outputs=lambda x: x, **options):
    """Return ŷ = w x, with w = 1, and a mean squared error; batches of one example."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input([1])
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="dense")
    model = of(inputs, outputs(dense(inputs)), name="line", **options)
    model.compile(keras.optimizers.SGD(0.01), "mse")
    return model


def protected():
    model = line()
    return model, keras_mas.SynapticMemory(1e-9).protect(model)


def own():
    model = line(keras_mas.MASModel, strength=1e-9)
    return model, model.memory


def decoupled():
    model = line(keras_mas.MASModel, strength=1e-9, penalty="decoupled")
    return model, model.memory


def fit(model, x=X, y=Y, **options):
    return model.fit(x, y, batch_size=1, shuffle=False, verbose=0, **options)


class Epochs(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.ended = []

    def on_epoch_end(self, epoch, logs=None):
        self.ended.append(epoch)


@pytest.mark.parametrize("make", [protected, own, decoupled])
def test_a_loss_that_diverges_ends_the_fit_and_what_is_remembered_stays(make):
    model, memory = make()
    fit(model)
    memory.consolidate(model, X)
    before = memory.importance | memory.anchor
    model.optimizer.learning_rate = 3.0  # w moves by 6 x² (2 − w): times −5 and more in a step
    saved = Epochs()
    with pytest.raises(
        FitDivergedError, match=r"finite loss. Received: (inf|nan) in epoch \d+ in .*'line'. Lower"
    ):
        fit(model, epochs=40, callbacks=[saved])
    assert len(saved.ended) < 39
    assert issubclass(FitDivergedError, NotFiniteError)
    after = memory.importance | memory.anchor
    assert all(np.array_equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("make", [protected, own])
def test_nan_in_the_data_is_told_before_the_epoch_is_saved(make):
    model, _ = make()
    fit(model)
    saved = Epochs()
    with pytest.raises(FitDivergedError, match="Received: nan in epoch 1 .*NaN in the inputs"):
        fit(model, np.where(X == 3, np.nan, X), callbacks=[saved])
    assert not saved.ended


def test_a_gradient_that_is_not_finite_spoils_weights_though_the_loss_is_finite():
    # √relu(w x) at x = 0 is 0, and so is the loss; its derivative is infinite, times 0.
    model = line(keras_mas.MASModel, lambda y: keras.ops.sqrt(keras.ops.relu(y)))
    with pytest.raises(
        FitDivergedError, match="NaN or infinity in 'dense/kernel' after epoch 1 in the"
    ):
        fit(model, np.zeros([1, 1]), np.ones([1, 1]), epochs=3)


@pytest.mark.parametrize("options", [{}, {"steps_per_epoch": 1}], ids=["arrays", "steps"])
def test_weights_are_checked_before_another_callback_saves_them(tmp_path, options):
    model = line(keras_mas.MASModel, lambda y: keras.ops.sqrt(keras.ops.relu(y)))
    saving = keras.callbacks.ModelCheckpoint(tmp_path / "saved.keras")
    with pytest.raises(FitDivergedError):
        fit(model, np.zeros([1, 1]), np.ones([1, 1]), callbacks=[saving], **options)
    assert not (tmp_path / "saved.keras").exists()


class Masked(keras.layers.Layer):
    """Adds the best value so far to nothing, which is −∞ until there is one."""

    def build(self, shape):
        self.best = self.add_weight(
            name="best", initializer=keras.initializers.Constant(-np.inf), trainable=False
        )

    def call(self, x):
        return keras.ops.maximum(x, self.best)


def test_a_state_that_begins_with_infinity_may_keep_it():
    model = line(keras_mas.MASModel, Masked())
    assert "loss" in fit(model).history
    model.trainable_weights[0].assign([[np.inf]])  # of what is trained nothing may be
    with pytest.raises(FitDivergedError):
        fit(model, np.zeros([1, 1]), np.zeros([1, 1]))


def test_an_epoch_is_counted_from_where_the_fit_begins():
    model, _ = own()
    with pytest.raises(FitDivergedError, match="in epoch 6 in"):
        fit(model, X * np.nan, initial_epoch=5, epochs=9)


def test_a_history_that_follows_several_models_follows_each():
    history = keras.callbacks.History()
    first, second = own()[0], own()[0]
    fit(first, callbacks=[history])
    fit(second, callbacks=[history])
    assert len(history.history["loss"]) == 2  # once of each
    second.trainable_weights[0].assign([[np.nan]])
    fit(first, callbacks=[history])  # in which all is well
    with pytest.raises(FitDivergedError):
        fit(second, callbacks=[history])


def test_what_is_learned_and_logged_is_as_before():
    plain, (model, _) = line(), own()
    expected, found = fit(plain, epochs=3), fit(model, epochs=3)
    np.testing.assert_allclose(model.get_weights()[0], plain.get_weights()[0], rtol=1e-6)
    np.testing.assert_allclose(found.history["loss"], expected.history["loss"], rtol=1e-6)
