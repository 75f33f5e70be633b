"""What the documents say, run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block_after(mark: str) -> str:
    """The code block that follows a mark in the README."""
    found = re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found is not None, mark
    return found[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's program has run."""
    folder = tmp_path_factory.mktemp("readme")
    subprocess.run([sys.executable, "-c", block_after("program")], cwd=folder, check=True, timeout=120)
    return folder


def test_the_readme_program_packs_and_trains(folder: Path) -> None:
    """As printed: it leaves the shards of both splits."""
    assert len(list(folder.glob("shards/train/wdshards-*.tar"))) == 8
    assert len(list(folder.glob("shards/val/wdshards-*.tar"))) == 8


def test_the_readme_commands_build_list_verify_and_show(folder: Path) -> None:
    """Line by line, on the program's samples."""
    outputs = [
        subprocess.check_output(
            [Path(sys.executable).parent / line.split()[0], *line.split()[1:]], cwd=folder, text=True
        )
        for line in block_after("commands").splitlines()
    ]
    assert "train" in outputs[0]
    assert outputs[1].count("nothing to do, 8 shards stay") == 3
    assert "wdshards-000007.tar" in outputs[3]
    assert "s7" in outputs[5]


def test_the_readme_python_blocks_run(folder: Path) -> None:
    """The others build on the first."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    for block in blocks[1:]:
        subprocess.run([sys.executable, "-c", block], cwd=folder, check=True, timeout=60)


def test_links_of_the_documents_lead_somewhere() -> None:
    """Relative links name files that exist."""
    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), (document.name, target)


def test_files_that_the_design_names_exist() -> None:
    """So that a reader finds the room of which the design speaks."""
    for document in (ROOT / "docs" / "design.md", *(ROOT / "docs" / "decisions").glob("*.md")):
        for path in re.findall(r"`((?:shards|pipelines|loaders|cluster|benchmarks|docs)/[^`]+)`", document.read_text()):
            assert list(ROOT.glob(path)), (document.name, path)
