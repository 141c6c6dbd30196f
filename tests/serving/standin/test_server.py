import concurrent.futures
import signal
import socket
import threading

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_mas.errors import UsageError
from keras_mas.serving.standin import PortError, StandIn, config_of

HALF = "half_plus_two"


@pytest.fixture
def url(server):
    return f"http://127.0.0.1:{server.rest_port}/v1/models"


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@pytest.fixture
def predictions(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture
def states(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel)


def ask(name, x, **spec):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    for key, value in spec.items():
        if key == "version":
            request.model_spec.version.value = value
        else:
            setattr(request.model_spec, key, value)
    if x is not None:
        request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array(x, np.float32)))
    return request


# Requests that succeed.


class SignalError(Exception):
    """What the handler of a signal raises."""


def test_a_signal_that_does_not_end_the_wait_is_handled_all_the_same(models):
    def handle(number, frame):
        raise SignalError

    def send():
        # The system gives it to this thread, since the other one has blocked it; so the wait of
        # that one is not interrupted, as by a signal that comes just before it begins.
        signal.raise_signal(signal.SIGUSR1)
        if not ended.wait(10):
            was_stopped.append(True)
            server.stop()

    was_stopped: list[bool] = []
    server, ended = StandIn({"shop": models / "shop"}), threading.Event()
    before = signal.signal(signal.SIGUSR1, handle)
    sender = threading.Timer(0.2, send)
    sender.start()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        with pytest.raises(SignalError):
            server.wait()
    finally:
        ended.set()
        sender.join()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        signal.signal(signal.SIGUSR1, before)
    assert not was_stopped


def test_half_plus_two_in_rows_and_columns(url):
    rows = requests.post(f"{url}/{HALF}:predict", data='{"instances": [1.0, 2.0, 5.0]}')
    assert rows.status_code == 200 and rows.headers["Content-Type"] == "application/json"
    assert rows.json() == {"predictions": [2.5, 3.0, 4.5]}
    columns = requests.post(f"{url}/{HALF}:predict", data='{"inputs": {"x": [1.0, 2.0, 5.0]}}')
    assert columns.json() == {"outputs": [2.5, 3.0, 4.5]}


def test_half_plus_two_over_grpc(predictions):
    response = predictions.Predict(ask(HALF, [1, 2, 5]))
    assert tf.make_ndarray(response.outputs["y"]).tolist() == [2.5, 3.0, 4.5]
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == (HALF, 123, "serving_default")


def test_rows_of_several_outputs_are_objects(url, inputs):
    body = {"signature_name": "fruit", "instances": inputs[:1].tolist()}
    answer = requests.post(f"{url}/shop:predict", json=body).json()
    assert answer == {
        "predictions": [{"class": 2, "label": "2", "probabilities": [0.25, 0.25, 0.5]}]
    }


def test_the_latest_version_is_used_unless_another_is_named(url, inputs):
    # Version 2 has the pets the other way round.
    body = {"signature_name": "pets", "inputs": inputs.tolist()}
    labels = [
        requests.post(f"{url}/shop{version}:predict", json=body).json()["outputs"]["label"]
        for version in ("", "/versions/1", "/versions/2")
    ]
    assert labels == [["cat", "dog"], ["dog", "cat"], ["cat", "dog"]]


def test_not_a_number_is_written_as_nan(url):
    answer = requests.post(f"{url}/{HALF}:predict", data='{"instances": [NaN, 2.0]}')
    assert answer.text == '{"predictions": [NaN, 3.0]}'


def test_status_of_all_versions_and_of_one(url):
    available = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert requests.get(f"{url}/shop").json() == {
        "model_version_status": [{"version": "2", **available}, {"version": "1", **available}]
    }
    assert requests.get(f"{url}/shop/versions/2").json() == {
        "model_version_status": [{"version": "2", **available}]
    }


# With the operation that initializes the version, as TensorFlow Serving does.
LISTED = ["__saved_model_init_op", "examples", "fruit", "pets", "serving_default"]


def test_metadata_has_the_signatures(url):
    metadata = requests.get(f"{url}/shop/versions/1/metadata").json()
    assert metadata["model_spec"]["version"] == "1"
    signatures = metadata["metadata"]["signature_def"]["signature_def"]
    assert sorted(signatures) == LISTED
    image = signatures["pets"]["inputs"]["inputs"]
    assert image["dtype"] == "DT_FLOAT"
    assert [dim["size"] for dim in image["tensor_shape"]["dim"]] == ["-1", "2"]


def test_metadata_over_grpc(predictions):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "shop"
    response = predictions.GetModelMetadata(request)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert sorted(signatures.signature_def) == LISTED
    assert response.model_spec.version.value == 2


def test_some_outputs_can_be_left_out(predictions):
    request = ask("shop", None, signature_name="pets")
    request.inputs["inputs"].CopyFrom(tf.make_tensor_proto([[1.0, 2.0]]))
    request.output_filter.append("label")
    assert list(predictions.Predict(request).outputs) == ["label"]
    request.output_filter.append("z")
    assert_refused(
        predictions.Predict, request, "INVALID_ARGUMENT", "alias not found in signature: z"
    )


def test_a_version_that_does_not_load_ends_and_the_others_serve(url, states):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "half_broken"
    second, first = states.GetModelStatus(request).model_version_status
    state = get_model_status_pb2.ModelVersionStatus.State
    assert (first.version, first.state) == (1, state.Value("AVAILABLE"))
    assert (second.version, second.state) == (2, state.Value("END"))
    assert "Expected a complete SavedModel in" in second.status.error_message
    answer = requests.post(f"{url}/half_broken:predict", data='{"instances": [2.0]}')
    assert answer.json() == {"predictions": [3.0]}


