"""The stand-in answers as TensorFlow Serving does, by the table in `tests/serving_conformance.py`.

The same requests go to a real server if KERAS_MAS_MODEL_SERVER names its executable.
"""

import contextlib
import http.client
import json

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from serving_conformance import GRPC, REST, Part
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

REQUESTS = {
    "Predict": predict_pb2.PredictRequest,
    "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest,
    "GetModelStatus": get_model_status_pb2.GetModelStatusRequest,
    "HandleReloadConfigRequest": model_management_pb2.ReloadConfigRequest,
}


def marked(case):
    return pytest.param(case, id=case.name, marks=[pytest.mark.slow] * case.slow)


@pytest.mark.parametrize("case", [*map(marked, REST)])
def test_a_rest_request_is_answered_as_by_the_real_server(conformance_ports, case):
    body = case.body() if callable(case.body) else case.body
    data = body.encode() if isinstance(body, str) else body
    status, kind, text = send(conformance_ports[1], case, data)
    assert (status, case.source) == (case.status, case.source), text
    if case.error is not None:
        assert_message(received_error(kind, text), case.error)
    elif isinstance(case.answer, str):
        assert text.split() == case.answer.split() or (
            repr(json.loads(text)) == repr(json.loads(case.answer))
        )
    elif case.answer is not None:
        assert_close(json.loads(text), case.answer)


def send(port, case, data):
    """Send a request with its path as it is, which `requests` would normalize."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    with contextlib.closing(connection):
        connection.request(case.method, case.path, data, dict(case.headers))
        answer = connection.getresponse()
        text = answer.read().decode(errors="surrogateescape")
        return answer.status, answer.getheader("Content-Type", ""), text


def received_error(kind, text):
    """The message of a refusal; a text that is no JSON object is the message itself."""
    if not kind.startswith("application/json") or not text:
        return text
    document = json.loads(text)
    assert list(document) == ["error"]
    return document["error"]


def assert_message(received, expected):
    if isinstance(expected, Part):
        assert expected.text in received
    else:
        assert received == expected


def assert_close(received, expected):
    """Equal, but for rounding in lists of numbers."""
    if isinstance(expected, dict) and isinstance(received, dict):
        assert received.keys() == expected.keys()
        for key in expected:
            assert_close(received[key], expected[key])
    elif received != expected:
        np.testing.assert_allclose(received, expected, rtol=1e-3)


@pytest.fixture(scope="module")
def channel(conformance_ports):
    options = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"127.0.0.1:{conformance_ports[0]}", options) as channel:
        yield channel


@pytest.mark.parametrize("case", [*map(marked, GRPC)])
def test_a_grpc_request_is_answered_as_by_the_real_server(channel, case):
    request = REQUESTS[case.method](**case.request)
    for name, array in case.inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    stubs = (
        prediction_service_pb2_grpc.PredictionServiceStub(channel),
        model_service_pb2_grpc.ModelServiceStub(channel),
    )
    stub = stubs[0] if hasattr(stubs[0], case.method) else stubs[1]
    try:
        response, code, message = getattr(stub, case.method)(request, timeout=300), "OK", ""
    except grpc.RpcError as error:
        response, code, message = None, error.code().name, error.details()
    assert (code, case.source) == (case.code, case.source), message
    assert_message(message, case.error)
    if response is None:
        return
    if isinstance(case.answer, str):
        assert text_format.MessageToString(response) == case.answer
    elif case.answer is not None:
        np.testing.assert_array_equal(tf.make_ndarray(response.outputs["y"]), case.answer)
