import gzip
import io
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import prediction_log_pb2

from keras_mas.errors import UsageError
from keras_mas.serving import images
from keras_mas.serving.traffic import Collector, InputForm, read_examples, read_requests

FORM = InputForm(shape=(2,), heads=("pets", "fruit"))


def request(value, name="inputs", model="shop", signature=""):
    """Return a record of a request with one input."""
    log = prediction_log_pb2.PredictionLog()
    spec = log.predict_log.request.model_spec
    spec.name, spec.signature_name = model, signature
    log.predict_log.request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return log.SerializeToString()


@pytest.fixture
def write(tmp_path):
    """A function that writes records to a log, and returns its path."""

    def write(*records, name="log", compression=""):
        path = tmp_path / name
        with tf.io.TFRecordWriter(str(path), compression) as writer:
            for record in records:
                writer.write(record)
        return path

    return write


def collect(*paths, form=FORM, model=None, **options):
    collector = Collector(form, **options)
    read_requests(paths, collector, model=model)
    return collector


ROWS = np.arange(8, dtype=np.float32).reshape(4, 2)


def assert_same(inputs, expected):
    """Inputs are drawn in random order."""
    assert sorted(map(np.ndarray.tolist, inputs)) == sorted(np.asarray(expected).tolist())


def test_every_example_of_every_request_is_read_with_the_head_that_was_asked(write):
    log = write(request(ROWS[:3], signature="pets"), request(ROWS[3:], signature="serving_default"))
    asked = collect(log).asked
    assert_same(asked.inputs, ROWS)
    by_head = dict(asked.by_head())
    assert_same(by_head[None], ROWS[3:])
    assert_same(by_head["pets"], ROWS[:3])


def test_a_compressed_log_is_read_too(write):
    log = write(request(ROWS), compression="GZIP")
    assert gzip.decompress(log.read_bytes())
    assert_same(collect(log).asked.inputs, ROWS)


def test_equal_inputs_are_measured_once(write):
    log = write(request(ROWS), request(ROWS[::-1]), request(ROWS[:1], signature="pets"))
    collector = collect(log)
    # The last is asked of another head, which makes it another example.
    assert (collector.examples, collector.duplicates, len(collector)) == (9, 4, 5)


def test_a_limited_number_is_drawn_evenly_and_by_seed():
    def draw(seed):
        collector = Collector(FORM, limit=10, seed=seed)
        for number in range(40):
            collector.add(np.array([number, 0.0]))
        return collector.asked.inputs[:, 0]

    drawn = [draw(seed) for seed in range(60)]
    assert all(len(set(each)) == 10 for each in drawn)
    np.testing.assert_array_equal(drawn[7], draw(7))
    # Of 60 draws of 10 out of 40, each is in 15 on average, with a standard deviation of 3.4.
    counts = np.bincount(np.concatenate(drawn).astype(int), minlength=40)
    assert counts.min() >= 3 and counts.max() <= 29


def test_the_same_inputs_are_drawn_in_whatever_order_they_are_read(write):
    values = np.random.default_rng(0).normal(size=[40, 2]).astype(np.float32)
    one = collect(write(request(values)), limit=7)
    other = collect(write(request(values[::-1])), limit=7)
    np.testing.assert_array_equal(one.asked.inputs, other.asked.inputs)
    # The order is random: the first inputs of a log are not the first of those that were drawn.
    assert (one.asked.inputs[0] != values[:3]).any(axis=1).all()


def test_what_cannot_be_used_is_counted_by_what_it_is(write):
    classify = prediction_log_pb2.PredictionLog()
    classify.classify_log.request.model_spec.name = "shop"
    damaged = prediction_log_pb2.PredictionLog()
    damaged.predict_log.request.model_spec.name = "shop"
    damaged.predict_log.request.inputs["inputs"].dtype = 1
    damaged.predict_log.request.inputs["inputs"].tensor_shape.dim.add(size=1)
    damaged.predict_log.request.inputs["inputs"].float_val.extend([1.0, 2.0])
    log = write(
        request(ROWS[:1]),
        request(ROWS, model="cars"),
        request(np.zeros([2, 3], np.float32)),
        request(np.array([[1.0, np.nan], [2.0, np.inf]], np.float32)),
        request([["a", "b"]]),
        request(ROWS, name="pixels"),
        request(np.float32(1.0)),
        b"\xff\xff",
        classify.SerializeToString(),
        damaged.SerializeToString(),
        request([b"JPEG"], name="image_bytes"),
        b"",
    )
    collector = collect(log, model="shop")
    np.testing.assert_array_equal(collector.asked.inputs, ROWS[:1])
    assert collector.left_out == {
        "requests to the model 'cars'": 1,
        "inputs of shape [3]": 2,
        "inputs with NaN or infinity": 2,
        "requests whose tensor is damaged or of another type": 3,
        "requests with another input, 'pixels'": 1,
        "records that are no PredictionLog": 1,
        "records of classify requests": 1,
        "files of images, which `--resize` would give the size of inputs": 1,
        "records of no requests": 1,
    }


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_a_log_is_read_up_to_where_it_is_cut_off(write, compression):
    noise = np.random.default_rng(0).normal(size=[50, 2]).astype(np.float32)
    log = write(*(request(row[None]) for row in noise), compression=compression)
    log.write_bytes(log.read_bytes()[:-100])
    collector = collect(log)
    assert 0 < len(collector) < 50
    [(what, count)] = collector.left_out.items()
    assert count == 1 and what.endswith(
        f"from record {len(collector) + 1} on, where it is damaged or cut off"
    )
    assert_same(collector.asked.inputs, noise[: len(collector)])


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_log_that_ends_within_the_length_of_a_record_is_cut_off(write, compress):
    # TensorFlow takes what is shorter than a length and its checksum for the end of the file.
    content = write(request(ROWS)).read_bytes()
    path = write(name="cut")
    path.write_bytes(compress(content + content[:11]))
    collector = collect(path)
    assert_same(collector.asked.inputs, ROWS)
    cut = f"'{path}' from record 2 on, where it is damaged or cut off"
    assert collector.left_out == {cut: 1}


