import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import slow, slow_but
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from reference import importance_by_differences, importance_by_plain_tape

from keras_mas import compute_importance, importance_one_by_one
from keras_mas.importance import (
    ImportanceSums,
    compute_fisher,
    measure_sums,
    progress,
    rule,
)

BOTH = pytest.mark.parametrize("measure", [compute_importance, importance_one_by_one])


def set_weights(model, *weights):
    model.set_weights([np.array(values, "float32") for values in weights])


def line(w, b):
    model = keras.Sequential([keras.Input([1]), layers.Dense(1, name="line")])
    set_weights(model, [[w]], [b])
    return model


def column(*values):
    return np.array(values, "float32")[:, None]


def assert_close(omega, **expected):
    found = {path.rsplit("/")[-1]: values for path, values in omega.items()}
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)


def assert_same(fast, slow, rtol=1e-4):
    assert fast.keys() == slow.keys()
    for path in slow:
        scale = np.abs(slow[path]).max()
        np.testing.assert_allclose(fast[path], slow[path], rtol, rtol * scale, err_msg=path)


@BOTH
def test_importance_of_a_line(measure):
    # F = wx + b, so |∂F²/∂w| = |2xF| and |∂F²/∂b| = |2F|.
    # w = 1, b = 0, x = ±1: F = ±1, both means are 2. The signed bias gradients
    # are +2 and −2: averaging before the absolute value would answer 0.
    assert_close(measure(line(1.0, 0.0), column(1, -1)), kernel=[[2.0]], bias=[2.0])


def test_a_shorter_last_batch_is_weighted_by_its_length():
    # x = 1, 2, 3: |2xF| = 2, 8, 18 and |2F| = 2, 4, 6. The mean over examples is 28/3 and 4;
    # the mean of the means of batches (1, 2) and (3) would be 11.5 and 4.5.
    omega = compute_importance(line(1.0, 0.0), column(1, 2, 3), batch_size=2)
    assert_close(omega, kernel=[[28 / 3]], bias=[4.0])


@BOTH
def test_importance_of_two_relu_layers(measure):
    # W = [[1, −1], [0, 2]], V = [2, 1]ᵀ, no offsets; z = xW, F = relu(z)V, δ_F = 2F.
    # x = (1,  1): z = (1,  1), F = 3, δ_F = 6, ∂V = (6, 6), δ_z = (12, 6), ∂W = x ⊗ δ_z
    # x = (1, −1): z = (1, −3), F = 2, δ_F = 4, ∂V = (4, 0), δ_z = ( 8, 0)
    # Second row of ∂W: (12, 6) and (−8, 0). Its mean magnitude is (10, 3); the magnitude of its
    # mean would be (2, 3).
    model = keras.Sequential(
        [
            keras.Input([2]),
            layers.Dense(2, activation="relu", name="in"),
            layers.Dense(1, name="out"),
        ],
        name="net",
    )
    set_weights(model, [[1, -1], [0, 2]], [0, 0], [[2], [1]], [0])
    omega = measure(model, np.array([[1.0, 1.0], [1.0, -1.0]], "float32"))
    np.testing.assert_allclose(omega["net/in/kernel"], [[10, 3], [10, 3]])
    np.testing.assert_allclose(omega["net/in/bias"], [10, 3])
    np.testing.assert_allclose(omega["net/out/kernel"], [[5], [3]])
    np.testing.assert_allclose(omega["net/out/bias"], [5])


def test_a_weight_used_at_two_positions_adds_before_the_absolute_value():
    # The line at positions x = (1, −1) of one example: F = (1, −1), ‖F‖² = (w+b)² + (−w+b)², so
    # ∂b = 2(1) + 2(−1) = 0 and ∂w = 2 + 2 = 4. Absolute values per position would give b 4.
    model = keras.Sequential([keras.Input([2, 1]), layers.Dense(1, name="line")])
    set_weights(model, [[1.0]], [0.0])
    assert_close(compute_importance(model, np.array([[[1.0], [-1.0]]])), kernel=[[4.0]], bias=[0.0])


def test_the_definition_agrees_with_central_differences():
    keras.backend.set_floatx("float64")
    inputs = keras.Input([4])
    hidden = layers.Dense(3, activation="tanh")(inputs)
    model = keras.Model(inputs, [layers.Dense(2)(hidden), layers.Dense(1)(hidden)])
    x = np.random.default_rng(0).normal(size=(5, 4))
    assert_same(importance_one_by_one(model, x), importance_by_differences(model, x), rtol=1e-7)


def mlp(inputs):
    return layers.Dense(3)(layers.Dense(4, activation="relu")(inputs))


def convolutional(inputs):
    x = layers.Reshape([4, 4, 1])(inputs)
    x = layers.Conv2D(2, 3, activation="relu")(x)
    x = layers.BatchNormalization()(x)
    return layers.Dense(3)(layers.Dropout(0.5)(layers.Flatten()(x)))


def called_twice(inputs):
    shared = layers.Dense(16, activation="relu")
    return layers.Dense(2)(shared(shared(inputs)))


def sequence(inputs):
    x = layers.Reshape([4, 4])(inputs)
    x = layers.Dense(3, activation="gelu")(x)
    return layers.Dense(2)(layers.LSTM(3)(x))


def two_outputs(inputs):
    trunk = layers.Dense(5, activation="tanh", use_bias=False)(inputs)
    return {"a": layers.Dense(2, activation="softplus")(trunk), "b": layers.Dense(1)(trunk)}


class TransposedReuse(layers.Layer):
    """Uses the kernel of a Dense layer outside of that layer's call."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, inputs):
        return keras.ops.matmul(self.dense(inputs), keras.ops.transpose(self.dense.kernel))


def reused_outside(inputs):
    return TransposedReuse()(inputs)


class Doubled(layers.Dense):
    """A subclass of a class with a rule that computes something else."""

    def call(self, inputs):
        return super().call(inputs) + super().call(-2 * inputs)


def subclassed(inputs):
    return Doubled(3)(inputs)


class Reshaped(keras.Model):
    """Calls its layer with several rows per example."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(3)

    def call(self, inputs):
        rows = self.dense(keras.ops.reshape(inputs, (-1, 4)))
        return keras.ops.reshape(rows, (-1, 12))


class TimeFirst(Reshaped):
    """Calls its layer with the time axis before that of the examples."""

    def call(self, inputs):
        steps = keras.ops.transpose(keras.ops.reshape(inputs, (-1, 4, 4)), (1, 0, 2))
        return keras.ops.transpose(self.dense(steps), (1, 0, 2))


