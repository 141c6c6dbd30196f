import functools
import pickle

import caffe_file
import h5py
import keras
import numpy as np
import pytest

from keras_mas.errors import UsageError
from keras_mas.training.backbones import build_trunk, weights_digest

SHAPE = (8, 8, 3)
KERNEL, BIAS = (3, 3, 3, 2), (2,)


def build(path, backbone="cnn-2", shape=SHAPE):
    return build_trunk(backbone, shape, (1.0, 0.0), None if path is None else str(path))


def arrays(**change):
    """Weights of 'cnn-2', as their paths name them."""
    rng = np.random.default_rng(0)
    kernel, bias = (rng.normal(size=shape).astype("float32") for shape in (KERNEL, BIAS))
    return {"convolution-1/bias": bias, "convolution-1/kernel": kernel} | change


def write_npz(path, **change):
    np.savez(path, **arrays(**change))
    return path


def write_hdf5(path):
    """Write HDF5 as early versions of Keras did, whose names of weights say little."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"input_1", b"convolution/1"]
        file.create_group("input_1").attrs["weight_names"] = []
        layer = file.create_group("convolution/1")
        layer.attrs["weight_names"] = [b"uniform1", b"convolution/1_b"]
        layer["uniform1"] = arrays()["convolution-1/kernel"]
        layer["convolution/1_b"] = arrays()["convolution-1/bias"]
    return path


def write_model(path):
    """Write a model with a head, as a run does."""
    trunk = build(None)
    trunk.set_weights([arrays()["convolution-1/kernel"], arrays()["convolution-1/bias"]])
    keras.Model(trunk.inputs, {"a": keras.layers.Dense(3)(trunk.outputs[0])}).save(path)
    return path


def write_caffe(form, path):
    """Write a network as Caffe does: kernels `[O, I, H, W]`, and layers without weights."""
    kernel, bias = arrays()["convolution-1/kernel"], arrays()["convolution-1/bias"]
    layers = {"data": [], "convolution/1": [kernel.transpose(3, 2, 0, 1), bias], "relu1": []}
    path.write_bytes(caffe_file.network(layers, form))
    return path


def write_nested(path):
    """Write a model that has the trunk as one of its layers."""
    trunk = build(None)
    trunk.set_weights([arrays()["convolution-1/kernel"], arrays()["convolution-1/bias"]])
    keras.Sequential([keras.Input(SHAPE), trunk, keras.layers.Dense(3)]).save(path)
    return path


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_npz, "w.npz"),
        (write_hdf5, "w.h5"),
        (write_hdf5, "w.HDF5"),
        (write_model, "model.keras"),
        (write_nested, "nested.keras"),
        *(
            (functools.partial(write_caffe, form), f"{form}.caffemodel")
            for form in ("new", "old", "double")
        ),
    ],
)
def test_weights_are_read_by_the_names_of_layers(write, name, tmp_path):
    trunk = build(write(tmp_path / name))
    for weight in trunk.weights:
        np.testing.assert_array_equal(weight, arrays()[weight.path])


def test_the_weights_of_a_whole_hdf5_model_are_found(tmp_path):
    with h5py.File(write_hdf5(tmp_path / "w.h5"), "r+") as file:
        inner = file.create_group("model_weights")
        inner.attrs["layer_names"] = file.attrs["layer_names"]
        for name in ("input_1", "convolution"):
            file.move(name, f"model_weights/{name}")
    np.testing.assert_array_equal(
        build(tmp_path / "w.h5").weights[1], arrays()["convolution-1/bias"]
    )


def test_arrays_of_a_layer_may_come_in_any_order(tmp_path):
    values = {"gamma": 1.0, "beta": 2.0, "moving_mean": 3.0, "moving_variance": 4.0}
    large = ("mobilenet-0.25", (32, 32, 3))
    rest = {weight.path: weight.numpy() for weight in build(None, *large).weights}
    rest |= {f"conv1_bn/{name}": np.full(8, value) for name, value in values.items()}
    np.savez(tmp_path / "w.npz", **dict(sorted(rest.items())))
    layer = build(tmp_path / "w.npz", *large).get_layer("conv1_bn")
    assert [weight.numpy()[0] for weight in layer.weights] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "w.pth",
            b"",
            r"ends in .keras, .*, .npz, .safetensors, .caffemodel. Received: '.*w.pth'. Conv",
        ),
        ("w.npz", b"PK nonsense", r"arrays that `numpy.savez` wrote. Received: '.*w.npz'"),
        ("w.npz", pickle.dumps({"a": 1}), "which cannot be read as one"),
        ("w.safetensors", b"\x09" * 40, "in the format of safetensors. Received: .* as one"),
        ("w.h5", b"nonsense", "Keras's HDF5 format.*Received: '.*w.h5'"),
        ("w.keras", b"nonsense", r"a model that Keras saved.*\(it is no zip archive\)"),
        ("w.caffemodel", b"nonsense", r"a network that Caffe saved.*\(Error parsing message"),
        ("w.caffemodel", b"", r"'.*w.caffemodel', which.*\(it holds no layer with weights\)"),
    ],
)
def test_foreign_files_are_named(name, content, sentence, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=sentence):
        build(tmp_path / name)


@pytest.mark.parametrize("form", ["new", "old"])
def test_half_a_file_of_caffe_is_refused(form, tmp_path):
    path = write_caffe(form, tmp_path / "w.caffemodel")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        UsageError, match=r"w.caffemodel', which cannot be read as one \(Error pars"
    ):
        build(path)


def test_an_array_of_caffe_that_is_not_of_its_shape_is_refused(tmp_path):
    kernel = caffe_file.part(5, bytes(4 * 54)) + caffe_file.part(7, caffe_file.part(1, b"\7"))
    layer = caffe_file.part(1, b"convolution/1") + caffe_file.part(7, kernel)
    (tmp_path / "w.caffemodel").write_bytes(caffe_file.part(100, layer))
    with pytest.raises(UsageError, match=r"array of size 54 into shape \(7,\)\). Correct"):
        build(tmp_path / "w.caffemodel")


def test_pickled_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "w.npz", **{"convolution-1/kernel": np.array([{}], object)})
    with pytest.raises(UsageError, match="cannot be read as one .*allow_pickle"):
        build(tmp_path / "w.npz")


def test_hdf5_without_names_of_layers_is_foreign(tmp_path):
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["x"] = np.ones(3)
    with pytest.raises(UsageError, match="it does not list the names of layers"):
        build(tmp_path / "w.h5")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"none.npz', which cannot be read \(no such file"):
        build(tmp_path / "none.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(UsageError, match=r"folder.npz', which cannot be read \(is a directory"):
        build(tmp_path / "folder.npz")


@pytest.mark.parametrize(
    ("backbone", "change", "sentence"),
    [
        ("cnn-2-2", {}, r"none for 'convolution-2' in '.*w.npz', which has 'convolution-1'"),
        (
            "cnn-3",
            {},
            r"shapes \(3, 3, 3, 3\), \(3,\) for the layer 'convolution-1'",
        ),
        (
            "cnn-2",
            {"convolution-1/bias": np.array([1.0, np.nan])},
            "finite real numbers for the layer 'convolution-1'",
        ),
        ("cnn-2", {"convolution-1/bias": np.array([1, 2])}, "finite real numbers"),
    ],
)
def test_weights_of_another_network_are_named(backbone, change, sentence, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        build(write_npz(tmp_path / "w.npz", **change), backbone)


def test_the_digest_is_that_of_the_content(tmp_path):
    here, there = write_npz(tmp_path / "here.npz"), write_npz(tmp_path / "there.npz")
    other = write_npz(tmp_path / "other.npz", **{"convolution-1/bias": np.zeros(2)})
    first, same, changed = (weights_digest("cnn-2", SHAPE, str(p)) for p in (here, there, other))
    assert first == same != changed
    assert weights_digest("cnn-2", SHAPE, None) is None
    with pytest.raises(UsageError, match="none.npz"):
        weights_digest("cnn-2", SHAPE, str(tmp_path / "none.npz"))
