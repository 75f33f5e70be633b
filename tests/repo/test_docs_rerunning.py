"""The page "Rerunning builds": each block runs, in order, in one folder, and prints the lines that the page shows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "rerunning-builds.md").read_text()
HOME = "/home/you"  # where the page says that its folder is
COMMANDS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": ["python", "-c"]}
ELSEWHERE_OTHERS = {
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ": "TIME",
    r"\b\d+\.\d s\b": "SECONDS",
    r"\b[0-9a-f]{16,32}\b": "DIGEST",
    r"\s+": " ",
}


def plain(line: str) -> str:
    """A line without what differs from run to run."""
    for pattern, name in ELSEWHERE_OTHERS.items():
        line = re.sub(pattern, name, line)
    return line.strip()


def is_printed(shown: str, output: list[str]) -> bool:
    """Whether a line of the page is among those printed; `…` stands for anything."""
    pattern = ".*".join(map(re.escape, plain(shown).split("…")))
    return any(re.fullmatch(pattern, line) for line in output)


def run_page(page: str, folder: Path) -> None:
    """Run each block from top to bottom, and look for the lines of a text block in what the block before it printed."""
    variables = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "DRAY_TRACEBACK": ""}
    output: list[str] = []
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        if kind == "text":
            missing = [line for line in block.splitlines() if line.strip() != "..." and not is_printed(line, output)]
            assert not missing, output
            continue
        done = subprocess.run(
            [*COMMANDS[kind], block],
            cwd=folder,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, block + done.stdout
        output = [plain(line.replace(str(folder), HOME)) for line in done.stdout.splitlines()]


@pytest.mark.heavy  # dozens of commands, each a process; what they show has tests of its own
def test_every_block_of_the_page_runs_and_prints_what_is_shown(tmp_path: Path) -> None:
    """From top to bottom, with the lines of a text block from the block before it; `...` leaves some out."""
    run_page(PAGE, tmp_path.resolve())


def test_the_page_shows_what_its_commands_print() -> None:
    """After each block that prints something: there are as many as the page had when it was written, or more."""
    assert len(re.findall(r"^```text\n.+\n", PAGE, re.MULTILINE)) >= 29


def test_the_links_at_the_top_name_the_sections() -> None:
    """All of them, in order."""
    sections = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    anchors = [re.sub(r"[^a-z0-9 -]", "", section.lower()).replace(" ", "-") for section in sections]
    assert re.findall(r"^- \[(.+)\]\(#(.+)\)$", PAGE, re.MULTILINE) == list(zip(sections, anchors, strict=True))
