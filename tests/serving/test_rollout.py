"""Labels on a stand-in whose versions are folders that nothing is loaded from."""

import contextlib
import errno
import os
import socket
import threading
import time

import pytest
from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from keras_mas.errors import UsageError
from keras_mas.serving import config as config_module
from keras_mas.serving import control as control_module
from keras_mas.serving.config import (
    ConfigError,
    labels_of,
    read_config,
    with_labels,
    write_config,
)
from keras_mas.serving.control import ControlError, ModelControl
from keras_mas.serving.paths import list_versions
from keras_mas.serving.rollout import Rollout
from keras_mas.serving.runtime import LoadError
from keras_mas.serving.standin import ServerOptions, StandIn
from keras_mas.serving.standin.models import ServedModels, ServedVersion

TWICE = {"stable": 2, "canary": 2, "previous": 1}
LABELS = ("stable", "canary", "previous")
POLL_SECONDS = 0.05


@pytest.fixture
def shop(tmp_path):
    """Folder of a model whose versions 1, 2, 3 are folders with a file."""
    return with_versions(tmp_path / "models" / "shop", 1, 2, 3)


@pytest.fixture
def search(tmp_path):
    """The entry in a configuration of a model that lies elsewhere."""
    return entry(with_versions(tmp_path / "search", 1))


def with_versions(folder, *numbers):
    for number in numbers:
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "saved_model.pb").touch()
    return folder


def entry(folder, *versions, stable=None):
    """Return the entry of a model in a configuration: of some versions, or of the latest one."""
    only = " ".join(f"versions: {version}" for version in versions)
    policy = f"model_version_policy {{ specific {{ {only} }} }}" if versions else ""
    label = f'version_labels {{ key: "stable" value: {stable} }}' if stable else ""
    return (
        f'config {{ name: "{folder.name}" base_path: "{folder}" model_platform: "tensorflow" '
        f"{policy} {label} }}\n"
    )


def config_of(*entries):
    return f"model_config_list {{ {' '.join(entries)} }}"


class Server:
    """A stand-in, as it is asked, with how its versions load.

    Attributes:
        configs: The configurations that it took over after the first, in order.
        broken: Versions that fail to load.
        seconds: How long a version takes to load.
        loads: Set while versions that are wanted are loaded; others wait.
    """

    def __init__(self, broken):
        self.configs, self.broken, self.seconds = [], broken, 0.05
        self.loads = threading.Event()
        self.loads.set()

    def load(self, version):
        time.sleep(self.seconds)
        self.loads.wait()
        if version.number in self.broken:
            raise LoadError("Could not find meta graph")
        version.signatures = {}

    def available(self, name):
        return self.control.available(name)

    def has(self, name, *versions):
        """Tell whether just these versions are loaded, once others have been unloaded."""
        deadline = time.monotonic() + 5.0
        while self.available(name) != set(versions) and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.available(name) == set(versions)

    @property
    def labels(self):
        return self.control.labels("shop", LABELS)


@pytest.fixture
def rollout_on(shop, tmp_path, monkeypatch):
    """A function that serves models, and gives the server, and the labels of the shop on it.

    With `polled` the server polls the file in which the labels are kept.
    """

    @contextlib.contextmanager
    def rollout_on(*entries, polled=False, broken=(), timeout=5.0):
        server, reload = Server(broken), ServedModels.reload

        def recorded(models, config, *more):
            reload(models, config, *more)
            server.configs.append(ModelServerConfig.FromString(config.SerializeToString()))

        monkeypatch.setattr(ServedVersion, "load", lambda version, _: server.load(version))
        monkeypatch.setattr(ServedModels, "reload", recorded)
        path = shop.parent / "models.config" if polled else tmp_path / "first.config"
        path.write_text(config_of(*entries))
        options = ServerOptions(POLL_SECONDS, POLL_SECONDS if polled else 0.0)
        with StandIn(path, grpc_port=0, rest_port=0, options=options) as running:
            server.configs.clear()
            address = f"127.0.0.1:{running.grpc_port}"
            with ModelControl(address, timeout=timeout, polled=polled) as control:
                server.control = control
                try:
                    yield server, Rollout(shop, server=control)
                finally:
                    server.loads.set()

    return rollout_on


