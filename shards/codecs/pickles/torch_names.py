"""Stand-ins for the names in pickled torch tensors: dense ones, views and Parameters. All are read to the CPU.

A tensor is a storage and a view of it. The storage is parsed here (torch would call its unrestricted `torch.load`),
and a view may not reach outside it.
"""

import re
import sys
from collections import OrderedDict
from typing import Any

import torch

from dray.shards.codecs.pickles.compat import (
    rebuild_parameter,
    rebuild_tensor_v2,
    rebuild_tensor_v3,
    storage_nbytes,
    typed_storage,
)
from dray.shards.codecs.pickles.stand_ins import MAX_BYTES, Global, require, shape_product
from dray.shards.errors import RefusedError


def _check_view(num_bytes: int, itemsize: int, offset: Any, size: Any, stride: Any) -> None:
    """Refuse a tensor that reaches outside its storage of `num_bytes`, or whose values would pass 4 GiB."""
    count = shape_product(size)
    shape_product(stride)
    require(type(offset) is int and offset >= 0 and len(size) == len(stride), "an offset and a stride a dimension")
    if count:  # an empty one may start anywhere
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        require((last + 1) * itemsize <= num_bytes, "a tensor inside its storage")
    require(count * itemsize <= MAX_BYTES, "a tensor of at most 4 GiB")


def _check_extras(requires_grad: Any, hooks: Any, metadata: Any = None) -> None:
    require(type(requires_grad) is bool and type(hooks) is OrderedDict and not hooks, "a tensor without hooks")
    bits = {} if metadata is None else metadata  # no truth test: torch warns if it is a storage
    require(type(bits) is dict and bits.keys() <= {"conj", "neg"}, "at most the conj and neg bits")
    require(all(type(bit) is bool for bit in bits.values()), "the conj and neg bits")


def _tensor_v2(
    storage: Any, offset: int, size: Any, stride: Any, requires_grad: bool, hooks: Any, metadata: Any = None
) -> torch.Tensor:
    """A tensor over a typed storage."""
    require(type(storage) is torch.storage.TypedStorage, "a typed storage")
    _check_view(storage_nbytes(storage), storage.dtype.itemsize, offset, size, stride)
    _check_extras(requires_grad, hooks, metadata)
    return rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata)


def _tensor_v3(
    storage: Any, offset: int, size: Any, stride: Any, requires_grad: bool, hooks: Any, dtype: Any, metadata: Any = None
) -> torch.Tensor:
    """A tensor of a newer dtype (uint16, float8) over untyped storage."""
    require(type(storage) is torch.storage.TypedStorage and type(dtype) is torch.dtype, "a storage and a dtype")
    _check_view(storage_nbytes(storage), dtype.itemsize, offset, size, stride)
    _check_extras(requires_grad, hooks, metadata)
    return rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata)


def _parameter(tensor: torch.Tensor, requires_grad: bool, hooks: Any) -> torch.nn.Parameter:
    require(type(tensor) is torch.Tensor, "a tensor for a Parameter")
    _check_extras(requires_grad, hooks)
    return rebuild_parameter(tensor, requires_grad, hooks)


def _size(dimensions: tuple[int, ...]) -> torch.Size:
    shape_product(dimensions)
    return torch.Size(dimensions)


_DTYPE_NAME = re.compile(r"u?int(8|16|32|64)|b?float(16|32|64)|float8_\w+|complex(32|64|128)|bool")

# torch.storage._load_from_bytes would call torch.load without any limit. Its argument is always in the old format of
# torch.save, so only that layout is matched here: a magic number, the format's version, a description of the machine
# (little endian), the storage, the list of its one key, the number of elements, the elements.
STORAGE = re.compile(
    rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.\x80\x02M\xe9\x03\.\x80\x02\}q\x00\("
    rb"X\x10\x00\x00\x00protocol_versionq\x01M\xe9\x03X\r\x00\x00\x00little_endianq\x02\x88"
    rb"X\n\x00\x00\x00type_sizesq\x03\}q\x04\(X\x05\x00\x00\x00shortq\x05K\x02"
    rb"X\x03\x00\x00\x00intq\x06K\x04X\x04\x00\x00\x00longq\x07K\x04uu\."
    rb"\x80\x02\(X\x07\x00\x00\x00storageq\x00ctorch(?:\.storage)?\n(?P<kind>[A-Za-z0-9]+)Storage\nq\x01"
    rb"(?P<key>X.\x00\x00\x00\d{1,20})q\x02X.\x00\x00\x00[a-z]{2,8}(?::\d{1,4})?q\x03"  # device, ignored
    rb"(?:K.|M..|J....|\x8a\x05.....)Ntq\x04Q\.\x80\x02\]q\x00(?P=key)q\x01a\."
    rb"(?P<count>.{8})",
    re.DOTALL,
)
STORAGE_DTYPES = {
    b"BFloat16": torch.bfloat16,
    b"Bool": torch.bool,
    b"Byte": torch.uint8,
    b"Char": torch.int8,
    b"ComplexDouble": torch.complex128,
    b"ComplexFloat": torch.complex64,
    b"Double": torch.float64,
    b"Float": torch.float32,
    b"Half": torch.float16,
    b"Int": torch.int32,
    b"Long": torch.int64,
    b"Short": torch.int16,
    b"Untyped": torch.uint8,
}


def copy_storage(content: bytes | memoryview, start: int, num_bytes: int) -> torch.UntypedStorage:
    """Return a new storage that holds a copy of the bytes from `start` on."""
    if num_bytes == 0:
        return torch.UntypedStorage(0)  # type: ignore[no-untyped-call]
    copied: torch.UntypedStorage = torch.UntypedStorage.from_buffer(
        content, "little", num_bytes, start, dtype=torch.uint8
    )
    return copied


def _storage(content: bytes) -> torch.storage.TypedStorage:
    """Return the storage that torch.save wrote into `content`, on the CPU."""
    found = STORAGE.match(content) if type(content) is bytes else None
    dtype = STORAGE_DTYPES.get(found["kind"]) if found else None
    if found is None or dtype is None or sys.byteorder != "little":
        raise RefusedError("refused pickle: expected a storage as torch.save writes it on a little-endian machine")
    num_bytes = int.from_bytes(found["count"], "little", signed=True) * dtype.itemsize
    require(num_bytes == len(content) - found.end(), "a storage of the size that it announces")
    return typed_storage(copy_storage(content, found.end(), num_bytes), dtype)


_GLOBALS = (
    Global("torch.storage._load_from_bytes", _storage),
    Global("torch._utils._rebuild_tensor_v2", _tensor_v2),
    Global("torch._utils._rebuild_tensor_v3", _tensor_v3),
    Global("torch._utils._rebuild_parameter", _parameter),
    Global("torch.Size", _size),
)

TENSOR_FUNCTIONS: dict[str, Any] = {found.name: found for found in _GLOBALS} | {
    f"torch.{name}": getattr(torch, name) for name in dir(torch) if _DTYPE_NAME.fullmatch(name)
}
"""Functions that make tensors, always of this package, whatever the caller allows; and torch's dtypes, as values."""
