"""Telling a model server over gRPC to load versions and to move labels, and waiting until it has.

TensorFlow is not imported, so that a rollback begins at once.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any, Self

import grpc
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from . import messages
from .client.errors import failure_of
from .client.grpc import rpc
from .client.tls import Tls, grpc_channel
from .client.versions import VersionStatus, statuses_of

_POLL_SECONDS = 0.1
_RPC_SECONDS = 10.0

# How long a failure from before may be all that a server shows of a version that it is to load
# again. It looks for what to load every second, unless told otherwise.
_SAME_FAILURE_SECONDS = 10.0
# Metadata of a version with many signatures.
_OPTIONS = [("grpc.max_receive_message_length", 64 * 2**20)]


class ControlError(RuntimeError):
    """A model server did not take over a configuration; the message says why."""


class ModelControl:
    """A connection to a model server, on which labels of its models are moved.

    Args:
        host_port: Its gRPC port, as `localhost:8500`.
        timeout: Seconds to wait at most for an answer, for a version to load, and for a label to
            move.
        polled: Whether the server polls the file of its configuration; it is not told, then.
        tls: How the connection is encrypted; None for a connection that is not.
    """

    def __init__(
        self,
        host_port: str,
        *,
        timeout: float = 300.0,
        polled: bool = False,
        tls: Tls | None = None,
    ):
        self.host_port, self.timeout, self.polled = host_port, timeout, polled
        self._channel = grpc_channel(host_port, tls, _OPTIONS)

    def available(self, name: str) -> set[int]:
        """Return the versions of a model that answer requests; empty for an unknown model.

        Raises:
            ControlError: If the server does not answer.
        """
        statuses = self._statuses(name, self.timeout)
        return {status.version for status in statuses if status.state == "AVAILABLE"}

    def knows(self, name: str) -> bool:
        """Return whether a model is, or was, in the configuration of the server.

        Raises:
            ControlError: If the server does not answer.
        """
        return bool(self._statuses(name, self.timeout))

    def labels(self, name: str, labels: Iterable[str]) -> dict[str, int]:
        """Return the version under each of some labels of a model, of those that the server has.

        Raises:
            ControlError: If the server does not answer.
        """
        versions = {label: self._labelled(name, label, self.timeout) for label in labels}
        return {label: number for label, number in versions.items() if number is not None}

    def failures(self, name: str) -> dict[int, str]:
        """Return why versions of a model are not loaded, of those that failed to load.

        Raises:
            ControlError: If the server does not answer.
        """
        statuses = self._statuses(name, self.timeout)
        return {status.version: status.error for status in statuses if _has_failed(status)}

    def take_over(self, config: ModelServerConfig) -> None:
        """Tell the server of a configuration, unless it polls the file.

        Raises:
            ControlError: If it refuses it, or does not answer.
        """
        if self.polled:
            return
        request = messages.ReloadConfigRequest(config=config.SerializeToString())
        # The server answers when models that are new to it have loaded.
        try:
            response = self._call("ModelService/HandleReloadConfigRequest", request, self.timeout)
        except grpc.RpcError as error:
            raise ControlError(self._failure(error)) from error
        if response.status.error_code:
            raise ControlError(self._refusal(response.status.error_message))

    def wait_until_available(self, name: str, version: int, failure: str = "") -> None:
        """Wait until a version of a model answers requests.

        Args:
            name: Name of the model.
            version: The version.
            failure: Why it failed to load before, as `failures` says: the server may go on to show
                that until it loads it again. If it still does after ten seconds, it has failed in
                the same way; a server that polls its file may take longer to try.

        Raises:
            ControlError: If it fails to load, or time is up.
        """
        told = time.monotonic()

        def is_available(left: float) -> bool:
            nonlocal failure
            statuses = {each.version: each for each in self._statuses(name, left)}
            status = statuses.get(version, VersionStatus(version, "UNKNOWN", ""))
            if not _has_failed(status):
                failure = ""  # what comes is of a new attempt
            elif status.error != failure or (
                not self.polled and time.monotonic() - told > _SAME_FAILURE_SECONDS
            ):
                raise ControlError(
                    f"Expected version {version} of '{name}' to load at {self.host_port}. "
                    f"Received: {status.error.rstrip('.')}."
                )
            return status.state == "AVAILABLE"

        what = f"version {version} of '{name}' to be available"
        self._wait(is_available, what, reason=lambda: failure)

    def wait_until_labelled(self, name: str, label: str, version: int) -> None:
        """Wait until a label of a model points to a version.

        Raises:
            ControlError: If time is up.
        """
        self._wait(
            lambda left: self._labelled(name, label, left) == version,
            f"the label '{label}' of '{name}' to point to version {version}",
        )

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _wait(
        self, reached: Callable[[float], bool], what: str, reason: Callable[[], str] = lambda: ""
    ) -> None:
        """Ask again and again, with the seconds that are left, until something is reached.

        Args:
            reached: Returns whether it is.
            what: What it is, for the error when time is up.
            reason: Returns why it is not, for the same, as far as is known.
        """
        deadline = time.monotonic() + self.timeout
        while not reached(max(deadline - time.monotonic(), _POLL_SECONDS)):
            if time.monotonic() > deadline:
                hint = "It polls another file, perhaps." if self.polled else "Its log may say more."
                raise ControlError(
                    f"Expected {what} at {self.host_port} within {self.timeout:g} s. Received: "
                    f"{reason() or 'no change'}. {hint}"
                )
            time.sleep(_POLL_SECONDS)

    def _statuses(self, name: str, seconds: float) -> list[VersionStatus]:
        """Return the states of all versions that the server has known."""
        request = messages.GetModelStatusRequest(model_spec=messages.ModelSpec(name=name))
        try:
            response = self._call(
                "ModelService/GetModelStatus", request, min(seconds, _RPC_SECONDS)
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return []
            raise ControlError(self._failure(error)) from error
        return statuses_of(response)

    def _labelled(self, name: str, label: str, seconds: float) -> int | None:
        spec = messages.ModelSpec(name=name, version_label=label)
        request = messages.GetModelMetadataRequest(
            model_spec=spec, metadata_field=["signature_def"]
        )
        try:
            response = self._call(
                "PredictionService/GetModelMetadata", request, min(seconds, _RPC_SECONDS)
            )
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise ControlError(self._failure(error)) from error
            return None
        return int(response.model_spec.version.value)

    def _call(self, method: str, request: Any, seconds: float) -> Any:
        return rpc(self._channel, method)(request, timeout=seconds)

    def _failure(self, error: grpc.RpcError) -> str:
        details = error.details() or ""
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            return self._refusal(details)
        return (
            f"Expected a model server to answer at {self.host_port}, its gRPC port. Received: "
            f"{failure_of(details).rstrip('.')}. Start one with `keras-mas serve`, correct "
            "--server, give --tls if it speaks TLS, or, if none is to run, give --offline."
        )

    def _refusal(self, message: str | None) -> str:
        return (
            f"Expected the model server at {self.host_port} to answer, and to take over the "
            f"configuration. Received: {(message or 'no answer').rstrip('.')}."
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _has_failed(status: VersionStatus) -> bool:
    """Whether a version failed to load; one that was unloaded has the same state, but no error."""
    return status.state == "END" and bool(status.error)
