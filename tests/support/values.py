"""Values that users pickle, as hypothesis draws them; and when what comes back is the same."""

import json
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load

DTYPES = (
    *("bool", "uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Tensors of every dtype: 0-d, empty, views, transposed, conjugated, expanded, Parameters."""
    dtype, shape = getattr(torch, draw(st.sampled_from(DTYPES))), draw(SHAPES)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = torch.randint(0, 256, (math.prod(shape) * 16,), generator=generator, dtype=torch.uint8)
    if dtype is torch.bool:
        values = values % 2
    tensor = values.view(dtype)[: math.prod(shape)].reshape(shape)
    change = draw(st.sampled_from(("none", "flip", "part", "conj", "expand", "parameter")))
    if change == "flip" and tensor.ndim:
        return tensor.transpose(0, -1)
    if change == "part" and tensor.ndim and len(tensor) > 1:
        return tensor[1::2]
    if change == "expand":
        return tensor[None].expand(3, *shape)
    if change == "conj" and dtype.is_complex:
        return tensor.conj()
    if change == "parameter" and dtype.is_floating_point and dtype.itemsize > 1:
        return torch.nn.Parameter(tensor)
    return tensor


def arrays() -> st.SearchStrategy[Any]:
    """Arrays of numbers in either byte order, text, times, structures and objects; also transposed ones and scalars."""
    numbers = st.one_of(
        hnp.boolean_dtypes(),
        hnp.integer_dtypes(endianness="?"),
        hnp.unsigned_integer_dtypes(endianness="?"),
        hnp.floating_dtypes(endianness="?"),
        hnp.complex_number_dtypes(endianness="?"),
    )
    others = st.one_of(
        hnp.unicode_string_dtypes(min_len=1, max_len=4),
        hnp.byte_string_dtypes(min_len=1, max_len=4),
        hnp.datetime64_dtypes(),
        hnp.timedelta64_dtypes(),
        st.just(np.dtype([("a", "<i4"), ("b", "<f8")])),
    )
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    filled = hnp.arrays(st.one_of(numbers, others), shapes)
    objects = st.just(np.array([{"a": 1}, None], object))
    scalars = hnp.arrays(st.one_of(numbers, others), ()).map(lambda array: array[()])
    return st.one_of(filled, filled.map(np.transpose), objects, scalars)


FLOATS = st.floats()
TEXT = st.text(st.characters(exclude_categories=()), max_size=5)  # half surrogate pairs too
KEYS = st.one_of(TEXT, st.integers(), st.none())
SIMPLE = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), FLOATS, TEXT, st.binary(max_size=5))
NESTED = st.recursive(
    SIMPLE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(TEXT, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=2),
        st.tuples(inner),
    ),
    max_leaves=8,
)
DICTS = st.one_of(
    st.dictionaries(TEXT, tensors(), max_size=4),
    st.dictionaries(TEXT, arrays(), max_size=4),
    st.dictionaries(TEXT, st.one_of(tensors(), arrays(), SIMPLE), max_size=3),
    st.dictionaries(TEXT, tensors(), min_size=1, max_size=2).map(OrderedDict),
)
VALUES = st.one_of(tensors(), arrays(), NESTED, DICTS)


def read_safetensors(data: bytes) -> Any:
    """What a part says that it is, read without dray: a dict of tensors, or what `dray` in its metadata names."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    kind = header.pop("__metadata__", {}).get("dray")
    tensors = load(data)
    found: dict[str, Any] = {name: tensors[name] for name in header}
    if kind in ("array", "arrays"):
        found = {name: tensor.numpy() for name, tensor in found.items()}
    return found[kind] if kind in ("array", "tensor") else found


def same(found: Any, value: Any) -> bool:
    """Whether a value came back: bit by bit, with dtype and shape; strides, byte order and requires_grad aside."""
    if isinstance(value, torch.Tensor):
        if not isinstance(found, torch.Tensor) or found.dtype != value.dtype or found.shape != value.shape:
            return False
        return bits(found) == bits(value)
    if isinstance(value, np.ndarray | np.generic):
        return (
            type(found) is type(value)
            and found.dtype.newbyteorder("<") == value.dtype.newbyteorder("<")
            and found.shape == value.shape
            and (found.tolist() == value.tolist() if found.dtype.hasobject else bits(found) == bits(value))
        )
    if type(found) is not type(value):
        return False
    if isinstance(value, dict):
        return list(found) == list(value) and all(same(found[key], value[key]) for key in value)
    if isinstance(value, list | tuple):
        return len(found) == len(value) and all(map(same, found, value))
    if isinstance(value, float):
        return np.float64(found).tobytes() == np.float64(value).tobytes()
    return bool(found == value)


def bits(value: Any) -> bytes:
    """The elements in order, little-endian."""
    if isinstance(value, torch.Tensor):
        meant = value.detach().resolve_conj().resolve_neg()
        packed = torch.empty(meant.shape, dtype=meant.dtype).copy_(meant)
        return packed.reshape(-1).view(torch.uint8).numpy().tobytes()
    return np.asarray(value, value.dtype.newbyteorder("<")).tobytes()
