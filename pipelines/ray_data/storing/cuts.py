"""Cuts the rows of blocks into shards by their order and sizes alone: the cuts do not depend on the blocks."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dray.pipelines.writing.shard import ShardSize
from dray.shards.tar import END


class Piece(NamedTuple):
    """Consecutive rows of a block.

    Attributes:
        block: The block, or its reference.
        start: The first row.
        stop: The row after the last one.
    """

    block: Any
    start: int
    stop: int


def cut(blocks: Iterable[tuple[Any, NDArray[np.int64]]], size: ShardSize) -> Iterator[list[Piece]]:
    """Yields the pieces of each shard, in order; a shard is full before it passes a limit.

    Args:
        blocks: Each block, and the (n,) bytes that its rows take in a tar.
        size: The limits.
    """
    pieces: list[Piece] = []
    num_samples, num_bytes = 0, len(END)
    for block, sizes in blocks:
        ends = np.concatenate([[0], np.cumsum(sizes)])
        start = 0
        while start < len(sizes):
            most_bytes = int(ends[start]) + size.num_bytes - num_bytes
            fitting = int(np.searchsorted(ends, most_bytes, side="right")) - 1 - start
            count = max(min(fitting, size.samples - num_samples, len(sizes) - start), 0 if num_samples else 1)
            if count:
                pieces.append(Piece(block, start, start + count))
                num_samples, num_bytes = num_samples + count, num_bytes + int(ends[start + count] - ends[start])
                start += count
            if start < len(sizes) or num_samples == size.samples:
                yield pieces
                pieces, num_samples, num_bytes = [], 0, len(END)
    if pieces:
        yield pieces
