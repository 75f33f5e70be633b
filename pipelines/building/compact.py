"""Merging small shards: the next version holds the same samples in fewer tars.

No source is read and nothing is decoded: a merged shard is the concatenation of its parts' members, and its index that
of theirs. Every byte is checked against the index that the manifest names while it is copied.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import pyarrow as pa

from dray.pipelines.building.announce import announce
from dray.pipelines.building.manifest import put_rows
from dray.pipelines.building.merge import MergeTask, merge_shards, merged_digest
from dray.pipelines.planning.merges import Group, plan_for
from dray.pipelines.progress import shard_progress
from dray.pipelines.running.parcel import Witness
from dray.pipelines.running.tasks import fit_workers, run_tasks
from dray.pipelines.versions.attempts import check_has_own_tars, check_stored, finish, stored_sizes, until_committed
from dray.pipelines.versions.commit import commit_version
from dray.pipelines.versions.retention import Retention
from dray.shards.layout import Location
from dray.shards.log import Commit, Intent, Operation
from dray.shards.manifest import Manifest, Shard, part_table
from dray.shards.messages import counted
from dray.shards.snapshot import Snapshot
from dray.shards.versions import require_dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport:
    """What a compaction did."""

    url: str
    prefix: str
    version: int  # number of the last version
    num_merged: int  # number of small shards that were merged
    num_made: int  # number of shards made of them
    num_shards: int  # shards of the version
    num_samples: int  # samples of the version
    num_bytes: int  # bytes of the version's tars
    seconds: float

    def __str__(self) -> str:
        merged = f"{counted(self.num_merged, 'small one')} merged into {self.num_made:,}"
        done = merged if self.num_merged else "nothing to merge"
        return (
            f"{self.url} {self.prefix} version {self.version}: {counted(self.num_samples, 'sample')} in "
            f"{counted(self.num_shards, 'shard')}, {self.num_bytes / 1e6:,.1f} MB; {done}; {self.seconds:.1f} s"
        )


def compact(
    location: Location,
    *,
    retention: Retention | None,
    address: str | None = None,
    progress: bool = True,
) -> CompactReport:
    """Merge the small shards of the last version: the next one holds the same samples in fewer tars.

    Atomic, like a build. If there is nothing to merge, nothing is written. If another writer commits meanwhile, it is
    planned again from there, and shards that were merged are reused. Samples move to the place of the first shard of
    their group.

    Args:
        location: Where the dataset is.
        retention: Which versions to keep; None: all.
        address: See `run_tasks`.
        progress: Whether to show progress on standard error.

    Raises:
        CallError: The dataset indexes tars that dray did not write.
        NotFoundError: There is no such dataset.
        DamagedError: A small shard or its index is damaged; names shard and key. No version is made.
        ConflictError: Other writers were faster too often.
    """
    started = time.monotonic()

    def attempt(head: Commit | None, *, is_first: bool) -> CompactReport | None:  # noqa: ARG001  each starts from head
        base = Snapshot.load(location, require_dataset(location, head))
        check_has_own_tars(base)
        groups = plan_for(base.shards, base.manifest.recipe)
        merged = [group for group in groups if len(group) > 1]
        if not merged:
            return _report(base, [], started)
        with fit_workers(address):
            made = _merge(base, groups, retention, address, progress=progress)
        if made is None:
            return None
        finish(made, base, retention, progress=progress)
        return _report(made, merged, started)

    return until_committed(location, attempt, progress=progress)


def _merge(
    base: Snapshot, groups: Sequence[Group], retention: Retention | None, address: str | None, *, progress: bool
) -> Snapshot | None:
    """Announce, merge and commit; returns None if another writer committed meanwhile."""
    stored = stored_sizes(base.location)
    slots = [(merged_digest(group), group[0].number if len(group) == 1 else None) for group in groups]
    intent = announce(base.location, slots, base, stored, progress=progress)
    witness = Witness(base.store, base.layout.intent(intent.number))
    tasks = [
        MergeTask(number=number, parts=group, is_stored=base.layout.shard(number) in stored)
        for group, number in zip(groups, intent.shards, strict=True)
        if len(group) > 1
    ]
    merged: dict[int, Shard] = {}
    with shard_progress(f"merging {base.layout.prefix}", num_shards=len(tasks), show=progress) as advance:
        for shard in run_tasks(merge_shards, base, tasks, address, witness=witness, progress=progress):
            merged[shard.number] = shard
            advance(shard.num_bytes)
    check_stored(base.location, {shard.number: shard.num_bytes for shard in merged.values()})
    shards = [merged.get(number, group[0]) for group, number in zip(groups, intent.shards, strict=True)]
    manifest = _next_manifest(base, groups, shards, intent)
    return commit_version(base.location, manifest, base, operation=Operation.COMPACT, retention=retention)


def _next_manifest(base: Snapshot, groups: Sequence[Group], shards: Sequence[Shard], intent: Intent) -> Manifest:
    """Returns the last version's manifest with other shards and the samples' new places; stores its tables."""
    kept = {shard.number: shard for shard in base.manifest.counted_shards()}
    counted_shards = [kept.get(shard.number, shard) for shard in shards]
    arrays = [base.manifest.arrays()] * len(shards)  # merging changes no sample
    parts, shown = part_table(base.manifest.recipe, counted_shards, arrays)
    rows = _moved(base.samples() if base.manifest.samples else base.sources(), groups, shards)
    manifest = replace(base.manifest, intent=intent.number, parts=parts, shards=shown)
    if base.manifest.samples is not None:  # the places are in the table of samples, and sources stay as they are
        return replace(manifest, samples=put_rows(base.location, intent, rows, base.manifest.samples))
    return replace(manifest, sources=put_rows(base.location, intent, rows, base.manifest.sources))


def _moved(table: pa.Table, groups: Sequence[Group], shards: Sequence[Shard]) -> pa.Table:
    """Returns a table of places with each sample's new shard and row."""
    moves: dict[int, tuple[int, int]] = {}  # old shard -> new shard, and the row where its samples start
    for group, shard in zip(groups, shards, strict=True):
        first_rows = accumulate((part.num_samples for part in group), initial=0)
        moves |= {part.number: (shard.number, row) for part, row in zip(group, first_rows, strict=False)}
    numbers, place = np.unique(table["shard"].to_numpy(), return_inverse=True)
    moved = np.array([moves[number] for number in numbers.tolist()], np.int64)[place]
    places = {"shard": moved[:, 0], "row": table["row"].to_numpy() + moved[:, 1]}
    columns = [pa.array(places[name]) if name in places else table[name] for name in table.column_names]
    return pa.table(columns, schema=table.schema)


def _report(snapshot: Snapshot, merged: Sequence[Group], started: float) -> CompactReport:
    return CompactReport(
        url=snapshot.store.url,
        prefix=snapshot.layout.prefix,
        version=snapshot.version,
        num_merged=sum(map(len, merged)),
        num_made=len(merged),
        num_shards=len(snapshot.shards),
        num_samples=snapshot.num_samples,
        num_bytes=snapshot.num_bytes,
        seconds=time.monotonic() - started,
    )
