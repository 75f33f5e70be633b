"""Samples of tars on a local disk: slices of mapped files; nothing is copied.

What runs once for each part of each sample is kept to a microsecond: rows of indexes are looked up through memoryviews,
which give plain integers, and all checksums of a read are compared at once.
"""

import mmap
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.loaders.catalog import INDEX_BYTES, Catalog, Columns
from dray.loaders.fetch import Run, Samples, Stats, check_part
from dray.shards.errors import DamagedError, NotFoundError

OPEN_MAPS = 4096

_Numbers = memoryview  # of unsigned integers, one a sample
_Columns = tuple[_Numbers, _Numbers, _Numbers]  # offsets, sizes, hashes
_Where = tuple[memoryview, _Numbers, _Numbers, _Numbers]  # a tar and those of one of its parts
_NOTHING: _Columns = memoryview(b""), memoryview(b""), memoryview(b"")  # of a part that a shard lacks


class MappedReader:
    """Samples of tars on a local disk.

    Args:
        catalog: The samples.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.stats = Stats()
        self._catalog = catalog
        self._open: dict[int, tuple[memoryview, dict[str, _Columns], int]] = {}  # the tar, its index, bytes of that
        self._open_bytes = 0  # of indexes

    def expect(self, runs: Iterable[Run]) -> None:
        """The system reads ahead by itself."""

    def read(self, samples: NDArray[np.int64], runs: Sequence[Run]) -> Samples:  # noqa: ARG002  files need none
        """See `Reader`."""
        shards, found = self._catalog.locate(samples)
        places, rows = shards.tolist(), found.tolist()
        opened = {place: self._opened(place) for place in dict.fromkeys(places)}
        suffixes = dict.fromkeys(suffix for _, columns, _ in opened.values() for suffix in columns)
        parts: dict[str, list[memoryview | None]] = {}
        for suffix in suffixes:
            where = {place: (body, *columns.get(suffix, _NOTHING)) for place, (body, columns, _) in opened.items()}
            parts[suffix] = self._parts(suffix, places, rows, [where[place] for place in places])
        self.stats.samples += len(rows)
        self.stats.bytes += sum(len(part) for of_suffix in parts.values() for part in of_suffix if part is not None)
        return Samples(self._catalog, places, rows, parts)

    def _parts(
        self, suffix: str, places: Sequence[int], rows: Sequence[int], where: Sequence[_Where]
    ) -> list[memoryview | None]:
        """One part of each sample, checked."""
        if all(offsets for _, offsets, _, _ in where):
            slices = [
                body[(start := offsets[row]) : start + sizes[row]]
                for (body, offsets, sizes, _), row in zip(where, rows, strict=True)
            ]
            expected = [hashes[row] for (_, _, _, hashes), row in zip(where, rows, strict=True)]
            if list(map(xxh3_64_intdigest, slices)) == expected:
                return slices  # type: ignore[return-value]  # a list of one kind of items is not one of two
        return [self._part(suffix, *found) for found in zip(places, rows, where, strict=True)]

    def _part(self, suffix: str, place: int, row: int, where: _Where) -> memoryview | None:
        """One part of one sample; None where the sample lacks it."""
        body, offsets, sizes, hashes = where
        if not offsets or not (start := offsets[row]):
            return None
        part = body[start : start + sizes[row]]
        check_part(self._catalog, place, row, suffix, part, hashes[row])
        return part

    def _opened(self, place: int) -> tuple[memoryview, dict[str, _Columns], int]:
        """A shard and its index; those that were opened first are closed when there are too many."""
        found = self._open.get(place)
        if found is None:
            columns = self._catalog.columns(place)
            numbers = {suffix: _views(columns, suffix) for suffix in self._catalog.wanted(columns)}
            found = self._open[place] = self._map(place), numbers, columns.num_bytes
            self._open_bytes += columns.num_bytes
            while len(self._open) > OPEN_MAPS or (self._open_bytes > INDEX_BYTES and len(self._open) > 1):
                self._open_bytes -= self._open.pop(next(iter(self._open)))[2]
        return found

    def _map(self, place: int) -> memoryview:
        catalog = self._catalog
        path = Path(str(catalog.snapshot.store.local_root), catalog.shard_name(place))
        url, expected = catalog.shard_url(place), catalog.shard(place).num_bytes
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size == expected:  # beyond its end a mapped file is a crash, not an error
                    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError as exc:
            raise NotFoundError(
                f"{url}: the shard is missing: was version {catalog.snapshot.version} dropped?"
            ) from exc
        raise DamagedError(
            f"{url}: {expected} bytes expected, found {size}: it was cut or replaced; dray verify tells more"
        )


def _views(columns: Columns, suffix: str) -> _Columns:
    offsets: Any = columns.offsets[suffix]  # numpy's arrays are buffers from Python 3.12 on, by their types
    sizes: Any = columns.sizes[suffix]
    hashes: Any = columns.hashes[suffix]
    return memoryview(offsets), memoryview(sizes), memoryview(hashes)
