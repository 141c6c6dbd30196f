"""Every Keras layer that owns trainable weights gives the definition's importance.

`CASES` has at least one configuration per class; `test_no_layer_is_missing` fails when Keras has a
class with trainable weights that is not here.
"""

import inspect
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import slow
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers

from keras_mas import compute_importance, importance_one_by_one
from keras_mas.importance.rules import convolution

IMAGE, LINE, VOLUME, VECTOR, WORDS = (7, 6, 4), (9, 4), (4, 5, 4, 2), (6,), (5,)

# class: (input shape, options that are drawn one by one)
CASES = {
    layers.Dense: [
        (VECTOR, dict(units=3)),
        (VECTOR, dict(units=3, activation="tanh", use_bias=False)),
        (LINE, dict(units=3, activation="relu")),
        (IMAGE, dict(units=2)),
    ],
    layers.EinsumDense: [
        (VECTOR, dict(equation="ab,bc->ac", output_shape=3, bias_axes="c")),
        (LINE, dict(equation="abc,cd->abd", output_shape=(9, 3), bias_axes="d")),
        (LINE, dict(equation="abc,cde->abde", output_shape=(9, 3, 2), bias_axes="de")),
        (LINE, dict(equation="...x,xy->...y", output_shape=3, bias_axes="y", activation="relu")),
        (LINE, dict(equation="abc,bd->adc", output_shape=(3, 4))),
        (LINE, dict(equation="abc,bcd->ad", output_shape=3, bias_axes="d")),
        (LINE, dict(equation="abc,bc->abc", output_shape=LINE, bias_axes="bc")),
    ],
    layers.Conv1D: [
        (LINE, dict(filters=3, kernel_size=3)),
        (LINE, dict(filters=4, kernel_size=3, padding="same", strides=2, activation="relu")),
        (LINE, dict(filters=4, kernel_size=2, padding="causal", dilation_rate=2)),
        (LINE, dict(filters=6, kernel_size=3, groups=2, use_bias=False)),
    ],
    layers.Conv2D: [
        (IMAGE, dict(filters=3, kernel_size=3)),
        (IMAGE, dict(filters=3, kernel_size=1, strides=2, activation="gelu")),
        (IMAGE, dict(filters=3, kernel_size=(3, 2), padding="same", strides=2)),
        (IMAGE, dict(filters=3, kernel_size=4, padding="same", strides=(3, 2))),
        (IMAGE, dict(filters=3, kernel_size=2, dilation_rate=(2, 3), use_bias=False)),
        (IMAGE, dict(filters=4, kernel_size=3, dilation_rate=2, padding="same")),
        (IMAGE, dict(filters=6, kernel_size=3, groups=2, padding="same", activation="relu")),
        (IMAGE, dict(filters=4, kernel_size=2, groups=4, strides=2)),
        (IMAGE, dict(filters=2, kernel_size=2, data_format="channels_first", padding="same")),
    ],
    layers.Conv3D: [
        (VOLUME, dict(filters=3, kernel_size=2)),
        (VOLUME, dict(filters=2, kernel_size=(2, 3, 1), padding="same", strides=(1, 2, 2))),
        (VOLUME, dict(filters=4, kernel_size=2, groups=2, use_bias=False)),
    ],
    layers.Conv1DTranspose: [
        (LINE, dict(filters=3, kernel_size=3)),
        (LINE, dict(filters=3, kernel_size=3, strides=2, padding="same", activation="relu")),
        (LINE, dict(filters=3, kernel_size=2, dilation_rate=2)),
    ],
    layers.Conv2DTranspose: [
        (IMAGE, dict(filters=3, kernel_size=3)),
        (IMAGE, dict(filters=3, kernel_size=(2, 3), strides=2, padding="same", use_bias=False)),
        (IMAGE, dict(filters=2, kernel_size=3, strides=2, output_padding=1)),
        (IMAGE, dict(filters=2, kernel_size=2, strides=3)),
    ],
    layers.Conv3DTranspose: [
        (VOLUME, dict(filters=3, kernel_size=2)),
        (VOLUME, dict(filters=2, kernel_size=3, strides=2, padding="same")),
    ],
    layers.DepthwiseConv1D: [
        (LINE, dict(kernel_size=3)),
        (LINE, dict(kernel_size=3, depth_multiplier=2, padding="same", activation="relu")),
        (LINE, dict(kernel_size=2, dilation_rate=2, padding="same")),
    ],
    layers.DepthwiseConv2D: [
        (IMAGE, dict(kernel_size=3)),
        (IMAGE, dict(kernel_size=3, strides=2, padding="same", depth_multiplier=2)),
        (IMAGE, dict(kernel_size=2, dilation_rate=2, use_bias=False, activation="relu")),
    ],
    layers.SeparableConv1D: [
        (LINE, dict(filters=3, kernel_size=3)),
        (LINE, dict(filters=3, kernel_size=3, depth_multiplier=2, padding="same", strides=2)),
    ],
    layers.SeparableConv2D: [
        (IMAGE, dict(filters=3, kernel_size=3, activation="relu")),
        (IMAGE, dict(filters=3, kernel_size=2, depth_multiplier=2, padding="same")),
        (IMAGE, dict(filters=3, kernel_size=2, strides=2, use_bias=False)),
    ],
    layers.Embedding: [
        (WORDS, dict(input_dim=4, output_dim=3)),
        (WORDS, dict(input_dim=11, output_dim=2, mask_zero=True)),
    ],
    layers.ReversibleEmbedding: [
        (WORDS, dict(input_dim=4, output_dim=3, tie_weights=False)),
        (WORDS, dict(input_dim=4, output_dim=3)),
    ],
    layers.BatchNormalization: [
        (VECTOR, dict()),
        (IMAGE, dict()),
        (IMAGE, dict(axis=1, scale=False)),
        (IMAGE, dict(center=False)),
    ],
    layers.LayerNormalization: [
        (VECTOR, dict()),
        (IMAGE, dict(axis=[1, 2])),
        (IMAGE, dict(axis=2)),
        (IMAGE, dict(axis=[1, -1])),
        (LINE, dict(center=False)),
        (LINE, dict(scale=False)),
    ],
    layers.GroupNormalization: [
        (IMAGE, dict(groups=2)),
        (IMAGE, dict(groups=3, axis=2, center=False)),
        (LINE, dict(groups=-1)),
    ],
    layers.RMSNormalization: [(VECTOR, dict()), (IMAGE, dict()), (IMAGE, dict(axis=[2, 3]))],
    layers.PReLU: [
        (VECTOR, dict()),
        (IMAGE, dict(shared_axes=[1, 2], alpha_initializer="normal")),
        (LINE, dict(shared_axes=[2])),
    ],
    layers.MultiHeadAttention: [
        (LINE, dict(num_heads=2, key_dim=3)),
        (LINE, dict(num_heads=1, key_dim=2, value_dim=3, output_shape=5, use_bias=False)),
    ],
    layers.GroupQueryAttention: [
        (LINE, dict(head_dim=3, num_query_heads=4, num_key_value_heads=2)),
    ],
    layers.AdditiveAttention: [(LINE, dict())],
    layers.Attention: [(LINE, dict(use_scale=True))],
    layers.SimpleRNN: [(LINE, dict(units=3)), (LINE, dict(units=3, return_sequences=True))],
    layers.LSTM: [(LINE, dict(units=3)), (LINE, dict(units=2, go_backwards=True, unroll=True))],
    layers.GRU: [(LINE, dict(units=3)), (LINE, dict(units=3, reset_after=False))],
    layers.ConvLSTM1D: [((4, 6, 2), dict(filters=2, kernel_size=3))],
    layers.ConvLSTM2D: [((3, 5, 5, 2), dict(filters=2, kernel_size=2, padding="same"))],
    layers.ConvLSTM3D: [((2, 4, 4, 4, 1), dict(filters=2, kernel_size=2))],
    layers.STFTSpectrogram: [
        ((20, 1), dict(mode="real", frame_length=6, frame_step=3, fft_length=8)),
    ],
    layers.SpectralNormalization: [(VECTOR, dict(layer=lambda: layers.Dense(3)))],
    layers.TimeDistributed: [(LINE, dict(layer=lambda: layers.Dense(3)))],
    layers.Bidirectional: [(LINE, dict(layer=lambda: layers.LSTM(2)))],
    layers.RNN: [
        (LINE, dict(cell=lambda: layers.LSTMCell(3))),
        (LINE, dict(cell=lambda: layers.StackedRNNCells([layers.GRUCell(2), layers.GRUCell(3)]))),
        (LINE, dict(cell=lambda: layers.SimpleRNNCell(2))),
    ],
}

