"""Packs values for the way from a worker to the trainer: a short pickle, and buffers in shared memory that it names.

torch would pass each tensor by a file descriptor, which is slow and blocks a worker that runs out of descriptors, and
would pickle all other values. Here lists, tuples and dicts are taken apart, and the values at the same place in each
are packed together as a column: tensors and arrays of one dtype and shape become one, bytes of any sizes are joined.
All of these share one buffer, except tensors that were made in a buffer: these are not copied.
"""

import ctypes
import pickle
from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from dray.loaders.workers.shared_memory import Handle, ReceiveBuffers, SendBuffers

ALIGN_BYTES = 64
MIN_BYTES = 4 << 10  # smaller columns of bytes are pickled

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # as in malloc.h

_BYTES = (bytes, bytearray, memoryview)
_UNPICKLED = {torch.Tensor, np.ndarray, dict, list, tuple, *_BYTES}  # all other types are pickled

Memory = Sequence[torch.Tensor]  # (n,) uint8 each


class Packed(NamedTuple):
    """Packed values."""

    pickled: bytes  # the column of the values
    handles: list[Handle | None]  # handles of the buffers that it names; the shared buffer comes first
    gone: list[int]  # numbers of buffers that will not be used again


def pack(values: list[Any], buffers: SendBuffers) -> Packed:
    """Returns the values packed into few objects; `unpack` restores values of the same types.

    Values that do not consist of elements alone are pickled: sparse and quantized tensors, tensors with a gradient or
    on a device, arrays of objects, and all types other than tensors, arrays, bytes, lists, tuples and dicts.

    Args:
        values: Batches, or outputs of pipelines.
        buffers: The worker's buffers.
    """
    packing = _Packing(buffers)
    pickled = pickle.dumps(packing.column(values), pickle.HIGHEST_PROTOCOL)
    return Packed(pickled, packing.handles(), buffers.gone())


def unpack(packed: Packed, buffers: ReceiveBuffers) -> list[Any]:
    """Returns the values that were packed; tensors, arrays and memoryviews are views of the buffers."""
    buffers.forget(packed.gone)
    memory = [
        torch.empty(0, dtype=torch.uint8) if handle is None else buffers.open(handle) for handle in packed.handles
    ]
    column: _Column = pickle.loads(packed.pickled)  # noqa: S301  this loader's worker made it
    return column.values(memory)


class _Column(Protocol):
    """Values that are packed together."""

    def values(self, memory: Memory) -> list[Any]:
        """Returns the values, read from the buffers of `Packed.handles`."""
        ...


class _Pickled(NamedTuple):
    """Values that are pickled."""

    items: list[Any]

    def values(self, memory: Memory) -> list[Any]:  # noqa: ARG002
        return self.items


class _Single(NamedTuple):
    """Values of different types or forms, each in a column of its own."""

    columns: list[_Column]

    def values(self, memory: Memory) -> list[Any]:
        return [value for column in self.columns for value in column.values(memory)]


class _Rows(NamedTuple):
    """Tensors or arrays of one dtype and shape."""

    kind: type
    buffer: int
    offset: int  # in bytes
    dtype: Any
    shape: tuple[int, ...]  # starts with the number of values

    def values(self, memory: Memory) -> list[Any]:
        end = self.offset + prod(self.shape) * self.dtype.itemsize
        rows = _viewed(memory[self.buffer][self.offset : end], self.kind, self.dtype, self.shape)
        if self.kind is torch.Tensor:
            return [rows[row] for row in range(len(rows))]
        return [rows[row, ...] for row in range(len(rows))]  # not a scalar where the shape is ()


class _Bytes(NamedTuple):
    """Bytes, joined."""

    kind: type
    offset: int
    sizes: list[int]

    def values(self, memory: Memory) -> list[Any]:
        _keep_freed_memory()
        view, start, found = memory[0].numpy().data, self.offset, []
        for size in self.sizes:
            found.append(self.kind(view[start : start + size]))
            start += size
        return found


class _Lists(NamedTuple):
    """Lists or tuples: one column for the items of each."""

    kind: type
    columns: list[_Column]

    def values(self, memory: Memory) -> list[Any]:
        return [_made(self.kind, column.values(memory)) for column in self.columns]


class _Table(NamedTuple):
    """Dicts with the same names, or lists or tuples of one length: one column for each place in them."""

    kind: type
    names: list[Any]  # names in each dict
    columns: list[_Column]

    def values(self, memory: Memory) -> list[Any]:
        rows = zip(*(column.values(memory) for column in self.columns), strict=True)
        if self.kind is dict:
            return [dict(zip(self.names, row, strict=True)) for row in rows]
        return [_made(self.kind, row) for row in rows]


