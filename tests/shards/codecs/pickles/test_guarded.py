"""The compiled modules read and write no byte outside their buffers."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]


@pytest.mark.parametrize("what", ["scan", "gather"])
def test_nothing_is_touched_beyond_either_end(what: str) -> None:
    """In a separate process, as the first wrong access would end it."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.guarded", what], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 400


@pytest.mark.parametrize("place", ["memory.at_end(b'x').obj[-4096]", "memory.at_start(b'x').obj[4095]"])
def test_the_forbidden_pages_are_forbidden(place: str) -> None:
    """Otherwise the test above would prove nothing."""
    code = f"from tests.support.guarded import Guarded; memory = Guarded(); {place}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGSEGV
