"""Dealing samples to shards, in order or shuffled, evenly to a number of shards or by size: arithmetic on sizes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dray.pipelines.inputs.sources import Sources
from dray.shards.messages import counted
from dray.shards.tar import BLOCK, END, MAX_SHARD_BYTES, max_member_bytes


def sample_bytes(sources: Sources) -> NDArray[np.int64]:
    """Returns (n,) the maximum number of bytes that each sample takes in a tar."""
    padded = (sources.sizes + BLOCK - 1) // BLOCK * BLOCK
    data: NDArray[np.int64] = padded.sum(axis=1) + BLOCK * len(sources.suffixes)
    longest = 100 - 1 - max(map(len, sources.suffixes))
    for row, name in enumerate(sources.names):
        if len(name) > longest or not name.isascii():
            files = (f"{name}.{suffix}".encode() for suffix in sources.suffixes)
            parts = zip(files, sources.sizes[row].tolist(), strict=True)
            data[row] = sum(max_member_bytes(len(file), size) for file, size in parts)
    return data


def shuffled(keys: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Returns the rows of keys, ordered by xxh3_64 of the key under a seed: independent of other samples."""
    return np.lexsort((np.array(keys, object), order_hashes(keys, seed)))


def order_hashes(keys: Sequence[str], seed: int) -> NDArray[np.uint64]:
    """Returns xxh3_64 of each key under a seed, by which `shuffled` orders; equal hashes are ordered by key."""
    return np.array([xxh3_64_intdigest(key.encode(), seed & 0xFFFF_FFFF_FFFF_FFFF) for key in keys], np.uint64)


def even_bounds(num_samples: int, num_shards: int) -> NDArray[np.int64]:
    """Returns half-open bounds of contiguous shards whose numbers of samples differ by at most one."""
    num_shards = min(num_shards, num_samples)
    return np.arange(num_shards + 1, dtype=np.int64) * num_samples // num_shards


def bounds_by_size(sizes: NDArray[np.int64], *, shard_bytes: int, shard_samples: int) -> NDArray[np.int64]:
    """Returns half-open bounds of shards filled one after another; a sample larger than a shard gets its own."""
    ends = np.cumsum(sizes)
    bounds = [0]
    while bounds[-1] < len(sizes):
        start = bounds[-1]
        filled = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, filled + shard_bytes - len(END), side="right"))
        bounds.append(max(start + 1, min(stop, start + shard_samples)))
    return np.array(bounds, np.int64)


def too_large(sizes: NDArray[np.int64], num_shards: int) -> str:
    """Returns the message for a number of shards that would pass 4 GiB: how many shards fit."""
    if sizes.max() + len(END) > MAX_SHARD_BYTES:
        return f"one sample of {int(sizes.max())} bytes passes 4 GiB, the most that a shard may hold"
    fits = num_shards
    while (np.add.reduceat(sizes, even_bounds(len(sizes), fits)[:-1]) + len(END)).max() > MAX_SHARD_BYTES:
        fits += 1
    return f"{counted(num_shards, 'shard')} would pass 4 GiB each, the most that a shard may hold: {fits} shards fit"
