"""The tasks that measure rows, and that store the rows of a shard."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dray.pipelines.building.fill import ShardFiller, bytes_in_tar
from dray.pipelines.ray_data.storing.parts import samples_of
from dray.pipelines.writing.shard import WrittenShard, store_shard
from dray.shards.layout import Location


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkJob:
    """What all tasks share.

    Attributes:
        location: Where the dataset is.
        steps: The steps of the pipeline, for errors.
        keep_pickles: See `encode_sample`.
    """

    location: Location
    steps: str
    keep_pickles: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RowTask:
    """The rows of a shard, or of a block that is measured.

    Attributes:
        number: Number of the shard, or of the block.
        slices: Half-open range of rows in each block that the task gets.
        noun: What the number counts.
    """

    number: int
    slices: Sequence[tuple[int, int]]
    noun: str = "shard"
    num_bytes: int = 0
    memory_bytes: int = 0

    def __str__(self) -> str:
        return f"{self.noun} {self.number}"

    def again(self) -> Self:
        """Returns the task itself: it adopts what an earlier attempt stored."""
        return self


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Stored:
    """What was stored.

    Attributes:
        shards: The records of the shards, in order.
        renamed: Column -> suffix, where a column is stored under another suffix than its name.
    """

    shards: Sequence[WrittenShard]
    renamed: dict[str, str] = field(default_factory=dict)


def store_rows(job: SinkJob, tasks: Sequence[RowTask], sources: pa.Table | None, *blocks: Any) -> Iterator[Stored]:
    """Store one shard, or adopt the equal one that is stored. Idempotent.

    Raises:
        CallError: The shard would pass 4 GiB.
        InputError: A sample cannot be stored, or an earlier attempt stored other bytes.
        StoreError: The store failed.
    """
    for task in tasks:
        filler, renamed = ShardFiller(), dict[str, str]()
        for block, (start, stop) in zip(blocks, task.slices, strict=True):
            rows = samples_of(
                block, start, stop, sources, steps=job.steps, keep_pickles=job.keep_pickles, renamed=renamed
            )
            for sample in rows:
                filler.add(sample.key, sample.parts, sample.source)
        body, index = filler.finish()
        yield Stored(shards=[store_shard(job.location, task.number, body, index, job.steps)], renamed=renamed)


def measure_rows(
    job: SinkJob, tasks: Sequence[RowTask], sources: pa.Table | None, *blocks: Any
) -> Iterator[NDArray[np.int64]]:
    """Yields for each block the (n,) bytes that its rows take in a tar."""
    for block, (start, stop) in zip(blocks, (piece for task in tasks for piece in task.slices), strict=True):
        rows = samples_of(block, start, stop, sources, steps=job.steps, keep_pickles=job.keep_pickles, renamed={})
        yield np.array([bytes_in_tar(sample.key, sample.parts) for sample in rows], np.int64)
