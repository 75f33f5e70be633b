"""An index of tars: list them, plan, announce, scan what is new or changed, commit.

Nothing is visible before the commit. The numbers of indexes are reserved by an intent, tied to each tar by a digest of
its name, size, and time or ETag, so that a run after a crash adopts the indexes that are stored. No tar is written.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dray.pipelines.building.announce import announce
from dray.pipelines.indexing.changes import TarPlan, keys_of, patterns_of, plan_tars, refusal
from dray.pipelines.indexing.listing import Listing, find_tars
from dray.pipelines.indexing.report import IndexReport, report_of
from dray.pipelines.indexing.scan import ScanJob, ScannedTar, ScanTask, scan_tar, scan_tars
from dray.pipelines.indexing.threads import Workers, run_each
from dray.pipelines.indexing.version import Contents, next_manifest
from dray.pipelines.planning.changes import Guard
from dray.pipelines.progress import say
from dray.pipelines.running.parcel import Witness
from dray.pipelines.running.ray_session import IN_PROCESS
from dray.pipelines.running.tasks import fit_workers
from dray.pipelines.versions.attempts import finish, stored_indexes, stored_sizes, until_committed
from dray.pipelines.versions.commit import commit_version
from dray.pipelines.versions.retention import Retention
from dray.shards.errors import CallError, DeniedError, InputError
from dray.shards.layout import Location, some
from dray.shards.log import Commit, Intent, Operation
from dray.shards.manifest import Kind
from dray.shards.messages import counted
from dray.shards.snapshot import Snapshot
from dray.shards.storage.client import StorageOptions
from dray.shards.storage.store import Store

MOST_NAMED = 20  # bad tars in an error


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSpec:
    """The arguments of an index.

    Attributes:
        source: Store of the tars.
        options: Its options.
        location: Where the dataset is.
        patterns: Names of the tars, with braces and globs; None: as in the last version, else all.
        keys: A `KeyScope`; None: as in the last version, else `UNIQUE`.
        skips_bad: Whether tars that cannot be indexed are left out.
        guard: The changes that it may make.
        retention: Which versions to keep; None: all.
        workers: Who scans.
    """

    source: Store
    options: StorageOptions | None
    location: Location
    patterns: Sequence[str] | None
    keys: str | None
    skips_bad: bool
    guard: Guard
    retention: Retention | None
    workers: Workers

    @property
    def base(self) -> str | None:
        """The base of the manifest: the URL of the tars if it is not the dataset's."""
        return None if self.source.url == self.location.url else self.source.url


def index(spec: IndexSpec) -> IndexReport:
    """Make the dataset's last version hold just these tars as they are now. Atomic; nothing of a tar is written.

    If the last version holds them already, nothing is written.

    Raises:
        CallError: The dataset is of another kind, or the guard refuses: nothing was written.
        InputError: Tars cannot be indexed, or two samples have one key: no version was made; the next run reuses the
            indexes that were stored.
    """
    started = time.monotonic()

    def attempt(head: Commit | None, *, is_first: bool) -> IndexReport | None:  # noqa: ARG001  each starts from head
        last = Snapshot.load(spec.location, head) if head else None
        _check_kind(spec, last)
        recipe = last.manifest.recipe if last else {}
        patterns = spec.patterns if spec.patterns is not None else patterns_of(recipe)
        keys = spec.keys or keys_of(recipe)
        listing = find_tars(spec.source, patterns, spec.location.prefix, spec.options)
        _check_uncompressed(spec, listing)
        indexes = stored_indexes(spec.location)
        plan = plan_tars(listing.tars, keys, last.manifest if last else None, indexes, tries_bad=not spec.skips_bad)
        base = last.tars.url if last else "", spec.source.url
        if why := refusal(plan, last.manifest if last else None, spec.guard, base):
            raise CallError(f"{spec.location.url}: refused, and nothing was written: {why}")
        if last is not None and base[0] == base[1] and not plan.has_work(last.manifest):
            return report_of(last, None, None, own=listing.own, seconds=time.monotonic() - started)
        with fit_workers(spec.workers.address if None in plan.numbers else IN_PROCESS):
            intent = _announce(spec, plan, last, indexes)
            scanned = _scan(spec, plan, intent, indexes, keys)
        _check_scanned(spec, scanned)
        contents = Contents(plan=plan, scanned=scanned, keys=keys, patterns=patterns)
        manifest = next_manifest(spec.location, spec.base, contents, intent, last)
        made = commit_version(spec.location, manifest, last, operation=Operation.INDEX, retention=spec.retention)
        if made is None:
            return None
        finish(made, last, spec.retention, progress=spec.workers.progress)
        return report_of(made, contents, last, own=listing.own, seconds=time.monotonic() - started)

    return until_committed(spec.location, attempt, progress=spec.workers.progress)


