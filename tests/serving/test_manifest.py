import json
import shutil

import keras
import numpy as np
import pytest

from keras_mas.serving.export import export_version
from keras_mas.serving.manifest import ManifestError, read_manifest, weights_checksum


def test_a_version_says_what_it_holds_and_where_it_comes_from(tmp_path, make_heads):
    run = {"method": "mas", "strength": 1.0, "accuracy_matrix": [[1.0, 0.5], [0.75, 1.0]]}
    version = export_version(
        make_heads(), tmp_path / "1", classes={"pets": ["Kätzchen", "dog"]}, manifest=run
    )
    manifest = read_manifest(version)
    assert manifest.pop("versions")["keras"] == keras.__version__
    assert manifest == {
        "format": 1,
        "classes": {"pets": ["Kätzchen", "dog"], "fruit": ["0", "1", "2"]},
        "input": {"name": "inputs", "shape": [2]},
        "resize": None,
        "weights": stored(make_heads()),
        "run": run,
    }


def stored(heads):
    weights = {id(weight): weight for head in heads.values() for weight in head.weights}
    return weights_checksum(weight.numpy() for weight in weights.values())


def test_the_checksum_depends_on_values_shapes_and_types_alone():
    a, b = np.arange(4.0), np.ones((2, 3), np.float32)
    assert weights_checksum([a, b]) == weights_checksum(iter([b, a]))
    others = ([a], [a, b, b], [a, b + 1], [a.reshape(2, 2), b], [a.astype(np.float32), b])
    assert weights_checksum([a, b]) not in map(weights_checksum, others)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "Received: FileNotFoundError: .*Export the version again"),
        ("{", "Received: JSONDecodeError: .*Export the version again"),
        ("[]", "Received: TypeError: .*Export the version again"),
        (json.dumps({"format": 2}), "format 1. Received: format 2 in .*version of keras_mas"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named(tmp_path, models, text, message):
    shutil.copytree(models / "shop" / "1", tmp_path / "1")
    path = tmp_path / "1" / "assets.extra" / "manifest.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path / "1")
