"""Dtype and shape, which values must share to become rows of one tensor."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

_INT64 = torch.iinfo(torch.int64)
NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}


@dataclass(frozen=True, slots=True)
class TensorKind:
    """The dtype and shape of a value that can be stacked."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, value: Any) -> "TensorKind | None":
        """Returns the kind of a dense tensor, array, numpy scalar or number; None if torch has no dtype for it."""
        if isinstance(value, torch.Tensor):
            is_dense = value.layout is torch.strided and not value.is_quantized
            return cls(value.dtype, tuple(value.shape)) if is_dense else None
        if type(value) is np.ndarray or isinstance(value, np.generic):
            dtype = torch_dtype(value.dtype)
            return None if dtype is None else cls(dtype, value.shape)
        dtype = NUMBERS.get(type(value))
        if dtype is None or (dtype is torch.int64 and not _INT64.min <= value <= _INT64.max):
            return None
        return cls(dtype, ())

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.shape}"


@lru_cache(64)
def torch_dtype(dtype: "np.dtype[Any]") -> torch.dtype | None:
    """Returns torch's equal dtype, which is always in native byte order; None if there is none."""
    try:
        return torch.from_numpy(np.empty(0, dtype.newbyteorder("="))).dtype
    except TypeError:
        return None
