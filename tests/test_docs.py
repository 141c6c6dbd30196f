"""The pages in docs/: the tests that they name exist, and their links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from keras_mas.training.cli import build_parser

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "SECURITY.md",
    ROOT / "serving" / "deploy" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_every_row_names_a_test_that_is_there():
    page = (ROOT / "docs" / "what-survives-what.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    headers = [line for line in rows if line.endswith("| test |")]
    assert len(headers) == 3
    for row in rows:
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", row)
        assert named or row in headers, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(), (file, test)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def commands(page):
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("keras-mas ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_ones_that_we_understand(page):
    for command in commands(page):
        build_parser().parse_args(command[1:])  # exits if not


def test_some_pages_have_commands():
    assert sum(len(commands(page)) for page in PAGES) > 5
