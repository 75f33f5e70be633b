"""Scanning tars: one pass over each from start to end, which stores its index. Nothing of a tar is kept in memory."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import BinaryIO, cast

import pyarrow as pa

from dray.pipelines.building.job import TASK_BYTES
from dray.pipelines.building.pack import store_index
from dray.pipelines.indexing.changes import KeyScope
from dray.pipelines.indexing.listing import Tar
from dray.pipelines.indexing.notes import Notes
from dray.pipelines.indexing.threads import CountedStream, OnRead
from dray.pipelines.indexing.unpack import compression_in
from dray.pipelines.indexing.untouched import open_unchanged
from dray.shards.errors import DamagedError, NotFoundError
from dray.shards.index import ShardIndex, digest_of
from dray.shards.layout import Location, some
from dray.shards.manifest import Shard
from dray.shards.messages import counted
from dray.shards.parts import ArrayTypes, Counts
from dray.shards.storage.store import Store
from dray.shards.tar import BLOCK, scan

STREAM_BYTES = 64 << 20  # memory of one open stream and one piece of a member
INDEX_SHARE = 64  # bytes of a tar for each byte of memory that its index may take


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanJob:
    """What all tars of an index share.

    Attributes:
        source: Store of the tars.
        location: Where the dataset is.
        keys: A `KeyScope`.
    """

    source: Store
    location: Location
    keys: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanTask:
    """A tar to scan.

    Attributes:
        number: Number of its index.
        tar: The tar.
        is_stored: Whether its index existed when the task was made; None: unknown.
    """

    number: int
    tar: Tar
    is_stored: bool | None = False

    @property
    def num_bytes(self) -> int:
        """Size of the tar."""
        return self.tar.num_bytes

    @property
    def memory_bytes(self) -> int:
        """Maximum number of bytes of memory that the task needs."""
        return TASK_BYTES + STREAM_BYTES + self.tar.num_bytes // INDEX_SHARE

    def again(self) -> "ScanTask":
        """Returns the task for another attempt, after one that may have stored the index."""
        return replace(self, is_stored=self.is_stored or None)

    def __str__(self) -> str:
        return f"the scan of {self.tar.name!r}"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ScannedTar:
    """The record of a scanned tar.

    Attributes:
        number: Number of its index.
        tar: The tar.
        keys: (n,) string, the keys of its samples in order.
        index_digest: Digest of its index; empty if none was stored.
        parts: Suffix -> number of samples that have it.
        arrays: Suffix -> dtype and shape, if all its parts are arrays of these.
        notes: What WebDataset drops or confuses in it.
        problem: Why it cannot be indexed; empty if it can.
        adopted: Whether its index was already stored.
    """

    number: int
    tar: Tar
    keys: pa.Array = field(default_factory=lambda: pa.array([], pa.string()))
    index_digest: str = ""
    parts: Counts = field(default_factory=dict)
    arrays: ArrayTypes = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
    problem: str = ""
    adopted: bool = False

    def shard(self, digest: str) -> Shard:
        """Returns the manifest's record of it."""
        return Shard(
            number=self.number,
            num_bytes=self.tar.num_bytes,
            num_samples=len(self.keys),
            digest=digest,
            index_digest=self.index_digest,
            parts=self.parts,
            name=self.tar.name,
            etag=self.tar.etag,
            mtime=self.tar.mtime,
        )


def scan_tars(job: ScanJob, tasks: Sequence[ScanTask]) -> Iterator[ScannedTar]:
    """Scan tars one after another; yields the record of each: see `scan_tar`."""
    for task in tasks:
        yield scan_tar(job, task)


