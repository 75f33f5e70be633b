"""The build: fingerprint the inputs, plan, announce, pack what is missing, commit, give up old versions.

Nothing is visible before the commit, and the commit is one small conditional write. A build that dies anywhere leaves
whole shards under numbers that its intent reserved; the next build adopts those that it can use.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dray.pipelines.announce import announce
from dray.pipelines.commit import commit_version
from dray.pipelines.gc import sweep
from dray.pipelines.manifest import next_manifest
from dray.pipelines.pack import PackedShard, PackJob, PackTask
from dray.pipelines.plan import Recipe
from dray.pipelines.progress import say, shard_progress
from dray.pipelines.retention import Retention
from dray.pipelines.run import pack_tasks
from dray.pipelines.sources import BadInput
from dray.pipelines.tolerance import NAMED, Tolerance
from dray.pipelines.work import TASK_BYTES, Work, leave_out, stored_sizes, work_out
from dray.shards.errors import ConflictError, DamagedError, StoreError
from dray.shards.log import Intent
from dray.shards.snapshot import Manifest, Snapshot

ATTEMPTS = 8  # to commit, where others commit meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What a build did."""

    url: str
    prefix: str
    version: int  # the one that is now the last
    num_shards: int
    num_samples: int
    num_bytes: int  # of all tars of the version
    num_reused: int  # shards that lay there already, whole
    num_skipped: int  # inputs that the version leaves out
    num_quarantined: int
    left_out_url: str | None  # the table of those, Parquet
    seconds: float

    def __str__(self) -> str:
        packed = self.num_shards - self.num_reused
        done = f"{packed:,} packed, {self.num_reused:,} reused" if packed else "nothing to do"
        left_out = ""
        if self.left_out_url:
            left_out = f"; {self.num_skipped:,} skipped, {self.num_quarantined:,} quarantined: {self.left_out_url}"
        return (
            f"{self.url} {self.prefix} version {self.version}: {self.num_samples:,} samples in {self.num_shards:,} "
            f"shards, {self.num_bytes / 1e6:,.1f} MB; {done}; {self.seconds:.1f} s{left_out}"
        )


def build(
    job: PackJob,
    recipe: Recipe,
    names: Sequence[str],
    tolerance: Tolerance,
    *,
    retention: Retention | None,
    checksum: bool = False,
    address: str | None = None,
    progress: bool = True,
) -> BuildReport:
    """Make the dataset's last version hold just these samples.

    Atomic: readers see the old version or the new one. Where the last version is that already, nothing is written.
    A first build keeps the order of the names, a later one that of the shards that stay. Where another build commits
    meanwhile, this one plans again from there; what it has packed serves.

    Args:
        job: The stores, the names on them and the user's function.
        recipe: What decides the bytes.
        names: The samples.
        tolerance: What to do about inputs that cannot be packed.
        retention: Which versions stay; None: all.
        checksum: Compare inputs by their content: all of them are read.
        address: See `run_tasks`.
        progress: Show a bar or lines on standard error.

    Raises:
        InputError: Samples cannot be packed; the shards that were stored serve the next build.
        ConflictError: Another build made something of another kind of the dataset meanwhile.
    """
    started = time.monotonic()
    base: Snapshot | None = None
    for attempt in range(ATTEMPTS):
        work = work_out(job, recipe, names, tolerance, checksum=checksum, address=address, progress=progress)
        if attempt:
            _check_rebase(job, recipe, base, work.snapshot)
        base = work.snapshot
        if base is not None and not work.has_work:
            return _report(base, len(base.shards), started)
        intent = announce(job, work.planned, base, work.stored, progress=progress)
        packed = _pack(job, work, intent, tolerance, address=address, progress=progress)
        bad = leave_out([entry for shard in packed.values() for entry in shard.bad], work, tolerance)
        manifest = next_manifest(job, recipe, work, intent, packed, bad)
        _say_what_is_superseded(job, base, manifest, show=progress)
        made = commit_version(job.output, job.layout, manifest, base, retention=retention)
        if made is not None:
            _sweep(job, made, base, retention, progress=progress)
            num_packed = sum(not shard.adopted and shard.num_samples > 0 for shard in packed.values())
            return _report(made, len(made.shards) - num_packed, started)
        say("another writer committed meanwhile: planning again from there", show=progress)
    raise ConflictError(
        f"{job.output.url}: other writers of {job.layout.prefix!r} were faster {ATTEMPTS} times in a row; "
        "nothing was lost: run this build again"
    )