# These have weights only as part of a class above.
THROUGH_ANOTHER = {
    layers.LSTMCell,
    layers.GRUCell,
    layers.SimpleRNNCell,
    layers.StackedRNNCells,
    layers.Wrapper,
    layers.Pipeline,
}
# These need another backend or a file.
FOREIGN = {layers.JaxLayer, layers.FlaxLayer, layers.TorchModuleWrapper, layers.TFSMLayer}

# These have weights that are never trained.
FROZEN = {layers.Normalization, layers.MelSpectrogram}

# Classes without a rule, or with weights that their rule leaves out.
BY_EXAMPLE = {
    layers.AdditiveAttention,
    layers.Attention,
    layers.SimpleRNN,
    layers.LSTM,
    layers.GRU,
    layers.ConvLSTM1D,
    layers.ConvLSTM2D,
    layers.ConvLSTM3D,
    layers.TimeDistributed,
    layers.Bidirectional,
    layers.RNN,
    layers.STFTSpectrogram,
}

ALL = [(kind, *case) for kind, cases in CASES.items() for case in cases]


def build(kind, shape, options):
    """Put a layer between two Dense layers, so that its input and δ are general."""
    keras.utils.set_random_seed(1)
    options = {key: value() if callable(value) else value for key, value in options.items()}
    inputs = keras.Input(shape)
    if issubclass(kind, layers.Embedding):
        inputs = keras.Input(shape, dtype="int32")
        x = kind(**options)(inputs)
    else:
        x = layers.Dense(shape[-1], activation="tanh", name="before")(inputs)
        layer = kind(**options)
        if kind in (layers.MultiHeadAttention, layers.GroupQueryAttention):
            x = layer(x, x)
        elif kind in (layers.Attention, layers.AdditiveAttention):
            x = layer([x, x])
        else:
            x = layer(x)
    join = layers.GlobalAveragePooling1D() if "mask_zero" in options else layers.Flatten()
    x = layers.Dense(2, name="after")(join(x))
    model = keras.Model(inputs, x)
    rng = np.random.default_rng(2)
    for weight in model.weights:  # at 0 or 1 a mistake could go unnoticed
        noise = rng.normal(size=weight.shape) * 0.3
        positive = "variance" in weight.path
        if "seed" not in weight.path:
            weight.assign(np.abs(noise) + 0.5 if positive else weight.numpy() + noise)
    return model


