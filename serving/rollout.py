"""Which version clients get: labels are moved forward, and back.

Clients ask for a label. A server lets a label point only to a version that is loaded, and checks
the labels of a new configuration before it loads anything, so a version is loaded by one
configuration, and labelled by the next one. Versions under a label are all that is loaded then:
`stable`, `canary`, and `previous`, which waits for `rollback`.
"""

import contextlib
import os
import posixpath
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from keras_mas.errors import UsageError
from keras_mas.files import atomic_file

from .config import (
    ConfigError,
    changing,
    config_path,
    labels_of,
    latest_of,
    listed_versions,
    read_config,
    served_path_of,
    with_labels,
    write_config,
)
from .control import ControlError, ModelControl
from .conventions import CANARY, LABELS, PREVIOUS, STABLE
from .paths import list_versions, model_names, remove_versions


class Rollout:
    """The labels of one model.

    Args:
        base_path: Folder of the model, `models/NAME`.
        config: The model server configuration; by default `models/models.config`. It is made if
            there is none, and other models in it stay.
        server: The server that has this configuration; None if none is running, in which case
            nothing waits until a version is loaded.
        served_path: Folder of the model as the server sees it; by default `base_path`. An entry
            that the configuration has already keeps its own.

    Attributes:
        before: The version under each label before labels were moved, as the server had them if the
            configuration named none.
        kept: Names of models that the server had, in folders beside `base_path`, and that the
            configuration did not name. Labels that have moved brought them into it, so that the
            server keeps them.
        replaced: How many of the latest versions the configuration asked for, until versions under
            a label took their place; 0 if it did not.

    Raises:
        UsageError: If the model has no version.
    """

    def __init__(
        self,
        base_path: str | os.PathLike,
        *,
        config: str | os.PathLike | None = None,
        server: ModelControl | None = None,
        served_path: str | os.PathLike | None = None,
    ):
        self.base_path = Path(base_path).resolve()
        self.name = self.base_path.name
        self.config = Path(config) if config is not None else config_path(base_path)
        self.server = server
        self.served_path = served_path or self.base_path
        self.before: dict[str, int] = {}
        self.kept: list[str] = []
        self.replaced = 0
        if not list_versions(base_path):
            raise UsageError(
                f"Expected versions of a model as folders '{base_path}/<integer>/'. Received: no "
                "such folder. Publish one first with `keras-mas export`, or correct the path."
            )

    @property
    def labels(self) -> dict[str, int]:
        """The version under each label.

        Raises:
            ConfigError: If the configuration cannot be read.
        """
        return labels_of(read_config(self.config), self.name)

    @property
    def latest(self) -> int:
        """The latest version that is there, labelled or not."""
        return max(list_versions(self.base_path))

    def promote(
        self,
        version: int | None = None,
        label: str = STABLE,
        *,
        check: Callable[[Path], None] | None = None,
    ) -> dict[str, int]:
        """Let a label point to a version, which the server loads first.

        Args:
            version: The version. By default the latest; for `stable` the one labelled `canary`, if
                there is one.
            label: One of `conventions.LABELS`. Where `stable` moves, `previous` points to where it
                was. Whatever moves, `canary` is dropped if `stable` points to the same version.
            check: Called with the folder of the version before anything changes, as
                `published.check_version`; what it raises leaves everything as it is. Also of a
                version that answers at the server: its files may have been damaged since.

        Returns:
            The version under each label.

        Raises:
            UsageError: If there is no such version, the configuration cannot be written, or
                `stable` would move back to an earlier version that is not named.
            ConfigError: If it cannot be read, or another process is changing it.
            ControlError: If the server does not load the version or refuses the configuration.
                Whatever fails, the configuration is what it was.
        """
        with changing(self.config):
            self.before = labels = self._labels_to_move()
            if version is None:
                version = self._next(label, labels)
            self._check_exists(version)
            if check is not None:
                if self.server is not None:  # without which the check would be in vain
                    with _saying_that_nothing_moved():
                        self.server.available(self.name)
                check(list_versions(self.base_path)[version])
            moved = labels | {label: version}
            if label == STABLE and labels.get(STABLE, version) != version:
                moved[PREVIOUS] = labels[STABLE]
            return self._move(moved)

    def rollback(self, label: str = STABLE) -> dict[str, int]:
        """Let a label point back to the version that its clients had before.

        Args:
            label: `stable`, which goes back to `previous`; `canary` is dropped if it pointed to the
                same version. Or `canary`, which is dropped, since its clients go back to `stable`.

        Returns:
            The version under each label.

        Raises:
            ConfigError: If there is nothing to go back to, or as for `promote`.
            UsageError: If the version to go back to has been removed.
            ControlError: As for `promote`.
        """
        with changing(self.config):
            self.before = labels = self._labels_to_move()
            source = PREVIOUS if label == STABLE else STABLE
            if source not in labels:
                raise ConfigError(
                    f"Expected a version of '{self.name}' to go back to, labelled '{source}' in "
                    f"'{self.config}'. Received: none. Name the version: `keras-mas promote "
                    f"{self.base_path} VERSION`."
                )
            self._check_exists(labels[source])
            moved = labels | {label: labels[source]}
            if label == STABLE:
                del moved[PREVIOUS]
            return self._move(moved)

    def prune(self, keep: int) -> list[int]:
        """Remove versions from the disk, but the latest ones and those under a label.

        Args:
            keep: How many of the latest versions stay, ≥ 1.

        Returns:
            The versions that were removed.

        Raises:
            UsageError: If `keep` is less than 1.
            ConfigError: As for `promote`.
        """
        if keep < 1:
            raise UsageError(f"Expected to keep at least one version. Received: {keep}.")
        with changing(self.config):
            versions = list(list_versions(self.base_path))
            # A server unloads what disappears, whatever points to it.
            used = set(self.labels.values()) | listed_versions(read_config(self.config), self.name)
            removed = [version for version in versions[:-keep] if version not in used]
            remove_versions(self.base_path, removed)
        return removed

    def _labels_to_move(self) -> dict[str, int]:
        """Return the version under each label, as the server has them if the file names none.

        Such a server was started with another file. Its clients go on to ask for its labels.
        """
        labels = self.labels
        if not labels and self.server is not None and not self.server.polled:
            with _saying_that_nothing_moved():
                labels = self.server.labels(self.name, (*LABELS, PREVIOUS))
        return _without_a_stable_canary(labels)  # somebody wrote them by hand, perhaps

    def _next(self, label: str, labels: Mapping[str, int]) -> int:
        """Return the version to promote if none is named, which is no step back for `stable`."""
        if label != STABLE:
            return self.latest
        version = labels.get(CANARY, self.latest)
        if version < labels.get(STABLE, version):
            what = "canary" if CANARY in labels else "latest version"
            raise UsageError(
                f"Expected a {what} of '{self.name}' later than version {labels[STABLE]}, which is "
                f"stable. Received: version {version}. No label was moved; to go back to it, name "
                f"it: `keras-mas promote {self.base_path} {version}`."
            )
        return version

    def _check_exists(self, version: int) -> None:
        versions = list_versions(self.base_path)
        if version not in versions:
            raise UsageError(
                f"Expected a version of '{self.name}' out of {', '.join(map(str, versions))}, "
                f"which are in '{self.base_path}'. Received: {version}."
            )

    def _move(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """Take the server, or the file alone, from the labels as they are to others.

        Returns:
            Those others, without labels of versions that somebody has removed, which no server
            could load, and without a canary that is stable.
        """
        versions = list_versions(self.base_path)
        existing = {label: version for label, version in wanted.items() if version in versions}
        labels = _without_a_stable_canary(existing)
        before = read_config(self.config)
        try:
            with _saying_that_nothing_moved(), contextlib.ExitStack() as undo:
                if self.server is None:
                    self._write(before, labels, set(labels.values()), undo)
                else:
                    if not self.server.polled:  # which has what its file names, and nothing else
                        before = self._with_what_is_served(self.server, before)
                    self._move_at(self.server, before, labels, undo)
                undo.pop_all()
                self.replaced = latest_of(before, self.name)
        except OSError as error:
            raise ConfigError(
                f"Expected to write '{self.config}'. Received: {error.strerror}. Make room, or "
                "change its permissions. No label was moved."
            ) from error
        return labels

    def _with_what_is_served(
        self, server: ModelControl, config: ModelServerConfig
    ) -> ModelServerConfig:
        """Return a configuration that names what the server has: this model, and those beside it.

        A server unloads every model that a configuration does not name, and does not say which ones
        it has: it is asked for each by its name. One that has none of the names was started with
        another configuration, and what it has cannot be known.

        Raises:
            ControlError: If the server has no model of the configuration, nor one beside this one.
        """
        named = {model.name for model in config.model_config_list.config}
        beside = model_names(self.base_path.parent)
        missing = [name for name in beside if name not in named and server.available(name)]
        if not missing and not any(map(server.knows, sorted(named | {self.name}))):
            raise ControlError(
                f"Expected the model server at {server.host_port} to have a model of "
                f"'{self.config}', or another one in '{self.base_path.parent}'. Received: a server "
                "that has none of them, and would unload the models that it has, since a "
                "configuration replaces the earlier one. Promote with `--offline`, and start the "
                f"server with this configuration: `keras-mas serve --config {self.config}`."
            )
        ours = served_path_of(config, self.name) or str(self.served_path)
        for name in missing:
            folder = ours if name == self.name else posixpath.join(posixpath.dirname(ours), name)
            labels, loaded = server.labels(name, (*LABELS, PREVIOUS)), server.available(name)
            newest = {max(list_versions(self.base_path.parent / name))}
            versions = loaded if labels or loaded != newest else ()
            config = with_labels(config, name, folder, labels, versions)
        self.kept = [name for name in missing if name != self.name]
        return config

    def _move_at(
        self,
        server: ModelControl,
        before: ModelServerConfig,
        labels: Mapping[str, int],
        undo: contextlib.ExitStack,
    ) -> None:
        wanted, available = set(labels.values()), server.available(self.name)
        if not wanted <= available:
            # What is served stays served until the labels have moved: where the server has them,
            # which is not where the file does if it was started without them, or if a promotion was
            # killed before the server was told. It would refuse labels of what it has not loaded.
            old = server.labels(self.name, labels_of(before, self.name))
            loaded = wanted | available | listed_versions(before, self.name)
            failures = server.failures(self.name)
            server.take_over(self._write(before, old, loaded, undo))
            undo.callback(_tell_again, server, before)
            for version in sorted(wanted):
                server.wait_until_available(self.name, version, failures.get(version, ""))
        server.take_over(self._write(before, labels, wanted, undo))
        undo.callback(_tell_again, server, before)
        for label, version in labels.items():
            server.wait_until_labelled(self.name, label, version)

    def _write(
        self,
        before: ModelServerConfig,
        labels: Mapping[str, int],
        versions: set[int],
        undo: contextlib.ExitStack,
    ) -> ModelServerConfig:
        """Write the configuration, before a server is told: it may poll the file, or start anew."""
        text = self.config.read_bytes() if self.config.exists() else None
        after = with_labels(before, self.name, self.served_path, labels, versions)
        write_config(self.config, after)
        undo.callback(_write_back, self.config, text)
        return after


def _without_a_stable_canary(labels: Mapping[str, int]) -> dict[str, int]:
    """Return the labels without `canary` where it is `stable` too: it waits for no promotion."""
    return {k: v for k, v in labels.items() if k != CANARY or v != labels.get(STABLE)}


@contextlib.contextmanager
def _saying_that_nothing_moved() -> Iterator[None]:
    try:
        yield
    except ControlError as error:
        raise ControlError(f"{error} No label was moved.") from error


def _tell_again(server: ModelControl, config: ModelServerConfig) -> None:
    with contextlib.suppress(ControlError):  # the first failure says what is wrong
        server.take_over(config)


def _write_back(path: Path, text: bytes | None) -> None:
    if text is None:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path.resolve()) as file:
        file.write(text)
