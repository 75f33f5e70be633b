"""Giving up old versions and what builds that never ended left; first committed, then deleted.

Deleted are only objects that dray wrote: shards and indexes under numbers that an intent reserved, manifests and their
tables, and on local disk what unfinished writes left. Commits, intents and lists of holds are never deleted.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from dray.pipelines.versions.retention import Retention, retain
from dray.shards.errors import DamagedError, NotFoundError
from dray.shards.layout import Layout, indexed_number, intent_of
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
from dray.shards.storage.store import ObjectInfo, Store
from dray.shards.versions import no_dataset, read_holds


@dataclass(frozen=True, slots=True, kw_only=True)
class GcReport:
    """What a gc did, or would do."""

    url: str
    prefix: str
    dropped: tuple[int, ...]  # versions
    kept: tuple[int, ...]  # versions
    deleted: tuple[str, ...]  # names of objects, relative to the URL
    num_bytes: int  # of them
    is_dry_run: bool

    def __str__(self) -> str:
        would = "would drop" if self.is_dry_run else "dropped"
        dropped = ", ".join(map(str, self.dropped)) or "none"
        return (
            f"{self.url} {self.prefix}: {would} versions: {dropped}; kept: {', '.join(map(str, self.kept))}; "
            f"{counted(len(self.deleted), 'object')}, {self.num_bytes / 1e6:,.1f} MB"
            f"{'' if self.is_dry_run else ' deleted'}"
        )


def gc(store: Store, layout: Layout, retention: Retention, *, dry_run: bool = False) -> GcReport:
    """Drop versions and intents by a rule, then delete what no kept version names. Readers of kept ones see nothing.

    Safe beside builds, other gcs and crashes: what one that died has not deleted, the next deletes.

    Args:
        store: Where the dataset lies.
        layout: Its names.
        retention: The rule.
        dry_run: Only say what would be done; nothing is written.

    Raises:
        NotFoundError: There is no such dataset.
        DamagedError: The manifest of a version that is kept cannot be read: nothing is deleted then.
    """
    while True:
        head = read_head(store, layout)
        if head is None:
            raise no_dataset(store, layout)
        try:
            return _gc(store, layout, head, retention, dry_run=dry_run)
        except (NotFoundError, DamagedError):  # another one without a grace may have deleted what this one was reading
            if read_head(store, layout) == head:
                raise


def _gc(store: Store, layout: Layout, before: Commit, retention: Retention, *, dry_run: bool) -> GcReport:
    last = before

    def next_of(head: Commit | None) -> Commit | None:
        nonlocal last
        last = head or before
        return _next(store, layout, last, retention)

    if dry_run:
        last = _next(store, layout, last, retention) or last
    else:
        last = append_commit(store, layout, before, next_of) or last
    doomed = (find_garbage if dry_run else sweep)(store, layout, last, retention.grace_s)
    kept = kept_versions(store, layout, last)
    return GcReport(
        url=store.url,
        prefix=layout.prefix,
        dropped=tuple(n for n in _versions(store, layout, before.kept_from, last) if n not in kept),
        kept=tuple(kept),
        deleted=tuple(info.name for info in doomed),
        num_bytes=sum(info.size for info in doomed),
        is_dry_run=dry_run,
    )


def _next(store: Store, layout: Layout, head: Commit, retention: Retention) -> Commit | None:
    """The commit of a gc; None where it would change nothing."""
    commit = retain(store, layout, head.follow(Operation.GC), retention)
    if commit.kept_from != head.kept_from:
        return commit
    if commit.open_intent == head.open_intent:
        return None
    garbage = [find_garbage(store, layout, record, retention.grace_s) for record in (head, commit)]
    return commit if garbage[0] != garbage[1] else None


def sweep(store: Store, layout: Layout, head: Commit, grace_s: float) -> list[ObjectInfo]:
    """Delete what a commit gave up; see `find_garbage`."""
    doomed = find_garbage(store, layout, head, grace_s)
    store.delete([info.name for info in doomed])
    return doomed


def kept_versions(store: Store, layout: Layout, head: Commit) -> list[int]:
    """The numbers of the versions that a commit keeps, ascending."""
    return sorted({*_versions(store, layout, head.kept_from, head), *read_holds(store, layout, head).values()})


def _versions(store: Store, layout: Layout, first: int, head: Commit) -> list[int]:
    numbers = check_log(store, layout, first, head.number)
    return [n for n in numbers if read_commit(store, layout, n).makes_version] + [head.number] * head.makes_version


def find_garbage(store: Store, layout: Layout, head: Commit, grace_s: float) -> list[ObjectInfo]:
    """The objects that no version kept by a commit names, and that no open intent may still need; by name.

    Args:
        store: Where the dataset lies.
        layout: Its names.
        head: The last commit.
        grace_s: What an unfinished write left is garbage when it is so old, in seconds.
    """
    live_shards: set[int] = set()
    live_records: set[str] = set()
    for version in kept_versions(store, layout, head):
        snapshot = Snapshot.load(store, layout, read_commit(store, layout, version) if version != head.number else head)
        live_shards |= {shard.number for shard in snapshot.shards}
        live_records |= set(snapshot.record_names())
    ranges = _Ranges(store, layout)
    found = [
        info
        for info, number in _numbered_objects(store, layout)
        if number < head.open_shard and number not in live_shards and ranges.reserved(number)
    ]
    for info in store.list_folder(layout.manifests):
        intent = intent_of(info.name)
        if intent is not None and intent < head.open_intent and info.name not in live_records:
            found.append(info)
    return sorted([*found, *_unfinished(store, layout, grace_s)], key=lambda info: info.name)


def _numbered_objects(store: Store, layout: Layout) -> Iterator[tuple[ObjectInfo, int]]:
    """Each tar and each index with the number of its shard."""
    for info in store.list_folder():
        if (number := layout.shard_number(info.name)) is not None:
            yield info, number
    for info in store.list_folder(layout.indexes):
        if (number := indexed_number(info.name)) is not None:
            yield info, number


def _unfinished(store: Store, layout: Layout, grace_s: float) -> Iterable[ObjectInfo]:
    """What writes that never ended left on local disk."""
    folders = ("", layout.indexes, layout.manifests, layout.commits, layout.intents, layout.holds)
    too_young = datetime.now(UTC) - timedelta(seconds=grace_s)
    for folder in folders:
        for info in store.leftovers(folder):
            is_ours = folder or info.name.startswith(f"{layout.prefix}-")
            if is_ours and info.modified <= too_young:
                yield info


class _Ranges:
    """The shard numbers that intents reserved: ascending ranges, so one is found by halving, reading a few."""

    def __init__(self, store: Store, layout: Layout) -> None:
        self._intents = numbers_in(store, layout.intents)
        self._range_of = cache(lambda number: read_intent(store, layout, number).numbers)

    def reserved(self, number: int) -> bool:
        """Whether an intent reserved a number."""
        place = bisect_right(self._intents, number, key=lambda intent: self._range_of(intent).start)
        return place > 0 and number in self._range_of(self._intents[place - 1])
