"""Merging small shards: a version like any other, of the same samples in fewer tars.

No source is read and nothing is decoded: a merged shard is the members of its parts one after another, and its index
is put together from theirs. Every byte is checked against the index that the manifest names while it is copied.
"""

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import numpy as np
from xxhash import xxh3_64_intdigest

from dray.pipelines.building.announce import announce
from dray.pipelines.building.job import PackJob
from dray.pipelines.building.manifest import put_table
from dray.pipelines.building.pack import create, store_index
from dray.pipelines.building.survey import TASK_BYTES, stored_sizes
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
from dray.shards.errors import DamagedError, NotFoundError
from dray.shards.index import ShardIndex, digest_of
from dray.shards.layout import Location
from dray.shards.log import Commit, Intent, Operation
from dray.shards.manifest import Manifest, Shard, TableChunk, part_table
from dray.shards.messages import counted
from dray.shards.parsing.arrays import constant_layouts
from dray.shards.snapshot import Snapshot
from dray.shards.storage.store import Store
from dray.shards.tar import BLOCK, END, Member, header
from dray.shards.versions import no_dataset

PARTS_AT_ONCE = 4  # read by one task
READ_BYTES = 8 << 20
STREAM_BYTES = 4 * READ_BYTES  # of one open stream


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


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeTask:
    """One shard to make of several."""

    number: int
    parts: Group
    is_stored: bool | None  # whether a shard of that number existed when the task was made; None: unknown

    @property
    def num_bytes(self) -> int:
        """Of the shard."""
        return _merged_bytes(self.parts)

    @property
    def memory_bytes(self) -> int:
        """What it takes at most."""
        return self.num_bytes * 5 // 4 + PARTS_AT_ONCE * STREAM_BYTES + TASK_BYTES

    def again(self) -> "MergeTask":
        """For another attempt, after one that may have stored the shard."""
        return replace(self, is_stored=self.is_stored or None)

    def __str__(self) -> str:
        return f"shard {self.number} (merged of {len(self.parts)} from shard {self.parts[0].number} on)"


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
                num_bytes=_merged_bytes(group),
                digest=_merged_digest(group),
            )
            for group in groups
        )
    )


def _merged_bytes(group: Group) -> int:
    """Of the tar."""
    return sum(shard.num_bytes - len(END) for shard in group) + len(END)


def _merged_digest(group: Group) -> str:
    """Of the parts, their bytes included: a shard that is adopted by it was made of the same bytes."""
    if len(group) == 1:
        return group[0].digest
    return digest_of(json.dumps(["merged", *((shard.digest, shard.index_digest) for shard in group)]).encode())


def merge_shards(base: Snapshot, tasks: Sequence[MergeTask]) -> Iterator[Shard]:
    """Merge and store shards and their indexes, durably, or adopt those that are stored; yields each. Idempotent.

    Args:
        base: The version that the parts are of.
        tasks: What to merge.

    Raises:
        DamagedError: A part is not what its index says: names shard and key. Or something else lies under the number.
        StoreError: The store failed; nothing half-written is visible.
    """
    for task in tasks:
        yield _merge_shard(base, task)


def _merge_shard(base: Snapshot, task: MergeTask) -> Shard:
    store, name = base.store, base.layout.shard(task.number)
    indexes = [_index_of(base, shard) for shard in task.parts]
    index = merge_indexes(indexes)
    is_stored = task.is_stored if task.is_stored is not None else store.head(name) is not None
    is_ours = not is_stored and create(store, name, _merged_tar(base, task, indexes, index.shard_bytes))
    if not is_ours:  # an earlier or parallel attempt's, or the retry of our own request
        _check_is_ours(store, name, index)
    return Shard(
        number=task.number,
        num_bytes=index.shard_bytes,
        num_samples=len(index.keys),
        digest=_merged_digest(task.parts),
        index_digest=store_index(base.location, task.number, index),
        parts=index.parts(),
    )


def _index_of(base: Snapshot, shard: Shard) -> ShardIndex:
    try:
        return base.index(shard)
    except NotFoundError as exc:
        url = base.store.url_of(base.layout.index(shard.number))
        raise DamagedError(f"the index of shard {shard.number} is missing: build the dataset again", url=url) from exc


