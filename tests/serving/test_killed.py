"""A few kills of `benchmarks/kill_publishing.py`, which kills a hundred publishers."""

import sys
from pathlib import Path

import pytest

from keras_mas.serving.paths import list_versions, new_version

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))

import kill_publishing  # noqa: E402


@pytest.mark.parametrize("kills", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_every_visible_version_is_whole_whenever_a_publisher_is_killed(tmp_path, kills):
    stages, damage = kill_publishing.kill_publishers(tmp_path / "shop", kills, seed=0)
    assert damage == []
    assert sum(stages.values()) == kills
    versions = list(list_versions(tmp_path / "shop"))
    assert versions == list(range(1, len(versions) + 1))
    with new_version(tmp_path / "shop" / "999") as unfinished:
        assert list((tmp_path / "shop").glob(".tmp-*")) == [unfinished]


def test_damage_is_found(models, tmp_path):
    assert "ManifestError" in kill_publishing.is_damaged(models / "half_plus_two" / "123")
    assert "LoadError" in kill_publishing.is_damaged(models / "half_broken" / "2")
