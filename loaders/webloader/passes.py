"""Runs passes of a rank's chunks through the user's pipeline, in this process or in worker processes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset, default_collate, default_convert

from dray.loaders.batching.buffers import Buffers
from dray.loaders.compat import pin_memory
from dray.loaders.order.passes import Pass
from dray.loaders.webloader.chunks import ChunkOutputs, Chunks, FeedCount, by_chunk
from dray.loaders.webloader.output_position import OutputPosition
from dray.loaders.workers.pool import WorkerPool, total
from dray.shards.reading.samples import Stats


@dataclass(frozen=True, slots=True, kw_only=True)
class Collation:
    """Batches or converts a pipeline's outputs before they leave the worker, as torch's DataLoader does.

    Attributes:
        batch_size: Number of outputs in a batch; None: no batches are made.
        drop_last: Whether a last, shorter batch of a worker's pass is left out.
        collate: Makes a batch from a list, or converts one output; None: torch's default.
    """

    batch_size: int | None = None
    drop_last: bool = False
    collate: Callable[[Any], Any] | None = None

    def __call__(self, outputs: Iterable[Any]) -> Iterator[Any]:
        """Yields the batches or converted outputs."""
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
    """Returns what torch's `default_convert` does, faster in simple cases."""
    if type(output) is torch.Tensor:
        return output
    if type(output) is tuple and all(type(item) is torch.Tensor for item in output):
        return list(output)
    return default_convert(output)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Stream:
    """The user's pipeline over a rank's chunks; worker processes use it as their source.

    Attributes:
        chunks: The rank's chunks.
        dataset: Pipeline that begins with the chunks.
        collation: Batches or converts the outputs of the pipeline.
    """

    chunks: Chunks
    dataset: Iterable[Any]
    collation: Collation

    @property
    def stats(self) -> Stats:
        """Counts of what was read in this process."""
        return self.chunks.samples.stats

    def use(self, buffers: Buffers) -> None:
        """Ignore shared buffers, as the pipeline may hold samples for long."""

    def outputs(self, epoch_pass: Pass, first: int = 0, stride: int = 1) -> Iterator[ChunkOutputs]:
        """Yields the outputs of the chunks `first`, `first + stride`, ... of a pass."""
        count = FeedCount()
        self.chunks.show(epoch_pass, first, stride, count)
        return by_chunk(self.collation(self.dataset), count)

    def groups(self, epoch_pass: Pass, first: int, stride: int) -> Iterator[list[ChunkOutputs]]:
        """Yields what `outputs` does, with small chunks in growing groups."""
        most, held, size = self.chunks.samples.group_steps(epoch_pass), list[ChunkOutputs](), 1
        for chunk in self.outputs(epoch_pass, first, stride):
            held.append(chunk)
            if len(held) >= size:
                yield held
                held, size = [], min(2 * size, most)
        if held:
            yield held


class Passes(IterableDataset[Any]):
    """Iterates over the outputs of the chunks of one pass, in order; the next iteration yields the next pass.

    Args:
        stream: The pipeline and its chunks.
        progress: Chooses the next pass, and counts the outputs that the trainer got.
        num_workers: Number of worker processes; 0: none.
        options: Keyword arguments of torch's DataLoader for the workers.
        pin: Whether tensors are copied to page-locked memory.
    """

    def __init__(
        self, stream: Stream, progress: OutputPosition, num_workers: int, options: Mapping[str, Any], *, pin: bool
    ) -> None:
        self.progress = progress
        self._stream = stream
        self.num_workers = num_workers
        self._options = dict(options)
        self._pins = pin and torch.cuda.is_available()
        self._pool: WorkerPool | None = None
        self._closed = Stats()  # stats of this process until the last `close`

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pool": None, "_closed": Stats()}

    def __iter__(self) -> Iterator[Any]:
        progress = self.progress
        epoch_pass = progress.next_pass()
        for number, chunk in enumerate(self._outputs(epoch_pass), 1):
            end = epoch_pass.start.advanced(number, progress.epochs.batch)
            last = len(chunk.outputs) - 1
            for place, output in enumerate(chunk.outputs):
                progress.handed += 1
                if place == last:
                    progress.end_chunk(end, is_exact=chunk.is_exact)
                yield pin_memory(output) if self._pins else output
            if last < 0:
                progress.end_chunk(end, is_exact=chunk.is_exact)

    def close(self) -> None:
        """End worker processes and threads; the next pass starts new ones."""
        self._closed = total([self._closed, self._stream.stats])
        self._stream.chunks.samples.close()
        if self._pool is not None:
            self._pool.close()

    def stats(self) -> dict[str, float]:
        """Returns what was read for this rank since the start, here and in workers; see `ShardLoader.stats`."""
        return asdict(total([self._closed, self._stream.stats, self._pool.stats if self._pool else Stats()]))

    def _outputs(self, epoch_pass: Pass) -> Iterator[ChunkOutputs]:
        if not self.num_workers:
            return self._stream.outputs(epoch_pass)
        if self._pool is None:
            self._pool = WorkerPool(self._stream, self.num_workers, self._options)
        return self._pool.items(epoch_pass)
