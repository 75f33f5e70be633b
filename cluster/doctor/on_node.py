"""What a node finds about itself and a store, in a task of `node_probe`."""

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dray.cluster.doctor.advice import advice_for, in_short
from dray.cluster.doctor.credentials import check_credentials
from dray.cluster.doctor.finding import Finding, bad, good, unchecked
from dray.cluster.doctor.machine import machine_checks
from dray.cluster.doctor.scratch import Scratch
from dray.cluster.doctor.store import check_clean_up, open_store
from dray.shards.errors import StoreError

CHECK = "nodes and URL"
_OF_MACHINE = ("open files", "shared memory", "compiled modules")
_SHARE = "mount the same disk on all nodes under the same path, or use object storage"
_KEYS = (
    "give the nodes an instance role, or keys in a file (~/.aws/credentials) or in Ray's environment there; "
    "on Kubernetes by reference to a Secret"
)


@dataclass(frozen=True, slots=True)
class Witness:
    """An object that the driver writes, and that each node must see."""

    scratch: Scratch

    @property
    def folder(self) -> str:
        """Name of the folder of temporary objects."""
        return self.scratch.folder

    @classmethod
    def write(cls, request: Mapping[str, Any]) -> tuple["Witness | None", list[dict[str, Any]]]:
        """Returns what was written, or a finding that says why nothing could be."""
        scratch = Scratch(open_store(request["url"], request["options"]))
        try:
            scratch.store.put_new(scratch.name("witness"), b"dray")
        except StoreError as exc:
            found = bad("driver and URL", f"{socket.gethostname()}: {in_short(exc)}", advice_for(exc, _KEYS))
            return None, [found.as_json()]
        return cls(scratch), []

    def close(self) -> list[dict[str, Any]]:
        """Removes it; returns a finding if that failed."""
        found = check_clean_up(self.scratch)
        return [] if found.level == "good" else [found.as_json()]


def examine(request: Mapping[str, Any], folder: str | None) -> list[dict[str, Any]]:
    """Returns the findings of this node.

    Args:
        request: What `node_probe` was asked.
        folder: Where the driver wrote its witness; None if it did not.
    """
    findings = [found for check in machine_checks() if check.name in _OF_MACHINE for found in check.run()]
    if request["url"] is not None:
        findings += _examine_store(request["url"], request["options"], folder)
    return [finding.as_json() for finding in findings]


def _examine_store(url: str, options: Mapping[str, Any], folder: str | None) -> list[Finding]:
    if folder is None:
        return [unchecked(CHECK, "not checked, as the driver could not write there")]
    store = open_store(url, options)
    is_remote = store.local_root is None
    credentials = [check_credentials(store.url, options)] if is_remote else []
    scratch = Scratch(store, folder)
    try:
        return [*credentials, _see(scratch)]
    except StoreError as exc:
        return [*credentials, bad(CHECK, in_short(exc), advice_for(exc, _KEYS if is_remote else _SHARE))]


def _see(scratch: Scratch) -> Finding:
    """Reads what the driver wrote, and writes an object beside it."""
    started = time.monotonic()
    if scratch.store.head(f"{scratch.folder}/witness") is None:
        what = f"does not see what the driver has just written to {scratch.store.url}"
        return bad(CHECK, what, _SHARE)
    seconds = time.monotonic() - started
    name = scratch.name(f"node-{socket.gethostname()}-{time.monotonic_ns()}")
    scratch.store.put_new(name, b"node")
    scratch.store.delete([name])
    return good(CHECK, "reads and writes it", look_up_s=seconds)
