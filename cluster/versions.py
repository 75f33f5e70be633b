"""What `dray hold`, `release`, `rollback`, `gc` and `compact` do to the versions of a dataset, and what they print."""

import json
from dataclasses import asdict

import typer

from dray.pipelines import versions
from dray.pipelines.compact import compact
from dray.pipelines.gc import gc
from dray.pipelines.retention import Retention
from dray.shards import CallError, Store
from dray.shards.client import StorageOptions
from dray.shards.layout import Layout
from dray.shards.log import read_head, read_version
from dray.shards.urls import split_version

MOST_NAMES = 20  # of the objects that a gc would delete


def open_dataset(url: str, prefix: str, storage_options: StorageOptions) -> tuple[Store, Layout]:
    """A dataset with all its versions.

    Raises:
        CallError: The URL names one of them.
    """
    directory, pinned = split_version(url)
    if pinned is not None:
        raise CallError(f"{url}: this is about the dataset, not one version of it: leave ?version={pinned} out")
    return Store(directory, storage_options), Layout(prefix)


def hold_version(url: str, name: str, *, prefix: str, version: str | None, storage_options: StorageOptions) -> None:
    """Keep a version under a name, and say so.

    Raises:
        CallError: The name cannot be one, or holds another version already.
        NotFoundError: There is no such version, or it was dropped.
    """
    store, layout = open_dataset(url, prefix, storage_options)
    number = versions.hold(store, layout, name, version)
    typer.echo(f"{store.url} {prefix}: version {number} is held as {name}, until it is released")


def release_version(url: str, name: str, *, prefix: str, storage_options: StorageOptions) -> None:
    """Give up a hold, and say what becomes of its version.

    Raises:
        NotFoundError: There is no such hold.
    """
    store, layout = open_dataset(url, prefix, storage_options)
    number = versions.release(store, layout, name)
    head = read_head(store, layout)
    is_kept = head is not None and head.keeps(number)
    then = "is among those that are kept" if is_kept else "is dropped: the next gc deletes what it alone names"
    typer.echo(f"{store.url} {prefix}: {name} is released; version {number} {then}")


def roll_back(url: str, version: str, *, prefix: str, storage_options: StorageOptions) -> None:
    """Make a new version equal to an old one, and say what that means.

    Raises:
        NotFoundError: There is no such version, or it was dropped.
        DamagedError: Something that it names is missing.
        ConflictError: Another writer committed meanwhile.
    """
    store, layout = open_dataset(url, prefix, storage_options)
    old, last = (read_version(store, layout, wanted).version for wanted in (version, None))
    made = versions.rollback(store, layout, version)
    if made.version == last:
        typer.echo(f"{store.url} {prefix}: nothing to do, version {last} is the same as version {old}")
        return
    typer.echo(
        f"{store.url} {prefix} version {made.version}: the same as version {old}, {made.num_samples:,} samples in "
        f"{len(made.shards):,} shards, {made.num_bytes / 1e6:,.1f} MB; no shard was copied"
    )
    typer.echo(
        f"The next build from the same sources will redo what this undid (dray diff shows that of {made.version} and "
        f"{last}): mend the sources first."
    )


def collect_garbage(
    url: str,
    *,
    prefix: str,
    keep: int,
    grace_s: float,
    dry_run: bool,
    as_json: bool,
    storage_options: StorageOptions,
) -> None:
    """Drop old versions and delete what nothing names any more; print what was done, or would be.

    Raises:
        NotFoundError: There is no such dataset.
        DamagedError: The manifest of a version that is kept cannot be read: nothing is deleted then.
    """
    store, layout = open_dataset(url, prefix, storage_options)
    report = gc(store, layout, Retention(keep=keep, grace_s=grace_s), dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps(asdict(report), indent=1))
        return
    typer.echo(str(report))
    if not dry_run:
        return
    for name in report.deleted[:MOST_NAMES]:
        typer.echo(f"  {name}")
    if (more := len(report.deleted) - MOST_NAMES) > 0:
        typer.echo(f"  and {more:,} more (--json names all)")


def compact_shards(
    url: str, *, prefix: str, keep: int, grace_s: float, address: str | None, storage_options: StorageOptions
) -> None:
    """Merge small shards, and print what was done."""
    store, layout = open_dataset(url, prefix, storage_options)
    retention = Retention(keep=keep, grace_s=grace_s)
    typer.echo(str(compact(store, layout, retention=retention, address=address)))
