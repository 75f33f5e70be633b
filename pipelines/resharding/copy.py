"""Copying samples into one shard: its rows are read, laid out as a tar, and stored under a reserved number.

Safe to run twice, late, or after a crash: a shard that is already stored is read, compared with the plan, and indexed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from dray.pipelines.building.fill import ShardFiller
from dray.pipelines.building.job import TASK_BYTES
from dray.pipelines.building.pack import read_index, store_index, store_while_filling
from dray.pipelines.inputs.encoder import Encoder
from dray.pipelines.resharding.fetch import Parts, fetch_rows
from dray.pipelines.resharding.rows import Rows
from dray.pipelines.writing.shard import WrittenShard, record_of, store_shard
from dray.shards.errors import DamagedError, InputError
from dray.shards.index import ShardIndex
from dray.shards.layout import Location
from dray.shards.snapshot import Snapshot

STEP = "dray reshard"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CopyJob:
    """What all shards of a copy share; it is sent to every worker once."""

    source: Snapshot
    location: Location
    encoder: Encoder | None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CopyTask:
    """A shard to fill."""

    number: int
    rows: Rows
    digest: str
    num_bytes: int
    is_stored: bool | None  # whether a shard of that number existed when the task was made; None: unknown

    @property
    def memory_bytes(self) -> int:
        """Maximum number of bytes of memory that the task needs: for its parts, for the tar, and the tar before it."""
        return self.num_bytes * 3 + TASK_BYTES

    def again(self) -> "CopyTask":
        """Returns the task for another attempt, after one that may have stored the shard."""
        return replace(self, is_stored=self.is_stored or None)

    def __str__(self) -> str:
        return f"shard {self.number} (samples {self.rows.keys[0].as_py()!r} to {self.rows.keys[-1].as_py()!r})"


def copy_shards(job: CopyJob, tasks: Sequence[CopyTask]) -> Iterator[WrittenShard]:
    """Fill and store shards, or adopt those that are stored; yields the record of each, in order. Durable, idempotent.

    One shard is stored while the next is filled: at most two are in memory.

    Raises:
        DamagedError: A sample differs from its index; names tar, key and suffix. Or another object has a shard's name.
        InputError: A part cannot be encoded; names tar, key and suffix.
        StoreError: The store failed; nothing half-written is visible.
    """
    return store_while_filling(_prepare(job, task) for task in tasks)


def _prepare(job: CopyJob, task: CopyTask) -> Callable[[], WrittenShard]:
    """Fill a shard that is not stored yet; returns the function that stores it, or adopts the stored one."""
    is_stored = task.is_stored
    if is_stored is None:
        is_stored = job.location.store.head(job.location.layout.shard(task.number)) is not None
    return partial(_adopt, job, task) if is_stored else partial(_store, job, task, *_fill(job, task))


def _store(job: CopyJob, task: CopyTask, body: bytearray, index: ShardIndex) -> WrittenShard:
    return replace(store_shard(job.location, task.number, body, index, STEP), digest=task.digest)


def _fill(job: CopyJob, task: CopyTask) -> tuple[bytearray, ShardIndex]:
    filler = ShardFiller()
    found = fetch_rows(job.source, task.rows)
    for key, parts, place in _joined(task.rows, found):
        filler.add(key, parts if job.encoder is None else _encoded(job, key, parts, place))
    return filler.finish()


def _joined(rows: Rows, found: list[Parts]) -> Iterator[tuple[str, Parts, int]]:
    """Yields key, parts and position of the tar of each sample; the parts of rows that are joined are put together."""
    keys = rows.keys.to_pylist()
    sample: tuple[str, Parts, int] | None = None
    for row, (key, place) in enumerate(zip(keys, rows.places.tolist(), strict=True)):
        parts, found[row] = found[row], {}  # so that the memory of each is free once it is in the tar
        if sample is not None and sample[0] == key:
            sample[1].update(parts)
            continue
        if sample is not None:
            yield sample
        sample = key, parts, place
    if sample is not None:
        yield sample


def _encoded(job: CopyJob, key: str, parts: Parts, place: int) -> Parts:
    assert job.encoder is not None  # noqa: S101  the caller asked
    try:
        return job.encoder(parts, Counter[str]())
    except InputError as exc:
        raise exc.at(url=job.source.shard_url(job.source.shards[place]), key=key) from exc


def _adopt(job: CopyJob, task: CopyTask) -> WrittenShard:
    """Adopt the stored shard as this task's: read it completely, and index what it holds.

    Raises:
        DamagedError: It is broken, or holds other samples than the task's.
    """
    name = job.location.layout.shard(task.number)
    url = job.location.store.url_of(name)
    try:
        index = read_index(job.location.store, name)
        if not _is_copy(index, task.rows, job.encoder):
            raise DamagedError("the shard holds other samples than this number was reserved for", url=url)
    except DamagedError as exc:
        problem = f"{exc.problem}; did another program write there? Move {url} away, then run it again"
        raise DamagedError(problem, **exc.place) from exc
    record = record_of(task.number, index, store_index(job.location, task.number, index), adopted=True)
    return replace(record, digest=task.digest)


def _is_copy(index: ShardIndex, rows: Rows, encoder: Encoder | None) -> bool:
    """Whether a stored shard holds just these samples; of parts that are encoded only the samples can be compared."""
    keys = rows.keys.to_pylist()
    starts = [row for row, key in enumerate(keys) if not row or keys[row - 1] != key]
    if list(index.keys) != [keys[row] for row in starts]:
        return False
    stored = {suffix: column for column, suffix in enumerate(index.suffixes)}
    for column, suffix in enumerate(rows.suffixes):
        if encoder is not None and encoder.outputs(suffix) != (suffix,):
            continue
        sizes, hashes = (np.add.reduceat(found[:, column], starts) for found in (rows.sizes, rows.hashes))
        has = np.logical_or.reduceat(rows.offsets[:, column] > 0, starts)
        number = stored.pop(suffix, None)
        if number is None:
            if has.any():
                return False
        elif not (
            np.array_equal(index.offsets[:, number] > 0, has)
            and np.array_equal(index.sizes[:, number], sizes)
            and np.array_equal(index.xxh3_64[:, number], hashes)
        ):
            return False
    return encoder is not None or not stored
