"""Stores the rows of a Ray Data dataset as shards of a version that is announced.

The rows come as references to blocks, in order; the driver cuts them into shards and sends each to a Ray task, which
fetches its rows from the object store. No row passes through the driver, and nothing is copied to make exact shards:
`repartition(strict=True)` before a stock Datasink copies every block once more.
"""

import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from ray.data import Dataset
from ray.exceptions import RayError, RayTaskError

from dray.pipelines.progress import sample_progress
from dray.pipelines.ray_data.compat import operator_names
from dray.pipelines.ray_data.datasource import connect
from dray.pipelines.ray_data.storing.cuts import cut
from dray.pipelines.ray_data.storing.flight import Flight
from dray.pipelines.ray_data.storing.tasks import RowTask, SinkJob, Stored, measure_rows, store_rows
from dray.pipelines.ray_data.storing.watch import Watch
from dray.pipelines.running.dispatch import check_nodes
from dray.pipelines.running.parcel import Witness
from dray.pipelines.writing.shard import ShardSize
from dray.pipelines.writing.version import Writing
from dray.shards.errors import CallError, ClusterError, DrayError, InputError
from dray.shards.tar import MAX_SHARD_BYTES

_MEASURED_AHEAD = 8  # blocks that are measured before the cuts reach them

SourceNumbers = Mapping[str, tuple[int, int]]
"""Key of a source -> its number and its fingerprint, for the index."""

Rows = Iterator[tuple[Any, int]]  # reference and number of rows of each block


def store_dataset(
    dataset: Dataset,
    writing: Writing,
    size: ShardSize,
    *,
    sources: SourceNumbers | None = None,
    keep_pickles: bool = False,
    concurrency: int | None = None,
    ray_remote_args: Mapping[str, Any] | None = None,
) -> Stored:
    """Store all rows of a dataset, in its order, as shards under the reserved numbers.

    Deletes what it stored if it fails. Nothing is committed.

    Args:
        dataset: Rows with `__key__` and a column for each part; with `__source__` if sources are given.
        writing: The announced version.
        size: When a shard is full.
        sources: Numbers and fingerprints of the sources; None: samples have none.
        keep_pickles: See `encode_sample`.
        concurrency: Maximum number of tasks that store shards at a time; None: twice the CPUs.
        ray_remote_args: Resources and other options of these tasks.

    Raises:
        CallError: `max_errored_blocks` is set, which would lose samples, or the reserved numbers do not suffice.
        InputError: A row cannot be stored; names key and column. Or a step failed, or is not deterministic.
        ClusterError: A node is unfit, or workers died too often.
        StoreError: The store failed.
    """
    if dataset.context.max_errored_blocks:
        raise CallError(
            f"max_errored_blocks={dataset.context.max_errored_blocks} of the dataset's DataContext would leave out "
            "samples silently: set it to 0"
        )
    connect()
    check_nodes(ray)
    steps = operator_names(dataset)
    job = SinkJob(location=writing.location, steps=steps, keep_pickles=keep_pickles)
    with (
        writing.storing(),
        _own_errors(steps),
        _in_order(dataset),
        Watch(ray, steps, show=writing.progress) as watch,
        _flights(writing, job, sources, watch, concurrency, ray_remote_args) as (measuring, storing),
    ):
        rows = _rows_of(dataset, watch)
        sized = _measured(rows, measuring) if size.num_bytes < MAX_SHARD_BYTES else _unmeasured(rows)
        numbers = iter(writing.intent.numbers)
        for pieces in cut(sized, size):
            if (number := next(numbers, None)) is None:
                raise CallError(f"more than {len(writing.intent.numbers):,} shards: make larger shards")
            task = RowTask(number=number, slices=[(piece.start, piece.stop) for piece in pieces])
            storing.send(task, [piece.block for piece in pieces])
        return _joined(storing.finish())