class Concatenated(Reshaped):
    """Calls its layer with every example twice, in one batch."""

    def call(self, inputs):
        both = keras.ops.concatenate([inputs, -2 * inputs], axis=0)
        return keras.ops.add(*keras.ops.split(self.dense(both), 2, axis=0))


class Mixing(Reshaped):
    """Its output for an example depends on the other examples of the batch."""

    def call(self, inputs):
        return self.dense(inputs - 0.5 * keras.ops.mean(inputs, axis=0))


class Swapped(Reshaped):
    """Calls its layer twice, the second time with the examples in another order."""

    def call(self, inputs):
        swapped = self.dense(-2 * keras.ops.flip(inputs, axis=0))
        return self.dense(inputs) + keras.ops.flip(swapped, axis=0)


class Gate(layers.Layer):
    """Takes two tensors, the second by name, and has no rule."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="normal", name="scale")

    def call(self, inputs, by):
        return inputs * keras.ops.tanh(self.scale * by)


def gated(inputs):
    x = layers.Dense(5, activation="tanh")(inputs)
    return layers.Dense(2)(Gate()(x, by=layers.Dense(5)(inputs)))


def masked(inputs):
    x = layers.Masking(0.0)(layers.Reshape([4, 4])(layers.ReLU(threshold=0.8)(inputs)))
    return layers.Dense(2)(layers.GRU(3)(x))


def swapped(inputs):
    return Swapped()(inputs)


class Split(layers.Layer):
    """Returns a state, and an output computed from the state."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="normal", name="scale")

    def call(self, inputs):
        state = keras.ops.tanh(self.scale * inputs)
        return self.scale + state, state


def two_answers(inputs):
    return layers.Dense(2)(layers.Multiply()(list(Split()(inputs))))


class Named(Reshaped):
    """Passes a layer its inputs by name."""

    def call(self, inputs):
        return self.dense(inputs=inputs)


def named(inputs):
    return Named()(inputs)


def reshaped(inputs):
    return Reshaped()(inputs)


def time_first(inputs):
    return TimeFirst()(inputs)


def concatenated(inputs):
    return Concatenated()(inputs)


def mixing(inputs):
    return Mixing()(inputs)


class Keeping(layers.Layer):
    """Stores a tensor in an attribute, or reads one from there, or assigns a variable."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="normal", name="scale")
        self.calls = self.add_weight(shape=(), initializer="ones", trainable=False, name="calls")

    def call(self, inputs):
        self.kept = keras.ops.tanh(inputs * self.scale)
        if self.way == "takes":
            return self.kept * self.beside
        if self.way == "moves":
            self.calls.assign_add(1.0)
            return self.kept * self.calls
        return inputs * self.kept


class Around(keras.Model):
    """Puts a function of its inputs and one layer between two Dense layers."""

    def __init__(self, function, layer):
        super().__init__()
        self.function, self.layer = function, layer
        self.before = layers.Dense(12, activation="tanh")
        self.after = layers.Dense(2)

    def call(self, inputs):
        return self.after(self.function(self.before(inputs), self.layer))


def leaves_an_attribute(x, layer):
    return layer(x) + layer.kept


def takes_an_attribute(x, layer):
    layer.beside = x + 1
    return layer(x)


def gradient_inside(x, layer):
    with tf.GradientTape() as tape:
        tape.watch(x)
        energy = layer(x)
    return tape.gradient(energy, x)


def rows_by_the_data(x, layer):
    keep = keras.ops.reshape(x, (-1, 4, 3))[..., 0] > 0
    rows = tf.boolean_mask(keras.ops.reshape(x, (-1, 4, 3)), keep)
    answers = tf.scatter_nd(tf.where(keep), layer(rows), (*keras.ops.shape(keep), 3))
    return keras.ops.reshape(answers, (-1, 12))


class Tokens(layers.Layer):
    """Returns several rows per example."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(3, 3), initializer="normal", name="kernel")

    def call(self, inputs):
        return keras.ops.tanh(keras.ops.matmul(keras.ops.reshape(inputs, (-1, 3)), self.kernel))


class Beside(layers.Layer):
    """Returns a tensor, and something more."""

    def __init__(self, beside):
        super().__init__()
        self.beside = beside

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], shape[-1]), initializer="normal")

    def call(self, inputs):
        z = keras.ops.tanh(keras.ops.matmul(inputs, self.kernel))
        return z, self.beside(z, self.kernel)


class Complex(Beside):
    def call(self, inputs):
        z = keras.ops.matmul(inputs, self.kernel)
        return tf.complex(z, 2 * z * z)


class Sparse(layers.Layer):
    def build(self, shape):
        self.kernel = self.add_weight(shape=(12, 12), initializer="normal")

    def call(self, inputs, dense):
        return tf.tanh(tf.sparse.sparse_dense_matmul(inputs, self.kernel)) * dense


def around(function, layer):
    """Return a network that uses a layer in an unusual way."""

    def network(inputs):
        return Around(function, layer())(inputs)

    network.__name__ = f"{function.__name__}_{layer.__name__}"
    return network


def first(x, layer):
    return layer(x)[0]


def as_tokens(x, layer):
    return keras.ops.reshape(layer(x), (-1, 12))


def absolute(x, layer):
    return tf.abs(layer(x)) ** 2


def sparse_and_dense(x, layer):
    return layer(tf.sparse.from_dense(x), x)


def some_columns(x, layer):
    return keras.ops.take(layer(x), [1, 5], axis=1)


def alone(x, layer):
    return layer(x)


def dense():
    return layers.Dense(12, activation="tanh")


def leaves():
    return Keeping("leaves")


def takes():
    return Keeping("takes")


def moves():
    return Keeping("moves")


def per_row():
    return layers.Dense(3)


def tokens():
    return Tokens()


def norm_beside():
    return Beside(lambda z, kernel: keras.ops.sum(kernel**2))


def none_beside():
    return Beside(lambda z, kernel: None)


def choice_beside():
    return Beside(lambda z, kernel: keras.ops.argmax(z, axis=-1))


def doubles_beside():
    return Beside(lambda z, kernel: tf.cast(z, tf.float64))


def complex_numbers():
    return Complex(None)


class ImplicitMask(layers.Layer):
    """Has an inner layer that takes its mask from the tensor itself."""

    def __init__(self):
        super().__init__()
        self.supports_masking = True
        self.inner = layers.GRU(3)

    def build(self, shape):
        self.inner.build(shape)
        self.gain = self.add_weight(shape=(3,), initializer="ones", name="gain")

    def call(self, inputs):
        return self.inner(inputs) * self.gain


