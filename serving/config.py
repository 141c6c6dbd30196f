"""The model server configuration: which versions are loaded, and which of them labels point to.

TensorFlow Serving reads it from the file of `--model_config_file`, once or again and again, and
takes it over its reload API. It is the whole truth each time: a model that it does not name is
unloaded. So the file may hold other models, written by hand, and only the entries that differ are
changed here; the rest of the text stays as it is, comments too. Comments of a list in brackets,
`config: [{…}, {…}]`, are lost: it is written anew.
"""

import contextlib
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import filelock
from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelConfig, ModelServerConfig

from keras_mas.errors import UsageError
from keras_mas.files import atomic_file, remove_unfinished


class ConfigError(RuntimeError):
    """A model server configuration cannot be read, or lacks a label; the message says why."""


def config_path(base_path: str | os.PathLike) -> Path:
    """Return where the configuration of a model is unless told otherwise.

    Args:
        base_path: Folder of the model, `models/NAME`.

    Returns:
        `models/models.config`, beside the folders of all models.
    """
    return Path(base_path).resolve().parent / "models.config"


def read_config(path: str | os.PathLike) -> ModelServerConfig:
    """Read a configuration.

    Args:
        path: The file, which need not exist.

    Returns:
        The configuration; an empty one if there is no file.

    Raises:
        ConfigError: If it cannot be read, is none, names no list of models, or a model twice.
    """
    config = ModelServerConfig()
    try:
        text_format.Parse(_read(path), config)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ConfigError(
            f"Expected a model server configuration in '{path}'. Received: "
            f"{str(error).rstrip('.')}. Correct the file; it was not changed."
        ) from error
    if config.HasField("custom_model_config"):
        raise ConfigError(
            f"Expected a `model_config_list` in '{path}'. Received: a `custom_model_config`, which "
            "has no labels. Name another file with `--config`."
        )
    names = Counter(model.name for model in config.model_config_list.config)
    if repeated := ", ".join(repr(name) for name, count in names.items() if count > 1):
        raise ConfigError(
            f"Expected one entry for each model in '{path}'. Received: several for {repeated}, "
            "which a server refuses. Remove all but one."
        )
    return config


def write_config(path: str | os.PathLike, config: ModelServerConfig) -> None:
    """Write a configuration in which entries of models have changed or come, in one step.

    Args:
        path: The file. The rest of its text stays.
        config: The configuration.

    Raises:
        OSError: If it cannot be written; the earlier one stays.
    """
    before = _read(path)
    text = _with_entries(before if before.strip() else _HEADING, config)
    # A link stays one.
    with atomic_file(Path(path).resolve(), "w") as file:
        file.write(text)


@contextlib.contextmanager
def changing(path: str | os.PathLike) -> Iterator[None]:
    """Keep other processes from changing a configuration, which would undo each other's changes.

    Raises:
        UsageError: If the folder of the file does not exist or cannot be written to.
        ConfigError: If another process is changing it.
    """
    path = Path(path).resolve()
    lock_path = path.with_name(f".{path.name}.lock")
    lock = filelock.FileLock(lock_path)
    try:
        # The lock would make the folder, and take any failure for a process that holds it.
        lock_path.open("a").close()
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise ConfigError(
            f"Another process is changing '{path}'. Wait until it has finished; nothing was "
            "changed."
        ) from error
    except OSError as error:
        raise UsageError(
            f"Expected to write '{path}'. Received: {error.strerror}. Change the permissions of "
            "its folder, or name another file with `--config`."
        ) from error
    try:
        remove_unfinished(path.parent, path.name)
        yield
    finally:
        lock.release()


def labels_of(config: ModelServerConfig, name: str) -> dict[str, int]:
    """Return the version under each label of a model; empty if there is none."""
    return dict(_entry(config, name).version_labels)


def served_path_of(config: ModelServerConfig, name: str) -> str:
    """Return the folder of a model as the server sees it; empty if the model has no entry."""
    return _entry(config, name).base_path


def latest_of(config: ModelServerConfig, name: str) -> int:
    """Return how many of the latest versions an entry asks for; 0 if it does not say so."""
    return _entry(config, name).model_version_policy.latest.num_versions


