"""The bytes of samples: from mapped files, or from object storage by runs of neighbouring samples, fetched ahead.

Every part is checked against its index before it is handed on. Of a tar only the parts that are wanted are read.
"""

import mmap
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.loaders.catalog import Catalog, Columns
from dray.shards.errors import DamagedError, NotFoundError

OPEN_MAPS = 4096
REQUESTS_AT_ONCE = 32
AHEAD_BYTES = 64 << 20  # fetched before they are asked for
GAP_BYTES = 16 << 10  # between two parts that are fetched in one request: headers, padding, small parts not wanted

Run = tuple[int, int]  # first sample and number of samples that are read together


@dataclass(slots=True)
class Stats:
    """What a reader did, counted from its start."""

    samples: int = 0
    bytes: int = 0  # of parts handed on
    bytes_read: int = 0  # of parts and indexes fetched from object storage
    requests: int = 0  # to object storage, before its client joins neighbours
    cache_hits: int = 0  # samples that a run fetched before held
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


@dataclass(frozen=True, slots=True)
class _Fetched:
    """A run in memory."""

    samples: list[Sample]  # in order
    num_bytes: int


class RangeReader:
    """Samples of tars on object storage: runs of neighbouring samples by concurrent ranged requests, kept while in use.

    Args:
        catalog: The samples.
        ahead_bytes: At most so much is fetched before it is asked for.
    """

    def __init__(self, catalog: Catalog, ahead_bytes: int = AHEAD_BYTES) -> None:
        self.stats = Stats()
        self._catalog = catalog
        self._ahead_bytes = ahead_bytes
        self._threads = ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="dray-fetch")
        self._runs: OrderedDict[Run, Future[_Fetched]] = OrderedDict()  # least recently used first
        self._sample_bytes = catalog.snapshot.num_bytes / max(catalog.snapshot.num_samples, 1)
        self._in_use = 0
        self._lock = Lock()

    def expect(self, runs: Iterable[Run]) -> None:
        """Start to fetch the runs, in order, as far as memory for them goes."""
        ahead = 0.0
        for run in dict.fromkeys(runs):
            future = self._runs.get(run)
            if future is None or not future.done():
                ahead += run[1] * self._sample_bytes
            if future is None:
                if ahead > self._ahead_bytes:
                    return
                self._runs[run] = self._threads.submit(self._fetch, run)

    def read(self, samples: NDArray[np.int64], runs: Sequence[Run]) -> list[Sample]:
        """See `Reader`."""
        wanted = list(dict.fromkeys(runs))
        for run in wanted:
            if run in self._runs:
                self._runs.move_to_end(run)
            else:
                self._runs[run] = self._threads.submit(self._fetch, run)
        self._in_use = max(self._in_use, len(wanted))
        total = len(self._catalog)
        found = []
        for sample, run in zip(samples.tolist(), runs, strict=True):
            fetched = self._runs[run].result()
            found.append(fetched.samples[(sample - run[0]) % total])
        self.stats.samples += len(found)
        self.stats.bytes += sum(len(data) for sample in found for data in sample.parts.values())
        self._forget()
        return found

    def _forget(self) -> None:
        """Drop the runs that were not used for longest, once more lie here than two of each lane and what is ahead."""
        most = (
            2 * self._in_use * max((run[1] for run in self._runs), default=0) * self._sample_bytes + self._ahead_bytes
        )
        kept = sum(run[1] for run in self._runs) * self._sample_bytes
        for run in list(self._runs):
            if kept <= most:
                return
            if self._runs[run].done():
                del self._runs[run]
                kept -= run[1] * self._sample_bytes

    def _fetch(self, run: Run) -> _Fetched:
        """The samples of a run; it may go over the end of a shard, and of the last shard to the first."""
        first, count = run
        numbers = np.arange(first, first + count) % len(self._catalog)
        shards, rows = self._catalog.locate(numbers)
        samples: list[Sample] = []
        for place in dict.fromkeys(shards.tolist()):
            samples += self._fetch_rows(place, rows[shards == place])
        return _Fetched(samples, sum(len(data) for sample in samples for data in sample.parts.values()))

    def _fetch_rows(self, place: int, rows: NDArray[np.int64]) -> list[Sample]:
        """Some rows of one shard, checked."""
        catalog = self._catalog
        columns = catalog.columns(place)
        store, name = catalog.snapshot.store, catalog.shard_name(place)
        cells = [
            (row, suffix, int(columns.offsets[suffix][row]), int(columns.sizes[suffix][row]))
            for row in rows.tolist()
            for suffix in catalog.wanted(columns)
            if columns.offsets[suffix][row]
        ]
        starts, sizes = [offset for _, _, offset, _ in cells], [size for *_, size in cells]
        bodies = store.get_ranges(name, starts, sizes, gap=GAP_BYTES)
        parts: dict[int, dict[str, memoryview]] = {row: {} for row in rows.tolist()}
        firsts: dict[int, int] = {}
        for (row, suffix, offset, _), data in zip(cells, bodies, strict=True):
            _check(catalog, place, columns, row, suffix, data)
            parts[row][suffix] = data
            firsts.setdefault(row, offset)
        with self._lock:
            self.stats.requests += 1
            self.stats.bytes_read += sum(sizes)
        url = catalog.shard_url(place)
        return [Sample(columns.keys[row].as_py(), url, firsts.get(row, 0), held) for row, held in parts.items()]
