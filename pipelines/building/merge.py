"""One shard made of several: their members one after another, each byte checked against their indexes."""

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
from dray.shards.tar import BLOCK, END, Member, header

PARTS_AT_ONCE = 4  # read by one task
READ_BYTES = 8 << 20
STREAM_BYTES = 4 * READ_BYTES  # of one open stream


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeTask:
    """One shard to make of several."""

    number: int
    parts: Group
    is_stored: bool | None  # whether a shard of that number existed when the task was made; None: unknown

    @property
    def num_bytes(self) -> int:
        """Of the shard."""
        return merged_bytes(self.parts)

    @property
    def memory_bytes(self) -> int:
        """What it takes at most."""
        return self.num_bytes * 5 // 4 + PARTS_AT_ONCE * STREAM_BYTES + TASK_BYTES

    def again(self) -> "MergeTask":
        """For another attempt, after one that may have stored the shard."""
        return replace(self, is_stored=self.is_stored or None)

    def __str__(self) -> str:
        return f"shard {self.number} (merged of {len(self.parts)} from shard {self.parts[0].number} on)"


def merged_bytes(group: Group) -> int:
    """Of the tar."""
    return sum(shard.num_bytes - len(END) for shard in group) + len(END)


def merged_digest(group: Group) -> str:
    """Of the parts, their bytes included: a shard that is adopted by it was made of the same bytes."""
    if len(group) == 1:
        return group[0].digest
    return digest_of(json.dumps(["merged", *((shard.digest, shard.index_digest) for shard in group)]).encode())


def merge_shards(base: Snapshot, tasks: Sequence[MergeTask]) -> Iterator[Shard]:
    """Merge and store shards and their indexes, durably, or adopt those that are stored; yields each. Idempotent.

    Args:
        base: The version that the parts are of.
        tasks: What to merge.

    Raises:
        DamagedError: A part is not what its index says: names shard and key. Or something else lies under the number.
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
    """The index of the tars' members one after another: the same that reading that tar gives.

    Suffixes stand in the order in which they first appear, as in each index. The numbers of sources, which belong to
    the build that wrote a shard, are not kept.
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
    """The members of the parts, read some at a time and checked."""
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
    """Refuse what lies under a reserved name if it is not byte for byte the tar of this index.

    Raises:
        DamagedError: It is not; says what to do.
    """
    try:
        _read_checked(store, name, index, memoryview(bytearray(index.shard_bytes - len(END))))
    except DamagedError as exc:
        problem = f"{exc.problem}; did another program write there? Move {store.url_of(name)} away, then compact again"
        raise DamagedError(problem, **exc.place) from exc


def _read_checked(store: Store, name: str, index: ShardIndex, room: memoryview) -> None:
    """Read a tar, all but its end, and see that it is byte for byte what its index says: headers and padding too.

    Raises:
        DamagedError: It is not; names the shard, and the part and key.
    """
    url = store.url_of(name)
    with store.open_stream(name, index.shard_bytes) as stream:
        for start in range(0, len(room), READ_BYTES):
            data = stream.read(min(READ_BYTES, len(room) - start))
            room[start : start + len(data)] = data  # what is missing stays zero, and is found below
        end = stream.read()
    position = 0
    for member in _members(index):
        data_end = member.offset + member.size
        padded_end = data_end + -member.size % BLOCK
        if (
            room[position : member.offset] != header(member.name.encode(), member.size)
            or xxh3_64_intdigest(room[member.offset : data_end]) != member.xxh3_64
            or room[data_end:padded_end] != bytes(padded_end - data_end)
        ):
            raise DamagedError(
                f"not the bytes that were packed: run dray verify {store.url} to see how to repair it",
                url=url,
                offset=member.offset,
                **_key_and_suffix(member.name),
            )
        position = padded_end
    if position != len(room) or end != END:
        raise DamagedError("the end of the archive expected, found something else", url=url, offset=position)


def _key_and_suffix(name: str) -> dict[str, str]:
    """Returns key and suffix of a member: the key ends at the first dot of its file name."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return {"key": folder + slash + stem, "suffix": suffix}


def _members(index: ShardIndex) -> Iterator[Member]:
    """What a tar holds by its index, in the tar's order."""
    offsets, sizes, hashes = index.offsets.ravel(), index.sizes.ravel(), index.xxh3_64.ravel()
    cells = np.flatnonzero(offsets)
    cells = cells[np.argsort(offsets[cells], kind="stable")]
    rows, columns = np.divmod(cells, max(1, len(index.suffixes)))
    for row, column, offset, size, xxh in zip(
        rows.tolist(), columns.tolist(), offsets[cells].tolist(), sizes[cells].tolist(), hashes[cells].tolist(),
        strict=True,
    ):  # fmt: skip
        yield Member(f"{index.keys[row]}.{index.suffixes[column]}", offset, size, xxh)
