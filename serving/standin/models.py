"""The models that the stand-in serves, and the requests they answer, whatever the interface."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from keras_mas.errors import UsageError

from ..conventions import DEFAULT_SIGNATURE
from ..paths import list_versions
from ..protocol import invalid_argument, not_found
from ..runtime import LoadedVersion, LoadError

_State = get_model_status_pb2.ModelVersionStatus.State


class ServedModels:
    """Every version of some models, loaded; the gRPC and the REST interface both ask it.

    The methods take a `ModelSpec` (a name, and perhaps a version and a signature). They refuse a
    request with a `tf.errors.OpError` that has TensorFlow Serving's code and message.

    Args:
        models: Non-empty mapping from model name to its folder, `models/NAME`.

    Raises:
        UsageError: If there is no model, or a folder is missing or holds no version.
    """

    def __init__(self, models: Mapping[str, str | Path]):
        if not models:
            raise UsageError(
                "Expected at least one model to serve. Received: none. "
                "Pass a mapping from name to folder, as in `{'flowers': 'models/flowers'}`."
            )
        folders = {name: _find_versions(name, path) for name, path in models.items()}
        self._models = {
            name: {version: _load(folder) for version, folder in versions.items()}
            for name, versions in folders.items()
        }

    def predict(
        self, spec: model_pb2.ModelSpec, inputs: Mapping[str, np.ndarray]
    ) -> tuple[model_pb2.ModelSpec, dict[str, np.ndarray]]:
        """Run a signature on a dict of arrays.

        Returns:
            The `ModelSpec` that answered, complete with version and signature, and a dict from
            output name to array.
        """
        version, loaded = self._find(spec)
        outputs = loaded.run(spec.signature_name, inputs)
        answered = _spec(spec.name, version)
        answered.signature_name = spec.signature_name or DEFAULT_SIGNATURE
        return answered, outputs

    def signature_inputs(
        self, spec: model_pb2.ModelSpec
    ) -> Mapping[str, meta_graph_pb2.TensorInfo]:
        """Return a mapping from the names of a signature's inputs to their `TensorInfo`."""
        _, loaded = self._find(spec)
        name = spec.signature_name or DEFAULT_SIGNATURE
        if name not in loaded.signatures:
            raise invalid_argument(f'Serving signature name: "{name}" not found in signature def')
        return loaded.signatures[name].inputs

    def metadata(
        self, spec: model_pb2.ModelSpec
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Return the `GetModelMetadataResponse` of one version: its signatures."""
        version, loaded = self._find(spec)
        response = get_model_metadata_pb2.GetModelMetadataResponse(
            model_spec=_spec(spec.name, version)
        )
        response.metadata["signature_def"].Pack(
            get_model_metadata_pb2.SignatureDefMap(signature_def=loaded.signatures)
        )
        return response

    def status(self, spec: model_pb2.ModelSpec) -> get_model_status_pb2.GetModelStatusResponse:
        """Return the `GetModelStatusResponse` of one version, or of all if `spec` names none."""
        versions = self._models.get(spec.name, {})
        if not versions:
            raise not_found(f"Could not find any versions of model {spec.name}")
        if spec.HasField("version"):
            version = spec.version.value
            if version not in versions:
                raise not_found(f"Could not find version {version} of model {spec.name}")
            versions = {version: versions[version]}
        return get_model_status_pb2.GetModelStatusResponse(
            model_version_status=[_status(*item) for item in versions.items()]
        )

    def close(self) -> None:
        """Unload every version."""
        for versions in self._models.values():
            for loaded in versions.values():
                if isinstance(loaded, LoadedVersion):
                    loaded.close()

    def _find(self, spec: model_pb2.ModelSpec) -> tuple[int, LoadedVersion]:
        """Return the number and the model of the version in `spec`, or else of the latest one."""
        if spec.version_label:
            raise invalid_argument(f"Unrecognized servable version label: {spec.version_label}")
        available = {
            version: loaded
            for version, loaded in self._models.get(spec.name, {}).items()
            if isinstance(loaded, LoadedVersion)
        }
        if not spec.HasField("version"):
            if not available:
                raise not_found(f"Servable not found for request: Latest({spec.name})")
            return max(available.items())
        version = spec.version.value
        if version not in available:
            raise not_found(f"Servable not found for request: Specific({spec.name}, {version})")
        return version, available[version]


def _find_versions(name: str, base_path: str | Path) -> dict[int, Path]:
    versions = list_versions(base_path)
    if not versions:
        raise UsageError(
            f"Expected versions of '{name}' as folders '{base_path}/<integer>/'. "
            "Received: no such folder. Export a version first, or correct the path."
        )
    return versions


def _load(folder: Path) -> LoadedVersion | LoadError:
    """Return the version in `folder`, or the reason why this one version cannot be served."""
    try:
        return LoadedVersion(folder)
    except LoadError as error:
        return error


def _status(
    version: int, loaded: LoadedVersion | LoadError
) -> get_model_status_pb2.ModelVersionStatus:
    status = get_model_status_pb2.ModelVersionStatus(version=version, state=_State.AVAILABLE)
    status.status.error_code = tf.errors.OK
    if isinstance(loaded, LoadError):
        status.state = _State.END
        status.status.error_code = tf.errors.UNKNOWN
        status.status.error_message = str(loaded)
    return status


def _spec(name: str, version: int) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=name)
    spec.version.value = version
    return spec
