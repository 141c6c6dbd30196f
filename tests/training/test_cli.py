import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path

import filelock
import keras
import numpy as np
import pytest
from cases import slow_but
from insects import replace_model
from PIL import Image

from keras_mas.methods import METHODS
from keras_mas.serving import rollout
from keras_mas.serving.manifest import read_manifest, write_manifest
from keras_mas.serving.paths import list_versions
from keras_mas.serving.runtime import LoadedVersion
from keras_mas.serving.standin import StandIn
from keras_mas.training.cli import (
    _sentence,
    _show_ours,
    _write_any_character,
    build_parser,
    main,
)
from keras_mas.training.commands import COMMANDS, predict, promote
from keras_mas.training.commands.shared import command_of, print_json, train_command
from keras_mas.training.run_directory import read_json, read_result, write_json
from keras_mas.training.tasks import builtin_names

QUICK = ["--epochs", "2", "--backbone", "mlp-8", "--batch-size", "16"]
LEARNS = ["--epochs", "5", "--learning-rate", "0.03"]
MAS = "runs/insects-mas-0.1-mlp-8-epochs2-batch16-seed0"
FINETUNE = "runs/insects-finetune-mlp-8-epochs2-batch16-seed0"


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


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["--version"]], ids=str)
def test_help_imports_nothing_heavy(argv):
    # Imports are what help takes its time for: 0.2 s, and 4 s with TensorFlow.
    code = f"""
import sys
from keras_mas.training.cli import main
try:
    main({argv})
except SystemExit as end:
    heavy = {{"tensorflow", "keras", "matplotlib", "rich", "sklearn", "requests", "shtab"}}
    heavy |= set({[] if argv == ["--version"] else ["difflib", "importlib.metadata"]})
    sys.exit(end.code or sorted(heavy & set(sys.modules)) or None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    if argv[0] == "train":
        for name in (*builtin_names(), *METHODS):
            assert name in done.stdout


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "tasks.toml"], "'nam' in [[task]] number 1 of 'tasks.toml'"),
        (["search", "tasks.toml"], "'nam' in [[task]] number 1 of 'tasks.toml'"),
        (["compare", "tasks.toml", "--methods", "mas"], "Did you mean 'name'?"),
        (["train", "splt-digits"], "Did you mean 'split-digits'?"),
        (["train", "--continue", "run", "--add", "splt-digits"], "Did you mean 'split-digits'?"),
        (["train", "--continue", "run"], "Expected `--add TASKS` beside `--continue`"),
    ],
    ids=" ".join,
)
def test_wrong_tasks_are_refused_before_tensorflow_is_imported(tmp_path, argv, said):
    (tmp_path / "tasks.toml").write_text('name = "x"\n[[task]]\nnam = "a"')
    code = f"""
