"""Packing one shard: read its samples, lay them out as a tar, store it under a name that nobody has, then its index.

Safe to run twice, late, or after a crash: the shard is created, never overwritten, and where one lies already it is
read, held against the plan and indexed as it is. The index tells what is stored.
"""

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import cloudpickle
import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.pipelines.sources import Sources, read_files
from dray.shards.errors import CallError, DamagedError, ExistsError, InputError, NotFoundError, StoreError
from dray.shards.index import ShardIndex, digest_of
from dray.shards.layout import Layout, check_suffixes, key_of
from dray.shards.log import CREATE_ATTEMPTS
from dray.shards.store import Store
from dray.shards.tar import Member, TarWriter, scan

Transform = Callable[[str, dict[str, bytes]], Mapping[str, Any]]
UNKNOWN_HASH = 0  # of a source that was packed by a transform before a crash


@dataclass(frozen=True, slots=True, kw_only=True)
class PackJob:
    """What all shards of a build share. It travels to every worker once."""

    inputs: Store
    output: Store
    layout: Layout
    transform: bytes | None  # cloudpickle of the user's function: a worker that lacks a module can then say which


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
    source_hashes: NDArray[np.uint64]  # (n, s) xxh3_64 of each input file; UNKNOWN_HASH where not known
    adopted: bool  # it lay there whole already


@dataclass(frozen=True, slots=True)
class Filled:
    """A shard in memory, not yet stored."""

    task: PackTask
    tar: bytearray
    index: ShardIndex
    source_hashes: NDArray[np.uint64]


def pack_shard(job: PackJob, task: PackTask) -> PackedShard:
    """Pack and store one shard, durably. Idempotent; a crash leaves no shard, or a whole one to adopt.

    Raises:
        InputError: A sample could not be read or transformed: names it.
        DamagedError: Another shard lies under that number.
        StoreError: The store failed.
    """
    return find_packed(job, task) or store_shard(job, fill_shard(job, task))


def find_packed(job: PackJob, task: PackTask) -> PackedShard | None:
    """The shard where an earlier attempt stored it with its index; None where it is still to pack."""
    if not task.is_stored:  # an index is never there before its shard
        return None
    name = job.layout.index(task.number)
    try:
        body = job.output.get(name)
    except NotFoundError:
        return None
    index = ShardIndex.from_bytes(body, job.output.url_of(name))
    shard = job.output.head(job.layout.shard(task.number))
    if shard is None or shard.size != index.shard_bytes:
        raise DamagedError(
            f"{job.output.url_of(job.layout.shard(task.number))}: its index says {index.shard_bytes} bytes, "
            f"found {shard.size if shard else 'nothing'}: somebody changed the dataset's folder"
        )
    return _record(job, task, index, body, adopted=True)


def fill_shard(job: PackJob, task: PackTask) -> Filled:
    """Read the samples of a shard and lay them out in memory.

    Raises:
        InputError: A sample could not be read or transformed: names it.
    """
    if job.transform is None:
        return _fill_as_is(job, task)
    return _fill_transformed(job, task, _load_transform(job.transform, task.sources.names[0]))


def _fill_as_is(job: PackJob, task: PackTask) -> Filled:
    """Each part is its file: the hot path, a few microseconds a part beyond reading it."""
    tar = TarWriter()
    keys, suffixes = task.sources.keys(), task.sources.suffixes
    files = (f"{key}.{suffix}".encode() for key in keys for suffix in suffixes)
    for file, data in zip(files, read_files(job.inputs, task.sources), strict=True):
        tar.add(file, data)
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
        sample = _transformed(transform, name, dict(zip(suffixes, parts, strict=True)))
        for suffix, data in sample.items():
            files.append(f"{key_of(name)}.{suffix}")
            tar.add(files[-1].encode(), data)
    body = tar.finish()
    members = map(Member, files, tar.offsets, tar.sizes, tar.hashes)
    index = ShardIndex.of_members(members, shard_bytes=len(body), where=job.layout.shard(task.number))
    return Filled(task, body, index, np.array(hashes, np.uint64))


