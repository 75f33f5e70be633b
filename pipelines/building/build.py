"""A build: fingerprint the inputs, plan, announce, pack what is missing, commit, drop old versions.

Nothing is visible before the commit, and the commit is one small conditional write. A build that dies anywhere leaves
whole shards under numbers that its intent reserved; the next build adopts those that it can use.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dray.pipelines.building.announce import announce
from dray.pipelines.building.job import TASK_BYTES, PackedShard, PackJob, PackTask
from dray.pipelines.building.manifest import next_manifest
from dray.pipelines.building.pack import pack_shards
from dray.pipelines.building.report import BuildReport, report_of
from dray.pipelines.building.survey import BuildSpec, Work, leave_out, survey_dataset
from dray.pipelines.events import report_bad
from dray.pipelines.inputs.reading import check_unread
from dray.pipelines.inputs.sources import BadInput
from dray.pipelines.inputs.tolerance import NAMED, Tolerance, named
from dray.pipelines.planning.changes import Changes
from dray.pipelines.planning.merges import num_small
from dray.pipelines.planning.recipe import Recipe
from dray.pipelines.progress import say, shard_progress
from dray.pipelines.running.parcel import Witness
from dray.pipelines.running.ray_session import IN_PROCESS
from dray.pipelines.running.tasks import fit_workers, run_tasks, runs_in_process
from dray.pipelines.versions.attempts import check_stored, finish, stored_sizes, until_committed
from dray.pipelines.versions.commit import commit_version
from dray.pipelines.versions.retention import Retention
from dray.shards.errors import CallError, ConflictError
from dray.shards.log import Commit, Intent
from dray.shards.snapshot import Snapshot

SMALL_SHARDS = 10  # number of small shards from which a build recommends compaction


def survey(spec: BuildSpec) -> Work:
    """Returns what a build is going to do; writes nothing. Arguments and errors are those of `survey_dataset`."""

    def attempt(head: Commit | None, *, is_first: bool) -> Work:  # noqa: ARG001  each starts from head
        return survey_dataset(spec, head)

    return until_committed(spec.job.location, attempt, progress=spec.progress)


def build(spec: BuildSpec, *, retention: Retention | None, surveyed: Work | None = None) -> BuildReport:
    """Make the dataset's last version hold just these samples.

    Atomic: readers see the old version or the new one. If the last version holds them already, nothing is written.
    A first build keeps the order of the names, a later one that of the shards that stay. If another build commits
    meanwhile, this one plans again from there, and reuses the shards that it has packed.

    Args:
        spec: The arguments of the build.
        retention: Which versions to keep; None: all.
        surveyed: Result of `survey`, used unless the dataset has changed since.

    Raises:
        CallError: It would change more than the guard allows: nothing was written; or it would because samples could
            not be packed: no version was made.
        InputError: Samples cannot be packed; the next build reuses the shards that were stored.
        ConflictError: Another build committed a version by another recipe or from another directory meanwhile.
    """
    started = time.monotonic() - (surveyed.seconds if surveyed else 0)
    job, recipe, tolerance = spec.job, spec.recipe, spec.tolerance
    address, progress = spec.address, spec.progress
    before: Snapshot | None = None  # base of the previous attempt

    def attempt(head: Commit | None, *, is_first: bool) -> BuildReport | None:
        nonlocal before
        if surveyed is not None and is_first and surveyed.head == head:
            work = replace(surveyed, stored=stored_sizes(job.location))
        else:
            work = survey_dataset(spec, head)
        if not is_first:
            _check_rebase(job, recipe, before, work.snapshot)
        if work.refusal:
            raise CallError(work.refusal)
        base = before = work.snapshot
        if base is not None and not work.has_work:
            return _report(spec, base, None, {}, started)
        with fit_workers(address if _num_to_pack(work) else IN_PROCESS):
            intent = announce(job.location, work.planned.slots, base, work.stored, progress=progress)
            packed = _pack(job, work, intent, tolerance, address=address, progress=progress)
        bad = leave_out([entry for shard in packed.values() for entry in shard.bad], work, tolerance)
        manifest, changes = next_manifest(job, recipe, work, intent, packed, bad)
        if spec.guard and (refusal := spec.guard.refuses_removal(changes)):
            raise CallError(f"{job.location.url}: no version was made: {refusal}")
        made = commit_version(job.location, manifest, base, retention=retention)
        if made is None:
            return None
        if unpacked := [left.bad for left in bad if not left.bad.is_empty]:
            say(f"{tolerance.fate}: {named(unpacked)}", show=progress)
        finish(made, base, retention, progress=progress)
        _say_if_small(made, show=progress)
        return _report(spec, made, changes, packed, started)

    return until_committed(job.location, attempt, progress=progress)


def _report(
    spec: BuildSpec, version: Snapshot, changes: Changes | None, packed: Mapping[int, PackedShard], started: float
) -> BuildReport:
    return report_of(
        version,
        changes,
        num_stored=sum(not shard.adopted and shard.num_samples > 0 for shard in packed.values()),
        stayed=sum((Counter(shard.stayed) for shard in packed.values()), Counter[str]()),
        unscanned=spec.scan.unscanned if spec.scan else None,
        seconds=time.monotonic() - started,
    )


def _say_if_small(made: Snapshot, *, show: bool) -> None:
    if (small := num_small(made.shards, made.manifest.recipe)) >= SMALL_SHARDS:
        say(f"{small:,} small shards: dray compact {made.store.url} merges them", show=show)


def _check_rebase(job: PackJob, recipe: Recipe, base: Snapshot | None, last: Snapshot | None) -> None:
    """Check that no other writer has changed the recipe or the input directory since the previous attempt.

    Raises:
        ConflictError: The last version has another recipe or input directory than this build.
    """
    if last is None or (base is not None and base.version == last.version):
        return
    theirs = _kind(last)
    if theirs != _kind_of(recipe.to_json(), job.inputs.url) and (base is None or theirs != _kind(base)):
        raise ConflictError(
            f"{job.location.url}: while this build ran, another committed version {last.version} of "
            f"{job.location.prefix!r} by another recipe or from another directory ({last.manifest.source_url}); "
            f"nothing was lost: decide which one is wanted, then run it again "
            f"(dray ls {job.location.url} shows the other's)"
        )


def _kind(snapshot: Snapshot) -> tuple[dict[str, Any], str]:
    return _kind_of(snapshot.manifest.recipe, snapshot.manifest.source_url)


def _kind_of(recipe: Mapping[str, Any], source_url: str) -> tuple[dict[str, Any], str]:
    """Returns what two builds must agree on; how the samples were found is not part of it."""
    return {name: value for name, value in recipe.items() if name != "recursive"}, source_url


def _num_to_pack(work: Work) -> int:
    return sum(shard.fate != "reused" for shard in work.planned.shards)


def _tasks(job: PackJob, work: Work, intent: Intent) -> list[PackTask]:
    """Returns a task for each shard to pack."""
    return [
        PackTask(
            number=number,
            sources=work.sources.take(shard.rows),
            memory_bytes=shard.num_bytes * 5 // 4 + TASK_BYTES,
            is_stored=job.location.layout.shard(number) in work.stored,
        )
        for shard, number in zip(work.planned.shards, intent.shards, strict=True)
        if shard.fate != "reused"
    ]


def _pack(
    job: PackJob, work: Work, intent: Intent, tolerance: Tolerance, *, address: str | None, progress: bool
) -> dict[int, PackedShard]:
    """Run the tasks, then check that every shard is stored where readers look for it.

    Raises:
        InputError: More samples are bad than are accepted. All other shards are stored, or 20 samples were bad.
    """
    packed: dict[int, PackedShard] = {}
    bad: list[BadInput] = [left.bad for left in work.left_out if not left.bad.is_empty]
    report_bad(bad)
    most = tolerance.most(work.num_inputs) or NAMED
    tasks = _tasks(job, work, intent)
    with shard_progress(f"packing {job.location.prefix}", num_shards=len(tasks), show=progress) as advance:
        for shard in _packed_shards(job, tasks, intent, address, progress=progress):
            packed[shard.number] = shard.detached()
            advance(shard.num_bytes)
            found = [entry for entry in shard.bad if not entry.is_empty]
            if found and not bad and not tolerance.leaves_out:
                say("a sample cannot be packed: an error names it once the other shards are stored", show=progress)
            bad += found
            report_bad(found)
            if len(bad) > most:
                tolerance.check(bad, work.num_inputs, job.inputs.url)
    tolerance.check(bad, work.num_inputs, job.inputs.url)
    check_stored(job.location, {shard.number: shard.num_bytes for shard in packed.values() if shard.num_bytes})
    return packed


def _packed_shards(
    job: PackJob, tasks: Sequence[PackTask], intent: Intent, address: str | None, *, progress: bool
) -> Iterator[PackedShard]:
    """Run the tasks. If a worker could not read a sample, its task runs again once this process failed to read it too.

    Raises:
        ClusterError: This process can read it; names the worker's node.
    """
    job = replace(job, is_remote=not runs_in_process(address))
    witness = Witness(job.location.store, job.location.layout.intent(intent.number))
    waiting = {task.number: task for task in tasks}
    while waiting:
        tasks, waiting = list(waiting.values()), {}
        by_number = {task.number: task for task in tasks}
        for shard in run_tasks(pack_shards, job, tasks, address, witness=witness, progress=progress):
            if not shard.unread:
                yield shard
                continue
            task = by_number[shard.number]
            check_unread(job.inputs, task.sources, shard.unread, shard.node)
            waiting[shard.number] = replace(task, unreadable=(*task.unreadable, *shard.unread), is_stored=shard.adopted)