@pytest.mark.parametrize("polled", [False, True], ids=["reload", "polled"])
def test_a_version_is_canary_then_stable_then_rolled_back(shop, search, rollout_on, polled):
    (shop.parent / "models.config").write_text(config_of(search))
    with rollout_on(search if polled else entry(shop, 1), polled=polled) as (server, rollout):
        assert rollout.promote(1) == {"stable": 1}
        assert rollout.promote(2, "canary") == {"stable": 1, "canary": 2}
        assert server.has("shop", 1, 2)
        # Stable now, and so no canary that a later promotion would return to.
        assert rollout.promote() == {"stable": 2, "previous": 1}
        assert rollout.promote(label="canary") == {"stable": 2, "canary": 3, "previous": 1}
        assert rollout.promote() == {"stable": 3, "previous": 2}
        assert rollout.promote(label="canary") == {"stable": 3, "previous": 2}
        assert rollout.rollback() == {"stable": 2}
        assert server.labels == {"stable": 2} and server.has("shop", 2)
    # The server took no configuration with a label of a version that was not loaded; nor was the
    # other model gone in one.
    names = [[model.name for model in each.model_config_list.config] for each in server.configs]
    assert all(each[0] == "search" for each in names)
    assert read_config(rollout.config) == server.configs[-1]


def test_what_is_served_stays_loaded_until_the_label_has_moved(shop, rollout_on):
    # The server was started for the model alone, and has no labels yet.
    with rollout_on(entry(shop)) as (server, rollout):
        assert server.has("shop", 3)
        rollout.promote(2)
        assert server.has("shop", 2)
        first, last = (
            list(config.model_config_list.config[0].model_version_policy.specific.versions)
            for config in server.configs
        )
        assert (first, last) == ([2, 3], [2])


def test_a_canary_that_was_rolled_back_is_no_canary(shop, rollout_on):
    with rollout_on(entry(shop, 1, 2)) as (server, rollout):
        rollout.promote(1)
        rollout.promote(2, "canary")
        assert rollout.rollback("canary") == {"stable": 1}
        assert server.labels == {"stable": 1}
        assert server.has("shop", 1)  # so that no client gets 2, label or not
        assert rollout.promote() == {"stable": 3, "previous": 1}
        assert rollout.rollback() == {"stable": 1}


def test_a_canary_that_somebody_let_point_to_stable_is_none(shop):
    rollout = Rollout(shop)
    rollout.promote(1)
    rollout.promote(2)
    by_hand = with_labels(read_config(rollout.config), "shop", shop, TWICE, {1, 2})
    write_config(rollout.config, by_hand)
    assert rollout.rollback() == {"stable": 1}  # and nobody gets 2
    write_config(rollout.config, by_hand)
    assert rollout.promote() == {"stable": 3, "previous": 2}


def test_a_version_that_does_not_load_moves_no_label(shop, rollout_on):
    hats = with_versions(shop.parent / "hats", 1)
    with rollout_on(entry(shop, 1), entry(hats, 1), broken=[3]) as (server, rollout):
        with pytest.raises(ControlError, match="3 of 'shop' to load"):
            rollout.promote(3)  # nor does it change what a server without labels has
        assert server.has("shop", 1) and server.has("hats", 1)
        rollout.promote(1)
        before = rollout.config.read_text()
        with pytest.raises(ControlError, match="3 of 'shop' to load.* Could not find meta.* No la"):
            rollout.promote(3)
        assert rollout.config.read_text() == before
        assert server.has("shop", 1) and server.labels == {"stable": 1}
        assert server.configs[-1] == read_config(rollout.config)


def test_a_version_that_takes_too_long_moves_no_label(shop, rollout_on):
    with rollout_on(entry(shop, 2), timeout=1.0) as (server, rollout):
        server.loads.clear()
        with pytest.raises(ControlError, match=r"1 of 'shop' to be available .* within 1 s"):
            rollout.promote(1)
        assert not rollout.config.exists() and server.labels == {}


def test_what_a_version_failed_on_before_is_no_reason_why_it_takes_too_long(shop, rollout_on):
    with rollout_on(entry(shop, 1), broken=[3]) as (server, rollout):
        with pytest.raises(ControlError, match="3 of 'shop' to load.* Could not find meta"):
            rollout.promote(3)
        server.control.timeout, server.broken = 1.0, []
        server.loads.clear()
        with pytest.raises(ControlError, match=r"3 of 'shop' to be .* 1 s. Received: no change"):
            rollout.promote(3)


