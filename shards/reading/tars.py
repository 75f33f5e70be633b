"""The tars of a version: where they are, whether they may be read there, and whether they are still the same.

A tar that dray did not write can be replaced at any time, so each read checks that it is the one that was indexed. On
object storage the answer to each request carries the ETag of the object that its bytes are from: it is compared with
the recorded one, which costs no request and works with stores that ignore `If-Match`. On a disk size and modification
time are compared when a tar is opened.

A manifest may name another base for its tars. It must not choose where credentials go or which local files are read, so
a base outside the dataset's folder is read only if the caller names it too, with storage options of its own.
"""

import io
import os
import shlex
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO

from dray.shards.errors import CallError, ChangedError, DamagedError, NotFoundError
from dray.shards.layout import Location
from dray.shards.manifest import Shard
from dray.shards.storage import disk
from dray.shards.storage.objects import ObjectInfo, plain_etag
from dray.shards.storage.store import Store
from dray.shards.storage.stream import STREAM_CHUNK_BYTES, RangeReader
from dray.shards.storage.urls import check_name, local_path, path_below, url_below

RANGES_AT_ONCE = 10  # as many as the client requests at once
GAP_BYTES = 1 << 20  # largest gap between two ranges that are fetched in one request


class Tars:
    """The tars of one version.

    Args:
        location: Where the dataset is.
        base: URL below which the tars are, as the manifest names it; None: that of the dataset.
        is_foreign: Whether dray did not write them.

    Attributes:
        url: URL below which the tars are.
        is_foreign: Whether dray did not write them.

    Raises:
        CallError: The caller names another URL for the tars than the manifest.
    """

    def __init__(self, location: Location, base: str | None, *, is_foreign: bool) -> None:
        self._location, data = location, location.data
        self.url = base or location.url
        self.is_foreign = is_foreign
        self._folder = path_below(location.url, self.url)  # below the dataset's own; None if it is elsewhere
        if data is not None and data.url != self.url:
            raise CallError(f"data_url={data.url!r} was given, but the tars of {location} are under {self.url!r}")
        self._other: Store | None = None
        if data is not None and (self._folder is None or data.storage_options):
            self._other, self._folder = Store(data.url, data.storage_options), ""

    @property
    def store(self) -> Store:
        """Store of the tars, to which `name` is relative.

        Raises:
            CallError: See `check_access`.
        """
        self.check_access()
        return self._other or self._location.store

    def check_access(self) -> None:
        """Checks that the tars are in the dataset's folder, or where the caller says that they are.

        Raises:
            CallError: They are elsewhere; names the place, and how to allow it.
        """
        if self._folder is None:
            raise CallError(
                f"the tars of {self._location} are outside its folder, under {self.url!r}: to read them there, and "
                f"to send them credentials, give data_url={self.url!r} (and data_storage_options= if it needs any)"
            )

    @property
    def is_local(self) -> bool:
        """Whether the tars are on a local disk."""
        return local_path(self.url) is not None

    def name(self, shard: Shard) -> str:
        """Returns the name of a shard's tar, relative to the store."""
        return f"{self._folder}/{self._own_name(shard)}" if self._folder else self._own_name(shard)

    def url_of(self, shard: Shard) -> str:
        """Returns the URL of a shard's tar."""
        return url_below(self.url, self._own_name(shard))

    def _own_name(self, shard: Shard) -> str:
        return self._location.layout.shard(shard.number) if shard.name is None else shard.name

    def path(self, shard: Shard) -> Path:
        """Returns the path of a shard's tar on a local disk."""
        store, name = self.store, self.name(shard)
        check_name(store.url, name)
        return Path(str(store.local_root), name)

    def get_ranges(
        self, shard: Shard, starts: Sequence[int], lengths: Sequence[int], *, gap: int = GAP_BYTES
    ) -> list[memoryview]:
        """Returns byte ranges of a tar, as `Store.get_ranges` does.

        Raises:
            NotFoundError: The tar is missing.
            ChangedError: Another program replaced it.
            DamagedError: It ends before a range does.
        """
        if self.is_foreign and self.is_local:
            self.check(shard)
        if not self.is_foreign or self.is_local:
            return self.store.get_ranges(self.name(shard), starts, lengths, gap=gap)
        asked = list(zip(starts, lengths, strict=True))
        spans = joined((span for span in asked if span[1]), gap)
        if len(spans) > 1:
            with ThreadPoolExecutor(min(len(spans), RANGES_AT_ONCE)) as threads:
                bodies = list(threads.map(lambda span: self._get_range(shard, *span), spans))
        else:
            bodies = [self._get_range(shard, *span) for span in spans]
        found = [(start, body) for (start, _), body in zip(spans, bodies, strict=True)]
        return [slice_of(found, *span) if span[1] else memoryview(b"") for span in asked]

    def _get_range(self, shard: Shard, start: int, length: int) -> memoryview:
        body, info = self.store.get_range(self.name(shard), start, length)
        self._check_info(shard, info)
        if len(body) < length:
            raise DamagedError(f"{length} bytes expected, found {len(body)}", url=self.url_of(shard), offset=start)
        return body

    @contextmanager
    def open_stream(self, shard: Shard) -> Iterator[BinaryIO]:
        """Opens a tar as `Store.open_stream` does.

        Raises:
            NotFoundError: The tar is missing.
            ChangedError: Another program replaced it; on object storage also while it is read.
            DamagedError: It does not have its size.
        """
        if self.is_foreign and not self.is_local:
            with ThreadPoolExecutor(1) as ahead:
                reader = RangeReader(lambda *span: self._get_range(shard, *span), shard.num_bytes, ahead)
                yield io.BufferedReader(reader, STREAM_CHUNK_BYTES)
            return
        if self.is_foreign:
            self.check(shard)
        with self.store.open_stream(self.name(shard), shard.num_bytes) as stream:
            yield stream

    def check(self, shard: Shard) -> None:
        """Checks that a tar exists and, if dray did not write it, is the one that was indexed; reads no byte of it.

        Raises:
            NotFoundError: It is missing.
            ChangedError: Another program replaced it.
        """
        if self.is_foreign and self.is_local:
            try:
                with disk.file_errors(self.url_of(shard)):
                    self.check_file(shard, self.path(shard).stat())
            except NotFoundError as exc:
                raise self.missing(shard) from exc
            return
        info = self.store.head(self.name(shard))
        if info is None:
            raise self.missing(shard)
        if self.is_foreign:
            self._check_info(shard, info)

    def list(self, shards: Iterable[Shard]) -> list[ObjectInfo]:
        """Returns what is in the folders of some tars, as far as `matches` can use it."""
        if self.is_foreign and self.is_local:
            return []
        folders = dict.fromkeys(self.name(shard).rpartition("/")[0] for shard in shards)
        return [info for folder in folders for info in self.store.list_folder(folder)]

    def matches(self, shard: Shard, listed: ObjectInfo) -> bool:
        """Returns whether an object on object storage looks like the tar that was indexed, as far as a listing tells.

        False on a disk, where listings lack the exact time: see `check`.
        """
        return (
            not self.is_local
            and listed.size == shard.num_bytes
            and listed.etag == plain_etag(shard.etag or listed.etag)
        )

    def check_file(self, shard: Shard, found: os.stat_result) -> None:
        """Checks that a file is the tar that was indexed, by its size and its modification time.

        Raises:
            ChangedError: It is another one.
        """
        self._check_size(shard, found.st_size)
        if shard.mtime is not None and found.st_mtime_ns != shard.mtime:
            raise self._changed(shard, "modification time", _time(shard.mtime), _time(found.st_mtime_ns))

    def _check_info(self, shard: Shard, found: ObjectInfo) -> None:
        self._check_size(shard, found.size)
        if shard.etag is not None and plain_etag(shard.etag) != found.etag:
            raise self._changed(shard, "ETag", plain_etag(shard.etag), found.etag)

    def _check_size(self, shard: Shard, size: int) -> None:
        if size != shard.num_bytes:
            raise self._changed(shard, "size", f"{shard.num_bytes:,} bytes", f"{size:,}")

    def _changed(self, shard: Shard, what: str, expected: str, found: str) -> ChangedError:
        return ChangedError(
            f"not the tar that was indexed: {what} {expected} expected, found {found}; to read it as it is now, run "
            f"{self.index_again}",
            url=self.url_of(shard),
        )

    def missing(self, shard: Shard) -> NotFoundError:
        """Returns the error of a tar that does not exist."""
        problem = "the shard is missing: was its version dropped?"
        if self.is_foreign:
            problem = f"the tar is missing: put it back, or leave its samples out by {self.index_again}"
        return NotFoundError(problem, url=self.url_of(shard))

    def bad_part(self, shard: Shard) -> DamagedError:
        """Returns the error of a part whose bytes are not those of its index."""
        problem = f"not the bytes that were packed: run dray verify {self._location.url} to see how to repair it"
        if self.is_foreign:
            try:
                self.check(shard)
            except ChangedError as exc:
                return exc
            problem = f"not the bytes that were indexed: put the right tar back, or run {self.index_again}"
        return DamagedError(problem, url=self.url_of(shard))

    @property
    def index_again(self) -> str:
        """Command line that makes a version of the tars as they are now."""
        return self.index_command(self._location.prefix)

    def index_command(self, prefix: str) -> str:
        """Returns the command line that indexes the tars under a prefix."""
        into = [] if self.url == self._location.url else ["--into", self._location.url]
        return shlex.join(["dray", "index", self.url, *into, "--prefix", prefix])


def joined(ranges: Iterable[tuple[int, int]], gap: int) -> list[tuple[int, int]]:
    """Returns (start, length) of spans that cover all ranges, ascending; those with small gaps between share one."""
    spans: list[tuple[int, int]] = []
    for start, length in sorted(ranges):
        if spans and start - sum(spans[-1]) <= gap:
            first, size = spans[-1]
            spans[-1] = first, max(size, start + length - first)
        else:
            spans.append((start, length))
    return spans


def slice_of(spans: Sequence[tuple[int, memoryview]], start: int, length: int) -> memoryview:
    """Returns the bytes of a range that one of the ascending (start, bytes) covers."""
    first, body = spans[bisect_right(spans, start, key=itemgetter(0)) - 1]
    return body[start - first : start - first + length]


def _time(ns: int) -> str:
    return f"{datetime.fromtimestamp(ns // 10**9, UTC):%Y-%m-%dT%H:%M:%S}.{ns % 10**9:09d}Z"
