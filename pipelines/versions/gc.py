"""Garbage collection of old versions and of builds that never ended: first committed, then deleted.

Only objects that dray wrote are deleted: shards and indexes under numbers that an intent reserved, manifests and their
tables, leftovers of unfinished writes on local disk, and records of jobs of more than a month ago. Commits, intents and
lists of holds are never deleted.

A tar of another program may have the name of a shard, and be the only copy of its data. So no tar is deleted for a
dataset that indexes tars of others, nor one that does not begin as dray's tars begin.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from dray.pipelines.versions.retention import Retention, retain
from dray.shards.errors import DamagedError, NotFoundError
from dray.shards.layout import Location, indexed_number, intent_of
from dray.shards.log import (
    Commit,
    Operation,
    append_commit,
    check_log,
    numbers_in,
    read_commit,
    read_head,
    read_intent,
)
from dray.shards.messages import counted
from dray.shards.snapshot import Snapshot
from dray.shards.storage.objects import ObjectInfo
from dray.shards.tar import BLOCK, begins_as_ours
from dray.shards.versions import read_holds, require_dataset

READS_AT_ONCE = 16
JOBS_KEPT_S = 30 * 86_400  # a job's record that is older than this and the grace is garbage


@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    """What a gc did, or would do if it is a dry run."""

    url: str
    prefix: str
    dropped: tuple[int, ...]  # versions
    kept: tuple[int, ...]  # versions
    deleted: tuple[str, ...]  # names of objects, relative to the URL
    num_bytes: int  # total size of the deleted objects
    is_dry_run: bool

    def __str__(self) -> str:
        would = "would drop" if self.is_dry_run else "dropped"
        dropped = ", ".join(map(str, self.dropped)) or "none"
        return (
            f"{self.url} {self.prefix}: {would} versions: {dropped}; kept: {', '.join(map(str, self.kept))}; "
            f"{counted(len(self.deleted), 'object')}, {self.num_bytes / 1e6:,.1f} MB"
            f"{'' if self.is_dry_run else ' deleted'}"
        )


def gc(location: Location, retention: Retention, *, dry_run: bool = False) -> GcReport:
    """Drop versions and intents by a rule, then delete what no kept version needs. Readers of kept ones notice nothing.

    Safe beside builds, other gcs and crashes: the next gc deletes what one that crashed left.

    Args:
        location: Where the dataset is.
        retention: The rule.
        dry_run: Only report what would be done; nothing is written.

    Raises:
        NotFoundError: There is no such dataset.
        DamagedError: The manifest of a kept version cannot be read: nothing is deleted.
    """
    while True:
        head = require_dataset(location, read_head(location))
        try:
            return _gc(location, head, retention, dry_run=dry_run)
        except (NotFoundError, DamagedError):  # another gc without a grace may have deleted what it read
            if read_head(location) == head:
                raise


def _gc(location: Location, before: Commit, retention: Retention, *, dry_run: bool) -> GcReport:
    last = before

    def next_of(head: Commit | None) -> Commit | None:
        nonlocal last
        last = head or before
        return _next(location, last, retention)

    made = _next(location, last, retention) if dry_run else append_commit(location, before, next_of)
    last = made or last
    doomed = (find_garbage if dry_run else sweep)(location, last, retention.grace_s)
    kept = kept_versions(location, last)
    return GcReport(
        url=location.url,
        prefix=location.prefix,
        dropped=tuple(n for n in _versions(location, before.kept_from, last) if n not in kept),
        kept=tuple(kept),
        deleted=tuple(info.name for info in doomed),
        num_bytes=sum(info.size for info in doomed),
        is_dry_run=dry_run,
    )


def _next(location: Location, head: Commit, retention: Retention) -> Commit | None:
    """Returns the commit of a gc; None if it would change nothing."""
    commit = retain(location, head.follow(Operation.GC), retention)
    if commit.kept_from != head.kept_from:
        return commit
    if commit.open_intent == head.open_intent:
        return None
    garbage = [find_garbage(location, record, retention.grace_s) for record in (head, commit)]
    return commit if garbage[0] != garbage[1] else None


def sweep(location: Location, head: Commit, grace_s: float) -> list[ObjectInfo]:
    """Delete what a commit released; returns it. See `find_garbage`."""
    doomed = find_garbage(location, head, grace_s)
    location.store.delete([info.name for info in doomed])
    return doomed


def kept_versions(location: Location, head: Commit) -> list[int]:
    """Returns the numbers of the versions that a commit keeps, ascending."""
    return sorted({*_versions(location, head.kept_from, head), *read_holds(location, head).values()})


def _versions(location: Location, first: int, head: Commit) -> list[int]:
    numbers = check_log(location, first, head.number)
    return [n for n in numbers if read_commit(location, n).makes_version] + [head.number] * head.makes_version


def find_garbage(location: Location, head: Commit, grace_s: float) -> list[ObjectInfo]:
    """Returns the objects that no version kept by a commit and no open intent needs, sorted by name.

    Args:
        location: Where the dataset is.
        head: The last commit.
        grace_s: Seconds after which a leftover of an unfinished write is garbage.
    """
    live_shards: set[int] = set()
    live_records: set[str] = set()
    has_own_tars = True
    for version in kept_versions(location, head):
        snapshot = Snapshot.load(location, read_commit(location, version) if version != head.number else head)
        live_shards |= {shard.number for shard in snapshot.shards}
        live_records |= set(snapshot.record_names())
        has_own_tars &= not snapshot.tars.is_foreign
    ranges = _Ranges(location)

    def released(numbered: Iterable[tuple[ObjectInfo, int | None]]) -> list[ObjectInfo]:
        return [
            info
            for info, number in numbered
            if number is not None and number < head.open_shard and number not in live_shards and ranges.reserved(number)
        ]

    store, layout = location.store, location.layout
    found = released((info, indexed_number(info.name)) for info in store.list_folder(layout.indexes))
    if has_own_tars:
        tars = released((info, layout.shard_number(info.name)) for info in store.list_folder())
        found += own_tars(location, tars)
    for info in store.list_folder(layout.manifests):
        intent = intent_of(info.name)
        if intent is not None and intent < head.open_intent and info.name not in live_records:
            found.append(info)
    latest = datetime.now(UTC) - timedelta(seconds=max(grace_s, JOBS_KEPT_S))
    jobs = store.list_folder(layout.jobs)
    found += [info for info in jobs if info.name.endswith(".json") and info.modified <= latest]
    return sorted([*found, *_unfinished(location, grace_s, has_own_tars)], key=lambda info: info.name)


def own_tars(location: Location, tars: Sequence[ObjectInfo]) -> list[ObjectInfo]:
    """Returns those of some tars in a dataset's folder that begin as dray's tars begin; reads a block of each."""

    def is_own(info: ObjectInfo) -> bool:
        if info.size < BLOCK:
            return False
        with suppress(NotFoundError, DamagedError):  # another gc deleted it
            return begins_as_ours(location.store.get_ranges(info.name, [0], [BLOCK])[0])
        return False

    with ThreadPoolExecutor(READS_AT_ONCE) as threads:
        return [info for info, is_ours in zip(tars, threads.map(is_own, tars), strict=True) if is_ours]


def _unfinished(location: Location, grace_s: float, has_own_tars: bool) -> Iterable[ObjectInfo]:
    """Yields leftovers of unfinished writes on local disk."""
    layout = location.layout
    folders = (layout.indexes, layout.manifests, layout.commits, layout.intents, layout.holds, layout.jobs)
    too_young = datetime.now(UTC) - timedelta(seconds=grace_s)
    for folder in ("", *folders) if has_own_tars else folders:
        for info in location.store.leftovers(folder):
            is_ours = folder or info.name.startswith(f"{location.prefix}-")
            if is_ours and info.modified <= too_young:
                yield info


class _Ranges:
    """The shard numbers that intents reserved: ascending ranges, so a binary search reads only a few."""

    def __init__(self, location: Location) -> None:
        self._intents = numbers_in(location.store, location.layout.intents)
        self._range_of = cache(lambda number: read_intent(location, number).numbers)

    def reserved(self, number: int) -> bool:
        """Whether an intent reserved a number."""
        place = bisect_right(self._intents, number, key=lambda intent: self._range_of(intent).start)
        return place > 0 and number in self._range_of(self._intents[place - 1])
