"""The page "Which encoding?": each block runs, in order, in one folder, and prints the lines that the page shows."""

from pathlib import Path

from dray.shards.parts import TARGETS
from tests.repo.test_docs_rerunning import run_page

PAGE = (Path(__file__).parents[2] / "docs" / "encodings.md").read_text()


def test_every_block_of_the_page_runs_and_prints_what_is_shown(tmp_path: Path) -> None:
    """From top to bottom."""
    run_page(PAGE, tmp_path.resolve())


def test_the_page_has_a_section_for_every_encoding() -> None:
    """And one for what stays a pickle."""
    for name in (*TARGETS, "pyd"):
        assert f"\n### `.{name}`" in PAGE