import sys
from keras_mas.training.cli import main
print(main({argv}), "tensorflow" in sys.modules)
"""
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert said in done.stderr
    assert done.stdout.split() == ["2", "False"]


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}], ids=str)
def test_help_in_ascii(variables):
    environment = {"PATH": os.environ["PATH"], "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "keras_mas.training.cli", "train", "--help"],
        env=environment | variables,
        capture_output=True,
        encoding="ascii",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "weight of the penalty beside the loss, >= 0" in done.stdout
    assert "--strength lambda" in done.stdout


def test_every_character_can_be_written_in_ascii():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    _write_any_character(file)
    file.write("λ ≥ 1 … kühl")
    assert file.buffer.getvalue() == rb"lambda >= 1 ... k\xfchl"


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert not end.value.code
    assert capsys.readouterr().out == f"keras-mas {metadata.version('keras-mas')}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_commands_and_options(capsys, shell):
    script = answer(capsys, "completion", shell)
    for word in (*COMMANDS, "batch-size", "overwrite", "decoupled"):
        assert word in script
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_the_command_line_chooses_its_own_backend(here):
    done = subprocess.run(
        [sys.executable, "-m", "keras_mas.training.cli", "status", "insects"]
        + ["--server", "127.0.0.1:9"],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "UNAVAILABLE" in done.stderr


def test_help_fits_a_terminal_of_80_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    parser = build_parser()
    commands = parser._subparsers._group_actions[0].choices.values()
    assert set(parser._subparsers._group_actions[0].choices) == set(COMMANDS)
    for command in (parser, *commands):
        assert max(map(len, command.format_help().splitlines())) <= 80


def test_train_then_report_then_export(here, capsys):
    out = answer(capsys, "train", "insects.toml", *QUICK, "--export", "models/insects")
    result = json.loads((here / MAS / "result.json").read_text())
    assert f"average accuracy {result['average_accuracy']:.4f}" in out
    assert result["arguments"]["tasks"] == "insects.toml"
    assert (here / MAS / "accuracy.png").read_bytes()[:4] == b"\x89PNG"
    assert list(list_versions(here / "models/insects")) == [1, 2, 3]
    table = [line for line in out.splitlines() if "models/" not in line and "runs/" not in line]
    assert max(map(len, table)) <= 80

    printed = json.loads(answer(capsys, "train", "insects.toml", *QUICK, "--json"))
    assert printed == result

    answer(capsys, "train", "insects.toml", *QUICK, "--method", "finetune")
    runs = [MAS, FINETUNE]
    rows = json.loads(answer(capsys, "report", *runs, "--json"))
    assert [row["method"] for row in rows] == ["mas", "finetune"]
    assert [row["epochs"] for row in rows] == [2, 2]
    lines = answer(capsys, "report", *runs, "--csv").splitlines()
    assert [line.count(",") for line in lines] == [lines[0].count(",")] * 3
    assert lines[0].split(",") == list(rows[0])
    out = answer(capsys, "report", *runs, "--output", "both.png")
    assert "mas λ=0.1" in out
    assert "finetune" in out
    assert (here / "both.png").stat().st_size > 10_000

    answer(capsys, "export", runs[1], "--to", "models/fine", "--version", 2)
    assert list(list_versions(here / "models/fine")) == [2]
    # Either command says of a version where it comes from.
    answer(capsys, "export", runs[0], "--to", "models/again", "--version", 2)
    of_run = read_manifest(here / "models/insects/2")["run"]
    assert read_manifest(here / "models/again/2")["run"] == of_run
    assert of_run["accuracy_matrix"] == [row[:2] for row in result["accuracy_matrix"][:2]]
    assert (of_run["method"], of_run["strength"], of_run["tasks"]) == ("mas", 0.1, ["ants", "bees"])
    assert of_run["command"].startswith("keras-mas train insects.toml ")


COMPARE = ["compare", "insects.toml", *QUICK, "--seeds", "0,1"]


def test_compare_then_report(here, capsys):
    assert main([*COMPARE, "--strength", "mas=2", "--importance", "--log", "csv"]) == 0
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "was not learned" not in line]  # in two epochs
    assert [line.split("  ")[0] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    assert max(len(line) for line in out.splitlines() if "written" not in line) <= 80
    assert "mas λ=2" in out and "finetune" in out and "difference from mas λ=2" in out
    folder = here / "comparisons/insects"
    written = sorted(path.name for path in folder.iterdir())
    assert written == [".lock", "comparison.csv", "comparison.json", "report.html"]
    content = json.loads((folder / "comparison.json").read_text())
    assert [row["method"] for row in content["runs"]] == ["mas"] * 2 + ["finetune"] * 2
    assert len((folder / "comparison.csv").read_text().splitlines()) == 5
    page = (folder / "report.html").read_text()
    assert "What the network must keep: mas" in page and "--seeds 0,1 " in page
    assert "--log csv" in page and "average accuracy from mas" in page
    run = here / content["runs"][0]["folder"]
    assert len((run / "training.csv").read_text().splitlines()) == 1 + 3 * 2

    # A run of a comparison is one of `train`, and the other way round.
    words = ["--method", "mas", "--strength", "2", "--json"]
    again = json.loads(answer(capsys, "train", "insects.toml", *QUICK, *words))
    assert again["average_accuracy"] == content["runs"][0]["average_accuracy"]
    printed = json.loads(answer(capsys, *COMPARE, "--strength", "mas=2", "--json"))
    assert printed["methods"] == content["methods"]
    answer(capsys, *COMPARE, "--strength", "mas=2", "--against", "finetune")
    assert "average accuracy from finetune" in (folder / "report.html").read_text()

    runs = [row["folder"] for row in content["runs"]]
    out = answer(capsys, "report", *runs, "--html", "new/page.html", "--importance")
    assert "drawn to new/page.html" in out
    page = (here / "new/page.html").read_text()
    command = "keras-mas train insects.toml --method mas --strength 2.0 --seed 1 --backbone mlp-8"
    assert f"{command} --epochs 2 --batch-size 16\n" in page


@pytest.mark.slow
def test_the_command_of_a_comparison_makes_it_again(here, capsys):
    first = json.loads(answer(capsys, *COMPARE, "--methods", "finetune", "--json"))
    words = first["command"].split()
    assert words[:3] == ["keras-mas", "compare", "insects.toml"]
    assert not {"--runs", "--searches", "--output", "--importance"} & {*words}
    assert json.loads(answer(capsys, *words[1:], "--json")) == first
    lines = answer(capsys, *words[1:], "--csv").splitlines()
    assert len(lines) == 3 and lines[0].startswith("stream,")


def test_the_command_of_a_comparison_names_its_folders(here, capsys):
    folders = ["--runs", "my runs", "--searches", "found", "--output", "page", "--importance"]
    quick = [*COMPARE, "--methods", "finetune", "--evaluate-every", "5", *folders, "--json"]
    content = json.loads(answer(capsys, *quick))
    end = "--runs 'my runs' --searches found --output page --importance"
    assert content["command"].endswith(end)
    assert "--evaluate-every 5" in content["command"]
    for row in content["runs"]:
        result = json.loads((here / row["folder"] / "result.json").read_text())
        assert result["evaluate_every"] == 5


def test_a_comparison_in_which_one_method_fails_says_so(here, capsys):
    asked = [*COMPARE, "--seeds", "0", "--penalty", "in_loss", "--strength", "mas=1e30"]
    assert main(asked) == 1
    out, err = capsys.readouterr()
    assert err.splitlines()[-1].startswith("keras-mas: 1 of 2 runs failed: mas λ=1e+30 seed 0. The")
    page = (here / "comparisons/insects/report.html").read_text()
    assert "finetune" in out and "Expected a finite loss" in page


def test_a_comparison_in_which_everything_fails(here, capsys):
    failing = [*COMPARE, "--optimizer", "sgd", "--learning-rate", "1e8"]
    sentence = refusal(capsys, 1, *failing)
    assert "None of 4 runs was finished. Expected a finite loss" in sentence
    assert [*(here / "comparisons/insects").iterdir()] == [here / "comparisons/insects/.lock"]


@pytest.mark.slow
def test_a_comparison_that_searches(here, capsys):
    space = ["--trials", "1", "--tuner", "random", "--json"]
    learns = [*LEARNS, *QUICK[2:]]
    searching = [*COMPARE, *learns, "--search", "--searches", "found", *space]
    content = json.loads(answer(capsys, *searching))
    mas, *_, finetune = content["runs"]
    # It is the search that `keras-mas search` makes with the first seed, and continues.
    there = ["--directory", "found"]
    found = json.loads(answer(capsys, "search", "insects.toml", *learns, *space, *there))
    assert found["trained_now"] == 0
    assert mas["strength"] == found["recommended"]["strength"]
    assert finetune["strength"] is None
    assert "--search" in content["command"] and "--trials 1" in content["command"]
    assert json.loads(answer(capsys, *searching))["runs"] == content["runs"]


def test_the_command_of_each_run_of_a_comparison_has_the_options_of_its_method(here, capsys):
    options = ["--strength", "2", "--penalty", "decoupled", "--max-examples", "5"]
    content = json.loads(answer(capsys, *COMPARE, *options, "--seeds", "0", "--json"))
    mas, finetune = (read_result(Path(run["folder"])) for run in content["runs"])
    assert "--strength 2.0 --penalty decoupled" in command_of(mas)
    assert "--max-examples 5" in command_of(mas)
    assert not {"--strength", "--penalty", "--max-examples"} & {*command_of(finetune).split()}
    # Earlier versions recorded λ of a method that has none.
    old = finetune | {"arguments": finetune["arguments"] | {"strength": 1.0}}
    assert command_of(old) == command_of(finetune)


def test_a_callback_is_checked_although_all_runs_are_finished(here, capsys):
    comparing = [*COMPARE, "--methods", "finetune", "--seeds", "0", "--epochs", "1"]
    answer(capsys, *comparing)
    sentence = refusal(capsys, 2, *comparing, "--callback", "keras:no_such_function")
    assert "Received: a module without 'no_such_function'" in sentence


def test_a_run_that_is_followed(here, capsys):
    options = ["--log", "tensorboard,csv", "--evaluate-every", "5", "--output", "run"]
    result = json.loads(answer(capsys, "train", "insects.toml", *QUICK, *options, "--json"))
    assert {each["step"] for each in result["evaluations"]} == {5, 10}
    assert (here / "run/training.csv").exists()
    assert list((here / "run/tensorboard").glob("events*"))


@pytest.mark.slow
def test_the_same_train_again_repeats_and_loses_nothing(here, capsys):
    command = ["train", "insects.toml", *QUICK, "--export", "models/insects"]
    first = answer(capsys, *command)
    files = {path: path.stat().st_mtime_ns for path in (here / "models").rglob("*")}
    assert answer(capsys, *command) == first
    assert {path: path.stat().st_mtime_ns for path in (here / "models").rglob("*")} == files


@pytest.mark.slow
def test_a_version_of_another_run_is_not_overwritten(here, capsys):
    answer(capsys, "train", "insects.toml", *QUICK, "--export", "models/insects")
    files = {path: path.stat().st_mtime_ns for path in (here / "models").rglob("*")}
    other = ["train", "insects.toml", *QUICK, "--seed", 1, "--export", "models/insects"]
    assert "'models/insects/1' exists already: version 1" in refusal(capsys, 2, *other)
    seed1 = MAS.replace("seed0", "seed1")
    assert not (here / seed1).exists()
    # The same, when the run is there already and only the export is new.
    answer(capsys, *other[:-2])
    assert "never overwritten" in refusal(capsys, 2, *other)
    export = ["export", seed1, "--to", "models/insects"]
    assert "as `keras-mas export RUN --as next` does" in refusal(capsys, 2, *export)
    assert {path: path.stat().st_mtime_ns for path in (here / "models").rglob("*")} == files
    # Which publishes the last model, and --version N that after N tasks.
    export += ["--max-forgetting", 1]
    assert "exported models/insects/4: compared with" in answer(capsys, *export, "--as", "next")
    export += ["--version", 1, "--force", "it has fewer tasks"]
    for said in ("exported models/insects/9", "models/insects/9 was published already"):
        assert said in answer(capsys, *export, "--as", 9)
    learned = {n: read_manifest(here / f"models/insects/{n}")["run"]["tasks"] for n in (4, 9)}
    assert learned == {4: ["ants", "bees", "cats"], 9: ["ants"]}


@pytest.mark.slow
def test_a_version_that_forgot_is_refused_and_others_come_and_go(here, capsys):
    answer(capsys, "train", "insects.toml", *QUICK, "--epochs", 6, "--learning-rate", 0.02)
    [run] = (here / "runs").iterdir()
    network = keras.models.load_model(run / "3/model.keras")
    for weight in network.weights:
        weight.assign(-weight)
    replace_model(run / "3", network)

    models = here / "models/insects"
    export = ["export", run, "--max-forgetting", 0.3]
    sentence = refusal(capsys, 1, *export, "--min-accuracy", 0.999, "--version", 1)
    assert "the new task 'ants' has an accuracy of " in sentence
    assert json.loads((models / "blessing.json").read_text())["min_accuracy"] == 0.999
    for version in (1, 2):
        assert f"exported models/insects/{version}" in answer(capsys, *export, "--version", version)
    sentence = refusal(capsys, 1, *export, "--version", 3)
    assert "Version 3 of 'insects' was not published: task 'ants' lost 0." in sentence
    assert "'models/insects/blessing.json'" in sentence and "--force REASON" in sentence
    assert list(list_versions(models)) == [1, 2]
    forced = answer(capsys, *export, "--version", 3, "--force", "a test")
    assert "; --force overrode the gate, which refused it: task 'ants' lost 0." in forced
    assert read_manifest(models / "3")["blessing"] == {"blessed": False, "forced": "a test"}
    again = answer(capsys, "export", run, "--version", 3, "--min-accuracy", 1, "--force", "another")
    assert again.startswith("models/insects/3 was published already; it was not judged again, and")
    assert "exported" not in again
    for folder in ("models/insects/1", "models/insects/.."):
        sentence = refusal(capsys, 2, *export, "--to", folder)
        assert "the folder of a model, whose" in sentence and f"Received: '{folder}'" in sentence
    for command in (export, ["status", "insects"]):
        sentence = refusal(capsys, 2, *command, "--config", "gone.config")
        assert "configuration in 'gone.config', which has the labels. Received: no s" in sentence

    labels = "insects: stable is version 1"
    assert labels in answer(capsys, "promote", "insects", 1, "--offline")
    answer(capsys, "promote", "insects", 2, "--label", "canary", "--offline")
    with StandIn({"insects": models}, grpc_port=0, rest_port=0) as server:
        address = ["--server", f"127.0.0.1:{server.rest_port}"]
        states = answer(capsys, "status", "models/insects", *address).splitlines()
        rows = json.loads(answer(capsys, "status", "insects", *address, "--json"))
    assert states[0] == "insects version 1  AVAILABLE  (stable)"
    assert [row["labels"] for row in rows] == [["stable"], ["canary"], []]
    # Without a server there is still what is on the disk.
    assert main(["status", "insects", "--server", "127.0.0.1:1"]) == 1
    out, err = capsys.readouterr()
    assert "insects version 2  UNKNOWN  (canary)" in out
    said, failure = err.splitlines()
    assert said.startswith("the server at 127.0.0.1:1 said nothing of this model: what follows is")
    assert "127.0.0.1:1. Received: UNAVAILABLE" in failure

    moved = json.loads(answer(capsys, "promote", "insects", "--offline", "--json"))
    assert moved == {"stable": 2, "previous": 1}
    assert main(["promote", "models/insects", "2", "--offline"]) == 0
    assert "stable is version 2 already; no label was moved. The la" in capsys.readouterr().err
    assert main(["promote", "models/insects", "2", "--label", "canary", "--offline"]) == 0
    assert "version 2 is stable, and so no canary" in capsys.readouterr().err
    moved = json.loads(answer(capsys, "rollback", "insects", "--offline", "--json"))
    assert moved == {"stable": 1}
    answer(capsys, "promote", "insects", 1, "--offline", "--keep", 1)
    assert list(list_versions(models)) == [1, 3]

    assert "out of 1, 3" in refusal(capsys, 2, "promote", "insects", 2, "--offline")
    assert "no such folder" in refusal(capsys, 2, "promote", "wasps", "--offline").lower()
    sentence = refusal(capsys, 1, "promote", "insects", "--server", "127.0.0.1:1")
    assert "answer at 127.0.0.1:1, its gRPC port. Received: no connection (Conn" in sentence
    assert "correct --server, give --tls if it speaks TLS, or, if none is to r" in sentence
    assert "--offline. No label was moved" in sentence and "ipv4" not in sentence
    (models / "3/saved_model.pb").rename(here / "saved_model.pb")
    (models / "3/saved_model.pb").write_bytes(b"damaged")
    sentence = refusal(capsys, 1, "promote", "insects", 3, "--offline")
    assert "Expected a complete SavedModel in" in sentence
    (here / "saved_model.pb").replace(models / "3/saved_model.pb")
    answer(capsys, "promote", "insects", 3, "--label", "canary", "--offline")
    shutil.rmtree(models / "3")
    with StandIn({"insects": models}, grpc_port=0, rest_port=0) as server:
        assert main(["status", "insects", "--server", f"127.0.0.1:{server.rest_port}"]) == 1
    out, err = capsys.readouterr()
    assert "insects version 3  NOT LOADED  (canary)" in out
    assert "Received: canary → version 3, which is not there" in err
    (here / "models/models.config").write_text("models { }")
    assert "models.config'. Received: 1:1" in refusal(capsys, 1, "promote", "insects", "--offline")
    np.savez(here / "ants.npz", **dict(np.load("ants.npz")) | {"y_test": np.zeros(40, int)})
    assert "Received: other examples" in refusal(capsys, 2, "export", run, "--to", "models/again")


def test_a_promotion_says_what_the_gate_said_and_the_labels_before_it_prunes(
    here, capsys, monkeypatch
):
    said = {1: (True, None), 2: (None, None), 3: (False, "a test")}
    for version, (blessed, forced) in said.items():
        (here / f"models/insects/{version}").mkdir(parents=True)
        content = {"blessing": {"blessed": blessed, "forced": forced}}
        write_manifest(here / f"models/insects/{version}", content)
    monkeypatch.setattr(promote, "_check", lambda folder, debug: None)
    expected = {
        1: "",
        2: "warning: the gate has not judged version 2, which is stable now\n",
        3: "warning: the gate refused version 3, which is stable now; it was forced: a test\n",
    }
    for version, warning in expected.items():
        assert main(["promote", "insects", str(version), "--offline"]) == 0
        assert capsys.readouterr().err == warning
    assert main(["promote", "insects", "3", "--label", "canary", "--offline"]) == 0
    assert "the gate" not in capsys.readouterr().err

    def full(*_):
        raise OSError(errno.EACCES, "Permission denied", "models/insects/1")

    monkeypatch.setattr(rollout, "remove_versions", full)
    assert main(["promote", "insects", "2", "--offline", "--keep", "1"]) != 0
    out, err = capsys.readouterr()
    assert "stable is version 2" in out and "models/insects/1" in err


@pytest.mark.parametrize(("scenario", "head"), [("class", "all"), ("domain", "shared")])
def test_a_stream_of_another_scenario_than_the_models_is_refused_with_its_name(scenario, head):
    assert predict._advice(["ants", "bees"], [head]).startswith(
        f"It has learned its tasks as --scenario {scenario}: give that with --examples-of"
    )


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

        # As `stable` may lag behind.
        assert main([*map(str, ask), "--server", rest, "--version", "2", "--json"]) == 0
        out, err = capsys.readouterr()
        assert [row["task"] for row in json.loads(out)] == ["ants"] * 3 + ["bees"] * 3
        assert err.endswith("'insects' has no head for cats, which it has not learned: skipped.\n")
        sentence = refusal(capsys, 2, *ask, "--server", rest, "--version", 2, "--task", "cats")
        assert "answers for 'cats'. Received: one with the heads 'ants', 'bees'. Ask " in sentence
        sentence = refusal(capsys, 2, *ask, "--server", rest, "--scenario", "class")
        assert "It has learned its tasks as --scenario task: give that" in sentence

        np.save(here / "x.npy", np.load("bees.npz")["x_test"][:4])
        from_file = ["predict", "insects", "--input", "x.npy", "--server", rest]
        assert len(json.loads(answer(capsys, *from_file, "--task", "bees", "--json"))) == 4
        assert "ants, bees, cats. Received: no --task" in refusal(capsys, 2, *from_file)
        assert "ants, bees, cats. Received: 'dogs'" in refusal(capsys, 2, *ask, "--task", "dogs")
        sentence = refusal(capsys, 2, *from_file, "--task", "dogs")
        assert "a head of 'insects': ants, bees, cats. Received: --task dogs" in sentence

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


@pytest.mark.slow
def test_search_twice(here, capsys):
    command = ["search", "insects.toml", *LEARNS, *QUICK[2:]]
    command += ["--trials", 1, "--tuner", "random", "--json"]
    first, again = (json.loads(answer(capsys, *command)) for _ in range(2))
    assert (first.pop("trained_now"), first.pop("tasks_learned_now")) == (2, 5)
    assert (again.pop("trained_now"), again.pop("tasks_learned_now")) == (0, 0)
    written = json.loads((here / first["folder"] / "search.json").read_text())
    assert first == again
    assert first.items() <= written.items()
    started_anew = json.loads(answer(capsys, *command, "--overwrite"))
    assert started_anew.pop("trained_now") == 2
    assert first.items() < started_anew.items()
    assert sorted(trial["values"]["strength"] for trial in first["trials"]) == [0.0, 0.1]
    assert first["recommended"] in [trial["values"] for trial in first["trials"]]
    assert (here / first["folder"] / "search.png").stat().st_size > 1000

    words = first["command"].split()
    assert words[:3] == ["keras-mas", "train", "insects.toml"]
    assert answer(capsys, *words[1:]).startswith("mas λ=")
    table = answer(capsys, *command[:-1])
    assert first["command"] in table
    assert "0 trained now, 2 read from search/insects-mas-" in table


@pytest.mark.slow
@pytest.mark.parametrize("command", [["train"], ["search", "--trials", "1"]])
def test_methods_that_fail_where_classes_add_up_are_warned_of_once(capsys, here, command):
    name, *options = command
    argv = [name, "insects.toml", *options, *LEARNS, *QUICK[2:], "--scenario"]
    assert main([*argv, "class"]) == 0
    err = capsys.readouterr().err
    assert err.count("keras-mas: warning: 'insects' is class-incremental") == 1
    assert "`--method joint`" in err
    assert main([*argv, "domain"]) == 0
    assert "warning" not in capsys.readouterr().err


def test_learning_all_tasks_together_is_not_warned_of(capsys, here):
    argv = ["train", "insects.toml", *QUICK, "--scenario", "class", "--method", "joint"]
    assert main(argv) == 0
    assert "class-incremental" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["train", "split-digit"], "'split-digits', 'permuted-digits', "),
        (["train", "split-digit"], "Received: 'split-digit'. Did you mean 'split-digits'?"),
        (["train", "none.toml"], "none.toml"),
        (
            ["train", "insects.toml", "--method", "masss"],
            "received 'masss'. Did you mean 'mas'? See",
        ),
        (["train", "insects.toml", "--method", "evil:"], "joint, or MODULE:CLASS for a method of"),
        (["train", "insects.toml", "--seed", "4294967296"], "whole number from 0 to 4294967295"),
        (["train", "insects.toml", "--backbone", "vgg"], "Received: 'vgg'"),
        (["train", "insects.toml", "--backbone", "cnn-4"], "Expected images"),
        (["train", "insects.toml", "--freeze", "some"], "layers ≥ 0, all or none, received 'some'"),
        (["train", "insects.toml", "--freeze", "9"], "Received: 9. Correct `--freeze`"),
        (
            ["train", "insects.toml", "--backbone", "mlp-8", "--weights", "none.h5"],
            "none.h5', which",
        ),
        (
            ["train", "insects.toml", "--batch-norm", "own"],
            "one of frozen, per-task, shared, received",
        ),
        (
            ["train", "insects.toml", "--strength", "-1"],
            "≥ 0, auto or decay, received '-1'",
        ),
        (["train", "insects.toml", "--strength", "1e39"], "float32 can hold. Received: 1e+39"),
        (["compare", "insects.toml", "--strength", "mas=1e39"], "can hold. Received: 1e+39"),
        (
            ["train", "insects.toml", "--method", "finetune", "--strength", "5"],
            "no --strength for 'finetune', which has no λ. Received: --strength 5.0. Leave",
        ),
        (
            ["train", "insects.toml", "--method", "lwf", "--penalty", "decoupled"],
            "no --penalty for 'lwf', which has no penalty on weights. Received: --penalty dec",
        ),
        (
            ["train", "insects.toml", "--method", "joint", "--max-examples", "3"],
            "no --max-examples for 'joint', which has no importance to measure on examples.",
        ),
        (
            ["search", "insects.toml", "--method", "lwf", "--penalty", "decoupled"],
            "no --penalty for 'lwf'",
        ),
        (
            ["search", "insects.toml", "--method", "si", "--vary", "max-examples=5,9"],
            "importance to measure on examples. Received: --max-examples in --vary. Leave it",
        ),
        (
            ["compare", "insects.toml", "--methods", "lwf,joint", "--penalty", "decoupled"],
            "no --penalty for 'lwf', 'joint', which have no penalty on weights",
        ),
        (
            ["compare", "insects.toml", "--methods", "finetune,joint", "--search"],
            "no --search for 'finetune', 'joint', which have no λ. Received: --search. Leave",
        ),
        (["train", "insects.toml", "--strength", "auto:x"], "auto:KAPPA with a number > 0"),
        (
            ["train", "insects.toml", "--strength", "auto", "--method", "lwf"],
            "number as strength of the method 'lwf'. Received: 'auto'",
        ),
        (["train", "insects.toml", "--strength", "nan"], "received 'nan'"),
        (["train", "insects.toml", "--epochs", "2.5"], "expected a whole number ≥ 1"),
        (["train", "insects.toml", "--strenght", "1"], "unrecognized arguments: --strenght"),
        (["compare", "insects.toml", "--seeds", "x"], "Expected --seeds to be whole numbers"),
        (["compare", "insects.toml", "--methods", "mas,masss"], "Received: 'masss'"),
        (["compare", "insects.toml", "--output", "ants.npz"], "'ants.npz' is a file"),
        (["train", "insects.toml", "--log", "wandb"], "names out of csv,tensorboard"),
        (
            ["train", "insects.toml", "--callback", "nowhere"],
            "Expected the callback as MODULE:NAME",
        ),
        (["report", "runs/none", "--importance"], "Expected --html FILE.html with --importance"),
        (["train"], "Expected TASKS, or `--continue RUN --add TASKS`"),
        (["trane", "insects.toml"], "invalid choice: 'trane'"),
        (["search", "insects.toml", "--strength-min", "9", "--strength-max", "2"], "9 and 2"),
        (["search", "insects.toml", "--strength-min", "0"], "expected a number from 1.2e-38"),
        (["search", "insects.toml", "--tuner", "hyperband"], "whose budget is a number of epochs"),
        (["search", "insects.toml", "--tuner", "grid", "--trials", "3"], "Take `--trials 13`"),
        (["search", "insects.toml", "--vary", "epoch=1,2"], "Did you mean 'epochs'?"),
        (["search", "insects.toml", "--vary", "backbone=mlp-8,mlp-0"], "In --vary: Expected"),
        (["search", "insects.toml", "--vary", "weights=nope.npz"], "In --vary: Expected a file of"),
        (["search", "insects.toml", "--trials", "0"], "expected a whole number ≥ 1"),
        (["search", "insects.toml", "--vary", ""], "--vary: expected a text that is not empty"),
        (["train", "insects.toml", "--weights", " "], "a text that is not empty, received ' '"),
        (["promote", "m", "--tls-key", "k"], "a client's certificate and its key"),
        (["export", "runs/none", "--force", ""], "--force: expected a text that is not empty"),
        (["search", "insects.toml", "--strength", "1"], "--strength-min and --strength-max, since"),
        (
            ["search", "insects.toml", "--directory", ""],
            "expected the name of a file or folder",
        ),
        (["compare", "insects.toml", "--runs", " "], "a file or folder, received ' '"),
        (["compare", "insects.toml", "--methods", ","], "names of methods in `--methods`"),
        (["compare", "insects.toml", "--methods", "mas,"], "Received: 'mas,'"),
        (
            ["compare", "insects.toml", "--trials", "20", "--complete-trials"],
            "Expected --search with --trials, --complete-trials. Received: none",
        ),
        (
            ["compare", "insects.toml", "--max-forgetting", "0"],
            "Expected --search with --max-forgetting. Received: none",
        ),
        (["train", "insects.toml", "--output", ""], "expected the name of a file or folder"),
        (["predict", "m", "--images", "x.png", "--run", "r"], "Expected --examples-of with --run"),
        (
            ["report", "runs/none"],
            "'runs/none' is not the folder of a finished run: it has no result",
        ),
        (["export", "runs/none"], "'runs/none' is not the folder of a finished run"),
        (["search", "insects.toml", "--method", "finetune"], "there is no λ to search for"),
        (["train", "insects.toml", "--output", "ants.npz"], "'ants.npz' is a file"),
        (["train", "insects.toml", "--output", "ants.npz/run"], "ants.npz' is a file"),
        (["train", "insects.toml", "--output", "."], "'.' holds something else"),
        (["train", "insects.toml", "--output", ".", "--overwrite"], "'.' is not overwritten"),
        (["train", "insects.toml", "--export", "ants.npz"], "ants.npz"),
        (["completion", "tcsh"], "invalid choice: 'tcsh'"),
        (["serve", "models/none"], "models/none"),
        (["serve", "models/none", "--port", "70000"], "expected a whole number from 0 to 65535"),
        (["predict", "insects", "--input", "none.npy", "--task", "ants"], "none.npy"),
        (
            ["predict", "insects"],
            "Expected one of --images, --input and --examples-of. Received: none",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_sentence(here, capsys, argv, sentence):
    assert sentence in refusal(capsys, 2, *argv)
    assert not (here / "runs").exists()


@pytest.mark.slow
def test_a_run_is_not_a_served_model(here, capsys):
    answer(capsys, "train", "insects.toml", *QUICK, "--output", "run")
    serve = ["serve", "run", "--with", "standin", "--port", "0", "--rest-port", "0"]
    assert "version of 'run' that can be served. Received: 1 that" in refusal(capsys, 1, *serve)


def test_a_damaged_result_is_named(here, capsys):
    (here / "run").mkdir()
    (here / "run/result.json").write_text('{"tasks": ')
    assert "'run/result.json' is damaged" in refusal(capsys, 1, "report", "run")
    (here / "run/result.json").write_text("{}")
    assert "'run/result.json' is damaged: it has no 'stream'. Remove" in refusal(
        capsys, 1, "report", "run"
    )


def test_a_strength_that_will_blow_up_is_announced_in_one_line(here, capsys):
    options = ["--optimizer", "sgd", "--learning-rate", "0.01", "--strength", "1000", "--penalty"]
    main(["train", "insects.toml", *QUICK, *options, "in_loss"])
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert warned[0].startswith("keras-mas: warning: ")
    assert all("--strength" in line for line in warned if "MASModel" not in line)
    answer(capsys, "train", "insects.toml", *QUICK, *options, "decoupled")


def test_names_in_brackets_are_printed_as_they_are(here, capsys):
    out = answer(capsys, "train", "insects.toml", *QUICK, "--output", "my [/b] run")
    assert "written to my [/b] run/" in out


@pytest.mark.slow
def test_a_reader_that_has_seen_enough(here):
    words = (
        f"{sys.executable} -m keras_mas.training.cli train insects.toml {' '.join(QUICK)} --json"
    )
    done = subprocess.run(
        f"{words} | head -1", shell=True, capture_output=True, text=True, executable="/bin/bash"
    )
    assert done.stdout == "{\n"
    assert "rror" not in done.stderr and "pipe" not in done.stderr


@pytest.mark.parametrize(
    "closed",
    slow_but("<&- >&- 2>&-", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"]),
)
def test_closed_streams_do_not_keep_a_run_from_finishing(here, closed):
    words = f"{sys.executable} -m keras_mas.training.cli train insects.toml {' '.join(QUICK)}"
    done = subprocess.run(
        f"{words} --verbose 2 {closed}",
        shell=True,
        capture_output=True,
        text=True,
        executable="/bin/bash",
    )
    assert (done.returncode, "rror" in done.stderr) == (0, False), done.stderr
    assert (here / MAS / "result.json").exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("option", ["--version", "--help"])
def test_help_to_a_full_standard_output(monkeypatch, option, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    words = f"{sys.executable} -m keras_mas.training.cli {option} > /dev/full"
    done = subprocess.run(words, shell=True, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("keras-mas: Cannot write to standard output: No space left")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("form", slow_but("--json", ["", "--json", "--csv"]))
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_standard_output_is_named(here, capsys, monkeypatch, form, unbuffered):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    answer(capsys, "train", "insects.toml", *QUICK)
    words = f"{sys.executable} -m keras_mas.training.cli report {MAS} {form} > /dev/full"
    done = subprocess.run(words, shell=True, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        "keras-mas: Cannot write to standard output: No space left on device. Send it elsewhere, "
        "and run the same command again.\n"
    )


def test_a_training_that_fails_is_one_sentence(here, capsys):
    command = ["train", "insects.toml", *QUICK, "--optimizer", "sgd", "--learning-rate", "1e8"]
    assert "Expected a finite loss" in refusal(capsys, 1, *command)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (KeyError("foo"), "KeyError: 'foo'. See where it comes from with `--debug`."),
        (NotImplementedError(), "NotImplementedError. See where it comes from with `--debug`."),
        (TypeError("No."), "TypeError: No. See where it comes from with `--debug`."),
        (ValueError("Expected one."), "Expected one."),
        (
            OSError(28, "No space left on device"),
            "Cannot write: no space left on the device. Make room, and run the same command again.",
        ),
        (OSError(122, "Disk quota exceeded"), "Cannot write: the quota of the disk is used up."),
        (OSError(28, "No space left on device", "a/b"), "Cannot read or write 'a/b': No space"),
    ],
    ids=repr,
)
def test_an_error_that_nobody_worded_is_named(error, sentence):
    assert _sentence(error).startswith(sentence)


def test_a_package_that_is_not_installed_is_named(here, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    sentence = refusal(capsys, 1, "completion", "bash")
    assert "needs the package 'shtab'" in sentence
    assert "Install it with: pip install 'keras-mas[training]'" in sentence


def test_a_traceback_only_on_request(here):
    with pytest.raises(ValueError, match="Received: 'nope'"):
        main(["train", "nope", "--debug"])


def test_a_search_in_which_all_trials_fail(here, capsys):
    command = ["search", "insects.toml", *QUICK, "--trials", "2"]
    failing = [*command, "--optimizer", "sgd", "--learning-rate", "1e8"]
    assert main(failing) == 1
    shown = capsys.readouterr().err.splitlines()
    assert "No trial was completed: 3 of 3 failed. The last one: Expected a finite" in shown[-1]
    # A line for each trial as it ends, and not once more in a table without a number in it.
    assert [sum(f"{k}/3  λ=" in line for line in shown) for k in (1, 2, 3)] == [1, 1, 1]
    assert sum("λ=" in line for line in shown[:-1]) == 3
    assert shown[-2].startswith("3 trained now, 0 read from") and shown[-2].endswith("3 failed")


@pytest.fixture
def one_epoch(here):
    """Arguments that train `insects.toml` in a moment."""
    return ["train", "insects.toml", "--epochs", "1", "--backbone", "mlp-4"]


def test_other_settings_have_a_folder_of_their_own(here, capsys, one_epoch):
    answer(capsys, *one_epoch, "--method", "finetune")
    answer(capsys, *one_epoch, "--method", "finetune", "--first-epochs", "2")
    assert sorted(path.name for path in (here / "runs").iterdir()) == [
        "insects-finetune-mlp-4-epochs1-first-epochs2-seed0",
        "insects-finetune-mlp-4-epochs1-seed0",
    ]


def test_a_folder_with_another_run_is_replaced_on_request_only(here, capsys, one_epoch):
    command = [*one_epoch, "--method", "finetune", "--output", "run"]
    answer(capsys, *command)
    with filelock.FileLock(here / "run/.lock"):
        sentence = refusal(capsys, 1, *command)
        assert sentence.startswith("keras-mas: 'run' is in use by another process. Wait until")
    other = [*command, "--seed", "1"]
    sentence = refusal(capsys, 2, *other)
    assert sentence.startswith("keras-mas: 'run' holds another run: --seed 0 instead of 1")
    assert "`--overwrite`" in sentence
    answer(capsys, *other, "--overwrite")
    assert json.loads((here / "run/result.json").read_text())["seed"] == 1


def test_what_cannot_be_exported_is_refused_before_training(here, capsys, one_epoch):
    text = (here / "insects.toml").read_text().replace('"bees"', '"serving_default"')
    (here / "reserved.toml").write_text(text)
    sentence = refusal(capsys, 2, "train", "reserved.toml", "--export", "models/insects")
    assert "serving_default" in sentence
    (here / "file").write_text("mine")
    for path in ("file", "file/models"):
        assert "file" in refusal(capsys, 2, *one_epoch, "--export", path)
    assert not (here / "runs").exists()
    assert not (here / "models").exists()


@pytest.mark.slow
@pytest.mark.parametrize("scenario", ["class", "domain"])
def test_answers_are_right_as_often_as_the_accuracy_says(here, capsys, one_epoch, scenario):
    # The classes are named 0 and 1 in every task.
    text = (here / "insects.toml").read_text()
    (here / "insects.toml").write_text(f'scenario = "{scenario}"\n{text}')
    options = [*one_epoch, "--export", "models/insects", "--json"]
    matrix = json.loads(answer(capsys, *options))["accuracy_matrix"]
    expected = sum(round(40 * accuracy) for accuracy in matrix[-1])
    with StandIn({"insects": here / "models/insects"}, grpc_port=0, rest_port=0) as server:
        for via, port in (("rest", server.rest_port), ("grpc", server.grpc_port)):
            ask = ["predict", "insects", "--via", via, "--server", f"127.0.0.1:{port}"]
            examples = [*ask, "--examples-of", "insects.toml", "--count", 40]
            assert f"\n{expected} of 120 right" in answer(capsys, *examples)
            rows = json.loads(answer(capsys, *examples, "--json"))
            assert sum(row["answer"] == row["truth"] for row in rows) == expected
            assert [row["task"] for row in rows[::40]] == ["ants", "bees", "cats"]
            if scenario == "class":
                assert {row["truth"] for row in rows[:40]} == {"ants/0", "ants/1"}
            # Examples without their truth: the one head answers for any task, named or not.
            np.save(here / "x.npy", np.load("bees.npz")["x_test"][:2])
            for task in ([], ["--task", "bees"]):
                from_file = json.loads(answer(capsys, *ask, "--input", "x.npy", *task, "--json"))
                assert len(from_file) == 2


class UnstablePenaltyWarning(UserWarning):
    __module__ = "keras_mas.penalty"
    strength, limit = 1000.0, 2.5


@pytest.mark.parametrize(
    ("warning", "words"),
    [
        (UnstablePenaltyWarning("λ"), "λ = 1000 is above 2.5, .*Lower `--strength` or"),
        (UserWarning("of scikit-learn"), ""),
    ],
)
def test_warnings_are_ours_and_name_our_options(capsys, warning, words):
    _show_ours(warning, type(warning), "/somewhere/sklearn/gpr.py", 1)
    err = capsys.readouterr().err
    assert re.fullmatch(rf"keras-mas: warning: {words}.*\n" if words else "", err)


def test_a_warning_of_this_package_is_shown(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = _show_ours
        warnings.warn_explicit(
            "labels left out", UserWarning, builtin_names.__code__.co_filename, 1
        )
    assert capsys.readouterr().err == "keras-mas: warning: labels left out\n"


def test_output_of_keras_goes_to_standard_error(here, capsys, one_epoch):
    out = answer(capsys, *one_epoch, "--method", "finetune", "--verbose", "2", "--json")
    assert json.loads(out)["method"] == "finetune"
    assert "\x1b" not in out


def test_a_json_output_is_valid_in_ascii(monkeypatch):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", file)
    print_json({"task": "Käfer"})
    assert json.loads(file.buffer.getvalue()) == {"task": "Käfer"}


@pytest.fixture
def photos(here):
    """`photos.toml`: two tasks of 8x8 images in two colours, 12 to train and 4 to test on each."""
    text = 'name = "photos"\nimage_size = 8\n'
    for number, name in enumerate(("first", "second")):
        for part, count in (("train", 6), ("test", 2)):
            for shade, kind in ((50, "dark"), (200, "light")):
                folder = here / name / part / kind
                folder.mkdir(parents=True)
                for i in range(count):
                    colour = (shade + i, shade * number, 0)
                    Image.new("RGB", (8, 8), colour).save(folder / f"{i}.png")
        text += f'[[task]]\nname = "{name}"\nfolder = "{name}"\n'
    (here / "photos.toml").write_text(text)
    return ["train", "photos.toml", "--epochs", "2", "--backbone", "cnn-4", "--cache-dir", "cache"]


@pytest.mark.slow
def test_images_on_disk_are_learned_measured_exported_and_asked_about(photos, here, capsys):
    options = ["--cache-memory", "1kB", "--batch-size", "4", "--export", "models", "--json"]
    result = json.loads(answer(capsys, *photos, *options))
    assert np.shape(result["accuracy_matrix"]) == (2, 2)
    assert list(list_versions(here / "models")) == [1, 2]
    written = {path: path.stat().st_mtime_ns for path in (here / "cache").rglob("*.npy")}
    # Where the images are kept makes no difference to what the run is, and nothing is written anew.
    again = json.loads(answer(capsys, *photos, "--batch-size", "4", "--json"))
    assert again["accuracy_matrix"] == result["accuracy_matrix"]
    assert {path: path.stat().st_mtime_ns for path in (here / "cache").rglob("*.npy")} == written
    version = LoadedVersion(here / "models/2")
    for name, kind in (("first", "dark"), ("second", "light")):
        file = (here / name / "test" / kind / "0.png").read_bytes()
        pixels = np.array(Image.open(io.BytesIO(file)), np.float32)[None]
        from_file = version.run("encoded", {"image_bytes": np.array([file], object)})
        from_pixels = version.run(name, {"inputs": pixels})["probabilities"]
        np.testing.assert_allclose(from_file[f"{name}/probabilities"], from_pixels, rtol=1e-5)
    [run] = (here / "runs").iterdir()
    answer(capsys, "export", run, "--to", "again", "--version", 1)
    assert read_manifest(here / "again/1")["resize"] == "crop"
    answer(capsys, "export", run, "--to", "other", "--version", 1, "--resize", "stretch")
    assert read_manifest(here / "other/1")["resize"] == "stretch"
    with StandIn({"photos": here / "models"}, grpc_port=0, rest_port=0) as server:
        ask = ["predict", "photos", "--server", f"127.0.0.1:{server.rest_port}", "--cache-memory"]
        rows = answer(capsys, *ask, "1kB", "--cache-dir", "cache", "--examples-of", "photos.toml")
    assert " of 4 right" in rows
    measure = ["importance", run, "--from-data", "first/test/dark", "--output", "m.npz"]
    lines = answer(capsys, *measure, "--cache-dir", "cache")  # resized as in training
    assert "inputs: 2 read from 2 files" in lines and "left out" not in lines
    write_json(
        run / "result.json", read_json(run / "result.json") | {"resize": None}
    )  # as of an earlier version
    sentence = refusal(capsys, 1, *measure, "--overwrite")
    assert "2 files of images, which `--resize` would give the size of inputs" in sentence


@pytest.mark.parametrize(("given", "batch"), [([], 64), (["--batch-size", "6"], 6)])
def test_memory_for_one_batch_is_asked_for_before_images_are_decoded(
    photos, here, capsys, given, batch
):
    sentence = refusal(capsys, 2, *photos, *given, "--cache-memory", "1kB")
    assert f"memory for one batch of {batch} inputs" in sentence
    assert not (here / "cache").exists() and not (here / "runs").exists()


def test_broken_files_end_a_run_or_are_left_out(photos, here, capsys):
    (here / "second/train/dark/3.png").write_bytes(b"no image")
    sentence = refusal(capsys, 1, *photos)
    assert "second/train/dark/3.png" in sentence and "`--skip-broken`" in sentence
    assert main([*photos, "--skip-broken", "--output", "run"]) == 0
    err = capsys.readouterr().err
    assert "warning: left out: 'second/" in err
    assert "warning: 1 files that cannot be decoded were left out of 'photos'" in err
    result = json.loads((here / "run/result.json").read_text())
    assert result["files_left_out"] == 1
    assert (
        sum(result["examples"]["second"].values()) == sum(result["examples"]["first"].values()) - 1
    )


def test_augmentation_is_part_of_the_run(photos, here, capsys):
    out = answer(capsys, *photos, "--augment", "crop,flip", "--json")
    assert json.loads(out)["recipe"]["augment"] == "flip,crop"
    assert (here / "runs/photos-mas-0.1-cnn-4-epochs2-augmentflip,crop-seed0").is_dir()
    assert "Did you mean 'flip'?" in refusal(capsys, 2, *photos, "--augment", "flop")
    features = ["train", "insects.toml", "--augment", "flip"]
    assert "Expected images [height, width, channels]" in refusal(capsys, 2, *features)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--cache-memory", "lots"], "expected a size such as 500MB, 4GB or 4GiB, received 'lots'"),
        (["--cache-memory", "100B"], "memory for one input of 'first/train', 192 bytes."),
        (["--cache-memory", "500B", "--batch-size", "3"], "one batch of 3 inputs, 576 bytes. Rec"),
        (
            ["--cache-dir", "photos.toml", "--cache-memory", "1kB", "--batch-size", "4"],
            "'photos.toml' cannot be a",
        ),
    ],
)
def test_memory_and_folders_that_do_not_do(photos, capsys, options, sentence):
    assert sentence in refusal(capsys, 2, *photos, *options)


@pytest.mark.slow
def test_a_cache_that_is_damaged_in_use_is_named(photos, here, capsys, monkeypatch):
    from keras_mas.training.tasks.cache import Shard

    original, reads = Shard.read, []

    def read(shard, rows, out):
        reads.append(rows)
        if len(reads) == 9:
            shard.path.unlink()
        original(shard, rows, out)

    monkeypatch.setattr(Shard, "read", read)
    sentence = refusal(capsys, 1, *photos, "--cache-memory", "1kB", "--batch-size", "4")
    assert sentence.startswith("keras-mas: Expected decoded inputs in 'cache/")
    assert "Run the same command again" in sentence
    answer(capsys, *photos, "--cache-memory", "1kB", "--batch-size", "4")


def test_the_best_found_is_printed_with_the_options_of_the_data(photos):
    asked = ["search", *photos[1:], "--skip-broken", "--augment", "flip"]
    words = train_command({**vars(build_parser().parse_args(asked)), "strength": 1.0}).split()
    assert words[:3] == ["keras-mas", "train", "photos.toml"]
    assert "--skip-broken" in words
    assert words[words.index("--cache-dir") + 1] == "cache"
    assert words[words.index("--augment") + 1] == "flip"


class Ends:
    """What a command's `run` is replaced by: it gets a signal, and perhaps a second one later."""

    def __init__(self, number):
        self.number = number
        self.handlers = None

    def __call__(self, args):
        try:
            signal.raise_signal(self.number)
        finally:
            self.handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (["completion", "bash"], ""),
        (["train", "split-digits"], " The same command continues where it stopped."),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_a_signal_unwinds_a_command_and_a_second_one_ends_it(
    monkeypatch, capsys, number, code, word, words, advice
):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(f"keras_mas.training.commands.{words[0]}.run", run := Ends(number))
    assert main(words) == code
    assert capsys.readouterr().err == f"keras-mas: {word}.{advice}\n"
    assert run.handlers == (signal.SIG_DFL, signal.SIG_DFL)  # a second one ends the process
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_while_the_arguments_are_read_is_a_sentence_too(monkeypatch, capsys):
    def parsed(argv):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("keras_mas.training.cli._parsed", parsed)
    assert main(["train", "split-digits"]) == 143
    assert capsys.readouterr().err == "keras-mas: terminated.\n"


