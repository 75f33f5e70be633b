"""Containers at the speed of the C unpickler: plain values, and arrays, scalars and tensors inside them.

Only a pickle that `dray.loaders.tame` knows opcode by opcode comes so far. What it names gets a stand-in: an object of
ours whose call checks its arguments as the machine's does. An array is made by BUILD, which would call numpy's own
method with whatever a pickle holds; so it is a stand-in until BUILD has come, and is put into its place at the end.
That last pass also sees every value: one of a type that is not expected leaves the pickle to `dray.loaders.unpickle`.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch

from dray.loaders.safe_arrays import ARRAY_FUNCTIONS
from dray.loaders.safe_globals import PLAIN_TYPES, require
from dray.loaders.safe_tensors import TENSOR_FUNCTIONS
from dray.loaders.tame import is_tame


class _LeftError(Exception):
    """The value is not of a kind that is read here."""


LEFT = object()
"""What `read` gives for a pickle that it leaves to the unpickler."""


def read(data: bytes | memoryview) -> Any:
    """The value of a pickle, equal to what the unpickler gives; LEFT where the pickle is not tame, or not sound."""
    if not is_tame(data):
        return LEFT
    try:
        unpickler = _Unpickler(_Whole(data))
        value = unpickler.load()
        return _settled(value, {}) if unpickler.named else value
    except Exception:  # noqa: BLE001  the unpickler tells why
        return LEFT


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
    """The C unpickler, which finds nothing but stand-ins."""

    named = False

    def find_class(self, module: str, name: str) -> Any:
        self.named = True
        return _NAMES[module, name]


# ---- stand-ins ----


class _Inert:
    """No attribute can be set, BUILD does nothing, and it is no key."""

    __slots__ = ()

    def __eq__(self, _: object) -> bool:
        raise _LeftError

    def __setstate__(self, _: Any) -> None:
        raise _LeftError


def _stand_in(call: Callable[..., Any]) -> Any:
    """An object that can be called, and nothing else; `call` gets it as the first argument."""
    return type("_StandIn", (_Inert,), {"__slots__": (), "__call__": call})()


def _of_machine(found: Any) -> Any:
    """A stand-in that does what the machine's does."""
    return _stand_in(lambda _, *arguments: found.call(*arguments))


class _Dtype(_Inert):
    """A dtype on its way: known when BUILD has told its byte order."""

    __slots__ = ("code", "dtype")
    code: str
    dtype: "np.dtype[Any] | None"

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 8 or type(state[1]) is not str or state[2:] != _PLAIN_STATE:
            raise _LeftError
        self.dtype = _DTYPES[self.code, state[1]]


def _new_dtype(_: Any, code: Any, swapped: Any, copied: Any) -> _Dtype:
    if type(code) is not str or swapped is not False or copied is not True:
        raise _LeftError
    made = _Dtype()
    made.code, made.dtype = code, None
    return made


_PLAIN_STATE = (None, None, None, -1, -1, 0)
_CODES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16")
_DTYPES = {(code, order): np.dtype(order + code) for code in _CODES for order in ("|" if code[1:] == "1" else "<>")}


class _Array(_Inert):
    """An array on its way: there when BUILD has told all of it."""

    __slots__ = ("array",)
    array: "np.ndarray[Any, Any] | None"

    def __setstate__(self, state: Any) -> None:
        version, shape, given, fortran, content = state
        dtype = _known(given)
        require(type(version) is int and version == 1 and type(fortran) is bool, "the state of an array in version 1")
        require(type(content) is bytes and self.array is None, "the bytes of an array")
        _check_shape(shape)
        require(prod(shape) * dtype.itemsize == len(content), "as many bytes as dtype and shape tell")
        array: Any = np.ndarray((0,), "b")
        array.__setstate__((1, shape, dtype, fortran, content))
        self.array = array


def _new_array(_: Any, kind: Any, shape: Any, code: Any) -> _Array:
    if kind is not _NDARRAY or shape != (0,) or code != b"b":
        raise _LeftError
    made = _Array()
    made.array = None
    return made


def _known(dtype: Any) -> "np.dtype[Any]":
    if type(dtype) is not _Dtype or dtype.dtype is None:
        raise _LeftError
    return dtype.dtype


def _check_shape(shape: Any) -> None:
    """Leave what is no shape, and those of nothing that could be any: the memo may make keys of them."""
    if type(shape) is not tuple or not _INTS.issuperset(map(type, shape)) or min(shape, default=1) < (len(shape) != 1):
        raise _LeftError


_INTS = frozenset((int,))


def _from_buffer(_: Any, content: Any, dtype: Any, shape: Any, order: Any) -> Any:
    _check_shape(shape)
    return ARRAY_FUNCTIONS["numpy._core.numeric._frombuffer"].call(content, _known(dtype), shape, order)


def _scalar(_: Any, dtype: Any, content: Any) -> Any:
    known = _known(dtype)
    if known.kind == "c":  # the hash of a complex number can be chosen
        raise _LeftError
    return ARRAY_FUNCTIONS["numpy._core.multiarray.scalar"].call(known, content)


def _tensor(_: Any, storage: Any, offset: Any, size: Any, stride: Any, gradient: Any, hooks: Any) -> torch.Tensor:
    _check_shape(size)
    tensor: torch.Tensor = TENSOR_FUNCTIONS["torch._utils._rebuild_tensor_v2"].call(
        storage, offset, size, stride, gradient, hooks
    )
    return tensor


_NDARRAY = _Inert()
_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _stand_in(_new_dtype),
    ("collections", "OrderedDict"): _of_machine(PLAIN_TYPES["collections.OrderedDict"]),
    ("torch.storage", "_load_from_bytes"): _of_machine(TENSOR_FUNCTIONS["torch.storage._load_from_bytes"]),
    ("torch._utils", "_rebuild_tensor_v2"): _stand_in(_tensor),
    **{
        (f"{root}.{module}", name): _stand_in(call)
        for root in ("numpy.core", "numpy._core")
        for module, name, call in (
            ("multiarray", "_reconstruct", _new_array),
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
    """The value with arrays in the places of their stand-ins; _LeftError where anything else would be left in it."""
    kind = type(value)
    if kind in _WHOLE:
        return value
    if kind is _Array and value.array is not None:
        return value.array
    settle = _CONTAINERS.get(kind)
    if settle is None or depth > _MAX_DEPTH:
        raise _LeftError
    if id(value) not in seen:
        seen[id(value)] = value, _LeftError
        seen[id(value)] = value, settle(value, seen, depth + 1)
    found = seen[id(value)][1]
    if found is _LeftError:  # it holds itself, through a tuple
        raise _LeftError
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
        kind = type(item)
        if kind is _Array and item.array is not None:
            value[key] = item.array
        elif kind not in _WHOLE:
            value[key] = _settled(item, seen, depth)
    return value


def _settled_set(value: Any, _: _Seen, __: int) -> Any:
    if not _KEYS.issuperset(map(type, value)):
        raise _LeftError
    return value


_CONTAINERS: dict[type, Callable[[Any, _Seen, int], Any]] = {
    list: _settled_list,
    tuple: _settled_tuple,
    dict: _settled_dict,
    OrderedDict: _settled_dict,
    set: _settled_set,
}
