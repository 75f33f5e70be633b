"""Worker processes of a loader: each makes every so many-th batch, and sends several small ones at a time.

What a worker sends is one object of tensors in shared memory and a few bytes: torch passes each tensor by a file
descriptor, so many small ones are slow, and a worker that has no more descriptors waits for ever.
"""

import pickle
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from dray.loaders.batches import BatchMaker, Pass
from dray.loaders.fetch import Stats

PREFETCH = 2  # groups of batches that a worker is ahead
ALIGN_BYTES = 64


@dataclass(frozen=True, slots=True)
class Sent:
    """Batches on their way to the trainer."""

    worker: int
    stats: Stats  # of the worker since its start
    batches: Any  # packed


class WorkerPool:
    """The worker processes of a loader; they live on from pass to pass.

    Args:
        maker: Of the batches.
        num_workers: At least 1.
    """

    def __init__(self, maker: BatchMaker, num_workers: int) -> None:
        self.stats: dict[int, Stats] = {}  # of each worker, as it told last
        self._num_workers = num_workers
        self._source = _WorkerBatches(maker)
        is_local = maker.snapshot.store.local_root is not None
        self._loader: DataLoader[Any] = DataLoader(
            self._source,
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=num_workers,
            persistent_workers=True,
            multiprocessing_context="fork" if is_local else "spawn",  # a store's connections do not live through a fork
            prefetch_factor=PREFETCH,
        )

    def batches(self, way: Pass) -> Generator[Any, None, None]:
        """The batches of a pass, in order: of each worker in turn."""
        self._source.show(way)
        coming: list[deque[Any]] = [deque() for _ in range(self._num_workers)]
        arriving = iter(self._loader)
        for step in range(len(way.rest)):
            own = coming[step % self._num_workers]
            while not own:
                sent = next(arriving)
                self.stats[sent.worker] = sent.stats
                coming[sent.worker].extend(unpacked(sent.batches))
            yield own.popleft()


class _WorkerBatches(IterableDataset[Sent]):
    """What a worker process iterates over: its batches of the pass that the trainer showed last.

    Persistent workers keep the object that they were born with, so a pass reaches them by shared memory.
    """

    FIELDS = ("epoch", "lanes", "block", "consumed", "steps")

    def __init__(self, maker: BatchMaker) -> None:
        self._maker = maker
        self._numbers = torch.zeros(len(self.FIELDS), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._way: Pass | None = None

    def show(self, way: Pass) -> None:
        """Let the next iteration go this way."""
        self._numbers.copy_(torch.tensor([getattr(way.start, name) for name in self.FIELDS]))
        if self._way is None:
            self._way = way  # the workers are not born yet

    def __iter__(self) -> Iterator[Sent]:
        worker = get_worker_info()
        if worker is None or self._way is None:
            raise RuntimeError("for the loader's workers only")
        numbers = dict(zip(self.FIELDS, self._numbers.tolist(), strict=True))
        start = replace(self._way.start, **numbers)
        rest = replace(self._way.rest, consumed=start.consumed)
        way = Pass(start, rest, self._way.rank)
        for batches in self._maker.groups(way, worker.id, worker.num_workers):
            yield Sent(worker.id, replace(self._maker.stats), packed(batches))


def _as_it_is(sent: Any) -> Any:
    return sent


@dataclass(frozen=True, slots=True)
class _Slice:
    """A tensor inside the piece of memory that it shares with others."""

    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Packed:
    """Values on their way: tensors in one buffer, those in shared memory as they are, and the rest as bytes."""

    pickled: bytes
    buffer: torch.Tensor | None
    shared: list[torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Shared:
    number: int


def packed(value: Any) -> _Packed:
    """Nested dicts, lists and tuples of tensors and other values as few objects; `unpacked` gives them back."""
    joined: list[torch.Tensor] = []
    shared: list[torch.Tensor] = []
    offset = 0

    def replaced(value: Any) -> Any:
        nonlocal offset
        if type(value) is torch.Tensor and _is_plain(value):
            if value.is_shared():  # type: ignore[no-untyped-call]
                shared.append(value)
                return _Shared(len(shared) - 1)
            joined.append(value)
            found = _Slice(offset, value.dtype, tuple(value.shape))
            offset += _aligned(value.numel() * value.itemsize)
            return found
        if type(value) is dict:
            return {name: replaced(item) for name, item in value.items()}
        return type(value)(map(replaced, value)) if type(value) in (list, tuple) else value

    skeleton = pickle.dumps(replaced(value), pickle.HIGHEST_PROTOCOL)
    return _Packed(skeleton, _in_shared_memory(joined, offset) if joined else None, shared)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether its elements, dtype and shape are all there is to it."""
    return (
        tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and not (tensor.requires_grad or tensor.is_quantized)
    )


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGN_BYTES) * ALIGN_BYTES


def _in_shared_memory(tensors: list[torch.Tensor], num_bytes: int) -> torch.Tensor:
    """(num_bytes,) uint8 in shared memory: the tensors one after another, each aligned."""
    storage = torch.UntypedStorage._new_shared(max(num_bytes, 1))  # type: ignore[no-untyped-call]
    buffer = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (num_bytes,), (1,))
    offset = 0
    for tensor in tensors:
        size = tensor.numel() * tensor.itemsize
        if size:
            buffer[offset : offset + size].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        offset += _aligned(size)
    return buffer


def unpacked(value: _Packed) -> Any:
    """What was packed."""

    def restored(item: Any) -> Any:
        if type(item) is _Slice:
            return _view(value.buffer, item)
        if type(item) is _Shared:
            return value.shared[item.number]
        if type(item) is dict:
            return {name: restored(inner) for name, inner in item.items()}
        return type(item)(map(restored, item)) if type(item) in (list, tuple) else item

    return restored(pickle.loads(value.pickled))  # noqa: S301  this loader's worker made it


def _view(buffer: torch.Tensor | None, item: _Slice) -> torch.Tensor:
    size = item.dtype.itemsize
    for length in item.shape:
        size *= length
    if buffer is None or not size:
        return torch.empty(item.shape, dtype=item.dtype)
    return buffer[item.offset : item.offset + size].view(item.dtype).view(item.shape)