@contextmanager
def _flights(
    writing: Writing,
    job: SinkJob,
    sources: SourceNumbers | None,
    watch: Watch,
    concurrency: int | None,
    options: Mapping[str, Any] | None,
) -> Iterator[tuple[Flight[NDArray[np.int64]], Flight[Stored]]]:
    """Gives the tasks that measure and those that store; what is in flight at the end is called off."""
    witness = Witness(writing.location.store, writing.location.layout.intent(writing.intent.number))
    table = ray.put(None if sources is None else _source_table(sources))
    measuring = Flight[NDArray[np.int64]](ray, measure_rows, job, witness, sources=table, watch=watch)
    storing = Flight[Stored](
        ray, store_rows, job, witness, sources=table, watch=watch, concurrency=concurrency, options=options
    )
    title = f"writing {writing.location.prefix}"
    show = writing.progress and not sys.stderr.isatty()  # there Ray Data shows bars of its own
    try:
        with sample_progress(title, total=None, unit="samples", show=show) as advance:
            storing.on_result = lambda one: [advance(len(shard.keys), shard.num_bytes) for shard in one.shards]
            yield measuring, storing
    finally:
        measuring.call_off()
        storing.call_off()


def _source_table(sources: SourceNumbers) -> pa.Table:
    numbers = np.array(list(sources.values()), np.uint64).reshape(len(sources), 2)
    return pa.table({"key": pa.array(sources), "number": numbers[:, 0], "fingerprint": numbers[:, 1]})


@contextmanager
def _in_order(dataset: Dataset) -> Iterator[None]:
    """Rows of the dataset keep their order in this context."""
    options = dataset.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        yield
    finally:
        options.preserve_order = before


@contextmanager
def _own_errors(steps: str) -> Iterator[None]:
    """Raises Ray's errors as dray's own."""
    try:
        yield
    except RayTaskError as exc:
        cause = getattr(exc, "cause", None)
        raise cause if isinstance(cause, DrayError) else _of_step(exc, steps) from None
    except RayError as exc:
        raise ClusterError(
            f"workers of {steps} died too often ({type(exc).__name__}: {exc}): nothing was committed"
        ) from exc


def _of_step(exc: Exception, steps: str) -> InputError:
    """Returns the error of a user's function, with its traceback as a note and without Ray's."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(exc)).partition("\n\nThe above exception was the direct cause")[0]
    lines = text.splitlines()
    start = max((number for number, line in enumerate(lines) if line.startswith(" ")), default=0) + 1
    name = re.match(r"ray::(.+?)\(\) \(", text)
    error = InputError(f"the step {name[1] if name else steps} failed: " + "\n".join(lines[start:] or lines))
    error.add_note(text)
    return error


def _rows_of(dataset: Dataset, watch: Watch) -> Rows:
    """Yields the blocks of the dataset that have rows, in order."""
    for bundle in dataset.iter_internal_ref_bundles():
        for entry in bundle.blocks:
            watch.beat()
            if entry.metadata.num_rows:
                yield entry.ref, entry.metadata.num_rows


def _unmeasured(rows: Rows) -> Iterator[tuple[Any, NDArray[np.int64]]]:
    for block, num_rows in rows:
        yield block, np.zeros(num_rows, np.int64)


def _measured(rows: Rows, measuring: Flight[NDArray[np.int64]]) -> Iterator[tuple[Any, NDArray[np.int64]]]:
    """Yields each block with the sizes of its rows, which tasks measure while later blocks are made."""
    waiting: deque[tuple[int, Any]] = deque()
    numbers = count()
    for block, num_rows in rows:
        number = next(numbers)
        measuring.send(RowTask(number=number, slices=[(0, num_rows)], noun="the measures of block"), [block])
        waiting.append((number, block))
        if len(waiting) > _MEASURED_AHEAD:
            first, done = waiting.popleft()
            yield done, measuring.pop(first)
    for number, block in waiting:
        yield block, measuring.pop(number)


def _joined(stored: Mapping[int, Stored]) -> Stored:
    in_order = [stored[number] for number in sorted(stored)]
    renamed: dict[str, str] = {}
    for one in in_order:
        renamed |= one.renamed
    return Stored(shards=[shard for one in in_order for shard in one.shards], renamed=renamed)
