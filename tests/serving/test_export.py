import contextlib
import errno
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_mas import MASModel, files
from keras_mas.errors import UsageError
from keras_mas.serving import export
from keras_mas.serving.export import (
    ExportError,
    check_exportable,
    export_version,
    is_exported,
)
from keras_mas.serving.manifest import read_manifest
from keras_mas.serving.runtime import LoadedVersion, LoadError

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shop(models):
    return LoadedVersion(models / "shop" / "1")


def test_a_signature_per_task_with_probabilities_class_and_label(shop, inputs):
    answer = shop.run("pets", {"inputs": inputs})
    np.testing.assert_allclose(answer["probabilities"], [[0.25, 0.75], [0.75, 0.25]], rtol=1e-6)
    assert answer["class"].tolist() == [1, 0] and answer["class"].dtype == np.int64
    assert answer["label"].tolist() == [b"dog", b"cat"]


def test_classes_without_names_are_numbered(shop, inputs):
    assert shop.run("fruit", {"inputs": inputs})["label"].tolist() == [b"2", b"2"]


def test_the_default_signature_returns_every_task(shop, inputs):
    answer = shop.run("serving_default", {"inputs": inputs})
    assert {name for name in answer if name.startswith("fruit/")} == {
        "fruit/probabilities",
        "fruit/class",
        "fruit/label",
    }
    assert len(answer) == 6
    for name in ("probabilities", "class", "label"):
        for task in ("pets", "fruit"):
            alone = shop.run(task, {"inputs": inputs})[name]
            assert answer[f"{task}/{name}"].tolist() == alone.tolist()


def test_signatures_have_shapes_and_dtypes(shop):
    signature = shop.signatures["fruit"]
    shapes = {
        name: [dim.size for dim in info.tensor_shape.dim]
        for name, info in [*signature.inputs.items(), *signature.outputs.items()]
    }
    assert shapes == {"inputs": [-1, 2], "probabilities": [-1, 3], "class": [-1], "label": [-1]}
    dtypes = {name: tf.as_dtype(info.dtype).name for name, info in signature.outputs.items()}
    assert dtypes == {"probabilities": "float32", "class": "int64", "label": "string"}


def test_the_input_can_be_named(tmp_path, make_heads, inputs):
    version = export_version(make_heads(), tmp_path / "1", input_name="point")
    assert LoadedVersion(version).run("pets", {"point": inputs})["class"].tolist() == [1, 0]


def test_only_the_variables_of_inference_are_stored(tmp_path, make_dense):
    point = keras.Input((2,))
    trunk = make_dense(np.eye(2), [0.0, 0.0])(point)
    heads = {
        "a": MASModel(point, make_dense(np.eye(2), [0.0, 0.0])(trunk)),
        "b": keras.Model(point, make_dense(np.zeros((2, 3)), [0.0, 0.0, 0.0])(trunk)),
    }
    heads["a"].compile("adam", "sparse_categorical_crossentropy")
    heads["a"].fit(np.ones((4, 2)), np.zeros(4), verbose=0)
    heads["a"].consolidate(np.ones((4, 2)))
    assert heads["a"].memory.importance  # there is an Ω, which must not be exported

    version = export_version(heads, tmp_path / "1")

    # The trunk is stored once though two heads read it, and nothing that only training reads.
    stored = tf.train.list_variables(str(version / "variables" / "variables"))
    shapes = sorted(shape for name, shape in stored if "VARIABLE_VALUE" in name)
    assert shapes == [[2], [2], [2, 2], [2, 2], [2, 3], [3]]
    assert len(stored) == 6 + 1  # and the description of the objects


def test_heads_on_one_input_tensor_run_the_trunk_once(tmp_path, models, make_dense):
    point = keras.Input((2,))
    trunk = make_dense(np.eye(2), [0.0, 0.0])(point)
    heads = {
        task: keras.Model(point, make_dense(np.eye(2), [0.0, 0.0])(trunk)) for task in ("a", "b")
    }
    # One product for the trunk and one for each head. The heads of the shop have inputs of their
    # own and pay for the trunk twice.
    assert most_products(export_version(heads, tmp_path / "1")) == 3
    assert most_products(models / "shop" / "1") == 4


