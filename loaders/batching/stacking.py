"""Parts that are alike become one tensor: the first tells where the elements lie, the others are compared with it.

Of parts with one dtype and shape nothing but the elements differs, and the address that torch writes into a pickle.
So only the first of a kind is looked at; all bytes around the elements of the others must be the same, which is found
out for hundreds of parts at once. What is not alike is left to the decoder, part by part, which tells what is wrong.
"""

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from dray.loaders.batching.buffers import Buffers
from dray.loaders.batching.tensor_kinds import torch_dtype
from dray.loaders.lazy import lazy
from dray.shards.codecs.pickles import layout as fast_tensor
from dray.shards.reading.samples import Column, MappedParts

try:
    from dray.loaders.batching.gather import gather
except ImportError:  # installed without a C compiler
    gather = None  # type: ignore[assignment]

Part = bytes | memoryview
T = TypeVar("T")

LARGE_BYTES = 256 << 10  # tensors of this size are made in memory that is used again
THREAD_BYTES = 4 << 20  # so much is worth a thread
MOST_KINDS = 1024  # that are remembered: parts of many sizes are seldom alike
_NPY_HEADER_BYTES = 10_000  # numpy reads no longer one


@dataclass(frozen=True, eq=False)
class Kind:
    """What parts that are alike have in common.

    Attributes:
        start: Of the elements, in bytes.
        stop: Their end.
        dtype: Of the tensor.
        shape: Of one part's.
        around: The bytes before and after the elements.
        is_fixed: Which of them are the same in every part.
        names: Two slices of them with the same digits, whatever they are.
    """

    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    around: NDArray[np.uint8]
    is_fixed: NDArray[np.bool_]
    names: tuple[slice, slice] | None

    @classmethod
    def of(cls, suffix: str, part: Part) -> "Kind | None":
        """The kind of a part by its suffix's last extension; None where it is no contiguous tensor or array."""
        find_layout = _LAYOUTS.get(suffix.rpartition(".")[2])
        layout = find_layout(part) if find_layout else None
        dtype = _torch_dtype(layout.dtype) if layout else None
        if layout is None or dtype is None or layout.start == layout.stop:
            return None
        around = np.frombuffer(bytes(part[: layout.start]) + bytes(part[layout.stop :]), np.uint8)
        is_fixed = np.ones(len(around), bool)
        for name in layout.names or ():
            is_fixed[name] = False
        return cls(layout.start, layout.stop, dtype, layout.shape, around, is_fixed, layout.names)

    def matches(self, parts: Sequence[Part]) -> bool:
        """Whether all parts, which have the size of this kind, are of it."""
        start, stop = self.start, self.stop
        if stop == len(parts[0]):
            pieces = [part[:start] for part in parts]
        else:
            pieces = [piece for part in parts for piece in (part[:start], part[stop:])]
        around = np.frombuffer(b"".join(pieces), np.uint8).reshape(len(parts), -1)
        if not ((around == self.around) | ~self.is_fixed).all():
            return False
        if self.names is None:
            return True
        first, second = (around[:, name] for name in self.names)
        return bool((first == second).all() and (first - ord("0") < 10).all())

    def is_like(self, other: "Kind") -> bool:
        """Whether parts of both can be rows of one tensor."""
        return self.dtype == other.dtype and self.shape == other.shape

    @lazy
    def size(self) -> int:
        """Of a part, in bytes."""
        return len(self.around) + self.stop - self.start

    @lazy
    def layout(self) -> tuple[int, int, int, bytes, bytes, int, int, int]:
        """What `gather` has to know: size, start, stop, around, is_fixed, and the two names with their length."""
        first, second = self.names or (slice(0, 0), slice(0, 0))
        names = first.start, second.start, first.stop - first.start
        return self.size, self.start, self.stop, self.around.tobytes(), self.is_fixed.tobytes(), *names