def examples(model, count):
    rng = np.random.default_rng(3)
    if model.input.dtype == "int32":  # negative indices count from the end
        return rng.integers(-2, 4, size=(count, *model.input_shape[1:]))
    return rng.normal(size=(count, *model.input_shape[1:]))


def skip_without_kernel(model, x):
    """Skip what TensorFlow computes on no CPU in float64, and without oneDNN not in float32."""
    try:
        model(x)
    except (tf.errors.UnimplementedError, tf.errors.InvalidArgumentError):
        pytest.skip("TensorFlow has no kernel for it on this CPU")


def assert_same(fast, slow, tolerance):
    assert fast.keys() == slow.keys()
    # A gradient that is 0 in exact arithmetic (the bias of attention's keys) is rounding in both.
    least = 1e-3 * max(values.max() for values in slow.values())
    for path in slow:
        error = np.abs(fast[path] - slow[path]).max() / max(slow[path].max(), least)
        assert error <= tolerance, f"{path}: relative error {error:.2g}"


def identify(value):
    return value.__name__ if inspect.isclass(value) else None


# Of the layers that are measured example by example, the plainest is enough for most runs.
CASES_AND_COST = [
    slow(*case) if case[0] in BY_EXAMPLE and case[0] is not layers.SimpleRNN else case
    for case in ALL
]


