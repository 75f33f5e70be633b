"""The Dockerfile passes hadolint, which finds planted faults; what it copies exists."""

import sys
from pathlib import Path

import pytest

from dray.cluster.deploy.docker import render_docker
from tests.support.manifests.programs import run_program

ROOT = Path(__file__).parents[3]


def test_hadolint_has_nothing_to_say() -> None:
    """Not even a remark."""
    done = run_program("hadolint", "-", stdin=render_docker())
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong", "code"),
    [
        ("FROM ghcr.io/astral-sh/uv:0.13.7 AS uv", "FROM ghcr.io/astral-sh/uv:latest AS uv", "DL3007"),
        ("# hadolint ignore=DL3008\n", "", "DL3008"),
        ("WORKDIR /home/dray", "RUN cd /home/dray", "DL3003"),
        ("--no-install-recommends ", "", "DL3015"),
        ("USER 10001", "USER root", "DL3002"),
        ("COPY --from=build", "COPY --from=builds", "DL3022"),
        ("RUN apt-get update", "RUNS apt-get update", "missing whitespace"),
    ],
)
def test_planted_faults_are_found(right: str, wrong: str, code: str) -> None:
    """An unpinned image, a root user, a missing stage, broken syntax."""
    content = render_docker()
    assert right in content
    done = run_program("hadolint", "-", stdin=content.replace(right, wrong))
    assert done.returncode == 1
    assert code in done.stdout + done.stderr


def test_what_it_copies_is_in_a_checkout() -> None:
    """And nothing else is, such as a .env file or .git."""
    lines = [line.split()[1:-1] for line in render_docker().splitlines() if line.startswith("COPY")]
    sources = [word for words in lines if not words[0].startswith("--from") for word in words]
    assert sources
    assert all((ROOT / source).exists() for source in sources)
    assert "." not in sources


def test_the_python_is_that_of_this_process() -> None:
    """Functions that cloudpickle sends cross only between equal Pythons."""
    assert f"ARG PYTHON={sys.version_info[0]}.{sys.version_info[1]}\n" in render_docker()
