"""Fetches rows of shards from object storage by ranges, and checks their parts against the index."""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from time import monotonic

import numpy as np
from xxhash import xxh3_64_intdigest

from dray.shards.errors import ChangedError, DamagedError, DeniedError, NotFoundError, StoreError
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.node_cache import BlockStore, Kept
from dray.shards.reading.samples import Stats, check_part
from dray.shards.reading.suffixes import WantedParts
from dray.shards.reading.tars import joined, slice_of

AGAIN_S = 60.0  # time after which a missing object is requested again
ATTEMPTS = 3  # attempts at a request, besides the retries of the client of the store
GAP_BYTES = 16 << 10  # largest gap inside one request: headers, padding, small unwanted parts

SampleParts = dict[str, memoryview]  # parts of one sample by suffix
ByRow = dict[int, SampleParts]
_Span = tuple[int, memoryview]  # offset in the tar, bytes


class RowFetcher:
    """Fetches rows of shards by ranged requests, through the block store of the node if there is one; thread-safe.

    Args:
        catalog: The catalog that locates the parts.
        wanted: The parts that are read.
        blocks: The block store; None: every row is fetched.
    """

    def __init__(self, catalog: Catalog, wanted: WantedParts, blocks: BlockStore | None) -> None:
        self.stats = Stats()
        self._catalog = catalog
        self._parts = wanted
        self._suffixes: dict[int, tuple[str, ...]] = {}  # shard -> stored suffixes to read
        self._blocks = blocks
        self._lock = Lock()
        self._counted = 0, 0  # requests for indexes and their bytes that the stats include
        self._missing: dict[str, tuple[float, NotFoundError | ChangedError]] = {}  # name -> end of the pause, error

    def fetch(self, place: int, rows: Sequence[int], *, group: int, is_shared: bool) -> tuple[ByRow, ByRow]:
        """Returns the parts of the intact rows; damaged and missing rows are left out.

        Args:
            place: Position of the shard in the catalog.
            rows: Rows in the shard.
            group: Number of the group: of all processes that fetch it, one does while the others wait.
            is_shared: Whether several processes of the node are likely to fetch it.

        Returns:
            The rows from the block store, and the rows from object storage.

        Raises:
            StoreError: All attempts failed.
        """
        try:
            wanted = self._wanted(place, rows)
        except (DamagedError, NotFoundError):  # the index
            return {}, {}
        if self._blocks is None or self._blocks.kept < (Kept.RUNS if is_shared else Kept.ALL):
            return {}, self._requested(wanted)
        name = f"{self._catalog.shard(place).index_digest}.tar"
        with self._blocks.alone(f"{name} {group}"):
            spans = [(start, self._blocks.read(name, start, size)) for start, size in wanted.spans()]
            found = wanted.good([(start, body) for start, body in spans if body is not None])
            rest = [row for row in rows if row not in found]
            return found, self._requested(self._wanted(place, rest), name) if rest else {}

    def fetch_row(self, place: int, row: int) -> SampleParts:
        """Returns the parts of one row from object storage.

        Raises:
            StoreError: See `fetch`.
            NotFoundError: The shard or its index is missing, or was less than `AGAIN_S` ago.
            DamagedError: The index or a part is damaged; names which.
        """
        wanted = self._wanted(place, [row])
        spans = self._request(wanted)
        for suffix, offsets, sizes, hashes in wanted.parts:
            if offsets[0]:
                check_part(self._catalog, place, row, suffix, slice_of(spans, offsets[0], sizes[0]), hashes[0])
        return wanted.good(spans)[row]

    def _wanted(self, place: int, rows: Sequence[int]) -> "_Wanted":
        with self._noted_missing(self._catalog.snapshot.layout.index(self._catalog.shard(place).number)):
            columns, chosen = self._catalog.columns(place), np.asarray(rows)
        self._count_indexes()
        if place not in self._suffixes:
            self._suffixes[place] = self._parts.stored(columns)
        parts = [
            (suffix, *(found[suffix][chosen].tolist() for found in (columns.offsets, columns.sizes, columns.hashes)))
            for suffix in self._suffixes[place]
        ]
        return _Wanted(place, rows, parts)

    def _requested(self, wanted: "_Wanted", name: str = "") -> ByRow:
        """Fetch rows, drop corrupt ones, and cache the bytes under `name` if given."""
        try:
            spans = self._request(wanted)
        except (DamagedError, NotFoundError):
            return {}
        if self._blocks is not None and name:
            for start, body in spans:
                self._blocks.write(name, start, body)
        return wanted.good(spans)

    def _request(self, wanted: "_Wanted") -> list[_Span]:
        """Returns the spans of bytes that cover the rows, one request each."""
        tars, shard, spans = self._catalog.snapshot.tars, self._catalog.shard(wanted.place), wanted.spans()
        starts, sizes = [start for start, _ in spans], [size for _, size in spans]
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._noted_missing(tars.name(shard)):
                    with self._lock:
                        self.stats.requests += sum(size > 0 for size in sizes)
                        self.stats.bytes_read += sum(sizes)
                    if not any(sizes):  # no request would find out that the shard is missing
                        tars.check(shard)
                    bodies = tars.get_ranges(shard, starts, sizes, gap=0)
                return list(zip(starts, bodies, strict=True))
            except (StoreError, DamagedError) as exc:
                if attempt == ATTEMPTS or isinstance(exc, (NotFoundError, DeniedError, DamagedError)):
                    keys = self._catalog.columns(wanted.place).keys
                    first, last = (keys[row].as_py() for row in (wanted.rows[0], wanted.rows[-1]))
                    which = f"key {first!r}" if first == last else f"keys {first!r} to {last!r}"
                    raise type(exc)(f"{exc.problem} (it was read for {which})", **exc.place) from exc
                with self._lock:
                    self.stats.retries += 1
        raise AssertionError("unreachable: the last attempt returns or raises")

    @contextmanager
    def _noted_missing(self, name: str) -> Iterator[None]:
        """Fail at once if an object is known to be missing or replaced; remember it if it turns out to be."""
        until, error = self._missing.get(name, (0.0, NotFoundError()))
        if monotonic() < until:
            raise error.at()
        try:
            yield
        except (NotFoundError, ChangedError) as exc:
            self._missing[name] = monotonic() + AGAIN_S, exc
            raise

    def _count_indexes(self) -> None:
        with self._lock:
            requests, num_bytes = self._catalog.requests, self._catalog.bytes_read
            self.stats.requests += requests - self._counted[0]
            self.stats.bytes_read += num_bytes - self._counted[1]
            self._counted = requests, num_bytes


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Some rows of a shard.

    Attributes:
        place: Position of the shard in the catalog.
        rows: The m rows.
        parts: Each wanted suffix with m offsets, sizes and checksums.
    """

    place: int
    rows: Sequence[int]
    parts: Sequence[tuple[str, list[int], list[int], list[int]]]

    def spans(self) -> list[tuple[int, int]]:
        """Returns (start, size) of spans that cover all parts; parts with small gaps between them share one."""
        pieces = (piece for _, *where, _ in self.parts for piece in zip(*where, strict=True) if piece[0])
        return joined(pieces, GAP_BYTES)

    def good(self, spans: Collection[_Span]) -> ByRow:
        """Returns the parts of each row whose parts are all in the spans and match their checksums."""
        found: ByRow = {row: {} for row in self.rows}
        starts, bodies = [start for start, _ in spans], [body for _, body in spans]
        for suffix, offsets, sizes, hashes in self.parts:
            for row, offset, size, expected in zip(self.rows, offsets, sizes, hashes, strict=True):
                if not offset or row not in found:
                    continue
                number = bisect_right(starts, offset) - 1
                at = offset - starts[number] if number >= 0 else 0
                part = bodies[number][at : at + size] if number >= 0 else None
                if part is None or xxh3_64_intdigest(part) != expected:
                    del found[row]
                else:
                    found[row][suffix] = part
        return found
