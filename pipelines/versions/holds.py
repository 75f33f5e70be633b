"""Holding, releasing and rolling back versions: one commit each, which touches no shard.

`dray.shards.versions` says why no garbage collection can take a version while it is held.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from dray.shards.errors import CallError, ConflictError, DamagedError, NotFoundError
from dray.shards.layout import Location
from dray.shards.log import (
    HOLD_NAME,
    Commit,
    Operation,
    append_commit,
    check_log,
    read_commit,
    read_head,
)
from dray.shards.snapshot import Snapshot
from dray.shards.verify import verify
from dray.shards.versions import keeps, put_holds, read_holds, read_version, require_dataset

READS_AT_ONCE = 16


def hold(location: Location, name: str, version: int | str | None = None) -> int:
    """Hold a version under a name, so that no gc drops it until it is released; returns its number.

    Args:
        location: Where the dataset is.
        name: A letter, then letters, digits, `_`, `.` and `-`, 64 at most.
        version: A number, or the name of another hold; None: the last.

    Raises:
        CallError: The name is invalid, or already holds another version.
        NotFoundError: There is no such version, or it was dropped.
    """
    if not HOLD_NAME.fullmatch(name):
        raise CallError(f"hold {name!r}: a name is a letter, then letters, digits, '_', '.' and '-', 64 at most")
    number = read_version(location, version).version

    def next_of(head: Commit | None) -> Commit | None:
        head = require_dataset(location, head)
        if not keeps(location, head, number):
            raise NotFoundError(
                f"version {number} of {location.prefix!r} under {location.url} was dropped: nothing to hold"
            )
        holds = read_holds(location, head)
        if holds.get(name, number) != number:
            raise CallError(f"{name!r} holds version {holds[name]} already: dray release {location.url} {name}")
        if name in holds:
            return None
        digest = put_holds(location, {**holds, name: number})
        return replace(head.follow(Operation.HOLD), holds=digest, hold={name: number})

    append_commit(location, read_head(location), next_of)
    return number


def release(location: Location, name: str) -> int:
    """Release a hold, so that the next gc may drop its version; returns the version's number.

    Raises:
        NotFoundError: There is no such hold.
    """
    number = read_version(location, name).version if HOLD_NAME.fullmatch(name) else 0
    if not number:
        raise NotFoundError(f"no hold {name!r}: dray log {location.url} shows those there")

    def next_of(head: Commit | None) -> Commit | None:
        head = require_dataset(location, head)
        holds = read_holds(location, head)
        if (version := holds.pop(name, None)) is None:
            return None
        digest = put_holds(location, holds)
        return replace(head.follow(Operation.RELEASE), holds=digest, hold={name: version})

    append_commit(location, read_head(location), next_of)
    return number


def rollback(location: Location, version: int | str) -> Snapshot:
    """Commit a new version that is equal to an old one; the versions between them stay.

    Args:
        location: Where the dataset is.
        version: A number, or a hold.

    Returns:
        The new version; the last one, where that is the same already.

    Raises:
        NotFoundError: There is no such version, or it was dropped.
        DamagedError: Something that it names is missing.
        ConflictError: It was dropped, or another version was committed, while this ran.
    """
    old = Snapshot.load(location, read_version(location, version))
    start = require_dataset(location, read_head(location))
    if not keeps(location, start, old.version):
        raise NotFoundError(f"version {old.version} of {location.prefix!r} under {location.url} was dropped")
    findings = list(verify(old, "quick"))
    last = require_dataset(location, read_head(location)) if findings else start
    if findings and keeps(location, last, old.version):  # else it was dropped while it was checked
        raise DamagedError(
            f"version {old.version} is not whole: {findings[0]}; dray verify shows all that is wrong with it"
        )

    def next_of(head: Commit | None) -> Commit | None:
        head = require_dataset(location, head)
        if head.version != start.version or not keeps(location, head, old.version):
            raise ConflictError(
                f"{location.url} {location.prefix}: another writer committed {head.operation} {head.number} while this "
                "rollback ran: look at dray log, then run it again"
            )
        if (head.intent, head.manifest) == (old.commit.intent, old.commit.manifest):
            return None
        commit = head.follow(Operation.ROLLBACK)
        return replace(
            commit,
            version=commit.number,
            intent=old.commit.intent,
            manifest=old.commit.manifest,
            num_samples=old.commit.num_samples,
            num_shards=old.commit.num_shards,
            num_bytes=old.commit.num_bytes,
        )

    made = append_commit(location, last, next_of)
    return Snapshot(location, made or read_commit(location, start.version), old.manifest)


def history(location: Location) -> list[Commit]:
    """Returns every commit, the first one first; each is a small read.

    Raises:
        NotFoundError: There is no such dataset.
        DamagedError: A commit is missing, or cannot be read.
    """
    head = require_dataset(location, read_head(location))
    numbers = check_log(location, 1, head.number)
    with ThreadPoolExecutor(READS_AT_ONCE) as threads:
        return [*threads.map(partial(read_commit, location), numbers), head]
