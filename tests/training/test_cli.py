import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from keras_mas.methods import METHODS
from keras_mas.serving.paths import list_versions
from keras_mas.serving.standin import StandIn
from keras_mas.training.cli import build_parser, main
from keras_mas.training.tasks import builtin_names

QUICK = ["--epochs", "2", "--backbone", "mlp-8", "--batch-size", "16"]


@pytest.fixture
def here(tmp_path, monkeypatch, stream):
    """An empty working folder with `insects.toml`: three small tasks in npz files."""
    monkeypatch.chdir(tmp_path)
    text = 'name = "insects"\n'
    for task in stream.tasks:
        arrays = {}
        for role, split in [("train", task.train), ("val", task.validation), ("test", task.test)]:
            arrays |= {f"x_{role}": split.inputs, f"y_{role}": split.labels}
        np.savez(tmp_path / f"{task.name}.npz", **arrays)
        text += f'[[task]]\nname = "{task.name}"\nnpz = "{task.name}.npz"\n'
    (tmp_path / "insects.toml").write_text(text)
    return tmp_path


def answer(capsys, *argv):
    """Run a command that must succeed; return what it printed on standard output."""
    assert main(list(map(str, argv))) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refusal(capsys, code, *argv):
    """Run a command that must fail with `code`; return its one sentence."""
    try:
        assert main(list(map(str, argv))) == code
    except SystemExit as error:  # argparse
        assert error.code == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


def test_help_is_quick_and_needs_no_tensorflow():
    code = "import sys; from keras_mas.training.cli import main\n"
    code += "try: main(['train', '--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert time.perf_counter() - started < 2  # half a second, on a machine that is not busy
    for name in (*builtin_names(), *METHODS):
        assert name in done.stdout


def test_help_fits_a_terminal_of_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser = build_parser()
    commands = parser._subparsers._group_actions[0].choices.values()
    assert len(commands) == 7
    for command in (parser, *commands):
        assert max(map(len, command.format_help().splitlines())) <= 80


def test_train_then_report_then_export(here, capsys):
    out = answer(capsys, "train", "insects.toml", *QUICK, "--export", "models/insects")
    result = json.loads((here / "runs/insects-mas-1-seed0/result.json").read_text())
    assert f"average accuracy {result['average_accuracy']:.4f}" in out
    assert result["arguments"]["tasks"] == "insects.toml"
    assert (here / "runs/insects-mas-1-seed0/accuracy.png").read_bytes()[:4] == b"\x89PNG"
    assert list(list_versions(here / "models/insects")) == [1, 2, 3]
    assert max(map(len, out.splitlines())) <= 80

    printed = json.loads(answer(capsys, "train", "insects.toml", *QUICK, "--json"))
    assert printed == result

    answer(capsys, "train", "insects.toml", *QUICK, "--method", "finetune")
    runs = ["runs/insects-mas-1-seed0", "runs/insects-finetune-seed0"]
    out = answer(capsys, "report", *runs, "--output", "both.png")
    assert "mas λ=1" in out
    assert "finetune" in out
    assert (here / "both.png").stat().st_size > 10_000

    answer(capsys, "export", runs[1], "--to", "models/fine", "--version", 2)
    assert list(list_versions(here / "models/fine")) == [2]


def test_the_same_train_again_repeats_and_loses_nothing(here, capsys):
    command = ["train", "insects.toml", *QUICK, "--export", "models/insects"]
    first = answer(capsys, *command)
    files = {path: path.stat().st_mtime_ns for path in (here / "models").rglob("*")}
    assert answer(capsys, *command) == first
    assert {path: path.stat().st_mtime_ns for path in (here / "models").rglob("*")} == files


def test_a_version_of_another_run_is_not_overwritten(here, capsys):
    answer(capsys, "train", "insects.toml", *QUICK, "--export", "models/insects")
    files = {path: path.stat().st_mtime_ns for path in (here / "models").rglob("*")}
    other = ["train", "insects.toml", *QUICK, "--seed", 1, "--export", "models/insects"]
    assert "Expected no version 1 in 'models/insects' yet" in refusal(capsys, 2, *other)
    assert not (here / "runs/insects-mas-1-seed1").exists()
    # The same, when the run is there already and only the export is new.
    answer(capsys, *other[:-2])
    assert "never overwritten" in refusal(capsys, 2, *other)
    assert "never overwritten" in refusal(
        capsys, 2, "export", "runs/insects-mas-1-seed1", "--to", "models/insects"
    )
    assert {path: path.stat().st_mtime_ns for path in (here / "models").rglob("*")} == files