class TwoAnswers(ImplicitMask):
    """Returns a masked sequence, and its mean."""

    def build(self, shape):
        self.inner = layers.Masking(0.0)

    def call(self, inputs):
        x = self.inner(inputs)
        return x, keras.ops.mean(x, axis=1)


def some_zeros(inputs):
    return layers.Reshape([4, 4])(layers.ReLU(threshold=0.8)(inputs))


def implicit_mask(inputs):
    return layers.Dense(2)(ImplicitMask()(layers.Masking(0.0)(some_zeros(inputs))))


class MaskBesideMean(keras.Model):
    def __init__(self):
        super().__init__()
        self.two, self.gru, self.out = TwoAnswers(), layers.GRU(3), layers.Dense(2)

    def call(self, inputs):
        x, mean = self.two(inputs)
        return self.out(self.gru(x))


def mask_beside_mean(inputs):
    return MaskBesideMean()(some_zeros(inputs))


NETWORKS = [
    named,
    reshaped,
    time_first,
    concatenated,
    mixing,
    mlp,
    convolutional,
    called_twice,
    sequence,
    two_outputs,
    reused_outside,
    subclassed,
    swapped,
    gated,
    masked,
    two_answers,
    implicit_mask,
    mask_beside_mean,
    around(alone, moves),
    around(leaves_an_attribute, leaves),
    around(takes_an_attribute, takes),
    around(gradient_inside, dense),
    around(rows_by_the_data, per_row),
    around(as_tokens, tokens),
    around(first, norm_beside),
    around(first, none_beside),
    around(first, choice_beside),
    around(first, doubles_beside),
    around(absolute, complex_numbers),
    around(sparse_and_dense, Sparse),
    around(some_columns, dense),
]
WITH_RECURRENT_LAYERS = (sequence, masked, implicit_mask, mask_beside_mean)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_every_network_agrees_with_the_definition(network):
    inputs = keras.Input([16])
    model = keras.Model(inputs, network(inputs))
    x = np.random.default_rng(1).normal(size=(7, 16)).astype("float32")
    slow = importance_one_by_one(model, x)
    # Recording the calls of layers must not change the outputs of the model.
    assert_same(slow, importance_by_plain_tape(model, x))
    assert_same(compute_importance(model, x, batch_size=3), slow)
    # A first batch of one example does not show how several examples are treated.
    assert_same(compute_importance(model, iter([x[:1], x[1:5], x[5:]])), slow)


@settings(max_examples=10)
@given(n=st.integers(1, 7), batch_size=st.integers(1, 8), seed=st.integers(0, 999))
def test_batches_equal_one_by_one(n, batch_size, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input([3])
    model = keras.Model(inputs, mlp(inputs))
    x = np.random.default_rng(seed).normal(size=(n, 3)).astype("float32")
    fast = compute_importance(model, x, batch_size=batch_size)
    assert_same(fast, importance_one_by_one(model, x))


def test_two_data_sets_together_are_their_weighted_mean():
    model = line(0.5, 1.0)
    a, b = column(1, 2, 3), column(-4)
    together = compute_importance(model, column(1, 2, 3, -4))
    first, second = compute_importance(model, a), compute_importance(model, b)
    for path in together:
        np.testing.assert_allclose(together[path], (3 * first[path] + second[path]) / 4, rtol=1e-6)


class Halves(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, i):
        return column(1, 2, 3, 4)[2 * i : 2 * i + 2], column(0, 0)


@pytest.mark.parametrize(
    "data",
    [
        lambda: tf.constant(column(1, 2, 3, 4)),
        lambda: tf.data.Dataset.from_tensor_slices(column(1, 2, 3, 4)).batch(3),
        lambda: tf.data.Dataset.from_tensor_slices((column(1, 2, 3, 4), [9] * 4)).batch(3),
        lambda: Halves(),
        lambda: (batch for batch in (column(1, 2, 3), column(4))),
        lambda: ((batch, batch * 0) for batch in (column(1), column(2, 3, 4))),
    ],
    ids=["tensor", "dataset", "labelled_dataset", "pydataset", "generator", "labelled_generator"],
)
def test_all_kinds_of_data_give_the_same(data):
    # |2x²| over x = 1 … 4 is 2 (1 + 4 + 9 + 16) / 4 = 15.
    assert_close(compute_importance(line(1.0, 0.0), data()), kernel=[[15.0]], bias=[5.0])


def test_several_inputs_by_name():
    a, b = keras.Input([1], name="a"), keras.Input([1], name="b")
    total = layers.Dense(1, name="line")(layers.Add()([a, b]))
    model = keras.Model({"a": a, "b": b}, total)
    set_weights(model, [[1.0]], [0.0])
    omega = compute_importance(model, {"a": column(1, 0), "b": column(0, -1)})
    assert_close(omega, kernel=[[2.0]], bias=[2.0])


def test_endless_data_are_refused_without_a_limit():
    endless = tf.data.Dataset.from_tensor_slices(column(1, 2)).batch(2).repeat()
    with pytest.raises(ValueError, match="Received: a dataset that repeats for ever"):
        compute_importance(line(1.0, 0.0), endless)
    omega = compute_importance(line(1.0, 0.0), endless, max_examples=4)
    assert_close(omega, kernel=[[5.0]], bias=[3.0])


@pytest.mark.parametrize("data", [5, None, "hello", (column(1), column(2))], ids=str)
@BOTH
def test_data_of_another_kind_are_refused(measure, data):
    with pytest.raises(ValueError, match="Expected an array.*Received: (int|NoneType|str|tuple)"):
        measure(line(1.0, 0.0), data)


@pytest.mark.parametrize(
    "data",
    [
        tf.ragged.constant([[1.0], [1.0, 2.0]]),
        tf.sparse.from_dense(column(1)),
        memoryview(column(1)),
        keras.KerasTensor([None, 1]),
        np.float32,
        b"12",
    ],
    ids=lambda data: type(data).__name__,
)
@pytest.mark.parametrize("listed", [False, True])
@BOTH
def test_what_is_no_array_is_refused_alone_and_in_a_list(measure, data, listed):
    name = type(data).__name__
    with pytest.raises(
        ValueError, match=f"Expected an array.*Received: .*{name}.*asarray"
    ) as raised:
        measure(line(1.0, 0.0), [data] if listed else data)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("data", [np.float32(1), np.array(1.0), tf.constant(1.0)], ids=repr)
@BOTH
def test_a_single_number_is_refused(measure, data):
    with pytest.raises(ValueError, match=r"Expected arrays .N, .*Received: a single number"):
        measure(line(1.0, 0.0), data)


@BOTH
def test_a_variable_is_an_array(measure):
    assert_close(measure(line(1.0, 0.0), tf.Variable(column(1, -1))), kernel=[[2.0]], bias=[2.0])


@BOTH
def test_complex_inputs_are_refused_where_the_model_would_drop_a_part(measure):
    for data in (column(1, 2) * 1j, iter([column(1), column(1) * 1j])):
        with pytest.raises(ValueError, match=r"Expected real inputs.*complex64 in batch [01] "):
            measure(line(1.0, 0.0), data)
    inputs = keras.Input([1], dtype="complex64")
    model = keras.Model(inputs, layers.Dense(1)(keras.ops.imag(inputs)))
    set_weights(model, [[1.0]], [0.0])
    assert_close(measure(model, column(1, -1) * 1j), kernel=[[2.0]], bias=[2.0])


@BOTH
def test_a_dataset_that_fails_is_named_by_batch(measure):
    def inverse(x):
        return tf.debugging.check_numerics(1 / x, "an inverse")

    data = tf.data.Dataset.from_tensor_slices(column(1, 2, 3, 0)).map(inverse).batch(2)
    with pytest.raises(
        ValueError, match=r"batch 1 \(counted from 0\).*TensorFlow said: an inv"
    ) as e:
        measure(line(1.0, 0.0), data)
    assert "\n" not in str(e.value)
    assert "{{" not in str(e.value)
    assert isinstance(e.value.__cause__, tf.errors.InvalidArgumentError)


@pytest.mark.parametrize(
    ("result", "word"), [("x", "str"), (5.0, "float"), (column(1), "ndarray"), (object(), "object")]
)
@BOTH
def test_an_output_function_that_returns_no_tensor_is_refused(measure, result, word):
    with pytest.raises(ValueError, match=f"Expected .*`output`.* tensors.*Received: .*{word}"):
        measure(line(1.0, 0.0), column(1), output=lambda y: result)
    with pytest.raises(ValueError, match="Expected .*`output`.* tensors.*Received: .*string"):
        measure(line(1.0, 0.0), column(1), output=lambda y: tf.strings.as_string(y))


def test_a_progress_function_that_cannot_be_called_is_refused():
    with pytest.raises(ValueError, match="Expected on_progress to be a function.*Received: 3"):
        compute_importance(line(1.0, 0.0), column(1), on_progress=3)


@BOTH
def test_losses_and_variables_of_layers_are_left_as_they_were(measure):
    class Counting(layers.Layer):
        """Counts its calls, as a layer updates a running quantile or a codebook."""

        def build(self, shape):
            self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, inputs):
            self.calls.assign_add(1.0)
            return inputs

    inputs = keras.Input([3])
    counting = Counting()
    hidden = layers.Dense(2, activity_regularizer="l2")(counting(inputs))
    model = keras.Model(inputs, hidden)
    model(np.ones([2, 3]))
    before = [float(loss) for loss in model.losses]
    calls = float(counting.calls)
    measure(model, np.ones([4, 3]))
    assert [float(loss) for loss in model.losses] == before
    assert before[0] > 0
    assert float(counting.calls) == calls


