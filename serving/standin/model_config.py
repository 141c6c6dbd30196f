"""The configuration of a model server: which models, which of their versions, which labels.

Written after TensorFlow Serving's `model_servers/server_core.cc` and
`sources/storage_path/file_system_storage_path_source.cc`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import (
    TENSORFLOW,
    ModelConfig,
    ModelServerConfig,
)

from keras_mas.errors import UsageError

from .protocol import Code, invalid_argument, not_found

LATEST, ALL = "latest", "all"

_PLATFORM = "tensorflow"
_INTEGER = re.compile(r"\s*[+-]?\d+\s*")
_URI = re.compile("[a-zA-Z][0-9a-zA-Z.]+://")  # as TensorFlow's io::ParseURI has it
_INT64 = range(-(2**63), 2**63)


def config_of(
    models: Mapping[str, str | os.PathLike], versions: str | tuple[int, ...] = ALL
) -> ModelServerConfig:
    """Return the configuration that serves some models.

    Args:
        models: Mapping from model name to its folder, `models/NAME`.
        versions: "latest", "all", or the numbers of versions, of every model.
    """
    config = ModelServerConfig()
    for name, folder in models.items():
        model = config.model_config_list.config.add(
            name=name, base_path=os.path.abspath(folder), model_platform=_PLATFORM
        )
        if versions == ALL:
            model.model_version_policy.all.SetInParent()
        elif versions != LATEST:
            model.model_version_policy.specific.versions.extend(versions)
    return config


def read_server_config(path: str | os.PathLike) -> ModelServerConfig:
    """Read a configuration from a file, a `ModelServerConfig` as protobuf text.

    Raises:
        UsageError: If the file cannot be read or is something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        return text_format.Parse(text, ModelServerConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"Expected '{path}' to hold a ModelServerConfig as protobuf text. Received: {reason}. "
            "It begins with `model_config_list {`."
        ) from error


def check_config(new: ModelServerConfig, old: ModelServerConfig | None) -> None:
    """Check a configuration that is to replace another (`ServerCore::ReloadConfig`).

    Raises:
        RequestError: With the code and the message of TensorFlow Serving.
    """
    if new.WhichOneof("config") != "model_config_list":
        raise invalid_argument(
            "ServerModelConfig type not supported by HandleReloadConfigRequest."
            " Only ModelConfigList is currently supported"
        )
    names = set()
    for model in new.model_config_list.config:
        if model.name in names:
            raise invalid_argument(
                f"Illegal to list model {model.name} multiple times in config list"
            )
        names.add(model.name)
    for model in new.model_config_list.config:
        if not _URI.match(model.base_path) and not os.path.isabs(model.base_path):
            raise invalid_argument(
                f"Expected model {model.name} to have an absolute path or URI; got base_path()="
                f"{model.base_path}"
            )
    platforms = {model.name: _platform(model) for model in models_of(old)}
    for model in models_of(new):
        if model.name in platforms and _platform(model) != platforms[model.name]:
            raise invalid_argument(
                f"Illegal to change a model's platform. For model {model.name} platform was "
                f"{platforms[model.name]} and new platform requested is {_platform(model)}"
            )


def models_of(config: ModelServerConfig | None) -> list[ModelConfig]:
    """Return the models of a configuration; none, if there is no configuration."""
    return [] if config is None else list(config.model_config_list.config)


def check_platforms(config: ModelServerConfig) -> None:
    """Refuse models that are not TensorFlow's (`CreateStoragePathRoutes`), after their labels.

    Raises:
        RequestError: With the code and the message of TensorFlow Serving.
    """
    for model in models_of(config):
        if _platform(model) != _PLATFORM:
            raise invalid_argument(
                f"Model {model.name} requests unsupported platform {_platform(model)}"
            )


def _platform(model: ModelConfig) -> str:
    """Return the platform of a model (`GetPlatform`)."""
    if model.model_type:
        if model.model_platform:
            raise invalid_argument(
                "Illegal setting both ModelServerConfig::model_type (deprecated) "
                f"and ModelServerConfig::model_platform, model name is {model.name}"
            )
        if model.model_type != TENSORFLOW:
            raise invalid_argument(
                f"ModelServerConfig::model_type choice {model.model_type} not supported."
            )
        return _PLATFORM
    if not model.model_platform:
        raise invalid_argument(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) "
            f"nor ModelServerConfig::model_platform, model name is {model.name}"
        )
    return model.model_platform


def aspired_versions(model: ModelConfig) -> dict[int, Path]:
    """Find the versions of a model that its policy asks for (`PollFileSystemForServable`).

    Args:
        model: The model; without a policy its latest version is asked for.

    Returns:
        Dict from version number to its path, in ascending order.

    Raises:
        RequestError: If the folder of the model does not exist.
    """
    base = Path(model.base_path)
    try:
        names = os.listdir(base)
    except OSError as error:
        raise invalid_argument(
            f"Could not find base path {base} for servable {model.name} with error "
            f"{Code.NOT_FOUND.name}: {base}; {error.strerror}"
        ) from error
    found = {int(name): base / name for name in sorted(names) if _is_version(name)}
    found = dict(sorted(found.items()))
    policy = model.model_version_policy
    if policy.HasField("all"):
        return found
    if policy.HasField("specific"):
        wanted = set(policy.specific.versions)
        return {version: path for version, path in found.items() if version in wanted}
    count = max(policy.latest.num_versions, 1)
    return dict(list(found.items())[-count:])


def check_has_versions(model: ModelConfig) -> None:
    """Refuse a model without a version, as `fail_if_no_model_versions_found` does.

    Raises:
        RequestError: If the policy asks for no version that exists.
    """
    if not aspired_versions(model):
        raise not_found(
            f"Unable to find a numerical version path for servable {model.name} at: "
            f"{model.base_path}"
        )


def _is_version(name: str) -> bool:
    return bool(_INTEGER.fullmatch(name)) and name.isascii() and int(name) in _INT64
