"""The bytes of samples: from mapped files, or from object storage by runs of neighbouring samples, fetched ahead.

Every part is checked against its index before it is handed on. Of a tar only the parts that are wanted are read.
"""

import mmap
import os
from bisect import bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, Protocol
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.loaders.catalog import Catalog, Columns
from dray.loaders.order import BLOCK_BYTES
from dray.shards.errors import DamagedError, DeniedError, NotFoundError, StoreError

OPEN_MAPS = 4096
REQUESTS_AT_ONCE = 32
ATTEMPTS = 3  # at a request, each of which the store's client tries again by itself
AHEAD_BYTES = 64 << 20  # fetched before they are asked for
GAP_BYTES = 16 << 10  # between two parts that are fetched in one request: headers, padding, small parts not wanted

Run = tuple[int, int]  # first sample and number of samples that are read together


@dataclass(slots=True)
class Stats:
    """What a reader did, counted from its start."""

    samples: int = 0
    bytes: int = 0  # of parts handed on
    bytes_read: int = 0  # of parts, headers between them and indexes asked of object storage
    requests: int = 0  # to object storage, not counting those that its client tries again
    cache_hits: int = 0  # samples that lay here when they were asked for
    wait_s: float = field(default=0.0)  # of the consumer, for batches


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample's bytes.

    Attributes:
        key: Its key.
        url: Of its shard.
        offset: Of its first part's data in the tar.
        parts: Suffix -> bytes; a part that the sample lacks is left out.
    """

    key: str
    url: str
    offset: int
    parts: dict[str, memoryview]


class Reader(Protocol):
    """Where samples come from."""

    stats: Stats

    def expect(self, runs: Iterable[Run]) -> None:
        """What will be asked for next, in order; it may be fetched meanwhile."""
        ...

    def read(self, samples: NDArray[np.int64], runs: Sequence[Run]) -> list[Sample]:
        """The samples, each with the run that it belongs to.

        Raises:
            NotFoundError: A shard or an index is missing.
            DamagedError: A part is not what its index says; names shard, key, suffix and offset.
        """
        ...


def open_reader(catalog: Catalog) -> Reader:
    """A reader for wherever the dataset lies."""
    return MappedReader(catalog) if catalog.snapshot.store.local_root is not None else RangeReader(catalog)


class MappedReader:
    """Samples of tars on a local disk: slices of mapped files, nothing is copied."""

    def __init__(self, catalog: Catalog) -> None:
        self.stats = Stats()
        self._catalog = catalog
        self._map = lru_cache(OPEN_MAPS)(self._open)

    def expect(self, runs: Iterable[Run]) -> None:
        """The system reads ahead by itself."""

    def read(self, samples: NDArray[np.int64], runs: Sequence[Run]) -> list[Sample]:  # noqa: ARG002  files need none
        """See `Reader`."""
        found: list[Sample | None] = [None] * len(samples)
        shards, rows = self._catalog.locate(samples)
        for place in np.unique(shards).tolist():
            columns, body = self._catalog.columns(place), self._map(place)
            chosen = np.flatnonzero(shards == place)
            for number, row in zip(chosen.tolist(), rows[chosen].tolist(), strict=True):
                found[number] = _slice_sample(self._catalog, place, columns, row, body, self.stats)
        return [sample for sample in found if sample is not None]

    def _open(self, place: int) -> memoryview:
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


def _slice_sample(catalog: Catalog, place: int, columns: Columns, row: int, body: memoryview, stats: Stats) -> Sample:
    parts: dict[str, memoryview] = {}
    first = 0
    for suffix in catalog.wanted(columns):
        offset = int(columns.offsets[suffix][row])
        if not offset:
            continue
        first = first or offset
        parts[suffix] = body[offset : offset + int(columns.sizes[suffix][row])]
        _check(catalog, place, columns, row, suffix, parts[suffix])
        stats.bytes += len(parts[suffix])
    stats.samples += 1
    return Sample(columns.keys[row].as_py(), catalog.shard_url(place), first, parts)


def _check(catalog: Catalog, place: int, columns: Columns, row: int, suffix: str, data: memoryview) -> None:
    if xxh3_64_intdigest(data) != int(columns.hashes[suffix][row]):
        raise DamagedError(
            f"{catalog.shard_url(place)}: part {suffix!r} of key {columns.keys[row].as_py()!r} at offset "
            f"{int(columns.offsets[suffix][row])} is not what was packed: dray verify tells how to mend it"
        )


@dataclass(slots=True)
class _Held:
    """A run that is fetched, or being fetched, together with its neighbours."""

    coming: Future[dict[Run, list[Sample]]]  # of each run its samples, in order
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

    def read(self, samples: NDArray[np.int64], runs: Sequence[Run]) -> list[Sample]:
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
        self.stats.bytes += sum(len(data) for sample in found for data in sample.parts.values())
        self.stats.cache_hits += sum(run in done for run in runs)
        return found

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

    def _fetch(self, runs: Sequence[Run]) -> dict[Run, list[Sample]]:
        """The samples of runs; one may go over the end of a shard, and of the last shard to the first."""
        numbers = np.concatenate([np.arange(first, first + count) for first, count in runs]) % len(self._catalog)
        shards, rows = self._catalog.locate(numbers)
        samples: dict[int, Sample] = {}
        for place in np.unique(shards).tolist():
            chosen = shards == place
            samples |= zip(numbers[chosen].tolist(), self._fetch_rows(place, rows[chosen]), strict=True)
        found = map(samples.__getitem__, numbers.tolist())
        return {run: list(islice(found, run[1])) for run in runs}

    def _fetch_rows(self, place: int, rows: NDArray[np.int64]) -> list[Sample]:
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
        url, starts = self._catalog.shard_url(place), [start for start, _ in spans]
        samples = []
        for number, row in enumerate(rows.tolist()):
            held: dict[str, memoryview] = {}
            for suffix, offsets, sizes in parts:
                if offset := offsets[number]:
                    start, body = spans[bisect_right(starts, offset) - 1]
                    held[suffix] = body[offset - start : offset - start + sizes[number]]
                    _check(self._catalog, place, columns, row, suffix, held[suffix])
            first = next((offsets[number] for _, offsets, _ in parts if offsets[number]), 0)
            samples.append(Sample(columns.keys[row].as_py(), url, first, held))
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
