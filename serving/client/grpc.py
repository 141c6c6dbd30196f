"""The client of a server's gRPC port."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from keras_mas.errors import UsageError

from .. import messages
from .base import Client, Which
from .batches import Arrays
from .errors import error_of
from .tls import grpc_channel
from .versions import VersionStatus, statuses_of

if TYPE_CHECKING:
    import grpc

# Service and method of every call to a model server, with the class of what it answers.
_RESPONSES: dict[str, Any] = {
    "PredictionService/Predict": messages.PredictResponse,
    "PredictionService/GetModelMetadata": messages.GetModelMetadataResponse,
    "ModelService/GetModelStatus": messages.GetModelStatusResponse,
    "ModelService/HandleReloadConfigRequest": messages.ReloadConfigResponse,
}


class GrpcClient(Client):
    """Client of a model server's gRPC port, by default 8500."""

    def __init__(self, host_port: str, **options: Any):
        import grpc  # which a client over REST need not wait for

        super().__init__(host_port, **options)
        settings = [
            # How large a message may be is the server's to say. gRPC's own limit, 4 MB, holds only
            # six float32 images of 224 × 224.
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            # By default a channel waits longer after each failure, up to two minutes, even if the
            # server is up again.
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self._rpc_error = grpc.RpcError
        self._channel = grpc_channel(host_port, self.tls, settings)

    def _close(self) -> None:
        self._channel.close()

    def _predict(
        self, which: Which, arrays: Arrays, signature: str, seconds: float
    ) -> tuple[Arrays, int | None]:
        tensors = {key: messages.tensor_of(array) for key, array in arrays.items()}
        spec = _spec(which, signature_name=signature)
        request = messages.PredictRequest(model_spec=spec, inputs=tensors)
        response = self._call("PredictionService/Predict", request, seconds)
        try:
            outputs = {key: messages.array_of(proto) for key, proto in response.outputs.items()}
        except (TypeError, ValueError) as error:
            message = f"an output that is no tensor ({error})"
            raise error_of(which.name, self.host_port, "UNKNOWN", message) from error
        answered = response.model_spec.version.value
        return {key: _as_text(array) for key, array in outputs.items()}, answered or which.version

    def _metadata(self, which: Which, seconds: float) -> tuple[Mapping[str, Any], int]:
        request = messages.GetModelMetadataRequest(
            model_spec=_spec(which), metadata_field=["signature_def"]
        )
        response = self._call("PredictionService/GetModelMetadata", request, seconds)
        signatures = messages.SignatureDefMap.FromString(response.metadata["signature_def"].value)
        return messages.functions_of(signatures.signature_def), response.model_spec.version.value

    def _status(self, name: str, seconds: float) -> list[VersionStatus]:
        request = messages.GetModelStatusRequest(model_spec=_spec(Which(name)))
        return statuses_of(self._call("ModelService/GetModelStatus", request, seconds))

    def _call(self, method: str, request: Any, seconds: float) -> Any:
        try:
            return rpc(self._channel, method)(request, timeout=seconds)
        except self._rpc_error as error:
            name = request.model_spec.name
            raise error_of(name, self.host_port, error.code().name, error.details()) from error


def rpc(channel: "grpc.Channel", method: str) -> Callable[..., Any]:
    """Return the function that calls a method of a model server.

    Args:
        channel: Channel of gRPC to the server.
        method: Service and method, as "PredictionService/Predict".
    """
    return cast(
        Callable[..., Any],
        channel.unary_unary(
            f"/tensorflow.serving.{method}",
            request_serializer=_serialized,
            response_deserializer=_RESPONSES[method].FromString,
        ),
    )


def _spec(which: Which, **more: str) -> Any:
    spec = messages.ModelSpec(name=which.name, **more)
    if which.version is not None:
        spec.version.value = which.version
    if which.label is not None:
        spec.version_label = which.label
    return spec


def _serialized(request: Any) -> bytes:
    try:
        return request.SerializeToString()
    except Exception as error:  # the class differs between implementations of protobuf
        raise UsageError(
            "Expected a request below 2 GiB, the most that a message may have. Received: "
            f"{error}. Divide it with `batch_size`."
        ) from error


def _as_text(array: np.ndarray) -> np.ndarray:
    if array.dtype != object:
        return array
    text = [value.decode(errors="replace") for value in array.flat]
    return np.array(text, object).reshape(array.shape)
