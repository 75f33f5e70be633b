"""Stacks parts into one tensor without decoding each: the first gives the layout that the others are compared with.

Parts of one dtype and shape differ only in their elements and in the address that torch writes into a pickle. So only
the first part of a layout is parsed; all bytes around the elements of the others must be equal, which is checked for
hundreds of parts at once. Other parts are left to the decoder, one by one, which raises the errors.
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
from dray.shards.codecs.pickles.layout import PickleLayout, find_layout
from dray.shards.reading.samples import Column, MappedParts

try:
    from dray.loaders.batching.gather import gather
except ImportError:  # installed without a C compiler
    gather = None  # type: ignore[assignment]

Part = bytes | memoryview
T = TypeVar("T")

LARGE_BYTES = 256 << 10  # tensors of this size are made in pooled memory
THREAD_BYTES = 4 << 20  # minimum number of bytes that a thread copies
MAX_LAYOUTS = 1024  # maximum number of remembered layouts: parts of many sizes rarely stack
_NPY_HEADER_BYTES = 10_000  # maximum length of a header that numpy reads


@dataclass(frozen=True, eq=False)
class PartLayout:
    """Dtype, shape and surrounding bytes that stackable parts share.

    Attributes:
        start: Offset of the elements in bytes.
        stop: Offset of their end.
        dtype: Dtype of the tensor.
        shape: Shape of one part's tensor.
        around: The bytes before and after the elements.
        is_fixed: For each of these bytes, whether it is equal in every part.
        names: Two slices of these bytes that hold the same digits, which may differ between parts.
    """

    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    around: NDArray[np.uint8]
    is_fixed: NDArray[np.bool_]
    names: tuple[slice, slice] | None

    @classmethod
    def of(cls, suffix: str, part: Part) -> "PartLayout | None":
        """Returns a part's layout by its suffix's last extension; None unless it is a contiguous tensor or array."""
        find_layout = _LAYOUT_FINDERS.get(suffix.rpartition(".")[2])
        found = find_layout(part) if find_layout else None
        dtype = _torch_dtype(found.dtype) if found else None
        if found is None or dtype is None or found.start == found.stop:
            return None
        around = np.frombuffer(bytes(part[: found.start]) + bytes(part[found.stop :]), np.uint8)
        is_fixed = np.ones(len(around), bool)
        for name in found.names or ():
            is_fixed[name] = False
        return cls(found.start, found.stop, dtype, found.shape, around, is_fixed, found.names)

    def matches(self, parts: Sequence[Part]) -> bool:
        """Returns whether all parts have this layout; they must have its size."""
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

    def is_like(self, other: "PartLayout") -> bool:
        """Returns whether parts of both layouts can be rows of one tensor."""
        return self.dtype == other.dtype and self.shape == other.shape

    @lazy
    def size(self) -> int:
        """Size of a part in bytes."""
        return len(self.around) + self.stop - self.start

    @lazy
    def gather_args(self) -> tuple[int, int, int, bytes, bytes, int, int, int]:
        """Arguments of `gather`: size, start, stop, around, is_fixed, and the two names with their length."""
        first, second = self.names or (slice(0, 0), slice(0, 0))
        names = first.start, second.start, first.stop - first.start
        return self.size, self.start, self.stop, self.around.tobytes(), self.is_fixed.tobytes(), *names


class Stacker:
    """Stacks parts of equal dtype and shape into tensors; it remembers their layouts.

    Args:
        buffers: Memory for large tensors.
        num_threads: Maximum number of threads that copy into these.
    """

    def __init__(self, buffers: Buffers, num_threads: int) -> None:
        self._layouts: dict[tuple[str, int], PartLayout] = {}  # by suffix and size of a part
        self._buffers, self._num_threads = buffers, num_threads

    def stacks(
        self, suffix: str, parts: Sequence[Part | None], bounds: Sequence[tuple[int, int]]
    ) -> list[torch.Tensor | None]:
        """Returns a tensor (n, ...) for each stretch of n parts; None where they cannot be stacked.

        Args:
            suffix: Suffix of the parts.
            parts: The parts of all stretches.
            bounds: First and last + 1 part of each stretch.

        Raises:
            DamagedError: See `Reader.read`.
        """
        if isinstance(parts, MappedParts):
            found = self._gathered(suffix, parts, bounds)
            if found is not None:
                return found
            parts = parts.read()
        layouts = self.layouts(suffix, parts)
        return [self.stack(parts[start:end], layouts[start:end]) for start, end in bounds]

    def stacks_of(self, column: Column, bounds: Sequence[tuple[int, int]]) -> list[torch.Tensor | None]:
        """Returns what `stacks` does, for a column whose samples may use different suffixes or lack the part."""
        if column.suffix is not None:
            return self.stacks(column.suffix.lower(), column.parts, bounds)
        layouts: list[PartLayout | None] = [None] * len(column.parts)
        for suffix in column.stored:
            rows = zip(column.parts, column.suffixes, strict=True)
            parts = [part if own == suffix else None for part, own in rows]
            own_layouts = self.layouts(suffix.lower(), parts)
            layouts = [new or known for new, known in zip(own_layouts, layouts, strict=True)]
        return [self.stack(column.parts[start:end], layouts[start:end]) for start, end in bounds]

    def _gathered(
        self, suffix: str, parts: MappedParts, bounds: Sequence[tuple[int, int]]
    ) -> list[torch.Tensor | None] | None:
        """Returns what `stacks` does; None if a part is damaged or its layout is not known yet."""
        sizes = parts.sizes
        is_one_size = bool((sizes == sizes[:1]).all())
        layouts = self._known(suffix, sizes[:1].tolist() if is_one_size else np.unique(sizes).tolist())
        if not layouts:
            return None
        first = layouts[0]
        found = [self._empty(first.dtype, (end - start, *first.shape)) for start, end in bounds]
        counts = [end - start for start, end in bounds]
        beginnings = np.array([tensor.data_ptr() for tensor in found], np.uint64)
        rows = np.arange(len(sizes)) - np.repeat([start for start, _ in bounds], counts)  # row numbers in each tensor
        targets = np.repeat(beginnings, counts) + (rows * (first.stop - first.start)).view(np.uint64)
        for layout in layouts:
            some = slice(None) if is_one_size else np.flatnonzero(sizes == layout.size)
            if not self._gather(layout, parts.addresses[some], parts.hashes[some], targets[some]):
                return None
        return list(found)

    def _known(self, suffix: str, sizes: Sequence[int]) -> list[PartLayout]:
        """Returns the layouts of parts of these sizes; empty unless all are known and give equal rows."""
        if gather is None:
            return []
        layouts = [layout for size in sizes if (layout := self._layouts.get((suffix, size)))]
        return layouts if len(layouts) == len(sizes) and all(layout.is_like(layouts[0]) for layout in layouts) else []

    def _gather(
        self, layout: PartLayout, addresses: NDArray[np.uint64], hashes: NDArray[np.uint64], targets: NDArray[np.uint64]
    ) -> bool:
        """Copy the elements of some parts to their targets; returns whether all parts are intact and of that layout."""

        def of(run: range) -> bool:
            some, count = slice(run.start, run.stop), len(run)
            args = layout.gather_args
            return gather is not None and count == gather(addresses[some], hashes[some], targets[some], *args)

        num_threads = max(1, min(self._num_threads, len(addresses) * layout.size // THREAD_BYTES))
        return all(in_threads(of, len(addresses), num_threads))

    def _empty(self, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """Returns an uninitialized tensor."""
        num_bytes = prod(shape) * dtype.itemsize
        if num_bytes < LARGE_BYTES:
            return torch.empty(shape, dtype=dtype)
        return self._buffers.take(num_bytes).view(dtype).view(shape)

    def layouts(self, suffix: str, parts: Sequence[Part | None]) -> list[PartLayout | None]:
        """Returns the layout of each part; None where it has none."""
        sizes = [-1 if part is None else len(part) for part in parts]
        if sizes.count(sizes[0]) == len(sizes):
            only = self._layout(suffix, sizes[0], parts) if parts[0] is not None else None  # type: ignore[arg-type]
            return [only] * len(parts)
        found: list[PartLayout | None] = [None] * len(parts)
        for size in dict.fromkeys(sizes):
            rows = [row for row, of_row in enumerate(sizes) if of_row == size]
            of_size = [part for row in rows if (part := parts[row]) is not None]
            layout = self._layout(suffix, size, of_size) if of_size else None
            for row in rows if layout else ():
                found[row] = layout
        return found

    def _layout(self, suffix: str, size: int, parts: Sequence[Part]) -> PartLayout | None:
        """Returns the layout that parts of one size share; None if there is none."""
        known = self._layouts.get((suffix, size))
        if known is not None and known.matches(parts):
            return known
        new = PartLayout.of(suffix, parts[0])
        if new is None or not new.matches(parts):
            return None
        if len(self._layouts) >= MAX_LAYOUTS:
            self._layouts.clear()
        self._layouts[suffix, size] = new
        return new

    def stack(self, parts: Sequence[Part | None], layouts: Sequence[PartLayout | None]) -> torch.Tensor | None:
        """Returns the elements of n parts, (n, ...); None unless their layouts have one dtype and shape."""
        first = layouts[0] if layouts else None
        if first is None:
            return None
        if layouts.count(first) == len(layouts):
            start, stop = first.start, first.stop
            pieces = [part[start:stop] for part in parts if part is not None]
        elif all(layout and layout.is_like(first) for layout in layouts):
            where = zip(parts, layouts, strict=True)
            pieces = [part[layout.start : layout.stop] for part, layout in where if part is not None and layout]
        else:
            return None
        if len(pieces) * len(pieces[0]) < LARGE_BYTES:
            elements = torch.frombuffer(bytearray().join(pieces), dtype=first.dtype)
        else:
            elements = self._copied(pieces).view(first.dtype)
        return elements.view(len(pieces), *first.shape)

    def _copied(self, pieces: Sequence[Part]) -> torch.Tensor:
        """Returns the bytes of n large pieces of one size: (n * size,) uint8."""
        elements = self._buffers.take(len(pieces) * len(pieces[0]))
        rows = elements.numpy().reshape(len(pieces), -1)

        def copy(numbers: range) -> None:
            for row in numbers:
                rows[row] = np.frombuffer(pieces[row], np.uint8)

        in_threads(copy, len(pieces), max(1, min(self._num_threads, elements.nbytes // THREAD_BYTES)))
        return elements


def in_threads(work: Callable[[range], T], count: int, num_threads: int) -> list[T]:
    """Returns the results of `work` for the numbers below `count`, in equal runs, one per thread."""
    runs = [range(count * part // num_threads, count * (part + 1) // num_threads) for part in range(num_threads)]
    others = [_pool(os.getpid()).submit(work, run) for run in runs[1:] if run]
    return [work(runs[0]), *(other.result() for other in others)]


@lru_cache(1)
def _pool(_process: int) -> ThreadPoolExecutor:
    """Returns the thread pool of this process: a forked child does not have its parent's threads."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="dray-copy")


def _npy_layout(part: Part) -> PickleLayout | None:
    """Returns the layout of a `.npy`; None unless its elements are plain, native and in C order."""
    stream = io.BytesIO(part[:_NPY_HEADER_BYTES])
    try:
        read_header = _NPY_HEADERS[np.lib.format.read_magic(stream)]
        shape, is_fortran, dtype = read_header(stream)
    except Exception:  # noqa: BLE001  numpy parses the header as Python; the decoder raises the error
        return None
    start = stream.tell()
    stop = start + prod(shape) * dtype.itemsize
    is_plain = not dtype.hasobject and dtype.isnative and not (is_fortran and len(shape) > 1)
    if min(shape, default=0) < 0 or stop != len(part) or not is_plain:
        return None
    return PickleLayout(start, stop, dtype, shape)


_NPY_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_LAYOUT_FINDERS = {"npy": _npy_layout} | dict.fromkeys(("pyd", "pickle", "pkl"), find_layout)


def _torch_dtype(dtype: "torch.dtype | np.dtype[Any]") -> torch.dtype | None:
    """Returns torch's dtype with the same bytes; None if there is none."""
    if isinstance(dtype, torch.dtype):
        return dtype
    return torch_dtype(dtype) if dtype.isnative else None
