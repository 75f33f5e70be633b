"""`.safetensors`: a dict of tensors, or the value that the file's own note names.

A dict of tensors is stored as any writer of the format stores it. For other values, the file's metadata has an entry
`dray`: "arrays" for a dict of numpy arrays, "tensor" or "array" for a single one, which is stored under that name.
The bytes are laid out here because those of the library differ between its versions. Reading leaves every check of the
header to the library. Importing this module loads torch.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch

from dray.shards.codecs.npy import NUMPY_DTYPES, check_dense, is_array, little_endian
from dray.shards.codecs.unfit import UnfitError, check_size, check_text, type_name

_DTYPES = {
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
_OF_NUMPY = {NUMPY_DTYPES[dtype]: name for dtype, name in _DTYPES.items() if dtype in NUMPY_DTYPES}
_SAME_SIZE = {1: torch.uint8, 2: torch.int16}  # by itemsize: numpy reads the bits of a dtype it lacks as one of these

_READERS: dict[str | None, tuple[Callable[[bytes], dict[str, Any]], str | None]] = {
    None: (safetensors.torch.load, None),
    "tensor": (safetensors.torch.load, "tensor"),
    "arrays": (safetensors.numpy.load, None),
    "array": (safetensors.numpy.load, "array"),
}


# ---- write ----


def as_safetensors(value: Any, max_bytes: int) -> bytes:
    """Return a tensor, an array, or a dict of either as `.safetensors`.

    Args:
        value: The value to store.
        max_bytes: Maximum size of the elements.

    Raises:
        UnfitError: `value` is of another type, is too large, or has a dtype that the format lacks.
    """
    if isinstance(value, torch.Tensor):
        return _file({"tensor": value}, "tensor", max_bytes)
    if is_array(value):
        return _file({"array": value}, "array", max_bytes)
    if type(value) is not dict:
        raise UnfitError(f"{type_name(value)} is not a tensor, an array or a dict of them")
    for name in value:
        check_text(name, "a name")
        if name == "__metadata__":
            raise UnfitError("the name '__metadata__' is taken")
    if value and all(type(item) is np.ndarray for item in value.values()):
        return _file(value, "arrays", max_bytes)
    for name, item in value.items():
        if not isinstance(item, torch.Tensor):
            raise UnfitError(f"{name!r} in the dict is {type_name(item)}: all must be tensors, or all numpy arrays")
    return _file(value, None, max_bytes)


def _file(values: Mapping[str, Any], note: str | None, max_bytes: int) -> bytes:
    """Return header and elements: names in the dict's order, elements with the widest dtype first to be aligned."""
    for value in values.values():
        if isinstance(value, torch.Tensor):
            check_dense(value)  # before its size is asked for, which a sparse one lacks
    header: dict[str, Any] = {"__metadata__": {"dray": note}} if note else {}
    names = sorted(values, key=lambda name: -values[name].dtype.itemsize)
    check_size(sum(values[name].nbytes for name in names), max_bytes)
    header |= dict.fromkeys(values)
    pieces: list[bytes] = []
    end = 0
    for name in names:
        dtype, shape, data = _elements(values[name])
        start, end = end, end + len(data)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        pieces.append(data)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *pieces))


def _elements(value: Any) -> tuple[str, list[int], bytes]:
    """Return the format's name of the dtype, the shape, and the elements in C order."""
    if isinstance(value, torch.Tensor):
        name, array = _DTYPES.get(value.dtype), None
        if name is not None:
            viewed = value if value.dtype in NUMPY_DTYPES else value.detach().view(_SAME_SIZE[value.itemsize])
            array = viewed.numpy(force=True)
    else:
        array = little_endian(value)
        name = _OF_NUMPY.get(array.dtype)
    if name is None or array is None:
        raise UnfitError(f"the format has no {value.dtype if array is None else array.dtype}")
    return name, list(value.shape), array.tobytes()


# ---- read ----


def read_safetensors(data: bytes) -> Any:
    """Return the value of the file: a dict of torch tensors by name, unless its note says otherwise.

    With the note "tensor" or "array" the value is the only tensor or numpy array itself, with "arrays" a dict of numpy
    arrays.

    Raises:
        Exception: The file is truncated, its header is invalid, or its note does not fit its content.
    """
    names, note = _header(data)
    if note not in _READERS:
        raise ValueError(f"a note of dray that this version does not know: {note!r}; known are {list(_READERS)[1:]}")
    load, only = _READERS[note]
    values = load(data)
    if only is None:
        return {name: values[name] for name in names}  # in the header's order, which is that of the dict
    if list(values) != [only]:
        raise ValueError(f"expected one value named {only!r}, found {sorted(values)!r:.100}")
    return values[only]


def _header(data: bytes) -> tuple[list[str], str | None]:
    """Return the names in the file, and the entry `dray` of its metadata if there is one."""
    num_bytes = int.from_bytes(data[:8], "little")
    if num_bytes > len(data) - 8:
        raise ValueError(f"a header of {num_bytes} bytes in a file of {len(data)}")
    header = json.loads(data[8 : 8 + num_bytes])
    metadata = header.pop("__metadata__", None) or {}
    return list(header), metadata.get("dray")
