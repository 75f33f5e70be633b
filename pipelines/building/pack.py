"""Packing one shard: read its samples, lay them out as a tar, store it under a reserved name, then store its index.

Safe to run twice, late, or after a crash: a shard is created, never overwritten, and one that is already stored is
read, compared with the plan and indexed as it is. The index describes what is stored.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dray.pipelines.building.fill import Filled, fill_shard, find_bad
from dray.pipelines.building.job import PackedShard, PackJob, PackTask
from dray.pipelines.inputs.encoder import Encoder
from dray.pipelines.inputs.reading import unhashed
from dray.pipelines.inputs.sources import ABSENT, BadInput, Sources, hash_files
from dray.pipelines.running.node import node_name
from dray.shards.errors import DamagedError, ExistsError
from dray.shards.index import ShardIndex, digest_of
from dray.shards.layout import Location
from dray.shards.storage.store import Store
from dray.shards.tar import scan

Result = TypeVar("Result")


def pack_shards(job: PackJob, tasks: Sequence[PackTask]) -> Iterator[PackedShard]:
    """Pack and store shards, or adopt those that are stored; yields a record of each, in order. Durable, idempotent.

    One shard is stored while the next is filled: at most two are in memory. A crash leaves whole shards to adopt.
    If samples cannot be packed, the record names them, and the shard is stored without them if the job allows it,
    else not at all.

    Raises:
        DamagedError: Another object has the name of a task's shard.
        StoreError: The store failed.
    """
    return store_while_filling(_prepare(job, task) for task in tasks)


def store_while_filling(stores: Iterable[Callable[[], Result]]) -> Iterator[Result]:
    """Call functions one after another, each while the next one is made; yields the result of each, in order."""
    filled = iter(stores)
    with ThreadPoolExecutor(1) as uploader:
        storing: Future[Result] | None = None
        while True:
            try:
                store = next(filled, None)
            except BaseException:
                if storing is not None:
                    yield storing.result()  # it is stored although the next one failed
                raise
            if storing is not None:
                yield storing.result()
            if store is None:
                return
            storing = uploader.submit(store)
            del store  # the tar


def pack_shard(job: PackJob, task: PackTask) -> PackedShard:
    """Pack and store one shard, or adopt it: see `pack_shards`."""
    return _prepare(job, task)()


def _prepare(job: PackJob, task: PackTask) -> Callable[[], PackedShard]:
    """Fill a shard that is not stored yet; returns the function that stores it, or adopts the stored one."""
    is_stored = task.is_stored
    if is_stored is None:
        is_stored = job.location.store.head(job.location.layout.shard(task.number)) is not None
    if is_stored:
        return partial(adopt_shard, job, task)
    return partial(store_shard, job, fill_shard(job, task))


def store_shard(job: PackJob, filled: Filled) -> PackedShard:
    """Store a shard and its index, durably: shard first, so that an index always has its shard.

    Raises:
        DamagedError: Another object has the shard's name.
        StoreError: The store failed; nothing half-written is visible.
    """
    unread = _unread(job, filled.task, filled.bad)
    if filled.index is None or unread or not (job.leaves_out_bad or all(entry.is_empty for entry in filled.bad)):
        return PackedShard(
            number=filled.task.number,
            num_bytes=0,
            index_digest="",
            is_packed=np.zeros(len(filled.is_packed), bool),
            source_hashes=filled.source_hashes[:0],
            adopted=False,
            bad=filled.bad,
            unread=unread,
            node=node_name() if unread else "",
        )
    if not create(job.location.store, job.location.layout.shard(filled.task.number), filled.tar):
        return adopt_shard(job, filled.task)  # a parallel attempt's, or the retry of our own request
    digest = store_index(job.location, filled.task.number, filled.index)
    return PackedShard(
        number=filled.task.number,
        num_bytes=filled.index.shard_bytes,
        index_digest=digest,
        is_packed=filled.is_packed,
        source_hashes=filled.source_hashes,
        adopted=False,
        bad=filled.bad,
        parts=filled.index.parts(),
        arrays=filled.index.array_types(),
        stayed=filled.stayed,
    )


def adopt_shard(job: PackJob, task: PackTask) -> PackedShard:
    """Adopt the stored shard as this task's: read it completely and index what it contains.

    Raises:
        DamagedError: It is broken, or holds other samples than the task's.
    """
    name = job.location.layout.shard(task.number)
    url = job.location.store.url_of(name)
    try:
        index = read_index(job.location.store, name)
        is_packed = _held(index, job, task.sources)
        bad = None if is_packed is None else _left_out(job, task.sources.take(np.flatnonzero(~is_packed)))
        if is_packed is None or bad is None:
            raise DamagedError("the shard holds other samples than this build reserved it for", url=url)
    except DamagedError as exc:
        problem = f"{exc.problem}; did another program write there? Move {url} away, or choose another prefix"
        raise DamagedError(problem, **exc.place) from exc
    packed = task.sources.take(np.flatnonzero(is_packed))
    hashes = _of_files(index, index.xxh3_64, packed) if job.packs_files else hash_files(job.inputs, packed)
    unread = _unread(job, task, (*bad, *unhashed(packed, hashes)))
    return PackedShard(
        number=task.number,
        num_bytes=index.shard_bytes,
        index_digest=store_index(job.location, task.number, index),
        is_packed=is_packed,
        source_hashes=hashes,
        adopted=True,
        bad=bad,
        parts=index.parts(),
        arrays=index.array_types(),
        unread=unread,
        node=node_name() if unread else "",
    )


def _unread(job: PackJob, task: PackTask, bad: Sequence[BadInput]) -> tuple[BadInput, ...]:
    """Returns the samples that this worker could not read and the driver did not try: the node may be at fault."""
    if not job.is_remote:
        return ()
    known = {entry.name for entry in task.unreadable}
    return tuple(entry for entry in bad if entry.stage == "read" and entry.name not in known)


def _of_files(index: ShardIndex, values: NDArray[Any], sources: Sources, absent: int = 0) -> NDArray[Any]:
    """Returns (n, s) one of an index's matrices with a column for each file; `absent` if a sample lacks it."""
    found = np.full(sources.sizes.shape, absent, values.dtype)
    for column, suffix in enumerate(sources.suffixes):
        if suffix in index.suffixes:
            number = index.suffixes.index(suffix)
            found[:, column] = np.where(index.offsets[:, number] > 0, values[:, number], values.dtype.type(absent))
    return found