def test_a_version_that_fails_again_in_the_same_way_is_not_waited_for(
    shop, rollout_on, monkeypatch
):
    with rollout_on(entry(shop, 1), broken=[3], timeout=60.0) as (server, rollout):
        for _ in range(2):  # the server shows that it is loading it
            with pytest.raises(ControlError, match="3 of 'shop' to load.* Could not find meta"):
                rollout.promote(3)
        monkeypatch.setattr(control_module, "_SAME_FAILURE_SECONDS", 0.3)
        server.seconds = 0.0  # or does not, if nobody asks at that time
        beginning = time.monotonic()
        with pytest.raises(ControlError, match="3 of 'shop' to load.* Could not find meta"):
            rollout.promote(3)
        assert time.monotonic() - beginning < 30.0


def test_a_server_that_never_answers_is_given_the_time_that_was_asked_for(shop):
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        ModelControl(f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.2) as control,
    ):
        checked, beginning = [], time.monotonic()
        with pytest.raises(ControlError, match="to answer.* Deadline Exceeded. No label was"):
            Rollout(shop, server=control).promote(1, check=checked.append)
        assert checked == [] and time.monotonic() - beginning < 5.0


def test_models_beside_it_that_the_server_has_stay_served(shop, search, rollout_on):
    hats, bags, _ = [with_versions(shop.parent / name, 4, 5) for name in ("hats", "bags", "ties")]
    (shop.parent / "models.config").write_text(config_of(search))
    # Hats as by `keras-mas serve models/hats`.
    with rollout_on(entry(hats), entry(bags, 4, 5)) as (server, rollout):
        labelled = config_of(entry(hats), entry(bags, 4, 5, stable=4))
        server.control.take_over(text_format.Parse(labelled, ModelServerConfig()))
        served = shop.parents[1] / "served"  # the same folder in a container
        served.symlink_to(shop.parent)
        rollout.served_path = served / "shop"
        assert rollout.promote(1) == {"stable": 1}
        assert rollout.kept == ["bags", "hats"]
        assert server.has("hats", 5) and server.has("bags", 4, 5)
        assert server.labels == {"stable": 1}
        assert server.control.labels("bags", LABELS) == {"stable": 4}
    _, bags, hats, ours = read_config(rollout.config).model_config_list.config
    names = ("bags", "hats", "shop")
    assert [each.base_path for each in (bags, hats, ours)] == [f"{served}/{name}" for name in names]
    # What comes after version 5 of hats is served, as before.
    assert not hats.HasField("model_version_policy")
    assert list(bags.model_version_policy.specific.versions) == [4, 5]
    assert "search" in rollout.config.read_text()


def test_a_version_that_the_server_has_is_checked_too(shop, rollout_on):
    checked = []
    with rollout_on(entry(shop, 1, 2)) as (_, rollout):
        rollout.promote(1, check=checked.append)
        rollout.promote(3, check=checked.append)
    assert [folder.name for folder in checked] == ["1", "3"]


def test_a_server_of_another_configuration_is_left_alone(search, rollout_on):
    with rollout_on(search) as (server, rollout):
        with pytest.raises(ControlError, match="models that it has.*--offline.*No label was mo"):
            rollout.promote(1)
        assert server.configs == [] and not rollout.config.exists()


def test_labels_that_a_server_was_started_without_do_not_keep_it_from_others(shop, rollout_on):
    Rollout(shop).promote(1, "canary")
    with rollout_on(entry(shop, 2)) as (server, rollout):
        assert rollout.promote(3) == {"stable": 3, "canary": 1}
        assert server.has("shop", 1, 3)


def test_a_label_stays_where_the_server_has_it_while_the_file_is_ahead(shop, rollout_on):
    with rollout_on(entry(shop, 2)) as (server, rollout):
        rollout.promote(2)
        Rollout(shop).promote(1)  # as one that was killed before the server was told
        assert rollout.promote(3) == {"stable": 3, "previous": 1}
        assert [labels_of(config, "shop").get("stable") for config in server.configs] == [2, 2, 3]


def test_labels_that_a_server_has_from_another_file_stay(shop, tmp_path, rollout_on):
    with rollout_on(entry(shop, 1)) as (server, rollout):
        rollout.promote(1)
        rollout.promote(2)
        other = Rollout(shop, config=tmp_path / "other.config", server=server.control)
        assert other.promote(3, "canary") == {"stable": 2, "canary": 3, "previous": 1}
        assert server.labels == other.labels and server.has("shop", 1, 2, 3)
        assert other.before == {"stable": 2, "previous": 1}  # no label of which has moved
        lost = Rollout(shop, config=tmp_path / "lost.config", server=server.control)
        assert lost.rollback("canary") == {"stable": 2, "previous": 1} == server.labels


