"""Versions of models that come and go, and what is answered meanwhile."""

import contextlib
import shutil
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import model_pb2

from keras_mas.serving.standin import config_of
from keras_mas.serving.standin.model_config import (
    ModelServerConfig,
    aspired_versions,
    read_server_config,
)
from keras_mas.serving.standin.models import ServedModels
from keras_mas.serving.standin.policy import Action, Snapshot, next_action
from keras_mas.serving.standin.protocol import RequestError

HALF = "half_plus_two"
LOADED = {"ready": True}


# The policy, by hand.


@pytest.mark.parametrize(
    ("versions", "action"),
    [
        ([Snapshot(1, aspired=True, new=True)], (Action.LOAD, 1)),
        ([Snapshot(n, aspired=True, new=True) for n in (1, 3, 2)], (Action.LOAD, 3)),
        # Version 1 answers until version 2 does.
        ([Snapshot(1, False, **LOADED), Snapshot(2, True, new=True)], (Action.LOAD, 2)),
        ([Snapshot(1, False, **LOADED), Snapshot(2, True)], None),  # loading, or failed
        ([Snapshot(1, False, **LOADED), Snapshot(2, True, **LOADED)], (Action.UNLOAD, 1)),
        # One of two is enough to keep the model available; the older one goes.
        (
            [Snapshot(1, False, **LOADED), Snapshot(2, False, **LOADED), Snapshot(3, True)],
            (Action.UNLOAD, 1),
        ),
        ([Snapshot(1, False, **LOADED)], (Action.UNLOAD, 1)),  # none is to be served
        ([Snapshot(1, True, **LOADED)], None),
        ([], None),
    ],
)
def test_a_version_is_unloaded_once_another_one_answers(versions, action):
    assert next_action(versions) == action


# Which versions a configuration asks for.


@pytest.fixture
def folder(tmp_path):
    for name in ("1", "002", "10", "x", ".tmp-3", "1.5"):
        (tmp_path / name).mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("policy", "numbers"),
    [
        ("", [10]),
        ("latest { num_versions: 2 }", [2, 10]),
        ("all {}", [1, 2, 10]),
        ("specific { versions: 1 versions: 2 versions: 7 }", [1, 2]),
    ],
)
def test_a_policy_chooses_among_the_versions_of_a_folder(folder, tmp_path, policy, numbers):
    path = tmp_path / "models.config"
    path.write_text(
        f'model_config_list {{ config {{ name: "a" base_path: "{folder}" '
        f'model_platform: "tensorflow" model_version_policy {{ {policy} }} }} }}'
    )
    (model,) = read_server_config(path).model_config_list.config
    found = aspired_versions(model)
    assert list(found) == numbers
    assert 2 not in found or found[2] == folder / "002"


def test_a_missing_folder_of_a_model_is_refused(tmp_path):
    (model,) = config_of({"a": tmp_path / "none"}).model_config_list.config
    with pytest.raises(RequestError, match=f"Could not find base path {tmp_path}/none for serva"):
        aspired_versions(model)


# Versions that come and go.


@pytest.fixture
def base(tmp_path, models):
    """The folder of a model with version 1, y = x/2 + 2, to which others can be published."""
    publish(models, tmp_path / "base", 1)
    return tmp_path / "base"


def publish(models, base, number, source=HALF):
    """Publish a version as is right: written beside, then renamed."""
    base.mkdir(exist_ok=True)
    (folder,) = (models / source).iterdir()
    shutil.copytree(folder, base / f".tmp-{number}")
    (base / f".tmp-{number}").rename(base / str(number))


@contextlib.contextmanager
def serving(config, **options):
    with contextlib.closing(ServedModels(config, **{"poll_seconds": 0.02} | options)) as served:
        yield served


def spec(number=None, label=None):
    spec = model_pb2.ModelSpec(name="half")
    if number is not None:
        spec.version.value = number
    if label is not None:
        spec.version_label = label
    return spec


