"""Parts that are alike, gathered by compiled code: see `gather.c`."""

import numpy as np
from numpy.typing import NDArray

MIN_BYTES: int  # a smaller part has its checksum worked out in another way

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
    """Copy the elements of n parts of one size; return how many are right, up to the first that is not.

    The memory of the parts is read, and that of their elements written, as the addresses tell: it has to be there.

    Args:
        addresses: (n,) where each part begins.
        hashes: (n,) xxh3_64 of each.
        targets: (n,) where its elements go.
        size: Of a part, in bytes; at least MIN_BYTES.
        start: Of the elements in a part.
        stop: Their end.
        edges: The bytes before and after the elements that every part has.
        is_fixed: For each of them 1, or 0 where a part may have another.
        first: Where a number of digits begins in the edges.
        second: Where the same digits come again.
        digits: How many there are; 0: none.

    Raises:
        ValueError: Sizes and places do not belong together.
    """
