"""`keras-mas predict`, and other commands that need no TensorFlow, as users start them."""

import argparse
import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from keras_mas.errors import UsageError
from keras_mas.serving.client import RestClient
from keras_mas.serving.export import export_version
from keras_mas.serving.rollout import Rollout
from keras_mas.serving.standin import ServerOptions, StandIn, config_of
from keras_mas.training.cli import main
from keras_mas.training.commands import predict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of a model of two tasks, bright or dark, and red or another colour.

    An image is 2×2; the logits are means of its channels from 0 to 1: of a white image they are
    [0, 1] and [1, 1/2].
    """
    folder = tmp_path_factory.mktemp("models") / "colours"
    x = keras.Input((2, 2, 3))
    means = keras.layers.GlobalAveragePooling2D()(x)

    def head(kernel, bias):
        layer = keras.layers.Dense(2)
        logits = layer(means)
        layer.set_weights([np.array(kernel) / 255, np.array(bias)])
        return keras.Model(x, logits)

    third = 1 / 3
    heads = {
        "light": head([[0, third]] * 3, [0, 0]),
        "hue": head([[1, 0], [0, 0], [0, 0]], [0, 0.5]),
    }
    classes = {"light": ["dark", "bright"], "hue": ["red", "other"]}
    export_version(heads, folder / "1", classes=classes, resize="crop", warmup_batch_sizes=[1])
    shutil.copytree(folder / "1", folder / "2")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    config = config_of({"colours": folder})
    config.model_config_list.config[0].version_labels.update({"stable": 1, "canary": 2})
    options = ServerOptions(allow_version_labels_for_unavailable_models=True)
    with StandIn(config, grpc_port=0, rest_port=0, options=options) as server:
        yield server


@pytest.fixture
def files(tmp_path):
    Image.new("RGB", (3, 2), "white").save(tmp_path / "white.png")
    Image.new("RGB", (2, 4), "blue").save(tmp_path / "blue.jpg", quality=100)
    return [str(tmp_path / "white.png"), str(tmp_path / "blue.jpg")]


def ask(server, via, *words):
    port = server.rest_port if via == "rest" else server.grpc_port
    return ["predict", "colours", "--via", via, "--server", f"127.0.0.1:{port}", *words]


def without_tensorflow(words):
    """Run a command in a process of its own; return what it printed and said."""
    code = (
        f"import sys; from keras_mas.training.cli import main; code = main({words!r});"
        "loaded = {'tensorflow', 'keras'} & set(sys.modules);"
        "sys.exit(code or ', '.join(loaded) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.parametrize("via", ["rest", "grpc"])
def test_images_are_sent_as_they_lie_and_nothing_waits_for_tensorflow(server, files, via):
    words = ask(server, via, "--json", "--batch-size", "1", "--images", *files)
    out, err = without_tensorflow(words)
    assert err == ""
    rows = json.loads(out)
    answers = [(row["file"], row["task"], row["answer"]) for row in rows]
    white, blue = files
    assert answers == [
        (white, "hue", "red"),
        (white, "light", "bright"),
        (blue, "hue", "other"),
        (blue, "light", "bright"),
    ]
    # e^1 / (e^0 + e^1), for a white image; it is brighter than a blue one.
    assert rows[1]["probability"] == 0.7311
    assert 0.5 < rows[3]["probability"] < 0.6


def test_going_back_does_not_wait_for_tensorflow(folder, tmp_path):
    models = str(shutil.copytree(folder, tmp_path / "models" / "colours"))
    Rollout(models).promote(1)
    Rollout(models).promote(2)
    with StandIn({"colours": models}, grpc_port=0, rest_port=0) as server:
        to_server = ["--server", f"127.0.0.1:{server.grpc_port}"]
        for words, said in [
            (["status", models, "--via", "grpc"], "colours version 2  AVAILABLE  (stable)"),
            (["rollback", models], "stable is version 1"),
        ]:
            assert said in without_tensorflow([*words, *to_server])[0]


def test_a_canary_that_there_is_not_is_said_to_be_none(folder, tmp_path, capsys):
    models = str(shutil.copytree(folder, tmp_path / "models" / "colours"))
    Rollout(models).promote(1)
    Rollout(models).promote(2, "canary")
    drop = ["rollback", models, "--label", "canary", "--offline"]
    for said in ("", "there is no canary to drop; no label was moved\n"):
        assert main(drop) == 0
        assert capsys.readouterr() == ("colours: stable is version 1\n", said)


def test_one_task_of_several_can_be_asked_for(server, files, capsys):
    assert main(ask(server, "rest", "--task", "hue", "--images", *files)) == 0
    assert [line.split()[1:3] for line in capsys.readouterr().out.splitlines()[2:]] == [
        ["hue", "red"],
        ["hue", "other"],
    ]


@pytest.mark.parametrize("via", ["rest", "grpc"])
@pytest.mark.parametrize(
    ("words", "version", "said"),
    [
        ([], 2, "version 2"),
        (["--version", "1"], 1, "version 1"),
        (["--label", "stable"], 1, "version 1, labelled 'stable'"),
        (["--label", "canary"], 2, "version 2, labelled 'canary'"),
    ],
)
def test_it_says_which_version_answered(server, files, capsys, via, words, version, said):
    assert main(ask(server, via, "--json", *words, "--images", *files)) == 0
    assert {row["version"] for row in json.loads(capsys.readouterr().out)} == {version}
    assert main(ask(server, via, *words, "--images", *files)) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"colours, {said}, over {via}"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--images", "gone.png"], 2, "file in 'gone.png'. Received: no such file or directory."),
        (
            ["--images", "text.png"],
            2,
            "Received: a file of 5 bytes that is neither.",
        ),
        (["--images", "white.png", "--task", "size"], 2, "hue, light. Received: --task size."),
        (["--images", "white.png", "--version", "9"], 1, "Specific(colours, 9)"),
        (["--images", "white.png", "--version", "0"], 1, "Specific(colours, 0)"),
        (["--images", "cut.png"], 1, "INVALID_ARGUMENT"),
        (["--images", "white.png", "cut.png", "blue.jpg"], 1, "metadata. The file is 'cut.png'."),
        (
            ["--input", "text.png"],
            2,
            "written by `numpy.save`. Received: a file of another kind",
        ),
        (["--input", "gone.npy"], 2, "in 'gone.npy'. Received: no such file or directory"),
        (["--images", "white.png", "--tls-key", "k"], 2, "a client's certificate and its key"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(
    server, files, capsys, monkeypatch, tmp_path, words, code, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "cut.png").write_bytes((tmp_path / "white.png").read_bytes()[:40])
    assert main(ask(server, "rest", *words)) == code
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_wrong_answers_are_marked_and_lines_end_in_no_blanks(capsys):
    rows = [
        {"task": "a", "version": 1, "answer": "dark", "truth": "light", "correct": False},
        {"task": "b", "version": 2, "answer": "light", "truth": "light", "correct": True},
    ]
    predict._print(rows, argparse.Namespace(model="shop", via="rest", label=None))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "shop, version 1, version 2, over rest"
    assert [line.split() for line in lines[2:4]] == [
        ["a", "dark", "light", "wrong"],
        ["b", "light", "light"],
    ]
    assert lines[4] == "1 of 2 right" and lines == [line.rstrip() for line in lines]


def test_a_model_of_other_inputs_takes_no_images(tmp_path, files, capsys):
    x = keras.Input((3,))
    export_version({"a": keras.Model(x, keras.layers.Dense(2)(x))}, tmp_path / "rows" / "1")
    with StandIn({"rows": tmp_path / "rows"}, grpc_port=0, rest_port=0) as server:
        address = f"127.0.0.1:{server.rest_port}"
        assert main(["predict", "rows", "--server", address, "--images", *files]) == 2
    assert (
        "with a signature 'encoded'. Received: 'rows' with a, examples" in capsys.readouterr().err
    )


@pytest.mark.parametrize("via", ["rest", "grpc"])
def test_an_input_of_another_name_is_asked_by_it(tmp_path, capsys, via):
    x = keras.Input((2,))
    head = keras.Model(x, keras.layers.Identity()(x))
    export_version({"a": head}, tmp_path / "rows" / "1", input_name="row", warmup_batch_sizes=[1])
    np.save(tmp_path / "x.npy", [[0.0, np.log(3)]])
    with StandIn({"rows": tmp_path / "rows"}, grpc_port=0, rest_port=0) as server:
        port = server.rest_port if via == "rest" else server.grpc_port
        words = ["--via", via, "--server", f"127.0.0.1:{port}", "--input", str(tmp_path / "x.npy")]
        assert main(["predict", "rows", *words]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["a", "1", "0.7500"]


def test_a_head_of_two_inputs_cannot_be_asked():
    signatures = {"a": argparse.Namespace(inputs={"left": None, "right": None})}
    with pytest.raises(UsageError, match="one input. Received: a signature of 'left', 'right'"):
        predict._input_name(argparse.Namespace(model="rows"), "a", signatures)


@pytest.fixture
def answered(tmp_path, monkeypatch, capsys):
    """A function that asks about two inputs a server that answers what it is given."""

    def answered(outputs, *words, outputs_of_metadata=None):
        names = outputs if outputs_of_metadata is None else outputs_of_metadata
        signature = argparse.Namespace(inputs={"inputs": None}, outputs=dict.fromkeys(names))
        signatures = {"pets": signature}
        arrays = {name: np.array(value) for name, value in outputs.items()}
        monkeypatch.setattr(RestClient, "_metadata", lambda *_: (signatures, 1))
        monkeypatch.setattr(RestClient, "_predict", lambda *_: (arrays, 1))
        np.save(tmp_path / "x.npy", np.zeros([2, 3], np.float32))
        code = main(["predict", "shop", "--input", str(tmp_path / "x.npy"), *words])
        return code, *capsys.readouterr()

    return answered


LABELS = np.array(["cat", "dog"], object)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"label": LABELS[:1], "probabilities": [[1.0]]}, "of 2 inputs, 'label' [1], 'prob"),
        ({"label": LABELS, "probabilities": [[1.0]] * 3}, "of 2 inputs, 'probabilities' [3, 1]"),
        ({"label": np.array("cat", object), "probabilities": [[1.0]] * 2}, "inputs, 'label' []"),
        ({"label": LABELS, "probabilities": [[], []]}, "no 'probabilities' of the right shape"),
        ({"label": LABELS, "probabilities": [1.0, 1.0]}, "no 'probabilities' of the right shape"),
        ({"label": LABELS}, "no 'probabilities' of the right shape"),
    ],
)
def test_an_answer_of_another_shape_is_one_sentence(answered, outputs, words):
    code, out, error = answered(outputs)
    assert code == 1 and words in error and error.count("\n") == 1 and not out


def test_numbers_that_are_not_finite_are_null_and_named(answered):
    outputs = {"label": LABELS, "probabilities": [[0.25, 0.75], [np.nan, 0.5]]}
    code, out, error = answered(outputs, "--json")
    rows = json.loads(out, parse_constant=pytest.fail)
    assert code == 0 and [row["probability"] for row in rows] == [0.75, None]
    assert "NaN or infinity about 'example 2 of pets'. What" in error and error.count("\n") == 1
    code, out, error = answered(outputs | {"probabilities": [[-np.inf, 1.0], [np.inf, 0.5]]})
    assert [line.split() for line in out.splitlines()[2:]] == [
        ["pets", "cat", "–"],
        ["pets", "dog", "–"],
    ]
    assert "about 'example 1 of pets', 'example 2 of pets'." in error


def test_probabilities_are_shown_with_as_many_decimals_each(answered):
    _, out, _ = answered({"label": LABELS, "probabilities": [[0.25, 0.75], [1.0, 0.0]]})
    assert [line.split()[-1] for line in out.splitlines()[2:]] == ["0.7500", "1.0000"]


def test_control_characters_of_labels_do_not_reach_the_terminal(answered):
    labels = np.array(["\x1b[31mred\0", "größe\u3000\x9b1m\nb"], object)
    _, out, _ = answered({"label": labels, "probabilities": [[1.0]] * 2})
    assert "\\x1b[31mred\\x00 " in out and "größe\u3000\\x9b1m\\nb " in out
    assert len(out.splitlines()) == 4


def test_a_model_without_heads_is_said_to_have_none(answered):
    code, _, error = answered({}, "--task", "pets", outputs_of_metadata=["y"])
    assert code == 2 and "Received: 'shop' with pets, which answer without a label." in error
