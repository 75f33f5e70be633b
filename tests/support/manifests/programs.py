"""Programs that pip installed beside the interpreter of the tests."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


def run_program(
    name: str, *arguments: object, stdin: str = "", env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs one; its outputs are text."""
    command = [str(Path(sys.executable).parent / name), *map(str, arguments)]
    return subprocess.run(
        command, input=stdin, env=os.environ | (env or {}), capture_output=True, text=True, timeout=60
    )