def most_products(version):
    """Return the number of matrix products in the endpoint that has most, `serving_default`."""
    return max(
        sum(node.op == "MatMul" for node in function.node_def)
        for function in functions_of(version)
        if "endpoint" in function.signature.name
    )


def test_the_features_are_what_the_heads_read(tmp_path, make_dense):
    point = keras.Input((2,))
    features = keras.layers.ReLU()(make_dense([[1.0], [2.0]], [3.0])(point))
    heads = {
        task: keras.Model(point, make_dense(kernel, [0.0] * 2)(features))
        for task, kernel in (("a", [[1.0, 2.0]]), ("b", [[3.0, 4.0]]))
    }
    version = LoadedVersion(export_version(heads, tmp_path / "1"))
    answer = version.run("features", {"inputs": np.array([[1.0, 1.0], [-5.0, 0.0]], np.float32)})
    assert answer["features"].dtype == np.float32
    assert answer["features"].tolist() == [[6.0], [0.0]]  # 1 + 2 + 3; -5 + 3, cut off


def test_heads_that_read_different_tensors_have_no_features(shop, tmp_path, make_dense):
    assert "features" not in shop.signatures  # each has an input of its own
    point = keras.Input((2,))
    own = [keras.layers.Dense(2)(point) for _ in range(2)]
    heads = {
        task: keras.Model(point, keras.layers.Dense(2)(x))
        for task, x in zip("ab", own, strict=True)
    }
    for models in (heads, {"a": keras.Model(point, own[0])}):  # the latter reads inputs alone
        version = LoadedVersion(export_version(models, tmp_path / str(len(models))))
        assert sorted(version.signatures) == sorted([*models, "examples", "serving_default"])


def example(**features):
    kinds = {float: ("float_list", tf.train.FloatList), bytes: ("bytes_list", tf.train.BytesList)}
    feature = {}
    for name, values in features.items():
        field, kind = kinds[type(values[0])]
        feature[name] = tf.train.Feature(**{field: kind(value=values)})
    examples = tf.train.Example(features=tf.train.Features(feature=feature))
    return examples.SerializeToString()


def test_serialized_examples_are_answered_as_their_inputs(shop, inputs):
    examples = np.array([example(inputs=[float(v) for v in row]) for row in inputs], object)
    answer = shop.run("examples", {"examples": examples})
    expected = shop.run("serving_default", {"inputs": inputs})
    assert answer.keys() == expected.keys()
    for name, values in answer.items():
        assert values.tolist() == expected[name].tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (example(inputs=[1.0, 2.0, 3.0]), "Values size: 3 but output shape: [2]"),
        (example(x=[1.0, 2.0]), "Feature: inputs (data type: float) is required"),
        (b"no example", "Could not parse example input"),
    ],
)
def test_what_is_no_example_of_an_input_is_refused(shop, content, message):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        shop.run("examples", {"examples": np.array([content], object)})
    assert message in caught.value.message


