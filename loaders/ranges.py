"""Samples of tars on object storage: runs of neighbouring samples by concurrent ranged requests, fetched ahead."""

from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dray.loaders.catalog import Catalog, Columns
from dray.loaders.fetch import Run, Samples, Stats, check_part
from dray.loaders.order import BLOCK_BYTES
from dray.shards.errors import DamagedError, DeniedError, NotFoundError, StoreError

REQUESTS_AT_ONCE = 32
ATTEMPTS = 3  # at a request, each of which the store's client tries again by itself
AHEAD_BYTES = 64 << 20  # fetched before they are asked for
GAP_BYTES = 16 << 10  # between two parts that are fetched in one request: headers, padding, small parts not wanted

_Sample = tuple[int, int, dict[str, memoryview]]  # shard's place, row, parts


@dataclass(slots=True)
class _Held:
    """A run that is fetched, or being fetched, together with its neighbours."""

    coming: Future[dict[Run, list[_Sample]]]  # of each run its samples, in order
    unread: set[int]  # places in the run


class RangeReader:
    """Samples of tars on object storage: runs of neighbouring samples by concurrent ranged requests.

    A run is kept until its last sample was read. So memory holds the runs in use, one of each lane, and besides
    `ahead_bytes` of runs to come, and as much of runs that others read on (after a resume with another batch size).

    Args:
        catalog: The samples.
        ahead_bytes: At most so much is fetched before it is asked for.
    """

    def __init__(self, catalog: Catalog, ahead_bytes: int = AHEAD_BYTES) -> None:
        self.stats = Stats()
        self._catalog = catalog
        self._ahead_bytes = ahead_bytes
        self._threads = ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="dray-fetch")
        self._runs: OrderedDict[Run, _Held] = OrderedDict()  # least recently used or expected first
        self._sample_bytes = catalog.snapshot.num_bytes / max(catalog.snapshot.num_samples, 1)
        self._lock = Lock()
        self._index_locks: defaultdict[int, Lock] = defaultdict(Lock)
        self._index_keys: WeakValueDictionary[int, pa.Array] = WeakValueDictionary()

    def expect(self, runs: Iterable[Run]) -> None:
        """Start to fetch the runs, in order, as far as memory for them goes; drop what is expected no more."""
        expected = dict.fromkeys(runs)
        ahead, new = 0.0, []
        for run in expected:
            held = self._runs.get(run)
            if held is None or len(held.unread) == run[1]:
                ahead += self._size(run)
            if held is not None:
                self._runs.move_to_end(run)
            elif ahead <= self._ahead_bytes:
                new.append(run)
        self._start(new)
        kept = 0.0
        for run in [run for run in reversed(self._runs) if run not in expected]:
            kept += self._size(run)
            if kept > self._ahead_bytes:
                del self._runs[run]

    def read(self, samples: NDArray[np.int64], runs: Sequence[Run]) -> Samples:
        """See `Reader`."""
        total = len(self._catalog)
        self._start([run for run in dict.fromkeys(runs) if run not in self._runs or _failed(self._runs[run].coming)])
        wanted = {run: self._runs[run] for run in runs}
        done = {run for run, held in wanted.items() if held.coming.done()}
        found = []
        for sample, run in zip(samples.tolist(), runs, strict=True):
            place = (sample - run[0]) % total
            found.append(wanted[run].coming.result()[run][place])
            wanted[run].unread.discard(place)
        for run, held in wanted.items():
            if not held.unread:
                self._runs.pop(run, None)
        self.stats.samples += len(found)
        self.stats.bytes += sum(len(data) for *_, parts in found for data in parts.values())
        self.stats.cache_hits += sum(run in done for run in runs)
        suffixes = dict.fromkeys(suffix for *_, parts in found for suffix in parts)
        return Samples(
            self._catalog,
            [place for place, _, _ in found],
            [row for _, row, _ in found],
            {suffix: [parts.get(suffix) for *_, parts in found] for suffix in suffixes},
        )

    def _size(self, run: Run) -> float:
        """Bytes, more or less."""
        return run[1] * self._sample_bytes

    def _start(self, runs: Sequence[Run]) -> None:
        """Fetch runs, those that follow one another together, up to the size of a block."""
        group: list[Run] = []
        for run in runs:
            is_next = bool(group) and sum(group[-1]) == run[0]
            if not is_next or sum(map(self._size, group)) + self._size(run) > BLOCK_BYTES:
                self._submit(group)
                group = []
            group.append(run)
        self._submit(group)

    def _submit(self, group: list[Run]) -> None:
        if group:
            coming = self._threads.submit(self._fetch, group)
            self._runs.update((run, _Held(coming, set(range(run[1])))) for run in group)

    def _fetch(self, runs: Sequence[Run]) -> dict[Run, list[_Sample]]:
        """The samples of runs; one may go over the end of a shard, and of the last shard to the first."""
        numbers = np.concatenate([np.arange(first, first + count) for first, count in runs]) % len(self._catalog)
        shards, rows = self._catalog.locate(numbers)
        samples: dict[int, _Sample] = {}
        for place in np.unique(shards).tolist():
            chosen = shards == place
            samples |= zip(numbers[chosen].tolist(), self._fetch_rows(place, rows[chosen]), strict=True)
        found = map(samples.__getitem__, numbers.tolist())
        return {run: list(islice(found, run[1])) for run in runs}

    def _fetch_rows(self, place: int, rows: NDArray[np.int64]) -> list[_Sample]:
        """Some rows of one shard, checked.

        Raises:
            StoreError: The store failed as often as it was asked.
            DamagedError: See `Reader`.
        """
        columns = self._columns(place)
        parts = [  # of each wanted suffix where it lies in these rows
            (suffix, columns.offsets[suffix][rows].tolist(), columns.sizes[suffix][rows].tolist())
            for suffix in self._catalog.wanted(columns)
        ]
        pieces = [piece for _, *where in parts for piece in zip(*where, strict=True) if piece[0]]
        spans = self._fetch_spans(place, rows, columns, pieces)
        starts = [start for start, _ in spans]
        samples = []
        for number, row in enumerate(rows.tolist()):
            held: dict[str, memoryview] = {}
            for suffix, offsets, sizes in parts:
                if offset := offsets[number]:
                    start, body = spans[bisect_right(starts, offset) - 1]
                    held[suffix] = body[offset - start : offset - start + sizes[number]]
                    check_part(self._catalog, place, row, suffix, held[suffix], int(columns.hashes[suffix][row]))
            samples.append((place, row, held))
        return samples

    def _fetch_spans(
        self, place: int, rows: NDArray[np.int64], columns: Columns, pieces: Iterable[tuple[int, int]]
    ) -> list[tuple[int, memoryview]]:
        """The bytes that cover pieces of a shard, by their start; one request each."""
        name, spans = self._catalog.shard_name(place), _join(pieces)
        starts, sizes = [start for start, _ in spans], [end - start for start, end in spans]
        for attempt in range(1, ATTEMPTS + 1):
            with self._lock:
                self.stats.requests += sum(size > 0 for size in sizes)
                self.stats.bytes_read += sum(sizes)
            try:
                bodies = self._catalog.snapshot.store.get_ranges(name, starts, sizes, gap=0)
                return list(zip(starts, bodies, strict=True))
            except (StoreError, DamagedError) as exc:
                if attempt == ATTEMPTS or isinstance(exc, (NotFoundError, DeniedError, DamagedError)):
                    first, last = (columns.keys[row].as_py() for row in (rows[0], rows[-1]))
                    raise type(exc)(f"{exc} (it was read for keys {first!r} to {last!r})") from exc
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _columns(self, place: int) -> Columns:
        """The index of a shard: of many threads that want it at the same time, one reads it."""
        with self._lock:
            lock = self._index_locks[place]
        with lock:
            columns = self._catalog.columns(place)
            if self._index_keys.get(place) is not columns.keys:  # the catalog has read it since
                self._index_keys[place] = columns.keys
                with self._lock:
                    self.stats.requests += 1
                    self.stats.bytes_read += columns.num_bytes
        return columns


def _failed(coming: Future[Any]) -> bool:
    return coming.done() and coming.exception() is not None


def _join(pieces: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """(start, end) of what is fetched for pieces of (offset, size): those with small gaps between them together."""
    spans: list[tuple[int, int]] = []
    for offset, size in sorted(pieces):
        if spans and offset - spans[-1][1] <= GAP_BYTES:
            spans[-1] = spans[-1][0], max(spans[-1][1], offset + size)
        else:
            spans.append((offset, offset + size))
    return spans
