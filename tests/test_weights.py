import keras
import pytest
from keras import layers

from keras_mas.weights import find_weights, identities, trainable_weights, weight_names


def chain(*names, name=None, widths=(4, 4, 4)):
    """A functional model of Dense layers; a name of None lets Keras choose one."""
    x = inputs = keras.Input([4])
    for given, width in zip(names, widths, strict=False):
        x = layers.Dense(width, name=given)(x)
    return keras.Model(inputs, x, name=name)


def wanted(model):
    return [identity for identity, _ in identities(model)]


def found_places(model, other):
    """The places in `other` of the weights of `model`, by their places in `model`."""
    found = find_weights(wanted(model), other)
    return {wanted(model)[k].place: identity.place for k, (identity, _) in found.items()}


def test_places_count_the_layers_that_have_weights():
    inputs = keras.Input([4])
    inner = keras.Sequential([layers.Dense(3), layers.ReLU(), layers.Dense(2)])
    model = keras.Model(inputs, inner(layers.Flatten()(layers.Dense(4)(inputs))))
    assert [identity.place for identity in wanted(model)] == [
        *("0/kernel", "0/bias", "1/0/kernel", "1/0/bias", "1/1/kernel", "1/1/bias")
    ]


def test_a_shared_weight_is_listed_once():
    inputs = keras.Input([4])
    shared = layers.Dense(4)
    left, right = keras.Sequential([shared]), keras.Sequential([shared])
    model = keras.Model(inputs, left(inputs) + right(inputs))
    assert len(wanted(model)) == 2


def test_the_names_of_layers_that_keras_named_tell_nothing():
    model = chain("first", None, name="shop")
    assert [identity.names for identity in wanted(model)][::2] == ["shop/first", "shop/*"]


@pytest.mark.parametrize("names", [(None, None, None), ("a", "b", "c")], ids=["automatic", "given"])
def test_a_model_built_again_has_the_same_places(names):
    model, again = chain(*names), chain(*names)
    assert found_places(model, again) == {
        identity.place: identity.place for identity in wanted(model)
    }


def test_a_renamed_layer_is_recognized_by_its_place():
    assert (
        found_places(chain("a", "b", name="x"), chain("a", "new", name="y"))["1/kernel"]
        == "1/kernel"
    )


def test_layers_that_changed_places_are_recognized_by_their_names():
    # By place alone Ω of one layer would protect the other, without a word: the shapes agree.
    found = found_places(chain("a", "b"), chain("b", "a"))
    assert found["0/kernel"] == "1/kernel"
    assert found["1/kernel"] == "0/kernel"


def test_a_trunk_is_found_inside_a_model_and_a_model_around_a_trunk():
    trunk = chain("a", "b", name="trunk")
    inputs = keras.Input([4])
    model = keras.Model(inputs, layers.Dense(2)(chain("a", "b", name="trunk")(inputs)))
    assert found_places(trunk, model)["1/kernel"] == "0/1/kernel"
    assert found_places(model, trunk) == {
        f"0/{k}/{w}": f"{k}/{w}" for k in (0, 1) for w in ("kernel", "bias")
    }


def test_towers_are_told_apart_by_their_names():
    inputs = keras.Input([4])
    towers = [chain("a", "b", name=name)(inputs) for name in ("left", "right")]
    model = keras.Model(inputs, towers)
    right = chain("a", "b", name="right")
    assert found_places(right, model)["0/kernel"] == "1/0/kernel"
    with pytest.raises(ValueError, match="in several ways"):
        find_weights(wanted(chain("a", "b")), model)


def test_other_shapes_and_dtypes_are_not_taken():
    assert found_places(chain("a", "b"), chain("a", "b", widths=(4, 5))) == {
        "0/kernel": "0/kernel",
        "0/bias": "0/bias",
    }
    inputs = keras.Input([4])
    wide = keras.Model(inputs, layers.Dense(4, name="a", dtype="float64")(inputs))
    assert not find_weights(wanted(wide), chain("a"))


def test_equal_paths_get_names_of_their_own():
    inputs = keras.Input([4])
    towers = [chain("a", name=name)(inputs) for name in ("left", "right")]
    model = keras.Model(inputs, layers.Dense(2, name="out")(layers.Concatenate()(towers)))
    assert len({weight.path for weight in model.weights}) == 4
    assert list(trainable_weights(model)) == [
        *("left/a/kernel", "left/a/bias", "right/a/kernel", "right/a/bias"),
        *("out/kernel", "out/bias"),
    ]
    assert set(weight_names(chain("a")).values()) == {"a/kernel", "a/bias"}


def test_models_without_usable_weights_are_refused():
    with pytest.raises(ValueError, match="or a layer of one. Received: a str"):
        trainable_weights("model.keras")
    with pytest.raises(ValueError, match="Expected a built model. Received: 'raw'"):
        trainable_weights(keras.Sequential([layers.Dense(2)], name="raw"))
    frozen = chain("a", name="frozen")
    frozen.trainable = False
    with pytest.raises(ValueError, match="Received: 'frozen' with none"):
        trainable_weights(frozen)
    half = keras.Sequential([keras.Input([2]), layers.Dense(2, dtype="float16", name="half")])
    with pytest.raises(ValueError, match="in float16, whose range is too small"):
        trainable_weights(half)
