"""The page "Train from the WebDataset that you have": each block runs, and prints the lines that the page shows."""

from pathlib import Path

import pytest

from tests.repo.test_docs_rerunning import run_page

PAGE = (Path(__file__).parents[2] / "docs" / "index-tars.md").read_text()


@pytest.mark.heavy  # two dozen processes; what they show has tests of its own
def test_every_block_of_the_page_runs_and_prints_what_is_shown(tmp_path: Path) -> None:
    """From top to bottom."""
    run_page(PAGE, tmp_path.resolve())
