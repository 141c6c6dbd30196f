"""The files by which a search runs on a cluster: real parsers read them, ours the commands."""

import os
import shlex
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from keras_mas.training.cli import build_parser
from keras_mas.training.options import given_options
from keras_mas.training.search.space import SearchSpace
from keras_mas.training.search.workers import Workers

DOCS = Path(__file__).parents[3] / "docs"


def parsed(words):
    """Return what a command asks for, besides who runs the trials; and that."""
    assert words[0] == "keras-mas"
    args = build_parser().parse_args(words[1:])
    own = {name: vars(args)[name] for name in ("tasks", "directory", "epochs")}
    return own | given_options(SearchSpace, args), Workers(**given_options(Workers, args))


def check_chief_and_worker(chief, worker):
    """Check that both are of one search, and return the ports."""
    (asked, of_chief), (same, of_worker) = parsed(chief), parsed(worker)
    assert asked == same
    assert of_chief.workers == 0 and of_worker.join
    return [address.rpartition(":")[2] for address in (of_chief.listen, of_worker.join)]


def test_kubernetes():
    text = (DOCS / "search" / "kubernetes.yaml").read_text()
    documents = list(yaml.safe_load_all(text))
    for document in documents:
        kubernetes_validate.validate(document, "1.31", strict=True)
    by_name = {(each["kind"], each["metadata"]["name"]): each for each in documents}
    chief, workers = by_name["Job", "search-chief"], by_name["Job", "search-workers"]
    service, policy = by_name["Service", "search-chief"], by_name["NetworkPolicy", "search-chief"]
    containers = {}
    for job in (chief, workers):
        pod = job["spec"]["template"]
        [container] = pod["spec"]["containers"]
        containers[pod["metadata"]["labels"]["role"]] = container
        [mount] = container["volumeMounts"]
        assert mount["mountPath"] == "/search"
        assert pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] == "search"
    words = {role: each["command"] + each["args"] for role, each in containers.items()}
    ports = {*check_chief_and_worker(words["chief"], words["worker"])}
    of_service = {str(each["port"]) for each in service["spec"]["ports"]}
    [rule] = policy["spec"]["ingress"]
    assert ports == of_service == {str(each["port"]) for each in rule["ports"]} == {"7007"}
    assert words["worker"][-1] == f"{service['metadata']['name']}:7007"
    labels = chief["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == policy["spec"]["podSelector"]["matchLabels"] == labels
    [who] = rule["from"]
    assert who["podSelector"]["matchLabels"] == workers["spec"]["template"]["metadata"]["labels"]
    claim = by_name["PersistentVolumeClaim", "search"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


@pytest.fixture
def submitted(tmp_path):
    """Run the script of Slurm with commands that note how they were called."""
    for name, code in {
        "keras-mas": 'echo "keras-mas $* | threads $TF_NUM_INTRAOP_THREADS" >> calls\n'
        'case "$*" in *--listen*) exec sleep "$CHIEF";; *) exit "$WORKER";; esac',
        "srun": 'shift; "$@"',
    }.items():
        path = tmp_path / name
        path.write_text(f"#!/bin/bash\n{code}\n")
        path.chmod(0o755)

    def run(chief_seconds, worker_code):
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_JOB_ID": "12345",
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_SUBMIT_DIR": "/shared",
            "CHIEF": str(chief_seconds),
            "WORKER": str(worker_code),
        }
        words = ["bash", DOCS / "search" / "slurm.sh"]
        code = subprocess.run(words, cwd=tmp_path, env=environment, timeout=30).returncode
        return code, sorted((tmp_path / "calls").read_text().splitlines())

    return run


def test_slurm(submitted):
    code, calls = submitted(chief_seconds=0.1, worker_code=0)
    assert code == 0
    commands = [call.partition(" | ")[0] for call in calls]
    worker, chief = sorted(map(shlex.split, commands), key=lambda words: "--listen" in words)
    assert check_chief_and_worker(chief, worker) == ["22345", "22345"]
    assert calls[0].endswith("threads 4")


def test_slurm_does_not_wait_for_a_chief_without_workers(submitted):
    code, _ = submitted(chief_seconds=60, worker_code=1)
    assert code == 128 + 15  # the chief was ended


def test_the_commands_of_the_page():
    blocks = (DOCS / "search.md").read_text().split("```sh\n")[1:]
    lines = [line for block in blocks for line in block.split("```")[0].splitlines()]
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    alone, chief, worker = commands
    assert parsed(alone)[1] == Workers(4)
    assert check_chief_and_worker(chief, worker) == ["7007", "7007"]