def _check_rebase(job: PackJob, recipe: Recipe, base: Snapshot | None, last: Snapshot | None) -> None:
    """Refuse to undo what somebody else has just decided: another recipe, or other inputs' directory.

    Raises:
        ConflictError: The last version is of another kind than this build's.
    """
    if last is None or (base is not None and base.version == last.version):
        return
    theirs = _kind(last)
    if theirs != (recipe.to_json(), job.inputs.url) and (base is None or theirs != _kind(base)):
        raise ConflictError(
            f"{job.output.url}: while this build ran, another committed version {last.version} of "
            f"{job.layout.prefix!r} by another recipe or from another directory ({last.manifest.source_url}); nothing "
            f"was lost: agree which one is wanted, then run it again (dray ls {job.output.url} shows the other's)"
        )


def _kind(snapshot: Snapshot) -> tuple[dict[str, Any], str]:
    return dict(snapshot.manifest.recipe), snapshot.manifest.source_url


def _report(snapshot: Snapshot, num_reused: int, started: float) -> BuildReport:
    return BuildReport(
        url=snapshot.store.url,
        prefix=snapshot.layout.prefix,
        version=snapshot.version,
        num_shards=len(snapshot.shards),
        num_samples=snapshot.num_samples,
        num_bytes=snapshot.num_bytes,
        num_reused=num_reused,
        num_skipped=snapshot.manifest.accounting.skipped,
        num_quarantined=snapshot.manifest.accounting.quarantined,
        left_out_url=snapshot.left_out_url(),
        seconds=time.monotonic() - started,
    )


def _tasks(job: PackJob, work: Work, intent: Intent) -> list[PackTask]:
    """One for each shard that does not stay."""
    return [
        PackTask(
            number=number,
            sources=work.sources.take(shard.rows),
            memory_bytes=shard.num_bytes * 5 // 4 + TASK_BYTES,
            is_stored=job.layout.shard(number) in work.stored,
        )
        for shard, number in zip(work.planned.shards, intent.shards, strict=True)
        if shard.fate != "reused"
    ]


def _pack(
    job: PackJob, work: Work, intent: Intent, tolerance: Tolerance, *, address: str | None, progress: bool
) -> dict[int, PackedShard]:
    """Run the tasks; then see that every shard lies where readers will look for it.

    Raises:
        InputError: More samples are bad than are borne. By then all other shards are stored, or 20 samples were bad.
    """
    packed: dict[int, PackedShard] = {}
    bad: list[BadInput] = [left.bad for left in work.left_out]
    most = tolerance.most(work.num_inputs) or NAMED
    tasks = _tasks(job, work, intent)
    with shard_progress(f"packing {job.layout.prefix}", num_shards=len(tasks), show=progress) as advance:
        for shard in pack_tasks(job, tasks, address, progress=progress):
            packed[shard.number] = shard
            advance(shard.num_bytes)
            for entry in shard.bad[: max(0, NAMED - len(bad))]:
                say(f"sample {entry.name!r} cannot be packed: {entry.error}", show=progress)
            bad += shard.bad
            if len(bad) > most:
                tolerance.check(bad, work.num_inputs, job.inputs.url)
    tolerance.check(bad, work.num_inputs, job.inputs.url)
    _check_stored(job, [shard for shard in packed.values() if shard.num_samples])
    return packed


def _check_stored(job: PackJob, packed: Sequence[PackedShard]) -> None:
    """Hold what lies there against the tasks' records, and make it durable.

    Raises:
        StoreError: A shard is not there: its task wrote to another place.
    """
    stored = stored_sizes(job) if packed else {}
    for shard in packed:
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
    for shard in packed[:1]:  # all shards share their folders
        job.output.sync([job.layout.shard(shard.number), job.layout.index(shard.number)])


def _say_what_is_superseded(job: PackJob, last: Snapshot | None, manifest: Manifest, *, show: bool) -> None:
    numbers = {shard.number for shard in manifest.shards}
    old = [shard for shard in (last.shards if last else ()) if shard.number not in numbers]
    if old:
        say(
            f"{len(old)} shards of version {last.version if last else 0} stay for its readers; programs that glob "
            f"{job.layout.prefix}-*.tar see them beside the new ones (dray's readers, and `dray ls --urls`, do not)",
            show=show,
        )


def _sweep(job: PackJob, made: Snapshot, base: Snapshot | None, retention: Retention | None, *, progress: bool) -> None:
    """Delete what the new commit gave up. The version stands: a failure here is only said."""
    if retention is None or base is None:
        return
    before, after = base.commit, made.commit
    if (before.kept_from, before.open_intent) == (after.kept_from, after.open_intent):
        return
    try:
        deleted = sweep(job.output, job.layout, after, retention.grace_s)
    except (StoreError, DamagedError) as exc:
        say(f"version {made.version} stands, but old objects were not deleted: {exc}; dray gc tries again")
        return
    if deleted:
        what = f"versions before {after.kept_from} and builds that never ended"
        say(f"{len(deleted):,} objects of {what} were deleted", show=progress)
