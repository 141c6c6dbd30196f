import keras
import numpy as np
import pytest

from keras_mas.errors import UsageError
from keras_mas.serving.head_checks import check_examples, input_shape_of

POINTS = np.array([[0.0, 1.0], [2.0, -1.0]], np.float32)


def check(function, examples=POINTS, **options):
    point = keras.Input([2], **options)
    check_examples({"pets": keras.Model(point, function(point))}, examples, None)


@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_a_network_that_answers_no_numbers_is_refused(damage):
    dense = keras.layers.Dense(2, kernel_initializer="ones", bias_initializer="zeros")
    with pytest.raises(UsageError, match="finite logits of 'pets'.* infinity for 2 of 2 examples"):
        check(lambda point: dense(point * damage))


def test_minus_infinity_is_the_logit_of_a_class_that_cannot_be():
    check(lambda point: keras.ops.concatenate([point, point[:, :1] * 0.0 - np.inf], axis=1))


def test_nan_in_an_example_may_be_in_its_answer():
    check(lambda point: point, np.array([[np.nan, 1.0], [2.0, 3.0]], np.float32))


def test_probabilities_are_refused_wherever_they_were_computed():
    def hidden(point):
        probabilities = keras.layers.Dense(3, activation="softmax")(point)
        return keras.layers.Activation("linear", dtype="float32")(probabilities)

    with pytest.raises(UsageError, match="probabilities, which sum to 1 for each of 2 examples"):
        check(hidden)
    # Logits that sum to 1 are none if one of them is negative.
    check(lambda point: point * 1.0)


def test_integers_that_float32_does_not_hold_are_refused():
    def one_hot(point):
        return keras.ops.one_hot(point[:, 0] % 3, 3) * 2.0

    check(one_hot, np.array([[2**24, 0]], np.float32), dtype="int32")
    with pytest.raises(UsageError, match="int32 inputs of 'pets' up to 16,777,216.*: 16,777,218"):
        check(one_hot, np.array([[2**24 + 2, 0]], np.float32), dtype="int32")


def test_strings_are_no_numbers():
    word = keras.Input([1], dtype="string")
    with pytest.raises(UsageError, match="to take numbers. Received: an input of strings"):
        input_shape_of({"pets": keras.Model(word, keras.layers.Identity()(word))})
