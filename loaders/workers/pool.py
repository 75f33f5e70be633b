"""Worker processes of a loader: each makes every n-th item of a pass, and sends small items in groups."""

import os
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch
from torch.utils.data import IterableDataset, get_worker_info

from dray.loaders.batching.buffers import Buffers
from dray.loaders.order.passes import Pass
from dray.loaders.ranks import own_rank
from dray.loaders.workers.packing import Packed, pack, unpack
from dray.loaders.workers.portable import Portable
from dray.loaders.workers.processes import WorkerProcesses, tell_rank
from dray.loaders.workers.shared_memory import ReceiveBuffers, SendBuffers
from dray.shards.reading.samples import Stats


class Source(Protocol):
    """Makes the items of a pass; each worker has a copy, with the user's functions."""

    @property
    def stats(self) -> Stats:
        """Counts of what was read in this process."""
        ...

    def use(self, buffers: Buffers) -> None:
        """Make large tensors in these shared buffers, unless they may be held for long."""
        ...

    def groups(self, epoch_pass: Pass, first: int, stride: int) -> Iterator[list[Any]]:
        """Yields the items of the steps `first`, `first + stride`, ..., in order, grouped as they are sent."""
        ...


class WorkerPool:
    """Worker processes that persist from pass to pass; a forked child starts its own.

    Args:
        source: Makes the items.
        num_workers: Number of processes, at least 1.
        options: Keyword arguments of torch's DataLoader.
    """

    def __init__(self, source: Source, num_workers: int, options: Mapping[str, Any]) -> None:
        self._source, self._num_workers, self._options = source, num_workers, options
        self._team: _Team | None = None
        self._ended: list[Stats] = []  # stats of processes that have ended
        self._process = os.getpid()  # parent of the workers

    @property
    def stats(self) -> Stats:
        """Counts of what the workers have read since the start, as far as they reported it."""
        return total([*self._ended, *(self._team.stats.values() if self._team else ())])

    def items(self, epoch_pass: Pass) -> Generator[Any, None, None]:
        """Yields the items of a pass from each worker in turn; a worker without further items is skipped.

        Raises:
            RuntimeError: A worker died, or sent nothing for the `timeout` of the options; the message names it.
        """
        if self._process != os.getpid():
            self._process, self._team = os.getpid(), None
        if self._team is not None and not self._team.lives_on:
            self.close()
        if self._team is None:
            self._team = _Team(self._source, self._num_workers, self._options)
        try:
            yield from self._team.items(epoch_pass)
        except Exception as exc:  # a worker may be dead: the next pass starts others
            traceback.clear_frames(exc.__traceback__)  # they hold torch's iterator, which would be slow to end
            self.close()
            raise

    def close(self) -> None:
        """End the processes; the next pass starts others."""
        if self._team is not None:
            self._ended += self._team.stats.values()
            self._team.processes.close()
            self._team = None


class _Team:
    """Processes that were started together, and the memory that they share with the trainer."""

    def __init__(self, source: Source, num_workers: int, options: Mapping[str, Any]) -> None:
        self.stats: dict[int, Stats] = {}  # by worker, since its start
        pipes = [Pipe(duplex=False) for _ in range(num_workers)]  # for the numbers of freed buffers
        self._buffers = [ReceiveBuffers(writing) for _, writing in pipes]
        self._num_passes = 0
        self._worker = _WorkerItems(source, [reading for reading, _ in pipes])
        self.processes = WorkerProcesses(self._worker, num_workers, options)

    @property
    def lives_on(self) -> bool:
        """Whether the next pass can use these processes: they are persistent, and all of them are alive."""
        return self.processes.persistent_workers and self.processes.are_alive

    def items(self, epoch_pass: Pass) -> Generator[Any, None, None]:
        """Yields the items of a pass; see `WorkerPool.items`."""
        self._num_passes += 1
        self._worker.show(epoch_pass, self._num_passes)
        for buffers in self._buffers:
            buffers.begin(self._num_passes)
        watchdog, epoch = self.processes.watchdog, epoch_pass.epoch
        watchdog.what = f"rank {epoch_pass.rank} waits for the start of epoch {epoch}"
        arriving = iter(self.processes)
        coming: list[deque[Any]] = [deque() for _ in self._buffers]
        step = worker = num_missed = 0
        while num_missed < len(coming):
            watchdog.what = f"rank {epoch_pass.rank} waits for step {epoch_pass.start.steps + step} of epoch {epoch}"
            while not coming[worker] and (sent := next(arriving, None)) is not None:
                self.stats[sent.worker] = sent.stats
                coming[sent.worker].extend(unpack(sent.items, self._buffers[sent.worker]))
            num_missed = 0 if coming[worker] else num_missed + 1
            if coming[worker]:
                step += 1
                yield coming[worker].popleft()
            worker = (worker + 1) % len(coming)


@dataclass(frozen=True, slots=True)
class _Sent:
    """Items that a worker sends to the trainer."""

    worker: int
    stats: Stats  # the worker's stats since its start
    items: Packed


class _WorkerItems(IterableDataset[_Sent]):
    """Makes a worker process's items of the pass that the trainer showed last.

    Persistent workers keep the object that they were started with, so a pass reaches them by shared memory.
    """

    FIELDS = ("epoch", "lanes", "block", "consumed", "steps")

    def __init__(self, source: Source, freed: Sequence[Connection]) -> None:
        self._source = Portable(source)
        self._freed = freed
        self._rank = own_rank()
        self._numbers = torch.zeros(len(self.FIELDS) + 1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._first: Pass | None = None
        self._buffers: SendBuffers | None = None  # set in workers

    def show(self, epoch_pass: Pass, pass_number: int) -> None:
        """Make the next iteration yield this pass."""
        self._numbers.copy_(torch.tensor([*(getattr(epoch_pass.start, name) for name in self.FIELDS), pass_number]))
        self._first = self._first or epoch_pass  # the workers start later; the numbers then hold what differs

    def __iter__(self) -> Iterator[_Sent]:
        worker = get_worker_info()
        if worker is None or self._first is None:
            raise RuntimeError("for the loader's workers only")
        tell_rank(*self._rank)
        *numbers, pass_number = self._numbers.tolist()
        start = replace(self._first.start, **dict(zip(self.FIELDS, numbers, strict=True)))
        epoch_pass = replace(self._first, start=start, rest=replace(self._first.rest, consumed=start.consumed))
        self._buffers = buffers = self._buffers or SendBuffers(self._freed[worker.id])
        buffers.begin(pass_number)
        source = self._source.value
        source.use(buffers)
        for items in source.groups(epoch_pass, worker.id, worker.num_workers):
            yield _Sent(worker.id, replace(source.stats), pack(items, buffers))


def total(stats: Iterable[Stats]) -> Stats:
    """Returns the sum of the stats."""
    return Stats(*map(sum, zip(*map(astuple, [Stats(), *stats]), strict=True)))
