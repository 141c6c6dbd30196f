import keras
import numpy as np
import pytest

from keras_mas import MASModel
from keras_mas.finite import FitDivergedError
from keras_mas.training.loop import STEPS_PER_CALL, CompiledLoop, steps_per_call
from keras_mas.training.tasks import Split
from keras_mas.training.tasks.inputs import Inputs, MemoryArray
from keras_mas.training.tasks.pipeline import epoch_order


@pytest.fixture
def split():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(50, 4)).astype("float32")
    return Split(inputs, (inputs.sum(axis=1) > 0).astype("int64"))


def network(model=keras.Model, units=2, **options):
    keras.utils.set_random_seed(0)
    inputs = keras.Input([4])
    x = keras.layers.Dense(8, activation="relu")(inputs)
    return model(inputs, keras.layers.Dense(units)(x), **options)


def compiled(model):
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    return model


class OnDisk(Inputs):
    """Inputs that are not in memory, as far as the loop can tell."""

    def __init__(self, array):
        super().__init__(array.shape, array.dtype, in_memory=False)
        self.array = array

    def read(self, rows):
        return self.array[rows]


class Notes(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.batches, self.epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(batch)

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(logs)


@pytest.mark.parametrize("penalty", ["in_loss", "decoupled"])
def test_it_takes_the_steps_of_fit(split, penalty):
    ours, keras_s = (compiled(network(MASModel, strength=0.5, penalty=penalty)) for _ in range(2))
    for model in (ours, keras_s):
        model.memory.consolidate(model, split.inputs)
    logs = CompiledLoop(ours, np.float32).fit(split, epochs=3, batch_size=16, seed=7)
    for epoch in range(3):
        order = epoch_order(50, 7, epoch)
        history = keras_s.fit(
            split.inputs[order], split.labels[order], batch_size=16, shuffle=False, verbose=0
        )
    for a, b in zip(ours.get_weights(), keras_s.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    # The loss of the epoch is the mean over its examples; the penalty is that of its last step.
    assert logs == pytest.approx({k: v[-1] for k, v in history.history.items()}, rel=1e-4)
    assert set(logs) == {"loss", "accuracy", "penalty"}


def test_averaged_weights_take_their_place_as_at_the_end_of_fit(split):
    models = [network() for _ in range(2)]
    for model in models:
        compiled(model)
        model.optimizer = keras.optimizers.SGD(0.1, use_ema=True)
        model.optimizer.build(model.trainable_variables)
    CompiledLoop(models[0], np.float32).fit(split, epochs=1, batch_size=16, seed=7)
    order = epoch_order(50, 7, 0)
    inputs, labels = split.inputs[order], split.labels[order]
    models[1].fit(inputs, labels, batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("augment", [(), ("flip",)])
def test_where_the_inputs_lie_changes_nothing(augment):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(50, 3, 3, 1)).astype("float32"), np.arange(50) % 2
    weights = []
    for source in (MemoryArray(images), OnDisk(images), images[:, :, ::-1]):
        keras.utils.set_random_seed(0)
        inputs = keras.Input([3, 3, 1])
        x = keras.layers.Dense(2)(keras.layers.Flatten()(inputs))
        loop = CompiledLoop(compiled(keras.Model(inputs, x)), np.float32)
        loop.fit(Split(source, labels), epochs=3, batch_size=4, seed=3, augment=augment)
        weights.append(loop.model.get_weights()[0])
    np.testing.assert_array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_a_call_takes_fewer_steps_of_large_inputs():
    images = Split(OnDisk(np.zeros([40, 512, 512, 4], "uint8")), np.zeros(40, "int64"))  # 1 MiB
    assert steps_per_call(images, batch_size=1) == 32
    assert steps_per_call(images, batch_size=10) == 3
    assert steps_per_call(images, batch_size=40) == 1
    assert steps_per_call(Split(np.zeros([40, 2], "uint8"), images.labels), 10) == STEPS_PER_CALL


def test_callbacks_are_told_of_batches_once_per_call(split):
    notes = Notes()
    model = compiled(network())
    CompiledLoop(model, np.float32).fit(split, epochs=2, batch_size=1, seed=0, callbacks=[notes])
    assert notes.batches == [STEPS_PER_CALL - 1, 49] * 2
    assert [set(logs) for logs in notes.epochs] == [{"loss", "accuracy"}] * 2


def test_a_loss_that_is_no_number_ends_the_training(split):
    notes = Notes()
    model = compiled(network())
    model.optimizer.learning_rate = 1e30
    with pytest.raises(FitDivergedError, match="Received: (nan|inf) in epoch 1 in the `fit`"):
        CompiledLoop(model, np.float32).fit(
            split, epochs=3, batch_size=1, seed=0, callbacks=[notes]
        )
    assert notes.batches == [STEPS_PER_CALL - 1]
    assert not notes.epochs


def test_it_is_traced_once_for_data_of_any_length(split):
    model, traces = compiled(network()), []
    train_step = model.train_step
    model.train_step = lambda data: traces.append(data) or train_step(data)
    loop = CompiledLoop(model, np.float32)
    for size, batch_size in [(50, 16), (20, 16), (20, 3), (1, 1)]:
        loop.fit(split.take(np.arange(size)), epochs=2, batch_size=batch_size, seed=0)
        model.optimizer.learning_rate = 0.01
    assert len(traces) == 1


def test_a_changed_penalty_is_traced_anew(split):
    def trained(penalty, then=None):
        model = compiled(network(MASModel, strength=5.0, penalty=penalty))
        model.consolidate(split.inputs)
        loop = CompiledLoop(model, np.float32)
        if then is not None:
            start = model.get_weights(), [slot.numpy() for slot in model.optimizer.variables]
            loop.fit(split, epochs=1, batch_size=16, seed=0)
            model.set_weights(start[0])
            for variable, value in zip(model.optimizer.variables, start[1], strict=True):
                variable.assign(value)
            model.penalty = then
        loop.fit(split, epochs=2, batch_size=16, seed=0)
        return model.get_weights()[0]

    changed = trained("in_loss", then="decoupled")
    np.testing.assert_array_equal(changed, trained("decoupled"))
    assert not np.allclose(changed, trained("in_loss"), rtol=1e-3)


def test_the_checks_of_fit_are_made(split):
    model = compiled(network(MASModel))
    model.consolidate(split.inputs)
    model.memory.release()
    with pytest.raises(ValueError, match="protects no weight"):
        CompiledLoop(model, np.float32).fit(split, epochs=1, batch_size=16, seed=0)


def test_the_order_is_another_in_each_epoch_and_the_same_for_a_seed():
    orders = [epoch_order(6, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(set(map(tuple, orders))) == 4
    assert epoch_order(6, 0, 1).tolist() == orders[1]


def test_accuracy_counts_every_example(split):
    model = network()
    many = split.take(np.arange(2500) % 50)
    expected = np.mean(np.argmax(model.predict(many.inputs, verbose=0), axis=1) == many.labels)
    assert CompiledLoop(compiled(model), np.float32).accuracy(many, 16) == expected


def test_cross_entropy_is_the_mean_over_every_example(split):
    model = network()
    many = split.take(np.arange(2500) % 50)
    logits = model.predict(many.inputs, verbose=0).astype("float64")
    of_right = logits[np.arange(2500), many.labels]
    expected = np.mean(np.log(np.exp(logits).sum(axis=1)) - of_right)
    found = CompiledLoop(compiled(model), np.float32).cross_entropy(many, 16)
    assert found == pytest.approx(expected, rel=1e-5)