def test_nan_is_an_input_like_any_other(shop):
    answer = shop.run("pets", {"inputs": np.array([[np.nan, 0.0], [0.0, 1.0]], np.float32)})
    assert np.isnan(answer["probabilities"][0]).all() and answer["class"].tolist()[1] == 1


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A model of images 2x2 whose logits are the pixels in the first row and column, over 100."""
    image = keras.Input((2, 2, 3))
    corner = keras.layers.Reshape([3])(keras.layers.Cropping2D(((0, 1), (0, 1)))(image))
    model = keras.Model(image, keras.layers.Rescaling(0.01)(corner))
    classes = {"colour": ["red", "green", "blue"]}
    folder = tmp_path_factory.mktemp("photos") / "1"
    return export_version({"colour": model}, folder, classes=classes, resize="crop")


def png(*pixels):
    return tf.io.encode_png(np.array(pixels, np.uint8)).numpy()


@pytest.mark.slow
def test_files_of_images_are_answered_as_their_pixels(photos):
    version = LoadedVersion(photos)
    red, blue = [200, 100, 0], [0, 0, 200]
    # The second image is cropped to its middle.
    files = [png([red, blue], [blue, blue]), png([red, blue, red, red], [red, red, red, red])]
    answer = version.run("encoded", {"image_bytes": np.array(files, object)})
    assert answer["colour/label"].tolist() == [b"red", b"blue"]
    odds = np.exp([2.0, 1.0, 0.0])
    np.testing.assert_allclose(answer["colour/probabilities"][0], odds / odds.sum(), rtol=1e-5)
    # Examples hold files, too.
    examples = np.array([example(image_bytes=[file]) for file in files], object)
    again = version.run("examples", {"examples": examples})
    assert again["colour/label"].tolist() == [b"red", b"blue"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="content of a JPEG or PNG file"):
        version.run("encoded", {"image_bytes": np.array([b"photo.jpg"], object)})


def test_the_size_of_a_version_is_that_of_its_weights_and_graph(tmp_path):
    image = keras.Input((16, 16, 3))
    features = keras.layers.Dense(128)(keras.layers.Flatten()(image))
    heads = {task: keras.Model(image, keras.layers.Dense(10)(features)) for task in "abc"}
    version = export_version(heads, tmp_path / "1", resize="crop", warmup_batch_sizes=[1, 8, 512])
    # 768·128 + 128 in the trunk, 128·10 + 10 in each of three heads.
    weights = 4 * (98_432 + 3 * 1_290)
    graph = (version / "saved_model.pb").stat().st_size
    files = sum(path.stat().st_size for path in version.rglob("*") if path.is_file())
    assert weights + graph <= files <= 1.05 * (weights + graph)
    # 512 inputs are 1.5 MB, and a warm-up request of them is smaller than one.
    assert (version / "assets.extra" / "tf_serving_warmup_requests").stat().st_size < 20_000


def functions_of(version):
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((version / "saved_model.pb").read_bytes())
    return saved.meta_graphs[0].graph_def.library.function


def test_a_head_that_overrides_call_is_exported_with_it(tmp_path):
    class Doubled(keras.Model):
        def call(self, inputs, training=None):
            return 2.0 * super().call(inputs, training=training)

    point = keras.Input((2,))
    identity = keras.layers.Dense(2, kernel_initializer="identity")(point)
    heads = {"a": Doubled(point, identity), "b": keras.Model(point, identity)}
    version = LoadedVersion(export_version(heads, tmp_path / "1"))
    answer = version.run("serving_default", {"inputs": np.array([[0.0, np.log(3.0)]], np.float32)})
    # 2 ln 3 = ln 9.
    np.testing.assert_allclose(answer["a/probabilities"], [[0.1, 0.9]], rtol=1e-5)
    np.testing.assert_allclose(answer["b/probabilities"], [[0.25, 0.75]], rtol=1e-5)


def test_two_heads_may_have_layers_of_one_name(tmp_path, inputs):
    point = keras.Input((2,))
    heads = {
        task: keras.Model(point, keras.layers.Dense(2, name="head")(point)) for task in ("a", "b")
    }
    version = LoadedVersion(export_version(heads, tmp_path / "1"))
    both = version.run("serving_default", {"inputs": inputs})
    for task in heads:
        alone = version.run(task, {"inputs": inputs})
        np.testing.assert_array_equal(both[f"{task}/probabilities"], alone["probabilities"])


def test_batch_normalization_and_dropout_run_in_inference_mode(tmp_path):
    # In training mode BatchNormalization would map the single input to 0, and dropout hide it.
    layers = [keras.layers.BatchNormalization(epsilon=0.0), keras.layers.Dropout(0.9)]
    model = keras.Sequential([keras.Input((2,)), *layers])
    gamma, beta = [1.0, 1.0], [0.0, 0.0]
    layers[0].set_weights([np.array(w) for w in (gamma, beta, [3.0, 3.0], [1.0, 1.0])])
    version = LoadedVersion(export_version({"a": model}, tmp_path / "1"))
    x = np.array([[3.0, 3.0 + np.log(3.0)]], np.float32)
    for signature, name in (("a", "probabilities"), ("serving_default", "a/probabilities")):
        answer = version.run(signature, {"inputs": x})[name]
        np.testing.assert_allclose(answer, [[0.25, 0.75]], rtol=1e-5)


def test_mixed_precision_models_return_float32(tmp_path):
    inputs = keras.Input((2,))
    outputs = keras.layers.Dense(2, kernel_initializer="identity", dtype="mixed_float16")(inputs)
    assert outputs.dtype == "float16"
    version = LoadedVersion(export_version({"a": keras.Model(inputs, outputs)}, tmp_path / "1"))
    answer = version.run("a", {"inputs": np.array([[0.0, np.log(3.0)]], np.float32)})
    assert answer["probabilities"].dtype == np.float32
    np.testing.assert_allclose(answer["probabilities"], [[0.25, 0.75]], rtol=1e-3)


def test_no_function_requires_xla(models):
    # A model server compiles nothing by default, and fails on a function that insists.
    functions = functions_of(models / "shop" / "1")
    assert functions and not any(f.attr["_XlaMustCompile"].b for f in functions)


def test_the_outputs_of_a_task_are_computed_one_after_the_other(models):
    # Operations that could begin together are given to two threads, which costs 20 µs.
    nodes = [node for f in functions_of(models / "shop" / "1") for node in f.node_def]
    softmax = [node for node in nodes if node.op == "LogSoftmax"]
    assert softmax and all(any(i.startswith("^GatherV2") for i in s.input) for s in softmax)


def test_a_wrong_number_of_features_is_refused_with_both_shapes(shop):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        shop.run("pets", {"inputs": np.zeros((5, 3), np.float32)})
    assert "[5,3] is not compatible with expected shape [?,2]" in caught.value.message
    assert "check_input_shape" in caught.value.message


def test_one_example_in_place_of_a_list_is_refused_with_its_shape(shop):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        shop.run("examples", {"examples": np.array(b"", object)})
    assert "[] is not compatible with expected shape [?]" in caught.value.message


@pytest.mark.parametrize("signature", ["a", "serving_default"])
@pytest.mark.parametrize("shape", [(1, 5, 4, 3), (1, 4, 4), (1, 4, 4, 1)])
def test_a_wrong_image_is_refused_even_under_global_pooling(pooled, signature, shape):
    # Pooling over all places gives every image the same shape; without a check [1, 5, 4, 3] passes.
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        pooled.run(signature, {"inputs": np.zeros(shape, np.float32)})
    received = ",".join(map(str, shape))
    assert f"[{received}] is not compatible with expected shape [?,4,4,3]" in caught.value.message


def test_an_image_of_the_right_size_passes_in_batches_of_any_size(pooled):
    answer = pooled.run("a", {"inputs": np.ones((3, 4, 4, 3), np.float32)})
    assert answer["probabilities"].shape == (3, 3)


@pytest.fixture(scope="module")
def pooled(tmp_path_factory):
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.GlobalAveragePooling2D()])
    return LoadedVersion(export_version({"a": model}, tmp_path_factory.mktemp("pooled") / "1"))


def test_unknown_sizes_stay_unknown(tmp_path):
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalMaxPooling2D()])
    version = LoadedVersion(export_version({"a": model}, tmp_path / "1"))
    for size in (5, 6):
        answer = version.run("a", {"inputs": np.zeros((1, size, 7, 3), np.float32)})
        assert answer["class"].tolist() == [0]


@pytest.mark.parametrize("shape", ["2 2", "2 3"])
def test_the_c_library_alone_runs_it_and_checks_shapes(models, shop, shape):
    signature = shop.signatures["fruit"]
    tensors = [signature.inputs["inputs"].name, signature.outputs["probabilities"].name]
    command = [HERE / "c_api.py", Path(tf.__file__).parent, models / "shop" / "1", *tensors]
    process = subprocess.run(
        [sys.executable, *map(str, command), *shape.split()], capture_output=True, check=True
    )
    answer = json.loads(process.stdout)
    if shape == "2 2":
        assert answer == pytest.approx([0.25, 0.25, 0.5] * 2)
    else:
        assert "[2,3] is not compatible with expected shape [?,2]" in answer


def test_a_version_is_never_overwritten(tmp_path, make_heads):
    version = export_version(make_heads(), tmp_path / "shop" / "1")
    before = (version / "saved_model.pb").read_bytes()
    with pytest.raises(UsageError, match="Expected version 1 of 'shop' not to exist. Received: '"):
        export_version(make_heads(sign=-1.0), tmp_path / "shop" / "1")
    assert (version / "saved_model.pb").read_bytes() == before
    with pytest.raises(UsageError, match="not to exist"):
        export_version({}, tmp_path / "shop" / "1")  # before a look at the heads, or any work


def test_a_version_with_leading_zeros_is_the_same_version(tmp_path, make_heads):
    (tmp_path / "shop" / "01").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"Expected version 1 .*01', which does"):
        export_version(make_heads(), tmp_path / "shop" / "1")


def test_a_file_is_not_overwritten_either(tmp_path, make_heads):
    (tmp_path / "1").write_text("notes")
    with pytest.raises(UsageError, match="Received: a file. Move it elsewhere"):
        export_version(make_heads(), tmp_path / "1")
    assert (tmp_path / "1").read_text() == "notes"


def test_a_version_published_meanwhile_is_not_overwritten(tmp_path, make_heads):
    def publish_another(*_):
        (tmp_path / "1").mkdir()
        return {}

    with pytest.raises(UsageError, match="not to exist"):
        export_version(make_heads(), tmp_path / "1", approve=publish_another)
    assert names_in(tmp_path) == ["1"] and names_in(tmp_path / "1") == []


def test_a_version_published_at_the_last_moment_is_not_overwritten(
    tmp_path, make_heads, monkeypatch
):
    def publish_another(source, target):
        Path(target).mkdir()
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(files.os, "rename", publish_another)
    with pytest.raises(UsageError, match="not to exist"):
        export_version(make_heads(), tmp_path / "1")
    assert names_in(tmp_path) == ["1"] and names_in(tmp_path / "1") == []


def test_a_version_appears_only_when_complete_and_approved(tmp_path, make_heads):
    seen = []

    def look(directory, version):
        assert "pets" in version.signatures
        seen.append((names_in(tmp_path), (directory / "saved_model.pb").exists()))
        return {"looked": True}

    export_version(make_heads(), tmp_path / "1", approve=look)
    assert read_manifest(tmp_path / "1")["looked"]
    [([name], complete)] = seen
    assert name.startswith(".tmp-1-") and complete
    assert names_in(tmp_path) == ["1"]


def test_a_model_that_cannot_run_is_not_published(tmp_path):
    class Impossible(keras.layers.Layer):
        def call(self, x):
            # Traces well, and fails on every input.
            with tf.control_dependencies([tf.debugging.assert_equal(tf.shape(x)[0], -1)]):
                return tf.identity(x)

    inputs = keras.Input((2,))
    model = keras.Model(inputs, Impossible()(inputs))
    with pytest.raises(ExportError, match=r"(?s)'inputs' \[1, 2\]\)\. It was not published"):
        export_version({"a": model}, tmp_path / "1")
    assert names_in(tmp_path) == []


def test_a_lookup_table_is_refused(tmp_path):
    point = keras.Input((1,))
    index = keras.layers.Rescaling(1.0, dtype="int64")(point)
    table = keras.layers.IntegerLookup(vocabulary=[1, 2], output_mode="one_hot")
    with pytest.raises(ExportError, match="such as a lookup table"):
        export_version({"a": keras.Model(point, table(index))}, tmp_path / "1")
    assert names_in(tmp_path) == []


class Counting(keras.layers.Layer):
    """Adds the number of the request."""

    def build(self, shape):
        self.requests = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, inputs):
        self.requests.assign_add(1.0)
        return inputs + self.requests


class Noise(keras.layers.Layer):
    """Adds random numbers, in training or not."""

    def build(self, shape):
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, inputs):
        return inputs + keras.random.normal((3,), seed=self.seeds)


def on(shape, *more):
    """Return a head of the layers, and a dense one; the batch of the input is of one size."""
    inputs = keras.Input(batch_shape=(2, *shape))
    features = inputs
    for layer in more:
        features = layer(features)
    return keras.Model(inputs, keras.layers.Dense(2)(features))


@pytest.mark.parametrize(
    "make",
    [
        lambda: on((3,), Counting()),
        lambda: on((3, 2), keras.layers.SimpleRNN(2, stateful=True)),
        lambda: on((3,), Noise()),
    ],
    ids=["counter", "recurrent state", "noise"],
)
def test_answers_that_depend_on_earlier_requests_are_refused(tmp_path, make):
    with pytest.raises(ExportError, match="input alone. Received: a layer that changes a variable"):
        export_version({"a": make()}, tmp_path / "1", warmup_batch_sizes=[2])
    assert names_in(tmp_path) == []


def test_a_layer_that_takes_no_batch_of_another_size_is_refused(tmp_path):
    inputs = keras.Input(batch_shape=(1, 3, 2))
    state = keras.layers.SimpleRNN(2, stateful=True)(inputs)
    head = keras.Model(inputs, keras.layers.Dense(2)(state))
    with pytest.raises(ExportError, match=r"of shape \[None, 3, 2\], in a graph. Received: .*RNN"):
        export_version({"a": head}, tmp_path / "1")
    assert names_in(tmp_path) == []


def test_an_interrupted_export_leaves_nothing(tmp_path, make_heads, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_load", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_version(make_heads(), tmp_path / "1")
    assert names_in(tmp_path) == []


def test_export_prints_and_logs_nothing(tmp_path, make_heads, capfd, caplog):
    loggers = [tf.get_logger(), logging.getLogger("absl")]
    for logger in loggers:
        logger.addHandler(caplog.handler)
        caplog.set_level(logging.INFO, logger.name)
    export_version(make_heads(), tmp_path / "1")
    for logger in loggers:
        logger.removeHandler(caplog.handler)
    printed = capfd.readouterr()
    assert caplog.messages == []
    # The C++ runtime's own lines obey only TF_CPP_MIN_LOG_LEVEL, set before TensorFlow is imported.
    lines = [line for line in printed.err.splitlines() if not line.startswith(("I0", "W0", "E0"))]
    assert printed.out == "" and lines == []


def small(features=2, units=2):
    return keras.Sequential([keras.Input((features,)), keras.layers.Dense(units)])


def two_inputs():
    a, b = keras.Input((2,)), keras.Input((2,))
    return keras.Model([a, b], keras.layers.Add()([a, b]))


def named_logits():
    point = keras.Input((2,))
    return keras.Model(point, {"logits": keras.layers.Dense(2)(point)})


def sequences():
    return keras.Sequential([keras.Input((4, 3)), keras.layers.Dense(2)])


REFUSED = [
    ({}, {}, "at least one task. Received: no heads."),
    (small(), {}, "one task. Received: Sequential. Pass the heads to serve, as in `{'flowers'"),
    ({"a": keras.Sequential([keras.layers.Dense(2)])}, {}, "Received: Sequential without one."),
    ({"a": two_inputs()}, {}, "to take one input of shape [N, ...]. Received: input shape [("),
    (
        {"a": small(2), "b": small(3)},
        {},
        "(2,), as 'a' does. Received: shape (3,) from 'b'",
    ),
    ({"a": named_logits()}, {}, "a tensor of logits. Received: a dict with one."),
    ({"a": small(units=1)}, {}, "Received: a single one, whose softmax is 1 whatever it is."),
    ({"a": sequences()}, {}, "Received: output shape (None, 4, 2)"),
    ({"serving_default": small()}, {}, "Received: 'serving_default'. Rename the task."),
    ({"_a": small()}, {}, "Received: '_a'. Rename the task."),
    ({"": small()}, {}, "Received: ''. Rename the task."),
    ({"features": small()}, {}, "Received: 'features'. Rename the task."),
    ({"signatures": small()}, {}, "Received: 'signatures'. Rename the task."),
    ({"\ud800": small()}, {}, "Received: '\\ud800'. Rename the task."),
    ({1: small()}, {}, "Received: 1. Rename the task."),
    ({"a": small()}, {"classes": {"a": ["0", 0]}}, "'a', which identify a class. Received: '0'"),
    ({"a": small(units=3)}, {"classes": {"a": ["x", "y"]}}, "Expected 3 class names for 'a'"),
    ({"a": small()}, {"classes": {"b": ["x", "y"]}}, "among ['a']. Received: 'b'."),
    ({"a": small()}, {"classes": {"a": {"x", "y"}}}, "in the order of the logits. Received: set"),
    ({"a": small()}, {"classes": {"a": "xy"}}, "in the order of the logits. Received: str in"),
    ({"a": small()}, {"classes": {"a": [b"x", b"y"]}}, "of 'a' that are text, which clients read"),
    ({"a": small()}, {"classes": {"a": ["\ud800", "y"]}}, "Received: '\\ud800' in `classes`."),
    ({"a": small()}, {"input_name": "my input"}, "Received: 'my input'."),
    ({"a": small()}, {"input_name": "class"}, "Received: 'class'."),
    ({"a": small()}, {"input_name": "self"}, "Received: 'self'."),
    ({"a": small()}, {"manifest": {"accuracy": float("nan")}}, "Expected `manifest` to hold"),
    ({"a": small()}, {"manifest": {"made": object()}}, "Expected `manifest` to hold"),
    ({"a": small()}, {"resize": "crop"}, "or [H, W, 3], to decode images. Received: heads that"),
    ({"a": small()}, {"resize": "fit"}, "'crop', 'stretch', 'none'. Received: 'fit'."),
    ({"a": small()}, {"warmup_batch_sizes": [1, 0]}, "Received: [1, 0]. Name those"),
]


@pytest.mark.parametrize(("heads", "arguments", "message"), REFUSED)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    tmp_path, heads, arguments, message
):
    with pytest.raises(UsageError) as caught:
        export_version(heads, tmp_path / "models" / "shop" / "1", **arguments)
    assert message in str(caught.value)
    assert names_in(tmp_path) == []


class EndsIn(keras.layers.Layer):
    """A layer, which might as well be a subclassed model, that ends its `call` in a function."""

    def __init__(self, function, **options):
        super().__init__(**options)
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


@pytest.mark.parametrize(
    "last",
    [
        keras.layers.Dense(2, "softmax", name="last"),
        keras.layers.Dense(2, "sigmoid", name="last"),
        keras.layers.Dense(2, keras.ops.softmax, name="last"),
        keras.layers.Activation("softmax", name="last"),
        keras.layers.Activation(tf.nn.softmax, name="last"),
        keras.layers.Softmax(name="last"),
        EndsIn(keras.ops.softmax, name="last"),
        EndsIn(tf.nn.sigmoid, name="last"),
        keras.Sequential([keras.layers.Dense(2, "softmax", name="last")]),
    ],
)
@pytest.mark.parametrize("functional", [True, False])
def test_a_head_that_ends_in_probabilities_is_refused(tmp_path, last, functional):
    # A network of keras.applications with its top, for example: a second softmax flattens them.
    point = keras.Input((2,))
    layers = [point, last]
    head = keras.Model(point, last(point)) if functional else keras.Sequential(layers)
    with pytest.raises(UsageError, match="to return logits.* probabilities, from the layer 'last'"):
        export_version({"a": head}, tmp_path / "1")
    assert names_in(tmp_path) == []


def test_a_head_with_a_layer_of_ones_own_is_exported(tmp_path):
    point = keras.Input((2,))
    head = keras.Model(point, EndsIn(keras.ops.tanh)(point))
    assert export_version({"a": head}, tmp_path / "1").is_dir()


def test_the_sigmoid_of_one_logit_is_the_probability_of_the_second_class(tmp_path):
    point = keras.Input((1,))
    head = keras.Model(point, keras.layers.Identity()(point))
    version = export_version({"spam": head}, tmp_path / "1", classes={"spam": ["no", "yes"]})
    with contextlib.closing(LoadedVersion(version)) as loaded:
        answer = loaded.run("spam", {"inputs": np.array([[np.log(3)], [-np.log(3)]], np.float32)})
    np.testing.assert_allclose(answer["probabilities"], [[0.25, 0.75], [0.75, 0.25]], rtol=1e-6)
    assert answer["label"].tolist() == [b"yes", b"no"]


def test_the_folder_of_a_version_is_an_integer(tmp_path):
    with pytest.raises(UsageError, match="named by an integer.* Received: 'latest'"):
        export_version({"a": small()}, tmp_path / "latest")
    assert names_in(tmp_path) == []


def names_in(directory):
    """List what is in a folder, but the lock by which publishers take turns."""
    return sorted(path.name for path in directory.iterdir() if path.name != ".lock")


def test_a_version_is_known_by_its_weights(models, make_heads, tmp_path):
    assert is_exported(make_heads(), models / "shop" / "1")
    assert not is_exported(make_heads(sign=-1.0), models / "shop" / "1")
    assert not is_exported({"pets": make_heads()["pets"]}, models / "shop" / "1")
    assert not is_exported(make_heads(), tmp_path / "1")


def test_a_task_may_have_almost_any_name(tmp_path, inputs):
    names = ["cats & dogs", "größe", "a/b", "2", "variables", "a" * 300]
    version = LoadedVersion(export_version({name: small() for name in names}, tmp_path / "1"))
    for name in names:
        assert len(version.run(name, {"inputs": inputs})["label"]) == 2


def test_a_layer_with_an_illegal_name_is_refused_and_later_models_still_work(tmp_path, inputs):
    # Keras opens a name scope for each layer and leaves it open if TensorFlow refuses the name.
    point = keras.Input((2,))
    for head in (
        keras.Model(point, keras.layers.Dense(2)(point), name="cats & dogs"),
        keras.Sequential([point, keras.layers.Dense(2, name="größe")]),
        keras.Sequential([point, keras.Sequential([keras.layers.Dense(2, name="a b")])]),
    ):
        with pytest.raises(UsageError, match="layer of 'a' .* Received: '(cats & dogs|größe|a b)'"):
            export_version({"a": head}, tmp_path / "1")
    assert small().predict(inputs, verbose=0).shape == (2, 2)
    export_version({"a": small()}, tmp_path / "1")


# Before training.


def test_what_can_be_exported_passes_and_leaves_nothing_behind(tmp_path):
    check_exportable(["pets", "cats & dogs"], tmp_path / "models" / "shop")
    check_exportable(["pets"], tmp_path)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "names", [["pets", "serving_default"], ["_a"], [""], ["signatures"], ["\ud800"], [3]]
)
def test_a_task_that_cannot_name_a_signature_is_refused_before_training(tmp_path, names):
    with pytest.raises(UsageError, match="name a signature.* Rename the task."):
        check_exportable(names, tmp_path)


def test_tasks_of_one_name_are_refused_before_training(tmp_path):
    with pytest.raises(UsageError, match="different names. Received: 'pets' more than once"):
        check_exportable(["pets", "fruit", "pets"], tmp_path)


@pytest.mark.parametrize("below", [".", "shop", "shop/shoes"])
def test_a_folder_that_is_a_file_or_below_one_is_refused_before_training(tmp_path, below):
    (tmp_path / "models").write_text("notes")
    for check in (
        lambda folder: check_exportable(["pets"], folder),
        lambda folder: export_version({"pets": small()}, folder / "1"),
    ):
        with pytest.raises(UsageError, match="models' is a file, or a link"):
            check(tmp_path / "models" / below)
    assert (tmp_path / "models").read_text() == "notes"


def test_a_link_to_nowhere_is_refused_before_training(tmp_path):
    (tmp_path / "models").symlink_to(tmp_path / "missing")
    with pytest.raises(UsageError, match="models' is a file, or a link"):
        check_exportable(["pets"], tmp_path / "models" / "shop")


def test_a_full_disk_is_an_export_error_and_leaves_nothing(tmp_path, monkeypatch):
    def fill(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", fill)
    with pytest.raises(ExportError, match="No space left on device. Version 1 was not published"):
        export_version({"a": small()}, tmp_path / "1")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "size"),
    [("variables.index", 7), ("variables.data-00000-of-00001", 20), ("variables.index", None)],
)
def test_a_version_whose_weights_cannot_be_read_is_damaged(
    models, make_heads, tmp_path, file, size
):
    shutil.copytree(models / "shop" / "1", tmp_path / "1")
    path = tmp_path / "1" / "variables" / file
    path.write_bytes(path.read_bytes()[:size]) if size else path.unlink()
    with pytest.raises(LoadError, match="version 1 .* damaged version.*remove its folder") as found:
        is_exported(make_heads(), tmp_path / "1")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("leave", ["nothing", "a folder", "a file"])
def test_a_folder_that_vanishes_while_a_version_is_written_is_said_to(tmp_path, leave):
    def vanish(folder, version):
        shutil.rmtree(tmp_path / "m")
        if leave == "a folder":
            folder.mkdir(parents=True)
        if leave == "a file":
            (tmp_path / "m").touch()
        return {}

    with pytest.raises(ExportError) as caught:
        export_version({"a": small()}, tmp_path / "m" / "1", approve=vanish)
    assert "m' has vanished while the version was written. Version 1 was" in str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "m" / "1").exists()
