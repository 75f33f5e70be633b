"""Reads samples from a local disk as slices of mapped files, without copies.

A part of a sample costs about a microsecond: the rows of all open indexes are in one array by the number of the sample,
so all samples of a read are looked up and checked at once.
"""

import mmap
import os
import resource
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.shards.errors import DamagedError, NotFoundError
from dray.shards.reading.catalog import INDEX_BYTES, Catalog
from dray.shards.reading.samples import MappedParts, Run, Samples, Stats, check_part
from dray.shards.reading.suffixes import WantedParts

OPEN_MAPS = 4096  # upper limit besides a quarter of the limit on file descriptors: each map holds one


@dataclass(frozen=True, slots=True, eq=False)
class _Places:
    """The location of one part of each of N samples; only samples of open shards are filled in.

    Attributes:
        starts: (N,) offsets in the tar; 0 where a sample lacks the part.
        sizes: (N,) sizes in bytes; 0 where a sample lacks the part.
        hashes: (N,) xxh3_64 of the parts.
    """

    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    hashes: NDArray[np.uint64]

    @classmethod
    def nowhere(cls, num_samples: int) -> "_Places":
        """Returns places without any part; memory is allocated as they are filled in."""
        starts, sizes, hashes = (_sparse_zeros(num_samples, dtype) for dtype in (np.int64, np.int64, np.uint64))
        return cls(starts, sizes, hashes)


def _sparse_zeros(size: int, dtype: Any) -> NDArray[Any]:
    """Returns zeros in small pages, allocated on write: huge pages would take 2 MiB for each shard."""
    memory = mmap.mmap(-1, max(1, size * np.dtype(dtype).itemsize), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):  # Linux
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype, size)


class MappedReader:
    """Reads samples of tars on a local disk.

    Args:
        catalog: The samples.
        wanted: The parts that are read.
    """

    def __init__(self, catalog: Catalog, wanted: WantedParts) -> None:
        self.stats = Stats()
        self._catalog = catalog
        self._wanted = wanted
        self._close()

    def expect(self, runs: Iterable[Run]) -> None:
        """Does nothing: the operating system reads ahead by itself."""

    def read(self, samples: NDArray[np.int64], runs: Sequence[Run]) -> Samples:
        """See `Reader`; a part is checked on first access."""
        places, rows = self._catalog.locate(samples)
        if not self._is_open[places].all():
            try:
                self._open(dict.fromkeys(places.tolist()))
            except (DamagedError, NotFoundError):
                if len(samples) > 1:  # name the first unreadable sample, as `RangeReader` does
                    for number in range(len(samples)):
                        self.read(samples[number : number + 1], runs[number : number + 1]).check()
                raise
        if self._catalog.snapshot.tars.is_foreign:
            self._check_foreign(set(places.tolist()))
        parts = {suffix: self._parts(suffix, samples, places) for suffix in self._found}
        self.stats.samples += len(places)
        return Samples(self._catalog, places, rows, parts)

    def _parts(self, suffix: str, samples: NDArray[np.int64], places: NDArray[np.int64]) -> MappedParts:
        found, bodies = self._found[suffix], self._bodies
        starts, sizes, hashes = found.starts[samples], found.sizes[samples], found.hashes[samples]
        self.stats.bytes += int(sizes.sum())

        def read(numbers: range) -> list[memoryview | None]:
            some = slice(numbers.start, numbers.stop)
            first, last = starts[some], starts[some] + sizes[some]
            where = zip(places[some].tolist(), first.tolist(), last.tolist(), strict=True)
            slices: list[memoryview | None] = [bodies[place][start:end] for place, start, end in where]
            expected = hashes[some].tolist()
            if list(map(xxh3_64_intdigest, slices)) != expected:  # type: ignore[arg-type]  # none is None yet
                for at, (number, part) in enumerate(zip(numbers, slices, strict=True)):
                    if part is None or not starts[number]:
                        slices[at] = None
                    else:
                        place = int(places[number])
                        row = int(samples[number]) - self._catalog.first_sample(place)
                        check_part(self._catalog, place, row, suffix, part, expected[at])
            return slices

        return MappedParts(self._addresses[places] + starts.view(np.uint64), starts, sizes, hashes, read)

    def _close(self) -> None:
        """Drop all open shards."""
        self._size_of: dict[int, Callable[[], int]] = {}  # returns the size that a mapped file has now
        self._bodies: list[memoryview] = [memoryview(b"")] * len(self._catalog.snapshot.shards)
        self._addresses = np.zeros(len(self._bodies), np.uint64)  # address of each mapped shard
        self._is_open = np.zeros(len(self._bodies), bool)
        self._found: dict[str, _Places] = {}
        self._open_bytes = 0

    def _open(self, places: Iterable[int]) -> None:
        """Open the shards that are not open; close all others first if there would be too many."""
        for attempt in range(2):
            for place in places:
                if not self._is_open[place]:
                    self._open_one(place)
            is_too_much = self._is_open.sum() > _most_maps() or self._open_bytes > INDEX_BYTES
            if attempt or not is_too_much:
                return
            self._close()

    def _open_one(self, place: int) -> None:
        catalog = self._catalog
        mapped, columns = self._map(place), catalog.columns(place)
        body = memoryview(mapped)
        first = catalog.first_sample(place)
        for suffix in self._wanted.stored(columns):
            if suffix not in self._found:
                self._found[suffix] = _Places.nowhere(catalog.num_stored)
            found, offsets, sizes = self._found[suffix], columns.offsets[suffix], columns.sizes[suffix]
            rows = slice(first, first + len(offsets))
            found.starts[rows], found.sizes[rows], found.hashes[rows] = offsets, sizes, columns.hashes[suffix]
            self._open_bytes += 24 * len(offsets)
        self._size_of[place], self._bodies[place] = mapped.size, body
        self._addresses[place] = np.frombuffer(body, np.uint8).ctypes.data
        self._is_open[place] = True

    def _map(self, place: int) -> mmap.mmap:
        tars, shard = self._catalog.snapshot.tars, self._catalog.shard(place)
        try:
            with tars.path(shard).open("rb") as file:
                found = os.fstat(file.fileno())
                if tars.is_foreign:
                    tars.check_file(shard, found)
                if found.st_size == shard.num_bytes:  # access beyond the end of a mapped file crashes the process
                    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except FileNotFoundError as exc:
            raise tars.missing(shard) from exc
        raise DamagedError(
            f"{shard.num_bytes} bytes expected, found {found.st_size}: it was cut or replaced; run dray verify",
            url=tars.url_of(shard),
        )

    def _check_foreign(self, places: Iterable[int]) -> None:
        """Check that no other program has written to the mapped tars: one that was cut would crash the process."""
        tars, size_of, shards = self._catalog.snapshot.tars, self._size_of, self._catalog.snapshot.shards
        for place in places:
            if size_of[place]() != shards[place].num_bytes:
                tars.check(shards[place])  # names what was found
                raise DamagedError("written to while it was read", url=tars.url_of(shards[place]))


def _most_maps() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_MAPS if soft == resource.RLIM_INFINITY else max(1, min(OPEN_MAPS, soft // 4))
