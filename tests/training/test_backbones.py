import importlib
import os
import sys
from pathlib import Path

import caffe_file
import keras
import numpy as np
import pytest
from cases import slow
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.numpy import save_file

from keras_mas import check_importance
from keras_mas.errors import UsageError
from keras_mas.training.backbones import (
    alexnet,
    build_trunk,
    caffenet,
    check_pixels,
    weights_digest,
)

RGB = (64, 64, 3)
UNSCALED = (1.0, 0.0)


def pixels(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape).astype("uint8")


def inside(trunk, layer):
    """The outputs of a layer inside a trunk."""
    return keras.Model(trunk.inputs[0], trunk.get_layer(layer).output)


def test_the_trunk_takes_raw_inputs():
    # One unit, weights 1: the sum of the inputs after scale · x + offset.
    trunk = build_trunk("mlp-1", (2, 2, 1), rescale=(0.5, 1.0))
    trunk.set_weights([np.ones([4, 1]), np.zeros([1])])
    raw = np.array([[[[2], [4]], [[6], [8]]]], "uint8")
    assert trunk(raw).numpy() == [[0.5 * 20 + 4]]


def test_widths_are_in_the_name():
    trunk = build_trunk("mlp-5-3", (4,), UNSCALED)
    assert [weight.shape for weight in trunk.weights] == [(4, 5), (5,), (5, 3), (3,)]
    trunk = build_trunk("cnn-4-8", (9, 9, 3), UNSCALED)
    assert trunk.output_shape == (None, 8)
    assert trunk.get_layer("pooling-2").output.shape == (None, 3, 3, 8)
    trunk = build_trunk("vgg-4-8", (9, 9, 3), UNSCALED)
    kernels = [weight.shape for weight in trunk.weights if weight.name == "kernel"]
    assert kernels == [(3, 3, 3, 4), (3, 3, 4, 4), (3, 3, 4, 8), (3, 3, 8, 8)]
    assert trunk.get_layer("pooling-2").output.shape == (None, 3, 3, 8)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "vgg-WIDTH-…, alexnet, alexnet-caffe, .*, a network of keras.applications"),
        ("resnet", "Received: 'resnet'. Did you mean 'resnet50'?"),
        ("Alexnet", "Received: 'Alexnet'. Did you mean 'alexnet'?"),
        ("alexnet-3", "Received: 'alexnet-3'"),
        ("caffenet-2", "Received: 'caffenet-2'"),
        ("mobilenet-", r"'mobilenet' or 'mobilenet-α' with a number α > 0\. Received"),
        ("mobilenet-inf", "number α > 0"),
        ("mobilenet-0.5-2", "number α > 0"),
        ("ResNet50-0.5", r"Expected 'resnet50' alone\. Received: 'ResNet50-0.5'"),
    ],
)
def test_an_unknown_backbone_is_named(name, sentence):
    with pytest.raises(UsageError, match=sentence):
        build_trunk(name, RGB, UNSCALED)


@pytest.mark.parametrize(
    "name",
    ["mlp", "mlp-0", "mlp--2", "mlp-x", "cnn-3.5", "vgg", "mlp-²", "mlp-٣", "mlp-1000000"]
    + ["mlp-" + "9" * 5000],  # more digits than `int` reads
    ids=lambda name: name[:12],
)
def test_widths_are_whole_numbers(name):
    with pytest.raises(UsageError, match=f"followed by its widths.*Received: '{name}'"):
        build_trunk(name, (4,), UNSCALED)


@pytest.mark.parametrize(
    ("name", "shape", "weights"),
    # Kernels: 4 · 900,000 + 900,000²; 9 · (3 · 100,000 + 100,000²); one more of 100,000².
    [
        ("mlp-900000-900000", (4,), "810,003,600,000"),
        ("cnn-100000-100000", (8, 8, 3), "90,002,700,000"),
        ("vgg-100000", (8, 8, 3), "90,002,700,000"),
    ],
)
def test_a_backbone_that_does_not_fit_into_memory_is_refused(name, shape, weights):
    with pytest.raises(UsageError, match=f"{weights} weights of backbone '{name}'.* GiB needed"):
        build_trunk(name, shape, UNSCALED)


