import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from keras_mas.serving.export import export_version
from keras_mas.serving.runtime import LoadedVersion
from keras_mas.serving.warmup import WarmupError, replay_warmup

REQUESTS = "assets.extra/tf_serving_warmup_requests"


def requests_of(version):
    records = tf.data.TFRecordDataset(str(version / REQUESTS)).as_numpy_iterator()
    logs = [prediction_log_pb2.PredictionLog.FromString(record) for record in records]
    assert {log.WhichOneof("log_type") for log in logs} == {"predict_log"}
    return [log.predict_log.request for log in logs]


def test_there_is_a_request_for_every_signature_and_batch_size(tmp_path, make_heads):
    version = export_version(make_heads(), tmp_path / "shop" / "1", warmup_batch_sizes=[2, 5])
    requests = requests_of(version)
    assert {request.model_spec.name for request in requests} == {"shop"}
    shapes = {
        (request.model_spec.signature_name, name, tf.make_ndarray(proto).shape)
        for request in requests
        for name, proto in request.inputs.items()
    }
    numbers = ("pets", "fruit", "serving_default")
    assert shapes == {
        *((signature, "inputs", (size, 2)) for signature in numbers for size in (2, 5)),
        *(("examples", "examples", (size,)) for size in (2, 5)),
    }
    assert len(requests) == len(shapes)


def test_a_batch_of_more_memory_than_a_server_can_spare_is_left_out(tmp_path):
    volume = keras.Input([None, None, None, 1])  # 224³ stand for it, 45 MB
    heads = {"scan": keras.Model(volume, keras.layers.GlobalAveragePooling3D()(volume))}
    options = {"classes": {"scan": ["brain"]}, "warmup_batch_sizes": [32, 1, 2]}
    version = export_version(heads, tmp_path / "scans" / "1", **options)
    sizes = [r.inputs["inputs"].tensor_shape.dim[0].size for r in requests_of(version)]
    assert sizes == [1, 1, 2, 2]  # of each signature, for all heads and for one


def test_a_batch_repeats_one_input(models):
    # A server fills a tensor with the last value of the request, as `make_ndarray` does.
    request = next(r for r in requests_of(models / "shop" / "1") if r.inputs["inputs"].ByteSize())
    assert len(request.inputs["inputs"].float_val) == 1
    assert tf.make_ndarray(request.inputs["inputs"]).tolist() == [[0.0, 0.0]]


def test_the_requests_are_replayed(models, tmp_path):
    shop = LoadedVersion(models / "shop" / "1")
    replay_warmup(models / "shop" / "1", shop)
    # Another model's requests fail, by the name of its signature or by the shape of its input.
    for signature, shape, message in (
        ("cars", (1, 2), "\"cars\" not found.* \\(signature 'cars', 'inputs' \\[1, 2\\]\\)"),
        ("pets", (4, 3), "\\[4,3\\] is not compatible.*'inputs' \\[4, 3\\]\\)"),
    ):
        folder = tmp_path / signature
        shutil.copytree(models / "shop" / "1", folder)
        request = requests_of(folder)[0]
        request.model_spec.signature_name = signature
        request.inputs["inputs"].CopyFrom(tf.make_tensor_proto(np.zeros(shape, np.float32)))
        log = prediction_log_pb2.PredictionLog()
        log.predict_log.request.CopyFrom(request)
        with tf.io.TFRecordWriter(str(folder / REQUESTS)) as writer:
            writer.write(log.SerializeToString())
        with pytest.raises(WarmupError, match=f"(?s){message}"):
            replay_warmup(folder, shop)


@pytest.mark.parametrize("size", [2, 10**12])
def test_a_request_whose_tensor_is_damaged_fails_as_any_other(models, tmp_path, size):
    # Another error would end the thread of a server that loads versions.
    folder = tmp_path / "shop"
    shutil.copytree(models / "shop" / "1", folder)
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = "pets"
    tensor = log.predict_log.request.inputs["inputs"]
    tensor.dtype, tensor.tensor_content = tf.float32.as_datatype_enum, b"abc"
    tensor.tensor_shape.dim.add(size=size)
    with tf.io.TFRecordWriter(str(folder / REQUESTS)) as writer:
        writer.write(log.SerializeToString())
    with pytest.raises(WarmupError, match=r"a tensor .* \(signature 'pets'\)"):
        replay_warmup(folder, LoadedVersion(models / "shop" / "1"))
