"""`.npy` and `.npz`: numpy arrays without pickled objects. Writing loses strides, byte order and `requires_grad`.

The bytes are laid out here because those of `np.save` differ between versions of numpy, and it takes ten times as long.
Importing this module loads torch.
"""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dray.shards.codecs.compressed import check_zip
from dray.shards.codecs.pickles.layout import find_layout
from dray.shards.codecs.unfit import UnfitError, check_size, type_name
from dray.shards.errors import RefusedError
from dray.shards.parsing.arrays import npy_header

Array = NDArray[Any]

NUMPY_DTYPES = {
    dtype: np.dtype(name)
    for name in ("?", "u1", "i1", "<i2", "<i4", "<i8", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", "<c8", "<c16")
    for dtype in [torch.from_numpy(np.empty(0, name)).dtype]
}
"""numpy's dtype for each dtype of torch that numpy has."""

_WRITABLE = frozenset(NUMPY_DTYPES.values())


# ---- write ----


def as_npy(value: Any, max_bytes: int) -> bytes:
    """Return a tensor, array or numpy scalar as `.npy` format 1.0: elements in C order, little-endian.

    Args:
        value: The value to store.
        max_bytes: Maximum size of the elements.

    Raises:
        UnfitError: `value` is of another type, is too large, or has a dtype that numpy cannot read without pickle.
    """
    if isinstance(value, torch.Tensor):
        check_dense(value)
        if value.dtype not in NUMPY_DTYPES:
            raise UnfitError(f"numpy has no dtype for {value.dtype}")
        check_size(value.numel() * value.itemsize, max_bytes)
        array = value.numpy(force=True)
    elif is_array(value):
        check_size(value.nbytes, max_bytes)
        array = little_endian(value)
        if array.dtype not in _WRITABLE and not _is_text_or_time(value):
            raise UnfitError(f"{type_name(value)} of dtype {value.dtype} would not come back as it was")
    else:
        raise UnfitError(f"{type_name(value)} is neither a tensor nor an array")
    return npy_header(array.dtype, array.shape) + array.tobytes()


def pickle_as_npy(data: bytes) -> bytes | None:
    """Return a pickled contiguous tensor or array as `.npy` without unpickling it; None for any other pickle."""
    layout = find_layout(data)
    if layout is None:
        return None
    dtype = NUMPY_DTYPES.get(layout.dtype) if isinstance(layout.dtype, torch.dtype) else layout.dtype
    return None if dtype is None else npy_header(dtype, layout.shape) + memoryview(data)[layout.start : layout.stop]


def check_dense(tensor: torch.Tensor) -> None:
    """Raise UnfitError unless the tensor is a plain, dense one on the CPU."""
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter):
        raise UnfitError(f"{type_name(tensor)} is a subclass of Tensor")
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise UnfitError(f"the tensor is not dense and on the CPU, but {tensor.layout} on {tensor.device}")


def is_array(value: Any) -> bool:
    """Whether a value is an array or scalar of numpy itself, not of a subclass."""
    return type(value) is np.ndarray or (isinstance(value, np.generic) and type(value) is value.dtype.type)


def _is_text_or_time(value: Any) -> bool:
    """Whether numpy reads the array without pickle, though torch lacks its dtype; a scalar would become an array."""
    return type(value) is np.ndarray and value.dtype.kind in "SUMm" and value.itemsize > 0


def little_endian(value: Any) -> Array:
    """Return an array or scalar as an array in little-endian byte order."""
    array = np.asarray(value)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("<"))


# ---- read ----


def read_npy(data: bytes) -> Array:
    """Return the array of a `.npy` part; RefusedError if it holds pickled objects."""
    array: Array = _without_objects(lambda: np.lib.format.read_array(io.BytesIO(data), allow_pickle=False))
    return array


def read_npz(data: bytes, max_bytes: int) -> dict[str, Array]:
    """Return the arrays of a `.npz` part by name; at most `max_bytes` after decompression."""
    check_zip(data, max_bytes)
    arrays: dict[str, Array] = _without_objects(lambda: dict(np.load(io.BytesIO(data), allow_pickle=False)))
    return arrays


def _without_objects(read: Callable[[], Any]) -> Any:
    """Return what `read` returns; RefusedError where numpy would have to unpickle an array of objects."""
    try:
        return read()
    except ValueError as exc:
        if "allow_pickle" not in str(exc):
            raise
        raise RefusedError("an array of objects, which numpy would unpickle; write it as .pyd instead") from exc
