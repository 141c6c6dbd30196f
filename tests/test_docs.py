"""The pages in docs/: the tests that they name exist, and their links lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
