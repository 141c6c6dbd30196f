import concurrent.futures
import shutil

import numpy as np
import pytest
import tensorflow as tf

from keras_mas.serving.runtime import LoadedVersion, LoadError


@pytest.fixture(scope="module")
def half_plus_two(models):
    return LoadedVersion(models / "half_plus_two" / "123")


def ask(version, x, signature="serve"):
    return version.run(signature, {"x": np.array(x, np.float32)})["y"].tolist()


def test_a_version_answers_as_the_function_that_was_exported(half_plus_two):
    assert ask(half_plus_two, [1, 2, 5]) == [2.5, 3.0, 4.5]


def test_no_name_is_the_default_signature(half_plus_two):
    assert ask(half_plus_two, [2], signature="") == [3.0]


def test_signatures_describe_inputs_and_outputs_and_no_initialisation(half_plus_two):
    assert sorted(half_plus_two.signatures) == ["serve", "serving_default"]
    signature = half_plus_two.signatures["serve"]
    assert list(signature.inputs) == ["x"] and list(signature.outputs) == ["y"]
    assert signature.inputs["x"].dtype == tf.float32.as_datatype_enum


def test_wrong_names_get_the_messages_of_tensorflow_serving(half_plus_two):
    x = np.zeros(1, np.float32)
    with pytest.raises(tf.errors.FailedPreconditionError) as unknown:
        half_plus_two.run("nobody", {"x": x})
    with pytest.raises(tf.errors.InvalidArgumentError) as missing:
        half_plus_two.run("serve", {})
    with pytest.raises(tf.errors.InvalidArgumentError) as extra:
        half_plus_two.run("serve", {"x": x, "z": x})
    with pytest.raises(tf.errors.InvalidArgumentError) as other:
        half_plus_two.run("serve", {"z": x})
    assert unknown.value.message == 'Serving signature key "nobody" not found.'
    assert missing.value.message == (
        "input size does not match signature: 0!=1 len({}) != len({x}). "
        "Sent extra: {}. Missing but required: {x}."
    )
    assert extra.value.message == (
        "input size does not match signature: 2!=1 len({x,z}) != len({x}). "
        "Sent extra: {z}. Missing but required: {}."
    )
    assert other.value.message == (
        "Signature input alias: x(feed name: serve_x:0) not found in request and no default value "
        "provided. Inputs expected to be in the request {z}, or default input alias set: "
    )


def test_shapes_are_not_checked_in_python(half_plus_two):
    # The signature says [None]; the graph itself has nothing against a matrix, nor has a server.
    assert ask(half_plus_two, [[2.0], [5.0]]) == [[3.0], [4.5]]


def test_a_wrong_dtype_is_refused(half_plus_two):
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="Expects arg.0. to be float but double is provided"
    ):
        half_plus_two.run("serve", {"x": np.zeros(1, np.float64)})


def test_several_threads_can_run_one_version(half_plus_two):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: ask(half_plus_two, [2 * i]), range(200)))
    assert answers == [[i + 2.0] for i in range(200)]


@pytest.mark.parametrize("name", ["missing", "empty", "torn", "half"])
def test_a_folder_without_a_whole_model_is_an_error_with_its_path(tmp_path, models, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "saved_model.pb").write_bytes(b"half a fi")
    shutil.copytree(models / "shop" / "1", tmp_path / "half")
    (weights,) = (tmp_path / "half" / "variables").glob("*.data-*")
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(LoadError, match=f"Expected a complete SavedModel in '.*{name}'. Received"):
        LoadedVersion(tmp_path / name)
