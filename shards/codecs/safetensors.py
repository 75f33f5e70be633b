"""`.safetensors` parts: a dict of tensors, or what the file's own note says that it was.

A build that encodes values writes into the file's metadata, under "dray", which value the file stands for. The
library checks the header before anything is made: its length, that sizes fit, that no tensors overlap and no bytes are
left out.
"""

import json
from collections.abc import Callable
from typing import Any

import safetensors.numpy
import safetensors.torch

_READERS: dict[str | None, tuple[Callable[[bytes], dict[str, Any]], str | None]] = {
    None: (safetensors.torch.load, None),  # anybody's file
    "tensor": (safetensors.torch.load, "tensor"),
    "arrays": (safetensors.numpy.load, None),
    "array": (safetensors.numpy.load, "array"),
}


def read_safetensors(data: bytes) -> Any:
    """The value of the file: a dict of torch tensors by name, unless its note says otherwise.

    With the note `tensor` or `array` the value is the only tensor or numpy array itself, with `arrays` a dict of
    numpy arrays.

    Raises:
        Exception: The file is not whole, its header lies, or its note does not fit what it holds.
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
    """The names of the file, and what its metadata says under "dray"; None where that is nothing."""
    num_bytes = int.from_bytes(data[:8], "little")
    if num_bytes > len(data) - 8:
        raise ValueError(f"a header of {num_bytes} bytes in a file of {len(data)}")
    header = json.loads(data[8 : 8 + num_bytes])
    metadata = header.pop("__metadata__", None) or {}
    return list(header), metadata.get("dray")