def test_ask_a_server(here, capsys):
    answer(capsys, "train", "insects.toml", *QUICK, "--export", "models/insects")
    with StandIn({"insects": here / "models/insects"}, grpc_port=0, rest_port=0) as server:
        rest, grpc = (f"127.0.0.1:{port}" for port in (server.rest_port, server.grpc_port))
        ask = ["predict", "insects", "--examples-of", "insects.toml", "--count", 3]
        rows = json.loads(answer(capsys, *ask, "--server", rest, "--json"))
        assert [row["task"] for row in rows] == ["ants"] * 3 + ["bees"] * 3 + ["cats"] * 3
        assert {row["truth"] for row in rows[:3]} <= {"0", "1"}
        over_grpc = answer(capsys, *ask, "--server", grpc, "--via", "grpc", "--json")
        assert json.loads(over_grpc) == rows
        right = sum(row["truth"] == row["answer"] for row in rows)
        assert f"{right} of 9 right" in answer(capsys, *ask, "--server", rest)

        np.save(here / "x.npy", np.load("bees.npz")["x_test"][:4])
        from_file = ["predict", "insects", "--input", "x.npy", "--server", rest]
        assert len(json.loads(answer(capsys, *from_file, "--task", "bees", "--json"))) == 4
        assert "Expected --task beside --input" in refusal(capsys, 2, *from_file)
        assert "ants, bees, cats. Received: 'dogs'" in refusal(capsys, 2, *ask, "--task", "dogs")
        assert refusal(capsys, 1, *from_file, "--task", "dogs").startswith("keras-mas: ")

        np.save(here / "x.npy", np.zeros([0, 4]))
        assert "at least one example" in refusal(capsys, 2, *from_file, "--task", "bees")
        np.save(here / "x.npy", np.zeros([2, 7]))
        sentence = refusal(capsys, 1, *from_file, "--task", "bees")
        assert re.search(r"\[2,7\].*\[\?,4\]", sentence)

        status = answer(capsys, "status", "insects", "--server", rest)
        assert "insects version 3  AVAILABLE" in status
        assert "nobody" in refusal(capsys, 1, "status", "nobody", "--server", rest)
        port = str(server.grpc_port)
        busy = ["serve", "models/insects", "--port", port, "--rest-port", 0]
        assert port in refusal(capsys, 1, *busy)
    assert rest in refusal(capsys, 1, *ask, "--server", rest)


