"""Worker processes of a loader: each makes every so many-th batch, and sends several small ones at a time."""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from dray.loaders.batching.batches import BatchMaker
from dray.loaders.order.passes import Pass
from dray.loaders.workers.packing import Packed, pack, unpack
from dray.loaders.workers.processes import WorkerProcesses
from dray.loaders.workers.shared_memory import ReceiveBuffers, SendBuffers
from dray.shards.reading.samples import Stats


@dataclass(frozen=True, slots=True)
class Sent:
    """Batches on their way to the trainer."""

    worker: int
    stats: Stats  # of the worker since its start
    batches: Packed


class WorkerPool:
    """The worker processes of a loader; they live on from pass to pass.

    Args:
        maker: Of the batches.
        num_workers: At least 1.
        timeout_s: To wait for one of them, in seconds; 0: for ever, with a warning.
    """

    def __init__(self, maker: BatchMaker, num_workers: int, timeout_s: float) -> None:
        self.stats: dict[int, Stats] = {}  # of each worker, as it told last
        self._num_workers = num_workers
        pipes = [Pipe(duplex=False) for _ in range(num_workers)]  # by which workers get their buffers back
        self._buffers = [ReceiveBuffers(writing) for _, writing in pipes]
        self._num_passes = 0
        self._source = _WorkerBatches(maker, [reading for reading, _ in pipes])
        # a store's connections do not live through a fork
        context = "fork" if maker.snapshot.is_local else "spawn"
        options = {"timeout": timeout_s, "multiprocessing_context": context}
        self._processes = WorkerProcesses(self._source, num_workers, options)

    def batches(self, way: Pass) -> Generator[Any, None, None]:
        """The batches of a pass, in order: of each worker in turn.

        Raises:
            RuntimeError: A worker died, or gave nothing for `timeout_s`; names it.
        """
        self._num_passes += 1
        self._source.show(way, self._num_passes)
        for buffers in self._buffers:
            buffers.begin(self._num_passes)
        coming: list[deque[Any]] = [deque() for _ in range(self._num_workers)]
        patience, epoch = self._processes.patience, way.epoch
        patience.what = f"rank {way.rank} waits for the start of epoch {epoch}"
        arriving = iter(self._processes)
        for step in range(len(way.rest)):
            own = coming[step % self._num_workers]
            while not own:
                patience.what = f"rank {way.rank} waits for step {way.start.steps + step} of epoch {epoch}"
                sent = next(arriving)
                self.stats[sent.worker] = sent.stats
                coming[sent.worker].extend(unpack(sent.batches, self._buffers[sent.worker]))
            yield own.popleft()

    @property
    def lives_on(self) -> bool:
        """Whether the next pass can use these processes: all of them are alive."""
        return self._processes.are_alive

    def close(self) -> None:
        """End the processes."""
        self._processes.close()


class _WorkerBatches(IterableDataset[Sent]):
    """What a worker process iterates over: its batches of the pass that the trainer showed last.

    Persistent workers keep the object that they were born with, so a pass reaches them by shared memory.
    """

    FIELDS = ("epoch", "lanes", "block", "consumed", "steps")

    def __init__(self, maker: BatchMaker, freed: Sequence[Connection]) -> None:
        self._maker = maker
        self._freed = freed
        self._numbers = torch.zeros(len(self.FIELDS) + 1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._way: Pass | None = None
        self._buffers: SendBuffers | None = None  # of a worker

    def show(self, way: Pass, pass_number: int) -> None:
        """Let the next iteration go this way."""
        self._numbers.copy_(torch.tensor([*(getattr(way.start, name) for name in self.FIELDS), pass_number]))
        if self._way is None:
            self._way = way  # the workers are not born yet

    def __iter__(self) -> Iterator[Sent]:
        worker = get_worker_info()
        if worker is None or self._way is None:
            raise RuntimeError("for the loader's workers only")
        *numbers, pass_number = self._numbers.tolist()
        start = replace(self._way.start, **dict(zip(self.FIELDS, numbers, strict=True)))
        rest = replace(self._way.rest, consumed=start.consumed)
        self._buffers = buffers = self._buffers or SendBuffers(self._freed[worker.id])
        buffers.begin(pass_number)
        self._maker.use(buffers)
        for batches in self._maker.groups(Pass(start, rest, self._way.rank), worker.id, worker.num_workers):
            yield Sent(worker.id, replace(self._maker.stats), pack(batches, buffers))
