"""Making the batches of one rank: which samples a step takes, their bytes, their values.

This is what the loader's thread or worker processes run; it keeps no state of the epoch.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any

import cloudpickle
import numpy as np
import torch
from numpy.typing import NDArray

from dray.loaders.catalog import Catalog
from dray.loaders.collate import collate, no_rows
from dray.loaders.cursor import Cursor, Rest, Share
from dray.loaders.decode import Decoder
from dray.loaders.fetch import Reader, Run, Samples, Stats
from dray.loaders.mapped import MappedReader
from dray.loaders.ranges import RangeReader
from dray.shards.errors import CallError
from dray.shards.snapshot import Snapshot

CHUNK_STEPS = 64  # whose order is worked out at once
LOOK_AHEAD = 16  # steps whose samples are fetched meanwhile
KEY, VALID = "__key__", "__valid__"

Transform = Callable[[dict[str, Any]], Any]
Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True, slots=True)
class Pass:
    """One rank's way through the rest of an epoch."""

    start: Cursor
    rest: Rest
    rank: int

    def steps(self, first: int = 0, stride: int = 1) -> Iterator["Step"]:
        """Every so many-th step; the order is worked out for many of them at once."""
        numbers = iter(range(first, len(self.rest), stride))
        order = self.start.order()
        while chunk := list(islice(numbers, CHUNK_STEPS)):
            shares = [self.rest.share(number, self.rank) for number in chunk]
            positions = np.concatenate([share.positions for share in shares])
            samples, (firsts, sizes) = order.at(positions), order.runs(positions)
            runs = list(zip(firsts.tolist(), sizes.tolist(), strict=True))
            end = 0
            for number, share in zip(chunk, shares, strict=True):
                start, end = end, end + len(share.positions)
                yield Step(number, share, samples[start:end], runs[start:end])


@dataclass(frozen=True, slots=True)
class Step:
    """What one rank takes in one step."""

    number: int  # from the start of the pass
    share: Share
    samples: NDArray[np.int64]
    runs: Sequence[Run]


@dataclass(frozen=True, kw_only=True)
class BatchMaker:
    """Reads, decodes and collates samples. It crosses to worker processes with the user's functions.

    Attributes:
        snapshot: The version that is read.
        parts: The suffixes that are wanted; None: all.
        limit: Only the first so many samples of the dataset; None: all.
        decoder: From bytes to values.
        transform: From a sample, part -> value, to what the batch is made of.
        collate: From a list of these to a batch.
        with_keys: Whether a sample has its key.
        marks_filler: Whether a batch tells which of its rows are samples.
    """

    snapshot: Snapshot
    parts: tuple[str, ...] | None
    limit: int | None
    decoder: Decoder
    transform: Transform | None
    collate: Collate | None
    with_keys: bool
    marks_filler: bool

    def __reduce__(self) -> tuple[Callable[[bytes], "BatchMaker"], tuple[bytes]]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return _unpack_maker, (cloudpickle.dumps(fields),)

    @cached_property
    def catalog(self) -> Catalog:
        """The samples; opened in the process that reads them."""
        return Catalog(self.snapshot, self.parts, limit=self.limit)

    @property
    def stats(self) -> Stats:
        """What was read in this process."""
        return self._reader.stats

    def batches(self, way: Pass, first: int = 0, stride: int = 1) -> Iterator[Any]:
        """The batches of every so many-th step, in order."""
        ahead: list[Step] = []
        steps = way.steps(first, stride)
        while True:
            ahead += islice(steps, LOOK_AHEAD + 1 - len(ahead))
            if not ahead:
                return
            self._reader.expect(chain.from_iterable(step.runs for step in ahead))
            yield self._batch(ahead.pop(0))

    def _batch(self, step: Step) -> Any:
        if not len(step.samples):
            first = self._reader.read(np.zeros(1, np.int64), [(0, 1)])
            return no_rows(self._collated(first, num_valid=0))
        return self._collated(self._reader.read(step.samples, step.runs), step.share.num_valid)

    def _collated(self, samples: Samples, num_valid: int) -> Any:
        rows = [self._row(samples, number) for number in range(len(samples))]
        batch = (self.collate or collate)(rows)
        if self.marks_filler:
            if not isinstance(batch, dict):
                raise CallError(
                    f"remainder='pad' notes in each batch what is filler: collate gave {type(batch).__name__}, no dict"
                )
            batch[VALID] = torch.arange(len(rows)) < num_valid
        return batch

    def _row(self, samples: Samples, number: int) -> Any:
        parts = samples.sample(number)
        named = {KEY: samples.key(number), "__url__": samples.url(number)}
        values = self.decoder({**named, **parts})
        row = {suffix: values[suffix] for suffix in parts}
        if self.with_keys:
            row[KEY] = named[KEY]
        return row if self.transform is None else self.transform(row)

    @property
    def _reader(self) -> Reader:
        """Of this process: a forked child opens its own."""
        found = self.__dict__.get("_open")
        if found is None or found[0] != os.getpid():
            found = os.getpid(), open_reader(self.catalog)
            self.__dict__["_open"] = found
        reader: Reader = found[1]
        return reader


def open_reader(catalog: Catalog) -> Reader:
    """A reader for wherever the dataset lies."""
    return MappedReader(catalog) if catalog.snapshot.store.local_root is not None else RangeReader(catalog)


def _unpack_maker(data: bytes) -> BatchMaker:
    return BatchMaker(**cloudpickle.loads(data))