class _Packing:
    """Packs columns. It is a class, as a nested recursive function would be a cycle that keeps tensors for long."""

    def __init__(self, buffers: SendBuffers) -> None:
        self._buffers = buffers
        self._sent: list[Handle] = []
        self._joined: list[tuple[int, Sequence[Any]]] = []  # contents of the shared buffer, by offset
        self._num_bytes = 0

    def handles(self) -> list[Handle | None]:
        """Fills the shared buffer and returns the handles of all buffers."""
        if not self._num_bytes:
            return [None, *self._sent]
        shared = self._buffers.take(self._num_bytes)
        for offset, values in self._joined:
            _copy(values, shared[offset:])
        return [self._buffers.send(shared), *self._sent]

    def column(self, values: Sequence[Any]) -> _Column:
        """Returns the column of some values."""
        kinds = set(map(type, values))
        if not any(kind in _UNPICKLED or _is_named_tuple(kind) for kind in kinds):
            return _Pickled(list(values))
        kind = kinds.pop()
        if kinds:
            return self._single(values)
        if kind is dict:
            return self._dicts(values)
        if kind in _BYTES:
            return self._bytes(kind, values)
        return self._numeric(kind, values) if kind in (torch.Tensor, np.ndarray) else self._lists(kind, values)

    def _single(self, values: Sequence[Any]) -> _Column:
        return _Single([self.column([value]) for value in values])

    def _dicts(self, values: Sequence[dict[Any, Any]]) -> _Column:
        names = list(values[0])
        if any(list(value) != names for value in values):
            return self._single(values)
        if not names:
            return _Pickled(list(values))
        return _Table(dict, names, [self.column([value[name] for value in values]) for name in names])

    def _lists(self, kind: type, values: Sequence[Sequence[Any]]) -> _Column:
        """Returns as few columns as possible: one for each list, or one for each place in them."""
        sizes = set(map(len, values))
        if len(sizes) > 1 or len(values) == 1 or not 0 < sizes.pop() <= len(values):
            return _Lists(kind, [self.column(value) for value in values])
        return _Table(kind, [], [self.column(items) for items in zip(*values, strict=True)])

    def _bytes(self, kind: type, values: Sequence[Any]) -> _Column:
        num_bytes = sum(map(len, values))
        is_view = kind is memoryview
        if (num_bytes < MIN_BYTES and not is_view) or (is_view and not all(map(_is_flat, values))):
            return _Pickled(list(values))
        _keep_freed_memory()
        return _Bytes(kind, self._join(values, num_bytes), list(map(len, values)))

    def _numeric(self, kind: type, values: Sequence[Any]) -> _Column:
        first, count = values[0], len(values)
        if not _can_stack(values):
            return _Pickled(list(values)) if count == 1 else self._single(values)
        shape = (count, *first.shape)
        if kind is torch.Tensor and self._buffers.holds(first):
            if count > 1:
                return self._single(values)
            if handle := self._buffers.send(first):
                self._sent.append(handle)
                return _Rows(kind, len(self._sent), 0, first.dtype, shape)
        return _Rows(kind, 0, self._join(values, count * first.nbytes), first.dtype, shape)

    def _join(self, values: Sequence[Any], num_bytes: int) -> int:
        """Returns the offset at which values will be in the shared buffer."""
        if not num_bytes:
            return 0
        offset = self._num_bytes
        self._joined.append((offset, values))
        self._num_bytes += -(-num_bytes // ALIGN_BYTES) * ALIGN_BYTES
        return offset


@cache
def _keep_freed_memory() -> None:
    """Let glibc keep freed memory rather than return it at once: for large bytes, fresh pages cost more than copying.

    These are the thresholds that glibc reaches by itself in a process that frees large blocks; some libraries fix them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def _is_named_tuple(kind: type) -> bool:
    return kind.__bases__ == (tuple,) and hasattr(kind, "_make")


def _made(kind: Any, items: Sequence[Any]) -> Any:
    """Returns a list, a tuple or a named tuple."""
    return kind._make(items) if _is_named_tuple(kind) else kind(items)


def _can_stack(values: Sequence[Any]) -> bool:
    """Returns whether tensors or arrays have one dtype and shape, and consist of their elements alone."""
    dtype, shape = values[0].dtype, values[0].shape
    return all(value.dtype == dtype and value.shape == shape and _is_plain(value) for value in values)


def _is_plain(value: Any) -> bool:
    if type(value) is np.ndarray:
        return not (value.dtype.hasobject or value.flags.fnc)
    is_here = value.layout is torch.strided and value.device.type == "cpu"
    return is_here and not (value.requires_grad or value.is_quantized or value.is_conj() or value.is_neg())


def _is_flat(view: memoryview) -> bool:
    return view.format == "B" and view.ndim == 1 and view.contiguous


def _copy(values: Sequence[Any], memory: torch.Tensor) -> None:
    """Copy the values of a column to the beginning of a buffer, one after another."""
    first = values[0]
    if type(first) in _BYTES:
        view, start = memory.numpy().data, 0
        for value in values:
            view[start : start + len(value)] = value
            start += len(value)
        return
    rows = _viewed(memory[: len(values) * first.nbytes], type(first), first.dtype, (len(values), *first.shape))
    if type(first) is torch.Tensor:
        torch.stack(list(values), out=rows)
        return
    for row, value in enumerate(values):
        rows[row] = value


def _viewed(memory: torch.Tensor, kind: type, dtype: Any, shape: tuple[int, ...]) -> Any:
    """Returns bytes as a tensor or an array."""
    return (memory if kind is torch.Tensor else memory.numpy()).view(dtype).reshape(shape)
