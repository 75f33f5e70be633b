"""`dray doctor`: each trouble of a machine, planted for real, is named."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Dray

ROOT = Path(__file__).parents[3]
DRAY = Path(sys.executable).parent / "dray"


def doctor(*before: object, **more: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    """Returns the exit code and the findings by check; `before` are words of a command that runs dray."""
    command = [*map(str, before), str(DRAY), "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, **more)
    assert done.stderr == ""
    return done.returncode, {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_this_machine_is_described(dray: Dray) -> None:
    """Line by line; nothing is asked of a store or a cluster."""
    done = dray("doctor")
    assert done.code in (0, 3)
    for text in ("this machine", "dray 0.", "cores", "open files", "shared memory", "compiled modules"):
        assert text in done.out


@pytest.mark.parametrize(("limit", "level", "code"), [(256, "bad", 3), (2048, "warning", 0)])
def test_a_low_limit_of_open_files_is_named(limit: int, level: str, code: int) -> None:
    """The advice fits the hard limit."""
    found_code, findings = doctor("sh", "-c", f'ulimit -Sn {limit}; exec "$@"', "sh")
    assert findings["open files"]["level"] == level
    assert f"at most {limit:,}" in findings["open files"]["found"]
    assert "ulimit -n" in findings["open files"]["advice"]
    assert findings["open files"]["values"]["open_files"] == limit
    assert found_code == code
    _, findings = doctor("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh")
    assert "raise the hard limit" in findings["open files"]["advice"]


def test_full_shared_memory_is_bad() -> None:
    """As in a container: 64 MB, some of which is taken."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces need root")
    fill = 'mount -t tmpfs -o size=64m tmpfs /dev/shm && head -c 1000000 /dev/zero > /dev/shm/fill && exec "$@"'
    code, findings = doctor("unshare", "-m", "sh", "-c", fill, "sh")
    assert code == 3
    assert findings["shared memory"]["level"] == "bad"
    assert "64 MiB in /dev/shm cannot be had: No space left on device" in findings["shared memory"]["found"]
    assert "--shm-size" in findings["shared memory"]["advice"]


def test_small_shared_memory_is_a_warning() -> None:
    """It is enough for one worker."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("mount namespaces need root")
    small = 'mount -t tmpfs -o size=512m tmpfs /dev/shm && exec "$@"'
    code, findings = doctor("unshare", "-m", "sh", "-c", small, "sh")
    assert (code, findings["shared memory"]["level"]) == (0, "warning")


def test_modules_that_were_not_compiled_are_named(tmp_path: Path) -> None:
    """A copy of the source, as an installation without a C compiler leaves it."""
    for room in ("shards", "pipelines", "loaders", "cluster"):
        shutil.copytree(ROOT / room, tmp_path / "dray" / room, ignore=shutil.ignore_patterns("*.so", "package"))
    shutil.copy(ROOT / "cluster/package/__init__.py", tmp_path / "dray")
    code = "import sys; from dray.cluster.cli import main; sys.argv = ['dray', 'doctor', '--json']; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, env={**os.environ}
    )
    findings = {finding["check"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["compiled modules"]["level"] == "warning", done.stderr
    assert "dray.loaders.batching.gather" in findings["compiled modules"]["found"]
    assert "install a C compiler" in findings["compiled modules"]["advice"]
