"""Requests that the stand-in keeps."""

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from keras_mas.errors import UsageError
from keras_mas.serving.standin import LogSettings, ServerOptions, StandIn, config_of
from keras_mas.serving.standin.request_log import PredictLog, RequestLog, log_settings_of

HALF = "half_plus_two"


def read(folder):
    """The records in a folder, in the order of the names of its files."""
    files = sorted(map(str, folder.glob("*.tfrecord")))
    records = tf.data.TFRecordDataset(files).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]


def numbered(number):
    log = PredictLog()
    log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([number])))
    return log


def fill(log, count):
    for number in range(count):
        log.offer(lambda number=number: numbered(number))
    log.close()


def test_requests_over_both_interfaces_are_kept(models, tmp_path):
    options = ServerOptions(request_log=LogSettings(f"{tmp_path}/requests"))
    with StandIn({HALF: models / HALF}, grpc_port=0, rest_port=0, options=options) as server:
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/{HALF}:predict"
        assert requests.post(url, json={"instances": [2.0, 5.0]}, timeout=10).ok
        assert not requests.post(url, json={"instances": ["a"]}, timeout=10).ok
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            request = predict_pb2.PredictRequest(model_spec={"name": HALF})
            request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([7.0])))
            prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request)
    rest, over_grpc = read(tmp_path)  # not the refused one
    for record, x, y in ((rest, [2.0, 5.0], [3.0, 4.5]), (over_grpc, [7.0], [5.5])):
        log = record.predict_log
        assert tf.make_ndarray(log.request.inputs["x"]).tolist() == x
        assert tf.make_ndarray(log.response.outputs["y"]).tolist() == y
        assert record.log_metadata.model_spec.name == HALF
        assert record.log_metadata.model_spec.version.value == 123
        assert record.log_metadata.sampling_config.sampling_rate == 1.0


def test_a_fraction_is_kept_and_only_that_is_made_into_records(tmp_path):
    made = []

    def make():
        made.append(numbered(0))
        return made[-1]

    log = RequestLog(LogSettings(f"{tmp_path}/a", 0.25), seed=0)
    for _ in range(400):
        log.offer(make)
    log.close()
    assert 70 < len(made) < 130 and len(read(tmp_path)) == len(made)


def test_nothing_is_kept_at_rate_zero(tmp_path):
    fill(RequestLog(LogSettings(f"{tmp_path}/a", 0.0)), 100)
    assert not list(tmp_path.iterdir())


def test_files_are_limited_in_size_and_number(tmp_path):
    size = len(prediction_log_pb2.PredictionLog(predict_log=numbered(0)).SerializeToString())
    settings = LogSettings(f"{tmp_path}/a", max_file_bytes=4 * size, max_files=2)
    fill(RequestLog(settings), 20)
    assert len(list(tmp_path.iterdir())) == 2
    kept = [tf.make_ndarray(each.predict_log.request.inputs["x"]).item() for each in read(tmp_path)]
    assert kept == sorted(kept) and kept[-1] == 19.0 and len(kept) < 10


def test_what_cannot_be_written_is_counted(tmp_path, caplog):
    folder = tmp_path / "logs"
    folder.mkdir()
    log = RequestLog(LogSettings(f"{folder}/a"))
    folder.rmdir()
    fill(log, 3)
    assert log.failed == 3
    assert len(caplog.records) == 1 and "not logged until" in caplog.text


def test_a_full_disk_costs_no_earlier_file(tmp_path, monkeypatch):
    log = RequestLog(LogSettings(f"{tmp_path}/a", max_files=2))
    log.offer(lambda: numbered(1))
    for method in ("flush", "__init__"):  # no room for a record, or for another file
        with monkeypatch.context() as full:
            full.setattr(tf.io.TFRecordWriter, method, fail)
            for number in range(2, 6):
                log.offer(lambda number=number: numbered(number))
    assert log.failed == 8
    fill(log, 1)
    values = [tf.make_ndarray(each.predict_log.request.inputs["x"]) for each in read(tmp_path)]
    assert values[0] == 1.0 and values[-1] == 0.0
    assert len(list(tmp_path.iterdir())) == 2


def fail(*_, **__):
    raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")


def test_a_log_is_readable_while_it_is_written(tmp_path):
    log = RequestLog(LogSettings(f"{tmp_path}/a"))
    log.offer(lambda: numbered(1))
    assert len(read(tmp_path)) == 1
    log.close()


def test_settings_of_a_model_configuration(models, tmp_path):
    config = config_of({HALF: models / HALF})
    logging_config = config.model_config_list.config[0].logging_config
    logging_config.log_collector_config.filename_prefix = f"{tmp_path}/half"
    logging_config.sampling_config.sampling_rate = 0.5
    assert log_settings_of(config) == {HALF: LogSettings(f"{tmp_path}/half", 0.5)}
    logging_config.sampling_config.sampling_rate = 1.0
    with StandIn(config, grpc_port=0, rest_port=0) as server:
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/{HALF}:predict"
        assert requests.post(url, json={"instances": [2.0]}, timeout=10).ok
    assert len(read(tmp_path)) == 1


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_is_a_fraction(tmp_path, rate):
    with pytest.raises(UsageError, match="sampling rate from 0 to 1"):
        LogSettings(f"{tmp_path}/a", rate)


def test_a_missing_folder_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="to exist and to be writable"):
        LogSettings(f"{tmp_path}/none/a")