@pytest.mark.parametrize("output", ["logits", "layers"])
@BOTH
def test_a_call_that_is_a_tf_function_keeps_no_trace_of_the_measurement(measure, output):
    class Compiled(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner, self.out = layers.Dense(4), layers.Dense(2, activation="softmax")

        @tf.function
        def call(self, inputs):
            return self.out(self.inner(inputs))

    keras.utils.set_random_seed(0)
    model, plain = Compiled(), keras.Sequential([layers.Dense(4), layers.Dense(2, "softmax")])
    x = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    model(x[:2])
    plain(x[:2])
    plain.set_weights(model.get_weights())
    found, expected = measure(model, x, output=output), measure(plain, x, output=output)
    for one, other in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4)
    # With a trace of the detached inputs the first layer would not learn.
    before = model.inner.kernel.numpy()
    model.compile("sgd", "mse")
    model.fit(x, np.zeros([6, 2]), verbose=0)
    assert np.abs(model.inner.kernel.numpy() - before).max() > 0


def test_sequences_of_many_lengths_are_not_traced_one_by_one():
    traces = []

    class Counted(layers.Layer):
        def call(self, inputs):
            traces.append(inputs.shape)
            return inputs

    inputs = keras.Input([None, 2])
    x = Counted()(layers.Dense(3, activation="relu")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    rng = np.random.default_rng(0)
    data = [rng.normal(size=(3, length, 2)).astype("float32") for length in (4, 5, 6, 7, 9)]
    traces.clear()
    found = compute_importance(model, iter(data))
    assert len(traces) == 4  # tried and traced with the first length, and with any
    slow = [importance_one_by_one(model, batch) for batch in data]
    assert_same(found, {path: sum(part[path] for part in slow) / 5 for path in found})


def test_images_of_several_sizes_are_padded_each_by_its_own():
    inputs = keras.Input([None, None, 2])
    x = layers.Conv2D(3, 3, strides=2, padding="same", activation="tanh")(inputs)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x))
    rng = np.random.default_rng(0)
    data = [rng.normal(size=(2, *size, 2)).astype("float32") for size in ([5, 5], [6, 7], [4, 4])]
    slow = importance_one_by_one(model, iter(data))
    assert_same(compute_importance(model, iter(data)), slow)


def test_equal_examples_do_not_hide_that_their_order_changes():
    inputs = keras.Input([16])
    model = keras.Model(inputs, swapped(inputs))
    x = np.random.default_rng(1).normal(size=(7, 16)).astype("float32")
    x[1] = x[0]
    assert_same(compute_importance(model, x), importance_one_by_one(model, x))


def test_outputs_of_several_kinds():
    keras.backend.set_floatx("float32")
    inputs = keras.Input([2])
    single = layers.Dense(1, name="single")(inputs)
    double = layers.Dense(1, dtype="float64", name="double")(inputs)
    model = keras.Model(inputs, [single, double])
    x = np.random.default_rng(1).normal(size=(4, 2)).astype("float32")
    assert_same(compute_importance(model, x), importance_one_by_one(model, x))
    with pytest.raises(ValueError, match="Expected at least one output tensor"):
        compute_importance(model, x, output=lambda outputs: [])


def test_a_model_that_runs_eagerly(caplog):
    class Branching(layers.Dense):
        """Needs the values of its inputs, which a graph does not have."""

        def call(self, inputs):
            return super().call(inputs if inputs.numpy().sum() > 0 else -3 * inputs)

    model = keras.Sequential([keras.Input([2]), Branching(2)])
    model.compile(run_eagerly=True)
    x = np.random.default_rng(0).normal(size=(5, 2)).astype("float32")
    with caplog.at_level("INFO", logger="keras_mas"):
        assert_same(compute_importance(model, x, batch_size=2), importance_one_by_one(model, x))
    assert "example by example in the whole model, eagerly" in caplog.text