def merge_indexes(indexes: Sequence[ShardIndex]) -> ShardIndex:
    """The index of the tars' members one after another: the same that reading that tar gives.

    Suffixes stand in the order in which they first appear, as in each index. The numbers of sources, which belong to
    the build that wrote a shard, are not kept.
    """
    suffixes = tuple(dict.fromkeys(chain.from_iterable(index.suffixes for index in indexes)))
    shape = (sum(len(index.keys) for index in indexes), len(suffixes))
    offsets, sizes, hashes = (np.zeros(shape, np.uint64) for _ in range(3))
    layouts = {
        suffix: {index.arrays.get(suffix) for index in indexes if suffix in index.suffixes} for suffix in suffixes
    }
    row = start = 0
    for index in indexes:
        rows, columns = slice(row, row + len(index.keys)), [suffixes.index(suffix) for suffix in index.suffixes]
        offsets[rows, columns] = np.where(index.offsets > 0, index.offsets + np.uint64(start), 0)
        sizes[rows, columns] = index.sizes
        hashes[rows, columns] = index.xxh3_64
        row, start = rows.stop, start + index.shard_bytes - len(END)
    return ShardIndex(
        keys=list(chain.from_iterable(index.keys for index in indexes)),
        suffixes=suffixes,
        offsets=offsets,
        sizes=sizes,
        xxh3_64=hashes,
        shard_bytes=start + len(END),
        arrays=constant_layouts(layouts),
    )


def _merged_tar(base: Snapshot, task: MergeTask, indexes: Sequence[ShardIndex], num_bytes: int) -> bytearray:
    """The members of the parts, read some at a time and checked."""
    tar = bytearray(num_bytes)
    names = [base.layout.shard(shard.number) for shard in task.parts]
    starts = [0, *accumulate(index.shard_bytes - len(END) for index in indexes)]

    def copy(part: int) -> None:
        _read_checked(base.store, names[part], indexes[part], memoryview(tar)[starts[part] : starts[part + 1]])

    with ThreadPoolExecutor(PARTS_AT_ONCE) as threads:
        for _ in threads.map(copy, range(len(names))):
            pass
    return tar


def _check_is_ours(store: Store, name: str, index: ShardIndex) -> None:
    """Refuse what lies under a reserved name if it is not byte for byte the tar of this index.

    Raises:
        DamagedError: It is not; says what to do.
    """
    try:
        _read_checked(store, name, index, memoryview(bytearray(index.shard_bytes - len(END))))
    except DamagedError as exc:
        problem = f"{exc.problem}; did another program write there? Move {store.url_of(name)} away, then compact again"
        raise DamagedError(problem, **exc.place) from exc


def _read_checked(store: Store, name: str, index: ShardIndex, room: memoryview) -> None:
    """Read a tar, all but its end, and see that it is byte for byte what its index says: headers and padding too.

    Raises:
        DamagedError: It is not; names the shard, and the part and key.
    """
    url = store.url_of(name)
    with store.open_stream(name, index.shard_bytes) as stream:
        for start in range(0, len(room), READ_BYTES):
            data = stream.read(min(READ_BYTES, len(room) - start))
            room[start : start + len(data)] = data  # what is missing stays zero, and is found below
        end = stream.read()
    position = 0
    for member in _members(index):
        data_end = member.offset + member.size
        padded_end = data_end + -member.size % BLOCK
        if (
            room[position : member.offset] != header(member.name.encode(), member.size)
            or xxh3_64_intdigest(room[member.offset : data_end]) != member.xxh3_64
            or room[data_end:padded_end] != bytes(padded_end - data_end)
        ):
            raise DamagedError(
                f"not the bytes that were packed: run dray verify {store.url} to see how to repair it",
                url=url,
                offset=member.offset,
                **_key_and_suffix(member.name),
            )
        position = padded_end
    if position != len(room) or end != END:
        raise DamagedError("the end of the archive expected, found something else", url=url, offset=position)


def _key_and_suffix(name: str) -> dict[str, str]:
    """Returns key and suffix of a member: the key ends at the first dot of its file name."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return {"key": folder + slash + stem, "suffix": suffix}


def _members(index: ShardIndex) -> Iterator[Member]:
    """What a tar holds by its index, in the tar's order."""
    offsets, sizes, hashes = index.offsets.ravel(), index.sizes.ravel(), index.xxh3_64.ravel()
    cells = np.flatnonzero(offsets)
    cells = cells[np.argsort(offsets[cells], kind="stable")]
    rows, columns = np.divmod(cells, max(1, len(index.suffixes)))
    for row, column, offset, size, xxh in zip(
        rows.tolist(), columns.tolist(), offsets[cells].tolist(), sizes[cells].tolist(), hashes[cells].tolist(),
        strict=True,
    ):  # fmt: skip
        yield Member(f"{index.keys[row]}.{index.suffixes[column]}", offset, size, xxh)


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
