import pytest

from keras_mas.errors import UsageError
from keras_mas.serving.paths import list_versions, parse_version, version_path


def test_parse_version_is_the_inverse_of_version_path():
    assert version_path("models/shop", 3).as_posix() == "models/shop/3"
    assert parse_version(version_path("models/shop", 3)) == 3


@pytest.mark.parametrize("name", ["latest", "-1", "1.0", ".tmp-1", "²"])
def test_a_version_is_a_non_negative_integer(name):
    with pytest.raises(UsageError, match=f"named by an integer.* Received: '{name}' in"):
        parse_version(f"models/shop/{name}")


def test_versions_are_folders_with_integer_names_in_numeric_order(tmp_path):
    for name in ("10", "9", ".tmp-11-ab", "latest", "1.5"):
        (tmp_path / name).mkdir()
    (tmp_path / "12").write_text("a file")
    # As text "10" comes before "9".
    assert list_versions(tmp_path) == {9: tmp_path / "9", 10: tmp_path / "10"}
    assert list(list_versions(tmp_path)) == [9, 10]


def test_leading_zeros_are_allowed_as_in_tensorflow_serving(tmp_path):
    (tmp_path / "007").mkdir()
    assert list_versions(tmp_path) == {7: tmp_path / "007"}


def test_a_missing_model_has_no_versions(tmp_path):
    assert list_versions(tmp_path / "nobody") == {}
