"""Stand-ins for the names in pickled numpy arrays, scalars and dtypes.

Bytes become an array only if they have exactly the size that dtype and shape require. Dtypes may be numbers, text,
times, objects (whose items are values of the safe list) and flat structures of numbers and text.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dray.shards.codecs.pickles.compat import make_scalar
from dray.shards.codecs.pickles.stand_ins import MAX_BYTES, Global, require, shape_product

_DTYPE_CODE = re.compile(r"b1|[iu][1248]|f(2|4|8|12|16)|c(8|16|24|32)|[SUV]\d{1,9}|O8|[Mm]8")
_TIME_UNIT = re.compile(rb"Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as")
_ALIGNED_STRUCT = 0x80  # numpy's flag of a dtype made with align=True


def _dtype(code: str, *_flags: Any) -> "np.dtype[Any]":
    """Return a new dtype object in native byte order; BUILD then sets order, unit or fields."""
    require(type(code) is str and _DTYPE_CODE.fullmatch(code) is not None, "a plain numpy dtype")
    return np.dtype(code, False, True)


def _described_dtype(dtype: "np.dtype[Any]", state: tuple[Any, ...]) -> "np.dtype[Any]":
    """Return the dtype that `state` describes, made by numpy's public constructor."""
    order, subarray, names, fields, itemsize, flags = (*state[1:6], state[7])
    require(order in ("<", ">", "|") and subarray is None, "a byte order and no subarray")
    if dtype.kind in "Mm":
        unit, count, *_ = state[8][1]
        require(type(unit) is bytes and _TIME_UNIT.fullmatch(unit) is not None and type(count) is int, "a time unit")
        return np.dtype(f"{order}{dtype.kind}8[{count}{unit.decode()}]")
    if names is None:
        return dtype.newbyteorder(order)
    require(type(names) is tuple and type(fields) is dict and type(flags) is int, "the fields of a dtype")
    formats, offsets = zip(*(fields[name] for name in names), strict=True)
    plain = all(isinstance(f, np.dtype) and f.kind not in "OV" for f in formats)
    require(plain and all(type(number) is int for number in (*offsets, itemsize)), "fields that are numbers or text")
    layout: Any = {"names": list(names), "formats": list(formats), "offsets": list(offsets), "itemsize": itemsize}
    described: np.dtype[Any] = np.dtype(layout, align=bool(flags & _ALIGNED_STRUCT))
    return described


def _build_dtype(dtype: "np.dtype[Any]", state: Any) -> None:
    """Set a dtype's state in place, as the memo may hold it; refuse a state that numpy would not write.

    Neither its kind nor its size may change: an array may use it already.
    """
    require(type(state) is tuple and len(state) in (8, 9), "the state of a dtype")
    described = _described_dtype(dtype, state)
    written: Any = described.__reduce__()[2]
    require(described.kind == dtype.kind and described.itemsize == dtype.itemsize, "a dtype of the size announced")
    require(written[:8] == state[:8] and len(written) == len(state), "the state of a dtype as numpy writes it")
    dtype.__setstate__(written)  # type: ignore[attr-defined]


def _check_extent(dtype: Any, shape: Any, num_bytes: int) -> None:
    """Refuse an array whose dtype and shape do not require exactly `num_bytes`."""
    require(isinstance(dtype, np.dtype) and not dtype.hasobject, "a dtype without objects")
    count = shape_product(shape)
    require(
        count * dtype.itemsize == num_bytes and count <= MAX_BYTES, "the number of bytes that dtype and shape require"
    )


_NDARRAY = Global("numpy.ndarray")


def _reconstruct(array_type: Any, shape: Any, code: Any) -> "np.ndarray[Any, Any]":
    """Return an empty array, which BUILD then fills."""
    require(array_type is _NDARRAY and shape == (0,) and code == b"b", "numpy.ndarray, (0,), b'b'")
    return np.ndarray((0,), "b")


def _build_array(target: "np.ndarray[Any, Any]", state: Any) -> None:
    require(type(state) is tuple, "the state of an array")
    version, shape, dtype, fortran, content = state
    require(type(version) is int and version == 1, "the state of an array in version 1")
    require(target.shape == (0,) and type(fortran) is bool, "an array that is not filled yet")
    if type(content) is list:
        require(getattr(dtype, "kind", None) == "O", "dtype object for a list of items")
        require(shape_product(shape) == len(content), "as many items as the shape has")
    else:
        require(type(content) is bytes, "the bytes of an array")
        _check_extent(dtype, shape, len(content))
    target.__setstate__(state)


def _from_buffer(
    content: bytes | bytearray, dtype: "np.dtype[Any]", shape: tuple[int, ...], order: str, axes: Any = None
) -> "np.ndarray[Any, Any]":
    """Return an array over bytes, as protocol 5 writes it; `axes` goes with order "K"."""
    require(type(content) in (bytes, bytearray) and order in ("C", "F", "K"), "bytes in order C, F or K")
    _check_extent(dtype, shape, len(content))
    array = np.frombuffer(content, dtype=dtype)
    if order != "K":
        return array.reshape(shape, order="F" if order == "F" else "C")
    shape_product(axes)
    return array.reshape(shape).transpose(axes)


def _scalar(dtype: "np.dtype[Any]", content: bytes) -> Any:
    require(type(content) is bytes, "the bytes of a scalar")
    _check_extent(dtype, (1,), len(content))
    return make_scalar(dtype, content)


def _globals() -> Iterator[Global]:
    yield _NDARRAY
    yield Global("numpy.dtype", _dtype)
    for root in ("numpy.core", "numpy._core"):  # numpy 1 and numpy 2
        yield Global(f"{root}.multiarray._reconstruct", _reconstruct)
        yield Global(f"{root}.multiarray.scalar", _scalar)
        yield Global(f"{root}.numeric._frombuffer", _from_buffer)


ARRAY_FUNCTIONS: dict[str, Any] = {found.name: found for found in _globals()}
"""Functions that make arrays, always of this package, whatever the caller allows."""

ARRAY_BUILDERS: dict[type, Callable[[Any, Any], None]] = {np.dtype: _build_dtype, np.ndarray: _build_array}
"""What BUILD does to a dtype or an array."""
