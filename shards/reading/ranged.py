"""Reads samples from object storage by concurrent ranged requests, and prefetches runs of neighbouring samples."""

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dray.shards.reading.catalog import Catalog
from dray.shards.reading.node_cache import BlockStore
from dray.shards.reading.rows import RowFetcher, SampleParts
from dray.shards.reading.samples import Run, Samples
from dray.shards.reading.suffixes import EVERY_PART, WantedParts

REQUESTS_AT_ONCE = 32
AHEAD_BYTES = 64 << 20  # maximum number of prefetched bytes
RUN_GROUP_BYTES = 4 << 20  # maximum size of neighbouring runs that are fetched together

_Sample = tuple[int, int, SampleParts, bool]  # position of the shard, row, parts, whether the block store had them
_Coming = Future[dict[int, _Sample]]  # intact samples by number


@dataclass(slots=True)
class _Held:
    """A run that was or is being fetched together with its neighbours."""

    coming: _Coming
    unread: set[int]  # numbers of samples not yet read
    is_ahead: bool = True  # no sample was read yet


class RangeReader:
    """Reads samples from object storage by concurrent ranged requests.

    Expected runs are prefetched, and a run is kept until its last sample was read. Memory holds the runs in use, one
    for each lane, up to `ahead_bytes` of prefetched runs, and as many bytes of started runs that are no longer expected
    (after a resume with another batch size). A sample whose run is not held is fetched alone. So the first batch, after
    which prefetching starts, takes little more than its own bytes anywhere in an epoch.

    Args:
        catalog: The samples.
        wanted: The parts that are read.
        blocks: The block store of the node; None: nothing is shared.
        ahead_bytes: Maximum number of prefetched bytes.
    """

    def __init__(
        self,
        catalog: Catalog,
        wanted: WantedParts = EVERY_PART,
        blocks: BlockStore | None = None,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> None:
        self._rows = RowFetcher(catalog, wanted, blocks)
        self.stats = self._rows.stats
        self._catalog = catalog
        self._ahead_bytes = ahead_bytes
        self._threads = ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="dray-fetch")
        self._sample_bytes = catalog.snapshot.num_bytes / max(catalog.snapshot.num_samples, 1)
        self._expected: dict[Run, None] = {}
        self._queue: deque[Run] = deque()  # expected runs whose fetch has not started
        self._runs: OrderedDict[Run, _Held] = OrderedDict()  # least recently expected first
        self._ahead = 0  # bytes of runs that no sample was read of yet
        self._apart: defaultdict[Run, set[int]] = defaultdict(set)  # samples that were fetched without their runs
        self._is_start = True  # the first samples of a pass are read before anything is prefetched

    def expect(self, runs: Iterable[Run]) -> None:
        """Announce the next runs in order; runs that are no longer expected are dropped when memory is short."""
        expected = dict.fromkeys(runs)
        self._is_start = self._is_start or expected.keys().isdisjoint(self._expected)
        self._expected = expected
        for run in [run for run in expected if run in self._runs]:
            self._runs.move_to_end(run)
            if _failed(self._runs[run].coming):
                self._forget(run)
        self._queue = deque(run for run in expected if run not in self._runs)
        for run in [run for run in self._apart if run not in expected]:
            del self._apart[run]
        kept = 0
        for run in [run for run in reversed(self._runs) if run not in expected]:
            kept += self._size(run)
            if self._runs[run].is_ahead or kept > self._ahead_bytes:  # left over from another pass, or rarely read
                self._forget(run)

    def read(self, samples: NDArray[np.int64], runs: Sequence[Run]) -> Samples:
        """See `Reader`."""
        if not self._is_start:
            self._fetch_ahead()
        self._is_start = False
        asked = list(zip(samples.tolist(), runs, strict=True))
        held = {run: self._runs[run] for run in dict.fromkeys(runs) if run in self._runs}
        held = {run: found for run, found in held.items() if not _failed(found.coming)}
        apart = self._fetch_apart({number: run for number, run in asked if run not in held})
        by_run = {run: found.coming.result() for run, found in held.items()}
        found = self._with_missing(asked, [by_run.get(run, apart).get(number) for number, run in asked])
        for number, run in asked:
            self._note(number, run)
        self.stats.samples += len(found)
        self.stats.bytes += sum(len(data) for *_, parts, _ in found for data in parts.values())
        self.stats.cache_hits += sum(was_here for *_, was_here in found)
        suffixes = dict.fromkeys(suffix for *_, parts, _ in found for suffix in parts)
        return Samples(
            self._catalog,
            np.array([place for place, *_ in found]),
            np.array([row for _, row, *_ in found]),
            {suffix: [parts.get(suffix) for *_, parts, _ in found] for suffix in suffixes},
        )

    def _fetch_ahead(self) -> None:
        """Start to fetch expected runs while there is room, many at a time so that neighbours share requests."""
        room = self._ahead_bytes - self._ahead
        if room < min(RUN_GROUP_BYTES, self._ahead_bytes // 4):
            return
        chosen: list[Run] = []
        while self._queue and self._size(self._queue[0]) <= room:
            run = self._queue.popleft()
            if run in self._runs or len(self._apart.get(run, ())) == run[1]:
                continue
            room -= self._size(run)
            chosen.append(run)
        for group in self._groups(chosen):
            self._start(group)

    def _start(self, group: Sequence[Run]) -> None:
        total = len(self._catalog)
        unread = {
            run: {number % total for number in range(run[0], sum(run))}.difference(self._apart.get(run, ()))
            for run in group
        }
        wanted, is_shared = sorted(set().union(*unread.values())), any(count > 1 for _, count in group)
        coming = self._threads.submit(self._fetch, wanted, group=group[0][0], is_shared=is_shared)
        for run in group:
            self._runs[run] = _Held(coming, unread[run])
            self._ahead += self._size(run)

    def _fetch_apart(self, runs: Mapping[int, Run]) -> dict[int, _Sample]:
        """Returns samples, fetched without the rest of their runs."""
        found: dict[int, _Sample] = {}
        coming = []
        for group in self._groups([(number, 1) for number in sorted(runs)]):
            wanted, is_shared = [number for number, _ in group], any(runs[number][1] > 1 for number, _ in group)
            coming.append(self._threads.submit(self._fetch, wanted, group=wanted[0], is_shared=is_shared))
        for samples in coming:
            found |= samples.result()
        return found

    def _with_missing(self, asked: Sequence[tuple[int, Run]], found: Sequence[_Sample | None]) -> list[_Sample]:
        """Returns all samples; fetches each missing one again alone, which names it if it is damaged."""
        again = {
            number: self._threads.submit(self._fetch_one, number)
            for (number, _), sample in zip(asked, found, strict=True)
            if sample is None
        }
        return [again[number].result() if sample is None else sample
                for (number, _), sample in zip(asked, found, strict=True)]  # fmt: skip

    def _note(self, number: int, run: Run) -> None:
        """Record that a sample was read."""
        held = self._runs.get(run)
        if held is None:
            self._apart[run].add(number)
            return
        held.unread.discard(number)
        if held.is_ahead:
            held.is_ahead = False
            self._ahead -= self._size(run)
        if not held.unread:
            self._forget(run)

    def _forget(self, run: Run) -> None:
        if self._runs.pop(run).is_ahead:
            self._ahead -= self._size(run)

    def _size(self, run: Run) -> int:
        """Returns the approximate size of a run in bytes."""
        return int(run[1] * self._sample_bytes)

    def _groups(self, runs: Sequence[Run]) -> Iterator[list[Run]]:
        """Yields groups of adjacent runs."""
        group: list[Run] = []
        num_bytes = 0
        for run in runs:
            size = self._size(run)
            if group and (sum(group[-1]) != run[0] or num_bytes + size > RUN_GROUP_BYTES):
                yield group
                group, num_bytes = [], 0
            group.append(run)
            num_bytes += size
        if group:
            yield group

    def _fetch(self, numbers: Sequence[int], *, group: int, is_shared: bool) -> dict[int, _Sample]:
        """Returns the intact samples by number."""
        shards, rows = self._catalog.locate(np.array(numbers))
        samples: dict[int, _Sample] = {}
        for place in np.unique(shards).tolist():
            chosen = np.flatnonzero(shards == place)
            number_of = dict(zip(rows[chosen].tolist(), chosen.tolist(), strict=True))
            here, fetched = self._rows.fetch(place, list(number_of), group=group, is_shared=is_shared)
            for found, was_here in ((here, True), (fetched, False)):
                samples |= {numbers[number_of[row]]: (place, row, parts, was_here) for row, parts in found.items()}
        return samples

    def _fetch_one(self, number: int) -> _Sample:
        shards, rows = self._catalog.locate(np.array([number]))
        place, row = int(shards[0]), int(rows[0])
        return place, row, self._rows.fetch_row(place, row), False


def _failed(coming: _Coming) -> bool:
    return coming.done() and coming.exception() is not None
