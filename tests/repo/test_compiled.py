"""The compiled modules: built here, clean under sanitizers, and not needed."""

import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dray.cluster.cli.checking import loadtest
from tests.repo.test_house import COMPILED, ROOT, copy_of_source
from tests.support import sanitized

NAMES = [module["name"] for module in COMPILED]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_compiled_is_here(name: str) -> None:
    """Tests must run with it: dray works without, more slowly, and nobody would notice."""
    try:
        importlib.import_module(name)
    except ImportError as exc:
        pytest.fail(f"{name} is not compiled: install a C compiler and Python's headers, then dray again ({exc})")


def test_every_compiled_module_is_named_everywhere() -> None:
    """`dray loadtest` warns if one is missing, and the sanitizers see it."""
    assert set(NAMES) == set(loadtest.COMPILED) == set(sanitized.SOURCES)


WITHOUT = """
import importlib.util, pickle, sys
from pathlib import Path
import numpy as np
from dray.loaders import ShardLoader
from dray.pipelines import pickles_to_tars
from dray.shards.codecs.pickles.unpickle import loads
folder = Path(sys.argv[1])
for number in range(8):
    (folder / f"s{number}.x.pyd").write_bytes(pickle.dumps(np.full(100, number)))
pickles_to_tars(folder, [f"s{number}" for number in range(8)], ["x.pyd"], f"{folder}-out", "wdshards", progress=False)
batches = [batch["x.pyd"][:, 0].tolist() for batch in ShardLoader(f"{folder}-out", batch_size=4, shuffle=False)]
found = [name for name in sys.argv[3:] if importlib.util.find_spec(name)]
print(sys.modules["dray"].__file__.startswith(sys.argv[2]), found, loads(pickle.dumps({"a": np.ones(2)})), batches)
"""


@pytest.mark.heavy
def test_dray_installs_and_reads_without_a_compiler(tmp_path: Path) -> None:
    """The compiled modules are optional: a wheel made where no compiler works reads a pickle and fills a batch."""
    wheels, inputs, installed = (tmp_path / name for name in ("wheels", "inputs", "installed"))
    inputs.mkdir()
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", wheels, "."]
    source = copy_of_source(tmp_path / "source")
    subprocess.run(command, cwd=source, env={**os.environ, "CC": "false"}, check=True, capture_output=True)
    with zipfile.ZipFile(next(wheels.glob("dray-*.whl"))) as wheel:
        wheel.extractall(installed)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, inputs, installed, *NAMES],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "True [] {'a': array([1., 1.])} [[0, 1, 2, 3], [4, 5, 6, 7]]", done.stderr


@pytest.mark.heavy
def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Over every prefix of many pickles, damaged ones, and parts of every size: no bad access, nothing undefined."""
    try:
        sanitized.build(tmp_path)
    except (FileNotFoundError, subprocess.CalledProcessError) as exc:
        pytest.skip(f"the C compiler has no AddressSanitizer: {getattr(exc, 'stderr', exc)}")
    command = [sys.executable, "-m", "tests.support.sanitized", tmp_path]
    done = subprocess.run(command, cwd=ROOT, env=sanitized.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]
    assert all(int(count) > 1000 for count in done.stdout.split())