@pytest.mark.parametrize("name", ["cnn-8", "vgg-8", "alexnet", "squeezenet", "mobilenet"])
def test_convolutions_need_images(name):
    with pytest.raises(UsageError, match=rf"Expected images.*'{name}'.*shape \[4\].*mlp-256-256"):
        build_trunk(name, (4,), UNSCALED)


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("alexnet", (62, 70, 3), r"at least 63×63 pixels.*'alexnet'\. Received: 62×70"),
        ("caffenet", (38, 39, 3), r"at least 39×39 pixels.*Received: 38×39"),
        ("squeezenet", (31, 30, 3), r"at least 31×31 pixels.*Received: 31×30.*image_size"),
        ("mobilenet", (8, 8, 3), "images of 8×8 pixels.*'mobilenet', of which Keras says"),
        ("squeezenet", (64, 64, 4), r"grey or RGB images.*images of 4 channels"),
    ],
)
def test_images_that_a_network_cannot_take_are_refused(name, shape, sentence):
    with pytest.raises(UsageError, match=sentence):
        build_trunk(name, shape, UNSCALED)


def test_the_smallest_images_fit(monkeypatch):
    monkeypatch.setattr(alexnet, "FULLY_CONNECTED", (9216, 4, 2))
    assert build_trunk("alexnet", (63, 63, 3), UNSCALED).output_shape == (None, 2)
    assert build_trunk("squeezenet", (31, 31, 3), UNSCALED).output_shape == (None, 512)
    monkeypatch.setattr(caffenet, "FULLY_CONNECTED", (9216, 4, 2))
    assert build_trunk("caffenet", (39, 39, 3), UNSCALED).output_shape == (None, 2)


def test_networks_that_prepare_pixels_take_nothing_else():
    check_pixels("squeezenet", np.dtype("uint8"))
    check_pixels("cnn-4", np.dtype("float32"))
    with pytest.raises(UsageError, match="type uint8.*'squeezenet'.*Received: .* float32"):
        check_pixels("squeezenet", np.dtype("float32"))


def test_each_network_prepares_pixels_as_its_published_weights_expect(monkeypatch):
    # Red 10, green 20, blue 30; what the stream would rescale by plays no part.
    image = np.full([1, 64, 64, 3], (10, 20, 30), "uint8")
    bgr = inside(build_trunk("squeezenet", RGB, (1 / 255, 0.0)), "centred")(image)
    np.testing.assert_array_equal(bgr[0, 0, 0], [30 - 104, 20 - 117, 10 - 123])
    monkeypatch.setattr(alexnet, "FULLY_CONNECTED", (9216, 4, 2))
    rgb = inside(build_trunk("alexnet", RGB, (1 / 255, 0.0)), "standardized")(image)
    expected = [(10 / 255 - 0.485) / 0.229, (20 / 255 - 0.456) / 0.224, (30 / 255 - 0.406) / 0.225]
    np.testing.assert_allclose(rgb[0, 0, 0], expected, rtol=1e-5)
    trunk = build_trunk("mobilenet-0.25", RGB, (1 / 255, 0.0))
    before = keras.Model(trunk.inputs[0], trunk.get_layer("conv1").input)(image)
    np.testing.assert_allclose(before[0, 0, 0], np.array([10, 20, 30]) / 127.5 - 1, rtol=1e-6)


@pytest.mark.parametrize("name", ["squeezenet", "mobilenet-0.25"])
def test_grey_images_are_taken_in_three_channels(name):
    grey = build_trunk(name, (64, 64, 1), UNSCALED)
    rgb = build_trunk(name, RGB, UNSCALED)
    rgb.set_weights(grey.get_weights())
    images = pixels(0, 2, 64, 64, 1)
    np.testing.assert_array_equal(grey(images), rgb(np.repeat(images, 3, axis=-1)))


@pytest.mark.parametrize("name", ["squeezenet", "alexnet", "caffenet", "mobilenet-0.25"])
def test_a_saved_trunk_needs_nothing_of_ours(name, monkeypatch, tmp_path):
    for module in (alexnet, caffenet):
        monkeypatch.setattr(module, "FULLY_CONNECTED", (9216, 4, 2))
    trunk = build_trunk(name, RGB, UNSCALED)
    trunk.save(tmp_path / "trunk.keras")
    images = pixels(0, 2, *RGB)
    loaded = keras.models.load_model(tmp_path / "trunk.keras")
    np.testing.assert_array_equal(loaded(images), trunk(images))