class Stacker:
    """Makes tensors of parts that are alike; it remembers their kinds.

    Args:
        buffers: The memory for large ones.
        num_threads: That copy these.
    """

    def __init__(self, buffers: Buffers, num_threads: int) -> None:
        self._kinds: dict[tuple[str, int], Kind] = {}  # by suffix and size of a part
        self._buffers, self._num_threads = buffers, num_threads

    def stacks(
        self, suffix: str, parts: Sequence[Part | None], bounds: Sequence[tuple[int, int]]
    ) -> list[torch.Tensor | None]:
        """(n, ...) the elements of each stretch of n of the parts; None where they are not alike.

        Args:
            suffix: Of the parts.
            parts: All of them.
            bounds: First and last + 1 of each stretch.

        Raises:
            DamagedError: See `Reader.read`.
        """
        if isinstance(parts, MappedParts):
            found = self._gathered(suffix, parts, bounds)
            if found is not None:
                return found
            parts = parts.read()
        kinds = self.kinds(suffix, parts)
        return [self.stack(parts[start:end], kinds[start:end]) for start, end in bounds]

    def stacks_of(self, column: Column, bounds: Sequence[tuple[int, int]]) -> list[torch.Tensor | None]:
        """See `stacks`; of a part that samples may have under different suffixes, or lack."""
        if column.suffix is not None:
            return self.stacks(column.suffix.lower(), column.parts, bounds)
        kinds: list[Kind | None] = [None] * len(column.parts)
        for suffix in column.stored:
            rows = zip(column.parts, column.suffixes, strict=True)
            parts = [part if own == suffix else None for part, own in rows]
            kinds = [kind or known for kind, known in zip(self.kinds(suffix.lower(), parts), kinds, strict=True)]
        return [self.stack(column.parts[start:end], kinds[start:end]) for start, end in bounds]

    def _gathered(
        self, suffix: str, parts: MappedParts, bounds: Sequence[tuple[int, int]]
    ) -> list[torch.Tensor | None] | None:
        """See `stacks`; None where some part is not whole, or not of a kind that is known already."""
        sizes = parts.sizes
        is_one_size = bool((sizes == sizes[:1]).all())
        kinds = self._known(suffix, sizes[:1].tolist() if is_one_size else np.unique(sizes).tolist())
        if not kinds:
            return None
        first = kinds[0]
        found = [self._empty(first.dtype, (end - start, *first.shape)) for start, end in bounds]
        counts = [end - start for start, end in bounds]
        beginnings = np.array([tensor.data_ptr() for tensor in found], np.uint64)
        rows = np.arange(len(sizes)) - np.repeat([start for start, _ in bounds], counts)  # each of its tensor
        targets = np.repeat(beginnings, counts) + (rows * (first.stop - first.start)).view(np.uint64)
        for kind in kinds:
            some = slice(None) if is_one_size else np.flatnonzero(sizes == kind.size)
            if not self._gather(kind, parts.addresses[some], parts.hashes[some], targets[some]):
                return None
        return list(found)

    def _known(self, suffix: str, sizes: Sequence[int]) -> list[Kind]:
        """Return the kinds of parts of these sizes; none unless all are known and give equal rows."""
        if gather is None:
            return []
        kinds = [kind for size in sizes if (kind := self._kinds.get((suffix, size)))]
        return kinds if len(kinds) == len(sizes) and all(kind.is_like(kinds[0]) for kind in kinds) else []

    def _gather(
        self, kind: Kind, addresses: NDArray[np.uint64], hashes: NDArray[np.uint64], targets: NDArray[np.uint64]
    ) -> bool:
        """Copy the elements of some parts to their places; whether all parts are whole, and of that kind."""

        def of(run: range) -> bool:
            some, count = slice(run.start, run.stop), len(run)
            return gather is not None and count == gather(addresses[some], hashes[some], targets[some], *kind.layout)

        num_threads = max(1, min(self._num_threads, len(addresses) * kind.size // THREAD_BYTES))
        return all(in_threads(of, len(addresses), num_threads))

    def _empty(self, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor with any content."""
        num_bytes = prod(shape) * dtype.itemsize
        if num_bytes < LARGE_BYTES:
            return torch.empty(shape, dtype=dtype)
        return self._buffers.take(num_bytes).view(dtype).view(shape)

    def kinds(self, suffix: str, parts: Sequence[Part | None]) -> list[Kind | None]:
        """The kind of each part; None where it has none."""
        sizes = [-1 if part is None else len(part) for part in parts]
        if sizes.count(sizes[0]) == len(sizes):
            return [self._kind(suffix, sizes[0], parts) if parts[0] is not None else None] * len(parts)  # type: ignore[arg-type]
        found: list[Kind | None] = [None] * len(parts)
        for size in dict.fromkeys(sizes):
            rows = [row for row, of_row in enumerate(sizes) if of_row == size]
            of_size = [part for row in rows if (part := parts[row]) is not None]
            kind = self._kind(suffix, size, of_size) if of_size else None
            for row in rows if kind else ():
                found[row] = kind
        return found

    def _kind(self, suffix: str, size: int, parts: Sequence[Part]) -> Kind | None:
        """The one kind of parts of the same size; None where they have none, or several."""
        known = self._kinds.get((suffix, size))
        if known is not None and known.matches(parts):
            return known
        new = Kind.of(suffix, parts[0])
        if new is None or not new.matches(parts):
            return None
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        self._kinds[suffix, size] = new
        return new

    def stack(self, parts: Sequence[Part | None], kinds: Sequence[Kind | None]) -> torch.Tensor | None:
        """(n, ...) the elements of n parts; None unless all have kinds of the same dtype and shape."""
        first = kinds[0] if kinds else None
        if first is None:
            return None
        if kinds.count(first) == len(kinds):
            start, stop = first.start, first.stop
            pieces = [part[start:stop] for part in parts if part is not None]
        elif all(kind and kind.is_like(first) for kind in kinds):
            where = zip(parts, kinds, strict=True)
            pieces = [part[kind.start : kind.stop] for part, kind in where if part is not None and kind]
        else:
            return None
        if len(pieces) * len(pieces[0]) < LARGE_BYTES:
            elements = torch.frombuffer(bytearray().join(pieces), dtype=first.dtype)
        else:
            elements = self._copied(pieces).view(first.dtype)
        return elements.view(len(pieces), *first.shape)

    def _copied(self, pieces: Sequence[Part]) -> torch.Tensor:
        """(n * size,) uint8, the bytes of n large pieces of one size."""
        elements = self._buffers.take(len(pieces) * len(pieces[0]))
        rows = elements.numpy().reshape(len(pieces), -1)

        def copy(numbers: range) -> None:
            for row in numbers:
                rows[row] = np.frombuffer(pieces[row], np.uint8)

        in_threads(copy, len(pieces), max(1, min(self._num_threads, elements.nbytes // THREAD_BYTES)))
        return elements


def in_threads(work: Callable[[range], T], count: int, num_threads: int) -> list[T]:
    """Return the results of `work` for the numbers below `count`, in equal runs, one in each thread."""
    runs = [range(count * part // num_threads, count * (part + 1) // num_threads) for part in range(num_threads)]
    others = [_pool(os.getpid()).submit(work, run) for run in runs[1:] if run]
    return [work(runs[0]), *(other.result() for other in others)]


@lru_cache(1)
def _pool(_process: int) -> ThreadPoolExecutor:
    """The threads of this process, begun as they are needed: those of a forked one's parent are not there."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="dray-copy")


def _npy_layout(part: Part) -> fast_tensor.Layout | None:
    """Where the elements of a `.npy` lie; None unless they are plain, native and in C order."""
    stream = io.BytesIO(part[:_NPY_HEADER_BYTES])
    try:
        read_header = _NPY_HEADERS[np.lib.format.read_magic(stream)]
        shape, is_fortran, dtype = read_header(stream)
    except Exception:  # noqa: BLE001  numpy parses the header as Python; the decoder says what is wrong with it
        return None
    start = stream.tell()
    stop = start + prod(shape) * dtype.itemsize
    is_plain = not dtype.hasobject and dtype.isnative and not (is_fortran and len(shape) > 1)
    if min(shape, default=0) < 0 or stop != len(part) or not is_plain:
        return None
    return fast_tensor.Layout(start, stop, dtype, shape)


_NPY_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_LAYOUTS = {"npy": _npy_layout} | dict.fromkeys(("pyd", "pickle", "pkl"), fast_tensor.find_layout)


def _torch_dtype(dtype: "torch.dtype | np.dtype[Any]") -> torch.dtype | None:
    """The dtype of torch that has the same bytes; None where it has none."""
    if isinstance(dtype, torch.dtype):
        return dtype
    return torch_dtype(dtype) if dtype.isnative else None