def listed_versions(config: ModelServerConfig, name: str) -> set[int]:
    """Return the versions of a model that the configuration lists; empty if the server chooses."""
    return set(_entry(config, name).model_version_policy.specific.versions)


def with_labels(
    config: ModelServerConfig,
    name: str,
    base_path: str | os.PathLike,
    labels: Mapping[str, int],
    versions: Collection[int],
) -> ModelServerConfig:
    """Return a configuration in which labels of a model point to other versions.

    Args:
        config: The configuration, which stays as it is.
        name: Name of the model. Without an entry it gets one.
        base_path: Folder of the model as the server sees it; an entry that exists keeps its own.
        labels: The version under each label, all labels of the model.
        versions: Which versions the server is to load; empty for the latest, whichever it is. An
            entry that loads all stays so.
    """
    changed = ModelServerConfig()
    changed.CopyFrom(config)
    entry = _entry(changed, name)
    if not entry.name:
        entry = changed.model_config_list.config.add(
            name=name, base_path=str(base_path), model_platform="tensorflow"
        )
    if not entry.model_version_policy.HasField("all"):
        entry.ClearField("model_version_policy")
        if versions:
            entry.model_version_policy.specific.versions[:] = sorted(versions)
    entry.version_labels.clear()
    entry.version_labels.update(labels)
    return changed


def _entry(config: ModelServerConfig, name: str) -> ModelConfig:
    """Return the entry of a model; an empty one, whose fields have their defaults, if it has none.

    The empty one belongs to no configuration: nothing that is written to it is kept.
    """
    entries = config.model_config_list.config
    return next((entry for entry in entries if entry.name == name), ModelConfig())


def _read(path: str | os.PathLike) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def _with_entries(text: str, config: ModelServerConfig) -> str:
    """Return a text in which every entry is that of a configuration; equal ones stay as written."""
    edited = text
    try:
        for model in config.model_config_list.config:
            edited = _with_entry(edited, model)
        if text_format.Parse(edited, ModelServerConfig()) == config:
            return edited
    except text_format.ParseError:
        pass
    # The text has comments at most, or is of another form, such as `config: [{…}, {…}]`.
    is_empty = text_format.Parse(text, ModelServerConfig()) == ModelServerConfig()
    heading = f"{text.rstrip()}\n" if is_empty else _HEADING
    return heading + text_format.MessageToString(config, as_utf8=True)


def _with_entry(text: str, model: ModelConfig) -> str:
    """Return a text in which the entry of a model is this one, or is added."""
    before = text_format.Parse(text, ModelServerConfig())
    if _entry(before, model.name) == model:
        return text
    alone = ModelServerConfig()
    alone.model_config_list.config.add().CopyFrom(model)
    # Without the list around it.
    entry = "\n".join(text_format.MessageToString(alone, as_utf8=True).splitlines()[1:-1])
    *spans, end = _spans(text)
    names = [each.name for each in before.model_config_list.config]
    if model.name in names and len(spans) == len(names):
        start, stop = spans[names.index(model.name)]
        return f"{text[:start]}{entry.strip()}{text[stop:]}"
    return f"{text[: end[0]].rstrip()}\n{entry}\n{text[end[0] :]}"


def _spans(text: str) -> list[tuple[int, int]]:
    """Return where the entries of the list of models are in a text, and where the list ends."""
    spans: list[tuple[int, int]] = []
    before_brace: list[re.Match[str] | None] = []  # the word before each brace that is open
    word, end = None, len(text)
    for token in _TOKEN.finditer(text):
        if token[0] in "{<":
            before_brace.append(word)
        elif token[0] in "}>" and before_brace:
            opened = before_brace.pop()
            if len(before_brace) == 1 and opened is not None and opened[0] == "config":
                spans.append((opened.start(), token.end()))
            elif not before_brace:
                end = token.start()
        elif token[0][0] not in "#\"'":
            word = token
    return [*spans, (end, end)]


_HEADING = (
    "# Labels are moved by `keras-mas promote` and `keras-mas rollback`. Other models may be\n"
    "# added by hand.\n"
)

# Of protobuf text: strings and comments, in which braces mean nothing, braces, and words.
_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|#[^\n]*|[{}<>]|\w+')
