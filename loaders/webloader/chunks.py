"""What a DataModule's worker iterates over: its chunks of a rank's stream, sample by sample, and what they gave.

A chunk is what a rank takes in one step. It is read and decoded at once; its samples then go through the user's
pipeline, one generator over all chunks of a worker. Which outputs belong to which chunk follows from when the pipeline
asks for more: exactly, as long as it holds nothing back.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.compat import FluidInterface
from webdataset.pipeline import DataPipeline

from dray.loaders.batching.batches import LOOK_AHEAD, THREADS, open_reader
from dray.loaders.batching.buffers import BufferPool
from dray.loaders.batching.skipping import UNREADABLE, Skipper
from dray.loaders.batching.stacking import Stacker
from dray.loaders.order.passes import Pass, Step
from dray.shards.codecs.decode import Decoder
from dray.shards.errors import DamagedError, RefusedError
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.node_cache import BlockStore
from dray.shards.reading.ranged import RangeReader
from dray.shards.reading.samples import Column, MappedParts, Parts, Reader, Samples, Stats, wanted_columns
from dray.shards.reading.suffixes import WantedParts

Sample = tuple[Any, ...]


@dataclass(slots=True)
class Tally:
    """How far a pipeline has come in what it is fed."""

    sizes: list[int] = field(default_factory=list)  # of the chunks that were begun
    given: int = 0  # samples of the last of them


class Chunks(IterableDataset[Sample]):
    """The samples of one rank's pass, or a worker's part of it, as tuples of decoded parts.

    Args:
        open_catalog: Opens the samples; called once in each process.
        blocks: The node's store of what is fetched from object storage; None: nothing is shared.
        wanted: The parts, in the order of the tuples.
        decoder: How to decode them.
        first_pass: What to iterate over where nothing else was said (by `go`).
        skipper: Replaces samples that cannot be read; None: they are errors.
    """

    def __init__(
        self,
        open_catalog: Callable[[], Catalog],
        blocks: BlockStore | None,
        wanted: WantedParts,
        decoder: Decoder,
        first_pass: Callable[[], Pass],
        skipper: Skipper | None = None,
    ) -> None:
        self._open_catalog = open_catalog
        self._blocks = blocks
        self._wanted = wanted
        self._decoder = decoder
        self._first_pass = first_pass
        self._skipper = skipper
        self._way: tuple[Pass, Tally] | None = None
        self._opened: _Tools | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_way": None, "_opened": None}

    @property
    def stats(self) -> Stats:
        """What was read in this process, since the last `close`."""
        return self._opened.reader.stats if self._opened is not None else Stats()

    def close(self) -> Stats:
        """Let go of files and threads, which the next iteration opens anew. Returns the `stats` until now."""
        stats, self._opened = self.stats, None
        return stats

    def go(self, way: Pass, tally: Tally) -> None:
        """Let the next iteration go this way, and count there."""
        self._way = way, tally

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        way, tally = self._way or (self._first_pass(), Tally())
        for rows in self._chunks(way, first, stride):
            tally.sizes.append(len(rows))
            tally.given = 0
            for row in rows:
                tally.given += 1
                yield row

    def _chunks(self, way: Pass, first: int, stride: int) -> Iterator[list[Sample]]:
        """Every so many-th chunk, in order; what comes next is fetched meanwhile."""
        reader = self._tools.reader
        is_ranged = isinstance(reader, RangeReader)
        steps = way.steps(first, stride, with_runs=is_ranged)
        ahead: deque[Step] = deque(islice(steps, LOOK_AHEAD))
        while ahead:
            if is_ranged:
                reader.expect(chain.from_iterable(step.runs for step in ahead))
            step = ahead.popleft()
            ahead.extend(islice(steps, 1))
            yield self._chunk(way, step)

    def _chunk(self, way: Pass, step: Step) -> list[Sample]:
        if not len(step.samples):
            return []
        try:
            return self._rows(self._tools.reader.read(step.samples, step.runs))
        except UNREADABLE:
            if self._skipper is None:
                raise
        order = way.start.order()

        def rows_at(positions: NDArray[np.int64]) -> list[Sample]:
            runs = list(zip(*map(np.ndarray.tolist, order.runs(positions)), strict=True))
            return self._rows(self._tools.reader.read(order.at(positions), runs))

        positions = self._skipper.replaced(step.share.positions, way.start, rows_at)
        self._tools.reader.stats.skipped += int((positions != step.share.positions).sum())
        return rows_at(positions)

    def _rows(self, samples: Samples) -> list[Sample]:
        try:
            columns = wanted_columns(samples, self._wanted).values()
            return list(zip(*(self._values(samples, column) for column in columns), strict=True))
        except Exception:
            samples.check()  # a damaged sample is named first, whatever part of which sample is looked at first
            raise

    def _values(self, samples: Samples, column: Column) -> Sequence[Any]:
        """One part of each sample, decoded; those that are alike at once."""
        if column.suffix is not None and (alike := self._stacked(column.suffix, column.parts)) is not None:
            return alike
        return [self._value(samples, column, row) for row in range(len(samples))]

    def _stacked(self, name: str, parts: Parts) -> Sequence[Any] | None:
        """The values of parts that are alike: rows of one tensor or array, with what the decoder makes of the first."""
        if self._decoder.is_own(name) or len(parts) < 2:
            return None
        (stacked,) = self._tools.stacker.stacks(name.lower(), parts, [(0, len(parts))])
        first_part = parts.one(0) if isinstance(parts, MappedParts) else parts[0]
        if stacked is None or first_part is None:
            return None
        first = self._decoder.part(name.lower(), first_part)
        if type(first) is torch.Tensor and not first.requires_grad:
            return [stacked[row] for row in range(len(parts))]
        if type(first) is np.ndarray and first.dtype == stacked.numpy().dtype:
            return list(stacked.numpy())
        return None

    def _value(self, samples: Samples, column: Column, row: int) -> Any:
        """The value of one part; None where the sample lacks it."""
        suffix, data = column.suffix_of(row), column.parts[row]
        if suffix is None or data is None:
            return None
        try:
            return self._decoder.part(suffix, data)
        except (DamagedError, RefusedError) as exc:
            raise exc.at(url=samples.url(row), key=samples.key(row), suffix=suffix) from exc

    @property
    def _tools(self) -> "_Tools":
        """Of this process: a forked child opens its own."""
        if self._opened is None or self._opened.process != os.getpid():
            num_threads = 1 if get_worker_info() else min(THREADS, len(os.sched_getaffinity(0)))
            reader = open_reader(self._open_catalog(), self._wanted, self._blocks)
            self._opened = _Tools(os.getpid(), reader, Stacker(BufferPool(), num_threads))
        return self._opened


class ChunkDataset(DataPipeline, FluidInterface):  # type: ignore[misc]  # webdataset has no types
    """Chunks with webdataset's fluid interface: `.compose`, `.map`, `.shuffle` and the like."""


