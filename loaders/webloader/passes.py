"""One pass after another of a rank's stream through the user's pipeline, in this process or in worker processes."""

import os
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.utils.data import IterableDataset, default_collate, default_convert, get_worker_info

from dray.loaders.compat import pin_memory
from dray.loaders.order.passes import Pass
from dray.loaders.webloader.chunks import Chunks, Given, Tally, by_chunk
from dray.loaders.webloader.progress import Progress
from dray.loaders.webloader.tar_stream import Portable
from dray.loaders.workers.packing import Packed, pack, unpack
from dray.loaders.workers.processes import WorkerProcesses
from dray.loaders.workers.shared_memory import ReceiveBuffers, SendBuffers
from dray.shards.reading.samples import Stats

SENT_BYTES = 2 << 20  # chunks that are sent together have no more, and are
SENT_CHUNKS = 16  # at most so many

Pin = Callable[[Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What becomes of a pipeline's outputs before they leave the worker: what torch's DataLoader does.

    Attributes:
        batch_size: Of them to make one; None: each is left alone.
        drop_last: Whether a last, shorter batch of a worker's pass is left out.
        collate: Makes the batch of a list, or converts what is left alone; None: as torch does.
    """

    batch_size: int | None = None
    drop_last: bool = False
    collate: Callable[[Any], Any] | None = None

    def __call__(self, outputs: Iterable[Any]) -> Iterator[Any]:
        """The outputs as they leave."""
        if self.batch_size is None:
            yield from map(self.collate or _converted, outputs)
            return
        collate, held = self.collate or default_collate, list[Any]()
        for output in outputs:
            held.append(output)
            if len(held) == self.batch_size:
                yield collate(held)
                held = []
        if held and not self.drop_last:
            yield collate(held)


def _converted(output: Any) -> Any:
    """What torch's `default_convert` makes of an output, at once where that is simple."""
    if type(output) is torch.Tensor:
        return output
    if type(output) is tuple and all(type(item) is torch.Tensor for item in output):
        return list(output)
    return default_convert(output)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Stream:
    """The user's pipeline over a rank's chunks.

    Attributes:
        source: The chunks.
        dataset: The pipeline that begins with them.
        shaping: Of its outputs.
    """

    source: Chunks
    dataset: Iterable[Any]
    shaping: Shaping

    def given(self, way: Pass) -> Iterator[Given]:
        """What the chunks of a pass gave, or in a worker those that are its own."""
        tally = Tally()
        self.source.go(way, tally)
        return by_chunk(self.shaping(self.dataset), tally)


class Passes(IterableDataset[Any]):
    """Each iteration is the next pass of an epoch: all that its chunks gave, in order.

    Args:
        stream: To iterate over.
        progress: Says which pass is next; is told how far the trainer has come.
        num_workers: Processes; 0: this one.
        options: Keyword arguments of torch's DataLoader, where there are workers.
        pin: Whether tensors are copied to page-locked memory.
    """

    def __init__(
        self, stream: Stream, progress: Progress, num_workers: int, options: Mapping[str, Any], *, pin: bool
    ) -> None:
        self.progress = progress
        self._stream = stream
        self.num_workers = num_workers
        self._process = os.getpid()  # whose workers those of the pool are
        chunk_bytes = progress.epochs.sample_bytes * progress.epochs.batch / progress.epochs.num_ranks
        self._most_chunks = max(1, min(SENT_CHUNKS, int(SENT_BYTES / max(1.0, chunk_bytes))))
        self._options = dict(options)
        self._pins = pin and torch.cuda.is_available()
        self._pool: StreamPool | None = None
        self._ended: list[Stats] = []  # of what was closed

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_ended": []}

    def __iter__(self) -> Iterator[Any]:
        progress = self.progress
        way = progress.next_pass()
        given = self._from_workers(way) if self.num_workers else self._stream.given(way)
        for number, chunk in enumerate(given, 1):
            end = way.start.advanced(number, progress.epochs.batch)
            last = len(chunk.outputs) - 1
            for place, output in enumerate(chunk.outputs):
                progress.handed += 1
                if place == last:
                    progress.end_chunk(end, is_exact=chunk.is_exact)
                yield pin_memory(output) if self._pins else output
            if last < 0:
                progress.end_chunk(end, is_exact=chunk.is_exact)

    def close(self) -> None:
        """End worker processes and threads; the next pass starts others."""
        self._ended.append(self._stream.source.close())
        if self._pool is not None:
            self._ended += self._pool.stats.values()
            self._pool.close()
            self._pool = None

    def stats(self) -> dict[str, float]:
        """What was read for this rank since the start, by this process or its workers; see `ShardLoader.stats`."""
        told = [self._stream.source.stats, *self._ended, *(self._pool.stats.values() if self._pool else ())]
        return {field.name: sum(getattr(stats, field.name) for stats in told) for field in fields(Stats)}

    def _from_workers(self, way: Pass) -> Generator[Given, None, None]:
        """What each chunk gave, from each worker in turn."""
        if self._process != os.getpid():  # the pool belongs to the process that this one was forked from
            self._process, self._pool = os.getpid(), None
        if self._pool is None or not self._pool.lives_on:  # old workers, which may be busy, keep their pipes
            self._ended += self._pool.stats.values() if self._pool else ()
            self._pool = StreamPool(self._stream, self._most_chunks, self.num_workers, self._options)
        try:
            yield from self._pool.given(way)
        except Exception as exc:  # one may be dead: the next pass starts others
            traceback.clear_frames(exc.__traceback__)  # they hold torch's iterator, which would wait long for its end
            self.close()
            raise


class StreamPool:
    """The worker processes of a loader.

    Args:
        stream: What they iterate over, each over chunks of its own.
        most_chunks: That are sent together.
        num_workers: At least 1.
        options: Keyword arguments of torch's DataLoader.
    """

    def __init__(self, stream: Stream, most_chunks: int, num_workers: int, options: Mapping[str, Any]) -> None:
        pipes = [Pipe(duplex=False) for _ in range(num_workers)]  # by which workers get their buffers back
        self._buffers = [ReceiveBuffers(writing) for _, writing in pipes]
        self.stats: dict[int, Stats] = {}  # of each worker, as it told last
        self._num_passes = 0
        self._source = WorkerStream(stream, most_chunks, [reading for reading, _ in pipes])
        self._processes = WorkerProcesses(self._source, num_workers, options)

    @property
    def lives_on(self) -> bool:
        """Whether the next pass can use these processes: they are persistent, and all of them are alive."""
        return self._processes.persistent_workers and self._processes.are_alive

    def given(self, way: Pass) -> Generator[Given, None, None]:
        """What each chunk of a pass gave, of each worker in turn; a worker that has no more is passed over.

        Raises:
            RuntimeError: A worker died, or gave nothing for the `timeout` of the options; names it.
        """
        self._num_passes += 1
        self._source.show(way, self._num_passes)
        for buffers in self._buffers:
            buffers.begin(self._num_passes)
        patience, epoch = self._processes.patience, way.epoch
        patience.what = f"rank {way.rank} waits for the start of epoch {epoch}"
        arriving = iter(self._processes)
        coming: list[deque[Given]] = [deque() for _ in self._buffers]
        step = worker = num_missed = 0
        while num_missed < len(coming):
            patience.what = f"rank {way.rank} waits for step {way.start.steps + step} of epoch {epoch}"
            while not coming[worker] and (sent := next(arriving, None)) is not None:
                self.stats[sent.worker] = sent.stats
                coming[sent.worker].extend(unpack(sent.chunks, self._buffers[sent.worker]))
            num_missed = 0 if coming[worker] else num_missed + 1
            if coming[worker]:
                step += 1
                yield coming[worker].popleft()
            worker = (worker + 1) % len(coming)

    def close(self) -> None:
        """End the processes."""
        self._processes.close()


@dataclass(frozen=True, slots=True)
class Sent:
    """What some chunks of a worker gave, on its way to the trainer."""

    worker: int
    stats: Stats  # of the worker since its start
    chunks: Packed


class WorkerStream(Portable):
    """What a worker process iterates over: what its chunks of the pass gave that the trainer showed last.

    Persistent workers keep the object that they were born with, so a pass reaches them by shared memory.
    """

    FIELDS = ("epoch", "lanes", "block", "consumed", "steps")

    def __init__(self, stream: Stream, most_chunks: int, freed: Sequence[Connection]) -> None:
        super().__init__(stream)
        self._most_chunks = most_chunks
        self._freed = freed
        self._numbers = torch.zeros(len(self.FIELDS) + 1, dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._way: Pass | None = None
        self._buffers: SendBuffers | None = None  # of a worker

    def __getstate__(self) -> tuple[Any, ...]:
        return (*super().__getstate__(), self._most_chunks, self._freed, self._numbers, self._way)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        *inherited, self._most_chunks, self._freed, self._numbers, self._way = state
        self._buffers = None
        super().__setstate__(tuple(inherited))

    def show(self, way: Pass, pass_number: int) -> None:
        """Let the next iteration go this way."""
        self._numbers.copy_(torch.tensor([*(getattr(way.start, name) for name in self.FIELDS), pass_number]))
        self._way = self._way or way  # afterwards the numbers tell what is new

    def __iter__(self) -> Iterator[Sent]:
        worker = get_worker_info()
        if worker is None or self._way is None:
            raise RuntimeError("for the loader's workers only")
        self.tell_rank()
        *numbers, pass_number = self._numbers.tolist()
        start = replace(self._way.start, **dict(zip(self.FIELDS, numbers, strict=True)))
        way = Pass(start, replace(self._way.rest, consumed=start.consumed), self._way.rank)
        self._buffers = buffers = self._buffers or SendBuffers(self._freed[worker.id])
        buffers.begin(pass_number)
        stream: Stream = self.dataset
        held, size = list[Given](), 1
        for chunk in stream.given(way):
            held.append(chunk)
            if len(held) >= size:
                yield Sent(worker.id, replace(stream.source.stats), pack(held, buffers))
                held, size = [], min(2 * size, self._most_chunks)
        if held:
            yield Sent(worker.id, replace(stream.source.stats), pack(held, buffers))