def test_the_model_is_left_as_it_was():
    inputs = keras.Input([16])
    model = keras.Model(inputs, convolutional(inputs))
    x = np.random.default_rng(0).normal(3.0, size=(6, 16)).astype("float32")
    attributes = [dict(vars(layer)) for layer in model.layers]
    weights, losses = model.get_weights(), list(model.losses)
    compute_importance(model, x)
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))
    for layer, before in zip(model.layers, attributes, strict=True):
        assert vars(layer).keys() == before.keys()
        assert vars(layer).get("activation") is before.get("activation")
    assert model.losses == losses


def test_frozen_weights_are_left_out():
    inputs = keras.Input([3])
    hidden = layers.Dense(4, name="frozen", trainable=False)(inputs)
    model = keras.Model(inputs, layers.Dense(2, name="free")(hidden))
    assert set(compute_importance(model, np.ones([2, 3]))) == {"free/kernel", "free/bias"}


def test_a_rule_for_an_own_layer():
    class Shift(layers.Layer):
        def build(self, shape):
            self.offset = self.add_weight(shape=(shape[-1],), name="offset")

        def call(self, inputs):
            return inputs + self.offset

    calls = []

    @rule(Shift)
    def shift(layer, inputs, delta, magnitude):
        calls.append(layer)
        return {"offset": tf.reduce_sum(tf.abs(delta), axis=0)}

    model = keras.Sequential([keras.Input([2]), Shift()])
    x = np.array([[1.0, 0.0], [-1.0, 4.0]])
    assert_same(compute_importance(model, x), importance_one_by_one(model, x))
    assert calls == model.layers

    @rule(Shift)
    def misshapen(layer, inputs, delta, magnitude):
        return {"offset": tf.abs(delta)}

    with pytest.raises(ValueError, match=r"rule of Shift to return shape \(2,\).*Received: shape"):
        compute_importance(model, x)
    assert "call" not in vars(model.layers[0])


@BOTH
def test_bad_input_is_named(measure):
    with pytest.raises(ValueError, match="Expected at least one example.*Received: none"):
        measure(line(1, 0), np.zeros([0, 1]))
    with pytest.raises(ValueError, match=r"same number of examples\. Received: \[2, 3\]"):
        measure(line(1, 0), {"a": np.zeros([2, 1]), "b": np.zeros([3, 1])})
    with pytest.raises(ValueError, match="Expected an array.*list of"):
        measure(line(1, 0), [[1.0], [2.0]])
    unbuilt = keras.Sequential([layers.Dense(1)], name="blank")
    with pytest.raises(ValueError, match="Expected a built model. Received: 'blank'"):
        measure(unbuilt, column(1))
    frozen = line(1, 0)
    frozen.trainable = False
    with pytest.raises(ValueError, match="trainable weights.*with none"):
        measure(frozen, column(1))


def test_data_that_the_model_does_not_take():
    inputs = keras.Input([3])
    model = keras.Model(inputs, layers.Dense(2)(inputs), name="net")
    weights = model.get_weights()
    words = np.array([["a", "b", "c"]])
    with pytest.raises(ValueError, match=r"'net' can take.*\(1, 3\) string in batch 0 \(counted"):
        compute_importance(model, words)
    with pytest.raises(ValueError, match="arrays of numbers.*ndarray of dtype object"):
        compute_importance(model, np.array([[1, "b", None]], dtype=object))
    with pytest.raises(
        ValueError, match="Expected arrays .N, .... of examples. Received: a single"
    ):
        compute_importance(model, iter([1, 2]))
    for other in (np.ones([2, 3], "float32"), {"a": np.ones([2, 3])}):
        with pytest.raises(ValueError, match=r"every batch of one structure.*and then.* batch 1 "):
            compute_importance(model, iter([np.ones([2, 3]), other]))
    # The second batch differs in its features, not its length.
    with pytest.raises(ValueError, match=r"batch 1 .* Keras said: .*=\(None, 2\)\.") as raised:
        compute_importance(model, iter([np.ones([2, 3]), np.ones([2, 2])]))
    assert "\n" not in str(raised.value)
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))
    assert "call" not in vars(model)


def _broken_after_one_batch():
    yield np.ones([2, 3], "float32")
    raise OSError("cannot decode 'bird.jpg'")


def test_what_ends_the_data_is_said_with_its_batch():
    model = keras.Sequential([keras.Input([3]), layers.Dense(2)])
    of_tensorflow = tf.data.Dataset.from_generator(
        _broken_after_one_batch, output_signature=tf.TensorSpec([None, 3], tf.float32)
    )
    with pytest.raises(ValueError, match=r"batch 1 .* said: OSError: cannot decode 'bird.jpg'\. "):
        compute_importance(model, of_tensorflow)
    with pytest.raises(OSError, match="^cannot decode 'bird.jpg'\n.* batch 1 .counted from 0"):
        compute_importance(model, _broken_after_one_batch())


