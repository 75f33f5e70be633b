"""Rows of shards on object storage: where their parts lie, what is asked for to get them, and whether it is theirs."""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from time import monotonic

import numpy as np
from xxhash import xxh3_64_intdigest

from dray.shards.errors import DamagedError, DeniedError, NotFoundError, StoreError
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.node_cache import BlockStore, Kept
from dray.shards.reading.samples import Stats, check_part
from dray.shards.reading.suffixes import WantedParts

AGAIN_S = 60.0  # after which something that was missing is asked for again
ATTEMPTS = 3  # at a request, each of which the store's client tries again by itself
GAP_BYTES = 16 << 10  # between two parts that are fetched in one request: headers, padding, small parts not wanted

Parts = dict[str, memoryview]  # of one sample, by suffix
ByRow = dict[int, Parts]
_Span = tuple[int, memoryview]  # of a tar: the offset of some bytes, and these


class RowFetcher:
    """Fetches rows of shards by ranged requests, through the node's block store if there is one; for many threads.

    Args:
        catalog: Where their parts lie.
        wanted: The parts that are read.
        blocks: The node's store; None: every row is fetched.
    """

    def __init__(self, catalog: Catalog, wanted: WantedParts, blocks: BlockStore | None) -> None:
        self.stats = Stats()
        self._catalog = catalog
        self._parts = wanted
        self._suffixes: dict[int, tuple[str, ...]] = {}  # stored suffixes to read, of each shard that was read
        self._blocks = blocks
        self._lock = Lock()
        self._counted = 0, 0  # requests for indexes and their bytes that the stats have
        self._missing: dict[str, tuple[float, NotFoundError]] = {}  # name -> end of the pause, error

    def fetch(self, place: int, rows: Sequence[int], *, group: int, is_shared: bool) -> tuple[ByRow, ByRow]:
        """The parts of those of the rows that are whole: what is damaged or missing is left out, and spoils no other.

        Args:
            place: The shard.
            rows: In it.
            group: A number of what is fetched together: where others fetch it too, one does, and they wait for it.
            is_shared: Whether several processes of the node are likely to.

        Returns:
            Those that the node's store had, and those that object storage gave.

        Raises:
            StoreError: The store failed as often as it was asked.
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

    def fetch_row(self, place: int, row: int) -> Parts:
        """The parts of one row, as object storage has them.

        Raises:
            StoreError: See `fetch`.
            NotFoundError: The shard or its index is missing, or was a minute ago.
            DamagedError: Its index or a part of it is damaged; names what is.
        """
        wanted = self._wanted(place, [row])
        spans = self._request(wanted)
        for suffix, offsets, sizes, hashes in wanted.parts:
            if offsets[0]:
                check_part(self._catalog, place, row, suffix, _slice(spans, offsets[0], sizes[0]), hashes[0])
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
        """The good ones of some rows as object storage has them; kept under a name, if there is one."""
        try:
            spans = self._request(wanted)
        except (DamagedError, NotFoundError):
            return {}
        if self._blocks is not None and name:
            for start, body in spans:
                self._blocks.write(name, start, body)
        return wanted.good(spans)

    def _request(self, wanted: "_Wanted") -> list[_Span]:
        """The bytes that cover some rows, one request each."""
        name, spans = self._catalog.shard_name(wanted.place), wanted.spans()
        starts, sizes = [start for start, _ in spans], [size for _, size in spans]
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._noted_missing(name):
                    with self._lock:
                        self.stats.requests += sum(size > 0 for size in sizes)
                        self.stats.bytes_read += sum(sizes)
                    store = self._catalog.snapshot.tars
                    if not any(sizes) and store.head(name) is None:  # nothing of the shard would be asked for
                        raise NotFoundError("the shard is missing", url=store.url_of(name))
                    bodies = store.get_ranges(name, starts, sizes, gap=0)
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
        """Fail at once while an object is known to be missing; note one that is."""
        until, error = self._missing.get(name, (0.0, NotFoundError()))
        if monotonic() < until:
            raise error.at()
        try:
            yield
        except NotFoundError as exc:
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
        place: The shard.
        rows: m rows.
        parts: Of each wanted suffix m offsets, sizes and checksums.
    """

    place: int
    rows: Sequence[int]
    parts: Sequence[tuple[str, list[int], list[int], list[int]]]

    def spans(self) -> list[tuple[int, int]]:
        """(start, size) of what covers all parts: those with small gaps between them together."""
        pieces = sorted(piece for _, *where, _ in self.parts for piece in zip(*where, strict=True) if piece[0])
        spans: list[tuple[int, int]] = []  # start and end
        for offset, size in pieces:
            if spans and offset - spans[-1][1] <= GAP_BYTES:
                spans[-1] = spans[-1][0], max(spans[-1][1], offset + size)
            else:
                spans.append((offset, offset + size))
        return [(start, end - start) for start, end in spans]

    def good(self, spans: Collection[_Span]) -> ByRow:
        """Of the rows whose parts all lie in the spans, with the right checksum: their parts."""
        found: ByRow = {row: {} for row in self.rows}
        starts, bodies = [start for start, _ in spans], [body for _, body in spans]
        for suffix, offsets, sizes, hashes in self.parts:
            for row, offset, size, expected in zip(self.rows, offsets, sizes, hashes, strict=True):
                if not offset or row not in found:
                    continue
                number = bisect_right(starts, offset) - 1
                number = bisect_right(starts, offset) - 1
                at = offset - starts[number] if number >= 0 else 0
                part = bodies[number][at : at + size] if number >= 0 else None
                if part is None or xxh3_64_intdigest(part) != expected:
                    del found[row]
                else:
                    found[row][suffix] = part
        return found


def _slice(spans: Sequence[_Span], offset: int, size: int) -> memoryview:
    start, body = spans[bisect_right([start for start, _ in spans], offset) - 1]
    return body[offset - start : offset - start + size]
