"""What `dray hold`, `release`, `rollback`, `gc` and `compact` do to the versions of a dataset, and what they print."""

import json
from dataclasses import asdict

import typer

from dray.cluster.cli.datasets import find_dataset, find_datasets, without_version
from dray.pipelines.building.compact import compact
from dray.pipelines.running.ray_session import ray_session
from dray.pipelines.versions import holds as versions
from dray.pipelines.versions.gc import GcReport, gc
from dray.pipelines.versions.retention import Retention
from dray.shards.log import read_head
from dray.shards.messages import counted
from dray.shards.storage.client import StorageOptions
from dray.shards.versions import keeps, read_version

MOST_NAMES = 20  # of the objects that a gc would delete


def hold_version(
    url: str, name: str, *, prefix: str | None, version: str | None, storage_options: StorageOptions
) -> None:
    """Keep a version under a name, and say so.

    Raises:
        CallError: The name cannot be one, or holds another version already.
        NotFoundError: There is no such version, or it was dropped.
    """
    words = ("hold", name, *(("--version", version) if version else ()))
    found = store, layout = find_dataset(without_version(url), prefix, storage_options, words)
    number = versions.hold(store, layout, name, version)
    typer.echo(f"{found}: version {number} is held as {name}, until it is released")


def release_version(url: str, name: str, *, prefix: str | None, storage_options: StorageOptions) -> None:
    """Give up a hold, and say what becomes of its version.

    Raises:
        NotFoundError: There is no such hold.
    """
    found = store, layout = find_dataset(without_version(url), prefix, storage_options, ("release", name))
    number = versions.release(store, layout, name)
    head = read_head(store, layout)
    is_kept = head is not None and keeps(store, layout, head, number)
    then = "is among those that are kept" if is_kept else "is dropped: the next gc deletes what it alone names"
    typer.echo(f"{found}: {name} is released; version {number} {then}")


def roll_back(url: str, version: str, *, prefix: str | None, storage_options: StorageOptions) -> None:
    """Make a new version equal to an old one, and say what that means.

    Raises:
        NotFoundError: There is no such version, or it was dropped.
        DamagedError: Something that it names is missing.
        ConflictError: Another writer committed meanwhile.
    """
    found = store, layout = find_dataset(without_version(url), prefix, storage_options, ("rollback", version))
    old, last = (read_version(store, layout, wanted).version for wanted in (version, None))
    made = versions.rollback(store, layout, version)
    if made.version == last:
        typer.echo(f"{found}: nothing to do, version {last} is the same as version {old}")
        return
    typer.echo(
        f"{found} version {made.version}: the same as version {old}, {counted(made.num_samples, 'sample')} in "
        f"{counted(len(made.shards), 'shard')}, {made.num_bytes / 1e6:,.1f} MB; no shard was copied"
    )
    typer.echo(
        f"The next build from the same sources will redo what this undid (dray diff shows that of {made.version} and "
        f"{last}): mend the sources first."
    )


def collect_garbage(
    url: str,
    *,
    prefix: str | None,
    keep: int,
    grace_s: float,
    dry_run: bool,
    as_json: bool,
    storage_options: StorageOptions,
) -> None:
    """Drop old versions and delete what nothing names any more; print what was done, or would be.

    Raises:
        NotFoundError: There is no such dataset.
        DamagedError: The manifest of a version that is kept cannot be read: nothing of that dataset is deleted then.
    """
    retention = Retention(keep=keep, grace_s=grace_s)
    reports: list[GcReport] = []
    try:
        for store, layout in find_datasets(without_version(url), prefix, storage_options):
            reports.append(gc(store, layout, retention, dry_run=dry_run))
            if not as_json:
                _print_gc(reports[-1])
    finally:
        if as_json:
            typer.echo(json.dumps([asdict(report) for report in reports], indent=1))


def _print_gc(report: GcReport) -> None:
    typer.echo(str(report))
    if not report.is_dry_run:
        return
    for name in report.deleted[:MOST_NAMES]:
        typer.echo(f"  {name}")
    if (more := len(report.deleted) - MOST_NAMES) > 0:
        typer.echo(f"  and {more:,} more (--json names all)")


def compact_shards(
    url: str, *, prefix: str | None, keep: int, grace_s: float, address: str | None, storage_options: StorageOptions
) -> None:
    """Merge small shards, and print what was done."""
    found = find_datasets(without_version(url), prefix, storage_options)
    retention = Retention(keep=keep, grace_s=grace_s)
    with ray_session(address if len(found) > 1 else None):  # one alone connects by itself, and only if it has work
        for store, layout in found:
            typer.echo(str(compact(store, layout, retention=retention, address=address)))
