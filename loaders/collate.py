"""From decoded samples to a batch: stacked tensors where that is possible, lists elsewhere."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

Sample = Mapping[str, Any]
Batch = dict[str, Any]


def collate(samples: Sequence[Sample]) -> Batch:
    """A batch of n samples: part -> its n values.

    Tensors and arrays of equal dtype and shape become one tensor (n, ...), numbers a tensor (n,), and everything else
    (ragged shapes, text, a part that some samples lack, which is None there) a list.
    """
    parts = dict.fromkeys(part for sample in samples for part in sample)
    return {part: stack([sample.get(part) for sample in samples]) for part in parts}


def stack(values: Sequence[Any]) -> torch.Tensor | list[Any]:
    """The values of one part as a tensor, or as they are."""
    kinds = {type(value) for value in values}
    if len(kinds) == 1 and kinds <= {bool, int, float}:
        return torch.tensor(values)
    if all(isinstance(value, torch.Tensor) for value in values):
        alike = {(value.dtype, value.shape, value.layout) for value in values}
        return torch.stack(list(values)) if len(alike) == 1 and values[0].layout is torch.strided else list(values)
    if kinds <= {np.ndarray} and len({(value.dtype, value.shape) for value in values}) == 1:
        try:
            return torch.from_numpy(np.stack(values))
        except TypeError:  # torch has no such dtype
            return list(values)
    return list(values)


def no_rows(batch: Batch) -> Batch:
    """The batch of no sample that has the same parts."""
    return {part: values[:0] for part, values in batch.items()}
