"""The readers of fuzz.py against a few damaged files each; the command takes thousands."""

import contextlib
import dataclasses
import random
from pathlib import Path

import pytest
from cases import slow
from fuzz import Reader, damaged, fuzz, make_readers

NAMES = [
    "memory",
    "memory-values",
    "result",
    "result-values",
    "continued-values",
    "continued-arguments",
    "arguments",
    "progress",
    "progress-values",
    "model",
    "task-memory",
    "task-memory-values",
    "under-way",
    "toml",
    "npz",
    "npz-values",
    "requests",
    "requests-values",
    "rest",
    "grpc",
]


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    with contextlib.ExitStack() as running:
        yield make_readers(tmp_path_factory.mktemp("fuzz"), running)


def test_every_reader_is_tried(readers):
    assert sorted(readers) == sorted(NAMES)


@pytest.mark.parametrize(
    "name", [slow(name) if name.startswith("task-memory") else name for name in NAMES]
)
def test_a_damaged_file_is_refused_in_a_sentence_or_read_as_written(readers, name):
    assert fuzz(readers[name], cases=25, seed=1) == []


def read_carelessly(path: Path):
    return path.read_text()[:20]


def test_a_careless_reader_is_noticed(tmp_path):
    path = tmp_path / "numbers"
    path.write_text("0123456789" * 10)
    failures = fuzz(Reader(path, lambda: read_carelessly(path)), cases=100)
    assert any("read as something else than was written" in failure for failure in failures)
    assert any("UnicodeDecodeError" in failure for failure in failures)
    assert path.read_text() == "0123456789" * 10
    patient = dataclasses.replace(
        Reader(path, lambda: read_carelessly(path)), means_it=True, refuses=(UnicodeDecodeError,)
    )
    assert fuzz(patient, cases=100) == []


def test_a_case_is_the_same_each_time(tmp_path):
    first, again = (damaged(random.Random("0 3"), tmp_path, bytes(range(200))) for _ in range(2))
    assert first == again != bytes(range(200))
