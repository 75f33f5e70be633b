"""The page "Write a dataset from anything": each block runs, in order, and prints the lines that the page shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.test_docs_rerunning import run_page

PAGE = (Path(__file__).parents[3] / "docs" / "write-samples.md").read_text()


@pytest.mark.heavy  # a dozen processes; what they show has tests of its own
def test_every_block_of_the_page_runs_and_prints_what_is_shown(tmp_path: Path) -> None:
    """All but those of other programs, which are marked `py`."""
    run_page(re.sub(r"^```py\n.*?^```", "", PAGE, flags=re.DOTALL | re.MULTILINE), tmp_path.resolve())


def test_the_links_at_the_top_name_the_sections() -> None:
    """All of them, in order."""
    sections = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    anchors = [re.sub(r"[^a-z0-9 -]", "", section.lower()).replace(" ", "-") for section in sections]
    assert re.findall(r"^- \[(.+)\]\(#(.+)\)$", PAGE, re.MULTILINE) == list(zip(sections, anchors, strict=True))


@pytest.mark.heavy  # it trains
def test_the_example_makes_only_what_is_new_and_learns(tmp_path: Path) -> None:
    """With worker processes as well."""
    program = Path(__file__).parents[3] / "examples" / "write_samples.py"
    for words, report in (((), "4 packed, 0 reused"), (("--count", "1300", "--workers", "2"), "2 packed, 4 reused")):
        command = [sys.executable, program, "--out", tmp_path / "digits", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        assert report in done.stdout
        assert float(done.stdout.split()[-1]) > 0.9