def ask(served, **which):
    with served.using(spec(**which)) as version:
        (y,) = version.predict("", {"x": np.float32([2.0])})["y"]
        assert y == 3.0
        return version.number


def states(served):
    status = served.status(spec()).model_version_status
    return {each.version: type(each).State.Name(each.state) for each in status}


def wait_for(served, **expected):
    expected = {int(number.removeprefix("v")): state for number, state in expected.items()}
    deadline = time.monotonic() + 20
    while states(served) != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert states(served) == expected


def latest(base, **labels):
    return with_labels(config_of({"half": base}, "latest"), labels)


def with_labels(config, labels):
    for label, number in labels.items():
        config.model_config_list.config[0].version_labels[label] = number
    return config


def test_a_published_version_replaces_the_one_before(models, base):
    with serving(latest(base)) as served:
        assert ask(served) == 1
        publish(models, base, 2)
        wait_for(served, v2="AVAILABLE", v1="END")
        assert ask(served) == 2
        with pytest.raises(RequestError, match=r"not found for request: Specific\(half, 1\)"):
            ask(served, number=1)


def test_all_first_versions_are_loaded_when_serving_begins(models, base):
    publish(models, base, 2)
    publish(models, base, 3)
    with serving(config_of({"half": base})) as served:
        assert states(served) == dict.fromkeys((3, 2, 1), "AVAILABLE")


def test_a_folder_that_disappears_is_unloaded_and_may_come_back(models, base):
    publish(models, base, 2)
    with serving(config_of({"half": base})) as served:
        wait_for(served, v2="AVAILABLE", v1="AVAILABLE")
        (base / "2").rename(base / ".gone")
        wait_for(served, v2="END", v1="AVAILABLE")
        assert ask(served) == 1
        (base / ".gone").rename(base / "2")
        wait_for(served, v2="AVAILABLE", v1="AVAILABLE")
        assert ask(served) == 2


def test_a_folder_of_a_model_that_disappears_leaves_its_versions_loaded(base, caplog):
    # As a share that is not mounted for a while; a version that disappears alone is unloaded.
    with serving(latest(base)) as served:
        base.rename(base.with_name("gone"))
        deadline = time.monotonic() + 20
        while len(caplog.records) < 3 and time.monotonic() < deadline:  # it has looked again
            time.sleep(0.01)
        assert f"Could not find base path {base}" in caplog.text
        assert states(served) == {1: "AVAILABLE"} and ask(served) == 1


def test_a_version_that_does_not_load_leaves_the_one_before(models, base):
    with serving(latest(base)) as served:
        (base / "2").mkdir()
        wait_for(served, v2="END", v1="AVAILABLE")
        status = served.status(spec(number=2)).model_version_status[0].status
        assert status.error_code == tf.errors.UNKNOWN
        assert "Expected a complete SavedModel in" in status.error_message
        assert ask(served) == 1
        # Going back to it, and on to a sound one, needs no restart.
        (base / "2").rmdir()
        time.sleep(0.1)
        publish(models, base, 3)
        wait_for(served, v3="AVAILABLE", v2="END", v1="END")


def test_a_version_whose_warm_up_fails_is_not_served(models, base):
    publish(models, base, 2)
    extra = base / "2" / "assets.extra"
    extra.mkdir()
    (extra / "tf_serving_warmup_requests").write_bytes(b"no records " * 9)
    with serving(config_of({"half": base})) as served:
        wait_for(served, v2="END", v1="AVAILABLE")
        error = served.status(spec(number=2)).model_version_status[0].status.error_message
        assert "Expected the warm-up requests in" in error


def test_a_running_request_keeps_its_version(models, base):
    with serving(latest(base)) as served:
        with served.using(spec()) as version:
            publish(models, base, 2)
            wait_for(served, v2="AVAILABLE", v1="UNLOADING")
            assert ask(served) == 2
            assert version.predict("", {"x": np.float32([6.0])})["y"].tolist() == [5.0]
        wait_for(served, v2="AVAILABLE", v1="END")


