"""What travels with a job: dray itself, and the user's code that a job names.

dray's four folders are put together as they are imported, so that an editable install, a wheel and a checkout give the
same package; building a wheel and installing it would take a minute on each node.
"""

import importlib.util
import shutil
import sysconfig
from enum import StrEnum
from pathlib import Path

from dray import __version__
from dray.cluster.jobs.probe import Probe
from dray.shards.errors import CallError, ClusterError

_ROOMS = ("shards", "pipelines", "loaders", "cluster")
_NOT_SENT = ("__pycache__", "*.c", "*.h", "*.o", "package")  # cluster/package is dray's own __init__.py


class Ship(StrEnum):
    """When dray's package travels with a job."""

    auto = "auto"
    always = "always"
    never = "never"


def needs_package(found: Probe, ship: Ship) -> bool:
    """Whether dray travels.

    Raises:
        ClusterError: The cluster lacks packages that dray needs, or `ship` is never and it has another dray or none.
    """
    if found.missing:
        raise ClusterError(
            f"the cluster's Python {found.python} ({found.executable}) lacks packages that dray needs: install them on "
            f"all nodes: pip install {' '.join(found.missing)}"
        )
    if ship == Ship.never and not found.has_this_dray:
        has = found.dray or "none that runs jobs"
        raise ClusterError(f"the cluster has another dray ({has}) than this machine: --ship auto sends this one")
    return ship == Ship.always or not found.has_this_dray


def put_together(folder: Path, *, with_compiled: bool) -> list[str]:
    """Writes dray's package into `folder`; returns the directories that Ray's py_modules takes.

    Args:
        folder: An empty folder.
        with_compiled: Whether the compiled modules of this machine go with it; without them Python does their work.
    """
    ignored = shutil.ignore_patterns(*_NOT_SENT, *(() if with_compiled else ("*.so",)))
    top = folder / "dray"
    top.mkdir(parents=True)
    for name in ("__init__.py", "__main__.py", "py.typed"):
        shutil.copy(_folder_of("dray") / name, top / name)
    for room in _ROOMS:
        shutil.copytree(_folder_of(f"dray.{room}"), top / room, ignore=ignored)
    about = folder / f"dray-{__version__}.dist-info"  # makes the version known there
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dray\nVersion: {__version__}\n")
    return [str(top), str(about)]


def compiled_modules() -> list[str]:
    """Returns the names of the compiled modules that this machine has."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX") or ".so"
    found = [path for room in _ROOMS for path in _folder_of(f"dray.{room}").rglob(f"*{suffix}")]
    return sorted(path.name.removesuffix(suffix) for path in found)


def _folder_of(package: str) -> Path:
    """Returns the folder from which a package is imported.

    Raises:
        CallError: It is in an archive.
    """
    spec = importlib.util.find_spec(package)
    for folder in spec.submodule_search_locations or () if spec else ():
        if Path(folder, "__init__.py").is_file():
            return Path(folder)
    raise CallError(
        f"{package} is not imported from a folder, so it cannot be sent: install dray by pip, or --ship never"
    )
