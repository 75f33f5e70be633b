"""dray's package for a cluster: complete, importable without an installation, and refused where it could not run."""

import os
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest

from dray.cluster.jobs.probe import Probe
from dray.cluster.jobs.ship import Ship, compiled_modules, needs_package, put_together
from dray.pipelines.running.node import identity
from dray.shards.errors import ClusterError

SAME = Probe(
    python="3.11.7",
    executable="/opt/python",
    platform=sysconfig.get_platform(),
    extension=sysconfig.get_config_var("EXT_SUFFIX"),
    ray="2.60.0",
    dray=identity(),
    missing=[],
    is_worker=True,
)


@pytest.mark.parametrize("with_compiled", [True, False])
def test_the_package_is_this_dray(tmp_path: Path, with_compiled: bool) -> None:
    """A Python that finds it first has the same identity, and the compiled modules that were asked for."""
    folders = put_together(tmp_path / "package", with_compiled=with_compiled)
    assert [Path(folder).name.partition("-")[0] for folder in folders] == ["dray", "dray"]
    found = sorted(path.name.partition(".")[0] for path in tmp_path.rglob("*.so"))
    assert found == (compiled_modules() if with_compiled else [])
    code = "import dray; from dray.pipelines.running.node import identity; print(dray.__file__, identity())"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "package"), "PYTHONDONTWRITEBYTECODE": "1"}
    printed = subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=tmp_path, text=True)
    assert printed.split(maxsplit=1) == [f"{tmp_path}/package/dray/__init__.py", f"{identity()}\n"]


@pytest.mark.parametrize(
    ("there", "ship", "travels"),
    [
        (identity(), Ship.auto, False),
        (identity(), Ship.always, True),
        (identity(), Ship.never, False),
        (None, Ship.auto, True),
        ("dray 0.0.1 (format 1, code 00000000)", Ship.auto, True),
    ],
)
def test_the_package_travels_where_it_is_missing(there: str | None, ship: Ship, travels: bool) -> None:
    """Or where the caller says so."""
    assert needs_package(replace(SAME, dray=there), ship) == travels


def test_a_cluster_that_cannot_run_it_is_refused() -> None:
    """The message has the packages to install, or the option to change."""
    with pytest.raises(ClusterError, match="pip install obstore xxhash"):
        needs_package(replace(SAME, missing=["obstore", "xxhash"]), Ship.always)
    with pytest.raises(ClusterError, match="--ship auto"):
        needs_package(replace(SAME, dray=None), Ship.never)


def test_compiled_modules_fit_the_same_python_and_platform() -> None:
    """Elsewhere Python does their work."""
    assert SAME.takes_compiled
    assert not replace(SAME, extension=".cpython-312-aarch64-linux-gnu.so").takes_compiled
    assert not replace(SAME, platform="linux-aarch64").takes_compiled
