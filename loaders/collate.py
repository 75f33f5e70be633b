"""From decoded samples to a batch: stacked tensors where that is possible, lists elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dray.shards.errors import CallError

Sample = Mapping[str, Any]
Batch = dict[str, Any]

_MAX_INT = torch.iinfo(torch.int64).max


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch of n samples: part -> its n values.

    Tensors and arrays of equal dtype and shape become one tensor (n, ...), numbers a tensor (n,): bool, int64 or
    float64, or what their numpy type says. Everything else (ragged shapes, text, a part that some samples lack, which
    is None there) is a list.

    Raises:
        CallError: A sample is no mapping.
    """
    for sample in samples:
        if not isinstance(sample, Mapping):
            raise CallError(f"transform gave {type(sample).__name__}, no dict of parts: give collate= as well")
    parts = dict.fromkeys(part for sample in samples for part in sample)
    return {part: stack([sample.get(part) for sample in samples]) for part in parts}


def stack(values: Sequence[Any]) -> torch.Tensor | list[Any]:
    """The values of one part as a tensor, or as they are."""
    if all(isinstance(value, torch.Tensor) for value in values):
        alike = {(value.dtype, value.shape, value.layout) for value in values}
        if len(alike) > 1 or values[0].layout is not torch.strided:
            return list(values)
        with torch.no_grad():
            return torch.stack(list(values))
    kinds = {type(value) for value in values}
    if len(kinds) > 1:
        return list(values)
    (kind,) = kinds
    if kind in (bool, float) or (kind is int and max(map(abs, values)) <= _MAX_INT):
        return torch.tensor(values, dtype=torch.float64 if kind is float else None)
    if issubclass(kind, np.generic) or (
        kind is np.ndarray and len({(value.dtype, value.shape) for value in values}) == 1
    ):
        stacked = np.stack(values)
        try:
            return torch.from_numpy(stacked.astype(stacked.dtype.newbyteorder("="), copy=False))
        except TypeError:  # torch has no such dtype
            return list(values)
    return list(values)


def no_rows(batch: Any) -> Any:
    """The batch of no sample that is otherwise like a batch of one.

    A list of one item is taken for the batch's only row, one of several for its columns, as torch's `default_collate`
    makes them of tuples.

    Raises:
        CallError: It is made of something that has no rows.
    """
    if isinstance(batch, torch.Tensor | np.ndarray) and batch.ndim:
        return batch[:0]
    if type(batch) is list:
        return [no_rows(column) for column in batch] if len(batch) > 1 else []
    if isinstance(batch, dict):
        return {part: no_rows(values) for part, values in batch.items()}
    if type(batch) is tuple:
        return tuple(no_rows(values) for values in batch)
    raise CallError(
        f"remainder='keep' leaves this rank without a sample in the last step, and of the {type(batch).__name__} that "
        "collate gave no batch of 0 rows can be made: let it give tensors, arrays, lists, and dicts and tuples of them"
    )
