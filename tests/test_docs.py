"""What the documents point to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("benchmarks", "cgm_fast", "csrc", "docs", "examples", "tests", "tools")
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md")),
]
RECORDS = ROOT / "docs" / "cgm" / "results"  # of past runs, which name what there was then


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files(document):
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text)
    assert not [target for target in targets if not (document.parent / target).exists()]


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if RECORDS not in path.parents],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_paths_that_are_named_exist(document):
    """From the root, in code: `tests/cgm/models/test_cgm.py`."""
    text = document.read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]+)`", text)
    assert not [path for path in named if not (ROOT / path).exists()]
