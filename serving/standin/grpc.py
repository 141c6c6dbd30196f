"""The stand-in's gRPC interface, made of the servicers in tensorflow-serving-api."""

import contextlib
import math
import socket
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from .models import GRACE_SECONDS, THREADS, ServedModels
from .protocol import MAX_REQUEST_BYTES, Code, RequestError, invalid_argument
from .request_log import PredictLog
from .tensors import write_tensor

_MAX_MESSAGE_BYTES = 1024  # of an error
_STATUS_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


@contextlib.contextmanager
def serve_grpc(
    models: ServedModels, host: str, port: int, max_request_bytes: int = MAX_REQUEST_BYTES
) -> Iterator[int]:
    """Answer gRPC requests while the context lasts, and let running ones finish when it ends.

    What has been received by then and not begun, since other requests came before it, gRPC drops
    as CANCELLED, which no option prevents: clients may send it again.

    Args:
        models: Models to serve.
        host: Address to listen on.
        port: Port, or 0 for any free one.
        max_request_bytes: Largest request; larger ones are refused with RESOURCE_EXHAUSTED.

    Yields:
        The port.

    Raises:
        OSError: If the port is taken or not allowed.
        OverflowError: If the port is greater than 65535.
    """
    # gRPC would report a taken port on stderr, and take port 70000 for 70000 - 65536.
    socket.create_server((host, port)).close()
    options = [
        # By default two servers may listen on one port, and each gets some of the requests.
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", max_request_bytes),
        ("grpc.max_send_message_length", -1),
    ]
    server = grpc.server(futures.ThreadPoolExecutor(THREADS), options=options)
    prediction = _Prediction(models, max_request_bytes)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(prediction, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(models), server)
    server.add_generic_rpc_handlers([_Unknown()])
    port = server.add_insecure_port(f"{host}:{port}")
    server.start()
    try:
        yield port
    finally:
        server.stop(GRACE_SECONDS).wait()


def _not_served(servicer: object, request: object, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "The stand-in does not serve this method.")


class _Unknown(grpc.GenericRpcHandler):
    """Answers calls of methods that no service has: in C++, unlike Python, without a word."""

    def service(self, handler_call_details):
        def refuse(request: bytes, context: grpc.ServicerContext) -> None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "")

        return grpc.unary_unary_rpc_method_handler(refuse)


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, models: ServedModels, max_tensor_bytes: int):
        self._models = models
        self._max_tensor_bytes = max_tensor_bytes

    def Predict(self, request, context):
        with _errors_as_status(context):
            _check_spec(request)
            spec = request.model_spec
            with self._models.using(spec) as version:
                version.check_inputs(spec.signature_name, request.inputs)
                inputs = {name: self._array(name, each) for name, each in request.inputs.items()}
                outputs = version.predict(spec.signature_name, inputs, request.output_filter)
                response = predict_pb2.PredictResponse(model_spec=version.spec(spec.signature_name))
            for name, array in outputs.items():
                write_tensor(response.outputs[name], array)
            self._models.log(spec.name, lambda: PredictLog(request=request, response=response))
            return response

    def GetModelMetadata(self, request, context):
        with _errors_as_status(context):
            _check_spec(request)
            if not request.metadata_field:
                raise invalid_argument(
                    "GetModelMetadataRequest must specify at least one metadata_field"
                )
            for field in request.metadata_field:
                if field != "signature_def":
                    raise invalid_argument(f"Metadata field {field} is not supported")
            return self._models.metadata(request.model_spec)

    Classify = Regress = MultiInference = _not_served

    def _array(self, name: str, proto: tensor_pb2.TensorProto) -> np.ndarray:
        """Return the tensor in a request, as TensorFlow itself reads it (`Tensor::FromProto`)."""
        try:
            _check_size(proto, self._max_tensor_bytes)
            if (array := _view(proto)) is not None:
                return array
            with tf.device("CPU"):
                return tf.io.parse_tensor(proto.SerializeToString(), proto.dtype).numpy()
        except (tf.errors.OpError, TypeError, ValueError, AttributeError) as error:
            raise invalid_argument(f"tensor parsing error: {name}") from error


def _check_size(proto: tensor_pb2.TensorProto, limit: int) -> None:
    """Refuse a shape that takes more memory than a request may: one value can stand for many."""
    sizes = [dim.size for dim in proto.tensor_shape.dim]
    if min(sizes, default=0) < 0 or math.prod(sizes) * tf.as_dtype(proto.dtype).size > limit:
        raise ValueError(sizes)


def _view(proto: tensor_pb2.TensorProto) -> np.ndarray | None:
    """Return the bytes of a tensor of numbers as an array, if it has just those; else None."""
    dtype = tf.as_dtype(proto.dtype)
    shape = [dim.size for dim in proto.tensor_shape.dim]
    content = proto.tensor_content
    if not content or not dtype.is_numpy_compatible or dtype == tf.string:
        return None
    numpy_type = np.dtype(dtype.as_numpy_dtype)
    if len(content) != math.prod(shape) * numpy_type.itemsize or dtype == tf.bool:
        return None
    return np.frombuffer(content, numpy_type).reshape(shape)


def _check_spec(request: Any) -> None:
    if not request.HasField("model_spec"):
        raise invalid_argument("Missing ModelSpec")


class _Model(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models: ServedModels):
        self._models = models

    def GetModelStatus(self, request, context):
        with _errors_as_status(context):
            _check_spec(request)
            return self._models.status(request.model_spec)

    def HandleReloadConfigRequest(self, request, context):
        with _errors_as_status(context):
            self._models.reload(request.config)
            return model_management_pb2.ReloadConfigResponse(
                status={"error_code": Code.OK},
                # How much they have grown; metrics that the server does not have are 0 to it.
                metric=[{"name": name} for name in dict.fromkeys(request.metric_names)],
            )


@contextlib.contextmanager
def _errors_as_status(context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except RequestError as error:
        context.abort(_STATUS_CODES[error.code], _shortened(error.message))
    except Exception as error:  # a defect of the stand-in
        context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}")


def _shortened(message: str) -> str:
    """Return the part of a message that the server sends (`ToGRPCStatus`)."""
    data = message.encode()
    if len(data) <= _MAX_MESSAGE_BYTES:
        return message
    return f"{data[:_MAX_MESSAGE_BYTES].decode(errors='ignore')}...TRUNCATED"
