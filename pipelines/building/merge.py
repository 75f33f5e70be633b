"""Making one shard of several: the concatenation of their members, each byte checked against their indexes."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate, chain

import numpy as np
from xxhash import xxh3_64_intdigest

from dray.pipelines.building.job import TASK_BYTES
from dray.pipelines.building.pack import create, store_index
from dray.pipelines.planning.merges import Group
from dray.shards.errors import DamagedError, NotFoundError
from dray.shards.index import ShardIndex, digest_of
from dray.shards.manifest import Shard
from dray.shards.parsing.arrays import constant_layouts
from dray.shards.snapshot import Snapshot
from dray.shards.storage.store import Store
from dray.shards.tar import BLOCK, END

PARTS_AT_ONCE = 4  # maximum number of parts that a task reads concurrently
READ_BYTES = 8 << 20
STREAM_BYTES = 4 * READ_BYTES  # memory of one open stream


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeTask:
    """A shard to make by merging several."""

    number: int
    parts: Group
    is_stored: bool | None  # whether a shard of that number existed when the task was made; None: unknown

    @property
    def num_bytes(self) -> int:
        """Size of the merged tar."""
        return sum(shard.num_bytes - len(END) for shard in self.parts) + len(END)

    @property
    def memory_bytes(self) -> int:
        """Maximum number of bytes of memory that the task needs."""
        return self.num_bytes * 5 // 4 + PARTS_AT_ONCE * STREAM_BYTES + TASK_BYTES

    def again(self) -> "MergeTask":
        """Returns the task for another attempt, after one that may have stored the shard."""
        return replace(self, is_stored=self.is_stored or None)

    def __str__(self) -> str:
        return f"shard {self.number} (merged of {len(self.parts)} from shard {self.parts[0].number} on)"


def merged_digest(group: Group) -> str:
    """Returns the digest of a group by the bytes of its parts: an adopted shard was made of the same bytes."""
    if len(group) == 1:
        return group[0].digest
    return digest_of(json.dumps(["merged", *((shard.digest, shard.index_digest) for shard in group)]).encode())


def merge_shards(base: Snapshot, tasks: Sequence[MergeTask]) -> Iterator[Shard]:
    """Merge and store shards and their indexes, durably, or adopt those that are stored; yields each. Idempotent.

    Args:
        base: The version of the parts.
        tasks: The shards to make.

    Raises:
        DamagedError: A part differs from its index; names shard and key. Or another object has the shard's name.
        StoreError: The store failed; nothing half-written is visible.
    """
    for task in tasks:
        yield _merge_shard(base, task)


def _merge_shard(base: Snapshot, task: MergeTask) -> Shard:
    store, name = base.store, base.layout.shard(task.number)
    indexes = [_index_of(base, shard) for shard in task.parts]
    index = merge_indexes(indexes)
    is_stored = task.is_stored if task.is_stored is not None else store.head(name) is not None
    is_ours = not is_stored and create(store, name, _merged_tar(base, task, indexes, index.shard_bytes))
    if not is_ours:  # an earlier or parallel attempt's, or the retry of our own request
        _check_is_ours(store, name, index)
    return Shard(
        number=task.number,
        num_bytes=index.shard_bytes,
        num_samples=len(index.keys),
        digest=merged_digest(task.parts),
        index_digest=store_index(base.location, task.number, index),
        parts=index.parts(),
    )


def _index_of(base: Snapshot, shard: Shard) -> ShardIndex:
    try:
        return base.index(shard)
    except NotFoundError as exc:
        url = base.store.url_of(base.layout.index(shard.number))
        raise DamagedError(f"the index of shard {shard.number} is missing: build the dataset again", url=url) from exc


def merge_indexes(indexes: Sequence[ShardIndex]) -> ShardIndex:
    """Returns the index of the concatenated members: the same that reading the merged tar gives.

    Suffixes are in the order in which they first appear, as in each index.
    """
    suffixes = tuple(dict.fromkeys(chain.from_iterable(index.suffixes for index in indexes)))
    shape = (sum(len(index.keys) for index in indexes), len(suffixes))
    offsets, sizes, hashes = (np.zeros(shape, np.uint64) for _ in range(3))
    layouts = {
        suffix: {index.arrays.get(suffix) for index in indexes if suffix in index.suffixes} for suffix in suffixes
    }
    row = start = 0
    for index in indexes:
        rows, columns = slice(row, row + len(index.keys)), [suffixes.index(suffix) for suffix in index.suffixes]
        offsets[rows, columns] = np.where(index.offsets > 0, index.offsets + np.uint64(start), 0)
        sizes[rows, columns] = index.sizes
        hashes[rows, columns] = index.xxh3_64
        row, start = rows.stop, start + index.shard_bytes - len(END)
    return ShardIndex(
        keys=list(chain.from_iterable(index.keys for index in indexes)),
        suffixes=suffixes,
        offsets=offsets,
        sizes=sizes,
        xxh3_64=hashes,
        shard_bytes=start + len(END),
        arrays=constant_layouts(layouts),
    )


def _merged_tar(base: Snapshot, task: MergeTask, indexes: Sequence[ShardIndex], num_bytes: int) -> bytearray:
    """Returns the merged tar; its parts are read concurrently and checked."""
    tar = bytearray(num_bytes)
    names = [base.layout.shard(shard.number) for shard in task.parts]
    starts = [0, *accumulate(index.shard_bytes - len(END) for index in indexes)]

    def copy(part: int) -> None:
        _read_checked(base.store, names[part], indexes[part], memoryview(tar)[starts[part] : starts[part + 1]])

    with ThreadPoolExecutor(PARTS_AT_ONCE) as threads:
        for _ in threads.map(copy, range(len(names))):
            pass
    return tar


def _check_is_ours(store: Store, name: str, index: ShardIndex) -> None:
    """Check that the object of a reserved name is byte for byte the tar of this index.

    Raises:
        DamagedError: It is not; says what to do.
    """
    try:
        _read_checked(store, name, index, memoryview(bytearray(index.shard_bytes - len(END))))
    except DamagedError as exc:
        problem = f"{exc.problem}; did another program write there? Move {store.url_of(name)} away, then compact again"
        raise DamagedError(problem, **exc.place) from exc


def _read_checked(store: Store, name: str, index: ShardIndex, room: memoryview) -> None:
    """Read a tar without its end into `room`, and check that it is byte for byte what its index says.

    Raises:
        DamagedError: It is not; names shard, key and suffix.
    """
    url = store.url_of(name)
    with store.open_stream(name, index.shard_bytes) as stream:
        for start in range(0, len(room), READ_BYTES):
            data = stream.read(min(READ_BYTES, len(room) - start))
            room[start : start + len(data)] = data  # missing bytes stay zero, and fail the check
        end = stream.read()
    position = 0
    for part in index.members():
        data_end = part.offset + part.size
        padded_end = data_end + -part.size % BLOCK
        if (
            room[position : part.offset] != part.header
            or xxh3_64_intdigest(room[part.offset : data_end]) != part.xxh3_64
            or room[data_end:padded_end] != bytes(padded_end - data_end)
        ):
            raise DamagedError(
                f"not the bytes that were packed: run dray verify {store.url} to see how to repair it",
                url=url,
                offset=part.offset,
                key=part.key,
                suffix=part.suffix,
            )
        position = padded_end
    if position != len(room) or end != END:
        raise DamagedError("the end of the archive expected, found something else", url=url, offset=position)