def test_a_version_asked_for_again_while_it_is_unloaded_comes_back(models, base):
    with serving(latest(base)) as served:
        with served.using(spec()):
            publish(models, base, 2)
            wait_for(served, v2="AVAILABLE", v1="UNLOADING")
            served.reload(config_of({"half": base}, (1,)))
        wait_for(served, v2="END", v1="AVAILABLE")
        assert ask(served) == 1


# Reload and labels.


def test_labels_move_between_loaded_versions(models, base):
    publish(models, base, 2)
    with serving(config_of({"half": base})) as served:
        wait_for(served, v2="AVAILABLE", v1="AVAILABLE")
        served.reload(with_labels(config_of({"half": base}), {"stable": 1, "canary": 2}))
        assert (ask(served, label="stable"), ask(served, label="canary")) == (1, 2)
        served.reload(with_labels(config_of({"half": base}), {"stable": 2}))
        assert ask(served, label="stable") == 2
        with pytest.raises(RequestError, match="Unrecognized servable version label: canary"):
            ask(served, label="canary")


def test_a_refused_configuration_changes_nothing(base):
    with serving(latest(base)) as served:
        served.reload(latest(base, stable=1))
        with pytest.raises(RequestError, match="label to version 2 of model half, which is not"):
            served.reload(latest(base, stable=2, canary=1))
        assert ask(served, label="stable") == 1
        with pytest.raises(RequestError, match="Unrecognized"):
            ask(served, label="canary")


def test_a_label_may_precede_its_version_where_that_is_allowed(models, base):
    with serving(latest(base, stable=2), labels_for_unavailable=True) as served:
        with pytest.raises(RequestError, match=r"not found for request: Specific\(half, 2\)"):
            ask(served, label="stable")
        publish(models, base, 2)
        wait_for(served, v2="AVAILABLE", v1="END")
        assert ask(served, label="stable") == 2
        with pytest.raises(RequestError, match="label to version 3"):  # it is not new any more
            served.reload(latest(base, stable=3))


def test_a_reload_waits_for_models_that_are_new(models, base, tmp_path, caplog):
    publish(models, tmp_path / "other", 5)
    with serving(latest(base), poll_seconds=0) as served:
        served.reload(config_of({"half": base, "other": tmp_path / "other"}))
        with served.using(model_pb2.ModelSpec(name="other")) as version:
            assert version.number == 5
        assert not caplog.records
        served.reload(config_of({"other": tmp_path / "other"}))
        assert "does not name 'half': all versions of it are unloaded" in caplog.text
        wait_for(served, v1="END")
        (tmp_path / "empty" / "1").mkdir(parents=True)
        broken = config_of({"other": tmp_path / "other", "broken": tmp_path / "empty"})
        with pytest.raises(
            RequestError, match=r"1 model\(s\) did not become available: {{{name: b"
        ):
            served.reload(broken)
        with pytest.raises(RequestError, match="Unable to find a numerical version path"):
            served.reload(config_of({"half": tmp_path}))


def test_only_a_list_of_models_is_a_configuration(base):
    with serving(latest(base)) as served, pytest.raises(RequestError, match="Only ModelConfigLi"):
        served.reload(ModelServerConfig())


def test_many_requests_while_versions_come_and_go(models, base):
    publish(models, base, 2)
    answers, failures, ending = [], [], threading.Event()

    def client():
        while not ending.is_set():
            try:
                answers.append(ask(served))
            except Exception as error:
                failures.append(error)

    with serving(config_of({"half": base}, (1,))) as served:
        threads = [threading.Thread(target=client) for _ in range(8)]
        for thread in threads:
            thread.start()
        for number in (2, 1, 2, 1):
            served.reload(config_of({"half": base}, (number,)))
            wait_for(served, **{f"v{number}": "AVAILABLE", f"v{3 - number}": "END"})
        ending.set()
        for thread in threads:
            thread.join()
    assert not failures
    assert set(answers) == {1, 2}