def test_a_message_may_be_larger_than_four_megabytes(server):
    count = 2 * 2**20  # 8 MB of float32
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options=options) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = tf.make_ndarray(stub.Predict(ask(HALF, np.ones(count))).outputs["y"])
    assert answer.shape == (count,) and (answer == 2.5).all()


def test_many_requests_at_once_over_one_model(url):
    def half_plus_two(i):
        return requests.post(f"{url}/{HALF}:predict", json={"instances": [2 * i]}).json()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(half_plus_two, range(40)))
    assert answers == [{"predictions": [i + 2.0]} for i in range(40)]


# Requests that fail, with the messages of TensorFlow Serving.


@pytest.mark.parametrize(
    "tensor",
    [
        {"dtype": "DT_RESOURCE"},
        {"dtype": "DT_FLOAT", "float_val": [1.0], "size": 10**14},  # 364 TiB
        {"dtype": "DT_FLOAT", "float_val": [1.0], "size": -1},
    ],
)
def test_grpc_refuses_tensors_that_cannot_be_read(predictions, tensor):
    tensor = dict(tensor)
    size = tensor.pop("size", 1)
    request = ask(HALF, [1])
    request.inputs["x"].CopyFrom(tensor_pb2.TensorProto(**tensor))
    request.inputs["x"].tensor_shape.dim.add(size=size)
    assert_refused(predictions.Predict, request, "INVALID_ARGUMENT", "tensor parsing error: x")


def test_metrics_asked_for_with_a_configuration_have_not_grown(models):
    config = config_of({"half": models / "half_plus_two"})
    with (
        StandIn(config, grpc_port=0, rest_port=0) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel,
    ):
        request = model_management_pb2.ReloadConfigRequest(
            config=config, metric_names=["/b", "/a", "/b"]
        )
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        response = stub.HandleReloadConfigRequest(request)
    grown = [(metric.name, metric.int64_value_increase) for metric in response.metric]
    assert sorted(grown) == [("/a", 0), ("/b", 0)]


def test_grpc_methods_the_stand_in_lacks_are_unimplemented(predictions):
    message = "The stand-in does not serve this method."
    classify = classification_pb2.ClassificationRequest()
    assert_refused(predictions.Classify, classify, "UNIMPLEMENTED", message)


def test_methods_that_no_server_has_are_unimplemented_without_a_word(channel):
    call = channel.unary_unary("/tensorflow.serving.PredictionService/Guess")
    with pytest.raises(grpc.RpcError) as caught:
        call(b"", timeout=5)
    assert (caught.value.code().name, caught.value.details()) == ("UNIMPLEMENTED", "")


def test_rest_methods_the_stand_in_lacks_are_unimplemented(url):
    answer = requests.post(f"{url}/shop:classify", data="{}", timeout=5)
    assert answer.status_code == 501
    assert answer.json() == {"error": "The stand-in does not serve the method: classify"}


def assert_refused(method, request, code, message):
    with pytest.raises(grpc.RpcError) as caught:
        method(request, timeout=5)
    assert caught.value.code().name == code
    assert message in caught.value.details()


# Starting and stopping.


def test_no_model_or_no_version_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="at least one model to serve. Received: none."):
        StandIn({}).start()
    with pytest.raises(UsageError, match=f"versions of 'shop' as folders '{tmp_path}/<integer>/'"):
        StandIn({"shop": tmp_path}).start()
    with pytest.raises(UsageError, match="Received: no such folder"):
        StandIn({"shop": tmp_path / "missing"}).start()


@pytest.mark.parametrize("host", ["::1", "203.0.113.7", "no such host"])
def test_an_address_that_is_not_here_is_named(models, host):
    with pytest.raises(UsageError, match=f"IPv4 address of this machine.* Received: '{host}'"):
        StandIn({HALF: models / HALF}, host=host, grpc_port=0, rest_port=0).start()


@pytest.mark.parametrize("taken", ["grpc_port", "rest_port"])
def test_a_port_in_use_is_named_and_nothing_is_left_running(server, models, free_ports, taken):
    ports = free_ports | {taken: getattr(server, taken)}
    with pytest.raises(PortError, match=f"Expected port {ports[taken]} on 127.0.0.1 to be free"):
        StandIn({HALF: models / HALF}, **ports).start()
    del ports[taken]
    (other,) = ports.values()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", other))


def test_wait_lasts_until_stop_and_the_ports_are_closed(models):
    server = StandIn({HALF: models / HALF}, grpc_port=0, rest_port=0).start()
    waiting = threading.Thread(target=server.wait, daemon=True)
    waiting.start()
    assert requests.get(f"http://127.0.0.1:{server.rest_port}/v1/models/{HALF}").ok
    assert waiting.is_alive()
    server.stop()
    server.stop()  # twice does no harm
    waiting.join(timeout=5)
    assert not waiting.is_alive()
    for port in (server.grpc_port, server.rest_port):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_stopping_lets_a_running_grpc_request_finish(models, held_request):
    running, finish = held_request
    server = StandIn({HALF: models / HALF}, grpc_port=0, rest_port=0).start()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = stub.Predict.future(ask(HALF, [2]), timeout=30)
        assert running.wait(30)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        stopping.join(timeout=0.3)  # a server that does not wait has stopped by now
        finish.set()
        assert tf.make_ndarray(answer.result().outputs["y"]).tolist() == [3.0]
        stopping.join()
