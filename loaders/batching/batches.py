"""Makes the batches of one rank from the samples of its steps.

The loader's thread or worker processes run it; it keeps no epoch state. Several small steps are made together, as work
that is done for many samples at once costs little for each.
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

SampleTransform = Callable[[dict[str, Any]], Any]
Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchMaker:
    """Makes batches of samples with the user's functions; worker processes use it as their source.

    Attributes:
        samples: Reads and decodes the samples.
        stack: Whether parts are stacked, or the names of the parts to stack; the others are lists.
        transform: Converts a sample, a dict of part -> value.
        collate: Makes a batch of a list of transformed samples.
        with_keys: Whether samples and batches hold the keys.
        marks_filler: Whether a batch holds a mask of the rows that are samples, not filler.
    """

    samples: SampleSource
    stack: bool | frozenset[str]
    transform: SampleTransform | None
    collate: Collate | None
    with_keys: bool
    marks_filler: bool

    def __copy__(self) -> "BatchMaker":
        return replace(self, samples=copy(self.samples))

    def __deepcopy__(self, memo: dict[int, Any]) -> "BatchMaker":
        """Returns a copy with its own user functions, which need not pickle; what is read does not change."""
        return replace(copy(self), transform=deepcopy(self.transform, memo), collate=deepcopy(self.collate, memo))

    @property
    def stats(self) -> Stats:
        """Counts of what was read in this process."""
        return self.samples.stats

    def use(self, buffers: Buffers) -> None:
        """Make large tensors in `buffers`, which a worker shares with the trainer."""
        self.samples.use(buffers)

    def groups(self, epoch_pass: Pass, first: int = 0, stride: int = 1) -> Iterator[list[Any]]:
        """Yields the batches of the steps `first`, `first + stride`, ..., in order, with small steps grouped.

        If a group fails, its steps are made one by one, so that the batches before the bad one are still yielded.
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
        """Returns the batches of some steps."""
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
        """Returns the batch of a rank without samples in the last step: like any other, but with no rows."""
        source = self.samples
        sample = first_complete(source.catalog, source.wanted)
        if source.skipper is not None:
            sample = source.skipper.first_readable(len(source.catalog), source.check_readable, sample)
        batch = self._read(np.array([sample], np.int64), [(sample, 1)], [(0, 1)])[0]
        return no_rows(self._marked(batch, 1, 0))

    def _read(self, numbers: NDArray[np.int64], runs: Sequence[Run], bounds: Sequence[tuple[int, int]]) -> list[Any]:
        """Reads samples and returns a batch for each stretch of them."""
        with self.samples.read(numbers, runs) as (samples, columns):
            if self.transform is None and self.collate is None:
                return self._batches(samples, columns, bounds)
            return [self._collated(samples, columns, range(*bound)) for bound in bounds]

    def _collated(self, samples: Samples, columns: Mapping[str, Column], rows: range) -> Any:
        """Returns the batch that the user's functions make of some samples."""
        values = [self._row(samples, columns, row) for row in rows]
        if not values:
            return None
        if self.collate is not None:
            return self.collate(values)
        may_lack = self.samples.wanted.missing == Missing.NONE
        return collate(values, stack=self.stack, may_lack=may_lack, where=partial(_where, samples, rows.start))

    def _batches(self, samples: Samples, columns: Mapping[str, Column], bounds: Sequence[tuple[int, int]]) -> list[Any]:
        """Returns a batch for each stretch of the samples."""
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
        """Returns one part for each batch."""
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
                    f"remainder='pad' marks filler in each batch: collate returned {type(batch).__name__}, not dict"
                )
            batch[VALID] = torch.arange(num_rows) < num_valid
        return batch

    def _row(self, samples: Samples, columns: Mapping[str, Column], row: int) -> Any:
        """Returns what `collate` gets for one sample."""
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
