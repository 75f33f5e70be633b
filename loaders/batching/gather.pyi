"""Fills a batch from parts that differ only in their elements; see `gather.c`."""

import numpy as np
from numpy.typing import NDArray

def gather(
    addresses: NDArray[np.uint64],
    hashes: NDArray[np.uint64],
    targets: NDArray[np.uint64],
    size: int,
    start: int,
    stop: int,
    edges: bytes,
    is_fixed: bytes,
    first: int,
    second: int,
    digits: int,
    /,
) -> int:
    """Copy the elements of n parts of one size; returns the number of correct parts before the first wrong one.

    Reads and writes memory at the given addresses: the caller must keep it valid.

    Args:
        addresses: (n,) addresses of the parts.
        hashes: (n,) xxh3_64 checksums of the parts.
        targets: (n,) addresses to which the elements go.
        size: Size of a part in bytes.
        start: Offset of the first byte of the elements in a part.
        stop: Offset behind their last byte.
        edges: The bytes before and after the elements.
        is_fixed: 1 for each of these bytes that must be equal in every part, 0 for the others.
        first: Offset of digits in the edges.
        second: Offset in the edges where the same digits must occur again.
        digits: Number of these digits; 0: none.

    Raises:
        ValueError: Sizes and offsets are inconsistent.
    """
