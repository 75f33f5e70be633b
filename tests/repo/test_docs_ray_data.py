"""The page "Preprocess with Ray Data" and its example: each block runs, and prints the lines that the page shows."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.repo.test_docs_rerunning import run_page

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ray-data.md").read_text()


@pytest.mark.heavy  # starts Ray twice
def test_every_block_of_the_page_runs_and_prints_what_is_shown(tmp_path: Path) -> None:
    """From top to bottom."""
    run_page(PAGE, tmp_path.resolve())


@pytest.mark.heavy
def test_the_example_preprocesses_and_trains(tmp_path: Path) -> None:
    """On the quickstart's digits: it writes both splits, and classifies."""
    subprocess.run([Path(sys.executable).parent / "dray", "quickstart"], cwd=tmp_path, check=True, timeout=200)
    command = [sys.executable, ROOT / "examples" / "preprocess_ray_data.py", "--data", "dray-quickstart/shards"]
    done = subprocess.run([*command, "--out", "out"], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5,792 samples in 6 shards" in done.stdout
    assert float(done.stdout.split()[-1]) > 0.85