@BOTH
def test_a_python_branch_on_a_tensor_needs_eager_mode(measure):
    class Branching(layers.Layer):
        def call(self, inputs):
            return inputs if keras.ops.sum(inputs) > 0 else -inputs

    class Outer(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.branching = layers.Dense(2), Branching()

        def call(self, inputs):
            return self.branching(self.dense(inputs))

    model = Outer()
    model(np.ones([1, 2]))
    if measure is importance_one_by_one:  # runs eagerly
        assert len(measure(model, np.ones([2, 2]))) == 2
        return
    with pytest.raises(ValueError, match=r"compile\(run_eagerly=True\)"):
        measure(model, np.ones([2, 2]))


@BOTH
def test_infinite_outputs_are_named_by_batch(measure):
    with pytest.raises(ValueError, match=r"outputs.*'sequential'.*batch 1 \(counted from 0\)"):
        measure(line(1, 0), iter([column(1), column(np.nan)]))
    # A ReLU that turns NaN into 0 hides it from the output, but not from the importance.
    inputs = keras.Input([1])
    hiding = keras.Model(inputs, layers.Dense(1)(layers.Dense(2, activation="relu")(inputs)))
    with pytest.raises(ValueError, match="batch 0"):
        measure(hiding, column(np.nan))


def tower(name):
    inputs = keras.Input([3])
    hidden = layers.Dense(4, activation="tanh", name="hidden")(inputs)
    return keras.Model(inputs, layers.BatchNormalization(name="norm")(hidden), name=name)


@pytest.mark.parametrize(
    "network",
    [tower, lambda name: keras.Sequential(tower(name).layers)],
    ids=["functional", "sequential"],
)
def test_two_towers_with_equal_inner_paths(network, caplog):
    inputs = keras.Input([3])
    towers = [network("left"), network("right")]
    model = keras.Model(inputs, layers.Dense(2)(layers.Concatenate()([t(inputs) for t in towers])))
    paths = [[weight.path for weight in tower.trainable_weights] for tower in towers]
    assert paths[0] == paths[1]
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    with caplog.at_level("INFO", logger="keras_mas"):
        found, expected = compute_importance(model, x), importance_by_plain_tape(model, x)
    assert len(found) == 10
    assert "example by example" not in caplog.text
    assert_same(found, expected)
    assert_same(importance_one_by_one(model, x), expected)
    left, right = (omega for name, omega in found.items() if name.endswith("hidden/kernel"))
    assert not np.allclose(left, right, rtol=0.1)


def classifier(*end):
    inputs = keras.Input([3])
    x = layers.Dense(4, activation="tanh", name="hidden")(inputs)
    for layer in end:
        x = layer(x)
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    "end",
    [
        lambda: [layers.Dense(2, activation="softmax", name="head")],
        lambda: [layers.Dense(2, activation="sigmoid", name="head")],
        lambda: [layers.Dense(2, name="head"), layers.Softmax()],
        lambda: [layers.Dense(2, name="head"), layers.Activation("softmax")],
        lambda: [layers.Dense(2, activation=keras.ops.softmax, name="head")],
        lambda: [layers.Dense(2, activation=tf.nn.sigmoid, name="head")],
        lambda: [layers.Dense(2, name="head"), layers.Activation(tf.nn.softmax)],
        lambda: [layers.Dense(2, name="head"), keras.ops.softmax],
        lambda: [layers.Dense(2, name="head"), keras.ops.sigmoid],
    ],
)
@BOTH
def test_the_learned_function_is_the_logits(measure, end):
    model, logits = classifier(*end()), classifier(layers.Dense(2, name="head"))
    logits.set_weights(model.get_weights())
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    assert_same(measure(model, x), measure(logits, x))
    # As it is, the last offset would matter much less: probabilities add up to 1.
    raw = measure(model, x, output="output")
    assert not np.allclose(raw["head/bias"], measure(model, x)["head/bias"], rtol=0.1)


@BOTH
def test_another_output(measure):
    model = classifier(layers.Dense(2, name="head"))
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    hidden = keras.Model(model.input, model.get_layer("hidden").output)
    of_layer = measure(model, x, output="hidden")
    assert_same(
        {path: of_layer[path] for path in ("hidden/kernel", "hidden/bias")}, measure(hidden, x)
    )
    assert (of_layer["head/kernel"] == 0).all()
    first = measure(model, x, output=lambda logits: logits[:, :1])
    assert (first["head/kernel"][:, 1] == 0).all()
    assert (first["head/kernel"][:, 0] > 0).all()
    with pytest.raises(ValueError, match="the name of a layer: .*hidden, head.*Received: 'haed'"):
        measure(model, x, output="haed")


@BOTH
def test_each_layer_as_a_function_of_its_own(measure):
    # The network of `test_importance_of_two_relu_layers`; a is the input of a layer, y its output.
    # x = (1,  1): y = (1, 1), F = 3;   x = (1, −1): y = (1, 0), F = 2.
    # First layer, Ω_ij = mean of 2 |a_i| y_j: first column (2 + 2) / 2, second (2 + 0) / 2.
    # Second layer: mean of 2 |y_i| F: (6 + 4) / 2 and (6 + 0) / 2.
    # If gradients of later layers flowed in, the first layer would have those of ‖F‖² too.
    model = keras.Sequential(
        [
            keras.Input([2]),
            layers.Dense(2, name="in"),
            layers.ReLU(),
            layers.Dense(1, activation="sigmoid", name="out"),
        ],
        name="net",
    )
    set_weights(model, [[1, -1], [0, 2]], [0, 0], [[2], [1]], [0])
    omega = measure(model, np.array([[1.0, 1.0], [1.0, -1.0]], "float32"), output="layers")
    np.testing.assert_allclose(omega["net/in/kernel"], [[2, 1], [2, 1]])
    np.testing.assert_allclose(omega["net/in/bias"], [2, 1])
    np.testing.assert_allclose(omega["net/out/kernel"], [[5], [3]])
    np.testing.assert_allclose(omega["net/out/bias"], [5])


@pytest.mark.parametrize(
    "network",
    [slow(each) if each in WITH_RECURRENT_LAYERS else each for each in NETWORKS],
    ids=lambda network: network.__name__,
)
def test_every_network_agrees_layer_by_layer(network):
    inputs = keras.Input([16])
    model = keras.Model(inputs, network(inputs))
    x = np.random.default_rng(1).normal(size=(7, 16)).astype("float32")
    if "gradient_inside" in network.__name__:
        for measure in (compute_importance, importance_one_by_one):
            with pytest.raises(ValueError, match="'functional.*takes a gradient in its `call`"):
                measure(model, x, output="layers")
        return
    slow = importance_one_by_one(model, x, output="layers")
    assert_same(compute_importance(model, x, batch_size=3, output="layers"), slow)


def test_layer_by_layer_each_layer_is_measured_as_a_model_of_its_own():
    inputs = keras.Input([6, 6, 2])
    x = layers.Conv2D(3, 3, activation="relu", name="first")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    trunk = keras.Model(inputs, layers.Flatten()(x), name="trunk")
    model = keras.Model(inputs, layers.Dense(3, name="last")(trunk(inputs)))
    x = np.random.default_rng(0).normal(size=(5, 6, 6, 2)).astype("float32")
    omega = compute_importance(model, x, output="layers")
    for start, end, weights in [("first", "first", 2), ("norm", "relu", 2)]:
        came = keras.Model(trunk.input, trunk.get_layer(start).input).predict(x, verbose=0)
        alone = keras.Model(trunk.get_layer(start).input, trunk.get_layer(end).output)
        expected = compute_importance(alone, came)
        assert len(expected) == weights
        assert_same({path: omega[path] for path in expected}, expected)


def test_layer_by_layer_a_weight_outside_all_layers_is_refused():
    class Scaled(keras.Model):
        def build(self, shape):
            self.scale = self.add_weight(shape=(1,), name="scale")

        def call(self, inputs):
            return self.scale * inputs

    model = Scaled(name="scaled")
    model(np.ones([1, 2]))
    with pytest.raises(ValueError, match="every weight in a layer.*Received: '.*scale'"):
        compute_importance(model, np.ones([1, 2]), output="layers")