@pytest.mark.parametrize(("kind", "shape", "options"), CASES_AND_COST, ids=identify)
@pytest.mark.parametrize(
    ("floatx", "tolerance", "batch_sizes"),  # 3 leaves a shorter last batch, of one
    [
        ("float32", 1e-4, [3]),
        slow("float64", 1e-9, [1, 3, 4]),
    ],
)
def test_the_layer_agrees_with_the_definition(
    kind, shape, options, floatx, tolerance, batch_sizes, caplog
):
    keras.backend.set_floatx(floatx)
    model = build(kind, shape, options)
    x = examples(model, 4)
    if "data_format" in options or (kind is layers.Conv1DTranspose and "dilation_rate" in options):
        skip_without_kernel(model, x)
    slow = importance_one_by_one(model, x)
    assert any(np.abs(values).max() > 0 for values in slow.values())
    with caplog.at_level(logging.INFO, logger="keras_mas"):
        for batch_size in batch_sizes:
            assert_same(compute_importance(model, x, batch_size=batch_size), slow, tolerance)
    said = " ".join(r.getMessage() for r in caplog.records if r.name.startswith("keras_mas"))
    assert ("example by example" in said) == (kind in BY_EXAMPLE), said
    assert "whole model" not in said


RANKS = {
    1: (layers.Conv1D, layers.Conv1DTranspose, layers.DepthwiseConv1D, layers.SeparableConv1D),
    2: (layers.Conv2D, layers.Conv2DTranspose, layers.DepthwiseConv2D, layers.SeparableConv2D),
    3: (layers.Conv3D, layers.Conv3DTranspose),
}


@st.composite
def convolutions(draw):
    """Return a convolution: class, input shape, options."""
    rank = draw(st.sampled_from(list(RANKS)))
    kind = draw(st.sampled_from(RANKS[rank]))
    is_transposed, by_channel = "Transpose" in kind.__name__, "Conv" not in kind.__name__[:4]
    kernel = draw(st.tuples(*[st.integers(1, 3)] * rank))
    options = {"kernel_size": kernel, "use_bias": draw(st.booleans())}
    options["padding"] = draw(
        st.sampled_from(["valid", "same", *["causal"] * (kind is layers.Conv1D)])
    )
    # TensorFlow strides or dilates, and by channel all axes alike.
    step = draw(st.integers(1, 3)) if by_channel else draw(st.tuples(*[st.integers(1, 3)] * rank))
    options[
        draw(st.sampled_from(["strides"] if is_transposed else ["strides", "dilation_rate"]))
    ] = step
    groups = draw(st.integers(1, 2)) if kind in (layers.Conv1D, layers.Conv2D, layers.Conv3D) else 1
    if groups > 1:
        options["groups"] = groups
    if by_channel:
        options["depth_multiplier"] = draw(st.integers(1, 2))
    if "Depthwise" not in kind.__name__:
        options["filters"] = groups * draw(st.integers(1, 2))
    options["activation"] = draw(st.sampled_from([None, "relu", "tanh"]))
    sizes = [draw(st.integers((k - 1) * 3 + 1, (k - 1) * 3 + 3)) for k in kernel]
    return kind, (*sizes, groups * draw(st.integers(1, 3))), options


@st.composite
def normalizations(draw):
    """Return a normalization over one or several axes, with or without its weights."""
    shape = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
    kind = draw(
        st.sampled_from(
            [layers.BatchNormalization, layers.LayerNormalization, layers.RMSNormalization]
        )
    )
    axes = draw(st.sets(st.integers(1, len(shape)), min_size=1))
    if kind is layers.RMSNormalization:  # Keras 3.15 cannot run others
        axes = range(min(axes), len(shape) + 1)
    options = {"axis": min(axes) if kind is layers.BatchNormalization else sorted(axes)}
    if kind is not layers.RMSNormalization:
        options["center"] = draw(st.booleans())
        options["scale"] = draw(st.booleans())
    return kind, tuple(shape), options


@st.composite
def embeddings(draw):
    """Return an embedding of words that repeat within an example."""
    options = {"input_dim": draw(st.integers(4, 9)), "output_dim": draw(st.integers(1, 4))}
    return (
        layers.Embedding,
        tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=2))),
        options,
    )