def test_search_twice(here, capsys):
    command = ["search", "insects.toml", *QUICK, "--trials", 3, "--tuner", "random", "--json"]
    first, again = (json.loads(answer(capsys, *command)) for _ in range(2))
    assert first.pop("trained_now") == 4
    assert again.pop("trained_now") == 0
    assert first == again
    strengths = [trial["strength"] for trial in first["trials"]]
    assert len(strengths) == 4
    assert 0.0 in strengths
    assert all(strength == 0 or 1e-3 <= strength <= 1e3 for strength in strengths)
    accuracies = [trial["average_accuracy"] for trial in first["trials"]]
    assert first["average_accuracy"] == max(accuracies) == accuracies[0]

    words = first["command"].split()
    assert words[:3] == ["keras-mas", "train", "insects.toml"]
    assert answer(capsys, *words[1:]).startswith("mas λ=")
    table = answer(capsys, *command[:-1])
    assert first["command"] in table
    assert "0 trained now, 4 read from search/insects-mas-" in table


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["train", "split-digit"], "'split-digits', 'split-mnist'. Received: 'split-digit'"),
        (["train", "none.toml"], "none.toml"),
        (["train", "insects.toml", "--method", "masss"], "out of mas, finetune. Received: 'masss'"),
        (["train", "insects.toml", "--backbone", "vgg"], "Received: 'vgg'"),
        (["train", "insects.toml", "--backbone", "cnn-4"], "Expected images"),
        (["train", "insects.toml", "--strength", "-1"], "expected a number ≥ 0, received '-1'"),
        (["train", "insects.toml", "--strength", "nan"], "received 'nan'"),
        (["train", "insects.toml", "--epochs", "2.5"], "expected a whole number ≥ 1"),
        (["train", "insects.toml", "--strenght", "1"], "unrecognized arguments: --strenght"),
        (["train"], "the following arguments are required: TASKS"),
        (["trane", "insects.toml"], "invalid choice: 'trane'"),
        (["search", "insects.toml", "--strength-min", "9", "--strength-max", "2"], "9 and 2"),
        (["search", "insects.toml", "--strength-min", "0"], "expected a number > 0"),
        (["search", "insects.toml", "--trials", "0"], "expected a whole number ≥ 1"),
        (["report", "runs/none"], "Received: 'runs/none', which has no result.json"),
        (["export", "runs/none"], "Received: 'runs/none'"),
        (["serve", "models/none"], "models/none"),
        (["serve", "models/none", "--port", "70000"], "expected a port from 0 to 65535"),
        (["predict", "insects", "--input", "none.npy", "--task", "ants"], "none.npy"),
        (["predict", "insects"], "one of the arguments --input --examples-of is required"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_sentence(here, capsys, argv, sentence):
    assert sentence in refusal(capsys, 2, *argv)
    assert not (here / "runs").exists()


def test_a_run_is_not_a_served_model(here, capsys):
    answer(capsys, "train", "insects.toml", *QUICK, "--output", "run")
    serve = ["serve", "run", "--port", "0", "--rest-port", "0"]
    assert "version that can be served in 'run'. Received: 3 that" in refusal(capsys, 1, *serve)


def test_a_damaged_result_is_named(here, capsys):
    (here / "run").mkdir()
    (here / "run/result.json").write_text('{"tasks": ')
    assert "Expected JSON in 'run/result.json'" in refusal(capsys, 1, "report", "run")
    (here / "run/result.json").write_text("{}")
    assert "'run/result.json' without accuracy_matrix" in refusal(capsys, 1, "report", "run")


def test_a_memory_that_is_gone_is_not_passed_over(here, capsys):
    command = ["train", "insects.toml", *QUICK, "--output", "run"]
    answer(capsys, *command)
    for lost in ("result.json", "3/memory.npz"):
        (here / "run" / lost).unlink()
    sentence = refusal(capsys, 1, *command)
    assert "Expected to read or write 'run/3/memory.npz'. Received: No such file" in sentence
    (here / "run/2/model.keras").write_bytes(b"PK")
    assert "Expected a model in 'run/2/model.keras'" in refusal(capsys, 1, *command)


def test_a_strength_that_will_blow_up_is_announced_in_one_line(here, capsys):
    options = ["--optimizer", "sgd", "--learning-rate", "0.01", "--strength", "1000", "--penalty"]
    main(["train", "insects.toml", *QUICK, *options, "in_loss"])
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warned[0].startswith("keras-mas: warning: Expected a strength λ below ")
    answer(capsys, "train", "insects.toml", *QUICK, *options, "decoupled")


def test_names_in_brackets_are_printed_as_they_are(here, capsys):
    out = answer(capsys, "train", "insects.toml", *QUICK, "--output", "my [/b] run")
    assert "written to my [/b] run/" in out


def test_a_reader_that_has_seen_enough(here):
    words = (
        f"{sys.executable} -m keras_mas.training.cli train insects.toml {' '.join(QUICK)} --json"
    )
    done = subprocess.run(
        f"{words} | head -1", shell=True, capture_output=True, text=True, executable="/bin/bash"
    )
    assert done.stdout == "{\n"
    assert "rror" not in done.stderr and "pipe" not in done.stderr


def test_a_training_that_fails_is_one_sentence(here, capsys):
    command = ["train", "insects.toml", *QUICK, "--optimizer", "sgd", "--learning-rate", "1e8"]
    assert "Expected a finite loss" in refusal(capsys, 1, *command)


def test_a_package_that_is_not_installed_is_named(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_mas.training.commands", None)
    sentence = refusal(capsys, 1, "train", "insects.toml")
    assert "Install them with: pip install 'keras-mas[training]'" in sentence


def test_a_traceback_only_on_request(here):
    with pytest.raises(ValueError, match="Received: 'nope'"):
        main(["train", "nope", "--debug"])


def test_a_search_in_which_all_trials_fail(here, capsys):
    command = ["search", "insects.toml", *QUICK, "--trials", "2"]
    failing = [*command, "--optimizer", "sgd", "--learning-rate", "1e8"]
    assert "at least one trial that ends. Received: 3 that failed" in refusal(capsys, 1, *failing)
