"""`.pth`: what `torch.save` wrote, read by torch's own restricted unpickler, on the CPU."""

import io
import pickle
import pkgutil
import re
import zipfile
from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import torch

from dray.shards.codecs.compressed import check_zip
from dray.shards.codecs.pickles.unpickle import refusal
from dray.shards.errors import RefusedError

_REFUSED_NAME = re.compile(r"GLOBAL (\S+) (?:was not an allowed|whose module)")


def read_torch_file(data: bytes, *, allow: Collection[str], allow_pickle: bool, max_bytes: int) -> Any:
    """Return the saved value; names in `allow` are allowed for this call alone.

    Raises:
        RefusedError: The file needs a name that is neither on torch's list nor in `allow`.
        Exception: The file is damaged, or grows past `max_bytes` when decompressed.
    """
    if allow_pickle:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    if zipfile.is_zipfile(io.BytesIO(data)):
        check_zip(data, max_bytes)
    known = [pkgutil.resolve_name(name) for name in sorted(allow)]
    try:
        with torch.serialization.safe_globals(known) if known else nullcontext():
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        refused = _REFUSED_NAME.search(str(exc))
        if refused is None:
            raise RefusedError(f"torch reads only tensors and plain values here: {exc!s:.200}") from exc
        raise refusal(refused[1]) from exc
