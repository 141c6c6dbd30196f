import contextlib
import errno
import os
import socket
import time

import pytest
from model_server import ModelServer

from keras_mas.errors import UsageError
from keras_mas.serving import config as config_module
from keras_mas.serving import control as control_module
from keras_mas.serving.config import ConfigError, read_config, with_labels, write_config
from keras_mas.serving.control import ControlError, ModelControl
from keras_mas.serving.paths import list_versions
from keras_mas.serving.rollout import Rollout

TWICE = {"stable": 2, "canary": 2, "previous": 1}
OTHER = 'model_config_list { config { name: "search" base_path: "/search" } }'


@pytest.fixture
def shop(tmp_path):
    """Folder of a model whose versions 1, 2, 3 are folders with a file, which nothing loads."""
    for version in (1, 2, 3):
        (tmp_path / "models" / "shop" / str(version)).mkdir(parents=True)
        (tmp_path / "models" / "shop" / str(version) / "saved_model.pb").touch()
    return tmp_path / "models" / "shop"


@contextlib.contextmanager
def rollout_on(shop, timeout=5.0, **options):
    """The labels of the model on a server, which polls the file or is told."""
    path = shop.parent / "models.config"
    polls = options.pop("polled", False)
    served = options.pop("served", ())
    with ModelServer(polls=path if polls else None, **options) as server:
        server.serve("shop", *served)
        with ModelControl(server.address, timeout=timeout, polled=polls) as control:
            yield server, Rollout(shop, server=control)


@pytest.mark.parametrize("polled", [False, True], ids=["reload", "polled"])
def test_a_version_is_canary_then_stable_then_rolled_back(shop, polled):
    (shop.parent / "models.config").write_text(OTHER)
    with rollout_on(shop, polled=polled, served=[1]) as (server, rollout):
        assert rollout.promote(1) == {"stable": 1}
        assert rollout.promote(2, "canary") == {"stable": 1, "canary": 2}
        assert server.available("shop") == {1, 2}
        # Stable now, and so no canary that a later promotion would return to.
        assert rollout.promote() == {"stable": 2, "previous": 1}
        assert rollout.promote(label="canary") == {"stable": 2, "canary": 3, "previous": 1}
        assert rollout.promote() == {"stable": 3, "previous": 2}
        assert rollout.promote(label="canary") == {"stable": 3, "previous": 2}
        assert rollout.rollback() == {"stable": 2}
        assert server.labels == {("shop", "stable"): 2}
    # At no time did a label point to a version that was not loaded, nor was the other model gone.
    for labels, available in server.history:
        assert set(labels.values()) <= available
    names = [[model.name for model in each.model_config_list.config] for each in server.configs]
    assert all(each[0] == "search" for each in names)
    assert read_config(rollout.config) == server.configs[-1]


def test_what_is_served_stays_loaded_until_the_label_has_moved(shop):
    # The server was started for the model alone, and has no labels yet.
    with rollout_on(shop, served=[3]) as (server, rollout):
        rollout.promote(2)
        assert [available for _, available in server.history] == [{3}, {2}]
        first, last = (
            list(config.model_config_list.config[0].model_version_policy.specific.versions)
            for config in server.configs
        )
        assert (first, last) == ([2, 3], [2])


def test_a_canary_that_was_rolled_back_is_no_canary(shop):
    with rollout_on(shop, served=[1, 2]) as (server, rollout):
        rollout.promote(1)
        rollout.promote(2, "canary")
        assert rollout.rollback("canary") == {"stable": 1}
        assert server.labels == {("shop", "stable"): 1}
        assert server.available("shop") == {1}  # so that no client gets 2, label or not
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


