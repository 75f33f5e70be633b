"""Verifies one version of a dataset: everything that its manifest lists exists and is unchanged.

There are three levels; each includes the one before:

    quick   lists the shards and indexes, and reads commit, manifest and tables
    index   reads every index and every header of a shard: each part is where its index says
    full    reads every byte: checksums of all parts, padding, end of the archive

A header must have the exact bytes of `dray.shards.tar.header`. Tars that dray did not write have headers of other
programs: there `quick` also checks that ETag or modification time are those of the tar that was indexed, `index` that
each part is preceded by a header of its size, and `full` the checksums of all parts.
"""

import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import BinaryIO

import numpy as np
from xxhash import xxh3_64

from dray.shards.errors import CallError, ChangedError, DamagedError, DrayError, NotFoundError
from dray.shards.index import IndexedPart, ShardIndex
from dray.shards.layout import Location
from dray.shards.manifest import Shard
from dray.shards.reading.tars import Tars
from dray.shards.snapshot import Snapshot
from dray.shards.storage.objects import ObjectInfo
from dray.shards.storage.store import Store
from dray.shards.tar import BLOCK, END
from dray.shards.versions import read_version

SHARDS_AT_ONCE = 16  # one connection to object storage gives about 85 MB/s
RANGES_FROM_BYTES = 1 << 20  # mean size of members; the client reads through smaller gaps between ranges anyway
RANGES_AT_ONCE = 64
MAX_OCTAL_BYTES = 8 << 30  # a ustar header holds no larger size
_CHUNK_BYTES = 1 << 20


