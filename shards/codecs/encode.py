"""From a value to the bytes of a part that is no pickle: `.npy`, `.safetensors`, `.json`. Same value, same bytes.

Each format takes only what its reader gives back as it was: dtype, shape and every element, or every plain value and
its type. What a layout in memory does not tell anybody is not kept: strides, byte order (it becomes little-endian),
`requires_grad`. All bytes are laid out here, not by numpy or safetensors: theirs differ from version to version, and
`np.save` takes ten times as long. Importing this module loads torch.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import NoneType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

MAX_DEPTH = 100  # of lists and dicts in each other: any JSON reader takes so many
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1  # what every JSON reader takes exactly is one of these two kinds of 64 bits

Array = NDArray[Any]


class UnfitError(ValueError):
    """A format cannot hold a value exactly; the message says why, as the end of `X cannot hold it: ...`."""


# ---- .npy ----

_NPY_OF_TORCH = {
    dtype: np.dtype(name)
    for name in ("?", "u1", "i1", "<i2", "<i4", "<i8", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16")
    for dtype in [torch.from_numpy(np.empty(0, name)).dtype]
}
_NPY_DTYPES = frozenset(_NPY_OF_TORCH.values())
_ALIGN = 64  # bytes; a part begins at a multiple of 512, so the elements begin at one of 64


def as_npy(value: Any, most_bytes: int) -> bytes:
    """A tensor, an array or a numpy scalar in format 1.0 of `.npy`: its elements in C order, little-endian.

    Args:
        value: Whatever it is.
        most_bytes: That the elements may take.

    Raises:
        UnfitError: It is something else, its dtype is not one that numpy reads without pickle, or it is too large.
    """
    if isinstance(value, torch.Tensor):
        _check_dense(value)
        if value.dtype not in _NPY_OF_TORCH:
            raise UnfitError(f"numpy has no dtype for {value.dtype}")
        _check_size(value.numel() * value.itemsize, most_bytes)
        array = value.numpy(force=True)
    elif _is_array(value):
        _check_size(value.nbytes, most_bytes)
        array = _little_endian(value)
        if array.dtype not in _NPY_DTYPES and not _is_text_or_time(value):
            raise UnfitError(f"{_name(value)} of dtype {value.dtype} would not come back as it was")
    else:
        raise UnfitError(f"{_name(value)} is no tensor and no array")
    return _npy_header(array.dtype, array.shape) + array.tobytes()


def npy_around(data: memoryview, dtype: "torch.dtype | np.dtype[Any]", shape: tuple[int, ...]) -> bytes | None:
    """The same of elements that lie in order already; None where numpy has no such dtype."""
    found = _NPY_OF_TORCH.get(dtype) if isinstance(dtype, torch.dtype) else dtype
    return None if found is None else _npy_header(found, shape) + data


@lru_cache(1024)
def _npy_header(dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> bytes:
    """Magic, version, length and description, padded with blanks so that the elements that follow are aligned."""
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    text += b" " * (-(10 + len(text) + 1) % _ALIGN) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _is_array(value: Any) -> bool:
    """Whether it is an array or a scalar of numpy's own."""
    return type(value) is np.ndarray or (isinstance(value, np.generic) and type(value) is value.dtype.type)


def _is_text_or_time(value: Any) -> bool:
    """Of a dtype that numpy reads without pickle though torch lacks it; a scalar would come back as an array."""
    return type(value) is np.ndarray and value.dtype.kind in "SUMm" and value.itemsize > 0


def _little_endian(value: Any) -> Array:
    """An array in the byte order that is native everywhere by now."""
    array = np.asarray(value)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("<"))


# ---- .safetensors ----

_SAFETENSORS = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
_SAME_SIZE = {1: torch.uint8, 2: torch.int16}  # what numpy reads the bits of a dtype that it lacks as
_SAFETENSORS_OF_NUMPY = {_NPY_OF_TORCH[dtype]: name for dtype, name in _SAFETENSORS.items() if dtype in _NPY_OF_TORCH}


def as_safetensors(value: Any, most_bytes: int) -> bytes:
    """A dict of tensors or of arrays, or one of either, as `.safetensors`.

    A dict of tensors is stored as any writer of the format does it. For the others `__metadata__` has an entry `dray`:
    "arrays" for a dict of numpy arrays, and "tensor" or "array" for a single one, which is stored under that name.

    Args:
        value: Whatever it is.
        most_bytes: That the elements may take.

    Raises:
        UnfitError: It is something else, the format lacks its dtype, or it is too large.
    """
    if isinstance(value, torch.Tensor):
        return _safetensors({"tensor": value}, "tensor", most_bytes)
    if _is_array(value):
        return _safetensors({"array": value}, "array", most_bytes)
    if type(value) is not dict:
        raise UnfitError(f"{_name(value)} is no tensor, no array and no dict of them")
    for name in value:
        _check_text(name, "a name")
        if name == "__metadata__":
            raise UnfitError("the name '__metadata__' is taken")
    if value and all(type(item) is np.ndarray for item in value.values()):
        return _safetensors(value, "arrays", most_bytes)
    for name, item in value.items():
        if not isinstance(item, torch.Tensor):
            raise UnfitError(f"{name!r} in the dict is {_name(item)}: all must be tensors, or all numpy arrays")
    return _safetensors(value, None, most_bytes)


