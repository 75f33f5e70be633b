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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dray.loaders import fast_tensor
from dray.loaders.buffers import Buffers

Part = bytes | memoryview

LARGE_BYTES = 64 << 10  # parts of this size are worth a thread each
_NPY_HEADER_BYTES = 10_000  # numpy reads no longer one


@dataclass(frozen=True, slots=True, eq=False)
class Kind:
    """What parts that are alike have in common.

    Attributes:
        start: Of the elements, in bytes.
        stop: Their end.
        dtype: Of the tensor.
        shape: Of one part's.
        around: The bytes before and after the elements.
        is_fixed: (n,) which of them are the same in every part; None: all.
        names: Two slices of them with the same digits, whatever they are.
    """

    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    around: NDArray[np.uint8]
    is_fixed: NDArray[np.bool_] | None
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
        is_fixed = None
        if layout.names is not None:
            is_fixed = np.ones(len(around), bool)
            for name in layout.names:
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
        if self.names is None or self.is_fixed is None:
            return bool((around == self.around).all())
        first, second = (around[:, name] for name in self.names)
        is_same = (around == self.around) | ~self.is_fixed
        return bool(is_same.all() and (first == second).all() and (first - ord("0") < 10).all())


class Stacker:
    """Makes tensors of parts that are alike; it remembers their kinds.

    Args:
        buffers: The memory for large ones.
        num_threads: That copy these.
    """

    def __init__(self, buffers: Buffers, num_threads: int) -> None:
        self._kinds: dict[tuple[str, int], Kind] = {}  # by suffix and size of a part
        self._buffers, self._num_threads = buffers, num_threads

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
        self._kinds[suffix, size] = new
        return new

    def stack(self, parts: Sequence[Part | None], kinds: Sequence[Kind | None]) -> torch.Tensor | None:
        """(n, ...) the elements of n parts; None unless all have kinds of the same dtype and shape."""
        first = kinds[0]
        if first is None:
            return None
        if kinds.count(first) == len(kinds):
            start, stop = first.start, first.stop
            pieces = [part[start:stop] for part in parts if part is not None]
        elif all(kind and kind.dtype == first.dtype and kind.shape == first.shape for kind in kinds):
            where = zip(parts, kinds, strict=True)
            pieces = [part[kind.start : kind.stop] for part, kind in where if part is not None and kind]
        else:
            return None
        if len(pieces[0]) < LARGE_BYTES:
            elements = torch.frombuffer(bytearray().join(pieces), dtype=first.dtype)
        else:
            elements = self._copied(pieces).view(first.dtype)
        return elements.view(len(pieces), *first.shape)

    def _copied(self, pieces: Sequence[Part]) -> torch.Tensor:
        """(n * size,) uint8, the bytes of n large pieces of one size."""
        num_bytes = len(pieces) * len(pieces[0])
        elements = self._buffers.take(num_bytes)
        rows = elements.numpy().reshape(len(pieces), -1)

        def copy(numbers: range) -> None:
            for row in numbers:
                rows[row] = np.frombuffer(pieces[row], np.uint8)

        in_threads(copy, len(pieces), self._num_threads)
        return elements


def in_threads(work: Callable[[range], None], count: int, num_threads: int) -> None:
    """Do some work for the numbers below `count`, an equal run of them in each of so many threads."""
    runs = [range(count * part // num_threads, count * (part + 1) // num_threads) for part in range(num_threads)]
    others = [_pool(os.getpid(), num_threads - 1).submit(work, run) for run in runs[1:] if run]
    work(runs[0])
    for other in others:
        other.result()


@lru_cache(1)
def _pool(_process: int, num_threads: int) -> ThreadPoolExecutor:
    """The threads of this process: those of a forked one's parent are not there."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="dray-copy")


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


@lru_cache(64)
def _torch_dtype(dtype: "torch.dtype | np.dtype[Any]") -> torch.dtype | None:
    """The same dtype of torch; None where torch has none."""
    if isinstance(dtype, torch.dtype):
        return dtype
    try:
        return torch.from_numpy(np.empty(0, dtype)).dtype
    except TypeError:
        return None
