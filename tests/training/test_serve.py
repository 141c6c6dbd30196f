"""`keras-mas serve`: which server it runs, and with which arguments.

The real server and Docker are stood for by scripts on the PATH that write down their arguments.
"""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from keras_mas.serving.client.versions import VersionStatus
from keras_mas.training.cli import build_parser, main
from keras_mas.training.commands import serve

CONFIG = """model_config_list {{
  config {{ name: "flowers" base_path: "{folder}" model_platform: "tensorflow" }}
}}
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with `models/flowers/1/`, whose `bin` is all that is on the PATH."""
    (tmp_path / "models/flowers/1").mkdir(parents=True)
    (tmp_path / "models.config").write_text(CONFIG.format(folder=tmp_path / "models/flowers"))
    (tmp_path / "batching.txt").write_text("max_batch_size { value: 8 }")
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path


def install(here, name, script):
    """Put a script on the PATH that first writes down its arguments in `NAME.arguments`."""
    path = here / "bin" / name
    write = f'printf "%s\\n" "$@" > {here}/{name}.arguments'
    path.write_text(f"#!/bin/sh\n{write}\n{script}\n")
    path.chmod(0o755)


def arguments(here, name):
    return (here / f"{name}.arguments").read_text().splitlines()


def test_the_real_server_is_run_where_it_is_on_the_path(here, capsys):
    install(here, serve.EXECUTABLE, "exit 0")
    install(here, "docker", "exit 0")
    assert main(["serve", "models/flowers", "--port", "85", "--rest-port", "86"]) == 0
    assert arguments(here, serve.EXECUTABLE) == [
        "--port=85",
        "--rest_api_port=86",
        "--model_name=flowers",
        f"--model_base_path={here}/models/flowers",
        "--file_system_poll_wait_seconds=1",
    ]
    greeting = capsys.readouterr().err
    assert "TensorFlow Serving (tensorflow_model_server): model 'flowers'" in greeting


def test_a_configuration_and_batching_are_handed_on(here):
    install(here, serve.EXECUTABLE, "exit 0")
    options = ["--config", "models.config", "--poll", "0.2", "--config-poll", "3"]
    assert main(["serve", *options, "--batching", "batching.txt"]) == 0
    assert arguments(here, serve.EXECUTABLE) == [
        "--port=8500",
        "--rest_api_port=8501",
        f"--model_config_file={here}/models.config",
        "--model_config_file_poll_wait_seconds=3",
        "--allow_version_labels_for_unavailable_models=true",
        "--file_system_poll_wait_seconds=1",  # whole seconds, and 0 would be: never again
        "--enable_batching=true",
        f"--batching_parameters_file={here}/batching.txt",
    ]


def test_a_server_that_fails_is_reported(here, capsys):
    install(here, serve.EXECUTABLE, "exit 3")
    assert main(["serve", "models/flowers"]) == 1
    assert "to serve until it is interrupted. Received: exit code 3" in capsys.readouterr().err


def test_the_image_is_run_where_docker_runs(here, capsys):
    install(here, "docker", "exit 0")
    assert main(["serve", "--config", "models.config", "--image", "tensorflow/serving:2.19.1"]) == 0
    assert arguments(here, "docker") == [
        *["run", "--rm", "--init", "--entrypoint", "tensorflow_model_server"],
        *["--publish", "127.0.0.1:8500:8500", "--publish", "127.0.0.1:8501:8501"],
        *["--mount", f"type=bind,source={here},target={here},readonly"],
        *["--mount", f"type=bind,source={here}/models/flowers,target={here}/models/flowers"
          ",readonly"],
        "tensorflow/serving:2.19.1",
        "--port=8500",
        "--rest_api_port=8501",
        f"--model_config_file={here}/models.config",
        "--model_config_file_poll_wait_seconds=1",
        "--allow_version_labels_for_unavailable_models=true",
        "--file_system_poll_wait_seconds=1",
    ]  # fmt: skip
    assert "the image tensorflow/serving:2.19.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("programs", "wanted", "chosen"),
    [
        ({}, "auto", "standin"),
        ({"docker": "exit 1"}, "auto", "standin"),  # the client, without a daemon
        ({"docker": "exit 0"}, "auto", "docker"),
        ({"docker": "exit 0", serve.EXECUTABLE: ""}, "auto", "server"),
        ({"docker": "exit 0", serve.EXECUTABLE: ""}, "docker", "docker"),
        ({"docker": "exit 0", serve.EXECUTABLE: ""}, "standin", "standin"),
    ],
)
def test_the_first_server_that_there_is_serves(here, programs, wanted, chosen):
    for name, script in programs.items():
        install(here, name, script)
    assert serve.choose_server(wanted) == chosen