def test_a_version_that_does_not_load_moves_no_label(shop):
    with rollout_on(shop, served=[1], broken=[3]) as (server, rollout):
        (shop.parent / "hats/1").mkdir(parents=True)
        server.serve("hats", 1)
        with pytest.raises(ControlError, match="3 of 'shop' to load"):
            rollout.promote(3)  # nor does it change what a server without labels has
        assert server.available("shop") == server.available("hats") == {1}
        rollout.promote(1)
        before = rollout.config.read_text()
        with pytest.raises(ControlError, match="3 of 'shop' to load.* Could not find meta.* No la"):
            rollout.promote(3)
        assert rollout.config.read_text() == before
        assert server.available("shop") == {1} and server.labels == {("shop", "stable"): 1}
        assert server.configs[-1] == read_config(rollout.config)


def test_a_version_that_takes_too_long_moves_no_label(shop):
    with rollout_on(shop, timeout=0.5, served=[2]) as (server, rollout):
        server.loads = False
        with pytest.raises(ControlError, match=r"1 of 'shop' to be available .* within 0.5 s"):
            rollout.promote(1)
        assert not rollout.config.exists() and server.labels == {}


def test_a_version_that_fails_again_in_the_same_way_is_not_waited_for(shop, monkeypatch):
    with rollout_on(shop, served=[1], broken=[3], timeout=60.0) as (server, rollout):
        for _ in range(2):  # the server shows that it is loading it
            with pytest.raises(ControlError, match="3 of 'shop' to load.* Could not find meta"):
                rollout.promote(3)
        monkeypatch.setattr(control_module, "_SAME_FAILURE_SECONDS", 0.3)
        server.loads = False  # or does not, if nobody asks at that time
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


def test_models_beside_it_that_the_server_has_stay_served(shop):
    for version in (4, 5):
        (shop.parent / "hats" / str(version)).mkdir(parents=True)
        (shop.parent / "bags" / str(version)).mkdir(parents=True)
        (shop.parent / "ties" / str(version)).mkdir(parents=True)
    (shop.parent / "models.config").write_text(OTHER)
    with rollout_on(shop) as (server, rollout):
        server.serve("hats", 5)  # as `keras-mas serve models/hats`
        server.serve("bags", 4, 5)
        server.labels = {("bags", "stable"): 4}
        served = shop.parents[1] / "served"  # the same folder in a container
        served.symlink_to(shop.parent)
        rollout.served_path = served / "shop"
        assert rollout.promote(1) == {"stable": 1}
        assert rollout.kept == ["bags", "hats"]
        assert server.available("hats") == {5} and server.available("bags") == {4, 5}
        assert server.labels == {("bags", "stable"): 4, ("shop", "stable"): 1}
    _, bags, hats, ours = read_config(rollout.config).model_config_list.config
    names = ("bags", "hats", "shop")
    assert [each.base_path for each in (bags, hats, ours)] == [f"{served}/{name}" for name in names]
    # What comes after version 5 of hats is served, as before.
    assert not hats.HasField("model_version_policy")
    assert list(bags.model_version_policy.specific.versions) == [4, 5]
    assert "search" in rollout.config.read_text()


def test_a_server_of_another_configuration_is_left_alone(shop):
    with rollout_on(shop) as (server, rollout):
        server.serve("elsewhere", 1)
        with pytest.raises(ControlError, match="models that it has.*--offline.*No label was mo"):
            rollout.promote(1)
        assert server.configs == [] and not rollout.config.exists()


def test_labels_that_a_server_was_started_without_do_not_keep_it_from_others(shop):
    Rollout(shop).promote(1, "canary")
    with rollout_on(shop, served=[2]) as (server, rollout):
        assert rollout.promote(3) == {"stable": 3, "canary": 1}
        assert server.available("shop") == {1, 3}


def test_a_configuration_that_is_refused_leaves_the_server_alone(shop):
    Rollout(shop).promote(2)
    other = 'config { name: "search" base_path: "/search" version_labels { key: "a" value: 9 } } }'
    text = (shop.parent / "models.config").read_text().rstrip().removesuffix("}") + other
    (shop.parent / "models.config").write_text(text)
    with rollout_on(shop, served=[1]) as (server, rollout):
        with pytest.raises(ControlError, match="label to version 9 of model search, .* No label"):
            rollout.promote(1)
        assert server.configs == [] and server.available("shop") == {1}
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
