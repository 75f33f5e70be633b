"""Layouts of `.npy` parts: an index records dtype, shape and data offset if all parts of a suffix share them."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

HEAD_BYTES = 256  # longest header whose layout is recorded
_DTYPE = re.compile(r"[<|][biufcSUMm][0-9]{1,9}(?:\[[0-9]{0,9}[a-zA-Z]{1,2}\])?")
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([^']{2,40})', 'fortran_order': False, 'shape': \(([0-9, ]*)\), \} *\n",
    re.DOTALL,
)
_MOST_AXES = 64  # limit of numpy
_ALIGN = 64  # bytes; parts start at multiples of 512 in a tar, so elements start at multiples of 64


@lru_cache(1024)
def npy_header(dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> bytes:
    """Returns magic, version, length and description, padded with blanks so that the elements are aligned."""
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode()
    text += b" " * (-(10 + len(text) + 1) % _ALIGN) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayLayout:
    """The dtype, shape and data offset of an array in a part; its elements are in C order up to the end.

    Attributes:
        dtype: Little-endian dtype as in `numpy.dtype.str`: "<f4", "|u1", "<M8[ns]".
        shape: Shape of the array; () for a scalar.
        data_offset: Offset of the first element in the part, in bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data_offset: int

    @property
    def num_bytes(self) -> int:
        """Size of the part in bytes."""
        return self.data_offset + prod(self.shape) * np.dtype(self.dtype).itemsize

    def to_json(self) -> dict[str, Any]:
        """Returns the layout as an index stores it."""
        return {"dtype": self.dtype, "shape": list(self.shape), "data_offset": self.data_offset}

    @classmethod
    def from_json(cls, values: Any) -> "ArrayLayout":
        """Read a layout; entries with other names are ignored.

        Raises:
            ValueError: The dtype, the shape or the offset is invalid.
            LookupError: One of them is missing.
            TypeError: It is not a mapping, or the dtype or the shape has the wrong type.
        """
        found = cls(dtype=values["dtype"], shape=tuple(values["shape"]), data_offset=values["data_offset"])
        numbers = (*found.shape, found.data_offset)
        if len(numbers) > _MOST_AXES or any(type(number) is not int or not 0 <= number < 1 << 63 for number in numbers):
            raise ValueError(f"an invalid array of the shape {found.shape!r:.80} at {found.data_offset!r:.40}")
        _check_dtype(found.dtype)
        return found


@lru_cache(1024)
def _check_dtype(dtype: str) -> None:
    if not _DTYPE.fullmatch(dtype) or np.dtype(dtype).str != dtype:
        raise ValueError(f"an invalid dtype {dtype!r:.80}")


def _is_npy(name: str) -> bool:
    return name.lower().rpartition(".")[2] == "npy"


def _header_bytes(head: bytes | bytearray | memoryview) -> int:
    """Returns the size of a header of format 1.0, as its ninth and tenth byte state it."""
    return 10 + int.from_bytes(head[8:10], "little")


def layout_of(name: str, head: bytes | memoryview, size: int) -> ArrayLayout | None:
    """Returns the layout of a `.npy` part; None for other parts and unsupported dtypes.

    Args:
        name: The suffix of the part, or the name of the member.
        head: At least the first `HEAD_BYTES` of the part, or the whole part.
        size: The size of the part in bytes.
    """
    if not _is_npy(name):
        return None
    end = _header_bytes(head)
    found = _parse(bytes(head[:end])) if end <= min(len(head), HEAD_BYTES) else None
    return found if found is not None and found.num_bytes == size else None


@lru_cache(1024)
def _parse(header: bytes) -> ArrayLayout | None:
    """Returns the layout in a header of format 1.0, as numpy and dray write it; None for other headers."""
    found = _HEADER.fullmatch(header)
    if found is None:
        return None
    try:
        shape = [int(size) for size in found[2].decode().split(",") if size.strip()]
        return ArrayLayout.from_json({"dtype": found[1].decode(), "shape": shape, "data_offset": len(header)})
    except (ValueError, TypeError):
        return None


def constant_layouts(layouts: Mapping[str, Collection[ArrayLayout | None]]) -> dict[str, ArrayLayout]:
    """Returns the layout of each suffix that has only one."""
    only = {suffix: next(iter(found)) for suffix, found in layouts.items() if len(found) == 1}
    return {suffix: layout for suffix, layout in only.items() if layout is not None}


def layouts_in(
    tar: bytes | bytearray, suffixes: Sequence[str], offsets: NDArray[np.uint64], sizes: NDArray[np.uint64]
) -> dict[str, ArrayLayout]:
    """Returns the layouts of the suffixes of a tar that have only one.

    Args:
        tar: The whole tar.
        suffixes: The s suffixes.
        offsets: (n, s) offset of each part; 0 where the sample lacks it.
        sizes: (n, s) size of each part in bytes.
    """
    found: dict[str, set[ArrayLayout | None]] = {}
    for column, suffix in enumerate(suffixes):
        if not _is_npy(suffix):
            continue
        starts = [start for start in offsets[:, column].tolist() if start]
        only = np.unique(sizes[offsets[:, column] > 0, column]).tolist()
        if starts and len(only) == 1:
            end = _header_bytes(tar[starts[0] : starts[0] + HEAD_BYTES])
            heads = {bytes(tar[start : start + min(end, HEAD_BYTES)]) for start in starts}  # usually one
            found[suffix] = {layout_of(suffix, head, only[0]) for head in heads}
    return constant_layouts(found)
