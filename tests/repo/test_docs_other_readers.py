"""The page "What other readers find": each block runs, and prints the lines that the page shows."""

import re
import shutil
from pathlib import Path

import pytest

from tests.repo.test_docs_rerunning import run_page

PAGE = (Path(__file__).parents[2] / "docs" / "other-readers.md").read_text()


@pytest.mark.heavy  # starts Ray and imports the readers of others
def test_every_block_of_the_page_runs_and_prints_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of Energon only where it is installed, as it wants another release of botocore than boto3."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    page = PAGE if shutil.which("energon") else re.sub(r"<!-- energon -->\n```.*?```", "", PAGE, flags=re.DOTALL)
    (tmp_path / "page").mkdir()
    run_page(page, (tmp_path / "page").resolve())
