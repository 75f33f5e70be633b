"""Reading the samples of one shard and laying them out as a tar, in memory."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, compress, islice

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.pipelines.building.job import PackJob, PackTask
from dray.pipelines.inputs.sources import EMPTY, BadInput, Sources, read_files, try_files
from dray.shards.errors import InputError
from dray.shards.index import ShardIndex
from dray.shards.layout import key_of
from dray.shards.parsing.arrays import layouts_in
from dray.shards.tar import END, TarWriter, max_member_bytes

WAITING_PARTS = 512  # number of parts that are written together
WAITING_BYTES = 8 << 20  # number of bytes that are written together
MOST_REASONS = 20  # maximum number of reasons for pickles that a shard's record holds


@dataclass(frozen=True, slots=True)
class Filled:
    """A shard in memory, not yet stored; see `PackedShard` for the other fields."""

    task: PackTask
    tar: bytearray
    index: ShardIndex | None  # None if no sample could be packed
    is_packed: NDArray[np.bool_]
    source_hashes: NDArray[np.uint64]
    bad: tuple[BadInput, ...] = ()
    stayed: Mapping[str, int] = field(default_factory=dict)


def fill_shard(job: PackJob, task: PackTask) -> Filled:
    """Returns the shard of a task's samples, in memory, without those that cannot be packed."""
    if job.packs_files:
        try:
            return _fill_as_is(job, task)
        except InputError:  # then each sample by itself
            pass
    return _fill_each(job, task)


def _fill_as_is(job: PackJob, task: PackTask) -> Filled:
    """Returns a shard whose parts are the files: the hot path, 2 us a part besides reading it.

    Raises:
        InputError: A sample cannot be read.
    """
    is_there = task.sources.sizes >= 0
    if not is_there.all():
        return _fill_present(job, task, is_there)
    tar = TarWriter()
    keys, suffixes = task.sources.keys(), task.sources.suffixes
    files = [f"{key}.{suffix}".encode() for key in keys for suffix in suffixes]
    tar.extend(files, task.sources.sizes.ravel(), read_files(job.inputs, task.sources))
    body = tar.finish()
    shape = task.sources.sizes.shape
    index = _index(keys, suffixes, tar, body, lambda values: np.array(values, np.uint64).reshape(shape))
    return Filled(task, body, index, np.ones(len(keys), bool), index.xxh3_64)


def _fill_present(job: PackJob, task: PackTask, is_there: NDArray[np.bool_]) -> Filled:
    """Like `_fill_as_is`, but samples may lack optional files.

    Raises:
        InputError: A sample cannot be read.
    """
    tar = TarWriter()
    keys = task.sources.keys()
    suffixes = [tuple(compress(task.sources.suffixes, row)) for row in is_there.tolist()]
    files = [f"{key}.{suffix}".encode() for key, names in zip(keys, suffixes, strict=True) for suffix in names]
    tar.extend(files, task.sources.sizes[is_there], read_files(job.inputs, task.sources))
    body = tar.finish()
    hashes = np.zeros(is_there.shape, np.uint64)
    hashes[is_there] = tar.hashes
    return Filled(task, body, _index_of(keys, suffixes, tar, body), np.ones(len(keys), bool), hashes)


def _fill_each(job: PackJob, task: PackTask) -> Filled:
    """Returns a shard of transformed and encoded samples, which may differ in their suffixes."""
    filler = ShardFiller()
    hashes: list[list[int]] = []
    bad: list[BadInput] = []
    stayed = Counter[str]()
    is_packed = np.zeros(len(task.sources), bool)
    known = {entry.name: entry for entry in task.unreadable}
    for row, (name, found, of_files) in enumerate(_samples(job, task.sources, stayed)):
        sample = known.get(name, found)
        if isinstance(sample, BadInput):
            bad.append(sample)
            continue
        is_packed[row] = True
        hashes.append(of_files)
        filler.add(key_of(name), sample)
    body, index = filler.finish() if filler.num_samples else (bytearray(), None)
    source_hashes = np.array(hashes, np.uint64).reshape(len(hashes), len(task.sources.suffixes))
    return Filled(task, body, index, is_packed, source_hashes, tuple(bad), dict(stayed.most_common(MOST_REASONS)))


def bytes_in_tar(key: str, parts: Mapping[str, bytes]) -> int:
    """Returns the maximum number of bytes that a sample takes in a tar."""
    longest = len(key.encode()) + 1 + max(len(suffix.encode()) for suffix in parts)
    return sum(max_member_bytes(longest, len(data)) for data in parts.values())


