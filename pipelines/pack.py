"""Packing one shard: read its samples, lay them out as a tar, store it under a name that nobody has, then its index.

Safe to run twice, late, or after a crash: the shard is created, never overwritten, and where one lies already it is
read, held against the plan and indexed as it is. The index tells what is stored.
"""

from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.pipelines.sources import Sources, read_files
from dray.pipelines.transform import Transform
from dray.shards.errors import DamagedError, ExistsError, StoreError
from dray.shards.index import ShardIndex, digest_of
from dray.shards.layout import Layout, key_of
from dray.shards.log import CREATE_ATTEMPTS
from dray.shards.store import Store
from dray.shards.tar import Member, TarWriter, scan


@dataclass(frozen=True, slots=True, kw_only=True)
class PackJob:
    """What all shards of a build share. It travels to every worker once."""

    inputs: Store
    output: Store
    layout: Layout
    transform: Transform | None  # None: a part is its file


@dataclass(frozen=True, slots=True, kw_only=True)
class PackTask:
    """One shard to pack."""

    number: int
    sources: Sources
    memory_bytes: int  # what packing it takes at most
    is_stored: bool = False  # a shard of that number lay there when the tasks were made


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShard:
    """What came of it: a small record, no sample's bytes."""

    number: int
    num_bytes: int
    num_samples: int
    index_digest: str
    source_hashes: NDArray[np.uint64]  # (n, s) xxh3_64 of each input file
    adopted: bool  # it lay there whole already


@dataclass(frozen=True, slots=True)
class Filled:
    """A shard in memory, not yet stored."""

    task: PackTask
    tar: bytearray
    index: ShardIndex
    source_hashes: NDArray[np.uint64]


def pack_shard(job: PackJob, task: PackTask) -> PackedShard:
    """Pack and store one shard, or adopt the one that lies there. Durable, idempotent.

    A crash leaves no shard, or a whole one to adopt.

    Raises:
        InputError: A sample could not be read or transformed: names it.
        DamagedError: Something else lies under that number.
        StoreError: The store failed.
    """
    return adopt_shard(job, task) if task.is_stored else store_shard(job, fill_shard(job, task))


def fill_shard(job: PackJob, task: PackTask) -> Filled:
    """Read the samples of a shard and lay them out in memory.

    Raises:
        InputError: A sample could not be read or transformed: names it.
    """
    return _fill_as_is(job, task) if job.transform is None else _fill_transformed(job, task, job.transform)


def _fill_as_is(job: PackJob, task: PackTask) -> Filled:
    """Each part is its file: the hot path, two microseconds a part beyond reading it."""
    tar = TarWriter()
    keys, suffixes = task.sources.keys(), task.sources.suffixes
    files = [f"{key}.{suffix}".encode() for key in keys for suffix in suffixes]
    tar.extend(files, task.sources.sizes.ravel(), read_files(job.inputs, task.sources))
    body = tar.finish()
    shape = task.sources.sizes.shape
    index = ShardIndex(
        keys=keys,
        suffixes=suffixes,
        offsets=np.array(tar.offsets, np.uint64).reshape(shape),
        sizes=np.array(tar.sizes, np.uint32).reshape(shape),
        xxh3_64=np.array(tar.hashes, np.uint64).reshape(shape),
        shard_bytes=len(body),
    )
    return Filled(task, body, index, index.xxh3_64)


def _fill_transformed(job: PackJob, task: PackTask, transform: Transform) -> Filled:
    """Each sample is what the user's function makes of it; samples may differ in their suffixes."""
    tar = TarWriter()
    files: list[str] = []
    hashes: list[list[int]] = []
    suffixes = task.sources.suffixes
    parts_in_a_row = read_files(job.inputs, task.sources)
    for name in task.sources.names:
        parts = list(islice(parts_in_a_row, len(suffixes)))
        hashes.append([xxh3_64_intdigest(data) for data in parts])
        sample = transform(name, dict(zip(suffixes, parts, strict=True)))
        for suffix, data in sample.items():
            files.append(f"{key_of(name)}.{suffix}")
            tar.add(files[-1].encode(), data)
    body = tar.finish()
    members = map(Member, files, tar.offsets, tar.sizes, tar.hashes)
    index = ShardIndex.of_members(members, shard_bytes=len(body), where=job.layout.shard(task.number))
    return Filled(task, body, index, np.array(hashes, np.uint64))


