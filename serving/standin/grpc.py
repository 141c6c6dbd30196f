"""The stand-in's gRPC interface, made of the servicers in tensorflow-serving-api."""

import contextlib
import socket
from collections.abc import Collection, Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from ..protocol import MESSAGE_LIMITS, STATUS_CODES, invalid_argument
from .models import ServedModels

_THREADS = 8
_GRACE_SECONDS = 5.0  # in which running requests may finish when the server stops


@contextlib.contextmanager
def serve_grpc(models: ServedModels, host: str, port: int) -> Iterator[int]:
    """Answer gRPC requests while the context lasts, and let running ones finish when it ends.

    Args:
        models: Models to serve.
        host: Address to listen on.
        port: Port, or 0 for any free one.

    Yields:
        The port.

    Raises:
        OSError: If the port is taken or not allowed.
        OverflowError: If the port is greater than 65535.
    """
    # gRPC would report a taken port on stderr, and take port 70000 for 70000 - 65536.
    socket.create_server((host, port)).close()
    # By default two servers may listen on one port, and each gets some of the requests.
    options = [("grpc.so_reuseport", 0), *MESSAGE_LIMITS]
    server = grpc.server(futures.ThreadPoolExecutor(_THREADS), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(models), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(models), server)
    port = server.add_insecure_port(f"{host}:{port}")
    server.start()
    try:
        yield port
    finally:
        server.stop(_GRACE_SECONDS).wait()


def _not_served(servicer: object, request: object, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "The stand-in does not serve this method.")


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, models: ServedModels):
        self._models = models

    def Predict(self, request, context):
        with _errors_as_status(context):
            inputs = {name: _to_array(name, proto) for name, proto in request.inputs.items()}
            spec, outputs = self._models.predict(request.model_spec, inputs)
            response = predict_pb2.PredictResponse(model_spec=spec)
            for name in _select(request.output_filter, outputs):
                response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
            return response

    def GetModelMetadata(self, request, context):
        with _errors_as_status(context):
            for field in request.metadata_field:
                if field != "signature_def":
                    raise invalid_argument(f"Metadata field {field} is not supported")
            return self._models.metadata(request.model_spec)

    Classify = Regress = MultiInference = _not_served


class _Model(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models: ServedModels):
        self._models = models

    def GetModelStatus(self, request, context):
        with _errors_as_status(context):
            return self._models.status(request.model_spec)

    HandleReloadConfigRequest = _not_served


@contextlib.contextmanager
def _errors_as_status(context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except tf.errors.OpError as error:
        context.abort(STATUS_CODES[error.error_code], error.message)
    except Exception as error:  # a defect of the stand-in
        context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")


def _to_array(name: str, proto: Any) -> np.ndarray:
    try:
        return tf.make_ndarray(proto)
    except (TypeError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise invalid_argument(f"tensor parsing error: {name}: {error}") from error


def _select(names: Collection[str], outputs: Collection[str]) -> Collection[str]:
    """Return the outputs that a request asks for: those it names, or all of them."""
    for name in names:
        if name not in outputs:
            raise invalid_argument(
                f"output tensor alias not found in signature: {name} "
                f"Outputs expected to be in the set {{{','.join(sorted(outputs))}}}."
            )
    return names or outputs
