"""The common case, read at once: a pickle of one contiguous tensor or one plain numpy array.

Such pickles are the same few hundred bytes around the elements, but for a few numbers. Here all of a pickle is matched
against that layout, and its numbers against its size; then the elements are copied, once. A pickle that deviates by a
byte is left to `pickles.unpickle`. Nothing is read here that it would refuse: the storage is matched by the same
expression, and each opcode of the layout means the same there.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch

from dray.shards.codecs.pickles.stand_ins import MAX_BYTES
from dray.shards.codecs.pickles.torch_names import STORAGE, STORAGE_DTYPES, TENSOR_FUNCTIONS, copy_storage

Shape = tuple[int, ...]

_CPU = torch.device("cpu")
_MAX_END = 1024  # bytes after the elements: less than 800 with 64 dimensions
_HEAD_BYTES = 11  # protocol and the first frame's length, in protocols 4 and 5


@dataclass(frozen=True, slots=True)
class PickleLayout:
    """Where the elements are in a pickle of one contiguous tensor or array, and what they are.

    The value depends on the elements and on the bytes around them, except for `names`, which only have to be the same
    digits in both places.

    Attributes:
        start: Offset of the first byte of the elements.
        stop: Offset behind their last byte.
        dtype: That of the tensor or array.
        shape: That of the tensor or array.
        names: The two places of the storage's name, an address that differs from pickle to pickle; None in arrays.
        is_over_buffer: Whether the array is a view of a bytearray, as in protocol 5.
    """

    start: int
    stop: int
    dtype: "torch.dtype | np.dtype[Any]"
    shape: Shape
    names: tuple[slice, slice] | None = None
    is_over_buffer: bool = False


def read(data: bytes | memoryview) -> "torch.Tensor | np.ndarray[Any, Any] | None":
    """Return the tensor or array, equal to that of the unpickler; None for any other pickle."""
    layout = find_layout(data)
    if layout is None:
        return None
    if isinstance(layout.dtype, torch.dtype):
        tensor = torch.empty(0, dtype=layout.dtype, device=_CPU)
        storage = copy_storage(data, layout.start, layout.stop - layout.start)
        return tensor.set_(storage, 0, layout.shape, _contiguous(layout.shape))
    if layout.is_over_buffer:
        elements = bytearray(memoryview(data)[layout.start : layout.stop])
        return np.frombuffer(elements, layout.dtype).reshape(layout.shape)
    return np.ndarray(layout.shape, layout.dtype, data, layout.start).copy()


def find_layout(data: bytes | memoryview) -> PickleLayout | None:
    """Return where the elements of a tensor or array are; None for any other pickle."""
    if len(data) > MAX_BYTES or sys.byteorder != "little":
        return None
    for head, read_end in _TENSORS:
        if found := head.match(data):
            return _tensor(data, found, read_end)
    for pattern, find_array in _ARRAYS:
        if found := pattern.match(data):
            return find_array(data, found)
    return None


# ---- pieces of a pickle: each starts with its opcode, so there is only one way to match ----

_MEMO = rb"(?:\x94|q.)"  # numbers are ignored, as nothing is read from the memo
_SIZE = rb"(?:K.|M..|J...[\x00-\x7f])"
_TUPLE = rb"\)|%(n)b\x85%(m)b|%(n)b{2}\x86%(m)b|%(n)b{3}\x87%(m)b|\(%(n)b{4,64}t%(m)b" % {b"n": _SIZE, b"m": _MEMO}
_BYTES = rb"(?P<code>C(?P<short>.)|B(?P<long>.{4}))"
_WIDTHS = {ord("K"): 1, ord("M"): 2, ord("J"): 4}


def _name(module: str, attribute: str) -> tuple[bytes, bytes]:
    """Return the opcodes of a global in protocol 3, and in protocols 4 and 5."""
    first, second = module.encode(), attribute.encode()
    return b"c%b\n%b\n" % (first, second), b"\x8c%c%b\x94\x8c%c%b\x94\x93" % (len(first), first, len(second), second)


def _any_of(choices: Any) -> bytes:
    return b"(?:" + b"|".join(map(re.escape, choices)) + b")" + _MEMO


def _numbers(code: bytes) -> Shape:
    """Return the items of a tuple that `_TUPLE` matched."""
    found, at = [], int(code.startswith(b"("))
    while width := _WIDTHS.get(code[at]):
        found.append(int.from_bytes(code[at + 1 : at + 1 + width], "little"))
        at += 1 + width
    return tuple(found)


def _contiguous(size: Shape) -> Shape:
    """Return the stride of a contiguous tensor."""
    return tuple(prod(max(n, 1) for n in size[axis + 1 :]) for axis in range(len(size)))


def _frames_fit(data: bytes | memoryview, first: bytes | None, content: int, second: bytes | None, end: int) -> bool:
    """Whether the frames fit: one around all, one before a large `content` and one from `end` on, or none."""
    if first is None:
        return second is None
    length = len(data) if second is None else content
    return int.from_bytes(first, "little") == length - _HEAD_BYTES and (
        second is None or int.from_bytes(second, "little") == len(data) - end - 9
    )


# ---- tensors ----


@dataclass(frozen=True, slots=True)
class _End:
    """Content of the bytes after the elements."""

    frame: bytes | None
    size: Shape
    stride: Shape
    count: int
    dtype: torch.dtype | None  # None: that of the storage


_DTYPES = {
    code: dtype
    for name, dtype in TENSOR_FUNCTIONS.items()
    if isinstance(dtype, torch.dtype)
    for code in _name(*name.split("."))
}


def _head(function: str) -> "re.Pattern[bytes]":
    called, loaded = _name("torch._utils", function), _name("torch.storage", "_load_from_bytes")
    begin = rb"\x80(?:\x03|[\x04\x05]\x95(?P<frame>.{8}))" + _any_of(called) + rb"\(" + _any_of(loaded)
    return re.compile(begin + _BYTES + STORAGE.pattern, re.DOTALL)


def _end_reader(dtype: bytes) -> Callable[[bytes], _End | None]:
    """Return a function that parses the bytes after the elements; it caches, as a dataset has few different ones."""
    pattern = re.compile(
        rb"(?:\x95(?P<frame>.{8}))?%(m)b\x85%(m)bR%(m)bK\x00(?P<size>%(t)b)(?P<stride>%(t)b)\x89%(o)b\)R%(m)b"
        rb"%(d)bt%(m)bR%(m)b\."
        % {b"m": _MEMO, b"t": _TUPLE, b"o": _any_of(_name("collections", "OrderedDict")), b"d": dtype},
        re.DOTALL,
    )

    @lru_cache(512)
    def read_end(end: bytes) -> _End | None:
        found = pattern.fullmatch(end)
        if found is None:
            return None
        size, stride = _numbers(found["size"]), _numbers(found["stride"])
        if stride != _contiguous(size):
            return None
        return _End(found["frame"], size, stride, prod(size), _DTYPES[found["dtype"]] if dtype else None)

    return read_end


_TENSORS = (
    (_head("_rebuild_tensor_v2"), _end_reader(b"")),
    (_head("_rebuild_tensor_v3"), _end_reader(b"(?P<dtype>" + b"|".join(map(re.escape, _DTYPES)) + b")" + _MEMO)),
)


def _tensor(
    data: bytes | memoryview, found: "re.Match[bytes]", read_end: Callable[[bytes], _End | None]
) -> PickleLayout | None:
    frame, short, long, kind, count = found.group("frame", "short", "long", "kind", "count")
    stored = STORAGE_DTYPES.get(kind)
    if stored is None:
        return None
    num_bytes = int.from_bytes(count, "little", signed=True) * stored.itemsize
    start = found.end()
    stop = start + num_bytes
    if not (num_bytes >= 0 and 0 < len(data) - stop <= _MAX_END):
        return None
    end = read_end(bytes(data[stop:]))
    if (
        end is None
        or int.from_bytes(short or long, "little") != stop - found.end("code")
        or not _frames_fit(data, frame, found.start("code"), end.frame, stop)
    ):
        return None
    dtype = end.dtype or stored
    if end.count * dtype.itemsize != num_bytes:
        return None
    first, second = found.span("key"), found.start("count") - len(b"q\x01a.")
    digits = first[1] - first[0] - len(b"X....")
    return PickleLayout(
        start, stop, dtype, end.size, (slice(first[1] - digits, first[1]), slice(second - digits, second))
    )


# ---- arrays ----


def _dtype_code(dtype: "np.dtype[Any]") -> bytes:
    """Return the opcodes that follow `numpy.dtype` for a plain dtype, in protocols 4 and 5."""
    name = dtype.str[1:].encode()
    order = dtype.str[:1].encode()
    made = b"\x8c%c%b\x94\x89\x88\x87\x94R\x94" % (len(name), name)
    return made + b"(K\x03\x8c\x01" + order + b"\x94NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00t\x94b"


_ARRAY_DTYPES = {
    _dtype_code(dtype): dtype
    for dtype in map(np.dtype, ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"))
}
_ARRAY_FIELDS = {
    b"shape": rb"(?P<shape>%b)" % _TUPLE.replace(_MEMO, rb"\x94"),
    b"dtype": rb"\x8c\x05dtype\x94\x93\x94(?P<dtype>%b)" % b"|".join(map(re.escape, _ARRAY_DTYPES)),
    b"frame": rb"(?:\x95(?P<frame>.{8}))?",
    b"bytes": _BYTES,
}
_FILLED = re.compile(
    rb"\x80[\x04\x05]\x95(?P<frame>.{8})\x8c(?:\x16numpy\._core|\x15numpy\.core)\.multiarray\x94"
    rb"\x8c\x0c_reconstruct\x94\x93\x94\x8c\x05numpy\x94\x8c\x07ndarray\x94\x93\x94K\x00\x85\x94C\x01b\x94\x87\x94R\x94"
    rb"\(K\x01%(shape)bh\x03%(dtype)b\x89%(bytes)b" % _ARRAY_FIELDS,
    re.DOTALL,
)
_FILLED_END = re.compile(rb"%(frame)b\x94t\x94b\." % _ARRAY_FIELDS, re.DOTALL)
_OVER_BUFFER = re.compile(
    rb"\x80\x05\x95(?P<frame>.{8})\x8c(?:\x13numpy\._core|\x12numpy\.core)\.numeric\x94"
    rb"\x8c\x0b_frombuffer\x94\x93\x94\((?P<code>\x96(?P<length>.{8}))",
    re.DOTALL,
)
_OVER_BUFFER_END = re.compile(
    rb"%(frame)b\x94\x8c\x05numpy\x94%(dtype)b%(shape)b\x8c\x01C\x94t\x94R\x94\." % _ARRAY_FIELDS, re.DOTALL
)
_array_shape = lru_cache(512)(_numbers)


def _filled(data: bytes | memoryview, found: "re.Match[bytes]") -> PickleLayout | None:
    """Match an array of protocol 4: created empty, then filled."""
    short, long, start = found["short"], found["long"], found.end()
    num_bytes = int.from_bytes(short or long, "little")
    end = _FILLED_END.fullmatch(data, start + num_bytes)
    if end is None or not _frames_fit(data, found["frame"], found.start("code"), end["frame"], end.start()):
        return None
    dtype, shape = _ARRAY_DTYPES[found["dtype"]], _array_shape(found["shape"])
    if not 0 < num_bytes == prod(shape) * dtype.itemsize:  # numpy chooses the strides of an empty array
        return None
    return PickleLayout(start, start + num_bytes, dtype, shape)


def _over_buffer(data: bytes | memoryview, found: "re.Match[bytes]") -> PickleLayout | None:
    """Match an array of protocol 5: a view of a bytearray."""
    num_bytes, start = int.from_bytes(found["length"], "little"), found.end()
    stop = start + num_bytes
    end = _OVER_BUFFER_END.fullmatch(data, stop) if stop < len(data) else None
    if end is None or not _frames_fit(data, found["frame"], found.start("code"), end["frame"], stop):
        return None
    dtype, shape = _ARRAY_DTYPES[end["dtype"]], _array_shape(end["shape"])
    if not 0 < num_bytes == prod(shape) * dtype.itemsize:
        return None
    return PickleLayout(start, stop, dtype, shape, is_over_buffer=True)


_ARRAYS = ((_FILLED, _filled), (_OVER_BUFFER, _over_buffer))