def test_alpha_is_in_the_name():
    names = ("MobileNet", "mobilenet-0.5")
    wide, narrow = (build_trunk(name, RGB, UNSCALED).output_shape[-1] for name in names)
    assert (wide, narrow) == (1024, 512)


# PyTorch's layers, to compare AlexNet with: images `[N, C, H, W]`, kernels `[O, I, H, W]`.


def convolved(x, kernel, bias, stride, padding):
    x = np.pad(x, [(0, 0), (0, 0), (padding,) * 2, (padding,) * 2])
    windows = sliding_window_view(x, kernel.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    y = np.einsum("nihwkl,oikl->nohw", windows, kernel, optimize=True)
    return np.maximum(y + bias[:, None, None], 0)


def pooled(x):
    return sliding_window_view(x, (3, 3), axis=(2, 3))[:, :, ::2, ::2].max(axis=(4, 5))


def averaged(x, size):
    def spans(length):
        return [slice(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]

    rows, columns = spans(x.shape[2]), spans(x.shape[3])
    return np.stack(
        [np.stack([x[:, :, r, c].mean(axis=(2, 3)) for c in columns], axis=-1) for r in rows],
        axis=-2,
    )


def alexnet_of_pytorch(x, state):
    def parameters(name):
        return state[f"{name}.weight"], state[f"{name}.bias"]

    x = pooled(convolved(x, *parameters("features.0"), stride=4, padding=2))
    x = pooled(convolved(x, *parameters("features.3"), stride=1, padding=2))
    for name in ("features.6", "features.8", "features.10"):
        x = convolved(x, *parameters(name), stride=1, padding=1)
    x = averaged(pooled(x), 6).reshape(len(x), -1)
    for name in ("classifier.1", "classifier.4"):
        weight, bias = parameters(name)
        x = np.maximum(x @ weight.T + bias, 0)
    return x


# 1×1, 4×4 and 6×6 positions before fc6.
@pytest.mark.parametrize("size", [64, 160, slow(224)])
def test_alexnet_computes_what_torchvisions_weights_were_learned_for(size, monkeypatch, tmp_path):
    monkeypatch.setattr(alexnet, "FULLY_CONNECTED", (9216, 6, 5))  # 4096 took a second
    shapes = {
        "features.0": (64, 3, 11, 11),
        "features.3": (192, 64, 5, 5),
        "features.6": (384, 192, 3, 3),
        "features.8": (256, 384, 3, 3),
        "features.10": (256, 256, 3, 3),
        "classifier.1": (6, 9216),
        "classifier.4": (5, 6),
        "classifier.6": (1000, 5),  # the classifier, which is no part of the trunk
    }
    rng = np.random.default_rng(0)
    state = {}
    for name, shape in shapes.items():
        scale = np.sqrt(2 / np.prod(shape[1:]))
        state[f"{name}.weight"] = rng.normal(0, scale, shape).astype("float32")
        state[f"{name}.bias"] = rng.normal(0, 0.1, shape[0]).astype("float32")
    weights = str(tmp_path / "alexnet.safetensors")
    save_file(state, weights)
    trunk = build_trunk("alexnet", (size, size, 3), UNSCALED, weights)
    images = pixels(0, 2, size, size, 3)
    prepared = (images / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = alexnet_of_pytorch(prepared.transpose(0, 3, 1, 2), state)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(trunk(images), expected, rtol=1e-3, atol=1e-4)


# Caffe's layers are PyTorch's but for these.


def in_two_groups(x, kernel, bias, padding):
    """What the paper's two GPUs did: each half of the channels with half of the kernel."""
    halves = (np.split(array, 2, axis=axis) for array, axis in ((x, 1), (kernel, 0), (bias, 0)))
    y = [convolved(*half, stride=1, padding=padding) for half in zip(*halves, strict=True)]
    return np.concatenate(y, axis=1)


def pooled_to_the_edge(x):
    """The last of the 3×3 positions may lie in part beyond the edge."""
    beyond = [(0, 0), (0, 0), *((0, 1 - length % 2) for length in x.shape[2:])]
    return pooled(np.pad(x, beyond, constant_values=-np.inf))


def normalized(x):
    scale = np.ones_like(x)
    for c in range(x.shape[1]):
        scale[:, c] += 1e-4 / 5 * np.sum(x[:, max(c - 2, 0) : c + 3] ** 2, axis=1)
    return x / scale**0.75


# What follows conv1 and conv2: as Caffe's two files of networks have it.
AFTER = {
    "alexnet-caffe": {"norm": normalized, "pool": pooled_to_the_edge},
    "caffenet": {"pool": pooled_to_the_edge, "norm": normalized},
}


def alexnet_of_caffe(x, layers, after):
    x = convolved(x, *layers["conv1"], stride=4, padding=0)
    for number in (1, 2):
        for layer in after.values():
            x = layer(x)
        if number == 1:
            x = in_two_groups(x, *layers["conv2"], padding=2)
    x = convolved(x, *layers["conv3"], stride=1, padding=1)
    x = in_two_groups(x, *layers["conv4"], padding=1)
    x = in_two_groups(x, *layers["conv5"], padding=1)
    x = averaged(pooled_to_the_edge(x), 6).reshape(len(x), -1)
    for name in ("fc6", "fc7"):
        kernel, bias = layers[name]
        x = np.maximum(x @ kernel.T + bias, 0)
    return x


def layers_of_caffe(after):
    """Random weights, `[O, I, H, W]`; normalization and pooling have none, but a place."""
    rng = np.random.default_rng(0)
    shapes = {
        "conv1": (96, 3, 11, 11),
        **{f"{kind}1": None for kind in after},
        "conv2": (256, 48, 5, 5),
        "conv3": (384, 256, 3, 3),
        "conv4": (384, 192, 3, 3),
        "conv5": (256, 192, 3, 3),
        "fc6": (6, 9216),
        "fc7": (5, 6),
        "fc8": (1000, 5),  # the classifier, which is no part of the trunk
    }
    return {
        name: []
        if shape is None
        else [
            rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype("float32"),
            rng.normal(0, 0.1, shape[0]).astype("float32"),
        ]
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("alexnet-caffe", 64),
        ("caffenet", 64),
        ("caffenet", 171),  # 6×6 positions after five roundings
        slow("alexnet-caffe", 227),
    ],
)
def test_caffes_networks_compute_what_their_weights_were_learned_for(
    name, size, monkeypatch, tmp_path
):
    monkeypatch.setattr(caffenet, "FULLY_CONNECTED", (9216, 6, 5))
    layers = layers_of_caffe(AFTER[name])
    (tmp_path / "w.caffemodel").write_bytes(caffe_file.network(layers))
    trunk = build_trunk(name, (size, size, 3), UNSCALED, str(tmp_path / "w.caffemodel"))
    images = pixels(0, 2, size, size, 3)
    prepared = images[..., ::-1] - np.array([104.0, 117.0, 123.0])
    expected = alexnet_of_caffe(prepared.transpose(0, 3, 1, 2), layers, AFTER[name])
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(trunk(images), expected, rtol=1e-3, atol=1e-3)


def test_weights_of_caffes_other_network_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(caffenet, "FULLY_CONNECTED", (9216, 6, 5))
    path = tmp_path / "bvlc_alexnet.caffemodel"
    path.write_bytes(caffe_file.network(layers_of_caffe(AFTER["alexnet-caffe"])))
    with pytest.raises(UsageError, match="'caffenet', in which pool1 comes before norm1. Received"):
        build_trunk("caffenet", RGB, UNSCALED, str(path))


def test_arrays_by_caffes_names_are_read_too(monkeypatch, tmp_path):
    monkeypatch.setattr(caffenet, "FULLY_CONNECTED", (9216, 6, 5))
    found = {k: v for k, v in layers_of_caffe({}).items() if v}
    kernels = {f"{name}.weight": kernel for name, (kernel, _) in found.items()}
    biases = {f"{name}.bias": bias for name, (_, bias) in found.items()}
    np.savez(tmp_path / "w.npz", **kernels, **biases)
    trunk = build_trunk("caffenet", RGB, UNSCALED, str(tmp_path / "w.npz"))
    second = trunk.get_layer("conv2-2")  # the second half of the channels that come out
    np.testing.assert_array_equal(second.kernel, found["conv2"][0][128:].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(second.bias, found["conv2"][1][128:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vgg-4-8", 32),
        ("alexnet", 64),
        ("caffenet", 64),
        ("squeezenet", 64),
        ("mobilenet-0.25", 32),
    ],
)
def test_importance_of_every_backbone_is_exact(name, size):
    trunk = build_trunk(name, (size, size, 3), (1 / 255, 0.0))
    logits = keras.layers.Dense(5)(trunk.outputs[0])
    model = keras.Model(trunk.inputs[0], logits)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):  # 0 and 1 would hide mistakes
            layer.moving_mean.assign(keras.random.normal(layer.moving_mean.shape, stddev=0.1))
            layer.moving_variance.assign(keras.random.uniform(layer.moving_variance.shape, 0.5, 2))
    checks = check_importance(model, pixels(0, 3, size, size, 3), examples=3)
    assert max(check.error for check in checks.values()) < 1e-3


def has_mobilenet():
    home = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()
    return (home / "models/mobilenet_7_5_224_tf_no_top.h5").exists()


@pytest.mark.slow
@pytest.mark.skipif(not has_mobilenet(), reason="MobileNet's weights are not in $KERAS_HOME")
def test_imagenet_weights_are_those_that_keras_loads():
    trunk = build_trunk("mobilenet-0.75", RGB, UNSCALED, "imagenet")
    with pytest.warns(UserWarning, match="input_shape"):
        original = keras.applications.MobileNet(
            input_shape=RGB, alpha=0.75, include_top=False, pooling="avg"
        )
    images = pixels(0, 2, *RGB)
    prepared = keras.applications.mobilenet.preprocess_input(images.astype("float32"))
    np.testing.assert_allclose(trunk(images), original(prepared), rtol=1e-5, atol=1e-5)
    digests = {weights_digest("mobilenet-0.75", size, "imagenet") for size in (RGB, (96, 96, 3))}
    assert len(digests) == 1


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch):
    def offline(name, origin, **kwargs):
        raise Exception(f"URL fetch failure on {origin}: None -- Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", offline)
    with pytest.raises(UsageError, match=r"'mobilenet-0.5', in the folder `models`.*URL fetch"):
        build_trunk("mobilenet-0.5", RGB, UNSCALED, "imagenet")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("squeezenet", "Keras has for the networks of keras.applications only"),
        ("mobilenet-0.6", "with ImageNet weights. Received: 'mobilenet-0.6'.*alpha can be"),
    ],
)
def test_weights_that_nobody_publishes_are_refused(name, sentence):
    with pytest.raises(UsageError, match=sentence):
        build_trunk(name, RGB, UNSCALED, "imagenet")


