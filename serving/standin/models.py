"""The models that the stand-in serves, and the requests they answer, whatever the interface.

Versions come and go in one thread; requests are answered in others. A version is only unloaded
when the last request that uses it has been answered.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from keras_mas.errors import UsageError

from ..conventions import DEFAULT_SIGNATURE
from ..runtime import LoadedVersion, LoadError
from ..warmup import WarmupError, load_warmed_up
from .batching import Batcher, BatchingParameters
from .model_config import (
    ModelServerConfig,
    aspired_versions,
    check_config,
    check_has_versions,
    check_platforms,
    models_of,
)
from .policy import Action, Snapshot, next_action
from .protocol import Code, RequestError, failed_precondition, invalid_argument, not_found
from .request_log import LogSettings, PredictLog, RequestLogs, log_settings_of

_State = get_model_status_pb2.ModelVersionStatus.State
_Signatures = Mapping[str, meta_graph_pb2.SignatureDef]

GRACE_SECONDS = 5.0
"""How long running requests may take to finish when the server stops."""

THREADS = 32
"""How many requests each interface answers at once; as many can be gathered into one batch."""

_LOG = logging.getLogger(__name__)


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Turn errors of TensorFlow into refusals of the request."""
    try:
        yield
    except tf.errors.OpError as error:
        raise RequestError(Code(error.error_code), error.message) from error


