"""The chunks of a rank's stream that a DataModule's worker iterates over, and the outputs of each chunk.

A chunk is what a rank takes in one step. It is read and decoded at once; its samples then go through the user's
pipeline, one generator over all chunks of a worker. An output's chunk follows from when the pipeline asks for more
samples: exactly, as long as the pipeline holds nothing back.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.compat import FluidInterface
from webdataset.pipeline import DataPipeline

from dray.loaders.batching.sample_source import SampleSource
from dray.loaders.batching.skipping import UNREADABLE
from dray.loaders.order.passes import Pass, Step
from dray.shards.reading.samples import Column, MappedParts, Parts, Samples

SampleTuple = tuple[Any, ...]


@dataclass(slots=True)
class FeedCount:
    """Number of samples that a pipeline has taken."""

    sizes: list[int] = field(default_factory=list)  # sizes of the chunks that it has begun
    taken: int = 0  # number of samples taken from the last of these chunks


class Chunks(IterableDataset[SampleTuple]):
    """Yields the samples of one rank's pass, or of a worker's share of it, as tuples of decoded parts.

    Args:
        samples: Reads and decodes the samples.
        first_pass: Returns the pass to iterate over before any `show`; a worker of torch then takes its share.
    """

    def __init__(self, samples: SampleSource, first_pass: Callable[[], Pass]) -> None:
        self.samples = samples
        self._first_pass = first_pass
        self._shown: tuple[Pass, int, int, FeedCount] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shown": None}

    def show(self, epoch_pass: Pass, first: int, stride: int, count: FeedCount) -> None:
        """Make the next iteration yield the steps `first`, `first + stride`, ... of a pass, counted in `count`."""
        self._shown = epoch_pass, first, stride, count

    def __iter__(self) -> Iterator[SampleTuple]:
        worker = get_worker_info()
        part = (worker.id, worker.num_workers) if worker else (0, 1)
        epoch_pass, first, stride, count = self._shown or (self._first_pass(), *part, FeedCount())
        for (step,) in self.samples.step_groups(epoch_pass, first, stride, 1):
            rows = self._chunk(epoch_pass, step)
            count.sizes.append(len(rows))
            count.taken = 0
            for row in rows:
                count.taken += 1
                yield row

    def _chunk(self, epoch_pass: Pass, step: Step) -> list[SampleTuple]:
        try:
            return self._rows(step)
        except UNREADABLE:
            if self.samples.skipper is None:
                raise
        return self._rows(self.samples.replaced(epoch_pass, step))

    def _rows(self, step: Step) -> list[SampleTuple]:
        if not len(step.samples):
            return []
        with self.samples.read(step.samples, step.runs) as (samples, columns):
            return list(zip(*(self._values(samples, column) for column in columns.values()), strict=True))

    def _values(self, samples: Samples, column: Column) -> Sequence[Any]:
        """Returns one part of each sample, decoded; tensors or arrays of one layout at once."""
        if column.suffix is not None and (stacked := self._stacked(column.suffix, column.parts)) is not None:
            return stacked
        return [self.samples.value(samples, column, row) for row in range(len(samples))]

    def _stacked(self, name: str, parts: Parts) -> Sequence[Any] | None:
        """Returns parts of one layout as rows of a tensor or array, as the decoder would; None for other parts."""
        decoder = self.samples.decoder
        if decoder.is_own(name) or len(parts) < 2:
            return None
        (stacked,) = self.samples.stacker.stacks(name.lower(), parts, [(0, len(parts))])
        first_part = parts.one(0) if isinstance(parts, MappedParts) else parts[0]
        if stacked is None or first_part is None:
            return None
        first = decoder.part(name.lower(), first_part)
        if type(first) is torch.Tensor and not first.requires_grad:
            return [stacked[row] for row in range(len(parts))]
        if type(first) is np.ndarray and first.dtype == stacked.numpy().dtype:
            return list(stacked.numpy())
        return None


class ChunkDataset(DataPipeline, FluidInterface):  # type: ignore[misc]  # webdataset has no types
    """Chunks with webdataset's fluid interface: `.compose`, `.map`, `.shuffle` and the like."""


class ChunkOutputs(NamedTuple):
    """Outputs of a pipeline for one chunk.

    Attributes:
        outputs: The outputs.
        is_exact: Whether there is one output for each sample, or one for the whole chunk.
    """

    outputs: list[Any]
    is_exact: bool


def by_chunk(outputs: Iterable[Any], count: FeedCount) -> Iterator[ChunkOutputs]:
    """Yields the outputs of each chunk, in order, as soon as the pipeline over the chunks has yielded them.

    An output belongs to the chunk that the pipeline took samples from last. webdataset's `batched` takes the first
    sample of the next chunk before it yields a batch: if all outputs come this late, they belong to the chunk before.
    """
    done, held, is_prompt = 0, list[Any](), False

    def finished() -> ChunkOutputs:
        return ChunkOutputs(held, is_exact=len(held) in (1, count.sizes[done]))

    for output in outputs:
        ahead = len(count.sizes) - done - 1
        is_prompt |= ahead == 0
        is_late = ahead == count.taken == 1 and count.sizes[done] > 0 and not held and not is_prompt
        while done + 1 < len(count.sizes) and not is_late:
            yield finished()
            done, held = done + 1, []
        held.append(output)
        if is_late or (done < len(count.sizes) and 1 < len(held) == count.taken == count.sizes[done]):
            yield finished()
            done, held = done + 1, []
    while done < len(count.sizes):
        yield finished()
        done, held = done + 1, []
    if held:
        yield ChunkOutputs(held, is_exact=False)