@pytest.mark.parametrize(
    "dtype, size",
    [(tf.float32, 10**12), (tf.string, 10**12), (tf.resource, 1), (tf.variant, 1)],
    ids=["large", "large of strings", "resource", "variant"],
)
def test_a_tensor_that_no_client_can_have_sent_is_damaged(write, dtype, size):
    log = prediction_log_pb2.PredictionLog()
    tensor = log.predict_log.request.inputs["inputs"]
    tensor.dtype = dtype.as_datatype_enum
    tensor.tensor_shape.dim.add(size=size)
    collector = collect(write(log.SerializeToString(), request(ROWS, model="")))
    assert_same(collector.asked.inputs, ROWS)
    assert collector.left_out == {"requests whose tensor is damaged or of another type": 1}


def test_one_damaged_log_of_several_is_left_out(write, tmp_path):
    (tmp_path / "foreign").write_text("a text, and no log at all, but long enough to have a header")
    collector = collect(tmp_path / "foreign", write(request(ROWS)))
    assert len(collector) == 4
    whole = "which is no TFRecord file, or damaged or cut off in its first record"
    assert collector.left_out == {f"'{tmp_path}/foreign', {whole}": 1}


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8bhello", bytes(100)])
def test_files_without_any_record_are_refused(tmp_path, content):
    (tmp_path / "foreign").write_bytes(content)
    with pytest.raises(UsageError, match="Expected logs of requests: .* Name other files"):
        collect(tmp_path / "foreign")


def test_a_missing_log_is_refused(tmp_path):
    with pytest.raises(UsageError, match="gone'. Received: no such file or directory"):
        collect(tmp_path / "gone")


def test_the_model_must_be_named_if_there_are_several(write):
    log = write(request(ROWS), request(ROWS, model="cars"), request(ROWS))
    with pytest.raises(UsageError, match=r"requests to shop \(2\), cars \(1\). Name .*`--model`"):
        collect(log)
    assert len(collect(log, model="cars")) == 4


# Images and examples.


def png(colour, size=(4, 3)):
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, "PNG")
    return content.getvalue()


def test_files_of_images_are_decoded_as_the_graph_does_it(write):
    form = InputForm((2, 2, 3), ("pets",), resize="crop")
    log = write(request([png("red"), b"no image", png("blue")], name="image_bytes"))
    collector = collect(log, form=form)
    expected = images.decode(tf.constant([png("red"), png("blue")]), (2, 2, 3), "crop")
    assert_same(collector.asked.inputs, expected)
    assert collector.left_out == {"images that cannot be decoded": 1}


def test_equal_files_are_decoded_once_and_counted_each_time(write, monkeypatch):
    decoded, decode = [], images.decode
    monkeypatch.setattr(images, "decode", lambda *args: decoded.append(1) or decode(*args))
    red, blue = png("red"), png("blue")
    # Of one file, sent to several heads, there are inputs of each.
    records = [
        request([red, red, blue], name="image_bytes"),
        request([red, red], name="image_bytes", signature="pets"),
        request([b"no image"] * 2, name="image_bytes"),
    ]
    seen = []
    form = InputForm((2, 2, 3), ("pets",), resize="crop")
    collector = collect(write(*records), form=form, on_read=seen.append)
    assert (collector.examples, collector.duplicates, len(collector)) == (5, 2, 3)
    assert collector.left_out == {"images that cannot be decoded": 2}
    assert len(decoded) == 5 and seen == [1, 2, 3, 4, 5]


def example(**features):
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@pytest.mark.parametrize("compression", ["", "GZIP"])
def test_files_of_examples_are_read_and_what_is_damaged_is_counted(write, compression):
    rows = [tf.train.Feature(float_list=tf.train.FloatList(value=row)) for row in ROWS]
    records = [*(example(inputs=row) for row in rows), example(pixels=rows[0])]
    path = write(*records, name="part.tfrecord", compression=compression)
    collector = Collector(FORM)
    read_examples(path, collector)
    assert_same(collector.asked.inputs, ROWS)
    assert collector.left_out == {"examples without a feature 'inputs' of the right size": 1}
    assert (collector.files, collector.examples) == (1, 4)

    path.write_bytes(path.read_bytes()[:-9])
    cut = Collector(FORM)
    read_examples(path, cut)
    assert any(str(path) in what for what in cut.left_out)
    with pytest.raises(UsageError, match="a TFRecord file of .* 'gone'. Received: no such file"):
        read_examples(Path("gone"), cut)


def test_serialized_examples_are_parsed(write):
    floats = tf.train.Feature(float_list=tf.train.FloatList(value=ROWS[1]))
    values = [example(inputs=floats), example(other=floats), b"\xff"]
    collector = collect(write(request(values, name="examples")))
    np.testing.assert_array_equal(collector.asked.inputs, ROWS[1:2])
    assert collector.left_out == {"examples without a feature 'inputs' of the right size": 2}

    form = InputForm((2, 2, 3), ("pets",), resize="stretch")
    file = tf.train.Feature(bytes_list=tf.train.BytesList(value=[png("white")]))
    log = write(request([example(image_bytes=file)], name="examples"), name="images")
    np.testing.assert_array_equal(
        collect(log, form=form).asked.inputs, np.full([1, 2, 2, 3], 255.0)
    )