def test_shards_add_up_in_any_order(tmp_path):
    inputs = keras.Input([16])
    model = keras.Model(inputs, mlp(inputs))
    x = np.random.default_rng(0).normal(size=(9, 16)).astype("float32")
    for name, rows in [("a", x[:2]), ("b", x[2:7]), ("c", x[7:])]:
        measure_sums(model, rows).save(tmp_path / f"{name}.npz")
    a, b, c = (ImportanceSums.load(tmp_path / f"{name}.npz") for name in "abc")
    assert (a + b + c).examples == 9
    assert_same((c + (a + b)).mean(), compute_importance(model, x))
    assert_same((b + c + a).mean(), compute_importance(model, x))
    # The mean of the shards' means would weigh a like b.
    with pytest.raises(ValueError, match=r"one model.*differ in '.*', of shape"):
        a + measure_sums(line(1, 0), column(1))
    for sums, examples in [(-1.0, 1), (np.nan, 1), (1.0, 0)]:
        with pytest.raises(ValueError, match="Expected (finite sums|at least one example)"):
            ImportanceSums({"w": np.array(sums)}, examples)
    np.savez(tmp_path / "other.npz", x=x)
    with pytest.raises(ValueError, match="Expected sums written by `ImportanceSums.save`"):
        ImportanceSums.load(tmp_path / "other.npz")


@pytest.mark.parametrize("slice_bytes", [1, 2000, 10**9])
def test_slices_change_memory_and_not_the_result(slice_bytes):
    inputs = keras.Input([16])
    model = keras.Model(inputs, convolutional(inputs))
    x = np.random.default_rng(0).normal(size=(7, 16)).astype("float32")
    sliced = compute_importance(model, x, slice_bytes=slice_bytes)
    assert_same(sliced, importance_one_by_one(model, x))


def test_a_progress_bar_on_request(capsys):
    compute_importance(line(1, 0), column(1, 2, 3), batch_size=1, verbose=1)
    assert "3/3" in capsys.readouterr().out
    compute_importance(line(1, 0), iter([column(1, 2), column(3)]), verbose=1)
    said = capsys.readouterr().out
    assert "3/Unknown" in said
    assert said.endswith("\n")
    compute_importance(line(1, 0), column(1, 2, 3), batch_size=1)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match='verbose to be "auto", 0 or 1. Received: 2'):
        compute_importance(line(1, 0), column(1), verbose=2)


@pytest.mark.parametrize(("seconds", "is_shown"), [(1.9, False), (2.1, True)])
def test_on_a_terminal_a_bar_appears_after_two_seconds(seconds, is_shown, monkeypatch, capsys):
    times = iter([0.0, *[seconds] * 9])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True, raising=False)
    compute_importance(line(1, 0), column(1, 2, 3), batch_size=2)
    assert ("3/3" in capsys.readouterr().out) == is_shown


ONES = tf.data.Dataset.from_tensor_slices(column(1, 2, 3, 4, 5))


@pytest.mark.parametrize(
    ("data", "max_examples", "reports"),
    [
        (lambda: column(1, 2, 3, 4, 5), None, [(2, 5), (4, 5), (5, 5)]),
        (lambda: column(1, 2, 3, 4, 5), 3, [(2, 3), (3, 3)]),
        (lambda: ONES.batch(2, drop_remainder=True), None, [(2, 4), (4, 4)]),
        (lambda: ONES.batch(2), None, [(2, None), (4, None), (5, None)]),
        (lambda: ONES.batch(2).repeat(), 3, [(2, 3), (3, 3)]),
        (lambda: Halves(), None, [(2, None), (4, None)]),
        (lambda: iter([column(1), column(2)]), None, [(1, None), (2, None)]),
    ],
)
@pytest.mark.parametrize("measure", [compute_importance, measure_sums, compute_fisher])
def test_progress_is_reported_with_the_total_where_it_is_known(
    measure, data, max_examples, reports
):
    found = []
    measure(
        line(1.0, 0.0),
        data(),
        batch_size=2,
        max_examples=max_examples,
        on_progress=lambda examples, total: found.append((examples, total)),
    )
    assert found == reports


@pytest.mark.parametrize("number", [np.int64(2), np.uint8(2), np.array(2)], ids=repr)
def test_integers_of_numpy_are_accepted(number):
    omega = compute_importance(
        line(1.0, 0.0), column(1, 2, 3), batch_size=number, max_examples=number
    )
    assert_close(omega, kernel=[[5.0]], bias=[3.0])


@pytest.mark.parametrize("number", [0, -1, 2.0, np.float32(2), True, np.True_, "2"], ids=repr)
@pytest.mark.parametrize("name", ["batch_size", "max_examples", "slice_bytes"])
def test_other_numbers_are_refused(name, number):
    message = f"Expected {name} to be an integer of at least 1. Received: {re.escape(repr(number))}"
    with pytest.raises(ValueError, match=message):
        compute_importance(line(1.0, 0.0), column(1, 2, 3), **{name: number})


def recurrent(layer, batch_size=None):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(batch_shape=(batch_size, 4, 3))
    return keras.Model(inputs, layers.Dense(2)(layer(inputs)))


