"""Packing one shard: read its samples, lay them out as a tar, store it under a name that nobody has, then its index.

Safe to run twice, late, or after a crash: the shard is created, never overwritten, and where one lies already it is
read, held against the plan and indexed as it is. The index tells what is stored.
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.pipelines.encode import Encoder
from dray.pipelines.sources import BadInput, Sources, hash_files, read_files, try_files
from dray.pipelines.transform import Transform
from dray.shards.errors import DamagedError, ExistsError, InputError, StoreError
from dray.shards.index import ShardIndex, digest_of
from dray.shards.layout import Layout, key_of
from dray.shards.log import CREATE_ATTEMPTS
from dray.shards.store import Store
from dray.shards.tar import TarWriter, scan

WAITING_PARTS = 512  # before they are written together
WAITING_BYTES = 8 << 20
MOST_REASONS = 20  # why parts stayed pickles, in the record of a shard


@dataclass(frozen=True, slots=True, kw_only=True)
class PackJob:
    """What all shards of a build share. It travels to every worker once."""

    inputs: Store
    output: Store
    layout: Layout
    transform: Transform | None  # None: a sample's parts are its files
    encoder: Encoder | None = None  # None: pickled parts stay pickles
    leaves_out_bad: bool = False  # whether a shard is stored without the samples that cannot be packed

    @property
    def packs_files(self) -> bool:
        """Whether each part is its file, byte for byte."""
        return self.transform is None and self.encoder is None


@dataclass(frozen=True, slots=True, kw_only=True)
class PackTask:
    """One shard to pack."""

    number: int
    sources: Sources
    memory_bytes: int  # what packing it takes at most
    is_stored: bool = False  # a shard of that number lay there when the tasks were made

    def __str__(self) -> str:
        return f"shard {self.number} (samples {self.sources.names[0]!r} to {self.sources.names[-1]!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedShard:
    """What came of it: a small record, no sample's bytes.

    Attributes:
        number: The task's.
        num_bytes: Of the tar; 0 where none was stored.
        index_digest: Of the index.
        is_packed: (n,) which of the task's samples the shard holds; none where none was stored.
        source_hashes: (m, s) xxh3_64 of each input file of the m samples it holds.
        adopted: It lay there whole already.
        bad: The samples that cannot be packed.
        parts: Suffix -> how many samples have it; None where every sample has just the recipe's suffixes.
        stayed: Reason -> number of parts that stayed pickles although encode="auto" tried them.
    """

    number: int
    num_bytes: int
    index_digest: str
    is_packed: NDArray[np.bool_]
    source_hashes: NDArray[np.uint64]
    adopted: bool
    bad: tuple[BadInput, ...]
    parts: Mapping[str, int] | None = None
    stayed: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """That it holds."""
        return int(self.is_packed.sum())


@dataclass(frozen=True, slots=True)
class Filled:
    """A shard in memory, not yet stored; the other fields are those of a packed one."""

    task: PackTask
    tar: bytearray
    index: ShardIndex | None  # None where no sample could be packed
    is_packed: NDArray[np.bool_]
    source_hashes: NDArray[np.uint64]
    bad: tuple[BadInput, ...] = ()
    stayed: Mapping[str, int] = field(default_factory=dict)


def pack_shard(job: PackJob, task: PackTask) -> PackedShard:
    """Pack and store one shard, or adopt the one that lies there. Durable, idempotent.

    A crash leaves no shard, or a whole one to adopt. Where samples cannot be packed, the record names them, and the
    shard is stored without them if the job says so, else not at all.

    Raises:
        DamagedError: Something else lies under that number.
        StoreError: The store failed.
    """
    return adopt_shard(job, task) if task.is_stored else store_shard(job, fill_shard(job, task))


def fill_shard(job: PackJob, task: PackTask) -> Filled:
    """Read the samples of a shard and lay them out in memory, but for those that cannot be packed."""
    if job.packs_files:
        try:
            return _fill_as_is(job, task)
        except InputError:  # each sample for itself, then
            pass
    return _fill_each(job, task)


def _fill_as_is(job: PackJob, task: PackTask) -> Filled:
    """Each part is its file: the hot path, two microseconds a part beyond reading it.

    Raises:
        InputError: A sample cannot be read.
    """
    tar = TarWriter()
    keys, suffixes = task.sources.keys(), task.sources.suffixes
    files = [f"{key}.{suffix}".encode() for key in keys for suffix in suffixes]
    tar.extend(files, task.sources.sizes.ravel(), read_files(job.inputs, task.sources))
    body = tar.finish()
    shape = task.sources.sizes.shape
    index = ShardIndex(
        keys=keys,
        suffixes=suffixes,
        offsets=np.array(tar.offsets, np.uint64).reshape(shape),
        sizes=np.array(tar.sizes, np.uint32).reshape(shape),
        xxh3_64=np.array(tar.hashes, np.uint64).reshape(shape),
        shard_bytes=len(body),
    )
    return Filled(task, body, index, np.ones(len(keys), bool), index.xxh3_64)


def _fill_each(job: PackJob, task: PackTask) -> Filled:
    """Each sample is what function and encoding make of it; samples may differ in their suffixes."""
    tar, waiting = TarWriter(), _Waiting()
    keys: list[str] = []
    suffixes: list[tuple[str, ...]] = []  # of each of the keys
    hashes: list[list[int]] = []
    bad: list[BadInput] = []
    stayed = Counter[str]()
    is_packed = np.zeros(len(task.sources), bool)
    for row, (name, sample, of_files) in enumerate(_samples(job, task.sources, stayed)):
        if isinstance(sample, BadInput):
            bad.append(sample)
            continue
        is_packed[row] = True
        keys.append(key_of(name))
        suffixes.append(tuple(sample))
        hashes.append(of_files)
        waiting.add(keys[-1], sample)
        if waiting.is_enough:
            waiting.move_to(tar)
    waiting.move_to(tar)
    body = tar.finish()
    index = _index_of(keys, suffixes, tar, len(body)) if keys else None
    source_hashes = np.array(hashes, np.uint64).reshape(len(hashes), len(task.sources.suffixes))
    return Filled(task, body, index, is_packed, source_hashes, tuple(bad), dict(stayed.most_common(MOST_REASONS)))


class _Waiting:
    """Parts on their way into a tar: many together are written faster."""

    def __init__(self) -> None:
        self._files: list[bytes] = []
        self._parts: list[bytes] = []
        self._num_bytes = 0

    def add(self, key: str, sample: Mapping[str, bytes]) -> None:
        for suffix, data in sample.items():
            self._files.append(f"{key}.{suffix}".encode())
            self._parts.append(data)
            self._num_bytes += len(data)

    @property
    def is_enough(self) -> bool:
        return len(self._parts) >= WAITING_PARTS or self._num_bytes >= WAITING_BYTES

    def move_to(self, tar: TarWriter) -> None:
        """Append them.

        Raises:
            CallError: The shard would pass 4 GiB.
        """
        if self._parts:
            tar.extend(self._files, np.array([len(data) for data in self._parts], np.int64), self._parts)
        self._files.clear()
        self._parts.clear()
        self._num_bytes = 0


def _index_of(keys: list[str], suffixes: list[tuple[str, ...]], tar: TarWriter, shard_bytes: int) -> ShardIndex:
    """What reading the finished tar gives: suffixes stand in the order in which they first appear."""
    in_a_row = list(chain.from_iterable(suffixes))
    columns = {suffix: column for column, suffix in enumerate(dict.fromkeys(in_a_row))}
    cells = np.repeat(np.arange(len(keys)), list(map(len, suffixes))), np.array([columns[name] for name in in_a_row])

    def matrix(values: "array[int]", dtype: type[Any]) -> NDArray[Any]:
        filled = np.zeros((len(keys), len(columns)), dtype)
        filled[cells] = values
        return filled

    return ShardIndex(
        keys=keys,
        suffixes=tuple(columns),
        offsets=matrix(tar.offsets, np.uint64),
        sizes=matrix(tar.sizes, np.uint32),
        xxh3_64=matrix(tar.hashes, np.uint64),
        shard_bytes=shard_bytes,
    )


def _samples(
    job: PackJob, sources: Sources, stayed: Counter[str] | None = None
) -> Iterator[tuple[str, dict[str, bytes] | BadInput, list[int]]]:
    """(name, its parts or what is wrong with it, xxh3_64 of its files), in order."""
    suffixes = sources.suffixes
    in_a_row = try_files(job.inputs, sources)
    for name in sources.names:
        parts: dict[str, bytes] = {}
        bad: BadInput | None = None
        for suffix, data in zip(suffixes, islice(in_a_row, len(suffixes)), strict=True):
            if not isinstance(data, InputError):
                parts[suffix] = data
            elif bad is None:
                bad = BadInput(name=name, file=f"{name}.{suffix}", stage="read", error=str(data))
        hashes = [xxh3_64_intdigest(data) for data in parts.values()]
        yield name, bad or _made_of(job, name, parts, stayed), hashes


def _made_of(
    job: PackJob, name: str, parts: dict[str, bytes], stayed: Counter[str] | None
) -> dict[str, bytes] | BadInput:
    """The parts to store of a sample, or what is wrong with it."""
    stage = "transform"
    try:
        if job.transform is not None:
            parts = job.transform(name, parts)
        stage = "encode"
        return parts if job.encoder is None else job.encoder(parts, stayed)
    except InputError as exc:
        return BadInput(name=name, file="", stage=stage, error=str(exc))


def find_bad(job: PackJob, sources: Sources) -> list[BadInput]:
    """The samples that cannot be packed now; each is read, transformed and encoded, and thrown away."""
    return [sample for _, sample, _ in _samples(job, sources) if isinstance(sample, BadInput)]


def store_shard(job: PackJob, filled: Filled) -> PackedShard:
    """Store a shard and its index, durably: shard first, so that an index always has its shard.

    Raises:
        DamagedError: Something else lies under that number.
        StoreError: The store failed; nothing half-written is visible.
    """
    if filled.index is None or (filled.bad and not job.leaves_out_bad):
        return PackedShard(
            number=filled.task.number,
            num_bytes=0,
            index_digest="",
            is_packed=np.zeros(len(filled.is_packed), bool),
            source_hashes=filled.source_hashes[:0],
            adopted=False,
            bad=filled.bad,
        )
    if not create(job.output, job.layout.shard(filled.task.number), filled.tar):
        return adopt_shard(job, filled.task)  # a parallel attempt's, or the retry of our own request
    digest = store_index(job.output, job.layout, filled.task.number, filled.index)
    return PackedShard(
        number=filled.task.number,
        num_bytes=filled.index.shard_bytes,
        index_digest=digest,
        is_packed=filled.is_packed,
        source_hashes=filled.source_hashes,
        adopted=False,
        bad=filled.bad,
        parts=_parts_of(job, filled.index),
        stayed=filled.stayed,
    )


def adopt_shard(job: PackJob, task: PackTask) -> PackedShard:
    """Take the shard that lies there for this task's: read from its first byte to its last, and indexed as it is.

    Raises:
        DamagedError: It is broken, or holds other samples than the task's.
    """
    name = job.layout.shard(task.number)
    url = job.output.url_of(name)
    try:
        index = read_index(job.output, name)
        is_packed = _held(index, job, task.sources)
        if is_packed is None:
            raise DamagedError(f"{url} holds other samples than this build reserved it for")
    except DamagedError as exc:
        raise DamagedError(f"{exc}; did another program write there? Move {url} away, then build again") from exc
    packed = task.sources.take(np.flatnonzero(is_packed))
    return PackedShard(
        number=task.number,
        num_bytes=index.shard_bytes,
        index_digest=store_index(job.output, job.layout, task.number, index),
        is_packed=is_packed,
        source_hashes=index.xxh3_64 if job.packs_files else hash_files(job.inputs, packed),
        adopted=True,
        bad=_left_out(job, task.sources.take(np.flatnonzero(~is_packed))),
        parts=_parts_of(job, index),
    )


def _parts_of(job: PackJob, index: ShardIndex) -> dict[str, int] | None:
    """Suffix -> how many samples have it; None where each part is a file, so that the recipe tells."""
    if job.packs_files:
        return None
    return dict(zip(index.suffixes, (index.offsets > 0).sum(axis=0).tolist(), strict=True))


def read_index(store: Store, name: str) -> ShardIndex:
    """The index of a stored tar, by its bytes.

    Raises:
        DamagedError: It is no tar of whole samples; names it.
    """
    url, info = store.url_of(name), store.head(name)
    with store.open_stream(name) as stream:
        return ShardIndex.of_members(scan(stream, url), shard_bytes=info.size if info else 0, where=url)


def _held(index: ShardIndex, job: PackJob, sources: Sources) -> NDArray[np.bool_] | None:
    """(n,) which of the planned samples a stored shard holds; None where it is no shard of this plan's.

    Of a function's parts only the keys are known beforehand, of encoded ones not the sizes.
    """
    stored, planned = list(index.keys), sources.keys()
    in_stored = set(stored)
    is_packed = np.array([key in in_stored for key in planned], bool)
    if [key for key in planned if key in in_stored] != stored or not (job.leaves_out_bad or is_packed.all()):
        return None
    if job.transform is not None:
        return is_packed
    suffixes, sizes = sources.suffixes, sources.sizes[is_packed]
    if job.encoder is not None:
        return is_packed if _may_be_encoded(index, job.encoder, suffixes, sizes) else None
    return is_packed if index.suffixes == suffixes and np.array_equal(index.sizes, sizes) else None


def _may_be_encoded(index: ShardIndex, encoder: Encoder, suffixes: Sequence[str], sizes: NDArray[np.int64]) -> bool:
    """Whether each file became one part, under a suffix that it may have, and one that stayed has its size."""
    columns = {suffix: column for column, suffix in enumerate(index.suffixes)}
    for number, suffix in enumerate(suffixes):
        found = [columns.pop(name) for name in encoder.outputs(suffix) if name in columns]
        if not ((index.offsets[:, found] > 0).sum(axis=1) == 1).all():
            return False
        for column in found:
            if index.suffixes[column] == suffix:
                is_there = index.offsets[:, column] > 0
                if not np.array_equal(index.sizes[is_there, column], sizes[is_there, number]):
                    return False
    return not columns


def _left_out(job: PackJob, sources: Sources) -> tuple[BadInput, ...]:
    """What is wrong with samples that a stored shard lacks."""
    still = {bad.name: bad for bad in (find_bad(job, sources) if len(sources) else ())}
    then = BadInput(name="", file="", stage="read", error="could not be packed when its shard was stored; now it can")
    return tuple(still.get(name, replace(then, name=name)) for name in sources.names)


def store_index(store: Store, layout: Layout, number: int, index: ShardIndex) -> str:
    """Store the index of a stored shard; returns its digest. Their folders are the driver's to sync, once.

    Raises:
        DamagedError: Another index lies there.
        StoreError: The store failed.
    """
    shard_name, index_name = layout.shard(number), layout.index(number)
    body = index.to_bytes()
    if not create(store, index_name, body) and store.get(index_name) != body:
        raise DamagedError(
            f"{store.url_of(index_name)} is not the index of {shard_name}, which lies beside it: was a shard "
            "deleted by hand? Delete both, then build again"
        )
    return digest_of(body)


def create(store: Store, name: str, data: bytes | bytearray) -> bool:
    """Whether this call created the object; False where one lay there: an earlier or parallel attempt's."""
    for _ in range(CREATE_ATTEMPTS):
        try:
            store.put_new(name, data)
        except ExistsError:
            if store.head(name) is None:  # a conflict answered for an object that is not there yet: try again
                continue
            return False
        return True
    raise StoreError(f"cannot create {store.url_of(name)}: the store says that it exists and that it does not")