class EndsInFinalizer:
    """What gets a signal while it is removed, where Python drops whatever is raised."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_in_a_finalizer_is_not_dropped(monkeypatch, capsys):
    def run(args):
        found = EndsInFinalizer()
        del found
        time.sleep(10)

    monkeypatch.setattr("keras_mas.training.commands.completion.run", run)
    began = time.monotonic()
    assert main(["completion", "bash"]) == 143
    assert time.monotonic() - began < 5
    assert capsys.readouterr().err == "keras-mas: terminated.\n"


def test_what_fails_while_a_command_is_given_up_does_not_hide_the_signal(monkeypatch, capsys):
    def run(args):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            raise RuntimeError("A step that was shared with another host has failed.")

    monkeypatch.setattr("keras_mas.training.commands.completion.run", run)
    assert main(["completion", "bash"]) == 143
    assert capsys.readouterr().err == "keras-mas: terminated.\n"


def test_a_reader_that_goes_while_a_command_is_given_up_does_not_hide_the_signal(
    monkeypatch, capsys
):
    def run(args):
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            sys.stdout.write("the last line")

    monkeypatch.setattr("keras_mas.training.commands.completion.run", run)
    monkeypatch.setattr("keras_mas.training.cli._drop_output", lambda: None)
    with monkeypatch.context() as patched:
        patched.setattr(sys.stdout, "write", closed_pipe)
        assert main(["completion", "bash"]) == 143
    assert capsys.readouterr().err == "keras-mas: terminated.\n"


def test_a_command_that_does_something_ends_without_its_reader(monkeypatch, capsys):
    done = []

    def run(args):
        sys.stdout.write("published version 1\n")
        monkeypatch.setattr(sys.stdout.stream, "write", lambda text: None)  # dropped
        sys.stdout.write("published version 2\n")
        done.append(args.command)

    monkeypatch.setattr("keras_mas.training.commands.export.run", run)
    monkeypatch.setattr("keras_mas.training.cli._drop_output", lambda: None)
    with monkeypatch.context() as patched:
        patched.setattr(sys.stdout, "write", closed_pipe)
        assert main(["export", "run"]) == 0
    assert done == ["export"]
    assert capsys.readouterr().err == ""


def closed_pipe(text):
    raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_broken_pipe_elsewhere_is_a_failure(monkeypatch, capsys):
    monkeypatch.setattr("keras_mas.training.commands.completion.run", lambda _: closed_pipe(""))
    assert main(["completion", "bash"]) == 1
    assert "Broken pipe" in capsys.readouterr().err


def test_an_interruption_that_is_ignored_stays_so(monkeypatch):
    monkeypatch.setattr("keras_mas.training.commands.completion.run", Ends(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as behind `nohup`
    try:
        assert main(["completion", "bash"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["train", "insects.toml", *QUICK],
        ["compare", "insects.toml", *QUICK, "--methods", "mas"],
        ["search", "insects.toml", *LEARNS, *QUICK[2:], "--trials", "1"],
    ],
)
def test_the_default_of_batch_norm_is_told_of_where_it_is_given(words, here, capsys):
    said = "--batch-norm frozen makes no difference: nothing in the backbone 'mlp-8'"
    assert main(words) == 0
    assert said not in capsys.readouterr().err
    assert main([*words, "--batch-norm", "frozen"]) == 0
    assert capsys.readouterr().err.count(said) == 1
