"""Merging small shards: a version like any other, of the same samples in fewer tars.

No source is read and nothing is decoded: a merged shard is the members of its parts one after another, and its index
is put together from theirs. Every byte is checked against the index that the manifest names while it is copied.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from dray.pipelines.building.announce import announce
from dray.pipelines.building.job import PackJob
from dray.pipelines.building.manifest import put_table
from dray.pipelines.building.merge import MergeTask, merge_shards, merged_bytes, merged_digest
from dray.pipelines.building.survey import stored_sizes
from dray.pipelines.building.tables import source_chunks
from dray.pipelines.inputs.sources import Sources
from dray.pipelines.planning.merges import Group, plan_for
from dray.pipelines.planning.plan import Plan, PlannedShard, fingerprints_in
from dray.pipelines.progress import shard_progress
from dray.pipelines.running.parcel import Witness
from dray.pipelines.running.tasks import fit_workers, run_tasks
from dray.pipelines.versions.attempts import check_is_build, check_stored, finish, until_committed
from dray.pipelines.versions.commit import commit_version
from dray.pipelines.versions.retention import Retention
from dray.shards.layout import Location
from dray.shards.log import Commit, Intent, Operation
from dray.shards.manifest import Manifest, Shard, TableChunk, part_table
from dray.shards.messages import counted
from dray.shards.snapshot import Snapshot
from dray.shards.versions import no_dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport:
    """What a compaction did."""

    url: str
    prefix: str
    version: int  # the one that is now the last
    num_merged: int  # small shards that are gone
    num_made: int  # shards made of them
    num_shards: int  # of the version
    num_samples: int
    num_bytes: int  # of all tars of the version
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

    Atomic, as a build is. Where there is nothing to merge, nothing is written. Where another writer commits meanwhile,
    it is planned again from there; what was merged serves. Samples of merged shards move to the place of the first one.

    Args:
        location: Where the dataset is.
        retention: Which versions stay; None: all.
        address: See `run_tasks`.
        progress: Show a bar or lines on standard error.

    Raises:
        NotFoundError: There is no such dataset.
        DamagedError: A small shard, or its index, is not what was packed: names shard and key. No version is made.
        ConflictError: Other writers were faster again and again.
    """
    started = time.monotonic()

    def attempt(head: Commit | None, *, is_first: bool) -> CompactReport | None:  # noqa: ARG001  all are alike
        """None where another writer committed meanwhile."""
        if head is None:
            raise no_dataset(location)
        base = Snapshot.load(location, head)
        check_is_build(base)
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
    """Announce, merge and commit; None where the dataset moved on meanwhile."""
    job = PackJob(inputs=base.store, location=base.location, transform=None)  # no input is read
    stored = stored_sizes(job)
    intent = announce(job, _announced(groups), base, stored, progress=progress)
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
    manifest = _next_manifest(job, base, groups, shards, intent)
    return commit_version(base.location, manifest, base, operation=Operation.COMPACT, retention=retention)


def _announced(groups: Sequence[Group]) -> Plan:
    """The groups as a plan of a build, which looks at no source."""
    no_rows = np.zeros(0, np.int64)
    return Plan(
        tuple(
            PlannedShard(
                rows=no_rows,
                fate="reused" if len(group) == 1 else "rewritten",
                reason="" if len(group) == 1 else f"merged of {len(group)} small ones",
                number=group[0].number if len(group) == 1 else None,
                num_bytes=merged_bytes(group),
                digest=merged_digest(group),
            )
            for group in groups
        )
    )


def _next_manifest(
    job: PackJob, base: Snapshot, groups: Sequence[Group], shards: Sequence[Shard], intent: Intent
) -> Manifest:
    """The last version's but for its shards, and where the table of sources says that samples lie."""
    kept = {shard.number: shard for shard in base.manifest.counted_shards()}
    counted_shards = [kept.get(shard.number, shard) for shard in shards]
    arrays = [base.manifest.arrays()] * len(shards)  # merging changes no sample
    parts, shown = part_table(base.manifest.recipe, counted_shards, arrays)
    return replace(
        base.manifest,
        intent=intent.number,
        parts=parts,
        shards=shown,
        sources=_moved_sources(job, base, groups, shards, intent),
    )


def _moved_sources(
    job: PackJob, base: Snapshot, groups: Sequence[Group], shards: Sequence[Shard], intent: Intent
) -> tuple[TableChunk, ...]:
    """The table of sources with each sample's new shard and row, stored durably; unchanged chunks stay."""
    moves: dict[int, tuple[int, int]] = {}  # old shard -> new shard, and the row where its samples start
    for group, shard in zip(groups, shards, strict=True):
        first_rows = accumulate((part.num_samples for part in group), initial=0)
        moves |= {part.number: (shard.number, row) for part, row in zip(group, first_rows, strict=False)}
    table = base.sources()
    suffixes = tuple(base.manifest.recipe["suffixes"])
    sources = Sources(
        url=base.manifest.source_url,
        names=table["name"].to_pylist(),
        suffixes=suffixes,
        sizes=fingerprints_in(table, suffixes, "size"),
        stamps=fingerprints_in(table, suffixes, "stamp"),
    )
    numbers, place = np.unique(table["shard"].to_numpy(), return_inverse=True)
    moved = np.array([moves[number] for number in numbers.tolist()], np.int64)[place]
    rows = table["row"].to_numpy() + moved[:, 1]
    chunks = source_chunks(sources, moved[:, 0], rows, fingerprints_in(table, suffixes, "xxh3_64"))
    known = {chunk.digest: chunk for chunk in base.manifest.sources or ()}
    return tuple(put_table(job, intent, body, num_rows, known) for num_rows, body in chunks)


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