@st.composite
def contractions(draw):
    """Return a Dense layer on any number of positions, or an EinsumDense of any letters."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    if draw(st.booleans()):
        options = {"units": draw(st.integers(1, 4)), "use_bias": draw(st.booleans())}
        return layers.Dense, shape, options
    # Each axis of the input is summed over, kept beside the kernel, or kept within it.
    inputs = "bcd"[: len(shape)]
    roles = draw(st.lists(st.sampled_from("sbk"), min_size=len(shape), max_size=len(shape)))
    kept = [letter for letter, role in zip(inputs, roles, strict=True) if role != "s"]
    within = [letter for letter, role in zip(inputs, roles, strict=True) if role != "b"]
    new = list("xy"[: draw(st.integers(1, 2))])
    outputs = draw(st.permutations(kept + new))
    kernel = draw(st.permutations(within + new))
    sizes = dict(zip(inputs, shape, strict=True)) | {"x": 2, "y": 3}
    options = {
        "equation": f"a{inputs},{''.join(kernel)}->a{''.join(outputs)}",
        "output_shape": tuple(sizes[letter] for letter in outputs),
        "bias_axes": "".join(sorted(draw(st.sets(st.sampled_from(outputs))))) or None,
    }
    return layers.EinsumDense, shape, options


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(
    case=st.one_of(convolutions(), normalizations(), embeddings(), contractions()),
    batch_size=st.integers(1, 5),
)
def test_any_options_agree_with_the_definition(case, batch_size):
    model = build(*case)
    x = examples(model, 5)
    fast = compute_importance(model, x, batch_size=batch_size)
    assert_same(fast, importance_one_by_one(model, x), 1e-4)


def test_no_layer_is_missing():
    known = {*CASES, *THROUGH_ANOTHER, *FOREIGN, *FROZEN}
    missing = [
        name
        for name, kind in vars(layers).items()
        if inspect.isclass(kind)
        and issubclass(kind, keras.Layer)
        and kind not in known
        and not owns_no_weights(kind)
    ]
    assert missing == []


@pytest.mark.parametrize("kind", sorted(FROZEN, key=str), ids=identify)
def test_frozen_layers_train_nothing(kind):
    layer = kind()
    layer(np.zeros([2, 4096], "float32"))
    assert layer.trainable_weights == []


def owns_no_weights(kind):
    """Return whether a class has no weights, judged by whether its source ever makes one."""
    return not any("add_weight(" in source_of(parent) for parent in kind.__mro__)


def source_of(parent):
    if parent is keras.Layer or not parent.__module__.startswith("keras"):
        return ""
    return inspect.getsource(parent)


@pytest.mark.parametrize(
    ("kind", "shape", "options"),
    [
        # Of two axes of one length, Keras 3.15 normalizes the first here and scales the second,
        (layers.RMSNormalization, (3, 3), dict(axis=[1])),
        # and adds a bias along the last axis, if that has its length, whatever axis it is of.
        (
            layers.EinsumDense,
            LINE,
            dict(equation="abc,cd->abd", output_shape=(9, 9), bias_axes="b"),
        ),
    ],
    ids=identify,
)
def test_a_weight_that_keras_applies_along_another_axis(kind, shape, options):
    model = build(kind, shape, options)
    x = examples(model, 4)
    assert_same(compute_importance(model, x), importance_one_by_one(model, x), 1e-4)


@pytest.mark.parametrize(("size", "traces"), [(1, 1), (3, 2)])
def test_kernels_of_one_offset_share_a_trace_whatever_their_channels(monkeypatch, size, traces):
    # A larger kernel of few channels takes several offsets in one product, and so another trace.
    made = []
    offsets = convolution._offsets
    monkeypatch.setattr(convolution, "_offsets", lambda *args: made.append(args) or offsets(*args))
    inputs = keras.Input([6, 6, 4])
    x = layers.Conv2D(40, size)(inputs)
    model = keras.Model(inputs, layers.Conv2D(2, size)(x))
    compute_importance(model, np.ones([2, 6, 6, 4], "float32"))
    assert len(made) == traces