class ShardFiller:
    """Lays out one shard in memory. Parts are written into the tar many at a time, which is faster."""

    def __init__(self) -> None:
        self._tar = TarWriter()
        self._keys: list[str] = []
        self._suffixes: list[tuple[str, ...]] = []  # suffixes of each key's parts
        self._sources: list[tuple[int, int]] = []
        self._files: list[bytes] = []  # waiting, as are `_parts`
        self._parts: list[bytes] = []
        self._waiting_bytes = 0
        self._written_bytes = 0

    @property
    def num_samples(self) -> int:
        """Number of samples added so far."""
        return len(self._keys)

    @property
    def num_bytes(self) -> int:
        """Maximum size of the tar with the samples added so far."""
        return self._written_bytes + self._waiting_bytes + len(END)

    def add(self, key: str, parts: Mapping[str, bytes], source: tuple[int, int] | None = None) -> None:
        """Append a sample.

        Args:
            key: Its key.
            parts: Suffix -> bytes.
            source: Number and fingerprint of its source; given for all samples of a shard or for none.

        Raises:
            CallError: The shard would pass 4 GiB.
        """
        self._keys.append(key)
        self._suffixes.append(tuple(parts))
        if source is not None:
            self._sources.append(source)
        self._files += [f"{key}.{suffix}".encode() for suffix in parts]
        self._parts += parts.values()
        self._waiting_bytes += bytes_in_tar(key, parts)
        if len(self._parts) >= WAITING_PARTS or self._waiting_bytes >= WAITING_BYTES:
            self._write()

    def finish(self) -> tuple[bytearray, ShardIndex]:
        """Returns the tar and its index; at least one sample must have been added.

        Raises:
            CallError: The shard would pass 4 GiB.
        """
        self._write()
        body = self._tar.finish()
        index = _index_of(self._keys, self._suffixes, self._tar, body)
        if self._sources:
            numbers, fingerprints = np.array(self._sources, np.uint64).T
            index = replace(index, sources=numbers, fingerprints=fingerprints)
        return body, index

    def _write(self) -> None:
        if self._parts:
            self._tar.extend(self._files, np.array([len(data) for data in self._parts], np.int64), self._parts)
        self._files.clear()
        self._parts.clear()
        self._written_bytes += self._waiting_bytes
        self._waiting_bytes = 0


def _index_of(keys: list[str], suffixes: list[tuple[str, ...]], tar: TarWriter, body: bytearray) -> ShardIndex:
    """Returns the index of a finished tar, as reading it gives: suffixes are in the order of first appearance."""
    in_a_row = list(chain.from_iterable(suffixes))
    columns = {suffix: column for column, suffix in enumerate(dict.fromkeys(in_a_row))}
    cells = np.repeat(np.arange(len(keys)), list(map(len, suffixes))), np.array([columns[name] for name in in_a_row])

    def place(values: "array[int]") -> NDArray[np.uint64]:
        filled = np.zeros((len(keys), len(columns)), np.uint64)
        filled[cells] = values
        return filled

    return _index(keys, tuple(columns), tar, body, place)


def _index(
    keys: list[str],
    suffixes: tuple[str, ...],
    tar: TarWriter,
    body: bytearray,
    place: Callable[["array[int]"], NDArray[np.uint64]],
) -> ShardIndex:
    """Returns the index of a finished tar; `place` arranges the members' values by sample and suffix."""
    offsets, sizes = place(tar.offsets), place(tar.sizes)
    return ShardIndex(
        keys=keys,
        suffixes=suffixes,
        offsets=offsets,
        sizes=sizes,
        xxh3_64=place(tar.hashes),
        shard_bytes=len(body),
        arrays=layouts_in(body, suffixes, offsets, sizes),
    )


def _samples(
    job: PackJob, sources: Sources, stayed: Counter[str] | None = None
) -> Iterator[tuple[str, dict[str, bytes] | BadInput, list[int]]]:
    """Yields (name, parts or why it cannot be packed, xxh3_64 of its files) of each sample, in order."""
    suffixes = sources.suffixes
    in_a_row = try_files(job.inputs, sources)
    for name in sources.names:
        parts: dict[str, bytes] = {}
        bad: BadInput | None = None
        for suffix, data in zip(suffixes, islice(in_a_row, len(suffixes)), strict=True):
            if isinstance(data, InputError):
                bad = bad or BadInput(name=name, file=f"{name}.{suffix}", stage="read", error=str(data))
            elif data is not None:
                parts[suffix] = data
        hashes = [xxh3_64_intdigest(parts[suffix]) if suffix in parts else 0 for suffix in suffixes]
        yield name, bad or _made_of(job, name, parts, stayed), hashes


def _made_of(
    job: PackJob, name: str, parts: dict[str, bytes], stayed: Counter[str] | None
) -> dict[str, bytes] | BadInput:
    """Returns the parts to store of a sample, or why it cannot be packed."""
    stage = "transform"
    try:
        if job.transform is not None:
            made = job.transform(name, parts)
            if made is None:
                return BadInput(name=name, file="", stage=EMPTY, error="func_output_data returned None")
            parts = made
        stage = "encode"
        return parts if job.encoder is None else job.encoder(parts, stayed)
    except InputError as exc:
        return BadInput(name=name, file="", stage=stage, error=str(exc))


def find_bad(job: PackJob, sources: Sources) -> list[BadInput]:
    """Returns the samples that cannot be packed now: all are read, transformed and encoded, and discarded."""
    return [sample for _, sample, _ in _samples(job, sources) if isinstance(sample, BadInput)]
