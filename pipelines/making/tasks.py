"""Making the samples of a task's inputs and storing them as shards. Safe to run twice, late, or after a crash.

A task first looks at the shards that earlier attempts stored: the function is not called again for inputs whose samples
are all there.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Generic, TypeVar

import cloudpickle

from dray.pipelines.building.fill import bytes_in_tar
from dray.pipelines.building.job import TASK_BYTES
from dray.pipelines.inputs.maker import Maker
from dray.pipelines.inputs.sources import EMPTY, BadInput
from dray.pipelines.planning.fills import LAST, Item, Progress, advance
from dray.pipelines.planning.recipe import DEFAULT_SHARD_BYTES
from dray.pipelines.writing.samples import as_sample
from dray.pipelines.writing.shard import Sample, ShardSize, WrittenShard, record_of, store_in_order
from dray.pipelines.writing.stored import read_copies
from dray.shards.errors import InputError, NotFoundError
from dray.shards.index import ShardIndex, digest_of
from dray.shards.layout import Location
from dray.shards.snapshot import Snapshot

MEASURED_BYTES = 8 << 20  # bytes of samples after which the first inputs are measured
T = TypeVar("T")


class Carried(Generic[T]):
    """A value that other processes get by cloudpickle, as it may be of a class of the user's script."""

    def __init__(self, value: T) -> None:
        self.value = value

    def __getstate__(self) -> bytes:
        body: bytes = cloudpickle.dumps(self.value)
        return body

    def __setstate__(self, state: bytes) -> None:
        self.value = cloudpickle.loads(state)


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeJob:
    """What all tasks share."""

    location: Location
    base: Snapshot | None  # the version of which samples are copied
    maker: Maker
    size: ShardSize
    keep_pickles: bool
    leaves_out_bad: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeTask:
    """The inputs of a task.

    Attributes:
        items: Its sources, in order.
        values: Position -> input, of those whose samples are made.
        keys: Position -> key of each source.
        marks: Position -> fingerprint of each source.
        numbers: The shard numbers that it may use, in order.
        shard: Number of the shard whose samples it copies; None if it copies none.
        made: Position -> samples of an input that was measured before.
        looks: Whether earlier attempts may have stored shards.
    """

    items: tuple[Item, ...]
    values: Carried[dict[int, Any]]
    keys: Mapping[int, str]
    marks: Mapping[int, int]
    numbers: range = range(0)
    shard: int | None = None
    made: Mapping[int, list[Sample]] = field(default_factory=dict)
    looks: bool = False

    @property
    def num_bytes(self) -> int:
        """Number of bytes that it reads: unknown."""
        return 0

    @property
    def memory_bytes(self) -> int:
        """Bytes of two shards, one that is filled and one that is stored."""
        return 2 * DEFAULT_SHARD_BYTES + TASK_BYTES

    def again(self) -> "MakeTask":
        """Returns the task for another attempt."""
        return replace(self, looks=True)

    def __str__(self) -> str:
        first, last = self.keys[self.items[0].position], self.keys[self.items[-1].position]
        return f"shard {self.numbers.start} (inputs {first!r} to {last!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """The result of a task.

    Attributes:
        first: The first shard number of the task.
        num_inputs: Number of its inputs.
        shards: Its shards, in order.
        bad: Inputs without a sample. If the job leaves none out, the shards end before the first bad one.
        renamed: Field -> suffix of fields that are stored under another suffix.
    """

    first: int
    num_inputs: int
    shards: tuple[WrittenShard, ...]
    bad: tuple[BadInput, ...]
    renamed: Mapping[str, str]


class _StopError(Exception):
    """A bad input ended a task."""


def make_shards(job: MakeJob, tasks: Sequence[MakeTask]) -> Iterator[Made]:
    """Make and store the shards of tasks; yields a record of each. Durable, idempotent; at most two are in memory.

    Raises:
        InputError: An earlier attempt stored other bytes.
        StoreError: The store failed.
    """
    for task in tasks:
        shards, progress, numbers = _stored(job, task)
        bad: list[BadInput] = []
        renamed: dict[str, str] = {}
        samples = _samples(job, task, progress, bad, renamed)
        storing = store_in_order(job.location, samples, numbers, job.size, "make_sample")
        with suppress(_StopError), closing(storing):  # `bad` says why; whole shards are stored for a rerun
            shards.extend(storing)
        yield Made(
            first=task.numbers.start,
            num_inputs=len(task.items),
            shards=tuple(shards),
            bad=tuple(bad),
            renamed=renamed,
        )


def measure_inputs(job: MakeJob, tasks: Sequence[MakeTask]) -> Iterator[dict[int, list[Sample]]]:
    """Yields position -> samples of the first good inputs of each task, up to 8 MiB; stores nothing."""
    for task in tasks:
        made: dict[int, list[Sample]] = {}
        num_bytes = 0
        for item in task.items:
            samples = _all_of(job, task, item.position, {})
            if not isinstance(samples, BadInput):
                made[item.position] = samples
                num_bytes += sum(bytes_in_tar(sample.key, sample.parts) for sample in samples)
            if num_bytes >= MEASURED_BYTES:
                break
        yield made


def _stored(job: MakeJob, task: MakeTask) -> tuple[list[WrittenShard], Progress, Iterable[int]]:
    """Returns the shards of earlier attempts that the task adopts, how far they have come, and the free numbers.

    A number whose shard holds other sources, as an input has changed since, is passed over.
    """
    shards: list[WrittenShard] = []
    progress = Progress()
    for taken, number in enumerate(task.numbers if task.looks else ()):
        name = job.location.layout.index(number)
        try:
            body = job.location.store.get(name)
        except NotFoundError:
            return shards, progress, task.numbers[taken:]
        index = ShardIndex.from_bytes(body, job.location.store.url_of(name))
        if index.sources is None or index.fingerprints is None:
            continue
        further = advance(progress, task.items, task.marks, index.sources, index.fingerprints)
        if further is not None:
            progress = further
            shards.append(record_of(number, index, digest_of(body), adopted=True))
    return shards, progress, task.numbers[len(task.numbers) if task.looks else 0 :]


def _samples(
    job: MakeJob, task: MakeTask, progress: Progress, bad: list[BadInput], renamed: dict[str, str]
) -> Iterator[Sample]:
    """Yields the samples that are not stored yet, in order; adds the inputs without one to `bad`.

    Raises:
        _StopError: An input is bad, and the job leaves none out.
    """
    copies = _copies(job, task, progress)
    for place, item in enumerate(task.items):
        if progress.is_done(place):
            continue
        num_stored = progress.counts.get(place, 0)
        if place < progress.place:
            bad.append(_still_without(job, task, item, renamed))
        elif item.rows is not None:
            yield from islice(copies, len(item.rows) - num_stored)
        else:
            yield from islice(_made_of(job, task, item.position, bad, renamed), num_stored, None)
        if bad and not bad[-1].is_empty and not job.leaves_out_bad:
            raise _StopError


def _made_of(
    job: MakeJob, task: MakeTask, position: int, bad: list[BadInput], renamed: dict[str, str]
) -> Iterator[Sample]:
    """Yields the samples of an input; all of them are in memory at once where a bad one must leave none."""
    if job.leaves_out_bad or position in task.made:
        samples = _all_of(job, task, position, renamed)
        if isinstance(samples, BadInput):
            bad.append(samples)
        else:
            yield from samples
            if not samples:
                bad.append(_empty(task.keys[position]))
        return
    is_empty = True
    try:
        for sample in _called(job, task, position, renamed):
            is_empty = False
            yield sample
    except InputError as exc:
        bad.append(_bad(task.keys[position], exc))
        return
    if is_empty:
        bad.append(_empty(task.keys[position]))


def _all_of(job: MakeJob, task: MakeTask, position: int, renamed: dict[str, str]) -> list[Sample] | BadInput:
    if position in task.made:
        return task.made[position]
    try:
        return list(_called(job, task, position, renamed))
    except InputError as exc:
        return _bad(task.keys[position], exc)


def _called(job: MakeJob, task: MakeTask, position: int, renamed: dict[str, str]) -> Iterator[Sample]:
    """Yields the samples that the function makes of an input; the fingerprint of the last one says that it is.

    Raises:
        InputError: It failed, or returned what cannot be stored.
    """
    key, mark = task.keys[position], task.marks[position] & ~LAST
    last: Sample | None = None
    for default, given in job.maker(task.values.value[position], key):
        sample = as_sample(given, default, keep_pickles=job.keep_pickles, renamed=renamed, source=(position, mark))
        if last is not None:
            yield last
        last = sample
    if last is not None:
        yield replace(last, source=(position, mark | LAST))


def _still_without(job: MakeJob, task: MakeTask, item: Item, renamed: dict[str, str]) -> BadInput:
    """Returns why an input that gave no sample to an earlier attempt, whose later shards are stored, gives none."""
    key = task.keys[item.position]
    found = _all_of(job, task, item.position, renamed)
    if isinstance(found, BadInput):
        return found
    if not found:
        return _empty(key)
    error = "make_sample failed or gave no sample in an earlier attempt, whose later samples are stored; now it works"
    return BadInput(name=key, file="", stage="transform", error=error)


def _bad(key: str, exc: InputError) -> BadInput:
    return BadInput(name=key, file="", stage="transform", error=str(exc))


def _empty(key: str) -> BadInput:
    return BadInput(name=key, file="", stage=EMPTY, error="make_sample gave no sample")


def _copies(job: MakeJob, task: MakeTask, progress: Progress) -> Iterator[Sample]:
    """Yields the samples of the last version that the task copies and no earlier attempt stored, checked.

    Raises:
        DamagedError: A part differs from its index.
    """
    base = job.base
    if base is None or task.shard is None:
        return
    copied = [
        (row, item.position)
        for place, item in enumerate(task.items)
        for row in (item.rows or ())[progress.counts.get(place, 0) :]
    ]
    index = base.index(next(shard for shard in base.shards if shard.number == task.shard))
    found = read_copies(base, [(task.shard, row) for row, _ in copied])
    for (row, position), parts in zip(copied, found, strict=True):
        mark = LAST if index.fingerprints is None else int(index.fingerprints[row])
        yield Sample(index.keys[row], parts, (position, task.marks[position] & ~LAST | mark & LAST))
