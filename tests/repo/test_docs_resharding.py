"""The page "Resharding": each block runs, in order, in one folder, and prints the lines that the page shows."""

from pathlib import Path

import pytest

from tests.repo.test_docs_rerunning import run_page

PAGE = (Path(__file__).parents[2] / "docs" / "resharding.md").read_text()


@pytest.mark.heavy  # many commands, each a process; what they show has tests of its own
def test_every_block_of_the_page_runs_and_prints_what_is_shown(tmp_path: Path) -> None:
    """From top to bottom, with the lines of a text block from the block before it."""
    run_page(PAGE, tmp_path.resolve())
