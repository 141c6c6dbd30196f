"""The demonstration that `make demo` runs: the commands a user would type, one after the other."""

import contextlib
import re
import shlex
import subprocess
import sys

from . import cli

# A head for each task, which is told at test time: one network, ten rotations of the digits.
STREAM = "rotated-digits --scenario task"
MODEL = "models/rotated-digits"
MAS, FINETUNE = "runs/demo-mas", "runs/demo-finetune"


def main() -> int:
    """Train with and without protection, compare, export, serve, and ask the server."""
    _run(f"keras-mas train {STREAM} --method finetune --output {FINETUNE}")
    _run(f"keras-mas train {STREAM} --method mas --strength 1 --output {MAS} --export {MODEL}")
    _run(f"keras-mas report {MAS} {FINETUNE} --output runs/demo.png")
    with _server() as (grpc_port, rest_port):
        _run(f"keras-mas status rotated-digits --server 127.0.0.1:{rest_port}")
        ask = f"keras-mas predict rotated-digits --examples-of {STREAM}"
        _run(f"{ask} --server 127.0.0.1:{rest_port}")
        _run(f"{ask} --via grpc --server 127.0.0.1:{grpc_port}")
    return 0


def _run(command):
    """Print a command and run it in this process, which has imported TensorFlow already."""
    _say(f"$ {command}")
    code = cli.main(shlex.split(command)[1:])
    if code:
        raise SystemExit(code)


@contextlib.contextmanager
def _server():
    """Serve the exported model on two free ports until the end of the block."""
    command = f"keras-mas serve {MODEL} --port 0 --rest-port 0"
    _say(f"$ {command} &")
    words = [sys.executable, "-m", "keras_mas.training.cli", *shlex.split(command)[1:]]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
        try:
            greeting = server.stderr.readline() if server.stderr else ""
            _say(greeting.strip())
            ports = re.findall(r"127\.0\.0\.1:(\d+)", greeting)
            if len(ports) != 2:
                raise SystemExit(1)
            yield ports
        finally:
            server.terminate()
    _say("the server has been stopped")


def _say(line):
    sys.stderr.write(f"\n{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