def read_index(store: Store, name: str) -> ShardIndex:
    """Returns the index of a stored tar, made by reading it.

    Raises:
        DamagedError: It is not a tar of whole samples; names it.
    """
    url, info = store.url_of(name), store.head(name)
    with store.open_stream(name) as stream:
        return ShardIndex.of_members(scan(stream, url), shard_bytes=info.size if info else 0, where=url)


def _held(index: ShardIndex, job: PackJob, sources: Sources) -> NDArray[np.bool_] | None:
    """Returns (n,) whether a stored shard holds each planned sample; None if it is not a shard of this plan.

    For a function's parts only the keys can be compared, for encoded parts not the sizes.
    """
    stored, planned = list(index.keys), sources.keys()
    in_stored = set(stored)
    is_packed = np.array([key in in_stored for key in planned], bool)
    may_lack = job.leaves_out_bad or job.transform is not None  # a function may leave samples out
    if [key for key in planned if key in in_stored] != stored or not (may_lack or is_packed.all()):
        return None
    if job.transform is not None:
        return is_packed
    suffixes, sizes = sources.suffixes, sources.sizes[is_packed]
    if job.encoder is not None:
        return is_packed if _may_be_encoded(index, job.encoder, suffixes, sizes) else None
    held = _of_files(index, index.sizes.astype(np.int64), sources.take(np.flatnonzero(is_packed)), ABSENT)
    is_same = index.suffixes == _in_order(suffixes, sizes >= 0) and np.array_equal(held, sizes)
    return is_packed if is_same else None


def _in_order(suffixes: Sequence[str], is_there: NDArray[np.bool_]) -> tuple[str, ...]:
    """Returns suffixes in the order in which they first appear in a shard, without those that no sample has."""
    columns = np.flatnonzero(is_there.any(axis=0))
    firsts = is_there[:, columns].argmax(axis=0)
    order: list[int] = columns[np.argsort(firsts, kind="stable")].tolist()
    return tuple(suffixes[column] for column in order)


def _may_be_encoded(index: ShardIndex, encoder: Encoder, suffixes: Sequence[str], sizes: NDArray[np.int64]) -> bool:
    """Whether each file that exists has one part, under a suffix that it may have; an unencoded part has its size."""
    columns = {suffix: column for column, suffix in enumerate(index.suffixes)}
    for number, suffix in enumerate(suffixes):
        found = [columns.pop(name) for name in encoder.outputs(suffix) if name in columns]
        if not ((index.offsets[:, found] > 0).sum(axis=1) == (sizes[:, number] >= 0)).all():
            return False
        for column in found:
            if index.suffixes[column] == suffix:
                is_there = index.offsets[:, column] > 0
                if not np.array_equal(index.sizes[is_there, column], sizes[is_there, number]):
                    return False
    return not columns


def _left_out(job: PackJob, sources: Sources) -> tuple[BadInput, ...] | None:
    """Returns why a stored shard lacks samples; None if one of them can be packed and must not be missing."""
    still = {bad.name: bad for bad in (find_bad(job, sources) if len(sources) else ())}
    if len(still) < len(sources) and not job.leaves_out_bad:
        return None
    then = BadInput(name="", file="", stage="read", error="could not be packed when its shard was stored; now it can")
    return tuple(still.get(name, replace(then, name=name)) for name in sources.names)


def store_index(location: Location, number: int, index: ShardIndex) -> str:
    """Store the index of a stored shard; returns its digest. The driver syncs the folders once.

    Raises:
        DamagedError: Another index is stored under its name.
        StoreError: The store failed.
    """
    shard_name, index_name = location.layout.shard(number), location.layout.index(number)
    body = index.to_bytes()
    if not create(location.store, index_name, body) and location.store.get(index_name) != body:
        raise DamagedError(
            f"not the index of {shard_name} beside it: was a shard deleted by hand? Delete both, then build again",
            url=location.store.url_of(index_name),
        )
    return digest_of(body)


def create(store: Store, name: str, data: bytes | bytearray) -> bool:
    """Whether this call created the object; False if an earlier or parallel attempt did."""
    try:
        store.put_new(name, data)
    except ExistsError:
        return False
    return True
