"""The shards of a copy: which samples each holds, and which of them are stored already. Pure: no I/O, no clock."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dray.pipelines.inputs.encoder import Encoder
from dray.pipelines.planning.deal import bounds_by_size, even_bounds, shuffled
from dray.pipelines.planning.plan import Slot
from dray.pipelines.resharding.rows import Rows
from dray.pipelines.writing.shard import ShardSize
from dray.shards.arguments import as_int, as_seed
from dray.shards.errors import CallError
from dray.shards.tar import END, MAX_SHARD_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size and order of the shards of a copy.

    Attributes:
        size: When a shard is full, if `num_shards` is None.
        num_shards: Number of shards, equal to one sample; None: by size.
        shuffle_seed: Seed of the hash of the keys that orders the samples; None: as in the source.
    """

    size: ShardSize
    num_shards: int | None = None
    shuffle_seed: int | None = None

    @classmethod
    def of(
        cls, samples_per_shard: int | None, shard_bytes: int | None, num_shards: int | None, shuffle_seed: int | None
    ) -> "Shape":
        """Returns the shape that the arguments ask for.

        Raises:
            CallError: One is out of range, or `num_shards` is given with a size.
        """
        if num_shards is not None and (samples_per_shard is not None or shard_bytes is not None):
            raise CallError(f"num_shards={num_shards!r} with samples_per_shard or shard_bytes: give one or the other")
        return cls(
            size=ShardSize.of(samples_per_shard, shard_bytes),
            num_shards=None if num_shards is None else as_int("num_shards", num_shards, 1),
            shuffle_seed=None if shuffle_seed is None else as_seed("shuffle_seed", shuffle_seed),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that a recipe records, as a build names them."""
        return {
            "num_shards": self.num_shards,
            "shard_bytes": self.size.num_bytes,
            "shard_samples": self.size.samples,
            "shuffle_seed": self.shuffle_seed,
        }


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class PlannedShard:
    """A shard of the copy.

    Attributes:
        numbers: (m,) its rows, in its order.
        num_samples: Number of samples that they make.
        num_bytes: Largest size of the tar, if nothing is encoded.
        digest: Digest of the samples, their order, and how they are encoded.
        number: Number of a shard of the last version that holds just this; None if there is none.
    """

    numbers: NDArray[np.int64]
    num_samples: int
    num_bytes: int
    digest: str
    number: int | None

    @property
    def slot(self) -> Slot:
        """See `announce`."""
        return self.digest, self.number


def plan_shards(
    rows: Rows, samples: NDArray[np.int64], shape: Shape, encoder: Encoder | None, last: Mapping[str, int]
) -> list[PlannedShard]:
    """Returns the shards of a copy, in order.

    Args:
        rows: The n rows to copy, those of one sample together.
        samples: (n,) the number of the sample of each row, which ascends.
        shape: Size and order.
        encoder: Encodes the pickled parts; None: all are copied.
        last: Digest -> number of the shards of the last version that are whole.

    Raises:
        CallError: A shard would pass 4 GiB.
    """
    starts = np.flatnonzero(np.diff(samples, prepend=-1))
    counts = np.diff(starts, append=len(rows))
    sizes = np.add.reduceat(rows.tar_bytes(), starts)
    order = np.arange(len(starts))
    if shape.shuffle_seed is not None:
        order = shuffled(rows.keys.take(starts).to_pylist(), shape.shuffle_seed)
    bounds = _bounds(sizes[order], shape)
    how = json.dumps(None if encoder is None else encoder.to_json())
    planned: list[PlannedShard] = []
    free = dict(last)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        chosen = order[start:stop]
        numbers = _ranges(starts[chosen], counts[chosen])
        digest = rows.take(numbers).digest(how)
        num_bytes = int(sizes[chosen].sum()) + len(END)
        if num_bytes > MAX_SHARD_BYTES and encoder is None:
            raise CallError(f"a shard of {num_bytes:,} bytes would pass 4 GiB: make smaller shards")
        planned.append(
            PlannedShard(
                numbers=numbers,
                num_samples=stop - start,
                num_bytes=num_bytes,
                digest=digest,
                number=free.pop(digest, None),
            )
        )
    return planned


def _bounds(sizes: NDArray[np.int64], shape: Shape) -> NDArray[np.int64]:
    if shape.num_shards is not None:
        return even_bounds(len(sizes), shape.num_shards)
    return bounds_by_size(sizes, shard_bytes=shape.size.num_bytes, shard_samples=shape.size.samples)


def _ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the numbers `start .. start + count - 1` of each range, one range after the other."""
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    ranges: NDArray[np.int64] = np.repeat(starts, counts) + within
    return ranges
