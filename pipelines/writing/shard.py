"""Storing shards that a program fills, under reserved numbers.

A task that runs again makes the same bytes and adopts what it stored before. Other bytes are an error: then the samples
depend on chance, time or order, and nobody could say what the dataset holds.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dray.pipelines.building.fill import ShardFiller, bytes_in_tar
from dray.pipelines.building.pack import create, store_index, store_while_filling
from dray.pipelines.planning.recipe import DEFAULT_SHARD_BYTES, MAX_SHARD_SAMPLES
from dray.shards.arguments import as_int
from dray.shards.errors import CallError, InputError
from dray.shards.index import ShardIndex, content_hashes
from dray.shards.layout import Location
from dray.shards.manifest import Shard
from dray.shards.parts import ArrayTypes, Counts
from dray.shards.tar import MAX_SHARD_BYTES

COMPARE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample to store.

    Attributes:
        key: Its key; see `layout.key_of`.
        parts: Suffix -> bytes.
        source: Number and fingerprint of the source that it was made of; None if it has no source.
    """

    key: str
    parts: dict[str, bytes]
    source: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class ShardSize:
    """The limits at which a shard is full: whichever comes first."""

    samples: int = MAX_SHARD_SAMPLES
    num_bytes: int = DEFAULT_SHARD_BYTES

    @classmethod
    def of(cls, samples_per_shard: int | None, shard_bytes: int | None) -> "ShardSize":
        """Returns the limits that the arguments ask for; without any, 256 MiB and 100,000 samples.

        Raises:
            CallError: One is not a positive integer, or `shard_bytes` is more than 4 GiB.
        """
        samples, num_bytes = samples_per_shard, shard_bytes
        if samples is not None:
            samples = as_int("samples_per_shard", samples, 1)
        if num_bytes is not None and as_int("shard_bytes", num_bytes, 1) > MAX_SHARD_BYTES:
            raise CallError(f"shard_bytes={num_bytes}: expected at most {MAX_SHARD_BYTES} (4 GiB)")
        if samples is None:
            return cls(num_bytes=DEFAULT_SHARD_BYTES if num_bytes is None else num_bytes)
        return cls(samples, MAX_SHARD_BYTES if num_bytes is None else num_bytes)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class WrittenShard:
    """The record of a stored shard, which a task returns to the driver.

    Attributes:
        number: Its number.
        num_bytes: Size of the tar.
        index_digest: Digest of the index.
        keys: (n,) string, the keys of its samples.
        sources: (n,) uint64, number of the source of each sample; None if they have none.
        hashes: (n,) uint64, see `content_hashes`.
        parts: Stored suffix -> number of samples that have it.
        arrays: Stored suffix -> dtype and shape, if all its parts are arrays of these.
        adopted: Whether it was already stored, complete.
        digest: Digest by which a plan finds it again; empty: that of its index.
    """

    number: int
    num_bytes: int
    index_digest: str
    keys: pa.Array
    sources: NDArray[np.uint64] | None
    hashes: NDArray[np.uint64]
    parts: Counts = field(default_factory=dict)
    arrays: ArrayTypes = field(default_factory=dict)
    adopted: bool = False
    digest: str = ""

    def shard(self) -> Shard:
        """Returns the manifest's record of it."""
        return Shard(
            number=self.number,
            num_bytes=self.num_bytes,
            num_samples=len(self.keys),
            digest=self.digest or self.index_digest,
            index_digest=self.index_digest,
            parts=self.parts,
        )


def store_shard(location: Location, number: int, body: bytearray, index: ShardIndex, step: str) -> WrittenShard:
    """Store a shard and its index under a reserved number, durably, or adopt the equal one that is stored. Idempotent.

    Args:
        location: Where the dataset is.
        number: The reserved number.
        body: The tar.
        index: Its index.
        step: What made the samples, for the error.

    Raises:
        InputError: An earlier attempt stored other bytes: the step is not deterministic.
        StoreError: The store failed; nothing half-written is visible.
    """
    is_new = create(location.store, location.layout.shard(number), body)
    if not is_new and not _is_stored(location, number, body):
        raise InputError(
            f"an earlier attempt stored other bytes than this one made by {step}: it is not deterministic. The same "
            "input must give the same samples in the same order: seed random numbers by the key, and let nothing "
            "depend on the time or on the worker; then write again",
            url=location.store.url_of(location.layout.shard(number)),
        )
    return record_of(number, index, store_index(location, number, index), adopted=not is_new)


def record_of(number: int, index: ShardIndex, index_digest: str, *, adopted: bool) -> WrittenShard:
    """Returns the record of a stored shard from its index."""
    return WrittenShard(
        number=number,
        num_bytes=index.shard_bytes,
        index_digest=index_digest,
        keys=pa.array(index.keys, pa.string()),
        sources=index.sources,
        hashes=content_hashes(index),
        parts=index.parts(),
        arrays=index.array_types(),
        adopted=adopted,
    )


def _is_stored(location: Location, number: int, body: bytearray) -> bool:
    """Whether the stored tar has just these bytes."""
    name = location.layout.shard(number)
    found = location.store.head(name)
    if found is None or found.size != len(body):
        return False
    view = memoryview(body)
    with location.store.open_stream(name, len(body)) as stream:
        starts = range(0, len(body), COMPARE_BYTES)
        return all(
            stream.read(len(view[start : start + COMPARE_BYTES])) == view[start : start + COMPARE_BYTES]
            for start in starts
        )


def store_in_order(
    location: Location, samples: Iterable[Sample], numbers: Iterable[int], size: ShardSize, step: str
) -> Generator[WrittenShard, None, None]:
    """Cut samples into shards and store them; yields the record of each.

    One shard is stored while the next is filled: at most two are in memory.

    Args:
        location: Where the dataset is.
        samples: The samples, in order.
        numbers: The reserved numbers, in the order in which they are used.
        size: When a shard is full.
        step: What made the samples, for errors.

    Raises:
        InputError: See `store_shard`.
        CallError: One sample is larger than 4 GiB, or the numbers ran out.
        StoreError: The store failed.
    """
    free = iter(numbers)

    def stores() -> Iterator[Callable[[], WrittenShard]]:
        for filler in _filled(samples, size):
            if (number := next(free, None)) is None:
                raise CallError("more shards than numbers were reserved for: make larger shards")
            yield partial(store_shard, location, number, *filler.finish(), step)

    yield from store_while_filling(stores())


def _filled(samples: Iterable[Sample], size: ShardSize) -> Iterator[ShardFiller]:
    filler = ShardFiller()
    for sample in samples:
        if filler.num_samples and not _has_room(filler, sample, size):
            yield filler
            filler = ShardFiller()
        filler.add(sample.key, sample.parts, sample.source)
    if filler.num_samples:
        yield filler


def _has_room(filler: ShardFiller, sample: Sample, size: ShardSize) -> bool:
    return (
        filler.num_samples < size.samples
        and filler.num_bytes + bytes_in_tar(sample.key, sample.parts) <= size.num_bytes
    )