@dataclass(frozen=True, slots=True)
class _Tools:
    process: int
    reader: Reader
    stacker: Stacker


class Given(NamedTuple):
    """What one chunk gave.

    Attributes:
        outputs: Of the pipeline.
        is_exact: Whether it gave one output for each sample, or one for all of them.
    """

    outputs: list[Any]
    is_exact: bool


def by_chunk(outputs: Iterable[Any], tally: Tally) -> Iterator[Given]:
    """What each chunk gave, in order, as soon as the pipeline that is fed by them has given it.

    An output belongs to the chunk whose samples were asked for last. webdataset's `batched` asks for the first sample
    of a chunk before it gives the batch of the chunk before: such an output belongs there, if all come so late.
    """
    done, held, is_prompt = 0, list[Any](), False

    def finished() -> Given:
        return Given(held, is_exact=len(held) in (1, tally.sizes[done]))

    for output in outputs:
        ahead = len(tally.sizes) - done - 1
        is_prompt |= ahead == 0
        is_late = ahead == tally.given == 1 and tally.sizes[done] > 0 and not held and not is_prompt
        while done + 1 < len(tally.sizes) and not is_late:
            yield finished()
            done, held = done + 1, []
        held.append(output)
        if is_late or (done < len(tally.sizes) and 1 < len(held) == tally.given == tally.sizes[done]):
            yield finished()
            done, held = done + 1, []
    while done < len(tally.sizes):
        yield finished()
        done, held = done + 1, []
    if held:
        yield Given(held, is_exact=False)