def test_a_configuration_that_is_refused_leaves_the_server_alone(shop, tmp_path, rollout_on):
    Rollout(shop).promote(2)
    file = shop.parent / "models.config"
    other = entry(with_versions(tmp_path / "search", 1), stable=9)
    text = file.read_text().rstrip().removesuffix("}") + other + "}"
    file.write_text(text)
    with rollout_on(entry(shop, 1)) as (server, rollout):
        with pytest.raises(ControlError, match="label to version 9 of model search, .* No label"):
            rollout.promote(1)
        assert server.configs == [] and server.has("shop", 1)
        assert rollout.config.read_text() == text


def test_a_server_that_is_not_there_changes_nothing(shop):
    with ModelControl("127.0.0.1:1", timeout=1.0) as control:
        rollout = Rollout(shop, server=control)
        with pytest.raises(ControlError, match="answer at 127.0.0.1:1, its gRPC.* No label was"):
            rollout.promote(1)
    assert not rollout.config.exists()


def test_without_a_server_the_file_alone_changes(shop):
    rollout = Rollout(shop, served_path="/models/shop")
    rollout.promote(1)
    assert rollout.promote(3) == {"stable": 3, "previous": 1}
    [entry] = read_config(rollout.config).model_config_list.config
    assert entry.base_path == "/models/shop"
    assert list(entry.model_version_policy.specific.versions) == [1, 3]


def test_promoting_what_is_stable_already_forgets_nothing(shop):
    rollout = Rollout(shop)
    rollout.promote(1)
    assert rollout.promote(2) == rollout.promote(2) == {"stable": 2, "previous": 1}


def test_stable_does_not_return_to_what_was_a_canary_once(shop):
    rollout = Rollout(shop)
    rollout.promote(1)
    rollout.promote(2, "canary")
    assert rollout.promote() == {"stable": 2, "previous": 1}
    assert rollout.promote() == {"stable": 3, "previous": 2}
    assert rollout.promote() == {"stable": 3, "previous": 2}


def test_stable_goes_back_only_to_a_version_that_is_named(shop):
    rollout = Rollout(shop)
    rollout.promote(2, "canary")
    rollout.promote(3)
    with pytest.raises(UsageError, match="later than version 3, which is stable. Rec.* 2"):
        rollout.promote()
    assert rollout.labels == {"canary": 2, "stable": 3}
    assert rollout.promote(2) == {"stable": 2, "previous": 3}


def test_versions_under_a_label_are_not_removed(shop):
    rollout = Rollout(shop)
    for version in (4, 5):
        (shop / str(version)).mkdir()
    rollout.promote(1)
    rollout.promote(3)
    assert rollout.prune(1) == [2, 4]
    assert list(list_versions(shop)) == [1, 3, 5]
    with pytest.raises(UsageError, match="keep at least one"):
        rollout.prune(0)


def test_a_label_of_a_version_that_somebody_removed_is_dropped(shop):
    rollout = Rollout(shop)
    rollout.promote(1, "canary")
    (shop / "1" / "saved_model.pb").unlink()
    (shop / "1").rmdir()
    assert rollout.promote(2) == {"stable": 2}


def test_what_is_not_there_is_refused(shop, tmp_path):
    rollout = Rollout(shop)
    with pytest.raises(UsageError, match="out of 1, 2, 3, which are in .* Received: 7"):
        rollout.promote(7)
    for label, missing in (("stable", "previous"), ("canary", "stable")):
        with pytest.raises(ConfigError, match=f"to go back to, labelled '{missing}'"):
            rollout.rollback(label)
    with pytest.raises(UsageError, match="Expected versions of a model as folders"):
        Rollout(tmp_path / "models" / "shoe")
    assert not rollout.config.exists()


def test_a_full_disk_moves_no_label(shop, monkeypatch):
    rollout = Rollout(shop)
    rollout.promote(1)
    before = rollout.config.read_text()

    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(config_module, "atomic_file", fill)
    with pytest.raises(ConfigError, match="No space left on device.* No label was moved"):
        rollout.promote(2)
    assert rollout.config.read_text() == before
