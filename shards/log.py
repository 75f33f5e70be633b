"""The two logs of a dataset: intents (what builders announced) and commits (what is true).

Each record is a small numbered object that is created once and never changed. Its write id identifies the writer:
after any error the record is read back, because a lost reply, a retried request and a lost race look the same.

Everything that changes a dataset adds a commit: a build, a compaction, a rollback, a hold, its release, a gc. The log
therefore orders all of them, and each sees what earlier ones did. A commit without a version keeps the last version.
"""

import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import TypeVar

from dray.shards.errors import DamagedError, NotFoundError, StoreError
from dray.shards.layout import MOST_SHARDS, OLD_FOLDER, Location, record_number
from dray.shards.parsing.records import FormatError, check_digests, read_record, write_record
from dray.shards.storage.store import Store

MOST_RECORDS = 10**10 - 2  # largest number in a log: the next name has ten digits too
HOLD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_OPERATION = re.compile(r"[a-z]{1,32}")
BUILD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
Record = TypeVar("Record", bound="Commit | Intent")


class Operation(StrEnum):
    """What a commit does."""

    BUILD = "build"
    WRITE = "write"
    INDEX = "index"
    COMPACT = "compact"
    ROLLBACK = "rollback"
    HOLD = "hold"
    RELEASE = "release"
    GC = "gc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The state of a dataset from this record on. Less than 4 KiB on storage.

    Attributes:
        number: Number of this record, and of the version if it makes one.
        operation: What was done.
        version: The last version: this record's number, or an earlier one if this record makes no version.
        intent: Intent under which the version's manifest was written; part of the manifest's name.
        manifest: Digest of the manifest, also part of its name.
        num_samples: Number of samples in the version.
        num_shards: Number of shards in the version.
        num_bytes: Size of the version's tars.
        kept_from: First version that is kept; earlier ones are dropped unless they are held.
        holds: Digest of the list of all holds; None if there are none.
        hold: Name -> version that this record holds or releases.
        open_intent: First open intent. What earlier ones reserved is deleted unless a kept version names it.
        open_shard: First shard number of that intent.
        write_id: Unique id of this write.
        created: UTC, ISO 8601.
    """

    number: int
    operation: str
    version: int
    intent: int
    manifest: str
    num_samples: int
    num_shards: int
    num_bytes: int
    kept_from: int = 1
    holds: str | None = None
    hold: dict[str, int] = field(default_factory=dict)
    open_intent: int = 1
    open_shard: int = 0
    write_id: str
    created: str

    @property
    def makes_version(self) -> bool:
        """Whether this record is a version of its own."""
        return self.version == self.number

    def follow(self, operation: Operation) -> "Commit":
        """Returns the next commit, which changes nothing yet."""
        return replace(
            self, number=self.number + 1, operation=operation, hold={}, write_id=new_write_id(), created=now()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A plan that a builder announced, and the shard numbers that it reserved.

    Attributes:
        number: Number of this record.
        plan: Digest of the plan.
        base: Version that the plan starts from; 0 for none.
        first: First reserved shard number.
        count: Number of reserved shard numbers, at least as many as will be used.
        shards: Number of each planned shard, reserved here or adopted; empty if they are not known beforehand.
        digests: Digest of the sources and the recipe of each planned shard.
        build_id: Id by which a builder finds its intent after a failure; None if the plan's digest serves.
        write_id: Unique id of this write.
        created: UTC, ISO 8601.
    """

    number: int
    plan: str
    base: int
    first: int
    count: int
    shards: tuple[int, ...]
    digests: tuple[str, ...]
    build_id: str | None = None
    write_id: str
    created: str

    @property
    def numbers(self) -> range:
        """The reserved shard numbers."""
        return range(self.first, self.first + self.count)


def new_write_id() -> str:
    """Returns a new unique id of a write."""
    return secrets.token_hex(16)


def now() -> str:
    """Returns the time for a record, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def unix_time(created: str) -> float:
    """Returns a record's time in seconds since 1970."""
    return datetime.fromisoformat(created).timestamp()


def numbers_in(store: Store, folder: str) -> list[int]:
    """Returns the numbers of the records in a log's folder, ascending."""
    found = (record_number(info.name) for info in store.list_folder(folder))
    return sorted(number for number in found if number is not None)


def read_head(location: Location) -> Commit | None:
    """Returns the last commit, the present state; None if nothing was ever committed.

    Raises:
        DamagedError: An older dray wrote this dataset.
    """
    if number := max(numbers_in(location.store, location.layout.commits), default=0):
        return read_commit(location, number)
    if (old := f"{OLD_FOLDER}/{location.prefix}") in location.store.list_folders(OLD_FOLDER):
        raise DamagedError(
            f"{location.store.url_of(old)} was written by an older dray; rebuild it: build into an empty folder, or "
            f"delete {location.store.url_of(old)} and {location.store.url_of(location.prefix)}-*.tar first"
        )
    return None


def read_commit(location: Location, number: int) -> Commit:
    """Returns a commit by its number.

    Raises:
        NotFoundError: There is none.
    """
    return _read(location.store, location.layout.commit(number), Commit)


def check_log(location: Location, first: int, stop: int) -> range:
    """Returns the numbers of the commits from `first` up to `stop`, all of which exist.

    Without this check, a forged number would make the caller count up to it.

    Raises:
        DamagedError: Commits are missing.
    """
    existing = set(numbers_in(location.store, location.layout.commits))
    if stop - first > len(existing) or not existing.issuperset(range(first, stop)):
        raise DamagedError(
            f"some of the commits {first} to {stop - 1} are missing: restore them "
            "from a copy, or delete those that dray did not write",
            url=location.store.url_of(location.layout.commits),
        )
    return range(first, stop)


