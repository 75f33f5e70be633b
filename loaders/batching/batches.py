"""Making the batches of one rank: which samples a step takes, their bytes, their values.

This is what the loader's thread or worker processes run; it keeps no state of the epoch. Several small steps are made
together: what is computed or compared for many samples at once costs little for each.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dray.loaders.batching.buffers import Buffers
from dray.loaders.batching.collate import collate, is_stacked, no_rows, stacked
from dray.loaders.batching.sample_source import SampleSource
from dray.loaders.batching.skipping import UNREADABLE
from dray.loaders.order.passes import Pass, Step
from dray.shards.errors import CallError
from dray.shards.reading.samples import Column, Run, Samples, Stats
from dray.shards.reading.suffixes import Missing, first_complete

KEY, VALID = "__key__", "__valid__"

Transform = Callable[[dict[str, Any]], Any]
Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMaker:
    """Makes batches of samples; with the user's functions a source of worker processes.

    Attributes:
        samples: The samples.
        stack: Whether parts are stacked, or the names of those that are; the others are lists.
        transform: From a sample, part -> value, to what the batch is made of.
        collate: From a list of these to a batch.
        with_keys: Whether a sample has its key.
        marks_filler: Whether a batch says which of its rows are samples.
    """

    samples: SampleSource
    stack: bool | frozenset[str]
    transform: Transform | None
    collate: Collate | None
    with_keys: bool
    marks_filler: bool

    def __copy__(self) -> "BatchMaker":
        return replace(self, samples=copy(self.samples))

    def __deepcopy__(self, memo: dict[int, Any]) -> "BatchMaker":
        """The user's functions need not pickle, and what is read does not change."""
        return replace(copy(self), transform=deepcopy(self.transform, memo), collate=deepcopy(self.collate, memo))

    @property
    def stats(self) -> Stats:
        """What was read in this process."""
        return self.samples.stats

    def use(self, buffers: Buffers) -> None:
        """Make large tensors in the memory that a worker shares with the trainer."""
        self.samples.use(buffers)

    def groups(self, epoch_pass: Pass, first: int = 0, stride: int = 1) -> Iterator[list[Any]]:
        """Yields the batches of the steps `first`, `first + stride`, ..., in order, those of small steps together.

        One step after another is made where one fails, for the batches before it are good.
        """
        for steps in self.samples.step_groups(epoch_pass, first, stride):
            yield from self._groups(epoch_pass, steps)

    def _groups(self, epoch_pass: Pass, steps: Sequence[Step]) -> Iterator[list[Any]]:
        try:
            made = self._made(steps)
        except Exception as exc:
            if len(steps) == 1 and not (self.samples.skipper is not None and isinstance(exc, UNREADABLE)):
                raise
            made = []
        if made:
            yield made
        elif len(steps) > 1:
            for step in steps:
                yield from self._groups(epoch_pass, [step])
        else:
            yield self._made([self.samples.replaced(epoch_pass, steps[0])])

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
        source = self.samples
        sample = first_complete(source.catalog, source.wanted)
        if source.skipper is not None:
            sample = source.skipper.first_readable(len(source.catalog), source.check_readable, sample)
        batch = self._read(np.array([sample], np.int64), [(sample, 1)], [(0, 1)])[0]
        return no_rows(self._marked(batch, 1, 0))

    def _read(self, numbers: NDArray[np.int64], runs: Sequence[Run], bounds: Sequence[tuple[int, int]]) -> list[Any]:
        """A batch for each stretch of some samples."""
        with self.samples.read(numbers, runs) as (samples, columns):
            if self.transform is None and self.collate is None:
                return self._batches(samples, columns, bounds)
            return [self._collated(samples, columns, range(*bound)) for bound in bounds]

    def _collated(self, samples: Samples, columns: Mapping[str, Column], rows: range) -> Any:
        """The batch of some samples that the user's functions make."""
        values = [self._row(samples, columns, row) for row in rows]
        if not values:
            return None
        if self.collate is not None:
            return self.collate(values)
        may_lack = self.samples.wanted.missing == Missing.NONE
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
        is_own = any(map(self.samples.decoder.is_own, column.stored))
        found: list[Any] = [None] * len(bounds)
        if can_stack and not is_own:
            found = self.samples.stacker.stacks_of(column, bounds)
        for number, (start, end) in enumerate(bounds):
            if found[number] is None:
                values = [self.samples.value(samples, column, row) for row in range(start, end)]
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
        values = {name: self.samples.value(samples, column, row) for name, column in columns.items()}
        if self.with_keys:
            values[KEY] = samples.key(row)
        if self.transform is None:
            return values
        try:
            return self.transform(values)
        except Exception as exc:
            exc.add_note(f"transform was given shard {samples.url(row)!r}, key {samples.key(row)!r}")
            raise


def _where(samples: Samples, first: int, row: int) -> str:
    return samples.where(first + row)
