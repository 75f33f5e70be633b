"""Indexes uncommitted tars of a local disk in memory, so that they are read like any dataset.

Each process reads all tars once, at the speed of the disk, but at most about 100,000 members/s. Members of
one key that are not adjacent are different samples, as for webdataset; a part that a sample has twice is an error.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa

from dray.shards.errors import CallError
from dray.shards.index import ShardIndex, digest_of
from dray.shards.layout import Layout, Location, some
from dray.shards.log import Commit
from dray.shards.manifest import Accounting, Kind, Manifest, Shard, part_table
from dray.shards.messages import counted
from dray.shards.parsing.columns import Columns
from dray.shards.parts import ArrayTypes
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.node_cache import BlockStore
from dray.shards.reading.tar_files import TarFiles
from dray.shards.snapshot import DEFAULT_PREFIX, Snapshot
from dray.shards.storage import disk
from dray.shards.storage.store import Store
from dray.shards.tar import Member, scan

THREADS = 8  # tars that are read at a time; small members keep one core busy, large ones and slow disks several

Advance = Callable[[int], None]
"""Is called with the number of bytes of each member that was read, by several threads."""


@dataclass(frozen=True, slots=True, weakref_slot=True)
class TarSnapshot(Snapshot):
    """The snapshot that a build of some tars would have committed; it exists in memory only and has the version 0.

    The digest of its manifest depends on the names of the tars, below their common folder, and on what they hold.

    Attributes:
        indexes: The bytes of one index for each tar.
    """

    indexes: tuple[bytes, ...] = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """See `Snapshot`."""
        return f"the tars in {self.store.url}"

    def columns(self, place: int) -> Columns:
        """Returns the index of a tar by its position in the list."""
        return Columns.read(self.indexes[place], self.shard_url(self.shards[place]))

    def index(self, shard: Shard) -> ShardIndex:
        """See `Snapshot`."""
        return ShardIndex.from_bytes(self.indexes[shard.number], self.shard_url(shard))

    def samples(self) -> pa.Table:
        """Returns the samples, sorted by key, then by position: key, shard, row. A key may appear more than once."""
        columns = [self.columns(place) for place in range(len(self.shards))]
        counts = [len(of_tar.keys) for of_tar in columns]
        table = pa.table(
            {
                "key": pa.chunked_array([of_tar.keys for of_tar in columns], pa.string()),
                "shard": np.repeat(np.arange(len(counts)), counts),
                "row": np.concatenate([np.arange(count) for count in counts]),
            }
        )
        return table.sort_by([(name, "ascending") for name in table.column_names])


class TarCatalog(Catalog):
    """The samples of tars that were indexed in memory."""

    snapshot: TarSnapshot

    def _read(self, place: int) -> Columns:
        return self.snapshot.columns(place)


def open_catalog(snapshot: Snapshot, *, limit: int | None = None, blocks: BlockStore | None = None) -> Catalog:
    """Returns the catalog of a snapshot, committed or in memory; the arguments are those of `Catalog`."""
    return (TarCatalog if isinstance(snapshot, TarSnapshot) else Catalog)(snapshot, limit=limit, blocks=blocks)


def index_tars(files: TarFiles, advance: Advance = lambda _: None) -> TarSnapshot:
    """Returns the snapshot of tars on a local disk. While one of the same, unchanged tars is in use it is shared.

    Raises:
        CallError: They hold no sample.
        NotFoundError: A tar was deleted meanwhile.
        DamagedError: A tar is incomplete, or a sample has one part twice; names the tar and the offset.
    """
    key = (files.store.url, *((name, *_stamp(files.store, name)) for name in files.names))
    found = _KNOWN.get(key)
    if found is None:
        with ThreadPoolExecutor(min(THREADS, len(files.names)), thread_name_prefix="dray-index") as threads:
            indexes = list(threads.map(partial(_index, files.store, advance), files.names))
        found = _KNOWN[key] = _snapshot(files, indexes)
    return found


_KNOWN: WeakValueDictionary[tuple[object, ...], TarSnapshot] = WeakValueDictionary()


def _stamp(store: Store, name: str) -> tuple[int, ...]:
    with disk.file_errors(store.url_of(name)):
        info = os.stat(Path(str(store.local_root), name))
    return info.st_size, info.st_mtime_ns, info.st_ino


def _index(store: Store, advance: Advance, name: str) -> ShardIndex:
    url = store.url_of(name)
    with store.open_stream(name) as stream:
        size = os.fstat(stream.fileno()).st_size
        return ShardIndex.of_members(_noted(scan(stream, url), advance), shard_bytes=size, where=url)


def _noted(members: Iterable[Member], advance: Advance) -> Iterator[Member]:
    for member in members:
        advance(member.size)
        yield member


def _snapshot(files: TarFiles, indexes: Sequence[ShardIndex]) -> TarSnapshot:
    bodies = tuple(index.to_bytes() for index in indexes)
    shards = [_shard(*found) for found in zip(range(len(bodies)), files.names, indexes, bodies, strict=True)]
    manifest = _manifest(shards, [index.array_types() for index in indexes])
    if not manifest.num_samples:
        raise CallError(
            f"{files.store.url}: no sample in {counted(len(shards), 'tar')} ({some(files.names, 3)}): members with a "
            "suffix expected, such as a/b.jpg"
        )
    commit = Commit(
        number=0,
        operation="",
        version=0,
        intent=0,
        manifest=digest_of(manifest.to_bytes()),
        num_samples=manifest.num_samples,
        num_shards=len(shards),
        num_bytes=sum(shard.num_bytes for shard in shards),
        write_id="",
        created="",
    )
    return TarSnapshot(Location(files.store, Layout(DEFAULT_PREFIX)), commit, manifest, bodies)


def _shard(number: int, name: str, index: ShardIndex, body: bytes) -> Shard:
    """Returns a tar as a manifest lists it; without its time, which says nothing about its content."""
    return Shard(
        number=number,
        num_bytes=index.shard_bytes,
        num_samples=len(index.keys),
        digest="",
        index_digest=digest_of(body),
        parts=index.parts(),
        name=name,
    )


def _manifest(counted_shards: Sequence[Shard], arrays: Sequence[ArrayTypes]) -> Manifest:
    parts, shards = part_table({}, counted_shards, arrays)
    return Manifest(
        kind=Kind.INDEXED,
        prefix="",
        source_url="",
        recipe={},
        intent=0,
        num_samples=sum(shard.num_samples for shard in shards),
        accounting=Accounting(inputs=0, packed=0),
        parts=parts,
        shards=shards,
    )
