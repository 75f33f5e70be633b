"""The build: fingerprint the inputs, plan, announce, pack what is missing, commit.

Nothing is visible before the commit, and the commit is one small conditional write. A build that dies anywhere leaves
whole shards under numbers that its intent reserved; the next build adopts those that it can use.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dray.pipelines.announce import announce
from dray.pipelines.pack import PackedShard, PackJob, PackTask, hash_sources
from dray.pipelines.plan import Last, Plan, Recipe, find_in, fingerprints_in, plan
from dray.pipelines.progress import say, shard_progress
from dray.pipelines.run import run_tasks
from dray.pipelines.sources import Sources, find_sources
from dray.pipelines.tables import source_chunks
from dray.shards.errors import ConflictError, StoreError
from dray.shards.index import digest_of
from dray.shards.log import Commit, Intent, create_commit, latest_version, new_write_id, now
from dray.shards.snapshot import Accounting, Manifest, Shard, Snapshot, SourceChunk, put_content

TASK_OVERHEAD_BYTES = 64 << 20  # of a packing task, beside the shard in its memory


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build did."""

    url: str
    prefix: str
    version: int  # the snapshot that is now the last
    num_shards: int
    num_samples: int
    num_bytes: int  # of all tars of the snapshot
    num_reused: int  # shards that lay there already, whole
    seconds: float

    def __str__(self) -> str:
        packed = self.num_shards - self.num_reused
        done = f"{packed:,} packed, {self.num_reused:,} reused" if packed else "nothing to do"
        return (
            f"{self.url} {self.prefix} version {self.version}: {self.num_samples:,} samples in {self.num_shards:,} "
            f"shards, {self.num_bytes / 1e6:,.1f} MB; {done}; {self.seconds:.1f} s"
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Work:
    """What a build has found out before it writes anything."""

    sources: Sources
    snapshot: Snapshot | None  # the last one
    last: Last | None  # the same as the plan saw it
    stored: dict[str, int]  # name -> bytes of what lies in the dataset's directory
    planned: Plan


def work_out(job: PackJob, recipe: Recipe, names: Sequence[str], *, progress: bool) -> Work:
    """Fingerprint the inputs, look at what is there, and plan; nothing is written.

    Raises:
        CallError: The names cannot become keys, or a shard would pass 4 GiB.
        MissingInputError: Input files are missing.
    """
    sources = find_sources(job.inputs, names, recipe.suffixes)
    version = latest_version(job.output, job.layout)
    snapshot = Snapshot.open(job.output, job.layout, version) if version else None
    stored = _stored_sizes(job)
    last = _last(snapshot, stored) if snapshot else None
    planned = plan(sources, recipe, last, _same_contents(job, sources, recipe, last, progress=progress))
    return Work(sources=sources, snapshot=snapshot, last=last, stored=stored, planned=planned)


def build(
    job: PackJob, recipe: Recipe, names: Sequence[str], *, address: str | None = None, progress: bool = True
) -> BuildReport:
    """Make the dataset's last snapshot hold just these samples.

    Atomic: readers see the old version or the new one. Where the last version is that already, nothing is written.
    A first build keeps the order of the names, a later one that of the shards that stay.

    Args:
        job: The stores, the names on them and the user's function.
        recipe: What decides the bytes.
        names: The samples.
        address: See `run_tasks`.
        progress: Show a bar or lines on standard error.

    Raises:
        InputError: A sample cannot be packed; the shards that were stored serve the next build.
        ConflictError: Another builder committed something else meanwhile.
    """
    started = time.monotonic()
    work = work_out(job, recipe, names, progress=progress)
    snapshot, num_reused = work.snapshot, len(work.planned.shards)
    if snapshot is None or work.planned.has_work:
        intent = announce(job, work.planned, snapshot, work.stored, progress=progress)
        packed = _pack(job, _tasks(job, work, intent), address=address, progress=progress)
        num_reused -= sum(not shard.adopted for shard in packed.values())
        manifest = _manifest(job, recipe, work, intent, packed)
        _say_what_is_superseded(job, snapshot, manifest, show=progress)
        snapshot = _commit(job, manifest, snapshot)
    return BuildReport(
        url=job.output.url,
        prefix=job.layout.prefix,
        version=snapshot.version,
        num_shards=len(snapshot.shards),
        num_samples=snapshot.num_samples,
        num_bytes=snapshot.num_bytes,
        num_reused=num_reused,
        seconds=time.monotonic() - started,
    )


def _stored_sizes(job: PackJob) -> dict[str, int]:
    """Name -> bytes of what lies in the dataset's directory."""
    return {info.name: info.size for info in job.output.list_folder()}


def _last(snapshot: Snapshot, stored: dict[str, int]) -> Last:
    """The last snapshot as a plan sees it; a tar that somebody deleted by hand is to be packed anew."""
    whole = {
        shard.number for shard in snapshot.shards if stored.get(snapshot.layout.shard(shard.number)) == shard.num_bytes
    }
    return Last(
        recipe=snapshot.manifest.recipe,
        source_url=snapshot.manifest.source_url,
        shards=snapshot.shards,
        whole=frozenset(whole),
        table=snapshot.sources(),
    )


def _same_contents(
    job: PackJob, sources: Sources, recipe: Recipe, last: Last | None, *, progress: bool
) -> NDArray[np.bool_] | None:
    """(n,) samples whose files were touched, but hold what they held: files of the same size are read to find out."""
    if last is None or list(recipe.suffixes) != last.recipe["suffixes"] or sources.url != last.source_url:
        return None
    rows = find_in(last.table, sources)
    candidates = np.flatnonzero(rows >= 0)
    old = last.table.take(pa.array(rows[candidates]))
    has_same_size = (fingerprints_in(old, recipe.suffixes, "size") == sources.sizes[candidates]).all(axis=1)
    has_same_stamp = (fingerprints_in(old, recipe.suffixes, "stamp") == sources.stamps[candidates]).all(axis=1)
    touched = np.flatnonzero(has_same_size & ~has_same_stamp)
    suspects = sources.take(candidates[touched])
    if len(suspects):
        megabytes = int(suspects.sizes.sum()) / 1e6
        say(f"{len(suspects):,} samples were touched: reading {megabytes:,.0f} MB to see what changed", show=progress)
    found = hash_sources(job, suspects)
    is_same = np.zeros(len(sources), bool)
    is_same[candidates[touched]] = (found == fingerprints_in(old, recipe.suffixes, "xxh3_64")[touched]).all(axis=1)
    return is_same


def _tasks(job: PackJob, work: Work, intent: Intent) -> list[PackTask]:
    """One for each shard that does not stay."""
    return [
        PackTask(
            number=number,
            sources=work.sources.take(shard.rows),
            memory_bytes=shard.num_bytes * 5 // 4 + TASK_OVERHEAD_BYTES,
            is_stored=job.layout.shard(number) in work.stored,
        )
        for shard, number in zip(work.planned.shards, intent.shards, strict=True)
        if shard.fate != "reused"
    ]


def _pack(job: PackJob, tasks: Sequence[PackTask], *, address: str | None, progress: bool) -> dict[int, PackedShard]:
    """Run the tasks; then see that every shard lies where readers will look for it."""
    packed: dict[int, PackedShard] = {}
    title = f"packing {job.layout.prefix}"
    with shard_progress(title, num_shards=len(tasks), show=progress) as advance:
        for shard in run_tasks(job, tasks, address, progress=progress):
            packed[shard.number] = shard
            advance(shard.num_bytes)
    stored = _stored_sizes(job) if packed else {}
    for shard in packed.values():
        name = job.layout.shard(shard.number)
        if stored.get(name) == shard.num_bytes:
            continue
        found = job.output.head(name)  # a network mount may list what it remembers
        if found is None or found.size != shard.num_bytes:
            raise StoreError(
                f"{job.output.url_of(name)} was packed with {shard.num_bytes} bytes, but here is "
                f"{f'one of {found.size}' if found else 'nothing'}: do the workers write to another place? "
                "A local directory must be on a disk that all nodes share"
            )
    for number in list(packed)[:1]:  # all shards share their folders
        job.output.sync([job.layout.shard(number), job.layout.index(number)])
    return packed


def _manifest(job: PackJob, recipe: Recipe, work: Work, intent: Intent, packed: dict[int, PackedShard]) -> Manifest:
    """The next snapshot's content; its tables of sources are stored."""
    sources, planned = work.sources, work.planned
    kept = {shard.number: shard for shard in (work.last.shards if work.last else ())}
    shards = [
        Shard(
            number=number,
            num_bytes=packed[number].num_bytes,
            num_samples=packed[number].num_samples,
            digest=shard.digest,
            index_digest=packed[number].index_digest,
        )
        if number in packed
        else kept[number]
        for shard, number in zip(planned.shards, intent.shards, strict=True)
    ]
    numbers, rows = np.zeros(len(sources), np.int64), np.zeros(len(sources), np.int64)
    for shard, number in zip(planned.shards, intent.shards, strict=True):
        numbers[shard.rows], rows[shard.rows] = number, np.arange(len(shard.rows))
    hashes = _source_hashes(work, intent, packed)
    chunks = []
    for num_rows, body in source_chunks(sources, numbers, rows, hashes):
        chunks.append(SourceChunk(digest=digest_of(body), num_rows=num_rows))
        put_content(job.output, job.layout.sources(chunks[-1].digest), body)
    return Manifest(
        prefix=job.layout.prefix,
        source_url=job.inputs.url,
        recipe=recipe.to_json(),
        intent=intent.number,
        accounting=Accounting(inputs=len(sources), packed=sum(shard.num_samples for shard in shards)),
        shards=tuple(shards),
        sources=tuple(chunks),
    )


def _source_hashes(work: Work, intent: Intent, packed: dict[int, PackedShard]) -> NDArray[np.uint64]:
    """(n, s) xxh3_64 of each input file: as packed now, or as the last snapshot noted for the shards it keeps."""
    sources = work.sources
    hashes = np.zeros(sources.sizes.shape, np.uint64)
    kept = [shard.rows for shard in work.planned.shards if shard.fate == "reused"]
    if work.last is not None and kept:
        rows = np.concatenate(kept)
        old = work.last.table.take(pa.array(find_in(work.last.table, sources.take(rows))))
        hashes[rows] = fingerprints_in(old, sources.suffixes, "xxh3_64")
    for shard, number in zip(work.planned.shards, intent.shards, strict=True):
        if number in packed:
            hashes[shard.rows] = packed[number].source_hashes
    return hashes


def _say_what_is_superseded(job: PackJob, last: Snapshot | None, manifest: Manifest, *, show: bool) -> None:
    numbers = {shard.number for shard in manifest.shards}
    old = [shard for shard in (last.shards if last else ()) if shard.number not in numbers]
    if old:
        say(
            f"{len(old)} shards of version {last.version if last else 0} stay for its readers; programs that glob "
            f"{job.layout.prefix}-*.tar see them beside the new ones (dray's readers, and `dray ls --urls`, do not)",
            show=show,
        )


def _commit(job: PackJob, manifest: Manifest, last: Snapshot | None) -> Snapshot:
    """Make the manifest the next version. Atomic: one conditional write, read back after any error."""
    body = manifest.to_bytes()
    digest = digest_of(body)
    put_content(job.output, job.layout.manifest(digest), body)
    version = last.version + 1 if last else 1
    commit = Commit(version=version, manifest=digest, write_id=new_write_id(), created=now())
    standing = create_commit(job.output, job.layout, commit)
    if standing.manifest != digest:
        raise ConflictError(
            f"{job.output.url}: another build of {job.layout.prefix!r} committed version {version} while this one ran; "
            "nothing was lost: run this build again"
        )
    return Snapshot(job.output, job.layout, standing, manifest)