def store_shard(job: PackJob, filled: Filled) -> PackedShard:
    """Store a shard and its index, durably: shard first, so that an index always has its shard.

    Raises:
        DamagedError: Something else lies under that number.
        StoreError: The store failed; nothing half-written is visible.
    """
    if not _create(job.output, job.layout.shard(filled.task.number), filled.tar):
        return adopt_shard(job, filled.task)  # a parallel attempt's, or the retry of our own request
    return _store_index(job, filled.task, filled.index, filled.source_hashes, adopted=False)


def adopt_shard(job: PackJob, task: PackTask) -> PackedShard:
    """Take the shard that lies there for this task's: read from its first byte to its last, and indexed as it is.

    Raises:
        DamagedError: It is broken, or holds other samples than the task's.
    """
    name = job.layout.shard(task.number)
    url = job.output.url_of(name)
    try:
        info = job.output.head(name)
        with job.output.open_stream(name) as stream:
            index = ShardIndex.of_members(scan(stream, url), shard_bytes=info.size if info else 0, where=url)
        if not _holds(index, job, task.sources):
            raise DamagedError(f"{url} holds other samples than this build reserved it for")
    except DamagedError as exc:
        raise DamagedError(f"{exc}; did another program write there? Move {url} away, then build again") from exc
    hashes = index.xxh3_64 if job.transform is None else hash_sources(job, task.sources)
    return _store_index(job, task, index, hashes, adopted=True)


def _holds(index: ShardIndex, job: PackJob, sources: Sources) -> bool:
    """Whether a stored shard holds the planned samples; of a function's parts only the keys are known beforehand."""
    if list(index.keys) != sources.keys():
        return False
    return job.transform is not None or (
        index.suffixes == sources.suffixes and np.array_equal(index.sizes, sources.sizes)
    )


def hash_sources(job: PackJob, sources: Sources) -> NDArray[np.uint64]:
    """(n, s) xxh3_64 of each file, read for it."""
    hashes = [xxh3_64_intdigest(data) for data in read_files(job.inputs, sources)]
    return np.array(hashes, np.uint64).reshape(sources.sizes.shape)


def _store_index(
    job: PackJob, task: PackTask, index: ShardIndex, source_hashes: NDArray[np.uint64], *, adopted: bool
) -> PackedShard:
    """Store the index of a stored shard, make both durable, and sum up."""
    shard_name, index_name = job.layout.shard(task.number), job.layout.index(task.number)
    body = index.to_bytes()
    if not _create(job.output, index_name, body) and job.output.get(index_name) != body:
        raise DamagedError(
            f"{job.output.url_of(index_name)} is not the index of {shard_name}, which lies beside it: was a shard "
            "deleted by hand? Delete both, then build again"
        )
    job.output.sync([shard_name, index_name], folders=False)  # the driver does these, once
    return PackedShard(
        number=task.number,
        num_bytes=index.shard_bytes,
        num_samples=len(index.keys),
        index_digest=digest_of(body),
        source_hashes=source_hashes,
        adopted=adopted,
    )


def _create(store: Store, name: str, data: bytes | bytearray) -> bool:
    """Whether this call created the object; False where one lay there: an earlier or parallel attempt's."""
    for _ in range(CREATE_ATTEMPTS):
        try:
            store.put_new(name, data)
        except ExistsError:
            if store.head(name) is None:  # a conflict answered for an object that is not there yet: try again
                continue
            return False
        return True
    raise StoreError(f"cannot create {store.url_of(name)}: the store says that it exists and that it does not")
