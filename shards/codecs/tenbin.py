"""`.ten` and `.tb`: WebDataset's lists of arrays."""

import struct
from typing import Any

from webdataset import tenbin


def read_tenbin(data: bytes) -> Any:
    """Return the arrays; ValueError for a chunk that does not fit, at whose length WebDataset's reader would hang."""
    offset = 0
    while offset < len(data):
        (num_bytes,) = struct.unpack_from("<q", data, offset + 8)
        offset += 16 + (num_bytes + 63) // 64 * 64
        if num_bytes < 0 or offset > len(data):
            raise ValueError(f"a chunk of {num_bytes} bytes does not fit")
    return tenbin.decode_buffer(data)