def _safetensors(values: Mapping[str, Any], kind: str | None, most_bytes: int) -> bytes:
    """Header in the order of the dict; elements with the widest dtype first, so that all are aligned."""
    for value in values.values():
        if isinstance(value, torch.Tensor):
            _check_dense(value)  # a sparse one cannot even tell its size
    header: dict[str, Any] = {"__metadata__": {"dray": kind}} if kind else {}
    names = sorted(values, key=lambda name: -values[name].dtype.itemsize)
    _check_size(sum(values[name].nbytes for name in names), most_bytes)
    header |= dict.fromkeys(values)  # their order
    pieces: list[Any] = []
    end = 0
    for name in names:
        dtype, shape, data = _piece(values[name])
        start, end = end, end + len(data)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        pieces.append(data)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *pieces))


def _piece(value: Any) -> tuple[str, list[int], bytes]:
    """Name of the dtype, shape and bytes."""
    if isinstance(value, torch.Tensor):
        name, shape = _SAFETENSORS.get(value.dtype), list(value.shape)
        if name is None:
            raise UnfitError(f"the format has no {value.dtype}")
        plain = value if value.dtype in _NPY_OF_TORCH else value.detach().view(_SAME_SIZE[value.itemsize])
        return name, shape, plain.numpy(force=True).tobytes()
    array = _little_endian(value)
    name = _SAFETENSORS_OF_NUMPY.get(array.dtype)
    if name is None:
        raise UnfitError(f"the format has no {array.dtype}")
    return name, list(array.shape), array.tobytes()


def _check_dense(tensor: torch.Tensor) -> None:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise UnfitError(f"{_name(tensor)} is a kind of tensor of its own")
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise UnfitError(f"the tensor is not dense and on the CPU, but {tensor.layout} on {tensor.device}")


# ---- .json ----


def as_json(value: Any, most_bytes: int) -> bytes:
    """None, numbers, text, and lists and dicts of these, as UTF-8 JSON that reads back as the same.

    Args:
        value: Whatever it is.
        most_bytes: That it may take.

    Raises:
        UnfitError: It is something else, or JSON would change it: a tuple, a key that is no text, NaN, an integer of
            more than 64 bits, half a surrogate pair, None by itself (a reader takes it for "no value").
    """
    if value is None:
        raise UnfitError("None by itself means that there is no value, and readers give the bytes instead")
    _check_plain(value, most_bytes)
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    _check_size(len(data), most_bytes)
    return data


def _check_plain(value: Any, most_values: int) -> None:
    """Refuse what JSON would change. Counts as it goes: a few bytes of pickle hold lists of lists without end."""
    layer: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for item in layer:
            _check_item(item)
            if type(item) in (list, dict):
                most_values -= len(item)
                _check_size(-most_values, 0)
                inner += item if type(item) is list else item.values()
        if not inner:
            return
        layer = inner
    raise UnfitError(f"it is nested more than {MAX_DEPTH} deep")


def _check_item(item: Any) -> None:
    """Refuse one value, whatever it holds."""
    kind = type(item)
    if kind is str:
        _check_text(item, "text")
    elif kind is dict:
        for key in item:
            _check_text(key, "a key")
    elif kind is int:
        if not _MIN_INT <= item <= _MAX_INT:
            raise UnfitError("an integer in it has more than 64 bits")
    elif kind is float:
        if not math.isfinite(item):
            raise UnfitError(f"JSON has no {item}")
    elif kind not in (list, bool, NoneType):
        raise UnfitError(f"{_name(item)} would come back as something else, or not at all")


# ---- what they share ----

FORMATS: Mapping[str, Callable[[Any, int], bytes]] = {"npy": as_npy, "safetensors": as_safetensors, "json": as_json}
"""By extension."""


def format_of(value: Any) -> str:
    """The extension of the format that fits a value best, if any fits it."""
    if isinstance(value, torch.Tensor):
        return "npy" if value.dtype in _NPY_OF_TORCH else "safetensors"
    if isinstance(value, np.ndarray | np.generic):
        return "npy"
    if isinstance(value, dict) and isinstance(next(iter(value.values()), None), torch.Tensor | np.ndarray):
        return "safetensors"
    return "json"


def _check_text(text: Any, what: str) -> None:
    if type(text) is not str:
        raise UnfitError(f"{what} in it is {_name(text)}, not text")
    if not text.isascii() and not _is_utf8(text):
        raise UnfitError(f"{what} in it is no UTF-8: {text!r:.80}")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_size(num_bytes: int, most_bytes: int) -> None:
    if num_bytes > most_bytes:
        raise UnfitError("it would take far more room than its pickle, which holds the same things many times")


def _name(value: Any) -> str:
    """Of a value's type, for messages."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