def test_docker_that_does_not_answer_does_not_run(here, monkeypatch):
    install(here, "docker", "exec /bin/sleep 30")
    monkeypatch.setattr(serve, "_DOCKER_SECONDS", 0.2)
    assert serve.choose_server("auto") == "standin"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["models/flowers", "--with", "server"], "'tensorflow_model_server' on the PATH for --wi"),
        (["models/flowers", "--with", "docker"], "a running Docker for --with docker"),
        (["models/none"], "folders 'models/none/<integer>/'. Received: no such folder"),
        (["models"], "folder. Name one of the models in it, 'models/flowers', or all of them by"),
        (["--config", "none.config"], "to hold a ModelServerConfig as protobuf text"),
        (["--config", "batching.txt"], "to hold a ModelServerConfig as protobuf text"),
        (["models/flowers", "--config", "models.config"], "not allowed with argument"),
        ([], "one of the arguments FOLDER --config is required"),
        (["models/flowers", "--sampling-rate", "2"], "from 0 to 1"),
        (["models/flowers", "--sampling-rate", "0.5"], "--sampling-rate 0.5 alone. Say where"),
        (["models/flowers", "--log-requests", "none/log"], "to exist and to be writable"),
        (["models/flowers", "--batching", "models.config"], "to hold BatchingParameters"),
    ],
)
def test_wrong_usage_is_one_sentence(here, capsys, argv, sentence):
    ports = ["--port", "0", "--rest-port", "0"]
    try:
        assert main(["serve", *argv, *ports]) == 2
    except SystemExit as error:
        assert error.code == 2
    err = capsys.readouterr().err
    assert sentence in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--log-requests", "log"], "`--with standin` for --log-requests"),
        (["--port", "0"], "ports from 1, since TensorFlow Serving takes 0 for no port"),
    ],
)
def test_what_the_real_server_cannot_do_is_refused(here, capsys, argv, sentence):
    install(here, serve.EXECUTABLE, "exit 0")
    assert main(["serve", "models/flowers", *argv]) == 2
    assert sentence in capsys.readouterr().err
    assert not (here / f"{serve.EXECUTABLE}.arguments").exists()


@pytest.mark.parametrize(
    ("host", "asked"),
    [("0.0.0.0", "127.0.0.1:85"), ("192.0.2.7", "192.0.2.7:85"), ("localhost", "localhost:85")],
)
def test_the_stand_in_is_asked_where_it_listens(monkeypatch, host, asked):
    class Client(contextlib.nullcontext):
        def status(self, name):
            return [VersionStatus(1, "AVAILABLE", "")]

    addresses = []
    monkeypatch.setattr(
        "keras_mas.serving.client.GrpcClient",
        lambda address: addresses.append(address) or Client(Client()),
    )
    serve._check_available("flowers", SimpleNamespace(host=host, grpc_port=85), None)
    assert addresses == [asked]


def test_the_options_of_the_stand_in(here):
    words = ["serve", "models/flowers", "--batching", "batching.txt", "--poll", "0.5"]
    words += ["--log-requests", "log", "--sampling-rate", "0.1", "--max-request", "2"]
    options = serve._options(build_parser().parse_args(words))
    assert options.batching.max_batch_size == 8
    assert (options.request_log.prefix, options.request_log.sampling_rate) == ("log", 0.1)
    assert options.max_request_bytes == 2 * 2**20
    assert options.file_system_poll_wait_seconds == 0.5


@pytest.mark.slow
def test_sigterm_ends_the_server_that_was_started(here):
    install(here, serve.EXECUTABLE, "exec /bin/sleep 60")
    script = Path(sys.executable).with_name("keras-mas")
    command = subprocess.Popen([script, "serve", "models/flowers"], stderr=subprocess.PIPE)
    with command:
        assert b"Ctrl-C stops it" in command.stderr.readline()
        os.kill(command.pid, signal.SIGTERM)
        assert command.wait(20) == 0


def test_the_wait_for_a_server_ends_now_and_then_so_that_signals_are_handled():
    class Process:
        waits = 0

        def wait(self, timeout=None):
            assert timeout is not None  # otherwise a signal that came before it would be lost
            self.waits += 1
            if self.waits < 3:
                raise subprocess.TimeoutExpired("server", timeout)
            return 7

    assert serve._exit_code(Process()) == 7
