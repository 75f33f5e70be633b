"""Containers at the speed of the C unpickler: plain values, and arrays, scalars and tensors inside them.

`pickles.scan` reads every opcode first. A pickle without names goes to `pickle.loads`. One with arrays or tensors,
exactly as numpy and torch write them, goes to a C unpickler that finds only the names of one table and imports nothing.
For numpy these are numpy's own functions, as the scan has checked each of their arguments; for torch they are functions
of this package, which check again. No pickle can change the table. A single tensor or array is read by
`pickles.layout`, and everything else by `pickles.machine`, as is every pickle if the scan could not be compiled.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pickle import loads as load_without_names
from typing import Any

import numpy as np

from dray.shards.codecs.pickles import layout
from dray.shards.codecs.pickles.compat import make_scalar, reconstruct_array
from dray.shards.codecs.pickles.torch_names import TENSOR_FUNCTIONS

try:
    from dray.shards.codecs.pickles.scan import KNOWN_NAMES, NO_NAMES, SINGLE_ARRAY, UNKNOWN, scan
except ImportError:  # installed without a C compiler
    UNKNOWN, NO_NAMES, KNOWN_NAMES, SINGLE_ARRAY, scan = 0, 1, 2, 3, lambda _: 0  # type: ignore[misc]

NOT_READ = object()
"""Returned by `read` for a pickle that is for `pickles.machine`."""

_SMALL_BYTES = 64 << 10
_MAX_KEPT_BYTES = 16 << 20
_kept: list[bytearray] = []  # buffers for copies, one for each thread that needed one at the same time


def read(data: bytes | memoryview) -> Any:
    """Return the value of a pickle, equal to that of `pickles.machine`; NOT_READ if its form is unknown."""
    try:
        if isinstance(data, memoryview) and type(data.obj) is not bytes:
            if len(data) > _SMALL_BYTES:
                return _read_large(data)
            data = bytes(data)  # a copy: nobody may change the pickle between scan and read
        kind = scan(data)
        if kind == NO_NAMES:
            return load_without_names(data)  # noqa: S301  there are no names in it
        if kind == KNOWN_NAMES:
            return _Unpickler(_Whole(data)).load()
        found = layout.read(data)
        if found is None and kind == SINGLE_ARRAY:
            return _Unpickler(_Whole(data)).load()
        return NOT_READ if found is None else found
    except Exception:  # noqa: BLE001  the machine's error says why
        return NOT_READ


def _read_large(data: memoryview) -> Any:
    """Read from memory that may change, by a copy; its buffer is reused, as fresh pages cost more than copying."""
    kind = scan(data)
    found = layout.read(data) if kind in (UNKNOWN, SINGLE_ARRAY) else None
    if found is not None or kind == UNKNOWN:
        return NOT_READ if found is None else found
    copied = _kept.pop() if _kept else bytearray()
    if len(copied) < len(data):
        copied = bytearray(len(data))
    fixed = memoryview(copied)[: len(data)]
    try:
        fixed[:] = data
        return NOT_READ if scan(fixed) == UNKNOWN else _Unpickler(_Whole(fixed)).load()
    finally:
        if len(copied) <= _MAX_KEPT_BYTES:
            _kept.append(copied)


class _Whole:
    """A file that is one buffer, which the C unpickler takes whole, without a copy."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data

    def peek(self, _: int) -> bytes | memoryview:
        data, self._data = self._data, b""  # returned a second time, it would be read as more input
        return data

    def read(self, _: int) -> bytes:
        return b""

    def readline(self) -> bytes:
        return b""

    def readinto(self, _: Any) -> int:
        return 0


class _Unpickler(pickle.Unpickler):
    """The C unpickler, which finds only the names of the table."""

    def find_class(self, module: str, name: str) -> Any:
        return _NAMES[module, name]


# ---- the table: only built-in types, functions of C, and instances without attributes, which no pickle can change ----


def _function(call: Callable[..., Any]) -> Any:
    """Return a callable without attributes; those of a function could be set."""
    return type("_Function", (), {"__slots__": (), "__call__": staticmethod(call)})()


def _from_buffer(content: bytes | bytearray, dtype: "np.dtype[Any]", shape: tuple[int, ...], order: Any) -> Any:
    return np.frombuffer(content, dtype).reshape(shape, order=order)


_NUMPY: dict[tuple[str, str], Any] = {
    ("multiarray", "_reconstruct"): reconstruct_array,
    ("multiarray", "scalar"): make_scalar,
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
    ("__builtin__", "set"): set,  # the module's name in Python 2, which protocol 2 still writes
    ("__builtin__", "bytes"): bytes,
}