def read_intent(location: Location, number: int) -> Intent:
    """Returns an intent by its number."""
    return _read(location.store, location.layout.intent(number), Intent)


def append_commit(
    location: Location, head: Commit | None, next_of: Callable[[Commit | None], Commit | None]
) -> Commit | None:
    """Add a commit at the end of the log. Durable.

    Args:
        location: Where the dataset is.
        head: The last commit that the caller knows.
        next_of: Returns the commit to add after a given one, or None to give up. Called again whenever another writer
            was faster.

    Returns:
        The commit that was added; None if `next_of` gave up.

    Raises:
        StoreError: The store did not accept it, and has no such commit.
    """
    while (commit := next_of(head)) is not None:
        head = create_commit(location, commit)
        if head.write_id == commit.write_id:
            return head
    return None


def create_commit(location: Location, commit: Commit) -> Commit:
    """Creates a commit, durably; returns the one that now has that number, this one or another writer's.

    Raises:
        StoreError: The store did not accept it, and has no such commit.
    """
    return _create(location.store, location.layout.commit(commit.number), commit)


def create_intent(location: Location, intent: Intent) -> Intent:
    """Creates an intent, durably; returns the one that now has that number, this one or another writer's.

    Every build that writes shards begins here, so a store that would overwrite them is detected here.

    Raises:
        StoreError: The store ignores the condition of a conditional put.
    """
    name = location.layout.intent(intent.number)
    standing = _create(location.store, name, intent)
    if standing.write_id == intent.write_id and location.store.takes_again(name, write_record(intent)):
        raise StoreError(
            f"{location.url} ignores conditional puts (If-None-Match): it took {name} twice, so two builds could "
            "overwrite each other's shards; use a store that honours them, as S3, GCS, Azure and SeaweedFS do"
        )
    return standing


def put_content(store: Store, name: str, data: bytes) -> None:
    """Creates an object named by its content, durably; an existing one must be the same.

    Raises:
        StoreError: The store did not accept it.
        DamagedError: The existing object differs from what its name says.
    """
    try:
        store.put_new(name, data)
    except StoreError as exc:  # it exists, or the reply was lost: read it back
        try:
            standing = store.get(name)
        except NotFoundError:
            raise exc from None
        if standing != data:
            raise DamagedError("not the content that its name says: delete it", url=store.url_of(name)) from exc
    store.sync([name])


def check_holds(holds: Mapping[str, int], head: int) -> None:
    """Checks the holds of a record.

    Raises:
        ValueError: A name is invalid, or a version is later than the commit `head`.
    """
    for name, version in holds.items():
        if not HOLD_NAME.fullmatch(name) or not 1 <= version <= head:
            raise ValueError(f"a hold {name!r:.80} of version {version}")


def _create(store: Store, name: str, record: Record) -> Record:
    standing = record
    try:
        store.put_new(name, write_record(record))
    except StoreError as exc:  # refused or unknown: read it back
        found = _find(store, name, type(record))
        if found is None:
            raise exc from None
        standing = found
    store.sync([name])
    return standing


def _find(store: Store, name: str, kind: type[Record]) -> Record | None:
    try:
        return _read(store, name, kind)
    except NotFoundError:
        return None


def _read(store: Store, name: str, kind: type[Record]) -> Record:
    body = store.get(name)
    try:
        record = read_record(kind, body)
        if record.number != record_number(name):
            raise ValueError(f"it says that it is number {record.number}")
        if not _TIME.fullmatch(record.created):
            raise ValueError(f"created is {record.created!r:.80}")
        unix_time(record.created)
        _check_commit(record) if isinstance(record, Commit) else _check_intent(record)
    except FormatError as exc:
        raise DamagedError(str(exc), url=store.url_of(name)) from exc
    except (ValueError, OverflowError) as exc:
        raise DamagedError(
            f"not a readable {kind.__name__.lower()} ({exc}): restore it from a copy, or build under another prefix",
            url=store.url_of(name),
        ) from exc
    return record


def _check_commit(commit: Commit) -> None:
    """Raises ValueError if a commit is impossible."""
    check_digests([commit.manifest, *([commit.holds] if commit.holds is not None else [])])
    if not _OPERATION.fullmatch(commit.operation):
        raise ValueError(f"operation is {commit.operation!r:.80}")
    if not 1 <= commit.kept_from <= commit.version <= commit.number <= MOST_RECORDS:
        raise ValueError(
            f"number {commit.number} makes {commit.version} the last version, and {commit.kept_from} the first"
        )
    check_holds(commit.hold, commit.number)


def _check_intent(intent: Intent) -> None:
    """Raises ValueError if an intent is impossible."""
    if not 1 <= intent.number <= MOST_RECORDS or intent.numbers.stop > MOST_SHARDS:
        raise ValueError(f"number {intent.number} reserves {intent.count} shards from {intent.first} on")
    if intent.build_id is not None and not BUILD_ID.fullmatch(intent.build_id):
        raise ValueError(f"build_id is {intent.build_id!r:.80}")
    if len(intent.digests) != len(intent.shards) or len(set(intent.shards)) != len(intent.shards):
        raise ValueError("a digest for each shard expected, and each shard once")
    if intent.shards and not (intent.count <= len(intent.shards) and set(intent.numbers) <= set(intent.shards)):
        raise ValueError(f"it reserves {intent.count} numbers from {intent.first} on that are not its shards'")