@pytest.fixture
def own_backbone(tmp_path, monkeypatch):
    """A function that writes the body of a backbone of one's own."""
    monkeypatch.chdir(tmp_path)

    def write(body):
        (tmp_path / "own_backbone.py").write_text(
            f"import keras\n\ndef features(x):\n    {body}\n\nnumber = 3\n"
        )
        sys.modules.pop("own_backbone", None)
        importlib.invalidate_caches()
        return "own_backbone:features"

    yield write
    sys.modules.pop("own_backbone", None)


def test_a_backbone_of_ones_own_takes_inputs_as_the_stream_rescales_them(own_backbone, tmp_path):
    name = own_backbone("return keras.layers.Dense(2, name='own')(keras.layers.Flatten()(x))")
    np.savez(tmp_path / "weights.npz", **{"own/kernel": np.ones([4, 2]), "own/bias": [0.0, 9.0]})
    trunk = build_trunk(name, (2, 2, 1), (0.5, 1.0), str(tmp_path / "weights.npz"))
    raw = np.array([[[[2], [4]], [[6], [8]]]], "uint8")
    assert trunk(raw).numpy().tolist() == [[0.5 * 20 + 4, 0.5 * 20 + 4 + 9]]


@pytest.mark.parametrize(
    ("body", "received"),
    [
        ("return x", r"a tensor of shape \[None, 2, 2, 1\]. Return the output of its last layer"),
        ("return None", "NoneType"),
        ("pass", "NoneType"),
    ],
)
def test_a_backbone_of_ones_own_without_features_is_refused(own_backbone, body, received):
    with pytest.raises(UsageError, match=rf"features \[N, F\] from .*own_backbone.*: {received}"):
        build_trunk(own_backbone(body), (2, 2, 1), UNSCALED)


def test_a_backbone_of_ones_own_is_a_function(own_backbone):
    own_backbone("return x")
    with pytest.raises(UsageError, match="'own_backbone:number' to be a function.*Received: int"):
        build_trunk("own_backbone:number", (2,), UNSCALED)
    with pytest.raises(UsageError, match="'nothing' in 'own_backbone'.*for the backbone"):
        build_trunk("own_backbone:nothing", (2,), UNSCALED)
