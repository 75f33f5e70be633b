"""Containers at the speed of the C unpickler: plain values, and arrays, scalars and tensors inside them.

Only a pickle that `dray.loaders.tame` knows opcode by opcode comes so far. What it names gets a stand-in: an object of
ours whose call checks its arguments as the machine's does. An array is made by BUILD, which would call numpy's own
method with whatever a pickle holds; so it is a stand-in until BUILD has come, and is put into its place at the end. That
last pass also sees every value: one of a type that is not expected leaves the pickle to `dray.loaders.unpickle`.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch

from dray.loaders.safe_arrays import ARRAY_FUNCTIONS, check_extent
from dray.loaders.safe_globals import PLAIN_TYPES, require
from dray.loaders.safe_tensors import TENSOR_FUNCTIONS
from dray.loaders.tame import is_tame


class LeftError(Exception):
    """The value is not of a kind that is read here."""


def read(data: bytes | memoryview) -> Any:
    """The value of a pickle, equal to what the unpickler gives.

    Raises:
        LeftError: It is not one for this file; nothing but its opcodes was looked at.
        Exception: It is not sound; the unpickler tells why.
    """
    if not is_tame(data):
        raise LeftError
    unpickler = _Unpickler(_Whole(data))
    value = unpickler.load()
    return _settled(value, {}) if unpickler.named else value


class _Whole:
    """A file that is one buffer: the C unpickler takes all of it at once, without a copy."""

    __slots__ = ("_data",)

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data

    def peek(self, _: int) -> bytes | memoryview:
        return self._data

    def read(self, _: int) -> bytes:
        return b""

    def readline(self) -> bytes:
        return b""

    def readinto(self, _: Any) -> int:
        return 0


class _Unpickler(pickle.Unpickler):
    """The C unpickler, which finds nothing but stand-ins."""

    named = False

    def find_class(self, module: str, name: str) -> Any:
        self.named = True
        return _NAMES[module, name]


# ---- stand-ins ----


class _Inert:
    """No attribute can be set, BUILD does nothing, and it is no key."""

    __slots__ = ()
    __hash__: ClassVar[None]  # type: ignore[assignment]

    def __eq__(self, _: object) -> bool:
        raise LeftError

    def __setstate__(self, _: Any) -> None:
        raise LeftError


def _stand_in(call: Callable[..., Any]) -> Any:
    """An object that can be called, and nothing else."""
    return type("_StandIn", (_Inert,), {"__slots__": (), "__call__": lambda _, *arguments: call(*arguments)})()


class _Dtype(_Inert):
    """A dtype on its way: known when BUILD has told its byte order."""

    __slots__ = ("code", "dtype")

    def __init__(self, code: Any, *flags: Any) -> None:
        if type(code) is not str or flags != (False, True) or not all(type(flag) is bool for flag in flags):
            raise LeftError
        self.code, self.dtype = code, _DTYPES.get((code, "|"))

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 8 or state[2:] != _PLAIN_STATE or type(state[1]) is not str:
            raise LeftError
        self.dtype = _DTYPES[self.code, state[1]]


_PLAIN_STATE = (None, None, None, -1, -1, 0)
_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
_DTYPES = {(code, order): np.dtype(order + code) for code in _CODES for order in ("|" if code[1:] == "1" else "<>")}


def _known(dtype: Any) -> "np.dtype[Any]":
    if type(dtype) is not _Dtype or dtype.dtype is None:
        raise LeftError
    return dtype.dtype  # type: ignore[no-any-return]


class _Array(_Inert):
    """An array on its way."""

    __slots__ = ("array",)

    def __init__(self, kind: Any, shape: Any, code: Any) -> None:
        if kind is not _NDARRAY or shape != (0,) or code != b"b":
            raise LeftError
        self.array: np.ndarray[Any, Any] | None = None

    def __setstate__(self, state: Any) -> None:
        version, shape, given, fortran, content = state
        dtype = _known(given)
        require(type(version) is int and version == 1 and type(fortran) is bool, "the state of an array in version 1")
        require(type(content) is bytes and self.array is None, "the bytes of an array")
        check_extent(dtype, shape, len(content))
        _check_shape(shape)
        array = np.ndarray((0,), "b")
        array.__setstate__((1, shape, dtype, fortran, content))  # type: ignore[attr-defined]
        self.array = array


def _check_shape(shape: Any) -> None:
    """Leave shapes that could be anything, as there is no element: the memo may make keys of them."""
    if len(shape) > 1 and 0 in shape:
        raise LeftError


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    array = ARRAY_FUNCTIONS["numpy._core.numeric._frombuffer"].call(content, _known(dtype), shape, order)
    _check_shape(shape)
    return array


def _scalar(dtype: Any, content: Any) -> Any:
    known = _known(dtype)
    if known.kind == "c":  # the hash of a complex number can be chosen
        raise LeftError
    return ARRAY_FUNCTIONS["numpy._core.multiarray.scalar"].call(known, content)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any) -> torch.Tensor:
    tensor: torch.Tensor = TENSOR_FUNCTIONS["torch._utils._rebuild_tensor_v2"].call(
        storage, offset, size, stride, requires_grad, hooks
    )
    _check_shape(size)
    return tensor


_NDARRAY = _Inert()
_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _stand_in(_Dtype),
    ("collections", "OrderedDict"): _stand_in(PLAIN_TYPES["collections.OrderedDict"].call),
    ("torch.storage", "_load_from_bytes"): _stand_in(TENSOR_FUNCTIONS["torch.storage._load_from_bytes"].call),
    ("torch._utils", "_rebuild_tensor_v2"): _stand_in(_tensor),
    **{
        (f"{root}.{module}", name): _stand_in(call)
        for root in ("numpy.core", "numpy._core")
        for module, name, call in (
            ("multiarray", "_reconstruct", _Array),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}

# ---- the last pass ----

_KEYS = frozenset((str, bytes, int, float, bool, type(None)))
_WHOLE = _KEYS | {bytearray, torch.Tensor, np.ndarray} | {dtype.type for dtype in _DTYPES.values() if dtype.kind != "c"}
_MAX_DEPTH = 100
_Seen = dict[int, tuple[Any, Any]]  # id -> the container (held, so that no other gets its id) and what became of it


def _settled(value: Any, seen: _Seen, depth: int = 0) -> Any:
    """The value with arrays in the places of their stand-ins; LeftError where anything else would be left in it."""
    kind = type(value)
    if kind in _WHOLE:
        return value
    if kind is _Array and value.array is not None:
        return value.array
    settle = _CONTAINERS.get(kind)
    if settle is None or depth > _MAX_DEPTH:
        raise LeftError
    if id(value) not in seen:
        seen[id(value)] = value, LeftError
        seen[id(value)] = value, settle(value, seen, depth + 1)
    found = seen[id(value)][1]
    if found is LeftError:  # it holds itself, through a tuple
        raise LeftError
    return found


def _settled_list(value: list[Any], seen: _Seen, depth: int) -> list[Any]:
    seen[id(value)] = value, value
    if not _WHOLE.issuperset(map(type, value)):
        value[:] = [_settled(item, seen, depth) for item in value]
    return value


def _settled_tuple(value: tuple[Any, ...], seen: _Seen, depth: int) -> tuple[Any, ...]:
    if _WHOLE.issuperset(map(type, value)):
        return value
    return tuple([_settled(item, seen, depth) for item in value])


def _settled_dict(value: dict[Any, Any], seen: _Seen, depth: int) -> dict[Any, Any]:
    seen[id(value)] = value, value
    _settled_set(value, seen, depth)
    for key, item in value.items():
        if type(item) not in _WHOLE:
            value[key] = _settled(item, seen, depth)
    return value


def _settled_set(value: Any, _: _Seen, __: int) -> Any:
    if not _KEYS.issuperset(map(type, value)):
        raise LeftError
    return value


_CONTAINERS: dict[type, Callable[[Any, _Seen, int], Any]] = {
    list: _settled_list,
    tuple: _settled_tuple,
    dict: _settled_dict,
    OrderedDict: _settled_dict,
    set: _settled_set,
}