def _check_kind(spec: IndexSpec, last: Snapshot | None) -> None:
    """Checks that a dataset may be indexed again, and from here.

    Raises:
        CallError: It is of another kind; or its tars are elsewhere, and no URL of them was given.
    """
    if last is None:
        return
    if last.manifest.kind != Kind.INDEXED:
        raise CallError(
            f"{last.name} is a dataset of kind {last.manifest.kind!r}, whose tars dray wrote: they need no index; to "
            "index other tars of this folder, choose another prefix="
        )
    if last.manifest.base is not None and spec.base is None:
        raise CallError(
            f"{last.name} indexes tars that are in {last.tars.url}: give that URL, and into={spec.location.url!r}"
        )


def _check_uncompressed(spec: IndexSpec, listing: Listing) -> None:
    """Checks that no tar has the name of a compressed one.

    Raises:
        CallError: Some have.
    """
    names = [tar.name for tar in listing.packed]
    if not names:
        return
    raise CallError(
        f"{counted(len(names), 'tar is', 'tars are')} compressed in {spec.source.url} ({some(names, 3)}), so that "
        "samples cannot be read one by one: unpack them by unpack_to='URL', or leave them out by a pattern such as "
        "'**/*.tar'"
    )


def _announce(spec: IndexSpec, plan: TarPlan, last: Snapshot | None, indexes: set[int]) -> Intent:
    """Returns the intent of a plan: its numbers name indexes, so a stored index counts as a stored shard."""
    layout = spec.location.layout
    stored = {*stored_sizes(spec.location), *map(layout.shard, indexes)}
    try:
        return announce(spec.location, plan.slots, last, stored, progress=False)
    except DeniedError as exc:
        if spec.base is not None:
            raise
        raise DeniedError(f"{exc}; to keep the index in another folder, give into='URL'") from exc


def _scan(spec: IndexSpec, plan: TarPlan, intent: Intent, indexes: set[int], keys: str) -> list[ScannedTar]:
    """Scan the tars without an index; returns their records in the order of the plan."""
    tasks = [
        ScanTask(number=number, tar=tar, is_stored=number in indexes)
        for tar, number, kept in zip(plan.tars, intent.shards, plan.numbers, strict=True)
        if kept is None
    ]
    job = ScanJob(source=spec.source, location=spec.location, keys=keys)
    witness = Witness(spec.location.store, spec.location.layout.intent(intent.number))
    _say_what_is_scanned(spec, plan, tasks)
    title = f"indexing {spec.location.prefix}"
    ended = run_each(scan_tar, scan_tars, job, tasks, spec.workers, title=title, witness=witness)
    found = {one.number: one for one in ended}
    scanned = [found[task.number] for task in tasks]
    if stored := [spec.location.layout.index(one.number) for one in scanned if one.index_digest]:
        spec.location.store.sync(stored[:1])  # all indexes share their folder
    return scanned


def _say_what_is_scanned(spec: IndexSpec, plan: TarPlan, tasks: Sequence[ScanTask]) -> None:
    folders = {tar.name.rpartition("/")[0] for tar in plan.tars}
    where = f" in {len(folders):,} folders" if len(folders) > 1 else ""
    say(
        f"{counted(len(plan.tars), 'tar')}{where} of {spec.source.url}: {len(tasks):,} to scan, "
        f"{len(plan.tars) - len(tasks):,} unchanged",
        show=spec.workers.progress,
    )


def _check_scanned(spec: IndexSpec, scanned: Sequence[ScannedTar]) -> None:
    """Checks that every tar could be indexed, unless such tars are left out.

    Raises:
        InputError: Some could not.
    """
    bad = [one for one in scanned if one.problem]
    if not bad or spec.skips_bad:
        return
    listed = "; ".join(f"{one.tar.name}: {one.problem}" for one in bad[:MOST_NAMED])
    more = f"; and {len(bad) - MOST_NAMED:,} more" if len(bad) > MOST_NAMED else ""
    raise InputError(
        f"{spec.source.url}: no version was made, because {counted(len(bad), 'tar')} of {len(scanned):,} that were "
        f"scanned cannot be indexed: {listed}{more}. Repair them, or leave them out by on_error='skip'; the indexes of "
        "the others are kept for the next run"
    )
