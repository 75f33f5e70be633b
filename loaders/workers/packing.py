"""What a chunk gave, on its way from a worker to the trainer: few large tensors in the place of many small ones."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch

from dray.loaders.batching.buffers import Buffers
from dray.loaders.batching.stacking import LARGE_BYTES

_ROWS, _COLUMNS, _VALUES = "rows", "columns", "values"

Folded = tuple[Any, ...]


def fold(values: Sequence[Any], buffers: Buffers) -> Folded:
    """Values as few objects, of plain containers and tensors; `unfold` gives them back.

    Tensors of one dtype and shape become one; tuples, lists and dicts that are alike are taken apart, item by item.

    Args:
        values: Any.
        buffers: The memory for large tensors.
    """
    first = values[0] if values else None
    kind = type(first)
    if any(type(value) is not kind for value in values):
        return _VALUES, list(values)
    if kind is torch.Tensor and _are_alike(values):
        return _ROWS, _stacked(list(values), buffers)
    if kind in (tuple, list) and first and len(set(map(len, values))) == 1:
        return _COLUMNS, kind, None, [fold(column, buffers) for column in zip(*values, strict=True)]
    if kind is dict and first and all(value.keys() == first.keys() for value in values):
        return _COLUMNS, kind, list(first), [fold([value[name] for value in values], buffers) for name in first]
    return _VALUES, list(values)


def unfold(folded: Folded) -> Sequence[Any]:
    """What was folded; tensors that were alike are rows of one."""
    if folded[0] == _ROWS:
        rows = folded[1]
        return [rows[row] for row in range(len(rows))]
    if folded[0] == _VALUES:
        values: list[Any] = folded[1]
        return values
    _, kind, names, columns = folded
    rows = zip(*map(unfold, columns), strict=True)
    if kind is tuple:
        return list(rows)
    return [list(row) if kind is list else dict(zip(names, row, strict=True)) for row in rows]


def _stacked(tensors: list[torch.Tensor], buffers: Buffers) -> torch.Tensor:
    dtype, shape = tensors[0].dtype, (len(tensors), *tensors[0].shape)
    num_bytes = prod(shape) * dtype.itemsize
    if num_bytes < LARGE_BYTES:
        return torch.stack(tensors)
    return torch.stack(tensors, out=buffers.take(num_bytes).view(dtype).view(shape))


def _are_alike(tensors: Sequence[torch.Tensor]) -> bool:
    first = tensors[0]
    if first.layout is not torch.strided or first.is_quantized:
        return False
    return all(
        tensor.dtype == first.dtype
        and tensor.shape == first.shape
        and tensor.layout is first.layout
        and tensor.device.type == "cpu"
        and not tensor.requires_grad
        for tensor in tensors
    )
