"""Making the batches of one rank: which samples a step takes, their bytes, their values.

This is what the loader's thread or worker processes run; it keeps no state of the epoch. Several small steps are made
together: what is worked out or looked at for many samples at once costs little for each.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice, pairwise
from typing import Any

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray

from dray.loaders.batching.buffers import BufferPool, Buffers
from dray.loaders.batching.collate import collate, is_stacked, no_rows, stacked
from dray.loaders.batching.skipping import UNREADABLE, Skipper
from dray.loaders.batching.stacking import Stacker
from dray.loaders.order.passes import Pass, Step
from dray.shards.codecs.decode import Decoder
from dray.shards.errors import CallError, DamagedError, RefusedError
from dray.shards.reading.catalog import Catalog
from dray.shards.reading.mapped import MappedReader
from dray.shards.reading.node_cache import BlockStore
from dray.shards.reading.ranged import RangeReader
from dray.shards.reading.samples import Column, Reader, Run, Samples, Stats, wanted_columns
from dray.shards.reading.suffixes import Missing, WantedParts, first_complete
from dray.shards.snapshot import Snapshot

LOOK_AHEAD = 64  # steps whose samples are fetched meanwhile, as far as the reader has room
THREADS = 4  # that copy large parts
GROUP_STEPS = 16  # made together at the most,
GROUP_BYTES = 2 << 20  # if they have no more than so many bytes
KEY, VALID = "__key__", "__valid__"

Transform = Callable[[dict[str, Any]], Any]
Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True, kw_only=True)
class BatchMaker:
    """Reads, decodes and collates samples. It crosses to worker processes with the user's functions.

    Attributes:
        snapshot: The version that is read.
        wanted: The parts that are read.
        stack: Whether parts are stacked, or the names of those that are; the others are lists.
        limit: Only the first so many samples of the dataset; None: all.
        decoder: From bytes to values.
        transform: From a sample, part -> value, to what the batch is made of.
        collate: From a list of these to a batch.
        with_keys: Whether a sample has its key.
        marks_filler: Whether a batch tells which of its rows are samples.
        skipper: Replaces samples that cannot be read; None: they are errors.
        blocks: The node's store of what is fetched from object storage; None: nothing is shared.
    """

    snapshot: Snapshot
    wanted: WantedParts
    stack: bool | frozenset[str]
    limit: int | None
    decoder: Decoder
    transform: Transform | None
    collate: Collate | None
    with_keys: bool
    marks_filler: bool
    skipper: Skipper | None
    blocks: BlockStore | None = None

    def __reduce__(self) -> tuple[Callable[[bytes], "BatchMaker"], tuple[bytes]]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return _unpack_maker, (cloudpickle.dumps(fields),)

    def __deepcopy__(self, memo: dict[int, Any]) -> "BatchMaker":
        """The user's functions need not pickle, and what is read does not change."""
        return replace(self, transform=deepcopy(self.transform, memo), collate=deepcopy(self.collate, memo))

    @property
    def catalog(self) -> Catalog:
        """The samples; opened in the process that reads them."""
        return self._tools.catalog

    @property
    def stats(self) -> Stats:
        """What was read in this process."""
        return self._tools.reader.stats

    def groups(self, way: Pass, first: int = 0, stride: int = 1) -> Iterator[list[Any]]:
        """The batches of every so many-th step, in order; several small ones at a time, but for the first."""
        reader = self._tools.reader
        is_ranged = isinstance(reader, RangeReader)
        steps = way.steps(first, stride, with_runs=is_ranged)
        ahead: list[Step] = []
        most, size = self._most_steps(way), 1
        while True:
            if len(ahead) < size + LOOK_AHEAD // 2:  # many at a time: to tell what is expected takes time too
                ahead += islice(steps, LOOK_AHEAD + size - len(ahead))
                if is_ranged:
                    reader.expect(chain.from_iterable(step.runs for step in ahead))
            if not ahead:
                return
            group, ahead = ahead[:size], ahead[size:]
            yield from self._groups(way, group)
            size = min(size * 2, most)

    def _most_steps(self, way: Pass) -> int:
        """Steps that are made together."""
        sample_bytes = self.snapshot.num_bytes / max(1, self.snapshot.num_samples)
        step_bytes = sample_bytes * way.rest.batch / way.rest.num_ranks
        return max(1, min(GROUP_STEPS, int(GROUP_BYTES / max(1.0, step_bytes))))

    def _groups(self, way: Pass, steps: Sequence[Step]) -> Iterator[list[Any]]:
        """The batches of some steps, at once; one after another where one fails, for those before it are good."""
        try:
            made = self._made(steps)
        except Exception as exc:
            if len(steps) == 1 and not (self.skipper is not None and isinstance(exc, UNREADABLE)):
                raise
            made = []
        if made:
            yield made
        elif len(steps) > 1:
            for step in steps:
                yield from self._groups(way, [step])
        else:
            yield self._made([self._replaced(way, steps[0])])

    def _made(self, steps: Sequence[Step]) -> list[Any]:
        """The batches of some steps."""
        ends = np.cumsum([0, *(len(step.samples) for step in steps)]).tolist()
        if not ends[-1]:
            return [self._empty() for _ in steps]
        runs = list(chain.from_iterable(step.runs for step in steps))
        batches = self._read(np.concatenate([step.samples for step in steps]), runs, list(pairwise(ends)))
        return [self._finished(batch, step) for batch, step in zip(batches, steps, strict=True)]

    def _finished(self, batch: Any, step: Step) -> Any:
        if not len(step.samples):
            return self._empty()
        return self._marked(batch, len(step.samples), step.share.num_valid)

    def _empty(self) -> Any:
        """The batch of a rank that is without a sample in the last step: like any other, but of no rows."""
        sample = first_complete(self.catalog, self.wanted)
        if self.skipper is not None:
            sample = self.skipper.first_readable(len(self.catalog), self._try, sample)
        batch = self._read(np.array([sample], np.int64), [(sample, 1)], [(0, 1)])[0]
        return no_rows(self._marked(batch, 1, 0))

    def _read(self, numbers: NDArray[np.int64], runs: Sequence[Run], bounds: Sequence[tuple[int, int]]) -> list[Any]:
        """A batch for each stretch of some samples."""
        samples = self._tools.reader.read(numbers, runs)
        try:
            columns = wanted_columns(samples, self.wanted)
            if self.transform is None and self.collate is None:
                return self._batches(samples, columns, bounds)
            return [self._collated(samples, columns, range(*bound)) for bound in bounds]
        except Exception:
            samples.check()  # a damaged sample is named first, whatever part of which sample is looked at first
            raise

    def _collated(self, samples: Samples, columns: Mapping[str, Column], rows: range) -> Any:
        """The batch of some samples that the user's functions make."""
        values = [self._row(samples, columns, row) for row in rows]
        if not values:
            return None
        if self.collate is not None:
            return self.collate(values)
        may_lack = self.wanted.missing == Missing.NONE
        return collate(values, stack=self.stack, may_lack=may_lack, where=partial(_where, samples, rows.start))

    def _batches(self, samples: Samples, columns: Mapping[str, Column], bounds: Sequence[tuple[int, int]]) -> list[Any]:
        """A batch for each stretch of the samples."""
        batches: list[dict[str, Any]] = [{} for _ in bounds]
        for name, column in columns.items():
            for batch, values in zip(batches, self._stretches(samples, name, column, bounds), strict=True):
                batch[name] = values
        for batch, bound in zip(batches, bounds, strict=True) if self.with_keys else ():
            batch[KEY] = [samples.key(row) for row in range(*bound)]
        return batches

    def _stretches(
        self, samples: Samples, name: str, column: Column, bounds: Sequence[tuple[int, int]]
    ) -> Sequence[torch.Tensor | list[Any]]:
        """One part of each batch."""
        can_stack = is_stacked(name, self.stack)
        is_own = any(map(self.decoder.is_own, column.stored))
        found: list[Any] = [None] * len(bounds)
        if can_stack and not is_own:
            found = self._tools.stacker.stacks_of(column, bounds)
        for number, (start, end) in enumerate(bounds):
            if found[number] is None:
                values = [self._value(samples, column, row) for row in range(start, end)]
                found[number] = stacked(values, name, partial(_where, samples, start)) if can_stack else values
        return found

    def _marked(self, batch: Any, num_rows: int, num_valid: int) -> Any:
        if self.marks_filler:
            if not isinstance(batch, dict):
                raise CallError(
                    f"remainder='pad' notes in each batch what is filler: collate gave {type(batch).__name__}, no dict"
                )
            batch[VALID] = torch.arange(num_rows) < num_valid
        return batch

    def _row(self, samples: Samples, columns: Mapping[str, Column], row: int) -> Any:
        """What the batch's collate gets of one sample."""
        values = {name: self._value(samples, column, row) for name, column in columns.items()}
        if self.with_keys:
            values[KEY] = samples.key(row)
        if self.transform is None:
            return values
        try:
            return self.transform(values)
        except Exception as exc:
            exc.add_note(f"transform was given shard {samples.url(row)!r}, key {samples.key(row)!r}")
            raise

    def _value(self, samples: Samples, column: Column, row: int) -> Any:
        """The value of one part; None where the sample lacks it."""
        suffix, data = column.suffix_of(row), column.parts[row]
        return None if suffix is None or data is None else self._decoded(samples, row, suffix, data)

    def _decoded(self, samples: Samples, row: int, suffix: str, data: memoryview) -> Any:
        try:
            return self.decoder.part(suffix, data)
        except (DamagedError, RefusedError) as exc:
            raise exc.at(url=samples.url(row), key=samples.key(row), suffix=suffix) from exc

    def _replaced(self, way: Pass, step: Step) -> Step:
        """The same step, other samples in the place of those that cannot be read."""
        if self.skipper is None:
            return step
        order = way.start.order()

        def runs(positions: NDArray[np.int64]) -> list[Run]:
            return list(zip(*map(np.ndarray.tolist, order.runs(positions)), strict=True))

        positions = self.skipper.replaced(
            step.share.positions, way.start, lambda some: self._try(order.at(some), runs(some))
        )
        self._tools.reader.stats.skipped += int((positions != step.share.positions).sum())
        return Step(step.number, step.share, order.at(positions), runs(positions))

    def _try(self, samples: NDArray[np.int64], runs: Sequence[Run] | None = None) -> None:
        """Read and decode some samples, each of its run or by itself.

        Raises:
            NotFoundError: The shard or the index of one is missing.
            DamagedError: One is damaged.
            RefusedError: One holds something that is not on the safe list.
        """
        runs = runs or [(int(sample), 1) for sample in samples]
        found = self._tools.reader.read(samples, runs)
        for row in range(len(found)):
            for suffix, data in found.sample(row).items():
                self._decoded(found, row, suffix, data)

    def use(self, buffers: Buffers) -> None:
        """Make large tensors in these, in one thread: this process is one of many workers."""
        self.__dict__["_opened"] = replace(self._tools, stacker=Stacker(buffers, num_threads=1))

    @property
    def _tools(self) -> "_Tools":
        """Of this process: a forked child opens its own."""
        found: _Tools | None = self.__dict__.get("_opened")
        if found is None or found.process != os.getpid():
            num_threads = min(THREADS, len(os.sched_getaffinity(0)))
            catalog = Catalog(self.snapshot, limit=self.limit, blocks=self.blocks)
            reader = open_reader(catalog, self.wanted, self.blocks)
            found = _Tools(os.getpid(), catalog, reader, Stacker(BufferPool(), num_threads))
            self.__dict__["_opened"] = found
        return found


@dataclass(frozen=True, slots=True)
class _Tools:
    process: int
    catalog: Catalog
    reader: Reader
    stacker: Stacker


def open_reader(catalog: Catalog, wanted: WantedParts, blocks: BlockStore | None = None) -> Reader:
    """A reader for wherever the dataset lies."""
    return MappedReader(catalog, wanted) if catalog.snapshot.is_local else RangeReader(catalog, wanted, blocks)


def _where(samples: Samples, first: int, row: int) -> str:
    return samples.where(first + row)


def _unpack_maker(data: bytes) -> BatchMaker:
    return BatchMaker(**cloudpickle.loads(data))
