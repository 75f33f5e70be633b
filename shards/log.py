"""The two logs of a dataset: intents (what builders announced) and commits (what is true).

Each record is a small numbered object that is created once and never changed. Its write id tells whose it is: after
any error the record is read back, because a lost reply, a retried request and a lost race look alike.
"""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar, cast, get_origin

from dray.shards.errors import DamagedError, DeniedError, NotFoundError, StoreError
from dray.shards.layout import Layout, record_number
from dray.shards.store import Store

FORMAT = 1
CREATE_ATTEMPTS = 4
Record = TypeVar("Record", bound="Commit | Intent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Version `version` of a dataset is the manifest of that digest. At most 4 KiB on storage."""

    version: int
    manifest: str  # its digest, which names it
    write_id: str
    created: str  # UTC, ISO 8601


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """A plan that a builder announced, and the shard numbers that it reserved."""

    number: int
    plan: str  # digest of the plan
    base: int  # the version that the plan starts from; 0 for none
    first: int  # the numbers first .. first + count - 1 belong to this intent
    count: int
    shards: tuple[int, ...]  # the number of each planned shard, reserved here or adopted
    digests: tuple[str, ...]  # the digest (sources and recipe) of each
    write_id: str
    created: str


def new_write_id() -> str:
    """An id that no other write has."""
    return secrets.token_hex(16)


def now() -> str:
    """The time for a record, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys: the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, indent=1).encode() + b"\n"


def numbers_in(store: Store, folder: str) -> list[int]:
    """The numbers of the records in a log's folder, ascending."""
    found = (record_number(info.name) for info in store.list_folder(folder))
    return sorted(number for number in found if number is not None)


def latest_version(store: Store, layout: Layout) -> int:
    """The last committed version; 0 where nothing was ever committed."""
    return max(numbers_in(store, layout.commits), default=0)


def read_commit(store: Store, layout: Layout, version: int) -> Commit:
    """The commit of a version.

    Raises:
        NotFoundError: There is no such version.
    """
    return _read(store, layout.commit(version), Commit)


def read_intent(store: Store, layout: Layout, number: int) -> Intent:
    """An intent by its number."""
    return _read(store, layout.intent(number), Intent)


def create_commit(store: Store, layout: Layout, commit: Commit) -> Commit:
    """Create-only, durable: returns the commit that now stands under that version, this one or another's.

    Raises:
        StoreError: Nothing stands there and the store did not take ours.
    """
    return _create(store, layout.commit(commit.version), commit)


def create_intent(store: Store, layout: Layout, intent: Intent) -> Intent:
    """Create-only, durable: returns the intent that now stands under that number, this one or another's."""
    return _create(store, layout.intent(intent.number), intent)


def _create(store: Store, name: str, record: Record) -> Record:
    body = canonical_json({"format": FORMAT, **asdict(record)})
    for attempt in range(CREATE_ATTEMPTS):
        standing: Record | None = record
        try:
            store.put_new(name, body)
        except StoreError as exc:  # refused, or unknown: only what lies there tells
            standing = _find(store, name, type(record))
            if standing is None and (attempt == CREATE_ATTEMPTS - 1 or isinstance(exc, DeniedError)):
                raise
        if standing is not None:
            store.sync([name])
            return standing
        time.sleep(0.05 * 2**attempt)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _find(store: Store, name: str, kind: type[Record]) -> Record | None:
    try:
        return _read(store, name, kind)
    except NotFoundError:
        return None


def _read(store: Store, name: str, kind: type[Record]) -> Record:
    body = store.get(name)
    try:
        values = json.loads(body)
        if values.pop("format") != FORMAT:
            raise ValueError("its format is newer than this dray: upgrade")
        lists_as_tuples = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        record = kind(**cast(Any, lists_as_tuples))
        _check(record, name)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise DamagedError(f"{store.url_of(name)}: not a readable {kind.__name__.lower()} ({exc})") from exc
    return record


def _check(record: Commit | Intent, name: str) -> None:
    """Refuse a record whose values are of another type than its fields, or that lies under another one's number."""
    for field in fields(record):
        value, kind = getattr(record, field.name), cast(Any, field.type)
        if not isinstance(value, get_origin(kind) or kind):
            raise ValueError(f"{field.name} is {value!r}")
    number = record.version if isinstance(record, Commit) else record.number
    if number != record_number(name):
        raise ValueError(f"it says that it is number {number}")