def scan_tar(job: ScanJob, task: ScanTask, on_read: OnRead | None = None) -> ScannedTar:
    """Read a tar and store its index, durably, or adopt the index that is stored. Idempotent.

    The tar is read in pieces. A tar that cannot be indexed is reported in the record, and no index is stored.

    Raises:
        InputError: The tar was changed while it was read.
        NotFoundError: It does not exist.
        StoreError: A store failed.
    """
    index_name = job.location.layout.index(task.number)
    is_stored = task.is_stored
    if is_stored is None:
        is_stored = job.location.store.head(index_name) is not None
    if is_stored:
        return _adopted(job, task)
    notes = Notes()
    try:
        index = _index_of(job, task.tar, notes, on_read)
    except DamagedError as exc:
        return ScannedTar(number=task.number, tar=task.tar, notes=notes, problem=_problem(job, task.tar, exc))
    if twice := _twice(index.keys):
        return ScannedTar(number=task.number, tar=task.tar, notes=notes, problem=twice)
    if not index.keys:
        return ScannedTar(number=task.number, tar=task.tar, notes=notes)
    notes.compare_case(index.keys)
    if job.keys == KeyScope.PER_TAR:
        index = replace(index, keys=[f"{task.tar.name.removesuffix('.tar')}/{key}" for key in index.keys])
    return _record(task, index, store_index(job.location, task.number, index), notes)


def _record(task: ScanTask, index: ShardIndex, digest: str, notes: Notes, *, adopted: bool = False) -> ScannedTar:
    return ScannedTar(
        number=task.number,
        tar=task.tar,
        keys=pa.array(index.keys, pa.string()),
        index_digest=digest,
        parts=index.parts(),
        arrays=index.array_types(),
        notes=notes,
        adopted=adopted,
    )


def _adopted(job: ScanJob, task: ScanTask) -> ScannedTar:
    """Returns the record of a tar whose index an earlier run stored under the number that it reserved for this tar."""
    name = job.location.layout.index(task.number)
    body = job.location.store.get(name)
    index = ShardIndex.from_bytes(body, job.location.store.url_of(name))
    if index.shard_bytes != task.tar.num_bytes:
        raise DamagedError(
            f"not the index of {task.tar.name!r}, for which its number is reserved: move it away, then index again",
            url=job.location.store.url_of(name),
        )
    return _record(task, index, digest_of(body), Notes(), adopted=True)


def _index_of(job: ScanJob, tar: Tar, notes: Notes, on_read: OnRead | None) -> ShardIndex:
    """Returns the index of a tar that is the same before and after it was read."""
    url = job.source.url_of(tar.name)
    with open_unchanged(job.source, tar) as stream:
        members = scan(cast(BinaryIO, CountedStream(stream, on_read)), url, notes.other)
        return ShardIndex.of_members(notes.watch(members), shard_bytes=tar.num_bytes, where=url)


def _problem(job: ScanJob, tar: Tar, exc: DamagedError) -> str:
    """Returns why a tar cannot be indexed, with the way out."""
    at = "" if exc.offset is None else f" at offset {exc.offset}"
    if exc.offset != 0:
        return f"{exc.problem}{at}"
    if tar.num_bytes == 0:
        return "an empty file of 0 bytes: write the tar again"
    with suppress(NotFoundError):
        head = bytes(job.source.get_ranges(tar.name, [0], [min(BLOCK, tar.num_bytes)])[0])
        if kind := compression_in(head):
            return f"compressed ({kind}), so that its samples cannot be read one by one: unpack it by unpack_to='URL'"
    return f"not a tar: {exc.problem}"


def _twice(keys: Sequence[str]) -> str:
    """Returns the problem of keys that occur more than once in a tar; empty if there are none."""
    if len(set(keys)) == len(keys):
        return ""
    twice = [key for key, count in Counter(keys).items() if count > 1]
    return (
        f"{counted(len(twice), 'key')} with members that are not side by side, of which webdataset makes several "
        f"samples: {some(twice, 3)}; write the tar again with all parts of a sample together, as tar --sort=name does, "
        "or copy tars that are on a disk by `dray reshard --unique-keys join`"
    )
