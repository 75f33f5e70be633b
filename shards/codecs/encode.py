"""From a value to the bytes of a part that is not a pickle. The same value gives the same bytes.

Each format takes only what its reader returns unchanged: dtype, shape and every element, or every plain value and its
type. A new format is a module beside this one, an entry in `FORMATS`, and its extension in `TARGETS` of
`shards/parts.py`. Importing this module loads torch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from dray.shards.codecs.json_text import as_json
from dray.shards.codecs.npy import NUMPY_DTYPES, as_npy, pickle_as_npy
from dray.shards.codecs.safetensors import as_safetensors

__all__ = ["FORMATS", "format_of", "pickle_as_npy"]

FORMATS: Mapping[str, Callable[[Any, int], bytes]] = {"npy": as_npy, "safetensors": as_safetensors, "json": as_json}
"""Extension -> a function from a value and its maximum size in bytes to the part; UnfitError if it does not fit."""


def format_of(value: Any) -> str:
    """Return the extension of the format that suits a value best, if any can hold it."""
    if isinstance(value, torch.Tensor):
        return "npy" if value.dtype in NUMPY_DTYPES else "safetensors"
    if isinstance(value, np.ndarray | np.generic):
        return "npy"
    if isinstance(value, dict) and isinstance(next(iter(value.values()), None), torch.Tensor | np.ndarray):
        return "safetensors"
    return "json"