class ServedVersion:
    """One version of a model, from the moment it is to be served until it is unloaded.

    Attributes:
        number: Its number.
        signatures: Dict from signature name to `SignatureDef`, as the version lists them.
    """

    signatures: _Signatures

    def __init__(self, model: str, number: int, folder: Path):
        self.model = model
        self.number = number
        self.folder = folder
        self.aspired = True
        self.state = _State.START
        self.error = ""
        self.users = 0
        self._loaded: LoadedVersion | None = None
        self._run: Callable[..., dict[str, np.ndarray]] | None = None

    def load(self, batcher: Batcher | None) -> None:
        """Load the version and replay its warm-up requests.

        Raises:
            LoadError: If the folder holds no complete model, or a warm-up request fails.
        """
        try:
            loaded = load_warmed_up(self.folder)
        except WarmupError as error:
            raise LoadError(
                f"Expected the warm-up requests in '{self.folder}' to be answered. "
                f"Received: {error}"
            ) from error
        self._loaded, self.signatures = loaded, loaded.listed
        self._run = batcher.batched(loaded) if batcher else loaded.run

    def unload(self) -> None:
        """Free the memory of the version."""
        if self._loaded is not None:
            self._loaded.close()

    def check_inputs(self, signature: str, inputs: Iterable[str]) -> None:
        """Check the signature and the inputs that a request names; see `LoadedVersion.check`.

        Raises:
            RequestError: With the code and the message of TensorFlow Serving.
        """
        assert self._loaded is not None
        with _refusing():
            self._loaded.check_inputs(signature, inputs)

    def predict(
        self, signature: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """Run a signature; see `LoadedVersion.run`.

        Raises:
            RequestError: With the code and the message of TensorFlow Serving.
        """
        assert self._run is not None
        with _refusing():
            return self._run(signature, inputs, outputs)

    def inputs(self, signature: str) -> Mapping[str, meta_graph_pb2.TensorInfo]:
        """Return a mapping from the names of a signature's inputs to their `TensorInfo`.

        Raises:
            RequestError: If there is no such signature, or it has none.
        """
        name = signature or DEFAULT_SIGNATURE
        if name not in self.signatures:
            raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
        if not self.signatures[name].inputs:
            raise invalid_argument(
                f"Failed to get input map for signature: {signature or 'DEFAULT'}"
            )
        return self.signatures[name].inputs

    def spec(self, signature: str | None = None) -> model_pb2.ModelSpec:
        """Return the complete `ModelSpec` of the version, or of one of its signatures."""
        spec = model_pb2.ModelSpec(name=self.model)
        spec.version.value = self.number
        if signature is not None:
            spec.signature_name = signature or DEFAULT_SIGNATURE
        return spec

    def status(self) -> get_model_status_pb2.ModelVersionStatus:
        """Return the state, and why the version failed if it did."""
        status = get_model_status_pb2.ModelVersionStatus(version=self.number, state=self.state)
        status.status.error_code = tf.errors.UNKNOWN if self.error else tf.errors.OK
        status.status.error_message = self.error
        return status


class ServedModels:
    """Models whose versions follow their folders and a configuration; it can be replaced.

    The methods take a `ModelSpec` (a name, and perhaps a version or a label, and a signature). They
    refuse a request with a `RequestError` that has TensorFlow Serving's code and message.

    Args:
        config: Models, the policies of their versions, and labels. The first versions have been
            loaded, or have failed to, when the constructor returns.
        poll_seconds: Seconds between looks at the folders; 0: they are looked at once, and whenever
            the configuration is replaced.
        batching: How requests are gathered into batches; not at all by default.
        request_log: Where requests are logged of models whose configuration does not say it; they
            are not by default.
        labels_for_unavailable: Whether a new label may point at a version that is not loaded.
        must_load: Whether a model of which no version can be loaded is refused.

    Raises:
        RequestError: If the configuration is refused.
    """

    def __init__(
        self,
        config: ModelServerConfig,
        *,
        poll_seconds: float = 1.0,
        batching: BatchingParameters | None = None,
        request_log: LogSettings | None = None,
        labels_for_unavailable: bool = False,
        must_load: bool = True,
    ):
        self._poll_seconds = poll_seconds
        self._labels_for_unavailable = labels_for_unavailable
        self._batcher = Batcher(batching) if batching else None
        self._logs = RequestLogs(request_log)
        self._changed = threading.Condition()
        self._reloading = threading.Lock()
        self._config: ModelServerConfig | None = None
        self._labels: dict[str, dict[str, int]] = {}
        self._versions: dict[str, dict[int, ServedVersion]] = {}
        self._look = False
        self._closing = False
        self._manager = threading.Thread(target=self._manage, name="versions", daemon=True)
        self._manager.start()
        try:
            self.reload(config, must_load)
        except BaseException:
            self.close()
            raise

    @property
    def names(self) -> list[str]:
        """The names of the models in the configuration."""
        return [model.name for model in models_of(self._config)]

    @contextlib.contextmanager
    def using(self, spec: model_pb2.ModelSpec) -> Iterator[ServedVersion]:
        """Find the version that a request is for; it stays loaded while the context lasts."""
        with self._changed:
            version = self._find(spec)
            version.users += 1
        try:
            yield version
        finally:
            with self._changed:
                version.users -= 1
                if version.state == _State.UNLOADING:
                    self._changed.notify_all()

    def metadata(
        self, spec: model_pb2.ModelSpec
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Return the `GetModelMetadataResponse` of one version: its signatures."""
        with self.using(spec) as version:
            response = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=version.spec())
            response.metadata["signature_def"].Pack(
                get_model_metadata_pb2.SignatureDefMap(signature_def=version.signatures)
            )
        return response

    def status(self, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        """Return the `GetModelStatusResponse` of one version, or of all if `spec` names none.

        Versions that have been unloaded stay in it, with the state END.
        """
        with self._changed:
            versions = dict(sorted(self._versions.get(spec.name, {}).items(), reverse=True))
            if spec.HasField("version"):
                number = spec.version.value
                if number not in versions:
                    raise not_found(f"Could not find version {number} of model {spec.name}")
                versions = {number: versions[number]}
            if not versions:
                raise not_found(f"Could not find any versions of model {spec.name}")
            return get_model_status_pb2.GetModelStatusResponse(
                model_version_status=[version.status() for version in versions.values()]
            )

    def reload(self, config: ModelServerConfig, must_load: bool = True) -> None:
        """Replace the configuration, and wait until the models that are new in it are loaded.

        A refused configuration changes nothing.

        Args:
            config: The configuration.
            must_load: Whether it is an error that no version of a new model can be loaded.

        Raises:
            RequestError: If the configuration is not valid, a label points at a version that is not
                available, a new model has no version, or none of its versions can be loaded.
        """
        with self._reloading:
            check_config(config, self._config)
            with self._changed:
                labels = self._checked_labels(config)
            check_platforms(config)
            known = set(self.names)
            new = [model for model in models_of(config) if model.name not in known]
            for model in new:
                check_has_versions(model)
            logs = _log_settings_of(config)
            with self._changed:
                self._labels = labels
                _warn_of_models_that_go(known - {model.name for model in models_of(config)})
                self._config = ModelServerConfig.FromString(config.SerializeToString())
                self._look = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closing or not self._look)
                names = {model.name for model in new}
                self._changed.wait_for(lambda: self._closing or not self._unsettled(names))
                if must_load:
                    self._check_available(names)
            self._logs.update(logs)

    def log(self, model: str, make: Callable[[], PredictLog]) -> None:
        """Log a request to a model if it is asked for; see `RequestLog.offer`."""
        self._logs.offer(model, make)

    def stop_waiting(self) -> None:
        """Let no version come or go any more; a `reload` that waits for one returns."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self) -> None:
        """Unload every version, once its requests have been answered, for which they have 5 s."""
        self.stop_waiting()
        self._manager.join()
        with self._changed:
            versions = [each for model in self._versions.values() for each in model.values()]
            ready = [version for version in versions if version.state == _State.AVAILABLE]
            for version in ready:
                version.state = _State.UNLOADING
        for version in ready:
            self._unload(version, GRACE_SECONDS)
        if self._batcher:
            self._batcher.close()
        self._logs.close()

    def _find(self, spec: model_pb2.ModelSpec) -> ServedVersion:
        if not spec.name:
            raise invalid_argument("ModelSpec has no name specified.")
        number = self._number(spec)
        versions = self._versions.get(spec.name, {}).values()
        available = {each.number: each for each in versions if each.state == _State.AVAILABLE}
        if number is None and available:
            return available[max(available)]
        if number is None:
            raise not_found(f"Servable not found for request: Latest({spec.name})")
        if number not in available:
            raise not_found(f"Servable not found for request: Specific({spec.name}, {number})")
        return available[number]

    def _number(self, spec: model_pb2.ModelSpec) -> int | None:
        choice = spec.WhichOneof("version_choice")
        if choice == "version":
            return int(spec.version.value)
        if choice == "version_label":
            labels = self._labels.get(spec.name, {})
            if spec.version_label not in labels:
                raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
            return labels[spec.version_label]
        return None

    def _checked_labels(self, config: ModelServerConfig) -> dict[str, dict[str, int]]:
        """Return the labels of a configuration; each must point at an available version."""
        labels: dict[str, dict[str, int]] = {}
        for model in models_of(config):
            versions = self._versions.get(model.name, {})
            for label, number in model.version_labels.items():
                version = versions.get(number)
                before = self._labels.get(model.name, {}).get(label, number)
                allowed = self._labels_for_unavailable and before == number
                if not allowed and (version is None or version.state != _State.AVAILABLE):
                    raise failed_precondition(
                        f"Request to assign label to version {number} of model {model.name}, "
                        "which is not currently available for inference"
                    )
                labels.setdefault(model.name, {})[label] = number
        return labels

    def _unsettled(self, names: set[str]) -> bool:
        """Whether a version of one of the models is still to be loaded."""
        return any(
            version.state in (_State.START, _State.LOADING)
            for name in names
            for version in self._versions.get(name, {}).values()
        )

    def _check_available(self, names: set[str]) -> None:
        failed = []
        for name in sorted(names):
            versions = self._versions.get(name, {}).values()
            if not any(each.state == _State.AVAILABLE for each in versions):
                failed += [max(versions, key=lambda each: each.number)] if versions else []
        if failed:
            reasons = "".join(
                f"{{{{name: {each.model} version: {each.number}}} due to error: "
                f"UNKNOWN: {each.error}}}, "
                for each in failed
            )
            raise RequestError(
                Code.UNKNOWN, f"{len(failed)} model(s) did not become available: {{{reasons}}}"
            )

    # The thread in which versions come and go.

    def _manage(self) -> None:
        looked = 0.0
        while not self._closing:
            due = self._poll_seconds and time.monotonic() >= looked + self._poll_seconds
            if self._look or due:
                looked = time.monotonic()
                self._look_at_folders()
            if not self._act():
                self._pause(looked)

    def _pause(self, looked: float) -> None:
        seconds = max(looked + self._poll_seconds - time.monotonic(), 0.0)
        with self._changed:
            if not self._look and not self._closing:
                self._changed.wait(seconds if self._poll_seconds else None)

    def _look_at_folders(self) -> None:
        """Find out which versions are to be served, and mark those that are not any more."""
        config = self._config
        try:
            aspired = {model.name: aspired_versions(model) for model in models_of(config)}
        except RequestError as error:
            # As in TensorFlow Serving a folder that cannot be read leaves everything as it is.
            _LOG.error("%s", error.message)
            aspired = None
        with self._changed:
            if self._config is config:
                self._look = False
            if aspired is not None:
                for name in self._versions.keys() | aspired.keys():
                    self._aspire(name, aspired.get(name, {}))
            self._changed.notify_all()

    def _aspire(self, name: str, folders: Mapping[int, Path]) -> None:
        versions = self._versions.setdefault(name, {})
        for number, version in list(versions.items()):
            if number not in folders:
                version.aspired = False
                if version.state == _State.START:
                    del versions[number]
        for number, folder in folders.items():
            known = versions.get(number)
            if known is None or (known.state == _State.END and not known.aspired):
                versions[number] = ServedVersion(name, number, folder)
            elif known.state != _State.UNLOADING:  # which is looked at again once it has ended
                known.aspired = True

    def _act(self) -> bool:
        """Load or unload one version; return whether there was one."""
        with self._changed:
            actions = [
                (versions[step[1]], step[0])
                for versions in self._versions.values()
                if (step := next_action(map(_snapshot, versions.values())))
            ]
        if not actions or self._closing:
            return False
        version, action = actions[0]
        if action is Action.LOAD:
            self._load(version)
        else:
            self._set_state(version, _State.UNLOADING)
            # In a thread of its own: a slow request must not hold up the other versions.
            threading.Thread(target=self._unload, args=[version], daemon=True).start()
        return True

    def _load(self, version: ServedVersion) -> None:
        self._set_state(version, _State.LOADING)
        try:
            version.load(self._batcher)
        except LoadError as error:
            _LOG.error("%s", error)
            version.error = str(error)
            self._set_state(version, _State.END)
        else:
            self._set_state(version, _State.AVAILABLE)

    def _unload(self, version: ServedVersion, seconds: float | None = None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not version.users, seconds)
        version.unload()
        with self._changed:
            self._look = True  # it may have been asked for again in the meantime
        self._set_state(version, _State.END)

    def _set_state(self, version: ServedVersion, state: int) -> None:
        with self._changed:
            version.state = state
            self._changed.notify_all()


def _warn_of_models_that_go(names: set[str]) -> None:
    if names:
        _LOG.warning(
            "The new configuration does not name %s: all versions of it are unloaded. A "
            "configuration replaces the earlier one as a whole.",
            ", ".join(repr(name) for name in sorted(names)),
        )


def _log_settings_of(config: ModelServerConfig) -> dict[str, LogSettings]:
    try:
        return log_settings_of(config)
    except UsageError as error:
        raise invalid_argument(str(error)) from error


def _snapshot(version: ServedVersion) -> Snapshot:
    return Snapshot(
        version.number,
        aspired=version.aspired,
        new=version.state == _State.START,
        ready=version.state == _State.AVAILABLE,
    )
