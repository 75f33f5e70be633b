"""Containers at the speed of the C unpickler: plain values, and arrays, scalars and tensors inside them.

`pickles.scan` has read every opcode before: a pickle that names nothing goes to `pickle.loads`, and one that holds
arrays or tensors, just as numpy and torch write them, to a C unpickler that finds the names of one table and imports
nothing. For numpy these are numpy's own makers, as each of their arguments has been seen to be right; for torch they
are functions of ours, which look again. Nothing in the table can be changed by what a pickle holds. A single tensor or
array is for `pickles.layout`. All else is left to `pickles.unpickle`, and so is everything where the
scan could not be compiled.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pickle import loads as load_plain
from typing import Any

import numpy as np

from dray.shards.codecs.pickles import layout as fast_tensor
from dray.shards.codecs.pickles.torch_names import TENSOR_FUNCTIONS

try:
    from dray.shards.codecs.pickles.scan import LONE, PLAIN, TAME, WILD, scan
except ImportError:  # dray was installed without a C compiler: every pickle is wild
    WILD, PLAIN, TAME, LONE, scan = 0, 1, 2, 3, lambda _: 0  # type: ignore[misc]

LEFT = object()
"""What `read` gives for a pickle that it leaves to the unpickler."""


_SMALL_BYTES = 64 << 10
_MAX_KEPT_BYTES = 16 << 20
_kept: list[bytearray] = []  # memory for copies: one for each thread that ever needed it at the same time


def read(data: bytes | memoryview) -> Any:
    """The value of a pickle, equal to what the unpickler gives; LEFT where it is wild, or not sound."""
    try:
        if isinstance(data, memoryview) and type(data.obj) is not bytes:
            if len(data) > _SMALL_BYTES:
                return _read_large(data)
            data = bytes(data)  # who writes to a mapped file, say, must not change what has been scanned
        kind = scan(data)
        if kind == PLAIN:
            return load_plain(data)  # noqa: S301  it names nothing
        if kind == TAME:
            return _Unpickler(_Whole(data)).load()
        found = fast_tensor.read(data)
        if found is None and kind == LONE:
            return _Unpickler(_Whole(data)).load()
        return LEFT if found is None else found
    except Exception:  # noqa: BLE001  the unpickler tells why
        return LEFT


def _read_large(data: memoryview) -> Any:
    """The same from what may change: by a copy, in memory that is used again, as fresh pages cost more than copying."""
    kind = scan(data)
    found = fast_tensor.read(data) if kind in (WILD, LONE) else None
    if found is not None or kind == WILD:
        return LEFT if found is None else found
    copied = _kept.pop() if _kept else bytearray()
    if len(copied) < len(data):
        copied = bytearray(len(data))
    fixed = memoryview(copied)[: len(data)]
    try:
        fixed[:] = data
        return LEFT if scan(fixed) == WILD else _Unpickler(_Whole(fixed)).load()
    finally:
        if len(copied) <= _MAX_KEPT_BYTES:
            _kept.append(copied)


class _Whole:
    """A file that is one buffer, which the C unpickler takes at once, without a copy; behind it there is nothing."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data

    def peek(self, _: int) -> bytes | memoryview:
        data, self._data = self._data, b""  # given a second time, it would be read as what follows
        return data

    def read(self, _: int) -> bytes:
        return b""

    def readline(self) -> bytes:
        return b""

    def readinto(self, _: Any) -> int:
        return 0


class _Unpickler(pickle.Unpickler):
    """The C unpickler, which finds nothing but what is in the table."""

    def find_class(self, module: str, name: str) -> Any:
        return _NAMES[module, name]


# ---- the table: built-in types and functions, and instances without attributes ----


def _function(call: Callable[..., Any]) -> Any:
    """An object that can be called; a function itself has attributes, which could be set."""
    return type("_Function", (), {"__slots__": (), "__call__": staticmethod(call)})()


def _from_buffer(content: bytes | bytearray, dtype: "np.dtype[Any]", shape: tuple[int, ...], order: Any) -> Any:
    return np.frombuffer(content, dtype).reshape(shape, order=order)


_NUMPY: dict[tuple[str, str], Any] = {  # numpy's own, wherever this version keeps them
    ("multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("multiarray", "scalar"): np.float32(0).__reduce__()[0],
    ("numeric", "_frombuffer"): _function(_from_buffer),
}
_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    **{(f"numpy.{core}.{module}", name): _NUMPY[module, name] for core in ("core", "_core") for module, name in _NUMPY},
    ("collections", "OrderedDict"): OrderedDict,
    ("torch.storage", "_load_from_bytes"): _function(TENSOR_FUNCTIONS["torch.storage._load_from_bytes"].call),
    ("torch._utils", "_rebuild_tensor_v2"): _function(TENSOR_FUNCTIONS["torch._utils._rebuild_tensor_v2"].call),
    ("_codecs", "encode"): str.encode,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # what Python 2 called the module, and protocol 2 still does
    ("__builtin__", "bytes"): bytes,
}