@pytest.mark.parametrize(
    "layer",
    [
        lambda **options: layers.LSTM(3, **options),
        lambda **options: layers.GRU(3, unroll=True, **options),
        lambda **options: layers.Bidirectional(layers.SimpleRNN(3, **options)),
        lambda **options: layers.RNN(layers.LSTMCell(3), **options),
    ],
    ids=["lstm", "unrolled_gru", "bidirectional", "cell"],
)
@pytest.mark.parametrize("batch_size", slow_but(4, [1, 4]))
def test_a_stateful_layer_starts_every_example_anew_and_keeps_its_state(layer, batch_size):
    stateful = recurrent(layer(stateful=True), batch_size)
    stateless = recurrent(layer())
    stateless.set_weights(stateful.get_weights()[: len(stateless.weights)])
    for one, other in zip(stateful.trainable_weights, stateless.trainable_weights, strict=True):
        other.assign(one)
    x = np.random.default_rng(0).normal(size=(8, 4, 3)).astype("float32")
    stateful(x[:batch_size])
    states = [weight.numpy() for weight in stateful.non_trainable_variables]
    assert any(state.any() for state in states)
    expected = list(importance_by_plain_tape(stateless, x).values())
    for measure in (compute_importance, importance_one_by_one):
        for one, other in zip(measure(stateful, x).values(), expected, strict=True):
            np.testing.assert_allclose(one, other, 1e-4, 1e-5 * other.max())
    for before, weight in zip(states, stateful.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(weight.numpy(), before)
    inner = [layer for layer in stateful._flatten_layers() if isinstance(layer, layers.RNN)]
    assert inner
    assert all(layer.stateful for layer in inner)


class Positions(keras.Model):
    """Adds an embedding of all positions, which is the same for every example."""

    def __init__(self):
        super().__init__()
        self.positions, self.out = layers.Embedding(3, 2, name="positions"), layers.Dense(1)

    def call(self, inputs):
        return self.out(inputs + self.positions(keras.ops.arange(3)))


@BOTH
def test_an_embedding_of_positions_is_a_function_of_its_own(measure):
    # ‖E‖² is what that layer outputs for every example, and its gradient 2E.
    model = Positions()
    x = np.random.default_rng(0).normal(size=(6, 3, 2)).astype("float32")
    model(x)
    embeddings = model.positions.embeddings
    omega = measure(model, x, output="layers")
    np.testing.assert_allclose(omega[embeddings.path], 2 * np.abs(embeddings.numpy()), rtol=1e-6)


@BOTH
def test_several_rows_per_example_are_one_function(measure):
    # A Dense layer on rows [N·4, 4] has the importance of one on positions [N, 4, 4].
    inputs = keras.Input([16])
    rows = keras.Model(inputs, reshaped(inputs))
    positions = keras.Sequential([keras.Input([4, 4]), layers.Dense(3)])
    positions.set_weights(rows.get_weights())
    x = np.random.default_rng(1).normal(size=(7, 16)).astype("float32")
    found = measure(rows, x, output="layers")
    expected = importance_by_plain_tape(positions, x.reshape(7, 4, 4))
    for one, other in zip(found.values(), expected.values(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


@BOTH
def test_weights_in_half_precision_are_refused(measure):
    model = keras.Sequential([keras.Input([2]), layers.Dense(1, dtype="float16", name="half")])
    with pytest.raises(ValueError, match="Received: '.*half/kernel' in float16.*'mixed_float16'"):
        measure(model, np.ones([2, 2], "float16"))


@pytest.mark.parametrize("eagerly", [False, True])
@BOTH
def test_nothing_that_a_call_stores_is_left_in_the_model(measure, eagerly):
    class Storing(layers.Layer):
        """Stores in attributes, containers, variables, and draws from a seed."""

        def __init__(self):
            super().__init__()
            self.last, self.every = None, []
            self.by_name, self.seen = {"none": 0}, {"nothing"}
            self.count = tf.Variable(1.0)
            self.seeds = keras.random.SeedGenerator(0)

        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

        def call(self, inputs):
            self.last = self.new = inputs * self.scale
            self.every.append(self.last)
            self.by_name["last"] = self.last
            self.seen.add("something")
            self.count.assign_add(1.0)
            return self.last + 0 * keras.random.normal([1], seed=self.seeds)

    model = keras.Sequential([keras.Input([2]), Storing(), layers.Dense(1)])
    model.compile(run_eagerly=eagerly)
    x = np.ones([3, 2], "float32")
    model(x[:1])
    layer = model.layers[0]
    stored = layer.last, layer.new, list(layer.every), dict(layer.by_name), float(layer.count)
    seed = layer.seeds.state.numpy()
    measure(model, x)
    assert layer.last is stored[0]
    assert layer.new is stored[1]
    assert list(map(id, layer.every)) == list(map(id, stored[2]))
    assert layer.by_name.keys() == stored[3].keys()
    assert layer.by_name["last"] is stored[3]["last"]
    assert float(layer.count) == stored[4]
    np.testing.assert_array_equal(layer.seeds.state.numpy(), seed)


def test_max_examples_is_exact_for_every_batch_size():
    model, x = line(1.0, 0.0), column(1, 2, 3, 4)
    for batch_size in (1, 2, 3, 9):
        omega = compute_importance(model, x, batch_size=batch_size, max_examples=3)
        assert_close(omega, kernel=[[28 / 3]], bias=[4.0])
    with pytest.raises(ValueError, match="max_examples to be an integer of at least 1"):
        compute_importance(model, x, max_examples=0)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_measured_in_full_precision(policy):
    x = np.random.default_rng(0).normal(size=(6, 16)).astype("float32") * 500
    keras.mixed_precision.set_global_policy(policy)
    try:
        inputs = keras.Input([16])
        half = keras.Model(inputs, convolutional(inputs))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    inputs = keras.Input([16])
    full = keras.Model(inputs, convolutional(inputs))
    full.set_weights(half.get_weights())
    omega, expected = compute_importance(half, x), compute_importance(full, x)
    # ‖F‖² is beyond 65,504, where half precision ends.
    assert max(values.max() for values in expected.values()) > 1e5
    for found, wanted in zip(omega.values(), expected.values(), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * wanted.max())
    assert half.layers[-1].compute_dtype == policy.removeprefix("mixed_")


@pytest.mark.parametrize(
    ("network", "where"),
    [
        (called_twice, "dense"),
        (gated, "gate"),
        (masked, "gru"),
        (two_answers, "split"),
        (swapped, "swapped"),
        (mixing, "the whole model"),
    ],
)
def test_fallbacks_are_logged(network, where, caplog):
    inputs = keras.Input([16])
    model = keras.Model(inputs, network(inputs))
    x = np.random.default_rng(0).normal(size=(2, 16)).astype("float32")
    with caplog.at_level("INFO", logger="keras_mas"):
        compute_importance(model, x)
    assert re.search(f"example by example in {where}", caplog.text)


def test_an_unused_weight_has_no_importance():
    class Idle(layers.Layer):
        def build(self, shape):
            self.idle = self.add_weight(shape=(3,), name="idle")

        def call(self, inputs):
            return inputs

    model = keras.Sequential([keras.Input([2]), Idle(), layers.Dense(1)])
    omega = compute_importance(model, np.ones([2, 2]))
    assert [values.tolist() for path, values in omega.items() if "idle" in path] == [[0, 0, 0]]


def test_a_mask_is_not_left_on_the_data():
    class Marking(layers.Layer):
        """Returns its inputs themselves, with a mask."""

        def call(self, inputs):
            return inputs

        def compute_mask(self, inputs, mask=None):
            return inputs[..., 0] > 0

    model = keras.Sequential([keras.Input([4, 3]), Marking(), layers.GRU(2)])
    model.compile(run_eagerly=True)
    x = tf.random.normal([2, 4, 3])
    compute_importance(model, iter([x]))
    assert not hasattr(x, "_keras_mask")
