"""Storing the rows of a Ray Data dataset as shards: one write task makes one shard.

The number of a shard follows from the position of its task, which a retry keeps: so a retry adopts what an earlier
attempt stored, and names are the same on every run.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray.data import Dataset, Datasink
from ray.data.block import BlockAccessor
from ray.data.datasource.datasink import WriteResult

from dray.pipelines.building.fill import ShardFiller
from dray.pipelines.ray_data.compat import TaskContext, operator_names
from dray.pipelines.ray_data.parts import check_columns, encoded_samples
from dray.pipelines.ray_data.stall import StallWatch
from dray.pipelines.writing.shard import WrittenShard, store_shard
from dray.pipelines.writing.version import Writing
from dray.shards.errors import CallError, ClusterError, DrayError, InputError, StoreError
from dray.shards.layout import Location

MAX_RETRIES = 4  # retries of a write task whose worker died, or whose store failed
PAUSE_S = 1.0  # before the first retry of a failed store; twice as long before each further one

SourceNumbers = Mapping[str, tuple[int, int]]
"""Key of a source -> its number and its fingerprint, for the index."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What was stored of a dataset: its shards in order, and column -> suffix where it is not the column's name."""

    shards: list[WrittenShard]
    renamed: dict[str, str]


def store_dataset(
    dataset: Dataset,
    writing: Writing,
    samples_per_shard: int,
    *,
    sources: SourceNumbers | None = None,
    keep_pickles: bool = False,
    concurrency: int | None = None,
    ray_remote_args: Mapping[str, Any] | None = None,
) -> Stored:
    """Store all rows of a dataset, in its order, as shards of exactly `samples_per_shard` samples but for the last.

    Deletes what it stored if it fails. Nothing is committed.

    Args:
        dataset: Rows with `__key__` and a column for each part; with `__source__` if sources are given.
        writing: The announced version.
        samples_per_shard: Number of samples in a shard.
        sources: Numbers and fingerprints of the sources; None: samples have none.
        keep_pickles: See `encode_sample`.
        concurrency: Maximum number of write tasks that run at a time; None: Ray Data decides.
        ray_remote_args: Resources and other options of the write tasks.

    Raises:
        CallError: `max_errored_blocks` is set, which would lose samples.
        InputError: A row cannot be stored; names key and column. Or a step is not deterministic.
        ClusterError: Workers died too often.
        StoreError: The store failed.
    """
    if dataset.context.max_errored_blocks:
        raise CallError(
            f"max_errored_blocks={dataset.context.max_errored_blocks} of the dataset's DataContext would leave out "
            "samples silently: set it to 0"
        )
    sink = ShardsSink(writing.location, writing.intent.numbers, sources, operator_names(dataset), keep_pickles)
    options = {"max_retries": MAX_RETRIES, **(ray_remote_args or {})}
    try:
        with _in_order(dataset, show=writing.progress):
            exact = dataset.repartition(target_num_rows_per_block=samples_per_shard, strict=True)
            exact.write_datasink(sink, ray_remote_args=options, concurrency=concurrency)
    except BaseException as exc:
        writing.abandon()
        if isinstance(exc, Exception):
            raise _as_ours(exc) from exc
        raise
    return sink.stored


@contextmanager
def _in_order(dataset: Dataset, *, show: bool) -> Iterator[None]:
    """Rows of the dataset keep their order in this context, and a stalled pipeline says so."""
    context = dataset.context
    before = context.execution_options.preserve_order, context.custom_execution_callback_classes
    context.execution_options.preserve_order = True
    context.custom_execution_callback_classes = [*before[1], *([StallWatch] if show else [])]
    try:
        yield
    finally:
        context.execution_options.preserve_order, context.custom_execution_callback_classes = before


class ShardsSink(Datasink[tuple[list[WrittenShard], dict[str, str]]]):
    """Stores each block as a shard.

    Attributes:
        stored: What was stored, once the write has ended.
    """

    stored: Stored

    def __init__(
        self, location: Location, numbers: range, sources: SourceNumbers | None, step: str, keep_pickles: bool
    ) -> None:
        self._location, self._numbers, self._sources = location, numbers, sources
        self._step, self._keep_pickles = step, keep_pickles

    def get_name(self) -> str:
        """Returns the name of the write in Ray Data's progress."""
        return "Shards"

    def write(self, blocks: Iterable[Any], ctx: TaskContext) -> tuple[list[WrittenShard], dict[str, str]]:
        """Returns the record of the shard of a task's rows, in a list, and the renamed columns; nothing for no rows."""
        filler, renamed = ShardFiller(), dict[str, str]()
        for block in blocks:
            if BlockAccessor.for_block(block).num_rows():
                self._fill(filler, block, renamed)
        if not filler.num_samples:
            return [], renamed
        if ctx.task_idx >= len(self._numbers):
            raise CallError(f"more than {len(self._numbers):,} shards: make larger shards")
        body, index = filler.finish()
        return [self._stored(self._numbers[ctx.task_idx], body, index)], renamed

    def on_write_complete(self, write_result: WriteResult[Any]) -> None:
        """Collects the records of all tasks; called by Ray Data on the driver."""
        shards = [shard for shards, _ in write_result.write_returns for shard in shards]
        renamed = {name: suffix for _, renames in write_result.write_returns for name, suffix in renames.items()}
        num_stored = sum(len(shard.keys) for shard in shards)
        if num_stored != write_result.num_rows:
            raise InputError(f"{write_result.num_rows:,} rows came to the write, and {num_stored:,} were stored")
        self.stored = Stored(sorted(shards, key=lambda shard: shard.number), renamed)

    def _fill(self, filler: ShardFiller, block: Any, renamed: dict[str, str]) -> None:
        names = BlockAccessor.for_block(block).to_arrow().column_names
        check_columns(names, has_source=self._sources is not None, step=self._step)
        for key, source, parts in encoded_samples(block, keep_pickles=self._keep_pickles, renamed=renamed):
            filler.add(key, parts, self._source(key, source))

    def _source(self, key: str, source: str | None) -> tuple[int, int] | None:
        if self._sources is None:
            return None
        if source is None or source not in self._sources:
            raise InputError(
                f"`__source__` of it is {source!r}, which is no source of this plan: {self._step} must keep the column "
                "as it is",
                key=key,
            )
        return self._sources[source]

    def _stored(self, number: int, body: bytearray, index: Any) -> WrittenShard:
        for attempt in range(MAX_RETRIES):
            try:
                return store_shard(self._location, number, body, index, self._step)
            except StoreError as exc:
                if not exc.is_transient:
                    raise
            time.sleep(PAUSE_S * 2**attempt)
        return store_shard(self._location, number, body, index, self._step)


def _as_ours(exc: Exception) -> Exception:
    """Returns dray's own error that a task raised, else the error itself, or one that names what to do."""
    found: BaseException | None = exc
    while found is not None:
        if isinstance(found, DrayError):
            return found
        cause = getattr(found, "cause", None)
        found = cause if isinstance(cause, BaseException) else found.__cause__
    if type(exc).__module__.startswith("ray.exceptions") and "Task" not in type(exc).__name__:
        return ClusterError(f"workers of the write died too often ({type(exc).__name__}: {exc}): nothing was committed")
    return exc
