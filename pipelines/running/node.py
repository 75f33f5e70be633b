"""The node on which this process runs: its name for errors, and its dray's identity."""

import importlib.util
import platform
import sys
from functools import cache
from pathlib import Path

from xxhash import xxh3_64

from dray import UNKNOWN_VERSION, __version__
from dray.shards.parsing.records import FORMAT

_PACKAGES = ("dray.shards", "dray.pipelines")  # the code that decides a dataset's bytes


def node_name() -> str:
    """Returns the host name; in a Ray worker also the address and the start of the node's id."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return platform.node()
    node_id = ray.get_runtime_context().get_node_id()
    return f"{platform.node()} ({ray.util.get_node_ip_address()}, id {node_id[:8]})"


def is_fit(wanted: str) -> bool:
    """Whether this process has the same dray as another process, by its `identity`.

    A version may be unknown, as in a folder that Ray's py_modules ships: then format and code are compared.
    """
    found = identity()
    if UNKNOWN_VERSION in wanted + found:
        return found.partition("(")[2] == wanted.partition("(")[2]
    return found == wanted


@cache
def identity() -> str:
    """Returns version, format and a digest of the code: if they are equal, equal inputs give equal bytes."""
    digest = xxh3_64()
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(f"{package}/{path.relative_to(folder)}".encode() + path.read_bytes())
    return f"dray {__version__} (format {FORMAT}, code {digest.hexdigest()[:8]})"
