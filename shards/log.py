"""The two logs of a dataset: intents (what builders announced) and commits (what is true).

Each record is a small numbered object that is created once and never changed. Its write id tells whose it is: after
any error the record is read back, because a lost reply, a retried request and a lost race look alike.

Whatever changes a dataset adds a commit: a build, a compaction, a rollback, a hold, its release, a gc. So all of them
are in one order, and each sees what those before it did. A commit that makes no version keeps the one before.
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

MOST_RECORDS = 10**10 - 2  # in a log: the next one's name has ten digits too
HOLD_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
_OPERATION = re.compile(r"[a-z]{1,32}")
_BUILD_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
Record = TypeVar("Record", bound="Commit | Intent")


class Operation(StrEnum):
    """What a commit does."""

    BUILD = "build"
    COMPACT = "compact"
    ROLLBACK = "rollback"
    HOLD = "hold"
    RELEASE = "release"
    GC = "gc"


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What is true of a dataset from now on. Less than 4 KiB on storage.

    Attributes:
        number: Of this record; one that makes a version gives it its number.
        operation: What was done.
        version: The last version: this record's number, or an earlier one's where this record makes none.
        intent: Under which that version's manifest was written; it names the manifest, with
        manifest: the manifest's digest.
        num_samples: Of that version.
        num_shards: Of that version.
        num_bytes: Of that version's tars.
        kept_from: Versions before this one are dropped, unless they are held.
        holds: Digest of the list of all holds; None where there are none.
        hold: Name -> version that this record holds or releases.
        open_intent: Intents before this one are closed: what they reserved, and no kept version names, is deleted.
        open_shard: The first shard number of that intent.
        write_id: That no other write has.
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
        number: Of this record.
        plan: Digest of the plan.
        base: The version that the plan starts from; 0 for none.
        first: The first shard number that it reserved.
        count: How many numbers it reserved; at least those that it will use.
        shards: The number of each planned shard, reserved here or adopted; empty where they are not known beforehand.
        digests: The digest of the sources and the recipe of each of them.
        build_id: By which a builder finds its intent after a failure; None where the plan's digest serves.
        write_id: That no other write has.
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
        """The shard numbers that it reserved."""
        return range(self.first, self.first + self.count)


def new_write_id() -> str:
    """An id that no other write has."""
    return secrets.token_hex(16)


def now() -> str:
    """The time for a record, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def unix_time(created: str) -> float:
    """Seconds since 1970 of a record's time."""
    return datetime.fromisoformat(created).timestamp()


def numbers_in(store: Store, folder: str) -> list[int]:
    """The numbers of the records in a log's folder, ascending."""
    found = (record_number(info.name) for info in store.list_folder(folder))
    return sorted(number for number in found if number is not None)


def read_head(location: Location) -> Commit | None:
    """The last commit, which tells what is true now; None where nothing was ever committed.

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
    """A commit by its number.

    Raises:
        NotFoundError: There is none.
    """
    return _read(location.store, location.layout.commit(number), Commit)


def check_log(location: Location, first: int, stop: int) -> range:
    """Returns the numbers of the commits from `first` up to `stop`, all of which are there.

    A number alone may name any commit: without this, one that somebody made up would be counted up to.

    Raises:
        DamagedError: Commits are missing.
    """
    there = set(numbers_in(location.store, location.layout.commits))
    if stop - first > len(there) or not there.issuperset(range(first, stop)):
        raise DamagedError(
            f"not all of the commits {first} to {stop - 1} are there: restore them "
            "from a copy, or delete those that dray did not write",
            url=location.store.url_of(location.layout.commits),
        )
    return range(first, stop)


def read_intent(location: Location, number: int) -> Intent:
    """An intent by its number."""
    return _read(location.store, location.layout.intent(number), Intent)


def append_commit(
    location: Location, head: Commit | None, next_of: Callable[[Commit | None], Commit | None]
) -> Commit | None:
    """Add a commit at the end of the log. Durable.

    Args:
        location: Where the dataset is.
        head: The last commit that the caller knows.
        next_of: The commit to put after a given one, numbered one more; asked again whenever another writer was faster.
            None gives up.

    Returns:
        The commit that was added; None where `next_of` gave up.

    Raises:
        StoreError: The store did not take it, and nothing stands there.
    """
    while (commit := next_of(head)) is not None:
        head = create_commit(location, commit)
        if head.write_id == commit.write_id:
            return head
    return None


def create_commit(location: Location, commit: Commit) -> Commit:
    """Create-only, durable: returns the commit that now stands under that number, this one or another's.

    Raises:
        StoreError: Nothing stands there and the store did not take ours.
    """
    return _create(location.store, location.layout.commit(commit.number), commit)


def create_intent(location: Location, intent: Intent) -> Intent:
    """Create-only, durable: returns the intent that now stands under that number, this one or another's.

    Every build that writes shards comes by here first, so here a store that would overwrite them is detected.

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
    """Create an object whose name tells its content, durably; one that is there already is the same.

    Raises:
        StoreError: The store did not take it.
        DamagedError: The stored object is not what its name says.
    """
    try:
        store.put_new(name, data)
    except StoreError as exc:  # there already, or a lost reply: the stored object decides
        try:
            standing = store.get(name)
        except NotFoundError:
            raise exc from None
        if standing != data:
            raise DamagedError("not the content that its name says: delete it", url=store.url_of(name)) from exc
    store.sync([name])


def check_holds(holds: Mapping[str, int], head: int) -> None:
    """Check what a record says of holds.

    Raises:
        ValueError: A name cannot be one, or a version is later than the commit `head`.
    """
    for name, version in holds.items():
        if not HOLD_NAME.fullmatch(name) or not 1 <= version <= head:
            raise ValueError(f"a hold {name!r:.80} of version {version}")


def _create(store: Store, name: str, record: Record) -> Record:
    standing = record
    try:
        store.put_new(name, write_record(record))
    except StoreError as exc:  # refused, or unknown: only the stored object decides
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
    """Raises ValueError where no commit can be so."""
    check_digests([commit.manifest, *([commit.holds] if commit.holds is not None else [])])
    if not _OPERATION.fullmatch(commit.operation):
        raise ValueError(f"operation is {commit.operation!r:.80}")
    if not 1 <= commit.kept_from <= commit.version <= commit.number <= MOST_RECORDS:
        raise ValueError(
            f"number {commit.number} makes {commit.version} the last version, and {commit.kept_from} the first"
        )
    check_holds(commit.hold, commit.number)


def _check_intent(intent: Intent) -> None:
    """Raises ValueError where no intent can be so."""
    if not 1 <= intent.number <= MOST_RECORDS or intent.numbers.stop > MOST_SHARDS:
        raise ValueError(f"number {intent.number} reserves {intent.count} shards from {intent.first} on")
    if intent.build_id is not None and not _BUILD_ID.fullmatch(intent.build_id):
        raise ValueError(f"build_id is {intent.build_id!r:.80}")
    if len(intent.digests) != len(intent.shards) or len(set(intent.shards)) != len(intent.shards):
        raise ValueError("a digest for each shard expected, and each shard once")
    if intent.shards and not (intent.count <= len(intent.shards) and set(intent.numbers) <= set(intent.shards)):
        raise ValueError(f"it reserves {intent.count} numbers from {intent.first} on that are not its shards'")
