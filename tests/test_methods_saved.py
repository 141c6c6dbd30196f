"""Models of methods that train all heads, saved around `model.fit` and learned on from a file."""

import keras
import numpy as np
import pytest
from cases import slow_but
from keras import layers

from keras_mas.methods import ebll, load_method

X = np.random.default_rng(0).normal(size=[32, 4]).astype("float32")
Y = (X[:, 0] > 0).astype("int64")
HELD = ["lwf", "ebll", "online_mas"]


def compiled(model):
    model.compile(
        keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    return model


def network(heads):
    inputs = keras.Input([4])
    features = layers.Dense(6, "relu")(inputs)
    return inputs, [layers.Dense(2)(features) for _ in range(heads)]


@pytest.fixture
def learn(monkeypatch):
    """Learns a task of the first or the second head."""
    monkeypatch.setattr(ebll, "_STEPS", 3)

    def one(method, model, task):
        method.before_task(model, X, Y + 2 * task)
        options = {"batch_size": 8, "shuffle": False, "verbose": 0}
        labels = Y + 2 * task
        history = model.fit(X, labels, epochs=8, callbacks=method.callbacks(), **options)
        method.after_task(model, X, labels)
        return history.history

    return one


@pytest.fixture
def method_of(monkeypatch):
    """A method by its name; the plateaus of online_mas are of any loss."""

    def made(name, strength=1.0):
        method = load_method(name)(strength)
        if name == "online_mas":
            method.plateaus.mean_threshold = method.plateaus.variance_threshold = 10.0
        return method

    return made


def saved(method_of, learn, name, heads, folder):
    """A model of a method that has learned a task, with both in files."""
    keras.utils.set_random_seed(0)
    method = method_of(name)
    model = compiled(method.model(*network(heads)))
    method.protect(model)
    learn(method, model, 0)
    model.save(folder / "model.keras")
    method.save(folder / "memory.npz")
    return method, model


def taken_over(method, loaded, path, name):
    """The model that a method makes of a loaded one, with what was remembered beside it."""
    if name == "online_mas":
        loaded.memory.release()
    model = compiled(method.model(loaded.inputs[0], loaded.heads))
    method.protect(model)
    if path.exists():
        method.load(path, tasks=1)
    return model


@pytest.mark.parametrize("heads", slow_but(2, [1, 2]))
@pytest.mark.parametrize("name", [*HELD, "joint"])
def test_a_loaded_model_answers_as_the_saved_one(method_of, learn, name, heads, tmp_path):
    _, model = saved(method_of, learn, name, heads, tmp_path)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert (
        loaded.head_of_logit.tolist() == model.head_of_logit.tolist() == [0, 0, 1, 1][: 2 * heads]
    )
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), model.predict(X, verbose=0))
    again = tmp_path / "again.keras"
    loaded.save(again)
    assert keras.models.load_model(again).head_of_logit.tolist() == model.head_of_logit.tolist()


@pytest.mark.parametrize("name", [*HELD, "joint"])
def test_a_cloned_model_has_the_same_heads(method_of, name):
    model = method_of(name).model(*network(heads=2))
    assert keras.models.clone_model(model).head_of_logit.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("name", slow_but("lwf", [*HELD, "joint"]))
def test_a_method_learns_on_in_what_was_loaded(method_of, learn, name, tmp_path):
    method, model = saved(method_of, learn, name, 2, tmp_path)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    again = method_of(name)
    other = taken_over(again, loaded, tmp_path / "memory.npz", name)
    compiled(model)  # with a new optimizer, as the other one
    losses = [learn(*each, 1)["loss"] for each in ((method, model), (again, other))]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    for weight, same in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(same, weight, rtol=1e-5, atol=1e-6)
    # The method acts: without what it remembers, the weights would be others.
    if name != "joint":
        loaded = keras.models.load_model(tmp_path / "model.keras")
        free = method_of(name, strength=0.0)
        unheld = taken_over(free, loaded, tmp_path / "memory.npz", name)
        learn(free, unheld, 1)
        pairs = zip(unheld.get_weights(), other.get_weights(), strict=True)
        assert max(abs(one - same).max() for one, same in pairs) > 1e-3


@pytest.mark.parametrize("name", HELD)
def test_a_loaded_model_is_not_trained_without_its_method(method_of, learn, name, tmp_path):
    saved(method_of, learn, name, 2, tmp_path)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"Train `method.model\(loaded.inputs\[0\], loaded.heads"):
        loaded.fit(X, Y, verbose=0)


def test_a_new_head_stands_beside_those_that_were_loaded(method_of, learn, tmp_path):
    saved(method_of, learn, "lwf", 1, tmp_path)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    method = method_of("lwf")
    new = layers.Dense(2)(loaded.layers[1].output)
    model = compiled(method.model(loaded.inputs[0], [*loaded.heads, new]))
    method.load(tmp_path / "memory.npz", tasks=1)
    learn(method, model, 1)
    assert model.output_shape == (None, 4)
    assert float(model.held_loss(X, model(X))) > 0  # of the first head alone
    assert method.learned.logits.tolist() == [True] * 4