def _load_transform(pickled: bytes, first_name: str) -> Transform:
    try:
        return cast(Transform, cloudpickle.loads(pickled))
    except ModuleNotFoundError as exc:
        raise _missing_module(first_name, exc) from exc


def _transformed(transform: Transform, name: str, suffix_to_data: dict[str, bytes]) -> dict[str, bytes]:
    """The parts that the user's function makes of one sample, checked.

    Raises:
        InputError: It raised, or gave something that cannot be stored: names the sample.
    """
    key = key_of(name)
    try:
        sample = dict(transform(key, suffix_to_data))
        if sample.pop("__key__", key) != key:
            raise CallError(f"func_output_data may not change the key {key!r}")
        for suffix in check_suffixes(sample):
            sample[suffix] = _encoded(suffix, sample[suffix])
    except ModuleNotFoundError as exc:
        raise _missing_module(name, exc) from exc
    except Exception as exc:
        raise InputError(f"sample {name!r}: func_output_data failed: {type(exc).__name__}: {exc}") from exc
    return sample


def _encoded(suffix: str, value: Any) -> bytes:
    """Bytes as they are; other values as webdataset's writer stores them under that suffix."""
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    from webdataset.writer import default_handlers, encode_based_on_extension1  # slow to import, rarely needed

    return bytes(encode_based_on_extension1(value, suffix, default_handlers))


def _missing_module(name: str, exc: ModuleNotFoundError) -> InputError:
    return InputError(
        f"sample {name!r}: func_output_data needs the module {exc.name!r}, which is missing where it ran "
        f"({platform.node()}): install it there, or ship it with Ray's runtime_env"
    )


def store_shard(job: PackJob, filled: Filled) -> PackedShard:
    """Store a shard and its index, durably: shard first, so that an index always has its shard.

    Raises:
        DamagedError: Another shard lies under that number.
        StoreError: The store failed; nothing half-written is visible.
    """
    task, index = filled.task, filled.index
    shard_name, index_name = job.layout.shard(task.number), job.layout.index(task.number)
    adopted = not _create(job.output, shard_name, filled.tar)
    if adopted:
        index = _index_stored(job.output, shard_name)
    body = index.to_bytes()
    if not _create(job.output, index_name, body) and job.output.get(index_name) != body:
        raise DamagedError(f"{job.output.url_of(index_name)}: not the index of the shard beside it")
    job.output.sync([shard_name, index_name], folders=False)  # the driver does these, once
    return _record(job, task, index, body, adopted=adopted, source_hashes=filled.source_hashes)


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


def _index_stored(store: Store, name: str) -> ShardIndex:
    """The index of a shard that lies there, read from its first byte to its last.

    Raises:
        DamagedError: It is broken.
    """
    url = store.url_of(name)
    info = store.head(name)
    with store.open_stream(name) as stream:
        return ShardIndex.of_members(scan(stream, url), shard_bytes=info.size if info else 0, where=url)


def _record(
    job: PackJob,
    task: PackTask,
    index: ShardIndex,
    body: bytes,
    *,
    adopted: bool,
    source_hashes: NDArray[np.uint64] | None = None,
) -> PackedShard:
    """The record of a stored shard, once it is known to hold just the planned keys."""
    if list(index.keys) != task.sources.keys():
        raise DamagedError(
            f"{job.output.url_of(job.layout.shard(task.number))} holds other samples than this build reserved it for: "
            "did another program write there?"
        )
    if job.transform is None:
        source_hashes = index.xxh3_64
    elif source_hashes is None:
        source_hashes = np.full(task.sources.sizes.shape, UNKNOWN_HASH, np.uint64)
    return PackedShard(
        number=task.number,
        num_bytes=index.shard_bytes,
        num_samples=len(index.keys),
        index_digest=digest_of(body),
        source_hashes=source_hashes,
        adopted=adopted,
    )