class Level(StrEnum):
    """How much `verify` reads."""

    QUICK = "quick"
    INDEX = "index"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One problem of a version."""

    url: str  # URL of the object
    what: str
    shard: int | None = None  # number of the shard; None for a record of the version
    key: str | None = None  # key of the sample
    offset: int | None = None  # offset in the tar

    def __str__(self) -> str:
        at = "" if self.offset is None else f" at offset {self.offset}"
        key = "" if self.key is None else f", key {self.key!r}"
        return f"{self.url}{at}{key}: {self.what}"


def open_whole(location: Location, version: int | str | None) -> Snapshot | Finding:
    """Returns a version, or the finding if its commit or manifest is damaged.

    Raises:
        NotFoundError: The version does not exist, or was dropped.
        StoreError: The store does not answer.
    """
    try:
        return Snapshot.load(location, read_version(location, version))
    except DamagedError as exc:
        return _finding(exc, location.store)


def _finding(exc: DrayError, store: Store) -> Finding:
    """Returns the finding of a record that cannot be read."""
    return Finding(url=exc.url or store.url, what=exc.problem)


def verify(
    snapshot: Snapshot, level: str = Level.INDEX, *, on_shard: Callable[[int], None] | None = None
) -> Iterator[Finding]:
    """Yields all problems of a version in the order of its shards, several of which are read at a time; writes nothing.

    Args:
        snapshot: An open version.
        level: "quick", "index" or "full"; see the docstring of this module.
        on_shard: Called after each shard with its size in bytes.

    Raises:
        CallError: The level is unknown, or the tars may not be read; see `Tars.check_access`.
        StoreError: The store does not answer; damage is never raised.
    """
    if level not in list(Level):
        raise CallError(f"level {level!r}: expected one of {', '.join(Level)}")
    snapshot.tars.check_access()
    return _findings(snapshot, Level(level), on_shard or (lambda _: None))


def _findings(snapshot: Snapshot, level: Level, on_shard: Callable[[int], None]) -> Iterator[Finding]:
    yield from _check_records(snapshot)
    tars = {info.name: info for info in snapshot.tars.list(snapshot.shards)}
    indexes = {info.name: info for info in snapshot.store.list_folder(snapshot.layout.indexes)}

    def check(shard: Shard) -> list[Finding]:
        return list(_check_shard(snapshot, shard, tars, indexes, level))

    with ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="dray-verify") as threads:
        waiting = iter(snapshot.shards)
        checked = deque((shard, threads.submit(check, shard)) for shard in islice(waiting, SHARDS_AT_ONCE))
        while checked:
            shard, found = checked.popleft()
            yield from found.result()
            on_shard(shard.num_bytes)
            checked.extend((shard, threads.submit(check, shard)) for shard in islice(waiting, 1))


def _check_records(snapshot: Snapshot) -> Iterator[Finding]:
    """Check the commit, the manifest and its tables as they are stored now."""
    store, layout, version = snapshot.store, snapshot.layout, snapshot.version
    now = None
    try:
        now = open_whole(snapshot.location, version)
    except NotFoundError as exc:  # the commit is missing, or the version was dropped meanwhile
        yield Finding(url=store.url_of(layout.commit(version)), what=str(exc))
    if isinstance(now, Finding):
        yield now
    elif now is not None and now.commit != snapshot.commit:
        yield Finding(url=store.url_of(layout.commit(version)), what="the commit was replaced")
    tables = [snapshot.samples, snapshot.left_out]
    if snapshot.manifest.sources is not None and snapshot.manifest.samples is not None:
        tables.append(snapshot.sources)
    for read in tables:
        try:
            read()
        except (DamagedError, NotFoundError) as exc:
            yield _finding(exc, store)


def _check_shard(
    snapshot: Snapshot,
    shard: Shard,
    tars: Mapping[str, ObjectInfo],
    indexes: Mapping[str, ObjectInfo],
    level: Level,
) -> Iterator[Finding]:
    """Check a shard and its index; a tar of the wrong size, or another one than was indexed, is not read."""
    store, index_name, url = snapshot.store, snapshot.layout.index(shard.number), snapshot.shard_url(shard)
    problem = _problem_of(snapshot.tars, shard, tars)
    if problem is not None:
        yield Finding(url=url, shard=shard.number, what=problem)
    if index_name not in indexes and store.head(index_name) is None:  # a listing may be outdated
        yield Finding(url=store.url_of(index_name), shard=shard.number, what="the index is missing")
    elif level is not Level.QUICK:
        yield from _check_index(snapshot, shard, full=level is Level.FULL, with_tar=problem is None)


def _problem_of(tars: Tars, shard: Shard, listed: Mapping[str, ObjectInfo]) -> str | None:
    """Returns why a tar is not the one of the manifest, as far as a listing shows; None if it is."""
    found = listed.get(tars.name(shard))
    if tars.is_foreign:
        try:
            if found is None or not tars.matches(shard, found):
                tars.check(shard)
        except (ChangedError, NotFoundError) as exc:
            return exc.problem
        return None
    found = found or tars.store.head(tars.name(shard))  # a listing may be outdated
    if found is None:
        return "the shard is missing"
    if found.size == shard.num_bytes:
        return None
    how = "cut short" if found.size < shard.num_bytes else "written to"
    return f"{shard.num_bytes} bytes expected, found {found.size}: the shard was {how} or replaced"


def _check_index(snapshot: Snapshot, shard: Shard, *, full: bool, with_tar: bool) -> Iterator[Finding]:
    """Check that an index is the one in the manifest, is consistent, and matches its tar."""
    url = snapshot.store.url_of(snapshot.layout.index(shard.number))
    try:
        index = snapshot.index(shard)
    except (DamagedError, NotFoundError) as exc:
        yield Finding(url=url, shard=shard.number, what=exc.problem, key=exc.key, offset=exc.offset)
        return
    if not snapshot.tars.is_foreign and (gap := _find_gap(index)):
        yield Finding(url=url, shard=shard.number, what=gap)
    elif with_tar:
        yield from _check_tar(snapshot.tars, shard, index, full=full)


def _find_gap(index: ShardIndex) -> str | None:
    """Returns the first place where the parts of an index are not contiguous; None if they fill the whole tar."""
    end = 0
    for member in index.members():
        if member.start != end:
            return f"data of key {member.key!r} at offset {end + len(member.header)} expected, found {member.offset}"
        end = member.offset + member.size + -member.size % BLOCK
    if end + len(END) != index.shard_bytes:
        return f"a tar of {end + len(END)} bytes expected by its parts, found {index.shard_bytes}"
    return None


def _check_tar(tars: Tars, shard: Shard, index: ShardIndex, *, full: bool) -> Iterator[Finding]:
    """Check the headers and the end of a tar, and all of it if `full`.

    Headers are fetched one by one if parts are large; otherwise this would read the whole tar anyway.
    """
    url = tars.url_of(shard)
    num_members = max(1, int(np.count_nonzero(index.offsets)))
    try:
        if full or index.shard_bytes < num_members * RANGES_FROM_BYTES:
            check = _check_foreign_stream if tars.is_foreign else _check_stream
            with tars.open_stream(shard) as stream:
                yield from check(stream, url, shard.number, index, full=full)
        else:
            yield from _check_headers(tars, shard, index)
    except NotFoundError:
        yield Finding(url=url, shard=shard.number, what="the shard is missing")
    except DamagedError as exc:
        yield Finding(url=url, shard=shard.number, what=exc.problem, key=exc.key, offset=exc.offset)


def _check_headers(tars: Tars, shard: Shard, index: ShardIndex) -> Iterator[Finding]:
    """Check each header and the end of the archive by ranged requests."""
    url, members, batch = tars.url_of(shard), list(index.members()), RANGES_AT_ONCE
    for some in (members[start : start + batch] for start in range(0, len(members), batch)):
        lengths = [BLOCK if tars.is_foreign else len(member.header) for member in some]
        starts = [member.offset - length for member, length in zip(some, lengths, strict=True)]
        for member, start, found in zip(some, starts, tars.get_ranges(shard, starts, lengths), strict=True):
            if not (_is_foreign_header(found, member) if tars.is_foreign else found == member.header):
                yield _bad_header(url, shard.number, member, start)
    if not tars.is_foreign:
        (end,) = tars.get_ranges(shard, [index.shard_bytes - len(END)], [len(END)])
        if end != END:
            yield _bad_end(url, shard.number, index)


def _check_foreign_stream(
    stream: BinaryIO, url: str, number: int, index: ShardIndex, *, full: bool
) -> Iterator[Finding]:
    """Check a tar that dray did not write from start to end in bounded memory, whatever is between its parts."""
    position = 0
    for member in index.members():
        start = member.offset - BLOCK
        _read_hash(stream, start - position, full=False)  # long names, members that are no parts
        if not _is_foreign_header(stream.read(BLOCK), member):
            yield _bad_header(url, number, member, start)
        found = _read_hash(stream, member.size, full=full)
        if full and found != member.xxh3_64:
            yield _bad_part(url, number, member, found)
        position = member.offset + member.size


def _is_foreign_header(block: bytes | memoryview, part: IndexedPart) -> bool:
    """Returns whether a block is the header of a file of a part's size."""
    try:
        found = tarfile.TarInfo.frombuf(bytes(block), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return found.isreg() and (found.size == part.size or part.size >= MAX_OCTAL_BYTES)  # PAX gives larger sizes


def _check_stream(stream: BinaryIO, url: str, number: int, index: ShardIndex, *, full: bool) -> Iterator[Finding]:
    """Check a tar from start to end in bounded memory."""
    for member in index.members():
        if stream.read(len(member.header)) != member.header:
            yield _bad_header(url, number, member, member.start)
        found = _read_hash(stream, member.size, full=full)
        if full and found != member.xxh3_64:
            yield _bad_part(url, number, member, found)
        padding = stream.read(-member.size % BLOCK)
        if full and padding.strip(b"\0"):
            yield Finding(
                url=url,
                shard=number,
                key=member.key,
                offset=member.offset + member.size,
                what="the padding after the data is not zero",
            )
    if stream.read(len(END)) != END or stream.read(1):
        yield _bad_end(url, number, index)


def _read_hash(stream: BinaryIO, size: int, *, full: bool) -> int:
    """Read up to `size` bytes; return their xxh3_64 if `full`."""
    hasher = xxh3_64()
    while size > 0 and (chunk := stream.read(min(size, _CHUNK_BYTES))):
        size -= len(chunk)
        if full:
            hasher.update(chunk)
    return hasher.intdigest()


def _bad_part(url: str, number: int, member: IndexedPart, found: int) -> Finding:
    what = f"checksum {member.xxh3_64:016x} of {member.size} bytes expected, found {found:016x}"
    return Finding(url=url, shard=number, key=member.key, offset=member.offset, what=what)


def _bad_header(url: str, number: int, member: IndexedPart, start: int) -> Finding:
    what = f"not the header of a part of {member.size} bytes that the index names here"
    return Finding(url=url, shard=number, key=member.key, offset=start, what=what)


def _bad_end(url: str, number: int, index: ShardIndex) -> Finding:
    what = "two zero blocks expected as the end of the archive, found something else"
    return Finding(url=url, shard=number, offset=index.shard_bytes - len(END), what=what)
