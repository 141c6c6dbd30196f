from pathlib import Path

import pytest
from google.protobuf import text_format
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from keras_mas.errors import UsageError
from keras_mas.serving.config import (
    ConfigError,
    changing,
    config_path,
    labels_of,
    listed_versions,
    read_config,
    with_labels,
    write_config,
)

BY_HAND = """# Ask the search team before you change this.
model_config_list {
  config {
    name: "search"  # theirs
    base_path: "/volumes/search"
    model_platform: "tensorflow"
    model_version_policy { latest { num_versions: 2 } }
    version_labels { key: "beta" value: 7 }
  }
  config { name: "all" base_path: "/volumes/all" model_version_policy { all {} } }
}
"""


def test_a_model_gets_an_entry_beside_those_written_by_hand(tmp_path):
    path = tmp_path / "models.config"
    path.write_text(BY_HAND)
    by_hand = read_config(path)
    config = with_labels(by_hand, "shop", "/models/shop", {"stable": 1}, {2, 1})
    assert by_hand == text_format.Parse(BY_HAND, ModelServerConfig())
    write_config(path, config)
    assert path.read_text().startswith(BY_HAND.rstrip().removesuffix("}"))
    *others, shop = read_config(path).model_config_list.config
    assert others == list(by_hand.model_config_list.config)
    assert (shop.base_path, shop.model_platform) == ("/models/shop", "tensorflow")
    assert list(shop.model_version_policy.specific.versions) == [1, 2]
    assert labels_of(config, "shop") == {"stable": 1} and labels_of(config, "search") == {"beta": 7}
    assert listed_versions(config, "shop") == {1, 2} and listed_versions(config, "all") == set()


def test_an_entry_keeps_its_path_and_a_policy_of_all_versions(tmp_path):
    by_hand = text_format.Parse(BY_HAND, ModelServerConfig())
    config = with_labels(by_hand, "all", "/elsewhere", {"stable": 3}, {3})
    entry = config.model_config_list.config[1]
    assert entry.base_path == "/volumes/all"
    assert entry.model_version_policy.HasField("all")
    again = with_labels(config, "all", "/elsewhere", {"canary": 4}, {4})
    assert labels_of(again, "all") == {"canary": 4}


def test_two_entries_of_one_model_are_refused(tmp_path):
    path = tmp_path / "models.config"
    path.write_text(BY_HAND.replace('"all"', '"search"'))
    with pytest.raises(ConfigError, match="one entry for each model .* several for 'search'"):
        read_config(path)


def test_a_folder_that_is_not_there_is_not_another_process(tmp_path):
    for folder in (tmp_path / "models", Path("/proc")):
        with pytest.raises(UsageError, match="No such file or directory"), changing(folder / "c"):
            pass
    assert not (tmp_path / "models").exists()


def test_without_a_file_there_is_no_label(tmp_path):
    config = read_config(tmp_path / "models.config")
    assert labels_of(config, "shop") == {} and listed_versions(config, "shop") == set()
    config = with_labels(config, "shop", "/models/shop", {"stable": 1}, {1})
    write_config(tmp_path / "models.config", config)
    assert (tmp_path / "models.config").read_text().startswith("# Labels are moved by")
    assert read_config(tmp_path / "models.config") == config
    assert config_path(tmp_path / "shop") == tmp_path / "models.config"


def test_comments_alone_stay_above_the_first_entry(tmp_path):
    path = tmp_path / "models.config"
    path.write_text("# Ask the search team.\n")
    config = with_labels(read_config(path), "shop", "/models/shop", {"stable": 1}, {1})
    write_config(path, config)
    assert path.read_text().startswith("# Ask the search team.\nmodel_config_list {")
    assert read_config(path) == config


def test_a_link_to_a_configuration_stays_one(tmp_path):
    (tmp_path / "real").write_text(BY_HAND)
    (tmp_path / "models.config").symlink_to("real")
    config = with_labels(read_config(tmp_path / "real"), "shop", "/models/shop", {}, {1})
    write_config(tmp_path / "models.config", config)
    assert (tmp_path / "models.config").is_symlink()
    assert "/models/shop" in (tmp_path / "real").read_text()


def test_an_entry_is_replaced_in_its_place_and_nothing_else(tmp_path):
    path = tmp_path / "models.config"
    path.write_text(BY_HAND)
    config = with_labels(read_config(path), "search", "", {"beta": 8}, {8})
    write_config(path, config)
    text = path.read_text()
    assert text.startswith("# Ask the search team") and text.count("config {") == 2
    assert text.endswith(BY_HAND[BY_HAND.index('  config { name: "all"') :])
    assert read_config(path) == config and "theirs" not in text  # a comment in the entry itself


@pytest.mark.parametrize(
    "text",
    [
        'model_config_list { config: [{ name: "a" }, { name: "shop" }] }',
        "model_config_list <config < name: 'shop' > config:{name: '}#\\'{'} >",
        "model_config_list: { } # config { name: 'shop' }",
        "# nothing yet\n",
    ],
)
def test_protobuf_text_of_any_form_is_changed(tmp_path, text):
    path = tmp_path / "models.config"
    path.write_text(text)
    config = with_labels(read_config(path), "shop", "/models/shop", {"stable": 1}, {1})
    write_config(path, config)
    assert read_config(path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"model_config_list { config { nam: 1 } }", '1:30 : .*no field named "nam"'),
        (b"model_config_list {", "Expected a model server configuration"),
        (b"\xff", "utf-8"),
        (b"custom_model_config { }", "Received: a `custom_model_config`"),
    ],
)
def test_what_is_no_configuration_is_named(tmp_path, text, message):
    (tmp_path / "models.config").write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "models.config")


def test_one_process_changes_a_configuration_at_a_time(tmp_path):
    changed = pytest.raises(ConfigError, match="Another process is changing")
    with changing(tmp_path / "models.config"), changed, changing(tmp_path / "models.config"):
        pass
    with changing(tmp_path / "models.config"):
        pass


def test_what_a_killed_process_left_of_a_configuration_is_removed(tmp_path):
    for name in (".tmp-models.config-00112233", ".tmp-other.config-00112233"):
        (tmp_path / name).write_text("half")
    with changing(tmp_path / "models.config"):
        assert {path.name for path in tmp_path.glob(".tmp-*")} == {".tmp-other.config-00112233"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "models.config"
    with pytest.raises(UsageError, match="Expected to write"), changing(path):
        pass
