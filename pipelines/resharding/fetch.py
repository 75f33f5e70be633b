"""Reads rows of a version by what its indexes say, which come with the task: no worker reads an index."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dray.pipelines.resharding.rows import Rows
from dray.shards.parsing.columns import Columns
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.mapped import MappedReader
from dray.shards.reading.rows import RowFetcher
from dray.shards.reading.suffixes import EVERY_PART
from dray.shards.snapshot import Snapshot

Parts = dict[str, bytes]
REQUESTS_AT_ONCE = 32
REQUEST_BYTES = 4 << 20  # samples of a tar that are fetched together; small gaps between them are read over


def fetch_rows(source: Snapshot, rows: Rows) -> list[Parts]:
    """Returns the parts of each row, checked; they are read in the order of the tars, neighbours together.

    Raises:
        NotFoundError: A tar is missing.
        DamagedError: A part differs from its index; names tar, key and suffix.
        StoreError: The store failed.
    """
    order = np.lexsort((_first_offsets(rows), rows.places))
    catalog = _RowCatalog(source, rows.take(order))
    found = _mapped(catalog) if source.is_local else _fetched(catalog)
    parts: list[Parts] = [{}] * len(rows)
    for number, of_row in zip(order.tolist(), found, strict=True):
        parts[number] = of_row
    return parts


def _first_offsets(rows: Rows) -> NDArray[np.uint64]:
    """Returns (n,) where the first part of each row is in its tar."""
    firsts: NDArray[np.uint64] = np.where(rows.offsets > 0, rows.offsets, np.iinfo(np.uint64).max).min(axis=1)
    return firsts


class _RowCatalog(Catalog):
    """Some rows of a version as if they were all that its tars hold."""

    def __init__(self, source: Snapshot, rows: Rows) -> None:
        bounds = [0, *(np.flatnonzero(np.diff(rows.places)) + 1).tolist(), len(rows)]
        self._of_place = [rows.take(np.arange(start, stop)) for start, stop in pairwise(bounds)]
        shards = tuple(replace(source.shards[found.places[0]], num_samples=len(found)) for found in self._of_place)
        super().__init__(Snapshot(source.location, source.commit, replace(source.manifest, shards=shards)))

    def columns(self, place: int) -> Columns:
        """See `Catalog`."""
        rows = self._of_place[place]
        has = [column for column in range(len(rows.suffixes)) if rows.offsets[:, column].any()]
        offsets, sizes, hashes = (
            {rows.suffixes[column]: matrix[:, column] for column in has}
            for matrix in (rows.offsets, rows.sizes, rows.hashes)
        )
        return Columns(
            keys=rows.keys,
            offsets=offsets,
            sizes=sizes,
            hashes=hashes,
            sources=None,
            fingerprints=None,
            arrays={},
            shard_bytes=self.shard(place).num_bytes,
            num_bytes=0,
            digest="",
            content=(b"", pa.py_buffer(b"")),
        )

    def pieces(self) -> Iterator[tuple[int, Sequence[int]]]:
        """Yields neighbouring rows that are fetched together, and the position of their shard."""
        for place, rows in enumerate(self._of_place):
            ends = np.cumsum(rows.sizes.sum(axis=1, dtype=np.int64))
            for chosen in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(ends // REQUEST_BYTES)) + 1):
                yield place, chosen.tolist()


def _mapped(catalog: _RowCatalog) -> Iterator[Parts]:
    """Yields the parts of each row from a disk."""
    reader = MappedReader(catalog, EVERY_PART)
    for place, rows in catalog.pieces():
        numbers = np.array(rows) + catalog.first_sample(place)
        samples = reader.read(numbers, [(number, 1) for number in numbers.tolist()])
        columns = {suffix: list(samples.parts[suffix]) for suffix in catalog.columns(place).offsets}
        for row in range(len(rows)):
            yield {suffix: bytes(data) for suffix, parts in columns.items() if (data := parts[row]) is not None}


def _fetched(catalog: _RowCatalog) -> Iterator[Parts]:
    """Yields the parts of each row from object storage; a row that was damaged on the way is fetched again."""
    fetcher = RowFetcher(catalog, EVERY_PART, None)

    def fetch(piece: tuple[int, Sequence[int]]) -> list[Parts]:
        place, rows = piece
        _, found = fetcher.fetch(place, rows, group=rows[0], is_shared=False)
        views = [found.get(row) or fetcher.fetch_row(place, row) for row in rows]
        return [{suffix: bytes(data) for suffix, data in of_row.items()} for of_row in views]

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
        for found in threads.map(fetch, catalog.pieces()):
            yield from found
